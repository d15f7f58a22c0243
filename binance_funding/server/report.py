"""Checks four promises of the service over the last 24 hours, by the history in the state file. Pure."""

import math
from collections.abc import Mapping
from typing import Any

from ..schema import GAP_SECONDS, QUARTER, QUARTER_S, WINDOW_S

_Quarters = dict[int, Mapping[str, float]]
_Spans = list[tuple[float, float]]
# Rounding and restarts may take this much from a day that was watched completely.
_UNWATCHED_S = 18.0
_NOT_WATCHED: dict[str, float] = {one.name: 0 for one in QUARTER}


def report(
    gaps: list[dict[str, Any]],
    history: list[dict[str, float]],
    wall_s: float,
    *,
    oldest_age_s: float,
    market_age_s: float,
    stale_s: float,
) -> dict[str, Any]:
    """Check that no connection was lost unplanned, no data was stale, stream and REST agreed, and no gap occurred.

    oldest_age_s is the age of the oldest symbol that counts. market_age_s is the time since the market got new data. If
    it is longer than GAP_SECONDS, a gap is still open, and counts too.
    """
    window_start_s = wall_s - WINDOW_S
    quarters = _up_to_now(history, wall_s, oldest_age_s)
    total = {one.name: sum(quarter[one.name] for quarter in quarters.values()) for one in QUARTER}
    observed_s = min(total["observed"], WINDOW_S)
    worst_s = max(quarter["worst"] for quarter in quarters.values())
    spans = [(gap["start"], gap["start"] + gap["seconds"]) for gap in gaps]
    if market_age_s > GAP_SECONDS:
        spans.append((wall_s - market_age_s, wall_s))
    lengths_s = [end_s - max(start_s, window_start_s) for start_s, end_s in spans if end_s > window_start_s]
    parts = {
        "disconnections": {**_counts(total, "unplanned", "planned"), "pass": not total["unplanned"]},
        "dataAge": {"worstSeconds": worst_s, "limitSeconds": stale_s, "pass": worst_s <= stale_s},
        "comparison": {
            **_counts(total, "runs", "compared", "mismatched"),
            "pass": _comparison_passes(total, observed_s),
        },
        "gaps": {
            "count": len(lengths_s),
            "longestSeconds": round(max(lengths_s, default=0), 3),
            "totalSeconds": round(sum(lengths_s), 3),
            "pass": not lengths_s,
        },
    }
    passes = [part["pass"] for part in parts.values()]
    limits = {"within5Seconds": "within_5s", "within12Seconds": "within_12s", "withinLimit": "within_limit"}
    is_known = False in passes or (all(passes) and observed_s >= WINDOW_S - _UNWATCHED_S)
    starts_s = range(_quarter_start_s(window_start_s), int(wall_s) + 1, QUARTER_S)
    return {
        "windowHours": WINDOW_S // 3600,
        "observedHours": round(observed_s / 3600, 2),
        "pass": all(passes) if is_known else None,
        **parts,
        "freshness": {name: _share(total[field], total["symbol_seconds"]) for name, field in limits.items()},
        "timeline": [_timeline_entry(start_s, quarters.get(start_s, _NOT_WATCHED), spans) for start_s in starts_s],
    }


def _quarter_start_s(wall_s: float) -> int:
    return int(wall_s // QUARTER_S) * QUARTER_S


def _up_to_now(history: list[dict[str, float]], wall_s: float, oldest_age_s: float) -> _Quarters:
    """Return the quarter hours of the window by their start. The current one includes the age of the data now."""
    quarters: _Quarters = {int(one["start"]): one for one in history if one["start"] + QUARTER_S > wall_s - WINDOW_S}
    now = quarters.get(_quarter_start_s(wall_s), _NOT_WATCHED)
    quarters[_quarter_start_s(wall_s)] = {**now, "worst": max(now["worst"], round(oldest_age_s, 3))}
    return quarters


def _timeline_entry(start_s: int, quarter: Mapping[str, float], spans: _Spans) -> dict[str, Any]:
    gap_s = sum(max(0.0, min(end, start_s + QUARTER_S) - max(start, start_s)) for start, end in spans)
    return {
        "start": start_s,
        "observedSeconds": round(min(quarter["observed"], QUARTER_S), 3),
        "worstAgeSeconds": quarter["worst"],
        **_counts(quarter, "unplanned", "planned"),
        "gapSeconds": round(gap_s, 3),
        **_counts(quarter, "mismatched"),
    }


def _share(fresh: float, of: float) -> float | None:
    """Return the share of symbol-seconds, None if there were none. It is rounded down, so 1 means all."""
    return math.floor(fresh / of * 1e6) / 1e6 if of else None


def _counts(values: Mapping[str, float], *names: str) -> dict[str, Any]:
    return {name: int(values[name]) for name in names}


def _comparison_passes(total: Mapping[str, float], observed_s: float) -> bool | None:
    if total["compared"]:
        return not total["mismatched"]
    # The first snapshot may still be under way, or may have come before the stream. A whole day of that is a failure.
    return False if observed_s >= WINDOW_S - _UNWATCHED_S else None
