"""Daemon, server and a simulated exchange keep the settlement history together."""

import csv
import io
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.exchange import FUNDING_RATE, Exchange, Market
from tests.exchange.market import HOUR_MS
from tests.support.programs import Daemon, Server, running_both
from tests.support.settlement_world import in_order, stored
from tests.support.state_files import OLD_FILE
from tests.support.waiting import eventually

HISTORY_FILE = ".funding_history.sqlite3"
SMALL = {"usd_m": 20, "tradfi": 4, "coin_m": 0, "fundless": 0}
FILL_WITHIN_S = 180.0
# A busy machine does not cause fallback, in which no settlement is asked for.
ONE_DAY = {"HISTORY_DAYS": 1, "SILENCE_SECONDS": 15, "STALE_SECONDS": 30}


@pytest.fixture
def exchange() -> Iterator[Exchange]:
    """An exchange with a message each second."""
    with Exchange(Market(**SMALL), tick_s=1) as one:
        yield one


def shift_to(exchange: Exchange, before_s: float) -> int:
    """Set the exchange's clock to so many seconds before the next time at which every symbol is settled; return it."""
    now_s = exchange.now_ms() / 1000
    settled_s = (now_s // (8 * 3600) + 1) * 8 * 3600
    exchange.clock_offset_s += settled_s - before_s - now_s
    return round(settled_s * 1000)


def history_of(server: Server, symbol: str = "BTCUSDT", query: str = "") -> dict[str, Any]:
    """Return the answer for one symbol; {} while it is not 200."""
    status, body = server.get(f"/funding/{symbol}/history{query}")
    return body if status == 200 else {}


def filled(daemon: Daemon) -> bool:
    """Whether the sums of 24 h are known."""
    records = daemon.records().values()
    return bool(records) and all(record["fundingRateSum24h"] is not None for record in records)


def test_a_settlement_appears_in_record_and_history(exchange: Exchange, tmp_path: Path) -> None:
    """History, CSV, fields and the last estimate are those of the exchange; before it arrives, no sum is shown."""
    settled_ms = shift_to(exchange, 50)
    with running_both(exchange, tmp_path, **ONE_DAY) as (daemon, server):
        eventually(lambda: filled(daemon), "the last 24 h to be filled", FILL_WITHIN_S)
        before = daemon.records()["BTCUSDT"]
        assert before["settledFundingTime"] // HOUR_MS * HOUR_MS == settled_ms - 8 * HOUR_MS
        eventually(lambda: exchange.now_ms() > settled_ms + 8000, "the settlement", 60)
        assert daemon.records()["BTCUSDT"]["fundingRateSum24h"] is None
        assert daemon.records()["BTCUSDT"]["settledFundingTime"] == before["settledFundingTime"]
        assert not history_of(server)["complete"]
        eventually(lambda: filled(daemon), "the settlement to be stored", 60)
        since_ms = settled_ms - 23 * HOUR_MS
        ledger = exchange.ledger.rows(since_ms, exchange.now_ms(), "BTCUSDT")
        record = daemon.records()["BTCUSDT"]
        assert record["settledFundingTime"] == ledger[-1]["fundingTime"]
        assert record["settledFundingRate"] == float(ledger[-1]["fundingRate"])
        assert record["fundingRateSum24h"] == pytest.approx(sum(float(row["fundingRate"]) for row in ledger))
        answer = history_of(server, "btcusdt", f"?from={since_ms}")
        assert [row["fundingTime"] for row in answer["data"]] == [row["fundingTime"] for row in ledger]
        assert (answer["complete"], answer["fundingRateSum"]) == (True, record["fundingRateSum24h"])
        estimated_ms = settled_ms - 1000
        assert answer["data"][-1]["lastEstimate"] == float(exchange.market.row("BTCUSDT", estimated_ms)["r"])
        assert answer["data"][-1]["fundingIntervalHours"] == 8
        url = f"http://127.0.0.1:{server.port}/funding/BTCUSDT/history?from={since_ms}"
        curl = subprocess.run(["curl", "-sfH", "Accept: text/csv", url], capture_output=True, check=True, text=True)
        rows = list(csv.DictReader(io.StringIO(curl.stdout)))
        assert [row["fundingRate"] for row in rows] == [row["fundingRate"] for row in ledger]
        _, sorted_by_sum = server.get("/funding/batch?sort=-fundingRateSum24h&limit=3")
        sums = [row["fundingRateSum24h"] for row in sorted_by_sum["data"]]
        assert sums == sorted(sums, reverse=True)
        _, _, metrics = server.request("/metrics")
        assert f'binance_funding_settled_rate{{symbol="BTCUSDT"}} {record["settledFundingRate"]}'.encode() in metrics
        assert in_order(stored(str(tmp_path / HISTORY_FILE), since_ms)) == in_order(
            exchange.ledger.rows(since_ms, exchange.now_ms())
        )


def test_what_was_collected_outlives_sigkill(exchange: Exchange, tmp_path: Path) -> None:
    """The next daemon shows it as soon as it knows Binance's time, and asks for none of it again."""
    with Daemon(exchange, tmp_path, **ONE_DAY) as daemon:
        eventually(lambda: filled(daemon), "the last 24 h to be filled", FILL_WITHIN_S)
        before = daemon.records()["BTCUSDT"]["fundingRateSum24h"]
        daemon.process.kill()
    asked = len([one for one in exchange.rest_requests if FUNDING_RATE in one.path])
    with Daemon(exchange, tmp_path, **ONE_DAY) as daemon:
        eventually(lambda: filled(daemon), "the sums to be there again", FILL_WITHIN_S)
        assert daemon.records()["BTCUSDT"]["fundingRateSum24h"] == before
        assert len([one for one in exchange.rest_requests if FUNDING_RATE in one.path]) <= asked + 1


def test_a_refusal_pauses_snapshots_too(exchange: Exchange, tmp_path: Path) -> None:
    """Binance counts both together. Afterwards the history is filled."""
    exchange.rest_fault(429, retry_after_s=7, count=1, path=FUNDING_RATE)
    with Daemon(exchange, tmp_path, **ONE_DAY, REST_POLL_SECONDS=1) as daemon:
        daemon.wait_for_line("settlement history incomplete", within_s=90)
        refused_s = time.time()
        eventually(lambda: daemon.status()["rest"]["paused_until"], "the pause")
        daemon.wait_for_line("settlement history filled again", within_s=60)
        assert all(not refused_s + 1 < one.at_s < refused_s + 5 for one in exchange.rest_requests)


def assert_unaffected(daemon: Daemon, server: Server) -> None:
    """Stream, state file and answers are as ever; health names the fault of the history."""
    daemon.wait_for_newer_data()
    assert server.get("/funding/BTCUSDT")[0] == 200
    status, body = server.get("/funding/health")
    assert (status, body["status"]) == (200, "healthy")
    assert "settlement history" in body["error"]


def hold_lock(path: Path) -> sqlite3.Connection:
    """Lock a history as a program would that reads and writes it for ever."""
    lock = sqlite3.connect(path, isolation_level=None, timeout=30)
    lock.execute("BEGIN EXCLUSIVE")
    return lock


def test_a_locked_history_affects_nothing_else(exchange: Exchange, tmp_path: Path) -> None:
    """Both programs go on. The history goes on when the lock is gone."""
    with running_both(exchange, tmp_path, **ONE_DAY) as (daemon, server):
        eventually(lambda: filled(daemon), "the last 24 h to be filled", FILL_WITHIN_S)
        lock = hold_lock(tmp_path / HISTORY_FILE)
        daemon.wait_for_line("settlement history incomplete.*locked", within_s=90)
        eventually(lambda: server.get("/funding/health")[1]["error"], "health to name it")
        assert_unaffected(daemon, server)
        assert server.get("/funding/BTCUSDT/history")[0] == 503
        assert daemon.records()["BTCUSDT"]["fundingRateSum24h"] is None
        lock.close()
        daemon.wait_for_line("settlement history filled again")
        eventually(lambda: filled(daemon), "the sums to be there again", FILL_WITHIN_S)
        assert server.get("/funding/health")[1]["error"] is None


def test_a_damaged_history_is_renamed_and_filled_again(exchange: Exchange, tmp_path: Path) -> None:
    """Also while the daemon runs."""
    path = tmp_path / HISTORY_FILE
    path.write_bytes(b"junk" * 5000)
    with running_both(exchange, tmp_path, **ONE_DAY) as (daemon, server):
        daemon.wait_for_line("settlement history incomplete.*broken", within_s=90)
        assert (tmp_path / f"{HISTORY_FILE}.broken").read_bytes() == b"junk" * 5000
        daemon.wait_for_line("settlement history filled again")
        daemon.wait_for_newer_data()
        eventually(lambda: history_of(server), "the new history", FILL_WITHIN_S)


def test_a_full_disk_costs_the_history_only(exchange: Exchange, tmp_path: Path) -> None:
    """It is filled as soon as there is room."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40k", "none", disk], check=False).returncode:
        pytest.skip("only root can mount a small disk")
    try:
        with running_both(exchange, tmp_path, **ONE_DAY, HISTORY_FILE=disk / "history") as (daemon, server):
            daemon.wait_for_line("settlement history incomplete.*full", within_s=90)
            eventually(lambda: server.get("/funding/health")[1]["error"], "health to name it")
            assert_unaffected(daemon, server)
            subprocess.run(["mount", "-o", "remount,size=10m", disk], check=True)
            daemon.wait_for_line("settlement history filled again", within_s=60)
            eventually(lambda: filled(daemon), "the last 24 h to be filled", FILL_WITHIN_S)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_without_history_days_there_is_no_history(exchange: Exchange, tmp_path: Path) -> None:
    """No file, no request; the fields are null and the path says why it is empty."""
    with running_both(exchange, tmp_path, HISTORY_DAYS=0) as (daemon, server):
        daemon.wait_for_newer_data()
        assert not (tmp_path / HISTORY_FILE).exists()
        assert not any(FUNDING_RATE in one.path for one in exchange.rest_requests)
        assert daemon.records()["BTCUSDT"]["settledFundingRate"] is None
        status, body = server.get("/funding/BTCUSDT/history")
        assert (status, "HISTORY_DAYS=0" in body["error"]) == (404, True)
        assert server.get("/funding/health")[1]["error"] is None


def test_a_history_that_the_server_may_not_read_is_503(exchange: Exchange, tmp_path: Path) -> None:
    """Everything else is answered as ever."""
    with Daemon(exchange, tmp_path, **ONE_DAY) as daemon:
        daemon.wait_for_live()
        history = tmp_path / HISTORY_FILE
        eventually(history.exists, "the history")
        tmp_path.chmod(0o755)
        with Server(tmp_path, HISTORY_FILE=tmp_path / "elsewhere" / "history") as server:
            status, body = server.get("/funding/BTCUSDT/history")
            assert (status, "No such file" in body["error"]) == (503, True)
            assert server.get("/funding/BTCUSDT")[0] == 200


def test_a_state_file_of_the_release_before_gets_the_new_fields(exchange: Exchange, tmp_path: Path) -> None:
    """An upgrade keeps what was known, and fills the history."""
    shutil.copy(OLD_FILE, tmp_path / ".funding_state.json")
    with Daemon(exchange, tmp_path, **ONE_DAY) as daemon:
        daemon.wait_for_line("took over")
        daemon.wait_for_live()
        assert "settledFundingRate" in daemon.records()["BTCUSDT"]
        eventually(lambda: daemon.records()["BTCUSDT"]["settledFundingRate"] is not None, "a settlement", FILL_WITHIN_S)
