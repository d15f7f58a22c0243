"""The daemon as its user runs it: a real process, real sockets to the simulated exchange, a real file."""

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from binance_funding.program import EX_TEMPFAIL
from binance_funding.settings import EX_CONFIG
from tests.exchange import FUTURE, Exchange
from tests.support.programs import ROOT, STATE_FILE, Daemon, Program
from tests.support.waiting import PATIENCE_S, eventually

MARKET_SYMBOLS = 881


def equals_what_was_sent(exchange: Exchange, daemon: Daemon) -> bool:
    """Compare every number of the state file with what the exchange sent at that event time."""
    records = daemon.records()
    for symbol, record in records.items():
        sent = exchange.market.expected(symbol, record["eventTime"])
        found = tuple(record[key] for key in ("fundingRate", "markPrice", "indexPrice", "nextFundingTime"))
        assert found == (sent.funding_rate, sent.mark_price, sent.index_price, sent.next_funding_time_ms), symbol
        assert "_PERP" not in symbol
    return len(records) == MARKET_SYMBOLS


def test_whole_market_is_in_the_file_with_the_numbers_that_were_sent(tmp_path: Path) -> None:
    """All 881 symbols, none of COIN-M and none without funding, from the stream, each number as sent."""
    with Exchange(tick_s=0.5) as exchange, Daemon(exchange, tmp_path) as daemon:
        eventually(
            lambda: sum(record["source"] == "websocket" for record in daemon.records().values()) == MARKET_SYMBOLS,
            "881 symbols from the stream",
        )
        assert equals_what_was_sent(exchange, daemon)
        expected = {symbol: exchange.market.funding_interval_h(symbol) for symbol in daemon.records()}
        eventually(
            lambda: {s: record["fundingIntervalHours"] for s, record in daemon.records().items()} == expected,
            "the funding intervals",
        )


def test_whole_market_while_rest_fails(tmp_path: Path) -> None:
    """The stream alone fills the file."""
    with Exchange(tick_s=0.5) as exchange:
        exchange.rest_fault(status=500)
        with Daemon(exchange, tmp_path) as daemon:
            eventually(lambda: len(daemon.records()) == MARKET_SYMBOLS, "881 symbols")
            assert equals_what_was_sent(exchange, daemon)
            assert {record["source"] for record in daemon.records().values()} == {"websocket"}


def test_whole_market_while_the_stream_fails(tmp_path: Path) -> None:
    """REST at the start fills the file without waiting for the stream."""
    with Exchange(tick_s=0.5) as exchange:
        exchange.stall(FUTURE)
        with Daemon(exchange, tmp_path) as daemon:
            eventually(lambda: len(daemon.records()) == MARKET_SYMBOLS, "881 symbols")
            assert equals_what_was_sent(exchange, daemon)
            assert {record["source"] for record in daemon.records().values()} == {"rest"}


def test_no_client_ping_leaves_and_every_server_ping_is_answered(tmp_path: Path) -> None:
    """The client keeps quiet but for pongs that copy the payload of the exchange's pings."""
    with Exchange(tick_s=0.5, ping_s=0.3, pong_deadline_s=5.0) as exchange, Daemon(exchange, tmp_path) as daemon:
        daemon.wait_for_live()
        eventually(lambda: all(c.pings_sent >= 5 for c in exchange.live), "five pings")
        eventually(lambda: all(c.pongs_matched >= 5 for c in exchange.live), "five matching pongs")
        for connection in exchange.connections:
            assert connection.client_pings == 0
            assert connection.pongs_unsolicited == 0
        assert daemon.status()["disconnects"] == 0


def test_symbols_the_stream_lacks_come_from_rest(tmp_path: Path) -> None:
    """What only REST has is in the file, and stays fresh."""
    with Exchange(tick_s=0.5) as exchange:
        exchange.market.only_in_rest.update({"BTCUSDT", "ETHUSDT"})
        with Daemon(exchange, tmp_path, REST_POLL_SECONDS=0.5) as daemon:
            daemon.wait_for_live()
            daemon.wait_for_newer_data()
            records = daemon.records()
            assert {symbol for symbol in records if records[symbol]["source"] == "rest"} == {"BTCUSDT", "ETHUSDT"}


def test_second_daemon_on_the_same_file_stops_and_names_the_first(tmp_path: Path) -> None:
    """Only one daemon writes a file; the other says whose it is, and ends with a status that is not 78."""
    with Exchange(tick_s=0.5) as exchange, Daemon(exchange, tmp_path) as first:
        first.wait_for_live()
        with Daemon(exchange, tmp_path) as second:
            assert second.wait() == EX_TEMPFAIL
            assert [line for line in second.log if " ERROR " in line] == [second.log[-1]]
            assert f"is already written by the daemon with pid {first.process.pid}" in second.log[-1]
        first.wait_for_newer_data()
        assert first.state()["daemon_pid"] == first.process.pid


def test_second_daemon_under_systemd_waits_and_takes_over(tmp_path: Path) -> None:
    """Systemd would start it anew each second for ever: it waits instead, says so once, and goes on where it can."""
    with Exchange(tick_s=0.5) as exchange, Daemon(exchange, tmp_path) as first, service_manager(tmp_path) as manager:
        first.wait_for_live()
        with Daemon(exchange, tmp_path, NOTIFY_SOCKET=manager.getsockname()) as second:
            for _ in range(3):  # a second apart
                assert b"STATUS=waiting: " in manager.recv(4096)
            assert len([line for line in second.log if " ERROR " in line]) == 1
            assert f"pid {first.process.pid}" in second.wait_for_line("ERROR +waiting cause=")
            first.terminate()
            second.wait_for_live()
            assert b"READY=1" in second_notification(manager)


@contextlib.contextmanager
def service_manager(folder: Path) -> Iterator[socket.socket]:
    """Listen as systemd does for what a service tells it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(folder / "notify"))
        manager.settimeout(PATIENCE_S)
        yield manager


def second_notification(manager: socket.socket) -> bytes:
    """Return the next notification that is not about waiting."""
    while b"waiting" in (told := manager.recv(4096)):
        pass
    return told


def test_second_daemon_under_systemd_can_be_stopped(tmp_path: Path) -> None:
    """With status 0, while it waits for the first one to end."""
    with Exchange(tick_s=0.5) as exchange, Daemon(exchange, tmp_path) as first, service_manager(tmp_path) as manager:
        first.wait_for_live()
        with Daemon(exchange, tmp_path, NOTIFY_SOCKET=manager.getsockname()) as second:
            second.wait_for_line("waiting cause=")
            assert second.terminate() < 3
            assert second.process.returncode == 0


def test_restart_takes_over_records_with_their_old_times(tmp_path: Path) -> None:
    """A daemon that finds no exchange keeps what the last one knew, as old as it is."""
    with Exchange(tick_s=0.5) as exchange:
        with Daemon(exchange, tmp_path) as daemon:
            daemon.wait_for_live()
            daemon.terminate()
            before = daemon.records()
        exchange.down()
        with Daemon(exchange, tmp_path) as daemon:
            daemon.wait_for_line("took over symbols=881")
            after = eventually(daemon.records, "the new daemon's file")
    assert after.keys() == before.keys()
    for symbol, record in after.items():
        assert record["eventTime"] == before[symbol]["eventTime"]
        assert record["updatedAt"] == pytest.approx(before[symbol]["updatedAt"], abs=0.05)


@pytest.mark.parametrize(
    "junk",
    [
        pytest.param("", id="empty"),
        pytest.param("{", id="truncated"),
        pytest.param('{"version": 1}', id="not a state"),
        pytest.param("\0" * 100, id="zeros"),
        pytest.param('{"version":1,"updated_at":NaN}', id="not a number"),
    ],
)
def test_unreadable_old_file_is_dropped_with_a_warning(tmp_path: Path, junk: str) -> None:
    """Whatever lies in the place of the file, the daemon starts and replaces it."""
    (tmp_path / STATE_FILE).write_text(junk)
    with Exchange(tick_s=0.5) as exchange, Daemon(exchange, tmp_path) as daemon:
        daemon.wait_for_line("WARNING old state dropped")
        daemon.wait_for_live()


@pytest.mark.parametrize("name", ["BINANCE_WS_URLS", "STALE_SECONDS", "STREAM_CONNECTIONS", "API_PORT", "LOG_LEVEL"])
@pytest.mark.parametrize("script", ["binance_funding_ws_daemon.py", "funding_api_server.py"])
def test_wrong_setting_stops_with_78_and_one_line(tmp_path: Path, name: str, script: str) -> None:
    """The line names variable, value and what is allowed; nothing is half started."""
    with Program(script, tmp_path, {name: "nonsense"}) as program:
        assert program.wait() == EX_CONFIG
        assert len(program.log) == 1
        assert f"{name}='nonsense' is not allowed: " in program.log[0]
    assert list(tmp_path.iterdir()) == []


def test_state_file_in_a_missing_folder_is_a_wrong_setting(tmp_path: Path) -> None:
    """Nobody could mend it by waiting: status 78, naming the variable."""
    with Program("binance_funding_ws_daemon.py", tmp_path, {"STATE_FILE": "/no/such/folder/file.json"}) as program:
        assert program.wait() == EX_CONFIG
        assert len(program.log) == 1
        assert "STATE_FILE=/no/such/folder/file.json is not allowed: no such directory" in program.log[0]


def test_state_file_that_is_no_regular_file_is_a_wrong_setting(tmp_path: Path) -> None:
    """A device or a directory must not be replaced."""
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    for name in ("folder", "fifo"):
        with Program("binance_funding_ws_daemon.py", tmp_path, {"STATE_FILE": name}) as program:
            assert program.wait() == EX_CONFIG
            assert len(program.log) == 1
            assert f"STATE_FILE={name} is not allowed: " in program.log[0]
    assert sorted(os.listdir(tmp_path)) == ["fifo", "folder"]


def test_certificates_that_cannot_be_read_stop_it_with_78_and_one_line(tmp_path: Path) -> None:
    """Every connection would fail otherwise."""
    with Program("binance_funding_ws_daemon.py", tmp_path, {"SSL_CERT_FILE": "/no/such/file.pem"}) as program:
        assert program.wait() == EX_CONFIG
        assert len(program.log) == 1
        assert "SSL_CERT_FILE" in program.log[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("script", ["binance_funding_ws_daemon.py", "funding_api_server.py"])
def test_help_lists_settings_with_defaults(tmp_path: Path, script: str) -> None:
    """--help ends with status 0 and shows the shared settings."""
    answer = subprocess.run([sys.executable, ROOT / script, "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert answer.returncode == 0
    assert "STALE_SECONDS" in answer.stdout
    assert "default 30" in answer.stdout


def _connected(exchange: Exchange, daemon: Daemon) -> None:
    daemon.wait_for_live()


def _refused(exchange: Exchange, daemon: Daemon) -> None:
    daemon.wait_for_line("connect failed")


def _hanging(exchange: Exchange, daemon: Daemon) -> None:
    exchange.wait(lambda: exchange.attempts, what="an attempt")


def _hanging_rest(exchange: Exchange, daemon: Daemon) -> None:
    exchange.wait(lambda: exchange.rest_requests, what="a REST request")


def _mid_frame(exchange: Exchange, daemon: Daemon) -> None:
    daemon.wait_for_live()
    exchange.stall()
    exchange.send_half_frame()


def _trickling(exchange: Exchange, daemon: Daemon) -> None:
    daemon.wait_for_live()
    exchange.trickle()
    time.sleep(0.5)  # into the middle of a message


@pytest.mark.parametrize(
    ("arrange", "reach"),
    [
        pytest.param(lambda exchange: None, _connected, id="connected"),
        pytest.param(lambda exchange: exchange.down(), _refused, id="refused"),
        pytest.param(lambda exchange: exchange.hang_handshakes(), _hanging, id="hanging handshake"),
        pytest.param(lambda exchange: exchange.stall(FUTURE), _hanging, id="black hole"),
        pytest.param(lambda exchange: exchange.rest_hang(), _hanging_rest, id="hanging REST"),
        pytest.param(lambda exchange: None, _mid_frame, id="mid-frame"),
        pytest.param(lambda exchange: None, _trickling, id="trickling"),
    ],
)
def test_sigterm_ends_the_daemon_within_3_seconds(
    tmp_path: Path, arrange: Callable[[Exchange], None], reach: Callable[[Exchange, Daemon], None]
) -> None:
    """Exit status 0 from every state, with a last complete file and no traceback."""
    with Exchange(tick_s=0.5) as exchange:
        arrange(exchange)
        with Daemon(exchange, tmp_path, SILENCE_SECONDS=20, REST_TIMEOUT_SECONDS=20) as daemon:
            daemon.wait_for_line("starting")
            eventually(daemon.state, "a state file")
            reach(exchange, daemon)
            assert daemon.terminate() < 3
            assert daemon.process.returncode == 0
            assert not any("Traceback" in line for line in daemon.log)
            assert daemon.state()["version"] == 1


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGHUP])
def test_other_signals_end_it_likewise(tmp_path: Path, signum: signal.Signals) -> None:
    """Ctrl-C, and a terminal that is closed."""
    with Exchange(tick_s=0.5) as exchange, Daemon(exchange, tmp_path) as daemon:
        daemon.wait_for_live()
        assert daemon.terminate(signum) < 3
        assert daemon.process.returncode == 0
        daemon.wait_for_line("stopping cause=signal")


def test_stderr_whose_reader_stands_still_disturbs_nothing(tmp_path: Path) -> None:
    """The pipe is full: the stream is read and reconnects, REST is asked, the file is written, and SIGTERM heeded."""
    settings = {"LOG_LEVEL": "DEBUG", "REST_POLL_SECONDS": 0.1}
    with Exchange(tick_s=0.25) as exchange, Daemon(exchange, tmp_path, **settings) as daemon:
        assert daemon.process.stdout is not None
        fcntl.fcntl(daemon.process.stdout, fcntl.F_SETPIPE_SZ, 4096)
        daemon.wait_for_live()
        daemon.reading.clear()
        polls = daemon.status()["rest"]["polls"]
        eventually(lambda: daemon.status()["rest"]["polls"] > polls + 60, "polls, each with a line for the log")
        exchange.reset()
        eventually(lambda: daemon.status()["disconnects"] == 2, "two losses in the file")
        daemon.wait_for_live()
        daemon.wait_for_newer_data()
        started_s = time.monotonic()
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(PATIENCE_S) == 0
        assert time.monotonic() - started_s < 3


def test_heartbeat_rewrites_the_file_without_any_data(tmp_path: Path) -> None:
    """With everything down the file still says that the daemon lives, and that nothing is connected."""
    with Exchange() as exchange:
        exchange.down()
        with Daemon(exchange, tmp_path) as daemon:
            first = eventually(daemon.state, "a state file")["updated_at"]
            eventually(lambda: daemon.state()["updated_at"] > first + 1, "later heartbeats")
            assert daemon.status()["connected"] is False


def test_reader_never_sees_a_broken_or_shrinking_file(tmp_path: Path) -> None:
    """While the daemon is killed and restarted again and again, every read is complete and no event time goes back."""
    reader = subprocess.Popen(
        [sys.executable, "-c", _READER, str(tmp_path / STATE_FILE)], stdout=subprocess.PIPE, text=True
    )
    with Exchange(tick_s=0.1) as exchange:
        for _ in range(int(os.environ.get("KILLS", "5"))):
            with Daemon(exchange, tmp_path) as daemon:
                daemon.wait_for_live()
                daemon.process.kill()
    (tmp_path / "stop").touch()
    output, _ = reader.communicate(timeout=30)
    reads = json.loads(output)
    assert reads["faults"] == []
    assert reads["count"] > 20


_READER = """
import json, os, sys
path = sys.argv[1]
stop = os.path.join(os.path.dirname(path), "stop")
times, count, faults = {}, 0, []
while not os.path.exists(stop):
    try:
        with open(path, encoding="utf-8") as file:
            state = json.load(file)
    except FileNotFoundError:
        if count:
            faults.append("the file was missing")
        continue
    except ValueError as error:
        faults.append(repr(error))
        continue
    count += bool(state["funding_state"])
    missing = times.keys() - state["funding_state"].keys()
    if missing:
        faults.append(f"shrunk by {len(missing)}")
    for symbol, record in state["funding_state"].items():
        if record["eventTime"] < times.get(symbol, 0):
            faults.append(symbol + " went back")
        times[symbol] = record["eventTime"]
print(json.dumps({"count": count, "faults": faults[:10]}))
"""
