"""Samples: rows as Binance sends them, records, a state file as it should be."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from binance_funding.daemon.record import STREAM, FundingRate
from binance_funding.schema import REST, STATUS
from binance_funding.server.content import Content
from binance_funding.settings import Settings
from tests.support.clock import BOOT_ID, STEADY_S, WALL_S

EVENT_MS = 1_795_500_000_000
NEXT_FUNDING_MS = 1_795_507_200_000


def stream_row(symbol: str = "BTCUSDT", **fields: Any) -> dict[str, Any]:
    """Return a row of !markPrice@arr; the fields given replace those of a good one."""
    good = {
        "e": "markPriceUpdate",
        "E": EVENT_MS,
        "s": symbol,
        "p": "91725.87823913",
        "ap": "91720.00000000",
        "P": "91731.10000000",
        "i": "91769.87543478",
        "r": "0.00010000",
        "T": NEXT_FUNDING_MS,
    }
    return {**good, **fields}


def index_row(symbol: str = "BTCUSDT", **fields: Any) -> dict[str, Any]:
    """Return a row of GET /fapi/v1/premiumIndex; the fields given replace those of a good one."""
    good = {
        "symbol": symbol,
        "markPrice": "91725.87823913",
        "indexPrice": "91769.87543478",
        "estimatedSettlePrice": "91731.10000000",
        "lastFundingRate": "0.00010000",
        "interestRate": "0.00010000",
        "nextFundingTime": NEXT_FUNDING_MS,
        "time": EVENT_MS,
    }
    return {**good, **fields}


def rate(
    symbol: str = "BTCUSDT",
    *,
    funding_rate: float = 0.0001,
    mark_price: float = 100.5,
    index_price: float = 100.25,
    **fields: Any,
) -> FundingRate:
    """Return a decoded rate; the fields given replace those of a good one."""
    numbers = funding_rate, mark_price, index_price
    good = FundingRate(symbol, *numbers, NEXT_FUNDING_MS, EVENT_MS, STREAM, STEADY_S)
    return good._replace(**fields)


UNKNOWN: dict[str, Any] = {
    **{one.name: one.default for one in STATUS},
    "rest": {one.name: one.default for one in REST},
}
"""The connection status of a file that says nothing of it, as it is read."""


def record(**fields: Any) -> dict[str, Any]:
    """Return one member of funding_state, updated at WALL_S."""
    good = {
        "fundingRate": 0.0001,
        "markPrice": 91725.87823913,
        "indexPrice": 91769.87543478,
        "nextFundingTime": NEXT_FUNDING_MS,
        "eventTime": EVENT_MS,
        "updatedAt": WALL_S,
        "fundingIntervalHours": 8,
        "source": "websocket",
        "estimatedSettlePrice": 91731.1,
        "interestRate": 0.0001,
        "fundingRateCap": 0.003,
        "fundingRateFloor": -0.003,
    }
    return {**good, **fields}


def state(records: dict[str, Any] | None = None, **members: Any) -> dict[str, Any]:
    """Return the content of a state file written at WALL_S by a daemon that is well."""
    good = {
        "version": 1,
        "updated_at": WALL_S,
        "daemon_pid": 4242,
        "boot_id": BOOT_ID,
        "boottime": STEADY_S,
        "funding_state": {"BTCUSDT": record()} if records is None else records,
        "connection_status": status(),
        "comparison": {
            "last": None,
            "totals": {"runs": 3, "compared": 90, "matched": 88, "mismatched": 2, "identical": 80},
        },
        "process": {
            "cpu_seconds": 12.5,
            "resident_memory_bytes": 36 << 20,
            "virtual_memory_bytes": 512 << 20,
            "open_fds": 14,
            "max_fds": 1024,
            "start_time_seconds": WALL_S - 7200.5,
        },
        "gaps": [],
        "history": [],
    }
    return {**good, **members}


def status(**members: Any) -> dict[str, Any]:
    """Return connection_status with two of two connections live."""
    good = {
        "connected": True,
        "connections": 2,
        "connections_wanted": 2,
        "url": "wss://stream.example/market",
        "last_connected_time": WALL_S - 3600,
        "last_message_time": WALL_S - 0.5,
        "messages_received": 1234,
        "disconnects": 1,
        "planned_disconnects": 2,
        "reconnect_attempts": 5,
        "last_error": None,
        "rejected_rows": 7,
        "rest": {
            "polls": 60,
            "errors": 3,
            "errors_by_status": {"429": 2, "timeout": 1},
            "last_success_time": WALL_S - 30,
            "paused_until": None,
            "last_error": None,
            "trouble": None,
        },
        "fallback_active": False,
        "stream_lag_seconds": 0.25,
        "paused_until": None,
        "symbols_from_rest": 0,
        "symbols_behind": 0,
        "symbols_halted": 0,
        "market_served_time": WALL_S - 0.5,
        "clock_offset_seconds": -0.125,
        "age_uncertainty_seconds": 0.0312,
        "symbol_seconds": 7200.0,
        "fresh_symbol_seconds": {"5s": 7100.0, "12s": 7190.0, "limit": 7200.0},
        "daemon_start_time": WALL_S - 7200,
        "gaps_ended": 4,
        "gap_seconds": 61.5,
    }
    return {**good, **members}


def put(path: Path, content: dict[str, Any] | bytes) -> None:
    """Replace the file by the content at once, as the daemon does."""
    beside = path.with_name(path.name + ".new")
    beside.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    os.replace(beside, path)


def view(content: dict[str, Any]) -> Content:
    """Return the content of a state file as the server looks at it, with default settings."""
    return Content(content, Settings().stale_seconds)
