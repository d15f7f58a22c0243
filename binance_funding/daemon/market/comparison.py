"""Comparison of each REST snapshot with the rows of the stream."""

from collections.abc import Mapping, Sequence
from typing import Any

from ...clock import Clock
from ...log import EventLogger, LogThrottle
from ...schema import TOTALS
from ..record import FundingRate
from . import thresholds
from .last_day import LastDay

_log = EventLogger(__name__)

# A result names at most this many symbols of each kind.
_NAMED = 20


class Comparison:
    """The result of the last comparison, and totals over all of them, restarts included. `run` is for one thread."""

    def __init__(self, clock: Clock, last_day: LastDay) -> None:
        self._last_day = last_day
        self._throttle = LogThrottle(_log, clock.steady_s)
        self.state: dict[str, Any] = {"last": None, "totals": {one.name: 0 for one in TOTALS}}
        """The member `comparison` of the state file; replaced as a whole."""

    def run(self, stream: Mapping[str, FundingRate], rest: Sequence[FundingRate], wall_s: float) -> dict[str, Any]:
        """Compare one snapshot with the stream's rates by symbol; count, log and return the result."""
        last = compare(stream, rest, wall_s)
        totals = {name: n + (1 if name == "runs" else last[name]) for name, n in self.state["totals"].items()}
        self.state = {"last": last, "totals": totals}
        self._last_day.count(wall_s, runs=1, compared=last["compared"], mismatched=last["mismatched"])
        shown = {name: value for name, value in last.items() if name != "compared_at" and not isinstance(value, list)}
        if last["mismatched"]:
            self._throttle.warn("comparison", **shown, symbols=",".join(last["mismatched_symbols"]))
        else:
            _log.debug("comparison", **shown)
            self._throttle.resolve("comparison", log_as="comparison equal again")
        return last


def compare(stream: Mapping[str, FundingRate], rest: Sequence[FundingRate], wall_s: float) -> dict[str, Any]:
    """Compare the symbols that both sources have, if their event times are close together. Pure.

    Differences of the funding rate are absolute, differences of the mark price relative to REST.
    """
    pairs = [(ours, theirs) for theirs in rest if (ours := stream.get(theirs.symbol)) and _is_comparable(ours, theirs)]
    rates_apart = [round(abs(ours.funding_rate - theirs.funding_rate), 12) for ours, theirs in pairs]
    prices_apart = [round(abs(ours.mark_price / theirs.mark_price - 1), 12) for ours, theirs in pairs]
    mismatched = sorted(
        theirs.symbol
        for (_, theirs), rate_apart, price_apart in zip(pairs, rates_apart, prices_apart, strict=True)
        if rate_apart > thresholds.FUNDING_RATE_TOLERANCE or price_apart > thresholds.MARK_PRICE_TOLERANCE
    )
    in_rest = {rate.symbol for rate in rest}
    only_in_stream, only_in_rest = sorted(stream.keys() - in_rest), sorted(in_rest - stream.keys())
    return {
        "compared_at": round(wall_s, 3),
        "compared": len(pairs),
        "matched": len(pairs) - len(mismatched),
        "mismatched": len(mismatched),
        "identical": sum(_is_identical(ours, theirs) for ours, theirs in pairs),
        "max_funding_rate_difference": max(rates_apart, default=0.0),
        "max_mark_price_difference_ratio": max(prices_apart, default=0.0),
        "only_in_stream": len(only_in_stream),
        "only_in_rest": len(only_in_rest),
        "mismatched_symbols": mismatched[:_NAMED],
        "only_in_stream_symbols": only_in_stream[:_NAMED],
        "only_in_rest_symbols": only_in_rest[:_NAMED],
    }


def _is_comparable(ours: FundingRate, theirs: FundingRate) -> bool:
    return abs(ours.event_time_ms - theirs.event_time_ms) <= thresholds.COMPARABLE_S * 1000


def _is_identical(ours: FundingRate, theirs: FundingRate) -> bool:
    same_prices = ours.mark_price == theirs.mark_price and ours.index_price == theirs.index_price
    return same_prices and ours.funding_rate == theirs.funding_rate and ours.event_time_ms == theirs.event_time_ms
