"""The last 24 hours as the daemon saw them, kept in the state file, and the report made of them.

The daemon records; the server sums up. Counts live in quarter hours, so that any number of events fits in the file.
"""

import threading
from collections.abc import Mapping
from typing import Any

WINDOW_S = 86_400
GAP_SECONDS = 10.0
"""Longest time without new data from any source that is not a gap."""

_BUCKET_S = 900
_COUNTED = ("observed", "unplanned", "planned", "runs", "compared", "mismatched")


class History:
    """What happened in the last 24 h: time watched, disconnections, data ages, comparisons, gaps.

    Every time given is Unix seconds of the wall clock. Safe to call from any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards everything below; held for microseconds only
        self._buckets: dict[int, dict[str, float]] = {}
        self._gaps: list[dict[str, Any]] = []

    def count(self, wall_s: float, **amounts: float) -> None:
        """Add to the counts of the quarter hour: observed (seconds), unplanned, planned, runs, compared, mismatched."""
        with self._lock:
            bucket = self._bucket(wall_s)
            for name, amount in amounts.items():
                bucket[name] += amount

    def data_age(self, wall_s: float, age_s: float) -> None:
        """Note how old the newest data of the whole book had become when newer data came."""
        with self._lock:
            bucket = self._bucket(wall_s)
            bucket["worst"] = max(bucket["worst"], round(age_s, 3))

    def gap(self, start_wall_s: float, seconds: float, cause: str) -> None:
        """Note a gap that has just ended."""
        with self._lock:
            self._gaps.append({"start": round(start_wall_s, 3), "seconds": round(seconds, 3), "cause": cause})

    def to_json(self, wall_s: float) -> tuple[list[dict[str, Any]], list[dict[str, float]]]:
        """Return gaps and quarter hours of the last 24 h, ready for the state file; what is older is forgotten."""
        with self._lock:
            # What lies far in the future was noted by a clock that was wrong, and would be counted until then; what
            # lies less far may have been noted before somebody set the clock back a little.
            oldest_s, latest_s = wall_s - WINDOW_S, wall_s + WINDOW_S
            self._buckets = {
                start: bucket
                for start, bucket in self._buckets.items()
                if oldest_s < start + _BUCKET_S and start <= latest_s
            }
            self._gaps = [
                gap for gap in self._gaps if oldest_s < gap["start"] + gap["seconds"] and gap["start"] <= latest_s
            ]
            buckets = [{"start": start, **bucket} for start, bucket in sorted(self._buckets.items())]
            return list(self._gaps), [{**bucket, "observed": round(bucket["observed"], 3)} for bucket in buckets]

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what an earlier daemon left in the state file. Raises KeyError, TypeError or ValueError on junk."""
        gaps = [
            {"start": float(gap["start"]), "seconds": float(gap["seconds"]), "cause": str(gap["cause"])}
            for gap in state["gaps"]
        ]
        buckets = {
            int(bucket["start"]): {name: float(bucket[name]) for name in (*_COUNTED, "worst")}
            for bucket in state["history"]
        }
        with self._lock:
            self._gaps, self._buckets = gaps, buckets

    def _bucket(self, wall_s: float) -> dict[str, float]:
        start = int(wall_s // _BUCKET_S) * _BUCKET_S
        return self._buckets.setdefault(start, dict.fromkeys((*_COUNTED, "worst"), 0))


def report(
    gaps: list[dict[str, Any]],
    buckets: list[dict[str, float]],
    wall_s: float,
    data_age_s: float,
    stale_s: float,
) -> dict[str, Any]:
    """Answer the standing test plan over the last 24 h: no unplanned disconnection, no stale data, comparisons, no gap.

    data_age_s is the age of the newest data now; where it is more than a gap allows, the gap still open counts as well.
    """
    window_start_s = wall_s - WINDOW_S
    recent = [bucket for bucket in buckets if bucket.get("start", 0) + _BUCKET_S > window_start_s]
    total = {name: sum(bucket.get(name, 0) for bucket in recent) for name in _COUNTED}
    observed_hours = round(min(total["observed"], WINDOW_S) / 3600, 2)
    worst_s = max([data_age_s, *(bucket.get("worst", 0) for bucket in recent)])
    lengths = _gap_lengths(gaps, window_start_s, wall_s, data_age_s)
    parts: dict[str, dict[str, Any]] = {
        "disconnections": {
            "unplanned": int(total["unplanned"]),
            "planned": int(total["planned"]),
            "pass": total["unplanned"] == 0,
        },
        "dataAge": {"worstSeconds": round(worst_s, 3), "limitSeconds": stale_s, "pass": worst_s <= stale_s},
        "comparison": {
            "runs": int(total["runs"]),
            "compared": int(total["compared"]),
            "mismatched": int(total["mismatched"]),
            "pass": _comparison_passes(total, observed_hours),
        },
        "gaps": {
            "count": len(lengths),
            "longestSeconds": round(max(lengths, default=0), 3),
            "totalSeconds": round(sum(lengths), 3),
            "pass": not lengths,
        },
    }
    return {
        "windowHours": WINDOW_S // 3600,
        "observedHours": observed_hours,
        "pass": _verdict(parts, observed_hours),
        **parts,
    }


def _gap_lengths(gaps: list[dict[str, Any]], window_start_s: float, wall_s: float, data_age_s: float) -> list[float]:
    """Return the seconds of each gap that lie inside the window, the open one included."""
    ends = [(gap["start"], gap["start"] + gap["seconds"]) for gap in gaps]
    if data_age_s > GAP_SECONDS:
        ends.append((wall_s - data_age_s, wall_s))
    return [end - max(start, window_start_s) for start, end in ends if end > window_start_s]


def _comparison_passes(total: Mapping[str, float], observed_hours: float) -> bool | None:
    if total["mismatched"] > 0:
        return False
    if total["runs"] == 0 or total["compared"] == 0:
        # The first snapshot may still be under way, or have come before the stream; a whole day of that is a failure.
        return False if observed_hours >= WINDOW_S / 3600 else None
    return True


def _verdict(parts: Mapping[str, Mapping[str, Any]], observed_hours: float) -> bool | None:
    passes = [part["pass"] for part in parts.values()]
    if False in passes:
        return False
    return True if all(passes) and observed_hours >= WINDOW_S / 3600 else None
