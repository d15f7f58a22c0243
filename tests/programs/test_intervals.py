"""Funding intervals that change while the real programs run: the rate per year is right, or marked as assumed."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.exchange import Exchange, Market
from tests.support.programs import Daemon, Server
from tests.support.running_stream import SMALL
from tests.support.waiting import eventually

HOUR_S = 3600
PERIOD_S = 8 * HOUR_S
ASKED_WITHIN_S = 60
"""Far above the 20 s between two questions for the intervals."""


def until_settlement(seconds: float) -> tuple[float, int]:
    """Return the offset of an exchange whose next settlement is so many seconds ahead, and its time in ms."""
    now_s = time.time()
    settlement_s = (now_s // PERIOD_S + 1) * PERIOD_S
    return settlement_s - seconds - now_s, round(settlement_s * 1000)


def shown(server: Server) -> tuple[int, bool, float]:
    """Return interval, mark and the quotient of the rates per year and per interval, as they are served."""
    record: dict[str, Any] = server.get("/funding/BTCUSDT")[1]
    quotient = record["annualizedFundingRate"] / record["fundingRate"] if record.get("fundingRate") else 0.0
    return record.get("fundingIntervalHours", 0), record.get("fundingIntervalAssumed", False), quotient


def is_shown(server: Server, hours: int, *, is_assumed: bool) -> Callable[[], bool]:
    """Return a condition: the interval is shown like this, and the rate per year follows it."""
    expected: Any = hours, is_assumed, pytest.approx(24 / hours * 365, rel=0.01)
    return lambda: bool(shown(server) == expected)


def test_an_interval_that_changes_within_a_period(tmp_path: Path) -> None:
    """The record is marked as soon as the next funding time jumps, until Binance names the interval."""
    offset_s, _ = until_settlement(5 * HOUR_S)
    market = Market(**SMALL)
    with (
        Exchange(market, tick_s=0.5, clock_offset_s=offset_s) as exchange,
        Daemon(exchange, tmp_path) as daemon,
        Server(tmp_path) as server,
    ):
        daemon.wait_for_live()
        eventually(is_shown(server, 8, is_assumed=False), "8 h")
        market.change_interval(["BTCUSDT"], 1)
        eventually(is_shown(server, 8, is_assumed=True), "the mark")
        market.publish_intervals()
        eventually(is_shown(server, 1, is_assumed=False), "1 h", within_s=ASKED_WITHIN_S)
        record = server.get("/funding/BTCUSDT")[1]
        assert (record["fundingRateCap"], record["fundingRateFloor"]) == (0.02, -0.02)


def test_an_interval_that_changes_at_a_settlement_is_assumed_over_a_restart(tmp_path: Path) -> None:
    """The two funding times show it while fundingInfo is late, and the next daemon knows that it is assumed."""
    offset_s, settlement_ms = until_settlement(12)
    market = Market(**SMALL)
    market.change_interval(["BTCUSDT"], 1, settlement_ms)
    with Exchange(market, tick_s=0.5, clock_offset_s=offset_s) as exchange, Server(tmp_path) as server:
        with Daemon(exchange, tmp_path) as daemon:
            daemon.wait_for_live()
            eventually(is_shown(server, 8, is_assumed=False), "8 h")
            eventually(is_shown(server, 1, is_assumed=True), "1 h, assumed", within_s=30)
            daemon.terminate()
        market.publish_intervals()
        with Daemon(exchange, tmp_path) as daemon:
            daemon.wait_for_live()
            eventually(is_shown(server, 1, is_assumed=False), "1 h", within_s=ASKED_WITHIN_S)
