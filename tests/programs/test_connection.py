"""One WebSocket connection over real sockets: whatever it meets, it ends in words, and breaks when it is told to."""

import socket
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from binance_funding.daemon.context import Context
from binance_funding.daemon.source.connection import Connection, Ending
from binance_funding.settings import load
from tests.exchange import FUTURE, Exchange, Market
from tests.support.peers import Listener, answers, silent_port, trickles
from tests.support.programs import free_port
from tests.support.running_stream import SMALL, running
from tests.support.waiting import eventually


def connection_to(url: str, **settings: Any) -> Connection:
    """Return a connection that leaves every message out."""
    context = Context(load({name: str(value) for name, value in settings.items()}, env_file="/nonexistent"))
    return Connection(context, 1, url, lambda _payload: 0, lambda: None)


def ending_of(url: str, **settings: Any) -> Ending:
    """Let one connection run to its end; return that."""
    connection = connection_to(url, **settings)
    connection.run()
    assert connection.ending is not None
    return connection.ending


def test_the_limit_of_a_message_is_not_one_of_the_connection() -> None:
    """In an hour a connection brings more than the largest message may have; that is no reason to drop it."""
    small = partial(Connection, largest_message_bytes=1 << 20)
    with Exchange(Market(**SMALL), tick_s=0.2) as exchange:  # noqa: SIM117
        with running(exchange.ws_url, open_connection=small, STREAM_CONNECTIONS=1) as stream:
            stream.wait_for_live(1)
            before = stream.feed.messages
            for _ in range(5):
                exchange.send_huge(500_000)
            eventually(lambda: stream.feed.messages >= before + 15, "those messages, and more after them")
            assert stream.counts() == (0, 0)
            assert stream.pool.attempts == 0


def test_a_replaced_connection_says_goodbye_without_waiting_for_its_next_message() -> None:
    """It looks up twice a second, while messages may be seconds apart or have ceased."""
    with Exchange(Market(**SMALL), tick_s=3600) as exchange:  # noqa: SIM117
        with running(
            exchange.ws_url, STREAM_CONNECTIONS=1, CONNECTION_MAX_AGE_SECONDS=0.5, SILENCE_SECONDS=60
        ) as stream:
            old = exchange.wait_for_live(1)[0]
            exchange.tick()
            exchange.wait_for_live(2)
            exchange.tick()
            eventually(lambda: stream.pool.replaced == 1, "the planned replacement")
            exchange.wait(lambda: old.closed_at_s is not None, what="the old connection's end")
            assert old.close_code == 1000


def test_at_the_end_every_connection_says_goodbye() -> None:
    """Binance sees a close frame with code 1000, not a connection that breaks."""
    with Exchange(Market(**SMALL), tick_s=0.2) as exchange:
        with running(exchange.ws_url) as stream:
            stream.wait_for_live()
        exchange.wait(lambda: not exchange.live, what="the end of both connections")
        assert [record.close_code for record in exchange.connections] == [1000, 1000]


def test_a_connection_keeps_the_moment_of_its_first_mark_prices() -> None:
    """A minute after them it has proved itself: that moment must not move with every message."""
    with Exchange(Market(**SMALL), tick_s=0.1) as exchange:  # noqa: SIM117
        with running(exchange.ws_url, STREAM_CONNECTIONS=1) as stream:
            stream.wait_for_live(1)
            connection = stream.pool.live()[0]
            first_s = connection.first_data_s
            assert first_s is not None
            eventually(lambda: (connection.last_advance_s or 0) > first_s + 0.5, "newer mark prices")
            assert connection.first_data_s == first_s


def test_where_nothing_listens_the_address_is_unreachable() -> None:
    """Asking again soon burdens nobody."""
    assert ending_of(f"ws://127.0.0.1:{free_port()}/") == Ending("connection refused", unreachable=True)


def test_a_name_that_cannot_be_resolved_is_unreachable() -> None:
    """Asking a name server every second burdens no exchange, and its return is noticed at once."""
    assert ending_of("ws://x..example/") == Ending("DNS: the host name cannot be resolved", unreachable=True)


@pytest.mark.parametrize(("silence_s", "limit_s"), [(0.3, 0.3), (0.6, 0.6)])
def test_an_address_that_is_silent_is_given_up_in_time(silence_s: float, limit_s: float) -> None:
    """Nothing else frees a thread that connects. Packets that are dropped burden no exchange."""
    with silent_port() as port:
        connection = connection_to(f"ws://127.0.0.1:{port}/", SILENCE_SECONDS=silence_s)
        connection.run()
    assert connection.ending == Ending("no answer in time while connecting", unreachable=True)
    assert connection.context.clock.steady_s() - connection.started_s >= limit_s


def test_a_handshake_that_hangs_is_no_unreachable_address() -> None:
    """Somebody is there, and may be overloaded."""
    with Exchange(Market(**SMALL)) as exchange:
        exchange.hang_handshakes()
        ending = ending_of(exchange.ws_url, SILENCE_SECONDS=0.3)
    assert ending == Ending("no answer in time while connecting")


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"SSH-2.0-OpenSSH_9.6\r\n\r\n", id="another protocol"),
        pytest.param(b"HTTP/1.1\r\n\r\n", id="no status"),
        pytest.param(b"HTTP/1.1 OK\r\n\r\n", id="no number"),
        pytest.param(b"HTTP/1.1 200 OK\r\nwithout colon\r\n\r\n", id="no header"),
        pytest.param(b"HTTP/1.1 503 Busy\r\nContent-Length: many\r\n\r\n", id="no length"),
        pytest.param(b"HTTP/1.1 101 \xff\r\nUpgrade: \xff\r\n\r\n", id="no text"),
        pytest.param(b"HTTP/1.1 101 Switching\r\n\r\n", id="no upgrade"),
        pytest.param(b"HTTP/1.1 302 Found\r\nLocation: ws://[\r\n\r\n", id="an odd redirect"),
        pytest.param(b"\x15\x03\x01\x00\x02\x02\x46", id="a TLS alert"),
        pytest.param(b"\r\n", id="an empty line"),
        pytest.param(b"\nHTTP/1.1 302 Found\r\nLocation: /\r\n\r\n", id="an empty line first"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_whatever_answers_the_handshake_is_named_and_survived(answer: bytes) -> None:
    """The library trusts the status line and headers; its stumbling must not end the daemon."""
    with Listener(answers(answer)) as peer:
        ending = ending_of(f"ws://127.0.0.1:{peer.port}/")
        assert peer.accepted == 1
    assert ending.cause
    assert not ending.unreachable
    assert ending.event == "lost"


def test_what_answers_tls_with_something_else_is_named() -> None:
    """A plain HTTP server on that port, a captive portal."""
    with Listener(answers(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as peer:
        ending = ending_of(f"wss://127.0.0.1:{peer.port}/")
    assert ending.cause.startswith("TLS: ")
    assert not ending.unreachable


def breaks_in(connection: Connection, ready: Callable[[], object]) -> None:
    """Run the connection in a thread; break it when it is ready, and see the thread end."""
    thread = threading.Thread(target=connection.run, name="connection")
    thread.start()
    eventually(ready, "the connection under way")

    def ended() -> bool:
        connection.abort()
        thread.join(0.1)
        return not thread.is_alive()

    eventually(ended, "the end of the thread")
    assert connection.ending is not None


def test_a_handshake_that_trickles_can_be_broken() -> None:
    """A header line that never ends has no timeout of its own; whoever watches breaks it, and no thread is left."""
    with Listener(trickles(b"HTTP/1.1 101 Switching Protocols\r\nX-Long: ")) as peer:
        breaks_in(connection_to(f"ws://127.0.0.1:{peer.port}/"), lambda: peer.accepted)


def test_a_message_that_trickles_can_be_broken() -> None:
    """In the middle of a frame it takes no notice of a request to close."""
    with Exchange(Market(**SMALL), tick_s=0.1) as exchange:
        exchange.trickle(FUTURE)
        breaks_in(connection_to(exchange.ws_url), lambda: exchange.live)


def test_breaking_a_connection_leaves_the_session_of_tls_to_its_reader() -> None:
    """A TLS socket's own shutdown takes the session away under the thread that is reading from it."""

    class TlsSocket(socket.socket):
        def shutdown(self, how: int) -> None:
            raise AssertionError("the session is gone")

    ours, theirs = socket.socketpair()
    with theirs, TlsSocket(fileno=ours.detach()) as sock:
        connection = connection_to("wss://x.example/")
        connection._websocket.sock = sock
        connection.abort()
        theirs.settimeout(10)
        assert theirs.recv(1) == b""
        connection.abort()
