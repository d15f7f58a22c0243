"""Restores the state of an earlier daemon from the state file at the start. The records keep their old times."""

import os
from collections.abc import Mapping
from typing import Any

from ...clock import Clock
from ...log import EventLogger
from ...schema import GAP_SECONDS
from ...settings import Settings
from ...state_file import UnusableState, read, written_age_s
from ..market.book import Book
from ..market.comparison import Comparison
from ..market.freshness import FreshnessWatch
from ..market.intervals import Intervals
from ..market.last_day import LastDay
from ..record import FundingRate, Terms
from ..source.pool import StreamPool
from ..source.refusals import LONGEST_BAN_S
from ..source.rest_poller import RestPoller

_log = EventLogger(__name__)


def restore(
    path: str,
    settings: Settings,
    clock: Clock,
    *,
    book: Book,
    intervals: Intervals,
    freshness: FreshnessWatch,
    last_day: LastDay,
    comparison: Comparison,
    rest: RestPoller,
    stream: StreamPool,
) -> None:
    """Restore every part from the file, so that ages, gaps and totals continue. Called once, at the start.

    A file that cannot be read is dropped with a warning. A missing file is normal.
    """
    try:
        state = read(path)
    except UnusableState as error:
        if os.path.lexists(path):
            _log.warning("old state dropped", cause=error)
        return
    now, boot_id = clock.now(), clock.boot_id
    down_s = written_age_s(state, now, boot_id)
    # The present on the wall clock as it was when the file was written. Somebody may have set the clock since.
    file_now_s = state["updated_at"] + down_s
    steady_minus_file_s = now.steady_s - file_now_s
    records, status = state["funding_state"], state["connection_status"]
    # After a boot, the time for which the host was off is not known. So the data counts as stale until Binance's time
    # is known.
    is_same_boot = bool(boot_id) and state["boot_id"] == boot_id
    latest_s = now.steady_s - (0.0 if is_same_boot else settings.stale_seconds)
    book.restore(_rate(symbol, record, steady_minus_file_s, latest_s) for symbol, record in records.items())
    intervals.restore({symbol: _terms(record) for symbol, record in records.items()})
    rest.restore(pause_s(status["rest"], file_now_s))
    stream.restore(pause_s(status, file_now_s))
    last_day.restore(state)
    comparison.state = state["comparison"]
    started_s, served_s = status["daemon_start_time"] or state["updated_at"], status["market_served_time"] or 0.0
    freshness.start_at(started_s + steady_minus_file_s, served_s + steady_minus_file_s, down_s)
    if down_s <= GAP_SECONDS:
        # Such a short restart is not a gap, and the time counts as observed.
        last_day.count(now.wall_s, observed=down_s)
    say = _log.info if records else _log.debug
    say("took over", symbols=len(records), not_running_s=down_s)


def pause_s(status: Mapping[str, Any], now_s: float) -> float:
    """Return the seconds that remain of a pause that Binance asked for; 0 if there is none."""
    return min(max(0.0, (status["paused_until"] or 0.0) - now_s), LONGEST_BAN_S)


def _rate(symbol: str, record: Mapping[str, Any], steady_minus_file_s: float, latest_s: float) -> FundingRate:
    return FundingRate(
        symbol,
        funding_rate=record["fundingRate"],
        mark_price=record["markPrice"],
        index_price=record["indexPrice"],
        next_funding_time_ms=int(record["nextFundingTime"]),
        event_time_ms=int(record["eventTime"]),
        source=record["source"],
        received_s=min(latest_s, record["updatedAt"] + steady_minus_file_s),
        estimated_settle_price=record["estimatedSettlePrice"],
        interest_rate=record["interestRate"],
    )


def _terms(record: Mapping[str, Any]) -> Terms:
    cap, floor = record["fundingRateCap"], record["fundingRateFloor"]
    return Terms(record["fundingIntervalHours"], cap, floor, is_assumed="fundingIntervalAssumed" in record)
