"""Counts for how long symbols were fresh, in symbol-seconds: one symbol during one second is one symbol-second."""

from bisect import bisect_left
from collections.abc import Sequence

from ...clock import Moment
from ...schema import QUARTER_S
from . import thresholds
from .last_day import LastDay


class SymbolSeconds:
    """Adds symbol-seconds to the last day and to totals. For one thread at a time."""

    def __init__(self, stale_seconds: float, last_day: LastDay) -> None:
        self.totals = dict.fromkeys(("all", "5s", "12s", "limit"), 0.0)
        """All symbol-seconds since the start, and those in which the data was younger than each limit."""
        self._limits_s = dict(zip(("5s", "12s", "limit"), (*thresholds.FRESH_S, stale_seconds), strict=True))
        self._last_day = last_day

    def add(self, as_of_s: Sequence[float], start_s: float, now: Moment) -> None:
        """Add the time from `start_s` until now. `as_of_s` are the times of the counted records, sorted."""
        wall_minus_steady_s = now.wall_s - now.steady_s
        while start_s < now.steady_s:
            quarter_end_s = ((start_s + wall_minus_steady_s) // QUARTER_S + 1) * QUARTER_S - wall_minus_steady_s
            # At least 1 ms, because a rounding error could make the step 0, and the loop endless.
            end_s = min(now.steady_s, max(quarter_end_s, start_s + 0.001))
            amounts = {"all": len(as_of_s) * (end_s - start_s)}
            amounts |= {name: fresh_s(as_of_s, start_s, end_s, limit) for name, limit in self._limits_s.items()}
            for name, amount in amounts.items():
                self.totals[name] += amount
            self._last_day.count(
                start_s + wall_minus_steady_s,
                symbol_seconds=amounts["all"],
                within_5s=amounts["5s"],
                within_12s=amounts["12s"],
                within_limit=amounts["limit"],
            )
            start_s = end_s


def fresh_s(as_of_s: Sequence[float], start_s: float, end_s: float, limit_s: float) -> float:
    """Return for how long records were no older than the limit between start and end, summed over all records.

    `as_of_s` are the times at which the records were true, sorted. A record that becomes too old between start
    and end counts until then.
    """
    first, last = bisect_left(as_of_s, start_s - limit_s), bisect_left(as_of_s, end_s - limit_s)
    partly_s = sum(as_of_s[first:last]) - (last - first) * (start_s - limit_s)
    return (len(as_of_s) - last) * (end_s - start_s) + partly_s
