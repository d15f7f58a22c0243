"""The HTTP server over real sockets: what one connection may expect of it. h11 judges its answers."""

import json
import socket
import threading
from collections.abc import Iterator

import pytest

from binance_funding.server.http.message import Request, Response
from binance_funding.server.http.server import HttpServer
from tests.support.http_client import BIG, GET, Client, Reply, assert_refused, by_path, echo, exchange, running
from tests.support.waiting import PATIENCE_S

BAD = b"GET / HTTP/1.1\r\n\r\n"


@pytest.fixture
def server() -> Iterator[HttpServer]:
    """A server that echoes."""
    with running(echo) as server:
        yield server


@pytest.fixture
def client(server: HttpServer) -> Iterator[Client]:
    """A connection to it."""
    with Client(server.address) as client:
        yield client


def test_a_request_reaches_the_handler_decoded(client: Client) -> None:
    """And its answer has what every answer needs."""
    reply = client.get("/funding/%E5%B8%81?a=%41", "Accept: a\r\n")
    assert reply.status == 200
    assert json.loads(reply.body) == ["GET", "/funding/币", "a=%41", {"host": "test", "accept": "a"}]
    assert reply.headers["date"].endswith(" GMT")
    assert reply.headers["access-control-allow-origin"] == "*"
    assert "ETag" in reply.headers["access-control-expose-headers"]
    assert "connection" not in reply.headers


@pytest.mark.parametrize(
    ("payload", "status"),
    [
        (b"GET /# HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /\r\n\r\n", 400),
        (b"\r\n\r\nHost: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA : b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00", 400),
        (b"PRI * HTTP/2.0\r\n", 505),
        (b"GET /" + b"a" * 8000, 414),
        (b"GET / HTTP/1.1\r\nA: " + b"a" * 8192, 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", 413),
        (b"HEAD / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", 413),
        (b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", 405),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: Chunked\r\n\r\n0\r\n\r\n", 405),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nContent-Length: 5\r\n\r\n", 400),
    ],
)
def test_a_bad_request_is_refused_at_once_and_closed(client: Client, payload: bytes, status: int) -> None:
    """With a small JSON object, readable for any origin; also where the request is not complete yet."""
    reply = assert_refused(client, payload, status)
    assert payload.startswith(b"HEAD ") or list(json.loads(reply.body)) == ["error"]
    assert reply.headers["content-type"] == "application/json; charset=utf-8"
    assert reply.headers["access-control-allow-origin"] == "*"


def test_one_empty_line_before_a_request_is_skipped(server: HttpServer) -> None:
    """Before each request (RFC 9112 section 2.2); a second one is refused."""
    request = b"\r\n" + GET
    assert [reply.status for reply in exchange(server, request * 2 + b"\r\n" + request)] == [200, 200, 400]


@pytest.mark.parametrize("path", ["/small", "/big"])
def test_head_has_the_headers_of_get_and_no_body(path: str) -> None:
    """Content-Length included; and the connection goes on."""
    with running(by_path) as server, Client(server.address) as client:
        get, head = client.get(path), client.get(path, method="HEAD")
        assert head.status == 200
        assert head.body == b""
        get.headers.pop("date")
        head.headers.pop("date")
        assert head.headers == get.headers
        assert client.get("/after").body == b"/after"


@pytest.mark.parametrize("status", [204, 304])
def test_the_connection_goes_on_after_an_answer_without_content(status: int) -> None:
    """Cached or not."""
    with running(lambda _: Response(status, b"body", (("ETag", '"x"'),))) as server, Client(server.address) as client:
        for _ in range(2):
            reply = client.get()
            assert (reply.status, reply.body, reply.headers["etag"]) == (status, b"", '"x"')


@pytest.mark.parametrize("target", ["*", "/anything", "http://x"])
def test_options_tells_a_browser_what_it_may_ask(client: Client, target: str) -> None:
    """Without the handler, 204 with Allow and all that a preflight request wants to know."""
    headers = "Origin: http://x\r\nAccess-Control-Request-Headers: if-none-match\r\n"
    reply = client.get(target, headers, method="OPTIONS")
    assert reply.status == 204
    assert "x-method" not in reply.headers
    assert reply.headers["allow"] == reply.headers["access-control-allow-methods"] == "GET, HEAD, OPTIONS"
    assert reply.headers["access-control-allow-headers"] == "*"
    assert reply.headers["access-control-allow-origin"] == "*"
    assert int(reply.headers["access-control-max-age"]) > 0
    assert client.get().status == 200


@pytest.mark.parametrize("request_line", ["POST /", "get /", "BREW /#", "CONNECT a:80", "TRACE *"])
def test_other_methods_get_405(client: Client, request_line: str) -> None:
    """With Allow, whatever the target; the connection goes on, as nothing about the request was in doubt."""
    client.send(f"{request_line} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    reply = client.reply()
    assert (reply.status, reply.headers["allow"]) == (405, "GET, HEAD, OPTIONS")
    assert "error" in json.loads(reply.body)
    assert client.get().status == 200


def test_http_1_1_stays_open(client: Client) -> None:
    """Many requests over one connection, no word about it in the answers."""
    for number in range(50):
        reply = client.get(f"/{number}")
        assert json.loads(reply.body)[1] == f"/{number}"
        assert not reply.closes


def test_close_is_honoured_and_said(server: HttpServer) -> None:
    """The answer says so, cached or not, and what was pipelined behind it is not answered."""
    request = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    for payload in (request, request, request * 2):
        assert [reply.headers["connection"] for reply in exchange(server, payload)] == ["close"]
        with Client(server.address) as client:
            client.send(payload)
            assert client.reply().closes
            assert client.rest() == b""


def test_http_1_0_closes_unless_asked_to_keep_alive(client: Client) -> None:
    """Asked, the answer says keep-alive; else it says close and does."""
    client.send(b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n" * 2)
    for _ in range(2):
        assert client.reply().headers["connection"] == "keep-alive"
    client.send(b"GET / HTTP/1.0\r\n\r\n")
    assert client.reply().headers["connection"] == "close"
    assert client.rest() == b""


@pytest.mark.parametrize(("version", "statuses"), [("1.2", [200, 200]), ("1.9", [200, 200]), ("2.0", [505])])
def test_later_minor_versions_are_kept_and_other_major_ones_closed(
    server: HttpServer, version: str, statuses: list[int]
) -> None:
    """HTTP/1.2 is spoken to in HTTP/1.1 (RFC 9110 section 2.5)."""
    replies = exchange(server, f"GET / HTTP/{version}\r\nHost: x\r\n\r\n".encode() * 2)
    assert [reply.status for reply in replies] == statuses


def test_a_thousand_pipelined_requests_are_answered_in_order(client: Client) -> None:
    """Sent at once, mixed with HEAD; also when they are asked again and cached."""
    methods = ["HEAD" if number % 7 == 0 else "GET" for number in range(1000)]
    requests = [f"{m} /{n} HTTP/1.1\r\nHost: x\r\n\r\n".encode() for n, m in enumerate(methods)]
    for _ in range(2):
        client.send(b"".join(requests))
        for number, method in enumerate(methods):
            reply = client.reply(method)
            assert reply.status == 200
            assert method == "HEAD" or json.loads(reply.body)[1] == f"/{number}"


def test_pipelined_requests_before_a_bad_one_are_answered(server: HttpServer) -> None:
    """Then comes the refusal, and nothing behind it."""
    assert [reply.status for reply in exchange(server, GET + GET + BAD + GET)] == [200, 200, 400]


def test_a_request_may_come_byte_by_byte(client: Client) -> None:
    """Two of them, to see that nothing is lost between."""
    client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for path in ("/a", "/b"):
        for byte in f"\r\nGET {path} HTTP/1.1\r\nHost: x\r\nA: b\r\n\r\n".encode():
            client.send(bytes([byte]))
        assert json.loads(client.reply().body)[1] == path


def test_an_answer_does_not_wait_for_the_rest_of_the_next_request(server: HttpServer, client: Client) -> None:
    """However the bytes of two requests are cut."""
    with Client(server.address) as other:
        client.send(b"GET /a HT")
        other.get()
        client.send(b"TP/1.1\r\nHost: x\r\n\r\nGET /b HT")
        assert json.loads(client.reply().body)[1] == "/a"
        client.send(b"TP/1.1\r\nHost: x\r\n\r\n")
        assert json.loads(client.reply().body)[1] == "/b"


def test_a_client_that_has_sent_all_still_gets_its_answers(server: HttpServer) -> None:
    """Half-closed is not closed: all of 200 requests are answered, more than are due in one turn."""
    assert len(exchange(server, GET * 200)) == 200


def test_a_slow_reader_gets_all_of_a_big_answer() -> None:
    """150 KB into a small receive buffer, a little at a time, while others are served."""
    with (
        running(by_path) as server,
        Client(server.address, receive_buffer=4096) as slow,
        Client(server.address) as other,
    ):

        def a_little_more() -> bytes:
            assert other.get("/x").body == b"/x"
            return slow.sock.recv(3000)

        slow.send(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n" * 3)
        for _ in range(3):
            reply, slow.received = Reply.read("GET", slow.received, a_little_more)
            assert reply.body == BIG


def test_a_client_that_does_not_read_is_not_read_from() -> None:
    """Of 500 pipelined questions only so many are asked of the handler as the buffers hold; the rest when it reads."""
    asked: list[str] = []

    def handler(request: Request) -> Response:
        asked.append(request.path)
        return Response(200, BIG if request.path.startswith("/big") else b"")

    with (
        running(handler) as server,
        Client(server.address, receive_buffer=4096) as lazy,
        Client(server.address) as other,
    ):
        lazy.send(b"".join(b"GET /big%d HTTP/1.1\r\nHost: x\r\n\r\n" % number for number in range(500)))
        for number in range(50):
            other.get(f"/{number}")
        assert sum(path.startswith("/big") for path in asked) < 100
        lazy.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        for _ in range(500):
            assert lazy.reply().body == BIG
    assert [path for path in asked if path.startswith("/big")] == [f"/big{number}" for number in range(500)]


def test_many_requests_of_one_client_do_not_hold_up_another() -> None:
    """In each turn every one gets at most 64 answers, so one with a single question does not wait for a thousand."""
    asked: list[str] = []
    gate = threading.Event()

    def handler(request: Request) -> Response:
        if request.path == "/gate":
            gate.wait(PATIENCE_S)
        asked.append(request.path)
        return Response(200, b"")

    with (
        running(handler) as server,
        Client(server.address) as holder,
        Client(server.address) as greedy,
        Client(server.address) as modest,
    ):
        modest.get("/known")
        greedy.get("/known")
        holder.send(b"GET /gate HTTP/1.1\r\nHost: x\r\n\r\n")
        greedy.send(b"".join(b"GET /greedy%d HTTP/1.1\r\nHost: x\r\n\r\n" % number for number in range(1000)))
        modest.send(b"GET /modest HTTP/1.1\r\nHost: x\r\n\r\n")
        gate.set()
        for _ in range(1000):
            greedy.reply()
        modest.reply()
    assert asked.index("/modest") < asked.index("/greedy128")
