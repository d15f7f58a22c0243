"""The two clocks of this host: the wall clock for times that are written, the steady clock for ages and timeouts."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple


class Moment(NamedTuple):
    """One instant on both clocks."""

    wall_s: float
    """Unix seconds. The wall clock jumps when somebody sets it."""
    steady_s: float
    """Seconds since boot. The steady clock never jumps."""

    def wall_at(self, steady_s: float) -> float:
        """Convert another time of the steady clock to Unix seconds, rounded to the millisecond."""
        return round(self.wall_s + steady_s - self.steady_s, 3)


def _since_boot_s() -> float:
    # CLOCK_MONOTONIC stands still while the host is suspended, so data that is hours old would look fresh afterwards.
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _boot_id() -> str:
    """Return the ID of this boot, "" if unknown. Steady times of two processes are comparable within one boot only."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


@dataclass(frozen=True)
class Clock:
    """Both clocks of this host. Tests replace them by simulated ones. Safe to call from any thread."""

    wall_s: Callable[[], float] = time.time
    steady_s: Callable[[], float] = _since_boot_s
    boot_id: str = field(default_factory=_boot_id)

    def now(self) -> Moment:
        """Read both clocks."""
        return Moment(self.wall_s(), self.steady_s())


class Deadline:
    """One time limit for several steps that follow each other."""

    def __init__(self, within_s: float, steady_s: Callable[[], float] = time.monotonic) -> None:
        self._steady_s = steady_s
        self._end_s = steady_s() + within_s

    def remaining_s(self) -> float:
        """Return the seconds left, never less than 0."""
        return max(0.0, self._end_s - self._steady_s())

    def is_over(self) -> bool:
        """Tell whether no time is left."""
        return self._steady_s() >= self._end_s
