"""Counts the events of the last 24 hours for the state file. The server makes the report from these counts.

Events are counted by quarter hours, so the file stays small, however many events there are.
"""

import threading
from collections.abc import Mapping
from typing import Any

from ...schema import QUARTER, QUARTER_S, WINDOW_S

_AMOUNTS = dict.fromkeys((one.name for one in QUARTER if one.name != "start"), 0.0)


class LastDay:
    """Time watched, disconnections, data ages, comparisons and gaps of the last 24 h.

    All times are Unix seconds of the wall clock. Safe to call from any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards everything below; held for microseconds only
        self._quarters: dict[int, dict[str, float]] = {}
        self._rounded: dict[int, dict[str, float]] = {}
        """Rounded quarter hours for the file, by their start. If a quarter hour changes, it is removed here."""
        self._gaps: list[dict[str, Any]] = []

    def count(self, wall_s: float, **amounts: float) -> None:
        """Add to the counts of the quarter hour, by their names in schema.QUARTER."""
        with self._lock:
            quarter = self._quarter(wall_s)
            for name, amount in amounts.items():
                quarter[name] += amount

    def data_age(self, wall_s: float, age_s: float) -> None:
        """Note how old the oldest counted record is."""
        with self._lock:
            quarter = self._quarter(wall_s)
            quarter["worst"] = max(quarter["worst"], round(age_s, 3))

    def gap(self, start_wall_s: float, seconds: float, cause: str) -> None:
        """Note a gap that has just ended."""
        with self._lock:
            self._gaps.append({"start": round(start_wall_s, 3), "seconds": round(seconds, 3), "cause": cause})

    def to_json(self, wall_s: float) -> dict[str, Any]:
        """Return gaps and quarter hours of the last 24 h, ready for the state file; forget older ones."""

        def is_kept(start_s: float, seconds: float) -> bool:
            # An entry far in the future was made by a wrong clock. An entry in the near future may have been made
            # before somebody set the clock back a little.
            return wall_s - WINDOW_S < start_s + seconds and start_s <= wall_s + WINDOW_S

        with self._lock:
            self._gaps = [gap for gap in self._gaps if is_kept(gap["start"], gap["seconds"])]
            for start in [start for start in self._quarters if not is_kept(start, QUARTER_S)]:
                del self._quarters[start]
                self._rounded.pop(start, None)
            for start in self._quarters.keys() - self._rounded.keys():
                amounts = {name: round(amount, 3) for name, amount in self._quarters[start].items()}
                self._rounded[start] = {"start": start, **amounts}
            return {"gaps": list(self._gaps), "history": [self._rounded[start] for start in sorted(self._quarters)]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from the gaps and quarter hours of an earlier daemon, as they were read from the state file."""
        with self._lock:
            self._gaps = list(state["gaps"])
            self._rounded = {}
            self._quarters = {
                int(quarter["start"]): {name: float(quarter[name]) for name in _AMOUNTS} for quarter in state["history"]
            }

    def _quarter(self, wall_s: float) -> dict[str, float]:
        start = int(wall_s // QUARTER_S) * QUARTER_S
        self._rounded.pop(start, None)
        return self._quarters.setdefault(start, dict(_AMOUNTS))
