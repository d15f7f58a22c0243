"""The HTTP server as its user asks it: the real process over the real daemon's file, asked with curl."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.exchange import Exchange, Market
from tests.programs import STATE_FILE, Daemon, Server, eventually

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
    output = subprocess.run(["curl", "-sS", "-i", "-m", "20", *options, url], capture_output=True, check=True).stdout
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


def test_batch_tells_the_missing_ones(server: Server) -> None:
    """Every symbol asked for has its answer, in order."""
    _, _, body = curl(server, "/funding/batch?symbols=ethusdt,NOPE,BTCUSDT")
    answer = json.loads(body)
    assert [row["symbol"] for row in answer["data"]] == ["ETHUSDT", "NOPE", "BTCUSDT"]
    assert (answer["found"], answer["missing"], answer["total"]) == (2, 1, 3)


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


def test_health_and_report_must_not_be_stored(server: Server) -> None:
    """They are true for a moment only."""
    for path in ("/funding/health", "/funding/report", "/metrics"):
        status, headers, _ = curl(server, path)
        assert status == "HTTP/1.1 200 OK"
        assert headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("path", "options", "status", "header"),
    [
        ("/funding/NOPE", (), 404, ""),
        ("/nope", (), 404, ""),
        ("/funding/BTC/USDT", (), 404, ""),
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
    answer = subprocess.run(["curl", "-sv", url, url], capture_output=True, text=True, check=True)
    assert re.search("Re-using existing", answer.stderr)


def test_root_lists_what_there_is(server: Server) -> None:
    """Name, version, endpoints."""
    answer = json.loads(curl(server, "/")[2])
    assert answer["name"] == "binance-funding"
    assert "/funding/health" in answer["endpoints"]


def test_no_file_is_503_until_there_is_one(tmp_path: Path) -> None:
    """Health, symbols and the list say that there is no data; they answer as soon as a daemon has written."""
    with Server(tmp_path) as server:
        for path in ("/funding/health", "/funding/BTCUSDT", "/funding", "/funding/batch?symbols=A", "/metrics"):
            status, headers, body = server.request(path)
            assert status == 503
            assert headers["retry-after"]
            assert headers["cache-control"] == "no-store"
            assert "no such file" in json.loads(body)["error"]
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
