"""A REST snapshot held against what the stream brought: do both tell the same?"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from . import events
from .rates import FundingRate

_log = logging.getLogger(__name__)

# Event times further apart than this cannot be compared: the market moves.
_COMPARABLE_MS = 5000
# More than the market moves within that time, less than any real fault.
_FUNDING_RATE_TOLERANCE = 0.00005
_MARK_PRICE_TOLERANCE = 0.005
_NAMED = 20

_TOTALS = ("runs", "compared", "matched", "mismatched", "identical")


class Comparison:
    """Result of the last run and totals over all runs, restarts included. For one thread; `to_json` from any."""

    def __init__(self) -> None:
        self._last: dict[str, Any] | None = None
        self._totals = dict.fromkeys(_TOTALS, 0)

    def run(self, stream: Mapping[str, FundingRate], rest: Sequence[FundingRate], wall_s: float) -> dict[str, Any]:
        """Hold one snapshot against the stream's rates by symbol; log and return the result."""
        last = compare(stream, rest, wall_s)
        totals = {name: self._totals[name] + (1 if name == "runs" else last[name]) for name in _TOTALS}
        self._last, self._totals = last, totals
        shown = {name: value for name, value in last.items() if name != "compared_at" and not isinstance(value, list)}
        if last["mismatched"]:
            shown["symbols"] = ",".join(last["mismatched_symbols"])
        _log.log(logging.WARNING if last["mismatched"] else logging.DEBUG, "%s", events.line("comparison", **shown))
        return last

    def to_json(self) -> dict[str, Any]:
        """Return `comparison` as it stands in the state file."""
        return {"last": self._last, "totals": self._totals}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what an earlier daemon left. Raises KeyError, TypeError or ValueError on junk."""
        totals = {name: int(state["comparison"]["totals"][name]) for name in _TOTALS}
        self._last, self._totals = state["comparison"]["last"], totals


def compare(stream: Mapping[str, FundingRate], rest: Sequence[FundingRate], wall_s: float) -> dict[str, Any]:
    """Compare every symbol that both have at event times at most 5 s apart. Pure.

    Differences are absolute for the funding rate, relative to REST's for the mark price.
    """
    compared = identical = 0
    worst_rate = worst_price = 0.0
    mismatched: list[str] = []
    for theirs in rest:
        ours = stream.get(theirs.symbol)
        if ours is None or abs(ours.event_time_ms - theirs.event_time_ms) > _COMPARABLE_MS:
            continue
        compared += 1
        rate_difference, price_difference = _differences(ours, theirs)
        worst_rate, worst_price = max(worst_rate, rate_difference), max(worst_price, price_difference)
        if round(rate_difference, 12) > _FUNDING_RATE_TOLERANCE or round(price_difference, 12) > _MARK_PRICE_TOLERANCE:
            mismatched.append(theirs.symbol)
        identical += _is_identical(ours, theirs)
    in_rest = {rate.symbol for rate in rest}
    only_in_stream, only_in_rest = sorted(stream.keys() - in_rest), sorted(in_rest - stream.keys())
    return {
        "compared_at": round(wall_s, 3),
        "compared": compared,
        "matched": compared - len(mismatched),
        "mismatched": len(mismatched),
        "identical": identical,
        "max_funding_rate_difference": round(worst_rate, 12),
        "max_mark_price_difference_ratio": round(worst_price, 12),
        "only_in_stream": len(only_in_stream),
        "only_in_rest": len(only_in_rest),
        "mismatched_symbols": sorted(mismatched)[:_NAMED],
        "only_in_stream_symbols": only_in_stream[:_NAMED],
        "only_in_rest_symbols": only_in_rest[:_NAMED],
    }


def _differences(ours: FundingRate, theirs: FundingRate) -> tuple[float, float]:
    rate = abs(float(ours.funding_rate) - float(theirs.funding_rate))
    our_price, their_price = float(ours.mark_price), float(theirs.mark_price)
    if our_price == their_price:
        return rate, 0.0
    return rate, abs(our_price - their_price) / abs(their_price) if their_price else 1.0


def _is_identical(ours: FundingRate, theirs: FundingRate) -> bool:
    return ours.event_time_ms == theirs.event_time_ms and all(
        float(a) == float(b)
        for a, b in (
            (ours.funding_rate, theirs.funding_rate),
            (ours.mark_price, theirs.mark_price),
            (ours.index_price, theirs.index_price),
        )
    )
