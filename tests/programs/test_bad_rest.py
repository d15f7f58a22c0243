"""REST that fails in every way: never in the stream's way, and the net beneath it where it works."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from tests.exchange import Exchange
from tests.support.bad_days import logs_calmly, recovers
from tests.support.peers import Listener, trickles
from tests.support.programs import Daemon, Server
from tests.support.waiting import eventually


@pytest.mark.parametrize(
    ("fail", "line"),
    [
        pytest.param(lambda e: e.rest_fault(403), "firewall .*HTTP 403", id="403"),
        pytest.param(lambda e: e.rest_fault(418, retry_after_s=1), "banned this IP.*HTTP 418", id="418"),
        pytest.param(lambda e: e.rest_fault(429, retry_after_s=1), "too many requests.*HTTP 429", id="429"),
        pytest.param(lambda e: e.rest_fault(451), "does not serve this country.*HTTP 451", id="451"),
        pytest.param(lambda e: e.rest_fault(500), "server error .HTTP 500", id="500"),
        pytest.param(lambda e: e.rest_fault(302, headers={"Location": "/"}), "HTTP 302", id="redirect"),
        pytest.param(lambda e: e.rest_html(), "not valid JSON", id="HTML"),
        pytest.param(lambda e: e.rest_garbage(), "codec can't decode byte", id="garbage"),
        pytest.param(lambda e: e.rest_wrong_shape(), "no list", id="wrong shape"),
        pytest.param(lambda e: e.rest_hang(), "no answer in time", id="hanging"),
        pytest.param(lambda e: e.rest_trickle(), "no answer in time", id="trickle"),
        pytest.param(lambda e: e.rest_cut(), "connection ended before the whole answer", id="cut in the middle"),
        pytest.param(lambda e: e.rest_reset(), "connection reset", id="RST"),
        pytest.param(lambda e: e.down(ws=False), "no connection: connection refused", id="refused"),
    ],
)
def test_rest_fails_then_heals(exchange: Exchange, tmp_path: Path, fail: Callable[[Exchange], None], line: str) -> None:
    """It is named once, never disturbs the stream, and heals by itself."""
    fail(exchange)
    with Daemon(exchange, tmp_path, REST_POLL_SECONDS=0.5, REST_TIMEOUT_SECONDS=0.5) as daemon:
        daemon.wait_for_line(f"WARNING REST (refused|failed) cause=.*{line}")
        recovers(daemon)
        assert daemon.status()["rest"]["errors"] >= 1
        assert daemon.status()["rest"]["last_error"]
        exchange.rest_ok()
        exchange.up(ws=False)
        daemon.wait_for_line("INFO +REST recovered")
        eventually(lambda: daemon.status()["rest"]["last_success_time"], "a success in the file")
        assert daemon.status()["disconnects"] == 0
        logs_calmly(daemon)


def test_ban_is_waited_out_also_over_a_restart(exchange: Exchange, tmp_path: Path) -> None:
    """The end of the ban named in the body holds for the next daemon too: asking too early lengthens a ban."""
    until_ms = exchange.now_ms() + 600_000
    exchange.rest_ban(until_ms)
    for _ in range(2):
        with Daemon(exchange, tmp_path, REST_POLL_SECONDS=0.2, REST_FALLBACK_SECONDS=0.2) as daemon:
            recovers(daemon)
            paused_until = eventually(lambda: daemon.status()["rest"]["paused_until"], "the pause in the file")
            assert paused_until == pytest.approx(until_ms / 1000, abs=2)
            daemon.terminate()
    assert len(exchange.rest_requests) == 1


def test_fallback_polls_rest_while_the_stream_is_stale(exchange: Exchange, tmp_path: Path) -> None:
    """Logged on and off, with the age; in between the data is no older than the polling interval and a request."""
    with Daemon(exchange, tmp_path, STALE_SECONDS=3, REST_FALLBACK_SECONDS=1) as daemon:
        daemon.wait_for_live()
        exchange.down(rest=False)
        daemon.wait_for_line("WARNING fallback on stream_age_s=")
        eventually(lambda: daemon.status()["fallback_active"], "fallback in the file")
        eventually(lambda: {r["source"] for r in daemon.records().values()} == {"rest"}, "data from REST")
        first = len(exchange.rest_requests)
        exchange.wait(lambda: len(exchange.rest_requests) >= first + 5, what="five polls")
        times_s = [request.at_s for request in exchange.rest_requests[first:] if "premiumIndex" in request.path]
        assert all(later - earlier > 0.7 for earlier, later in pairwise(times_s))
        exchange.up(rest=False)
        daemon.wait_for_line("INFO +fallback off")
        recovers(daemon)
        assert daemon.status()["fallback_active"] is False
        logs_calmly(daemon)


def test_part_of_the_market_going_silent_lives_on_rest(exchange: Exchange, tmp_path: Path) -> None:
    """When one of the two messages stops, REST fills its symbols; log and health say how many, until it is over."""
    with Daemon(exchange, tmp_path, REST_POLL_SECONDS=0.5) as daemon, Server(tmp_path) as server:
        daemon.wait_for_live()
        exchange.only_first_message()
        daemon.wait_for_line("WARNING fallback on .*live=2 behind=5 of=25")
        said = "5 of 25 symbols have nothing current from the stream: fresh through REST"
        eventually(lambda: server.get("/funding/health")[1]["error"] == said, "health that says how many")
        health = server.get("/funding/health")[1]
        assert (health["status"], health["symbolsFromRest"]) == ("degraded", 5)
        recovers(daemon)
        exchange.behave()
        daemon.wait_for_line("INFO +fallback off")
        daemon.wait_for_line("symbols from REST .*count=0 of=25")
        eventually(lambda: server.get("/funding/health")[1]["status"] == "healthy", "health")
        assert server.get("/funding/health")[1]["symbolsFromRest"] == 0
        assert daemon.status()["disconnects"] == 0
        logs_calmly(daemon)


def test_rest_headers_that_trickle_in_for_ever_are_given_up(exchange: Exchange, tmp_path: Path) -> None:
    """The library's timeout is for one byte: the whole request has an end all the same, and the next one comes."""
    with Listener(trickles(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n", pause_s=0.1)) as peer:
        address = f"http://127.0.0.1:{peer.port}"
        with Daemon(
            exchange, tmp_path, BINANCE_REST_URL=address, REST_TIMEOUT_SECONDS=0.5, REST_POLL_SECONDS=1
        ) as daemon:
            daemon.wait_for_line("WARNING REST failed cause=.*no answer in time")
            eventually(lambda: peer.accepted >= 2, "the next request")
            recovers(daemon)
            logs_calmly(daemon)
