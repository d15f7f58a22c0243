"""Bad data on a good connection: malformed, strange, old or from the future, it costs itself only."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.exchange import FUTURE, STREAM, Exchange, envelope
from tests.support.bad_days import logs_calmly, recovers
from tests.support.programs import Daemon
from tests.support.waiting import eventually


def _row(exchange: Exchange, **changes: Any) -> dict[str, Any]:
    row = exchange.market.row("BTCUSDT", exchange.now_ms())
    row.update(changes)
    return {key: value for key, value in row.items() if value != "left out"}


BAD_ROWS: dict[str, dict[str, Any]] = {
    "no mark price": {"p": "left out"},
    "no symbol": {"s": "left out"},
    "no event time": {"E": "left out"},
    "not a number": {"r": "NaN"},
    "infinite": {"p": "Infinity"},
    "overflow": {"i": "1e999"},
    "text": {"p": "abc"},
    "null": {"r": None},
    "list": {"i": []},
    "event time of text": {"E": "yesterday"},
    "event time in the year 3000": {"E": 32_503_680_000_000},
    "symbol with a line end": {"s": "BTC\nUSDT"},
    "lone surrogate": {"s": "\ud800"},
    "empty symbol": {"s": ""},
}


def test_malformed_rows_cost_themselves_only(exchange: Exchange, tmp_path: Path) -> None:
    """The good rows of the same message count; the bad ones are counted and logged once."""
    exchange.silence(FUTURE)
    with Daemon(exchange, tmp_path, SILENCE_SECONDS=60, REST_POLL_SECONDS=60, STREAM_CONNECTIONS=1) as daemon:
        exchange.wait_for_live(1)
        eventually(daemon.records, "data from REST")
        bad = [_row(exchange, **changes) for changes in BAD_ROWS.values()]
        good = exchange.market.row("ETHUSDT", exchange.now_ms())
        exchange.send(json.dumps({"stream": STREAM, "data": [*bad, 5, None, "row", good]}))
        eventually(lambda: daemon.records()["ETHUSDT"]["eventTime"] == good["E"], "the good row")
        assert daemon.status()["rejected_rows"] == len(bad) + 3
        assert all(symbol.isprintable() and symbol for symbol in daemon.records())
        daemon.wait_for_line("WARNING rejected rows cause=")
        logs_calmly(daemon)


@pytest.mark.parametrize(
    ("send", "line"),
    [
        pytest.param(lambda e: e.send("{"), "not valid JSON", id="malformed JSON"),
        pytest.param(lambda e: e.send('{"data":5}'), "no rows", id="no rows"),
        pytest.param(lambda e: e.send('{"data":[NaN]}'), "NaN is not JSON", id="NaN"),
        pytest.param(lambda e: e.send("[" * 100_000), "not valid JSON", id="nesting"),
        pytest.param(lambda e: e.send_invalid_utf8(), "codec can't decode byte", id="invalid UTF-8"),
        pytest.param(lambda e: e.send(b"\x00\x01\x02"), "not valid JSON", id="binary frame"),
    ],
)
def test_malformed_message_costs_itself_only(
    exchange: Exchange, tmp_path: Path, send: Callable[[Exchange], None], line: str
) -> None:
    """The connection stays, the next message counts."""
    with Daemon(exchange, tmp_path) as daemon:
        daemon.wait_for_live()
        for _ in range(5):
            send(exchange)
        daemon.wait_for_line(f"WARNING malformed message cause=.*{line}")
        recovers(daemon)
        assert daemon.status()["disconnects"] == 0
        logs_calmly(daemon)


def test_rows_of_other_streams_and_empty_data_change_nothing(exchange: Exchange, tmp_path: Path) -> None:
    """A ticker's `p` is a price change: it must never become a mark price. Nothing is logged: it is no fault."""
    with Daemon(exchange, tmp_path) as daemon:
        daemon.wait_for_live()
        ticker = {
            "e": "24hrTicker",
            "E": exchange.now_ms() + 5000,
            "s": "BTCUSDT",
            "p": "-1.0",
            "i": "1",
            "r": "1",
            "T": 1,
        }
        exchange.send_rows([ticker], stream="!ticker@arr")
        exchange.send_rows([])
        recovers(daemon)
        assert daemon.records()["BTCUSDT"]["markPrice"] > 1000
        assert daemon.status()["rejected_rows"] == 0
        logs_calmly(daemon)


def test_older_and_equal_event_times_change_nothing(exchange: Exchange, tmp_path: Path) -> None:
    """A newer row never gives way to an older one, whichever connection brings it."""
    exchange.silence(FUTURE)
    with Daemon(exchange, tmp_path, SILENCE_SECONDS=60) as daemon:
        exchange.wait_for_live(2)
        now_ms = exchange.now_ms()
        newest = exchange.market.row("BTCUSDT", now_ms)
        exchange.send(envelope([newest]), 0)
        eventually(lambda: daemon.records().get("BTCUSDT", {}).get("eventTime") == now_ms, "the newest row")
        exchange.send(envelope([{**newest, "p": "1.0"}]), 1)
        exchange.send(envelope([exchange.market.row("BTCUSDT", now_ms - 500)]), 1)
        exchange.send(envelope([exchange.market.row("ETHUSDT", now_ms)]), 1)
        eventually(lambda: daemon.records().get("ETHUSDT", {}).get("eventTime") == now_ms, "the rows sent after")
        record = daemon.records()["BTCUSDT"]
        assert record["eventTime"] == now_ms
        assert record["markPrice"] == float(newest["p"])


def test_rows_ahead_of_their_time_cost_themselves_only(exchange: Exchange, tmp_path: Path) -> None:
    """Let in, a row an hour ahead would block its symbol for an hour; the others of the message count."""
    with Daemon(exchange, tmp_path) as daemon:
        daemon.wait_for_live()
        row = exchange.market.row("BTCUSDT", exchange.now_ms() + 3_600_000)
        others = [exchange.market.row(symbol, exchange.now_ms()) for symbol in ("ETHUSDT", "SOLUSDT", "XRPUSDT")]
        exchange.send_rows([row, *others])
        daemon.wait_for_line("WARNING rejected rows cause=.*ahead")
        recovers(daemon)
        assert daemon.status()["rejected_rows"] == 1  # counted once, though both connections bring it
        assert daemon.status()["disconnects"] == 0
        logs_calmly(daemon)


def test_an_answer_of_half_a_surrogate_pair_disturbs_nothing(exchange: Exchange, tmp_path: Path) -> None:
    """Quoted in the log, the state file and systemd's status it cannot be encoded; a restart meets it again."""
    exchange.rest_fault(200, body='["\\ud800"]')
    for _ in range(2):
        with Daemon(exchange, tmp_path, REST_POLL_SECONDS=0.5) as daemon:
            daemon.wait_for_live()
            eventually(lambda: daemon.status()["rest"]["errors"] >= 2, "two such answers")
            daemon.wait_for_newer_data()
            assert "ud800" in daemon.status()["rest"]["last_error"]
            logs_calmly(daemon)
            daemon.terminate()
            assert daemon.process.returncode == 0
