"""The HTTP server as a process: where it listens, how it stops, how many files and how much memory it takes."""

import contextlib
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import h11
import pytest

from binance_funding.server.http.server import HttpServer, Limits
from binance_funding.server.listener import listen, raise_file_limit
from tests.support.http_client import GET, HALF_A_REQUEST, HUGE, Client, by_path, echo, running
from tests.support.http_program import http_program, usage
from tests.support.programs import Server
from tests.support.waiting import PATIENCE_S, eventually

FOREVER_S = 1e6


# Addresses


def test_a_port_taken_is_an_os_error() -> None:
    """Raised as it is."""
    with running(echo) as server, pytest.raises(OSError, match="in use"):
        listen(*server.address)


def test_an_unknown_host_is_an_os_error() -> None:
    """Raised as it is."""
    with pytest.raises(OSError, match=r".+"):
        listen("no host has this name", 0)


@pytest.mark.parametrize(("host", "asked"), [("::1", "::1"), ("::", "::1"), ("::", "127.0.0.1")])
def test_ipv6_works(host: str, asked: str) -> None:
    """As for "::", it stands for every address, IPv4 ones included."""
    with running(echo, host=host) as server, Client((asked, server.address[1])) as client:
        assert server.address[0] == host
        assert client.get().status == 200


def test_a_name_with_addresses_of_both_kinds_is_listened_on_by_ipv4(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As localhost on Debian, whichever is named first. The log has the address, not the name."""
    stream = socket.SOCK_STREAM, socket.IPPROTO_TCP, ""
    found = [(socket.AF_INET6, *stream, ("::1", 0, 0, 0)), (socket.AF_INET, *stream, ("127.0.0.1", 0))]
    for order in (found, found[::-1]):
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, order=order, **__: order)
        with listen("localhost", 0) as listener:
            assert listener.getsockname()[0] == "127.0.0.1"
    monkeypatch.undo()
    with Server(tmp_path, API_HOST="localhost") as server:
        server.wait_for_line(rf" listening .*host=127\.0\.0\.1 port={server.port} ")
        assert server.get("/")[0] == 200


def test_an_address_can_be_used_again_at_once() -> None:
    """Even while connections of the one before are in TIME_WAIT."""
    with running(echo, limits=Limits(drain_s=0.1)) as server, Client(server.address) as client:
        client.get()
        server.stop()
        assert client.rest() == b""
    with running(echo, port=server.address[1]) as server, Client(server.address) as client:
        assert client.get().status == 200


# Stop


def test_stop_before_serve_and_twice_and_after() -> None:
    """serve() returns at once, and nothing is raised."""
    server = HttpServer(listen("127.0.0.1", 0), echo, max_connections=1)
    for _ in range(100_000):
        server.stop()
    server.serve()
    server.stop()
    with pytest.raises(ConnectionRefusedError):
        Client(server.address)


def test_stop_is_safe_in_a_signal_handler() -> None:
    """Even while the main thread serves: it returns and the process ends as it should, with a client idle."""
    with http_program(0, 10) as address, Client(address) as client:
        client.get()


def test_an_exception_in_cache_version_ends_the_server() -> None:
    """It is not lost: serve() raises it, with everything closed."""

    def cache_version() -> None:
        raise LookupError

    server = HttpServer(listen("127.0.0.1", 0), echo, max_connections=1, cache_version=cache_version)
    with Client(server.address):
        with pytest.raises(LookupError):
            server.serve()
        with pytest.raises(ConnectionRefusedError):
            Client(server.address)


def wait_until_nobody_is_accepted(server: HttpServer) -> None:
    """Wait until the server has seen that it is to stop."""

    def is_refused() -> bool:
        try:
            Client(server.address).sock.close()
        except ConnectionError as error:  # reset, where the socket was just being closed
            return isinstance(error, ConnectionRefusedError)
        return False

    eventually(is_refused, "nobody new is accepted")


def test_after_stop_what_was_asked_is_answered_and_nothing_else() -> None:
    """Answers under way arrive whole, the last one says that it closes; who connects then is refused."""
    with running(by_path, limits=Limits(drain_s=FOREVER_S)) as server, Client(server.address) as client:
        client.send(b"GET /huge HTTP/1.1\r\nHost: x\r\n\r\nGET /last HTTP/1.1\r\nHost: x\r\n\r\n")
        client.received += client.sock.recv(1000)
        server.stop()
        wait_until_nobody_is_accepted(server)
        assert client.reply().body == HUGE
        last = client.reply()
        assert (last.body, last.headers["connection"]) == (b"/last", "close")
        assert client.rest() == b""


def test_after_stop_a_client_that_was_just_answered_may_ask_once_more() -> None:
    """Its request may be on its way; the answer says that it is the last. Half a request gets 408 by then."""
    with (
        running(by_path, limits=Limits(drain_s=2)) as server,
        Client(server.address) as asking,
        Client(server.address) as silent,
        Client(server.address) as half,
    ):
        half.get("/first")
        half.send(HALF_A_REQUEST)
        silent.get("/first")
        asking.get("/first")
        server.stop()
        wait_until_nobody_is_accepted(server)
        reply = asking.get("/last")
        assert (reply.status, reply.body, reply.headers["connection"]) == (200, b"/last", "close")
        assert asking.rest() == silent.rest() == b""
        assert half.reply().status == 408


@pytest.mark.parametrize("limits", [Limits(drain_s=0.1), Limits(closing_s=0.1, drain_s=FOREVER_S)])
def test_stop_does_not_wait_for_a_client_that_does_not_go(limits: Limits) -> None:
    """Neither beyond drain_s for one that does not read, nor beyond closing_s for one that does not close."""
    server = HttpServer(listen("127.0.0.1", 0), by_path, max_connections=1, limits=limits)
    thread = threading.Thread(target=server.serve, name="http-server-under-test", daemon=True)
    thread.start()
    with Client(server.address) as client:
        if limits.drain_s == FOREVER_S:
            client.send(b"\0")
            assert client.reply().status == 400
        else:
            client.send(b"GET /huge HTTP/1.1\r\nHost: x\r\n\r\n")
            client.sock.recv(1000)
        server.stop()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def test_stop_under_load_leaves_no_request_unanswered() -> None:
    """Each of eight clients asking as fast as they can gets whole answers until one says that it is the last."""
    replies: list[int] = []
    faults: list[BaseException] = []

    def ask(address: tuple[str, int]) -> None:
        with Client(address) as client:
            closes = False
            while not closes:
                try:
                    client.send(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
                    reply = client.reply()
                except (OSError, h11.RemoteProtocolError) as fault:
                    faults.append(fault)
                    return
                replies.append(reply.status)
                closes = reply.closes

    with running(by_path) as server:
        threads = [threading.Thread(target=ask, args=(server.address,), name=f"client-{n}") for n in range(8)]
        for thread in threads:
            thread.start()
        eventually(lambda: len(replies) > 100, "all are being served")
        server.stop()
        for thread in threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
    assert set(replies) == {200}
    assert not faults


# Files and memory


def test_two_thousand_idle_connections_cost_little() -> None:
    """Less than 10 KB each, and all of them are still served."""
    assert raise_file_limit(2100) == 2100
    with http_program(0, 2100) as address, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(address))]
        before = usage(clients[0])
        clients += [stack.enter_context(Client(address)) for _ in range(2000)]
        assert usage(clients[-1]).memory_bytes - before.memory_bytes < 20_000_000
        for client in clients[::100]:
            assert client.get().status == 200


def test_a_big_answer_is_not_copied_for_each_client() -> None:
    """30 slow readers of a body of 8 MB, with different requests: far less than 240 MB."""
    with http_program(0, 1000) as address, contextlib.ExitStack() as stack:
        observer = stack.enter_context(Client(address))
        before = usage(observer)
        for number in range(30):
            slow = stack.enter_context(Client(address, receive_buffer=4096))
            slow.send(b"GET /huge HTTP/1.1\r\nHost: x\r\nA: %d\r\n\r\n" % number)
            slow.sock.recv(100)
        assert usage(observer).memory_bytes - before.memory_bytes < 60_000_000


def test_events_are_not_copied_for_each_subscriber_that_does_not_read() -> None:
    """300 of them, each with 270 KB unsent: far less than 81 MB."""
    with http_program(0, 1000) as address, contextlib.ExitStack() as stack:
        observer = stack.enter_context(Client(address))
        before = usage(observer)
        for _ in range(300):
            subscriber = stack.enter_context(Client(address, receive_buffer=4096))
            subscriber.send(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
            subscriber.sock.recv(100)
        assert usage(observer).memory_bytes - before.memory_bytes < 20_000_000


def test_out_of_files_the_connection_idle_longest_gives_way() -> None:
    """As if the server were full."""
    with http_program(40, 1000) as address, contextlib.ExitStack() as stack:
        clients = []
        for _ in range(100):
            clients.append(stack.enter_context(Client(address)))
            assert clients[-1].get().status == 200
        assert clients[0].rest() == b""
        assert clients[-2].get().status == 200


def test_out_of_files_and_all_being_answered_the_server_waits_and_does_not_spin() -> None:
    """New clients stay in the queue until a file is free, and meanwhile the loop sleeps."""
    with http_program(40, 1000) as address, contextlib.ExitStack() as stack:
        observer = stack.enter_context(Client(address))
        before = usage(observer)
        others = [stack.enter_context(Client(address, receive_buffer=4096)) for _ in range(60)]
        for client in others:
            client.send(b"GET /huge HTTP/1.1\r\nHost: x\r\n\r\n")
        assert observer.rest() == b""  # nobody else gives way
        time.sleep(1.2)  # that nothing happens in this time is what is tested
        for client in others[:40]:
            client.reset()
        with Client(address) as newcomer:
            newcomer.send(GET)
            assert int(newcomer.reply().body.split()[0]) - before.turns < 500


def test_raise_file_limit_makes_room_up_to_the_hard_limit() -> None:
    """It tells how many connections fit, and leaves a limit alone that is high enough."""
    script = (
        "import resource\n"
        "from binance_funding.server.listener import SPARE_FILES, raise_file_limit\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (300, 1000))\n"
        "print(raise_file_limit(50), resource.getrlimit(resource.RLIMIT_NOFILE)[0])\n"
        "print(raise_file_limit(500), resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SPARE_FILES)\n"
        "print(raise_file_limit(5000) + SPARE_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[0])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["50 300", "500 500", "1000 1000"]
