"""The two clocks of this host: wall time for what is written, steady time for every age and timeout."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple


class Moment(NamedTuple):
    """One instant read from both clocks."""

    wall_s: float
    """Unix seconds of this host's clock; jumps when somebody sets it."""
    steady_s: float
    """Seconds since boot; never jumps."""

    def wall_at(self, steady_s: float) -> float:
        """Return the Unix time of another instant of the steady clock, to the millisecond."""
        return round(self.wall_s + steady_s - self.steady_s, 3)


def _since_boot_s() -> float:
    # CLOCK_MONOTONIC stands still while a host is suspended: data that is hours old would look fresh afterwards.
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _boot_id() -> str:
    """Name this boot, within which steady times of different processes can be compared; "" if unknown."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


@dataclass(frozen=True)
class Clock:
    """Both clocks of this host; tests put their own in. Safe to call from any thread."""

    wall_s: Callable[[], float] = time.time
    steady_s: Callable[[], float] = _since_boot_s
    boot_id: str = field(default_factory=_boot_id)

    def now(self) -> Moment:
        """Read both clocks."""
        return Moment(self.wall_s(), self.steady_s())


class Deadline:
    """One limit for several steps, on the steady clock."""

    def __init__(self, within_s: float, steady_s: Callable[[], float] = time.monotonic) -> None:
        self._steady_s = steady_s
        self._end_s = steady_s() + within_s

    def remaining_s(self) -> float:
        """Return the seconds left, never less than 0."""
        return max(0.0, self._end_s - self._steady_s())

    def is_over(self) -> bool:
        """Tell whether no time is left."""
        return self._steady_s() >= self._end_s
