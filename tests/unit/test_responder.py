"""From the bytes of requests to the bytes of answers: cached, in order, bounded. No sockets."""

import logging
import math
import tracemalloc

import pytest

from binance_funding.log import EventLogger, LogThrottle
from binance_funding.server.http.connections import Conversation
from binance_funding.server.http.limits import Limits
from binance_funding.server.http.message import Request, Response, error_response
from binance_funding.server.http.meter import Meter
from binance_funding.server.http.responder import Responder
from tests.support.clock import SimulatedClock

LATER_S = 11.0  # when the throttle logs again what goes on


class Desk:
    """A responder whose clocks and version stand still until moved, and whose handler counts."""

    def __init__(self, limits: Limits = Limits(), costs_s: float = 0.0) -> None:  # noqa: B008 - frozen
        self.time = SimulatedClock()
        self.version = 0
        self.asked: list[str] = []
        self.response: Response | None = None
        self._costs_s = costs_s
        self.responder = Responder(
            self.handler,
            lambda: self.version,
            max_subscribers=1,
            limits=limits,
            throttle=LogThrottle(EventLogger("test"), lambda: self.time.steady_s, first_wait_s=10.0),
            meter=Meter(),
            steady_s=lambda: self.time.steady_s,
            wall_s=lambda: self.time.wall_s,
        )

    def handler(self, request: Request) -> Response:
        """Answer with how often it was asked; with a big body for /big, with events for /events; fail for others."""
        self.asked.append(request.path)
        self.time.advance(self._costs_s)
        if self.response is not None:
            return self.response
        if request.path == "/events":
            return Response(200, b"", (), iter([[b"first ", b"event"], [], [b"x" * 16]]))
        if request.path.startswith("/fault"):
            raise RuntimeError("never shown to a client")
        return Response(200, b"x" * 100_000 if request.path == "/big" else b"answer %d" % len(self.asked))

    def answers(self, received: bytes, until_s: float = math.inf) -> Conversation:
        """Answer received bytes, as after a wake-up."""
        client = Conversation(received)
        self.responder.refresh()
        self.responder.answer(client, until_s)
        return client

    def body(self, received: bytes) -> bytes:
        """Return the body of the one answer to this."""
        client = self.answers(received)
        assert client.unanswered == b""
        return b"".join(client.unsent).partition(b"\r\n\r\n")[2]


def heads(client: Conversation) -> list[bytes]:
    """Return what is to be sent, each buffer as bytes."""
    return [bytes(buffer) for buffer in client.unsent]


def request(path: str = "/", headers: str = "", method: str = "GET") -> bytes:
    """Return a request; headers are whole lines."""
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode()


def test_an_answer_is_cached_while_the_version_is_equal() -> None:
    """For requests of exactly the same bytes; another version asks the handler again."""
    desk = Desk()
    assert [desk.body(request()) for _ in range(3)] == [b"answer 1"] * 3
    assert desk.body(request(headers="A: b\r\n")) == b"answer 2"
    desk.version = 1
    assert [desk.body(request()) for _ in range(2)] == [b"answer 3"] * 2


def test_the_date_of_a_cached_answer_is_not_old() -> None:
    """It is of the second in which it is sent, and the handler is asked again for it."""
    desk = Desk()
    desk.time.wall_s = 1_000_000_000.5
    assert b"\r\nDate: Sun, 09 Sep 2001 01:46:40 GMT\r\n" in heads(desk.answers(request()))[0]
    desk.time.wall_s += 0.4
    assert desk.body(request()) == b"answer 1"
    desk.time.wall_s += 0.1
    assert b"\r\nDate: Sun, 09 Sep 2001 01:46:41 GMT\r\n" in heads(desk.answers(request()))[0]
    assert len(desk.asked) == 2


def test_pipelined_requests_are_answered_in_order_up_to_an_incomplete_one() -> None:
    """Cached or not, with an empty line before them or not; the incomplete one is left for later."""
    desk = Desk()
    desk.body(request("/known"))
    received = request("/a") + b"\r\n" + request("/known") + request("/b")
    client = desk.answers(received + b"GET /c HTTP")
    assert [head.rpartition(b"\r\n\r\n")[2] for head in heads(client)] == [b"answer 2", b"answer 1", b"answer 3"]
    assert desk.asked == ["/known", "/a", "/b"]
    assert (client.closes, client.unanswered) == (False, b"GET /c HTTP")


def test_nothing_behind_a_closing_answer_is_answered() -> None:
    """Neither behind a wish to close nor behind a bad request."""
    for last in (request("/last", "Connection: close\r\n"), b"GET / HTTP/1.1\r\n\r\n"):
        desk = Desk()
        client = desk.answers(request("/first") + last + request("/never"))
        assert (len(client.unsent), client.closes, client.unanswered) == (2, True, request("/never"))
        assert "/never" not in desk.asked


def test_one_client_gets_answers_until_its_time_is_over() -> None:
    """The request that was begun is finished, and the rest is left."""
    desk = Desk(costs_s=1.0)
    received = b"".join(request(f"/{number}") for number in range(5))
    client = desk.answers(received, desk.time.steady_s + 1.5)
    assert desk.asked == ["/0", "/1"]
    assert client.unanswered == received[2 * len(request("/0")) :]
    desk.responder.answer(client, -math.inf)
    assert desk.asked == ["/0", "/1", "/2"]


def test_one_client_gets_answers_until_enough_bytes_are_queued() -> None:
    """Few large answers are enough."""
    desk = Desk(Limits(unsent_bytes=150_000))
    assert desk.answers(request("/big") * 10).unanswered == request("/big") * 8


def test_a_big_answer_is_shared_by_all_who_ask_the_same() -> None:
    """Its body is not copied for each of them."""
    desk = Desk()
    first, second = (desk.answers(request("/big")).unsent for _ in range(2))
    assert first[1] is second[1]


@pytest.mark.parametrize("header", ["", "A: " + "a" * 1000 + "\r\n"])
def test_the_memory_of_the_cache_is_bounded(header: str) -> None:
    """Small answers, large requests, and everything that Python keeps for them: not more than cache_bytes."""
    desk = Desk(Limits(cache_bytes=2_000_000))
    desk.body(request("/first"))
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(6000):
            desk.responder.answer(Conversation(request(f"/{number}", header)))
        desk.asked.clear()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert 500_000 < grown < 2_200_000
    desk.body(request("/first"))
    assert desk.asked == ["/first"]


def test_an_exception_of_the_handler_costs_one_answer(caplog: pytest.LogCaptureFixture) -> None:
    """500 without a word of it, GET or HEAD; not cached; logged with its traceback, and seldom."""
    desk = Desk()
    for method in ("GET", "GET", "HEAD"):
        client = desk.answers(request("/fault%0A" + "x" * 500, method=method))
        (answer,) = heads(client)
        assert answer.startswith(b"HTTP/1.1 500 ")
        assert answer.endswith(b'\r\n\r\n{"error":"internal error"}\n' if method == "GET" else b"\r\n\r\n")
        assert not client.closes
    assert (len(desk.asked), len(caplog.records)) == (3, 1)
    desk.time.advance(LATER_S)
    desk.answers(request("/fault"))
    first, second = caplog.records
    assert first.levelno == logging.ERROR
    assert first.getMessage().startswith("request failed cause=RuntimeError method=GET path=")
    assert "\n" not in first.getMessage()
    assert len(first.getMessage()) < 300
    assert "never shown" in caplog.text
    assert "repeated=2" in second.getMessage()


def test_an_answer_that_cannot_be_encoded_costs_one_answer(caplog: pytest.LogCaptureFixture) -> None:
    """A header with a line end, a status that there is not: 500, and the fault is logged."""
    for bad in (Response(200, b"", (("A", "a\r\nB: c"),)), Response(999, b"")):
        desk = Desk()
        desk.response = bad
        assert heads(desk.answers(request()))[0].startswith(b"HTTP/1.1 500 ")
    assert [record.getMessage().split()[2] for record in caplog.records] == ["cause=ValueError", "cause=ValueError"]


@pytest.mark.parametrize(("method", "status"), [("OPTIONS", b"204"), ("POST", b"405"), ("get", b"405")])
def test_other_methods_are_answered_without_the_handler(method: str, status: bytes) -> None:
    """The answer names the methods that are served."""
    desk = Desk()
    (answer,) = heads(desk.answers(request(method=method)))
    assert answer.startswith(b"HTTP/1.1 " + status)
    assert b"\r\nAllow: GET, HEAD, OPTIONS\r\n" in answer
    assert desk.asked == []


def test_a_refused_head_has_no_body() -> None:
    """Even if the request could not be understood beyond its method."""
    desk = Desk()
    assert desk.body(b"HEAD / HTTP/1.1\r\n\r\n") == b""
    client = Conversation(b"\r\nHEAD / HT")
    desk.responder.refuse(client, error_response(408, "late"))
    assert heads(client)[0].endswith(b"\r\n\r\n")
    assert client.closes
    assert desk.body(b"GET / HTTP/1.1\r\n\r\n") != b""


def test_while_draining_the_last_answer_closes() -> None:
    """Also if it was cached before; answers before the last do not close."""
    desk = Desk()
    desk.body(request())
    desk.responder.drain()
    for _ in range(2):
        client = desk.answers(request() * 3)
        assert [b"\r\nConnection: close\r\n" in answer for answer in heads(client)] == [False, False, True]
        assert client.closes
    client = desk.answers(request() + b"GET / H")
    assert (client.closes, client.unanswered) == (False, b"GET / H")


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("1.1", [b"B\r\nfirst event\r\n", b"", b"10\r\n" + b"x" * 16 + b"\r\n"]),
        ("1.0", [b"first event", b"", b"x" * 16]),
    ],
)
def test_events_come_in_chunks_if_the_client_knows_them(version: str, expected: list[bytes]) -> None:
    """Each item is one chunk, and an empty item is none, as an empty chunk would end the body."""
    client = Desk().answers(f"GET /events HTTP/{version}\r\nHost: x\r\n\r\n".encode())
    head = b"".join(client.unsent)
    assert (b"\r\nTransfer-Encoding: chunked\r\n" in head) == (version == "1.1")
    assert b"Content-Length" not in head
    assert client.closes
    assert client.events is not None
    assert [b"".join(buffers) for buffers in client.events] == expected
