"""Decides whether the stream delivers the market, or REST has to replace it (fallback). No other module decides that.

The decision determines how often REST is polled, whether REST rows replace stream rows, and what health reports.
"""

from typing import Any

from ...clock import Clock
from ...log import EventLogger, LogThrottle
from ...settings import Settings
from . import thresholds


class StreamState:
    """The decision. The thread that polls REST updates it; any thread may read it."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self.fallback_active = False
        """Whether REST replaces the stream, so that snapshots are requested often."""
        self.keeps_rows = False
        """Whether current rows of the stream are kept although REST has newer rows."""
        self._current_s = thresholds.current_s(settings)
        self._throttle = LogThrottle(EventLogger(__name__), clock.steady_s)
        self._was_live = False  # whether any connection has ever been live

    def update(self, live: int, age_s: float, **facts: Any) -> bool:
        """Decide by the number of live connections and the age of the stream; return whether fallback has just begun.

        Fallback ends when the stream is younger than half the limit at which it begins. `facts` are logged.
        """
        limit_s = self._current_s
        active = age_s > (limit_s / 2 if self.fallback_active else limit_s) or (self._was_live and not live)
        self._was_live = self._was_live or live > 0
        self.keeps_rows = live > 0 and age_s <= limit_s / 2
        if active == self.fallback_active:
            return False
        self.fallback_active = active
        if active:
            self._throttle.warn("fallback on", stream_age_s=age_s, live=live, **facts)
        else:
            self._throttle.resolve("fallback on", log_as="fallback off", live=live)
        return active
