"""The one way in which tests wait: for a condition, with a limit, never for a fixed time."""

import time
from collections.abc import Callable
from typing import TypeVar

PATIENCE_S = 30.0
"""Longest wait for something that must happen; on an idle machine it takes a fraction."""

T = TypeVar("T")


def eventually(condition: Callable[[], T | None], what: str, within_s: float = PATIENCE_S) -> T:
    """Return the first true value of the condition. Raises AssertionError when there is none in time."""
    deadline_s = time.monotonic() + within_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline_s:
            raise AssertionError(f"not within {within_s:g} s: {what}")
        time.sleep(0.02)
