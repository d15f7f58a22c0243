"""One WebSocket connection over real sockets: whatever it meets, it ends in words, and breaks when it is told to."""

import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from binance_funding.clock import Clock
from binance_funding.daemon.source.connection import Connection
from binance_funding.daemon.source.faults import Cause, Kind
from tests.exchange import FUTURE, Exchange, Market
from tests.support.parts import connection_to
from tests.support.peers import Listener, answers, silent_port, trickles
from tests.support.programs import free_port
from tests.support.running_stream import SMALL, running
from tests.support.waiting import PATIENCE_S, eventually


def ending_of(url: str, **settings: Any) -> Cause:
    """Let one connection run to its end; return that."""
    connection = connection_to(url, **settings)
    connection.run()
    assert connection.ending is not None
    return connection.ending


def test_the_limit_of_a_message_is_not_one_of_the_connection() -> None:
    """In an hour a connection brings more than the largest message may have; that is no reason to drop it."""
    small = partial(Connection, max_message_bytes=1 << 20)
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
    assert ending_of(f"ws://127.0.0.1:{free_port()}/") == Cause(Kind.TCP, "connection refused")


def test_a_name_that_cannot_be_resolved_is_unreachable() -> None:
    """Asking a name server every second burdens no exchange, and its return is noticed at once."""
    for host in ("x..example", "nowhere.invalid"):
        ending = ending_of(f"ws://{host}/")
        assert (ending.kind, ending.is_unreachable) == (Kind.DNS, True)


@pytest.mark.parametrize(("silence_s", "limit_s"), [(0.3, 0.3), (0.6, 0.6)])
def test_an_address_that_is_silent_is_given_up_in_time(silence_s: float, limit_s: float) -> None:
    """Nothing else frees a thread that connects. Packets that are dropped burden no exchange."""
    with silent_port() as port:
        connection = connection_to(f"ws://127.0.0.1:{port}/", SILENCE_SECONDS=silence_s)
        connection.run()
    assert connection.ending == Cause(Kind.TCP, "no answer in time")
    assert Clock().steady_s() - connection.started_s >= limit_s


def test_a_handshake_that_hangs_is_no_unreachable_address() -> None:
    """Somebody is there, and may be overloaded."""
    with Exchange(Market(**SMALL)) as exchange:
        exchange.hang_handshakes()
        ending = ending_of(exchange.ws_url, SILENCE_SECONDS=0.3)
    assert (ending.kind, ending.is_unreachable) == (Kind.TIMEOUT, False)


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
    assert ending.kind in (Kind.PROTOCOL, Kind.REFUSED, Kind.LOST)
    assert str(ending).isprintable()
    assert not ending.is_unreachable


def test_what_answers_tls_with_something_else_is_named() -> None:
    """A plain HTTP server on that port, a captive portal."""
    with Listener(answers(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as peer:
        ending = ending_of(f"wss://127.0.0.1:{peer.port}/")
    assert (ending.kind, ending.is_unreachable) == (Kind.TLS, False)


def aborts(connection: Connection, ready: Callable[[], object]) -> None:
    """Run the connection in a thread; abort it once when it is ready, and see the thread end."""
    thread = threading.Thread(target=connection.run, name="connection")
    thread.start()
    eventually(ready, "the connection under way")
    connection.abort()
    thread.join(PATIENCE_S)
    assert connection.ending is not None


def test_a_connection_that_was_aborted_before_it_began_does_not_connect() -> None:
    """Its thread may start later than the decision to end it."""
    with Listener(answers(b"")) as peer:
        connection = connection_to(f"ws://127.0.0.1:{peer.port}/")
        connection.abort()
        connection.run()
        assert connection.ending is not None
        assert connection.lookup is None
        assert peer.accepted == 0


def test_an_abort_while_a_name_is_looked_up_ends_the_attempt_at_its_first_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lookup itself cannot be ended; but no handshake follows it, even one that would never end."""
    answered, lookup = threading.Event(), socket.getaddrinfo

    def slow(*args: Any, **options: Any) -> Any:
        answered.wait(PATIENCE_S)
        return lookup(*args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    with Listener(trickles(b"HTTP/1.1 101 Switching Protocols\r\nX-Long: ")) as peer:
        connection = connection_to(f"ws://127.0.0.1:{peer.port}/")
        thread = threading.Thread(target=connection.run, name="connection")
        thread.start()
        eventually(lambda: connection.lookup, "the lookup")
        connection.abort()
        answered.set()
        thread.join(PATIENCE_S)
        assert connection.ending is not None


def test_the_time_for_a_name_lookup_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server that takes longer than SILENCE_SECONDS delays the stream and does not prevent it."""
    lookup = socket.getaddrinfo

    def slow(*args: Any, **options: Any) -> Any:
        if args[0] != "exchange.example":
            return lookup(*args, **options)
        time.sleep(3)
        return lookup("127.0.0.1", *args[1:], **options)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    with Exchange(Market(**SMALL), tick_s=0.2) as exchange:  # noqa: SIM117
        with running(exchange.ws_url.replace("127.0.0.1", "exchange.example"), SILENCE_SECONDS=1) as stream:
            stream.wait_for_live()
            assert stream.pool.last_error is None


def test_a_handshake_that_trickles_can_be_aborted() -> None:
    """A header line that never ends has no timeout of its own."""
    with Listener(trickles(b"HTTP/1.1 101 Switching Protocols\r\nX-Long: ")) as peer:
        aborts(connection_to(f"ws://127.0.0.1:{peer.port}/"), lambda: peer.accepted)


def test_a_message_that_trickles_can_be_aborted() -> None:
    """In the middle of a frame it takes no notice of a request to close."""
    with Exchange(Market(**SMALL), tick_s=0.1) as exchange:
        exchange.trickle(FUTURE)
        aborts(connection_to(exchange.ws_url), lambda: exchange.live)


def test_aborting_a_connection_leaves_the_session_of_tls_to_its_reader() -> None:
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
