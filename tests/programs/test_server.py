"""The HTTP server as its user asks it: the real process over the real daemon's file, asked with curl."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from binance_funding.program import EX_UNAVAILABLE
from tests.exchange import Exchange, Market
from tests.support.programs import ROOT, STATE_FILE, Daemon, Program, Server, free_port
from tests.support.tools import find
from tests.support.waiting import PATIENCE_S, eventually

NON_ASCII = "币安人生USDT"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server over the file of a daemon that goes on writing it."""
    folder = tmp_path_factory.mktemp("host")
    with (
        Exchange(Market(usd_m=40, tradfi=10, coin_m=2, fundless=2), tick_s=0.5) as exchange,
        Daemon(exchange, folder) as daemon,
        Server(folder) as server,
    ):
        daemon.wait_for_live()
        yield server
        server.terminate()
        assert server.process.returncode == 0
        assert not any("Traceback" in line for line in server.log)


def curl(server: Server, path: str, *options: str) -> tuple[str, dict[str, str], bytes]:
    """Ask with curl; return status line, headers with names in lower case, and body."""
    url = f"http://127.0.0.1:{server.port}{path}"
    command = [find("curl", "curl"), "-sS", "-i", "-m", "20", *options, url]
    output = subprocess.run(command, capture_output=True, check=True).stdout
    head, _, body = output.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    return status, {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}, body


@pytest.mark.parametrize("spelling", ["BTCUSDT", "btcusdt", "BtcUsdt", "%42TCUSDT"])
def test_symbol_in_any_case_or_encoding(server: Server, spelling: str) -> None:
    """The record with what is derived from it."""
    status, headers, body = curl(server, f"/funding/{spelling}")
    record = json.loads(body)
    assert status == "HTTP/1.1 200 OK"
    assert headers["content-type"] == "application/json; charset=utf-8"
    assert record["symbol"] == "BTCUSDT"
    assert record["ageSeconds"] < 30
    assert record["annualizedFundingRate"] == pytest.approx(record["fundingRate"] * 24 / 8 * 365)


def test_non_ascii_symbol_percent_encoded(server: Server) -> None:
    """UTF-8 in the path and in the answer."""
    _, _, body = curl(server, f"/funding/{quote(NON_ASCII)}")
    assert json.loads(body)["symbol"] == NON_ASCII


def test_whole_list_plain_compressed_and_unchanged(server: Server) -> None:
    """Gzip is the same content under another tag; a tag that still holds costs no body."""

    def unchanged() -> dict[str, Any] | None:
        # The file changes twice a second: ask again until no change came between.
        status, plain, body = curl(server, "/funding")
        _, compressed, unzipped = curl(server, "/funding", "--compressed")
        again, _, nothing = curl(server, "/funding", "-H", f"If-None-Match: {plain['etag']}")
        assert compressed["content-encoding"] == "gzip"
        assert plain["etag"] != compressed["etag"]
        if "304" not in again or unzipped != body:
            return None
        assert nothing == b""
        return {"status": status, "cache": plain["cache-control"], **json.loads(body)}

    answer = eventually(unchanged, "an answer between two changes")
    assert answer["status"] == "HTTP/1.1 200 OK"
    assert answer["cache"] == "max-age=1"
    assert answer["count"] == len(answer["data"]) == 50


@pytest.mark.parametrize(
    ("path", "options", "status", "header"),
    [
        ("/funding/NOPE", (), 404, ""),
        ("/nope", (), 404, ""),
        ("/funding/BTC/EUR", (), 404, "cache-control: no-store"),
        ("/funding/stream/", (), 404, "cache-control: no-store"),
        ("/metrics/", (), 404, "cache-control: no-store"),
        ("/funding/%zz", (), 400, "cache-control: no-store"),
        ("/funding/batch?symbols=%zz", (), 400, "cache-control: no-store"),
        ("/funding/batch", (), 400, ""),
        ("/funding/%FF", (), 400, ""),
        ("/funding/BTCUSDT", ("-X", "POST"), 405, "allow: GET, HEAD, OPTIONS"),
        ("/funding/BTCUSDT", ("-X", "DELETE"), 405, "allow: GET, HEAD, OPTIONS"),
        ("/funding/BTCUSDT", ("-X", "GET", "-d", "body"), 413, "connection: close"),
        ("/" + "a" * 9000, (), 414, "connection: close"),
        ("/", ("-H", "X: " + "a" * 9000), 431, "connection: close"),
    ],
)
def test_errors_are_json(server: Server, path: str, options: tuple[str, ...], status: int, header: str) -> None:
    """A small object with `error`, never a stack trace."""
    line, headers, body = curl(server, path, *options)
    assert line.startswith(f"HTTP/1.1 {status} ")
    assert "error" in json.loads(body)
    name, _, value = header.partition(": ")
    assert not header or headers[name] == value


def test_head_has_the_headers_of_get_and_no_body(server: Server) -> None:
    """Content-Length included."""
    status, headers, body = curl(server, "/", "-I")
    assert status == "HTTP/1.1 200 OK"
    assert int(headers["content-length"]) == len(curl(server, "/")[2])
    assert body == b""


def test_preflight_of_a_browser_is_answered(server: Server) -> None:
    """A dashboard of another origin may read."""
    status, headers, body = curl(server, "/funding", "-X", "OPTIONS", "-H", "Origin: http://dashboard.example")
    assert status == "HTTP/1.1 204 No Content"
    assert headers["access-control-allow-origin"] == "*"
    assert "GET" in headers["access-control-allow-methods"]
    assert body == b""


def test_connection_is_kept_for_the_next_request(server: Server) -> None:
    """Curl uses one connection for two addresses."""
    url = f"http://127.0.0.1:{server.port}/funding/BTCUSDT"
    answer = subprocess.run([find("curl", "curl"), "-sv", url, url], capture_output=True, text=True, check=True)
    assert re.search("Re-using existing", answer.stderr)


def test_no_file_is_503_until_there_is_one(tmp_path: Path) -> None:
    """Health, symbols and the list say that there is no data; they answer as soon as a daemon has written."""
    with Server(tmp_path) as server:
        for path in ("/funding/health", "/funding/BTCUSDT", "/funding", "/funding/batch?symbols=A"):
            status, headers, body = server.request(path)
            assert status == 503
            assert headers["retry-after"]
            assert headers["cache-control"] == "no-store"
            assert "no such file" in json.loads(body)["error"]
        status, _, body = server.request("/metrics")
        assert status == 200
        assert b"\nprocess_resident_memory_bytes " in body
        with Exchange(Market(usd_m=5, tradfi=2), tick_s=0.5) as exchange, Daemon(exchange, tmp_path) as daemon:
            daemon.wait_for_live()
            eventually(lambda: server.get("/funding/health")[0] == 200, "health")
            assert server.get("/funding/BTCUSDT")[0] == 200


def test_stopped_daemon_is_noticed_and_stale_data_refused(tmp_path: Path) -> None:
    """First the heartbeat is missed, then the data is stale: 503 with the last known record and its age."""
    with (
        Exchange(Market(usd_m=5, tradfi=2), tick_s=0.2) as exchange,
        Daemon(exchange, tmp_path) as daemon,
        Server(tmp_path) as server,
    ):
        daemon.wait_for_live()
        assert server.get("/funding/health")[1]["status"] == "healthy"
        daemon.process.send_signal(signal.SIGSTOP)
        health = eventually(lambda: _unhealthy(server), "unhealthy")
        assert health["daemonAlive"] is False
        assert "has not written" in health["error"]
        status, answer = eventually(lambda: _refused(server), "a stale symbol refused")
        assert status == 503
        assert answer["fundingRate"]
        assert answer["ageSeconds"] > answer["maxAgeSeconds"] == 5
        daemon.process.send_signal(signal.SIGCONT)
        eventually(lambda: server.get("/funding/BTCUSDT")[0] == 200, "fresh data again")


def _unhealthy(server: Server) -> dict[str, Any] | None:
    status, health = server.get("/funding/health")
    return health if status == 503 else None


def _refused(server: Server) -> tuple[int, dict[str, Any]] | None:
    status, answer = server.get("/funding/BTCUSDT")
    return (status, answer) if status != 200 else None


def test_damaged_file_is_503_and_never_a_crash(tmp_path: Path) -> None:
    """Junk, truncated, a directory: told as such, and over when it is over."""
    path = tmp_path / STATE_FILE
    with Server(tmp_path) as server:
        for junk in (b"junk", b"", b'{"version":1', b"\xff\xfe", b'{"version":1,"updated_at":1,"funding_state":[]}'):
            path.write_bytes(junk)
            assert server.get("/funding/health")[0] == 503
            assert server.get("/funding/BTCUSDT")[0] == 503
        path.unlink()
        path.mkdir()
        assert server.get("/funding/health")[0] == 503
        assert server.process.poll() is None
        assert not any("Traceback" in line for line in server.log)


def test_server_is_idle_when_nobody_asks(tmp_path: Path) -> None:
    """No connection, no timer: not one tick of CPU time in two seconds."""
    with Server(tmp_path) as server:
        before = _cpu_ticks(server.process.pid)
        time.sleep(2)
        assert _cpu_ticks(server.process.pid) == before


def _cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


def test_server_never_writes(tmp_path: Path) -> None:
    """It leaves nothing behind in its folder."""
    with Server(tmp_path) as server:
        server.get("/funding/health")
        assert server.terminate() < 3
    assert os.listdir(tmp_path) == []


@contextlib.contextmanager
def taken_port(host: str = "127.0.0.1") -> Iterator[socket.socket]:
    """Listen on a port."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as taken:
        taken.bind((host, 0))
        taken.listen()
        yield taken


@pytest.mark.parametrize(("host", "address"), [("127.0.0.1", "127.0.0.1:{}"), ("::1", "[::1]:{}")])
def test_port_already_taken_is_one_line(tmp_path: Path, host: str, address: str) -> None:
    """With address and what to change; a status that is not 78: the port may be free later."""
    with taken_port(host) as taken:
        port = taken.getsockname()[1]
        settings = {"API_PORT": port, "API_HOST": host}
        with Program("funding_api_server.py", tmp_path, settings) as server:
            assert server.wait() == EX_UNAVAILABLE
    sentence = f"cannot listen on {address.format(port)}: address already in use; change API_PORT or API_HOST"
    assert len(server.log) == 1
    assert server.log[0].endswith(f" ERROR   {sentence}")


def test_host_that_is_not_of_this_machine_is_one_line(tmp_path: Path) -> None:
    """The same for an address that nobody here has."""
    with Program("funding_api_server.py", tmp_path, {"API_HOST": "192.0.2.1"}) as server:
        assert server.wait() == EX_UNAVAILABLE
    assert len(server.log) == 1
    assert "cannot listen on 192.0.2.1:8888: cannot assign requested address; change " in server.log[0]


def test_port_already_taken_is_waited_for_under_systemd(tmp_path: Path) -> None:
    """It would start the server anew each second for ever: the server waits, says so once, and listens when it can."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, taken_port() as taken:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(PATIENCE_S)
        settings = {"API_PORT": taken.getsockname()[1], "NOTIFY_SOCKET": manager.getsockname()}
        with Program("funding_api_server.py", tmp_path, settings) as server:
            for _ in range(3):  # a second apart
                assert b"STATUS=waiting: cannot listen on 127.0.0.1:" in manager.recv(4096)
            assert len(server.log) == 1
            taken.close()
            server.wait_for_line("INFO +listening")
            while b"READY=1" not in manager.recv(4096):
                pass
            assert server.terminate() < 3
            assert server.process.returncode == 0


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_ends_the_server_within_3_seconds(tmp_path: Path, signum: signal.Signals) -> None:
    """With status 0, while a client holds its connection open."""
    with Server(tmp_path) as server, socket.create_connection(("127.0.0.1", server.port)):
        assert server.terminate(signum) < 3
        assert server.process.returncode == 0
        assert "stopped cause=signal" in server.log[-1]


def test_stderr_whose_reader_stands_still_disturbs_nothing(tmp_path: Path) -> None:
    """The pipe is full: requests are answered, and SIGTERM heeded."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, b"x" * 4096)
    os.set_blocking(writing, True)
    port = free_port()
    with subprocess.Popen(
        [sys.executable, ROOT / "funding_api_server.py"],
        cwd=tmp_path,
        env={**os.environ, "API_PORT": str(port)},
        stderr=writing,
    ) as process:
        eventually(lambda: _answers(port), "an answer")
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(3) == 0
        finally:
            process.kill()
            os.close(reading)
            os.close(writing)


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            return client.recv(100).startswith(b"HTTP/1.1 200 ")
    except ConnectionRefusedError:
        return False


def test_fewer_files_than_connections_is_said_and_served(tmp_path: Path) -> None:
    """`ulimit -n 64` and the default of 1024 connections: the log says how many fit, and 200 clients are answered.

    One after the other on connections that stay open: the one idle longest gives way.
    """
    with (
        Exchange(Market(usd_m=5, tradfi=2), tick_s=0.5) as exchange,
        Daemon(exchange, tmp_path) as daemon,
        Server(tmp_path, most_files=64) as server,
        contextlib.ExitStack() as opened,
    ):
        daemon.wait_for_live()
        line = server.wait_for_line("WARNING fewer connections most=")
        most = int(re.findall(r"most=(\d+)", line)[0])
        assert 16 <= most < 64
        eventually(lambda: server.get("/funding/BTCUSDT")[0] == 200, "an answer")
        for _ in range(200):
            client = opened.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S))
            client.sendall(b"GET /funding/BTCUSDT HTTP/1.1\r\nHost: x\r\n\r\n")
            assert client.recv(4096).startswith(b"HTTP/1.1 200 ")
        assert server.get("/funding/health")[1]["status"] == "healthy"
