"""Connections that do not come about or are lost: one clear line each, and all is well again by itself."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.exchange import FUTURE, Exchange
from tests.support.bad_days import logs_calmly, recovers
from tests.support.peers import Listener, answers
from tests.support.programs import Daemon
from tests.support.tls_front import tls_front
from tests.support.waiting import eventually


@pytest.mark.parametrize(
    ("arrange", "line"),
    [
        pytest.param(lambda e: e.down(rest=False), "connection refused", id="refused"),
        pytest.param(lambda e: e.refuse_handshakes(403), "firewall .*HTTP 403", id="403"),
        pytest.param(lambda e: e.refuse_handshakes(418, retry_after_s=1), "banned this IP.*HTTP 418", id="418"),
        pytest.param(lambda e: e.refuse_handshakes(429, retry_after_s=1), "too many requests.*HTTP 429", id="429"),
        pytest.param(lambda e: e.refuse_handshakes(451), "does not serve this country.*HTTP 451", id="451"),
        pytest.param(lambda e: e.refuse_handshakes(503), "server error .HTTP 503", id="503"),
        pytest.param(lambda e: e.hang_handshakes(), "no handshake within|no answer in time", id="hanging handshake"),
        pytest.param(lambda e: e.stall(FUTURE), "no new mark prices", id="black hole from the start"),
    ],
)
def test_connecting_fails_then_heals(
    exchange: Exchange, tmp_path: Path, arrange: Callable[[Exchange], None], line: str
) -> None:
    """The cause is named once, REST serves meanwhile, and the stream comes by itself."""
    arrange(exchange)
    with Daemon(exchange, tmp_path) as daemon:
        daemon.wait_for_line(f"WARNING connect failed cause=.*({line})")
        eventually(daemon.records, "data from REST")
        exchange.up(rest=False)
        exchange.accept_handshakes()
        exchange.behave(FUTURE)
        recovers(daemon)
        daemon.wait_for_line("INFO +stream recovered")
        logs_calmly(daemon)


def test_name_that_cannot_be_resolved_gives_way_to_the_next(exchange: Exchange, tmp_path: Path) -> None:
    """DNS failure is named, and the next candidate is used."""
    urls = f"ws://exchange.invalid/market,{exchange.ws_url}"
    with Daemon(exchange, tmp_path, BINANCE_WS_URLS=urls) as daemon:
        daemon.wait_for_line("connect failed cause=.*DNS")
        recovers(daemon)
        logs_calmly(daemon)


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        pytest.param(b"\r\n\r\n", "protocol error", id="empty"),
        pytest.param(b"nonsense\r\n\r\n", "protocol error", id="one word"),
        pytest.param(b"HTTP/1.1 abc\r\n\r\n", "protocol error", id="status of letters"),
        pytest.param(
            b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSet-Cookie: a/b=1\r\n\r\n",
            "protocol error",
            id="cookie that is none",
        ),
        pytest.param(b"HTTP/1.1 302 x\r\nLocation: ws://127.0.0.1:1/\r\n\r\n", "edirect", id="redirect"),
    ],
)
def test_handshake_that_is_no_handshake_is_one_line(
    exchange: Exchange, tmp_path: Path, answer: bytes, line: str
) -> None:
    """Whatever the library makes of it, the daemon goes on, and to the next address."""
    with Listener(answers(answer)) as peer:
        urls = f"ws://127.0.0.1:{peer.port}/,{exchange.ws_url}"
        with Daemon(exchange, tmp_path, BINANCE_WS_URLS=urls) as daemon:
            daemon.wait_for_line(f"WARNING connect failed cause=.*({line})")
            recovers(daemon)
            logs_calmly(daemon)


def test_certificate_nobody_vouches_for_is_refused(exchange: Exchange, tmp_path: Path) -> None:
    """TLS failures are named; not one byte of data is believed."""
    with tls_front(exchange) as (url, _), Daemon(exchange, tmp_path, BINANCE_WS_URLS=url) as daemon:
        daemon.wait_for_line("connect failed cause=.*TLS: unable to get local issuer")
        assert daemon.status()["messages_received"] == 0
        assert exchange.connections == []
        logs_calmly(daemon)


@pytest.mark.parametrize("disturb", ["drop", "reset", "stall"])
def test_over_tls_losses_are_noticed_and_mended(exchange: Exchange, tmp_path: Path, disturb: str) -> None:
    """As Binance serves it: wss. FIN, RST and black hole end a connection, and the next one works."""
    with tls_front(exchange) as (url, authority):
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        with Daemon(exchange, tmp_path, BINANCE_WS_URLS=url, SSL_CERT_FILE=tmp_path / "ca.pem") as daemon:
            daemon.wait_for_live()
            getattr(exchange, disturb)()
            daemon.wait_for_line("WARNING (lost|silent)", count=2)
            recovers(daemon)
            assert daemon.terminate() < 3
            assert daemon.process.returncode == 0
            logs_calmly(daemon)


@pytest.mark.parametrize(
    ("disturb", "line"),
    [
        pytest.param(lambda e: e.close(1000), "lost cause=.*code 1000", id="close 1000"),
        pytest.param(lambda e: e.close(1001), "lost cause=.*code 1001 .going away", id="close 1001"),
        pytest.param(lambda e: e.close(1008), "lost cause=.*code 1008 .policy", id="close 1008"),
        pytest.param(lambda e: e.drop(), "lost cause=.*without close frame .1006", id="FIN, which is 1006"),
        pytest.param(lambda e: e.reset(), "lost cause=.*reset", id="RST"),
        pytest.param(lambda e: e.stall(), "silent cause=.*no new mark prices", id="black hole"),
        pytest.param(lambda e: e.silence(), "silent cause=.*no new mark prices", id="silence with pings"),
        pytest.param(lambda e: e.stand_still(), "silent cause=.*no new mark prices", id="event time stands still"),
        pytest.param(lambda e: e.trickle(), "silent cause=.*no new mark prices", id="trickle"),
        pytest.param(lambda e: e.send_half_frame(), "silent cause=.*no new mark prices", id="half a frame"),
        pytest.param(lambda e: e.send_huge(), "lost cause=.*message of more than 16 MiB", id="40 MB"),
        pytest.param(lambda e: e.write(b"\x83\x00"), "lost cause=.*protocol error", id="reserved opcode"),
    ],
)
def test_all_connections_lost_at_once(
    exchange: Exchange, tmp_path: Path, disturb: Callable[[Exchange], None], line: str
) -> None:
    """Each loss is one warning with cause, age and what happens next; both connections come back by themselves."""
    with Daemon(exchange, tmp_path) as daemon:
        daemon.wait_for_live()
        disturb(exchange)
        lost = daemon.wait_for_line(f"WARNING {line}", count=2)
        assert "age_s=" in lost
        assert "retry_in_s=" in lost
        recovers(daemon)
        assert daemon.status()["disconnects"] == 2
        logs_calmly(daemon)
