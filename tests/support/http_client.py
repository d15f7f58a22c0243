"""A client for tests of the HTTP server: raw bytes out, every answer judged by h11; and servers to ask."""

import contextlib
import json
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import h11

from binance_funding.server.http.message import Request, Response
from binance_funding.server.http.server import HttpServer
from binance_funding.server.listener import listen
from tests.support.waiting import PATIENCE_S, eventually

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
HALF_A_REQUEST = b"GET / HTTP/1.1\r\n"
BIG = bytes(range(256)) * 600  # 150 KB
HUGE = b"x" * (16 << 20)  # more than the kernel buffers for one connection


class Reply(NamedTuple):
    """One answer: header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes
    closes: bool

    @classmethod
    def read(cls, method: str, received: bytes, more: Callable[[], bytes]) -> tuple["Reply", bytes]:
        """Take one answer to a request of this method off what was received, and off what more brings (b"": the end).

        Returns what is left over too. Raises h11.RemoteProtocolError if the answer is not correct or not complete.
        """
        judge = h11.Connection(h11.CLIENT)
        judge.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
        judge.send(h11.EndOfMessage())
        judge.receive_data(received or more())
        response, body = None, b""
        while not isinstance(event := judge.next_event(), h11.EndOfMessage):
            if isinstance(event, h11.Response):
                response = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif event is h11.NEED_DATA:
                judge.receive_data(more())
        assert response is not None
        headers = {name.decode(): value.decode("latin-1") for name, value in response.headers}
        if len(headers) != len(response.headers):
            raise h11.RemoteProtocolError(f"a header was sent twice: {response.headers!r}")
        closes = judge.their_state is not h11.DONE
        return cls(response.status_code, headers, body, closes), judge.trailing_data[0]


class Client:
    """One connection. Everything waits for PATIENCE_S at most and then raises TimeoutError."""

    def __init__(self, address: tuple[str, int], *, receive_buffer: int | None = None) -> None:
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.sock = socket.socket(family)
        self.sock.settimeout(PATIENCE_S)
        if receive_buffer is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.connect(address)
        self.received = b""

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        """Send all of data."""
        self.sock.sendall(data)

    def get(self, target: str = "/", headers: str = "", *, method: str = "GET") -> Reply:
        """Ask for target; headers are whole lines."""
        self.send(f"{method} {target} HTTP/1.1\r\nHost: test\r\n{headers}\r\n".encode())
        return self.reply(method)

    def reply(self, method: str = "GET") -> Reply:
        """Wait for the next answer, to a request of this method."""
        reply, self.received = Reply.read(method, self.received, lambda: self.sock.recv(65536))
        return reply

    def rest(self) -> bytes:
        """Everything up to the end of the connection. Raises ConnectionResetError if it was reset."""
        while data := self.sock.recv(65536):
            self.received += data
        rest, self.received = self.received, b""
        return rest

    def reset(self) -> None:
        """Close at once, with a reset."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


def echo(request: Request) -> Response:
    """Answer with what was asked."""
    body = json.dumps(request._replace(headers=dict(request.headers)))
    return Response(200, body.encode(), (("Content-Type", "application/json"), ("X-Method", request.method)))


def by_path(request: Request) -> Response:
    """Answer with a body as the path says."""
    bodies = {"/big": BIG, "/huge": HUGE}
    return Response(200, bodies.get(request.path, request.path.encode()))


def exchange(server: HttpServer, payload: bytes) -> list[Reply]:
    """Send payload over a connection of its own and return every answer until the server closes, without a reset."""
    with Client(server.address) as client:
        client.send(payload)
        client.sock.shutdown(socket.SHUT_WR)
        return judged(payload, client.rest())


def assert_refused(client: Client, payload: bytes, status: int) -> Reply:
    """Expect one answer with this status and the end of the connection, while the client still keeps its side open."""
    client.send(payload)
    reply = client.reply("HEAD" if payload.startswith(b"HEAD ") else "GET")
    assert reply.status == status
    assert reply.closes
    assert client.rest() == b""
    return reply


def assert_gone(client: Client) -> None:
    """Expect that the server has closed the connection altogether, or soon does: what is sent is not taken."""

    def send_fails() -> bool:
        try:
            client.send(b"a" * 1000)
        except ConnectionError:
            return True
        return False

    eventually(send_fails, "the connection is closed for good")


@contextlib.contextmanager
def running(
    handler: Callable[[Request], Response], *, host: str = "127.0.0.1", port: int = 0, **options: Any
) -> Iterator[HttpServer]:
    """A server in a thread of its own; whatever ends serve() early is raised here."""
    server = HttpServer(listen(host, port), handler, **{"max_connections": 1000, **options})
    failures: list[BaseException] = []

    def serve() -> None:
        try:
            server.serve()
        except BaseException as failure:
            failures.append(failure)
            raise

    thread = threading.Thread(target=serve, name="http-server-under-test", daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join(PATIENCE_S)
    assert not thread.is_alive(), "serve() did not return after stop()"
    assert not failures, failures


def judged(payload: bytes, received: bytes) -> list[Reply]:
    """All answers a server gave to payload before it closed, judged one by one.

    A handler is expected to name the method it saw in X-Method, as only that says how its answer is framed.
    """
    replies: list[Reply] = []
    while received:
        head, _, rest = received.partition(b"\r\n\r\n")
        seen = re.search(rb"\r\nX-Method: ([A-Z]+)", head)
        bodiless = not rest and b"HEAD " in payload  # how a HEAD that never reached the handler is refused
        method = seen[1].decode() if seen else "HEAD" if bodiless else "GET"
        reply, received = Reply.read(method, received, bytes)
        replies.append(reply)
        if reply.closes and received:
            raise h11.RemoteProtocolError(f"sent after the last answer: {received!r}")
    return replies
