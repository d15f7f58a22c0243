"""How events are told in the log: one line each, key=value, and what repeats at growing intervals."""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field


def line(event: str, **facts: object) -> str:
    """Write one event as a log line: `event key=value key="two words"`. Never more than one line."""
    return " ".join([event, *(f"{key}={_value(value)}" for key, value in facts.items())])


def _value(value: object) -> str:
    text = f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
    if text and text.isprintable() and not set(text) & set(' "='):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else repr(c)[1:-1] for c in escaped) + '"'


@dataclass
class _Trouble:
    since_s: float
    wait_s: float
    next_s: float
    unheard: int = 0
    causes: set[str] = field(default_factory=set)


class Repeats:
    """Tells a lasting trouble once, then after 10, 20, 40 ... minutes (at most hourly), until it is over.

    A cause not yet heard of in the same trouble is told at once, up to a limit. Safe to call from any thread.
    """

    _FIRST_WAIT_S = 600.0
    _LONGEST_WAIT_S = 3600.0
    _CAUSES = 4

    def __init__(self, logger: logging.Logger, steady_s: Callable[[], float]) -> None:
        self._logger = logger
        self._steady_s = steady_s
        self._lock = threading.Lock()  # guards _troubles, shared by the threads that meet the same trouble
        self._troubles: dict[str, _Trouble] = {}

    def tell(self, event: str, cause: str, level: int = logging.WARNING, **facts: object) -> None:
        """Log the event with its cause, unless it was told lately."""
        now_s = self._steady_s()
        with self._lock:
            trouble = self._troubles.get(event)
            if trouble is None:
                trouble = self._troubles[event] = _Trouble(now_s, self._FIRST_WAIT_S, now_s + self._FIRST_WAIT_S)
            elif now_s >= trouble.next_s:
                trouble.wait_s = min(2 * trouble.wait_s, self._LONGEST_WAIT_S)
                trouble.next_s = now_s + trouble.wait_s
            elif cause in trouble.causes or len(trouble.causes) >= self._CAUSES:
                trouble.unheard += 1
                return
            trouble.causes.add(cause)
            repeated = {"repeated": trouble.unheard, "for_s": round(now_s - trouble.since_s)} if trouble.unheard else {}
            trouble.unheard = 0
        self._logger.log(level, "%s", line(event, cause=cause, **facts, **repeated))

    def over(self, event: str) -> float | None:
        """Forget the trouble; return how many seconds it lasted, None if there was none."""
        with self._lock:
            trouble = self._troubles.pop(event, None)
        return None if trouble is None else self._steady_s() - trouble.since_s
