"""How events are told in the log: one line each, key=value, and what repeats at growing intervals."""

import logging
import re
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


# What a cause quotes may be something else each time; it is the same cause all the same.
_QUOTATION = re.compile("['\"{]")


@dataclass
class _Trouble:
    first_s: float
    """When it came for the first time."""
    since_s: float
    """When it came, or came back."""
    last_s: float
    """When it was met last."""
    wait_s: float
    next_s: float
    over_s: float | None = None
    """When it was over, if it is."""
    told: bool = False
    """Whether anything was told of it since it came, or came back."""
    returns_told: int = 0
    unheard: int = 0
    causes: set[str] = field(default_factory=set)


class Repeats:
    """Tells a lasting trouble once, then after 10, 20, 40 ... minutes (at most hourly), until it is over.

    A cause not yet heard of in the same trouble is told at once, and so is a trouble that comes back, both up to a
    limit: what comes and goes every minute is one trouble too, until it has been away for 10 minutes. Safe to call from
    any thread.
    """

    _FIRST_WAIT_S = 600.0
    _LONGEST_WAIT_S = 3600.0
    _CAUSES = 8
    _RETURNS = 3

    def __init__(self, logger: logging.Logger, steady_s: Callable[[], float]) -> None:
        self._logger = logger
        self._steady_s = steady_s
        self._lock = threading.Lock()  # guards _troubles, shared by the threads that meet the same trouble
        self._troubles: dict[str, _Trouble] = {}

    def tell(self, event: str, cause: str, level: int = logging.WARNING, **facts: object) -> None:
        """Log the event with its cause, if it has one, unless it was told lately."""
        now_s, kind = self._steady_s(), _QUOTATION.split(cause, maxsplit=1)[0]
        with self._lock:
            trouble = self._troubles.get(event)
            if trouble is None or self._is_past(trouble, now_s):
                since_s = now_s if trouble is None or trouble.over_s is not None else trouble.since_s
                wait_s = self._FIRST_WAIT_S
                trouble = self._troubles[event] = _Trouble(now_s, since_s, now_s, wait_s, now_s + wait_s)
            elif not self._is_due(trouble, kind, now_s):
                trouble.unheard += 1
                return
            trouble.told = True
            trouble.causes.add(kind)
            repeated = {"repeated": trouble.unheard, "for_s": round(now_s - trouble.first_s)} if trouble.unheard else {}
            trouble.unheard = 0
        because = {"cause": cause} if cause else {}
        self._logger.log(level, "%s", line(event, **because, **facts, **repeated))

    def _is_past(self, trouble: _Trouble, now_s: float) -> bool:
        if trouble.over_s is None:  # nobody says of every trouble when it is over
            return now_s - trouble.last_s > self._LONGEST_WAIT_S
        return now_s - trouble.over_s > self._FIRST_WAIT_S

    def _is_due(self, trouble: _Trouble, kind: str, now_s: float) -> bool:
        trouble.last_s = now_s
        came_back = trouble.over_s is not None
        if came_back:
            trouble.since_s, trouble.over_s, trouble.told = now_s, None, False
        if now_s >= trouble.next_s:
            trouble.wait_s = min(2 * trouble.wait_s, self._LONGEST_WAIT_S)
            trouble.next_s = now_s + trouble.wait_s
            return True
        if came_back and trouble.returns_told < self._RETURNS:
            trouble.returns_told += 1
            return True
        return kind not in trouble.causes and len(trouble.causes) < self._CAUSES

    def over(self, *events: str) -> float | None:
        """End these troubles; return how many seconds the longest lasted, None if there was none or none was told."""
        now_s, lasted_s = self._steady_s(), list[float]()
        with self._lock:
            for trouble in (self._troubles.get(event) for event in events):
                if trouble is not None and trouble.over_s is None:
                    trouble.over_s = now_s
                    if trouble.told:
                        trouble.unheard = 0
                        lasted_s.append(now_s - trouble.since_s)
        return max(lasted_s, default=None)
