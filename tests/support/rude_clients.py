"""Clients that behave badly, in a process of their own: `python -m tests.support.rude_clients PORT`."""

import contextlib
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from tests.support.http_client import GET, HALF_A_REQUEST, Client
from tests.support.waiting import PATIENCE_S

CROWD = 40


def half_request(client: Client) -> None:
    """Ask for something, but not quite."""
    client.send(HALF_A_REQUEST)
    client.sock.shutdown(socket.SHUT_WR)


def reset_amid(client: Client) -> None:
    """Ask for a lot and hang up."""
    client.send(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n" * 10)
    client.reset()


def half_close(client: Client) -> None:
    """Ask, say that this was all, and read to the end."""
    client.send(GET)
    client.sock.shutdown(socket.SHUT_WR)
    client.rest()


def pipeline(client: Client) -> None:
    """Ask forty things at once and hang up after the first answers."""
    client.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % number for number in range(40)))
    client.sock.recv(1000)


def request_body(client: Client) -> None:
    """Send what nobody wants."""
    client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
    for _ in range(20):
        client.send(b"a" * 50_000)


def tls_hello(client: Client) -> None:
    """Speak another language."""
    client.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)))
    client.rest()


def slow_reader(client: Client) -> None:
    """Ask for a lot and take a little now and then."""
    client.send(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n" * 20)
    for _ in range(20):
        client.sock.recv(1000)
        select.select([], [], [], 0.01)


def byte_by_byte(client: Client) -> None:
    """Let the server wait for every byte."""
    for byte in HALF_A_REQUEST:
        client.send(bytes([byte]))


RUDE = (half_request, reset_amid, half_close, pipeline, request_body, tls_hello, slow_reader, byte_by_byte)


def be_rude(address: tuple[str, int], manner: Callable[[Client], None], stop: threading.Event) -> None:
    """Behave like this again and again; that the server hangs up is to be expected."""
    while not stop.is_set():
        with contextlib.suppress(ConnectionError), Client(address, receive_buffer=8192) as client:
            manner(client)
        stop.wait(0.005)


@contextlib.contextmanager
def rude_crowd(port: int) -> Iterator[None]:
    """Let forty clients, five of each kind, be rude to the server on this port; each must be able to go on doing so."""
    command = [sys.executable, "-m", "tests.support.rude_clients", str(port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "rude\n"
            yield
            process.stdin.close()
            assert process.wait(PATIENCE_S) == 0
        finally:
            process.kill()


def main(port: int) -> None:
    """Be rude until stdin ends. Raises what kept a client from going on."""
    os.nice(10)  # they are to be rude to the server, not to take the processor from it
    stop = threading.Event()
    with ThreadPoolExecutor(CROWD, "rude") as pool:
        crowd = [pool.submit(be_rude, ("127.0.0.1", port), RUDE[n % len(RUDE)], stop) for n in range(CROWD)]
        print("rude", flush=True)
        sys.stdin.read()
        stop.set()
    for client in crowd:
        client.result()


if __name__ == "__main__":
    main(int(sys.argv[1]))
