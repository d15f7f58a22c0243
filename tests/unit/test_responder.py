"""From the bytes of a request to the bytes of its answer, cached within bounds. No sockets."""

import logging
import tracemalloc

import pytest

from binance_funding.log import EventLogger, LogThrottle
from binance_funding.server.http.message import Request, Response, error_response
from binance_funding.server.http.responder import Encoded, Responder
from tests.support.clock import SimulatedClock

LATER_S = 11.0  # when the throttle logs again what goes on


class Desk:
    """A responder whose clocks and version stand still until moved, and whose handler counts."""

    def __init__(self) -> None:
        self.time = SimulatedClock()
        self.version = 0
        self.asked: list[str] = []
        self.response: Response | None = None
        throttle = LogThrottle(EventLogger("test"), lambda: self.time.steady_s, first_wait_s=10.0)
        self.responder = Responder(
            self.handler, lambda: self.version, lambda request: request.path, throttle, lambda: self.time.wall_s
        )

    def handler(self, request: Request) -> Response:
        """Answer with how often it was asked; with a big body for /big, with events for /events; fail for others."""
        self.asked.append(request.path)
        if self.response is not None:
            return self.response
        if request.path == "/events":
            return Response(200, b"", (), iter([[b"first ", b"event"], [], [b"x" * 16]]))
        if request.path.startswith("/fault"):
            raise RuntimeError("never shown to a client")
        return Response(200, b"x" * 100_000 if request.path == "/big" else b"answer %d" % len(self.asked))

    def answer(self, head: bytes, *, closes: bool = False) -> Encoded:
        """Answer a request in a turn of its own."""
        self.responder.refresh()
        return self.responder.answer(head, closes=closes)

    def body(self, head: bytes) -> bytes:
        """Return the body of the answer to this request."""
        return b"".join(self.answer(head).buffers).partition(b"\r\n\r\n")[2]


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
    assert b"\r\nDate: Sun, 09 Sep 2001 01:46:40 GMT\r\n" in desk.answer(request()).buffers[0]
    desk.time.wall_s += 0.4
    assert desk.body(request()) == b"answer 1"
    desk.time.wall_s += 0.1
    assert b"\r\nDate: Sun, 09 Sep 2001 01:46:41 GMT\r\n" in desk.answer(request()).buffers[0]
    assert len(desk.asked) == 2


def test_a_big_answer_is_shared_by_all_who_ask_the_same() -> None:
    """Its body is not copied for each of them."""
    desk = Desk()
    first, second = (desk.answer(request("/big")).buffers for _ in range(2))
    assert first[1] is second[1]


@pytest.mark.parametrize("header", ["", "A: " + "a" * 5000 + "\r\n"])
def test_the_memory_of_the_cache_is_bounded(header: str) -> None:
    """The limit counts small answers, large requests, and everything that Python keeps for them."""
    desk = Desk()
    desk.body(request("/first"))
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        largest = 0
        for number in range(3000 if header else 20_000):
            desk.answer(request(f"/{number}", header))
            desk.asked.clear()
            largest = max(largest, tracemalloc.get_traced_memory()[0] - before)
    finally:
        tracemalloc.stop()
    assert 4_000_000 < largest < 9_000_000
    desk.body(request("/first"))
    assert desk.asked == ["/first"]


def test_an_exception_of_the_handler_costs_one_answer(caplog: pytest.LogCaptureFixture) -> None:
    """500 without a word of it, GET or HEAD; not cached; logged with its traceback, and seldom."""
    desk = Desk()
    for method in ("GET", "GET", "HEAD"):
        encoded = desk.answer(request("/fault%0A" + "x" * 500, method=method))
        (answer,) = encoded.buffers
        assert answer.startswith(b"HTTP/1.1 500 ")
        assert answer.endswith(b'\r\n\r\n{"error":"internal error"}\n' if method == "GET" else b"\r\n\r\n")
        assert (encoded.closes, encoded.route) == (False, "other")
    assert (len(desk.asked), len(caplog.records)) == (3, 1)
    desk.time.advance(LATER_S)
    desk.answer(request("/fault"))
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
        assert desk.answer(request()).buffers[0].startswith(b"HTTP/1.1 500 ")
    assert [record.getMessage().split()[2] for record in caplog.records] == ["cause=ValueError", "cause=ValueError"]


@pytest.mark.parametrize(("method", "status"), [("OPTIONS", b"204"), ("POST", b"405"), ("get", b"405")])
def test_other_methods_are_answered_without_the_handler(method: str, status: bytes) -> None:
    """The answer names the methods that are served."""
    desk = Desk()
    (answer,) = desk.answer(request(method=method)).buffers
    assert answer.startswith(b"HTTP/1.1 " + status)
    assert b"\r\nAllow: GET, HEAD, OPTIONS\r\n" in answer
    assert desk.asked == []


def test_a_refused_head_has_no_body() -> None:
    """Only the method of the request must be known."""
    desk = Desk()
    for beginning, has_body in ((b"HEAD / HTTP/1.1", False), (b"\r\nHEAD / HT", False), (b"GET / HT", True)):
        encoded = desk.responder.refuse(beginning, error_response(408, "late"))
        assert encoded.buffers[0].endswith(b"\r\n\r\n") != has_body
        assert (encoded.closes, encoded.route, encoded.status) == (True, "other", 408)


def test_a_last_answer_closes_and_is_not_cached() -> None:
    """A cached answer to the same request is not used for it."""
    desk = Desk()
    for closes in (False, True, False):
        encoded = desk.answer(request(), closes=closes)
        assert encoded.closes == (b"\r\nConnection: close\r\n" in encoded.buffers[0]) == closes
    assert len(desk.asked) == 2


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("1.1", [b"B\r\nfirst event\r\n", b"", b"10\r\n" + b"x" * 16 + b"\r\n"]),
        ("1.0", [b"first event", b"", b"x" * 16]),
    ],
)
def test_events_come_in_chunks_if_the_client_knows_them(version: str, expected: list[bytes]) -> None:
    """Each item is one chunk, and an empty item is none, as an empty chunk would end the body."""
    encoded = Desk().answer(f"GET /events HTTP/{version}\r\nHost: x\r\n\r\n".encode())
    head = b"".join(encoded.buffers)
    assert (b"\r\nTransfer-Encoding: chunked\r\n" in head) == (version == "1.1")
    assert b"Content-Length" not in head
    assert encoded.closes
    assert encoded.events is not None
    assert [b"".join(buffers) for buffers in encoded.events] == expected
