"""The HTTP server under real load tools, and among forty rude clients: no failed request, no traceback, nobody waits.

The tools are Debian's apache2-utils, wrk and nghttp2-client. Where one is missing its tests skip, or fail in CI.
"""

import contextlib
import re
import subprocess
import time
from collections.abc import Iterator

import pytest

from binance_funding.server.http.server import HttpServer
from binance_funding.server.listener import raise_file_limit
from tests.support.http_client import Client, by_path, running
from tests.support.rude_clients import rude_crowd
from tests.support.tools import find

pytestmark = pytest.mark.alone

TOOL_LIMIT_S = 60.0
LONGEST_WAIT_S = 0.3
RUDE_FOR_S = 3.0


@pytest.fixture
def server(caplog: pytest.LogCaptureFixture) -> Iterator[HttpServer]:
    """A server that must not have anything to say, and must still answer afterwards."""
    assert raise_file_limit(1024) == 1024
    with running(by_path, max_connections=1024) as server:
        yield server
        with Client(server.address) as client:
            assert client.get("/after").body == b"/after"
    assert not caplog.records


def run(package: str, tool: str, *arguments: str) -> str:
    """Run a load tool to its end and return what it says."""
    done = subprocess.run([find(tool, package), *arguments], capture_output=True, text=True, timeout=TOOL_LIMIT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def url(server: HttpServer, path: str = "/funding/BTCUSDT") -> str:
    """Return an address to ask."""
    return f"http://127.0.0.1:{server.address[1]}{path}"


def number(pattern: str, output: str) -> int:
    """Return the one number behind this pattern."""
    (found,) = re.findall(pattern + r"\s+(\d+)", output)
    return int(found)


@pytest.mark.parametrize("options", [(), ("-k",)], ids=["close", "keep-alive"])
@pytest.mark.parametrize("clients", [50, 150, 300, 900])
def test_ab_sees_no_failed_request(server: HttpServer, clients: int, options: tuple[str, ...]) -> None:
    """Each request on a connection of its own, or as many as there are clients."""
    requests = 10_000
    output = run("apache2-utils", "ab", "-q", "-l", "-n", str(requests), "-c", str(clients), *options, url(server))
    assert number("Complete requests:", output) == requests
    assert number("Failed requests:", output) == 0
    assert "Non-2xx" not in output


def test_wrk_with_a_connection_for_each_request_sees_no_failed_request(server: HttpServer) -> None:
    """400 clients that are told to close, and do."""
    output = run("wrk", "wrk", "-t2", "-c400", "-d3", "-H", "Connection: close", url(server))
    assert number("Requests/sec:", output) > 0
    assert "Socket errors" not in output
    assert "Non-2xx" not in output


@pytest.mark.parametrize("path", ["/funding/BTCUSDT", "/big"])
def test_h2load_sees_no_failed_request(server: HttpServer, path: str) -> None:
    """A hundred clients that pipeline eight requests each."""
    output = run("nghttp2-client", "h2load", "--h1", "-n4000", "-c100", "-m8", url(server, path))
    assert "4000 succeeded, 0 failed, 0 errored, 0 timeout" in output
    assert "4000 2xx, 0 3xx, 0 4xx, 0 5xx" in output


@pytest.mark.parametrize("keeps_alive", [True, False], ids=["keep-alive", "close"])
def test_beside_forty_rude_clients_a_polite_one_is_answered_at_once(server: HttpServer, keeps_alive: bool) -> None:
    """Every answer is 200 and comes within 0.3 s, over one connection or one for each request."""
    waits_s = []
    with rude_crowd(server.address[1]), contextlib.ExitStack() as stack:
        kept = stack.enter_context(Client(server.address))
        end_s = time.monotonic() + RUDE_FOR_S
        while time.monotonic() < end_s:
            asked_s = time.monotonic()
            polite = kept if keeps_alive else stack.enter_context(Client(server.address))
            reply = polite.get("/polite")
            waits_s.append(time.monotonic() - asked_s)
            assert (reply.status, reply.body) == (200, b"/polite")
            if not keeps_alive:
                polite.sock.close()
            time.sleep(0.005)
    assert len(waits_s) > 20
    assert max(waits_s) < LONGEST_WAIT_S
