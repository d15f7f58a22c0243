"""The slow link in front of the simulated exchange."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Iterator

import pytest

from tests.exchange import Exchange, ThrottlingProxy
from tests.support.exchange_client import client, drain, next_tick, raw_client, small_exchange
from tests.support.waiting import PATIENCE_S, eventually

FAST_BYTES_PER_S = 1e9
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@pytest.fixture
def exchange() -> Iterator[Exchange]:
    """An exchange of few symbols that does nothing unless told."""
    with small_exchange() as exchange:
        yield exchange


@contextlib.contextmanager
def listening() -> Iterator[socket.socket]:
    """Listen on loopback with buffers that are small on this side too."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)
        server.settimeout(PATIENCE_S)
        yield server


@contextlib.contextmanager
def linked(server: socket.socket, bytes_per_s: float) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Connect through a proxy; yield the client's end and the server's."""
    with (
        ThrottlingProxy(server.getsockname()[1], bytes_per_s) as proxy,
        socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE_S) as near,
    ):
        far, _ = server.accept()
        with far:
            far.settimeout(PATIENCE_S)
            yield near, far


def receive(sock: socket.socket, size_bytes: int) -> bytes:
    """Read exactly so many bytes, or up to the FIN."""
    received = b""
    while len(received) < size_bytes and (data := sock.recv(size_bytes - len(received))):
        received += data
    return received


def send_until_full(sock: socket.socket, limit_bytes: int) -> int:
    """Send until that would block for the socket's timeout, or up to a limit; return how much was sent."""
    sent_bytes = 0
    with contextlib.suppress(TimeoutError):
        while sent_bytes < limit_bytes:
            sent_bytes += sock.send(b"x" * 4096)
    return sent_bytes


def test_data_arrives_at_the_rate_given() -> None:
    """A second's worth of data takes a second, and arrives unchanged."""
    sent = bytes(range(250)) * 160
    with listening() as server, linked(server, len(sent)) as (near, far):
        started_s = time.monotonic()
        far.sendall(sent)
        assert receive(near, len(sent)) == sent
        assert time.monotonic() - started_s > 0.7  # up to 0.2 s come at once, the last 0.05 s are not waited for


def test_what_the_client_sends_is_not_slowed() -> None:
    """Upstream there is no limit."""
    sent = b"x" * 100_000
    with listening() as server, linked(server, 10) as (near, far):
        near.sendall(sent)
        assert receive(far, len(sent)) == sent


def test_too_much_waits_at_the_sender() -> None:
    """The link takes little more than it can carry: the rest cannot be sent yet."""
    with listening() as server, linked(server, 1000) as (_, far):
        far.settimeout(0.3)
        assert send_until_full(far, limit_bytes=10_000_000) < 300_000


def test_rate_can_change() -> None:
    """A link that was too slow catches up when it is given more."""
    with (
        listening() as server,
        ThrottlingProxy(server.getsockname()[1], 1000) as proxy,
        socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE_S) as near,
    ):
        far, _ = server.accept()
        with far:
            far.settimeout(0.1)
            sent_bytes = send_until_full(far, limit_bytes=10_000_000)
            proxy.bytes_per_s = FAST_BYTES_PER_S
            assert len(receive(near, sent_bytes)) == sent_bytes


def test_stream_falls_behind() -> None:
    """On a link that carries half of the stream's data event times fall behind, directly they do not."""
    with small_exchange(tick_s=0.1) as exchange, contextlib.ExitStack() as stack:
        tick_bytes = sum(len(message.encode()) for message in exchange.market.messages(exchange.now_ms()))
        proxy = stack.enter_context(ThrottlingProxy(exchange.ws_port, tick_bytes / 0.1 / 2))
        slow = stack.enter_context(client(exchange, proxy.through(exchange.ws_url)))

        def behind_ms() -> int:
            event_time_ms: int = next_tick(slow)["BTCUSDT"]["E"]
            return exchange.now_ms() - event_time_ms

        eventually(lambda: behind_ms() > 1000, "a lag of 1 s")
        direct = stack.enter_context(client(exchange))
        assert next_tick(direct)["BTCUSDT"]["E"] > next_tick(slow)["BTCUSDT"]["E"] + 500


def test_fin_comes_behind_the_data() -> None:
    """What was sent before a FIN arrives, then the FIN; in both directions."""
    with listening() as server, linked(server, 40_000) as (near, far):
        far.sendall(b"x" * 20_000)
        far.shutdown(socket.SHUT_WR)
        assert drain(near) == b"x" * 20_000
        near.sendall(b"y")
        near.shutdown(socket.SHUT_WR)
        assert drain(far) == b"y"


def test_rst_is_passed_on(exchange: Exchange) -> None:
    """A reset by the exchange resets the client, and the other way round."""
    with ThrottlingProxy(exchange.ws_port, FAST_BYTES_PER_S) as proxy:
        with raw_client(exchange, port=proxy.port) as sock:
            exchange.wait_for_live()
            exchange.reset()
            with pytest.raises(ConnectionResetError):
                drain(sock)
        with raw_client(exchange, port=proxy.port) as sock:
            (record,) = exchange.wait_for_live()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        exchange.wait(record.client_gone.is_set)


def test_unreachable_target_resets(exchange: Exchange) -> None:
    """A client of a proxy whose target refuses connections is reset."""
    exchange.down(rest=False)
    with (
        ThrottlingProxy(exchange.ws_port, FAST_BYTES_PER_S) as proxy,
        pytest.raises(ConnectionResetError),
        raw_client(exchange, port=proxy.port, answered=False) as sock,
    ):
        drain(sock)


def test_end_of_the_proxy_resets(exchange: Exchange) -> None:
    """When the proxy ends, both ends of its connections are reset, amid the data too."""
    with contextlib.ExitStack() as stack:
        proxy = stack.enter_context(ThrottlingProxy(exchange.ws_port, 1000))
        with raw_client(exchange, port=proxy.port) as sock:
            (record,) = exchange.wait_for_live()
            exchange.send_huge(100_000)
            stack.close()
            with pytest.raises(ConnectionResetError):
                drain(sock)
            exchange.wait(lambda: not record.is_open)
