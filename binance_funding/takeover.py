"""What a starting daemon takes over from the file that the last one left, with its old times."""

import logging
import os
from collections.abc import Mapping
from typing import Any

from . import events
from .book import Book
from .clock import Clock, Moment
from .comparison import Comparison
from .history import GAP_SECONDS, History
from .publisher import USUAL_INTERVAL_HOURS
from .rates import FundingRate, latest_event_time_ms
from .rest import RestPoller
from .state_file import UnusableState, read, written_age_s

_log = logging.getLogger(__name__)


def take_over(path: str, clock: Clock, book: Book, rest: RestPoller, history: History, comparison: Comparison) -> None:
    """Go on from what the last daemon left, so that staleness, gaps and totals stay true. For the start, once.

    A file that cannot be read is dropped with a warning; none is no news.
    """
    try:
        state = read(path)
    except UnusableState as error:
        if os.path.lexists(path):
            _log.warning("%s", events.line("old state dropped", cause=error))
        return
    now = clock.now()
    down_s = written_age_s(state, now.wall_s, now.steady_s, clock.boot_id)
    wall_minus_steady_s = state["updated_at"] + down_s - now.steady_s
    started_s = (state["connection_status"].get("daemon_start_time") or state["updated_at"]) - wall_minus_steady_s
    book.take_over(_rates(state["funding_state"], wall_minus_steady_s, now), down_s, started_s)
    rest.restore(state["connection_status"]["rest"].get("paused_until"), _intervals(state["funding_state"]))
    try:
        history.restore(state)
        comparison.restore(state)
    except (KeyError, TypeError, ValueError) as error:
        _log.warning("%s", events.line("old statistics dropped", cause=f"{type(error).__name__}: {error}"))
    if down_s <= GAP_SECONDS:
        # So short a restart is no gap, and none in what was watched either.
        history.count(now.wall_s, observed=down_s)
    level = logging.INFO if state["funding_state"] else logging.DEBUG
    _log.log(level, "%s", events.line("took over", symbols=len(state["funding_state"]), not_running_s=down_s))


def _rates(records: Mapping[str, Any], wall_minus_steady_s: float, now: Moment) -> list[FundingRate]:
    latest_ms = latest_event_time_ms(now)
    return [
        FundingRate(
            symbol,
            repr(record["fundingRate"]),
            repr(record["markPrice"]),
            repr(record["indexPrice"]),
            int(record["nextFundingTime"]),
            int(record["eventTime"]),
            record["source"],
            min(now.steady_s, record["updatedAt"] - wall_minus_steady_s),
        )
        for symbol, record in records.items()
        if record["eventTime"] <= latest_ms
    ]


def _intervals(records: Mapping[str, Any]) -> dict[str, int]:
    known = {symbol: record["fundingIntervalHours"] for symbol, record in records.items()}
    return {symbol: hours for symbol, hours in known.items() if hours != USUAL_INTERVAL_HOURS}
