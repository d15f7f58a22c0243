"""The HTTP server over real sockets: every wait has an end, every number a limit, and who waits longest gives way."""

import contextlib
import ctypes
import itertools
import json
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from binance_funding.server.http.message import Request, Response
from binance_funding.server.http.server import Limits
from tests.support.clock import SimulatedClock
from tests.support.http_client import GET, HALF_A_REQUEST, Client, assert_gone, assert_refused, by_path, echo, running
from tests.support.waiting import PATIENCE_S, eventually

FOREVER_S = 1e6
_SO_ATTACH_FILTER = 26  # asm-generic/socket.h
_DROP_ALL = struct.pack("HBBI", 6, 0, 0, 0)  # BPF_RET | BPF_K: man bpf(2)


def test_an_idle_connection_is_closed_silently() -> None:
    """After idle_s, and not before; whether it has asked something or nothing yet."""
    with running(echo, limits=Limits(idle_s=0.3)) as server:
        for asks in (False, True):
            with Client(server.address) as client:
                if asks:
                    client.get()
                before_s = time.monotonic()
                assert client.rest() == b""
                assert time.monotonic() - before_s > 0.25


def test_a_connection_is_idle_since_its_last_answer() -> None:
    """Each answer gives it another idle_s."""
    host = SimulatedClock()
    with (
        running(echo, steady_s=host.clock.steady_s, limits=Limits(idle_s=30)) as server,
        Client(server.address) as client,
        Client(server.address) as other,
    ):
        for _ in range(5):
            host.advance(20)
            assert client.get().status == 200
        host.advance(31)
        with Client(server.address) as newcomer:
            assert newcomer.get().status == 200  # that wakes the server, whose clock is not the host's
        assert client.rest() == other.rest() == b""


def test_half_a_request_gets_408() -> None:
    """After request_s, counted from its first byte, however many follow."""
    with running(echo, limits=Limits(request_s=0.3)) as server, Client(server.address) as client:
        client.get()
        client.send(b"GET / HTTP/1.1\r\nA: ")

        def is_answered() -> bool:
            client.send(b"a")
            return bool(select.select([client.sock], [], [], 0)[0])

        eventually(is_answered, "half a request is answered")
        reply = client.reply()
        assert (reply.status, reply.closes) == (408, True)
        assert client.rest() == b""


def test_the_time_of_a_pipelined_request_begins_with_its_own_first_byte() -> None:
    """Not with that of the request before it."""
    host = SimulatedClock()
    with (
        running(echo, steady_s=host.clock.steady_s, limits=Limits(request_s=10)) as server,
        Client(server.address) as client,
        Client(server.address) as other,
    ):
        client.send(HALF_A_REQUEST)
        other.get()
        host.advance(9)
        client.send(b"Host: x\r\n\r\n" + HALF_A_REQUEST)
        assert client.reply().status == 200
        other.get()
        host.advance(9)
        client.send(b"Host: x\r\n\r\n")
        assert client.reply().status == 200


def test_a_client_that_does_not_take_its_answer_is_reset() -> None:
    """After write_s, even if it takes a little now and then."""
    limits = Limits(write_s=0.5)
    with running(by_path, limits=limits) as server, Client(server.address, receive_buffer=4096) as client:
        client.send(b"GET /huge HTTP/1.1\r\nHost: x\r\n\r\n")
        poll = select.poll()
        poll.register(client.sock, 0)

        def is_reset() -> bool:
            return bool(poll.poll(0)) or not client.sock.recv(100)

        eventually(is_reset, "a slow reader is reset")
        with pytest.raises(ConnectionResetError):
            client.rest()


def test_a_subscriber_whose_host_has_vanished_is_missed() -> None:
    """Nothing comes from it, no acknowledgement either, while the kernel has room for all that is sent to it."""
    limits = Limits(write_s=0.5)
    with (
        running(
            lambda _: Response(200, b"", events=itertools.repeat([b"."])), limits=limits, max_connections=2
        ) as server,
        Client(server.address) as client,
    ):

        def is_place_free() -> bool:
            with Client(server.address) as other:
                other.send(GET)
                return other.sock.recv(1000).startswith(b"HTTP/1.1 200 ")

        client.send(GET)
        client.sock.recv(1000)
        time.sleep(1)
        assert not is_place_free()
        program = ctypes.create_string_buffer(_DROP_ALL)
        drop_all = struct.pack("HL", 1, ctypes.addressof(program))
        client.sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, drop_all)
        eventually(is_place_free, "it is no subscriber any more")


def test_a_client_that_vanishes_ends_only_its_own_connection(caplog: pytest.LogCaptureFixture) -> None:
    """Reset in the middle of a request or of an answer: nothing is logged, others are served."""
    with running(by_path) as server:
        for payload in (b"GET / HTT", b"GET /huge HTTP/1.1\r\nHost: x\r\n\r\n", b"\0"):
            with Client(server.address) as client:
                client.send(payload)
                if payload.startswith(b"GET /huge"):
                    client.sock.recv(1000)
                client.reset()
        with Client(server.address) as client:
            assert client.get("/x").body == b"/x"
    assert not caplog.records


def test_a_refused_client_can_read_the_answer_while_it_sends_on() -> None:
    """What it still sends is read and dropped, so that no reset destroys the answer on its way."""
    with running(echo) as server, Client(server.address) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 200000\r\n\r\n" + b"a" * 100_000)
        client.send(b"a" * 100_000)
        assert client.reply().status == 405
        assert client.rest() == b""


def test_a_refused_client_is_not_read_for_ever() -> None:
    """Beyond closing_s the connection is closed for good."""
    with running(echo, limits=Limits(closing_s=0.1)) as server, Client(server.address) as client:
        assert_refused(client, b"\0", 400)
        assert_gone(client)


def flood(client: Client) -> None:
    """Send without a pause, for a limited time."""
    end_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < end_s:
        client.send(b"\0" * 1000)


def test_a_client_that_never_stops_sending_delays_nobody_else() -> None:
    """A refused client is closed after closing_s, and another subscriber still gets its events."""

    def handler(_: Request) -> Response:
        return Response(200, b"", events=itertools.repeat([b"."]))

    limits = Limits(closing_s=0.2)
    with running(handler, limits=limits) as server, Client(server.address) as chatty, Client(server.address) as other:
        for client in (chatty, other):
            client.send(GET)
            client.received += client.sock.recv(1000)

        def other_gets_events() -> bool:
            chatty.send(b"a" * 100)
            chatty.sock.recv(1000)
            other.received += other.sock.recv(1000)
            return other.received.count(b"1\r\n.\r\n") > 20

        eventually(other_gets_events, "twenty events have come")
        with Client(server.address) as refused, pytest.raises(ConnectionError):
            flood(refused)


def test_closing_connections_are_bounded() -> None:
    """Where too many clients do not close, the one refused first is closed for good."""
    limits = Limits(closing_connections=2, closing_s=FOREVER_S)
    with running(echo, limits=limits) as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(server.address)) for _ in range(3)]
        for client in clients:
            assert_refused(client, b"\0", 400)
        assert_gone(clients[0])
        for client in clients[1:]:
            for _ in range(3):
                client.send(b"a")


def test_when_full_the_connection_that_has_waited_longest_gives_way() -> None:
    """Since its last answer, or since the first byte of its request."""
    with running(echo, max_connections=4) as server, contextlib.ExitStack() as stack:
        half, first, second, third = (stack.enter_context(Client(server.address)) for _ in range(4))
        half.get()
        half.send(HALF_A_REQUEST)
        for client in (first, second, third, first):
            assert client.get().status == 200
        newcomers = []
        for displaced in (half, second):
            newcomers.append(stack.enter_context(Client(server.address)))
            assert newcomers[-1].get().status == 200
            assert displaced.rest() == b""
        for client in (first, third, *newcomers):
            assert client.get().status == 200


def test_when_full_and_nobody_idle_the_oldest_incomplete_request_gives_way() -> None:
    """Whose first byte came first, or who was accepted first and has asked nothing; the others are still answered."""
    with running(echo, max_connections=3) as server, contextlib.ExitStack() as stack:
        silent, first, second = (stack.enter_context(Client(server.address)) for _ in range(3))
        for client in (first, second):
            client.get()  # they come one after the other
            client.send(HALF_A_REQUEST)
        newcomers = []
        for displaced in (silent, first):
            newcomers.append(stack.enter_context(Client(server.address)))
            newcomers[-1].send(HALF_A_REQUEST)
            assert displaced.rest() == b""
        for client in (second, *newcomers):
            client.send(b"Host: x\r\n\r\n")
            assert client.reply().status == 200


def half_request(address: tuple[str, int]) -> Client:
    """Return a client that has begun to ask, and does not wait for anything."""
    client = Client(address)
    client.sock.setblocking(False)
    client.send(HALF_A_REQUEST[:1])
    return client


def has_ended(client: Client) -> bool:
    """Tell whether the server has hung up, or said that it is about to."""
    try:
        return client.sock.recv(1) is not None
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def renew_half_requests(address: tuple[str, int], clients: int, stop: threading.Event) -> int:
    """Keep so many half requests going until stop; return how many were renewed."""
    renewed = 0
    crowd = [half_request(address) for _ in range(clients)]
    while not stop.is_set():
        for number, client in enumerate(crowd):
            if has_ended(client):
                client.sock.close()
                crowd[number] = half_request(address)
                renewed += 1
    for client in crowd:
        client.sock.close()
    return renewed


def test_a_crowd_of_half_requests_keeps_nobody_out() -> None:
    """More of them than there is room for, renewed as soon as they are displaced, beside one who asks."""
    stop = threading.Event()
    with running(echo, max_connections=500) as server, ThreadPoolExecutor(1, "rude-crowd") as pool:
        rude = pool.submit(renew_half_requests, server.address, 550, stop)
        try:
            end_s = time.monotonic() + 2
            while time.monotonic() < end_s:
                with Client(server.address) as polite:
                    assert polite.get().status == 200
        finally:
            stop.set()
        assert rude.result() > 500


def busy_client(address: tuple[str, int]) -> Client:
    """Return a client that takes but a little of a huge answer."""
    client = Client(address, receive_buffer=4096)
    client.send(b"GET /huge HTTP/1.1\r\nHost: x\r\n\r\n")
    client.received += client.sock.recv(100)
    return client


def test_when_all_are_being_answered_a_new_client_gets_503_at_once(caplog: pytest.LogCaptureFixture) -> None:
    """Before it has asked anything, with Retry-After; said once, and once more when there is room again."""
    caplog.set_level("INFO")
    limits = Limits(stalled_s=FOREVER_S)
    with running(by_path, max_connections=2, limits=limits) as server, contextlib.ExitStack() as stack:
        busy = [stack.enter_context(busy_client(server.address)) for _ in range(2)]
        for number in range(3):
            with Client(server.address) as newcomer:
                if number:
                    newcomer.send(GET)
                reply = newcomer.reply()
                assert (reply.status, reply.headers["retry-after"], reply.closes) == (503, "1", True)
                assert "error" in json.loads(reply.body)
                assert newcomer.rest() == b""
        for client in busy:
            client.reset()

        def is_served() -> bool:
            with Client(server.address) as newcomer:
                return newcomer.get().status == 200

        eventually(is_served, "there is room again")
    events = [record.getMessage().partition("=")[0] for record in caplog.records]
    assert events == ["full connections", "accepting again after_s"]


def test_when_full_a_client_that_takes_nothing_gives_way() -> None:
    """After stalled_s, and not before; a client that takes its answer slowly stays."""
    host = SimulatedClock()
    with (
        running(by_path, max_connections=2, steady_s=host.clock.steady_s) as server,
        busy_client(server.address) as stalled,
        busy_client(server.address) as slow,
    ):
        host.advance(1.5)
        with Client(server.address) as newcomer:
            assert newcomer.reply().status == 503
        for _ in range(100):  # more than the kernel buffers, so that the server sees it
            slow.received += slow.sock.recv(1 << 20)
        host.advance(1.0)

        def is_served() -> bool:
            slow.received += slow.sock.recv(1 << 16)
            with Client(server.address) as newcomer:
                newcomer.send(GET)
                return newcomer.reply().status == 200

        eventually(is_served, "a newcomer gets the place")
        with pytest.raises(ConnectionResetError):
            stalled.rest()
        assert slow.reply().status == 200


def failing_events(fault: str) -> Iterator[list[bytes]]:
    """Yield one event, and fail."""
    yield [b"first"]
    if fault == "bug":
        raise KeyError(fault)
    if fault == "file":
        raise OSError(fault)


@pytest.mark.parametrize("fault", ["bug", "file", "end"])
def test_a_fault_in_the_events_of_one_subscriber_ends_only_this_one(
    fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged once with its traceback; another subscriber still gets its events, and requests are answered."""

    def handler(request: Request) -> Response:
        events = failing_events(fault) if request.path == "/faulty" else itertools.repeat([b"."])
        return Response(200, b"", events=None if request.path == "/" else events)

    with running(handler) as server, Client(server.address) as other, Client(server.address) as subscriber:
        subscriber.send(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
        for _ in range(3):
            with Client(server.address) as faulty:
                faulty.send(b"GET /faulty HTTP/1.1\r\nHost: x\r\n\r\n")
                assert faulty.rest().endswith(b"\r\n\r\n5\r\nfirst\r\n")
        assert other.get().status == 200
        while b"." * 5 not in subscriber.received.replace(b"1\r\n.\r\n", b"."):
            subscriber.received += subscriber.sock.recv(1000)
    (record,) = caplog.records
    assert record.exc_info
    assert record.getMessage().startswith("connection failed ")


def test_an_event_of_many_buffers_arrives_whole() -> None:
    """One system call takes 1,024 buffers at most."""
    sent = [b"%d," % number for number in range(5000)]
    with (
        running(lambda _: Response(200, b"", events=itertools.chain([sent], itertools.repeat([])))) as server,
        Client(server.address, receive_buffer=4096) as client,
    ):
        client.send(b"GET / HTTP/1.0\r\n\r\n")
        while not client.received.endswith(b"\r\n\r\n" + b"".join(sent)):
            client.received += client.sock.recv(1000)


def test_an_empty_line_after_a_request_is_not_the_beginning_of_another() -> None:
    """The connection is idle, and gets no 408; a request that follows later is answered."""
    limits = Limits(request_s=0.1)
    with running(echo, limits=limits) as server, Client(server.address) as client:
        client.send(GET + b"\r\n")
        assert client.reply().status == 200
        client.send(GET)
        assert client.reply().status == 200
        client.send(b"\r\n")
        time.sleep(0.5)  # that nothing happens in this time is what is tested
        client.send(GET)
        assert client.reply().status == 200


def wakeups(calls: list[None]) -> Callable[[], None]:
    """Return a cache_version, called after each wake-up, that counts its calls."""
    return lambda: calls.append(None)


def test_the_loop_sleeps_when_nobody_is_there() -> None:
    """No time limit wakes it without a connection; with one it sleeps until that one's time is over."""
    calls: list[None] = []
    with running(echo, cache_version=wakeups(calls), limits=Limits(idle_s=0.05)) as server:
        with Client(server.address) as client:
            client.get()
            assert client.rest() == b""
        asleep = len(calls)
        time.sleep(0.5)  # that nothing happens in this time is what is tested
        assert len(calls) == asleep < 10


def test_the_watchdog_is_told_while_nobody_asks() -> None:
    """Without a single request or connection, on_alive is called again and again."""
    calls = threading.Semaphore(0)
    with running(echo, on_alive=calls.release, alive_every_s=0.05):
        for _ in range(5):
            assert calls.acquire(timeout=PATIENCE_S)
