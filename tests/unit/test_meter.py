"""What the HTTP server counts of its own work: the counting itself, and what the responder has counted. No sockets."""

from collections.abc import Iterator

import pytest

from binance_funding.log import EventLogger, LogThrottle
from binance_funding.server.http.connections import Conversation
from binance_funding.server.http.limits import Limits
from binance_funding.server.http.message import Request, Response, error_response
from binance_funding.server.http.meter import BUCKETS_S, OTHER, Meter
from binance_funding.server.http.responder import Responder

PRESENT_FROM_THE_START = {(OTHER, 500): 0, (OTHER, 503): 0}
EVENTS: Iterator[list[bytes]] = iter(())


class Desk:
    """A responder and its meter. Paths of one letter are routes."""

    def __init__(self) -> None:
        self.meter = Meter(lambda request: request.path if len(request.path) == 2 else OTHER)
        self.responder = Responder(
            self.handler,
            lambda: 0,
            max_subscribers=1,
            limits=Limits(),
            throttle=LogThrottle(EventLogger("test"), lambda: 0.0),
            meter=self.meter,
            steady_s=lambda: 0.0,
            wall_s=lambda: 0.0,
        )
        self.responder.refresh()

    def handler(self, request: Request) -> Response:
        """Answer 200, 404 for /n, events for /e; fail for /f."""
        if request.path == "/f":
            raise RuntimeError("a fault")
        return Response(404 if request.path == "/n" else 200, b"", events=EVENTS if request.path == "/e" else None)

    def ask(self, *paths: str, method: str = "GET", headers: str = "") -> Conversation:
        """Let one client ask for these at once; return it with its answers."""
        requests = (f"{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n" for path in paths)
        client = Conversation("".join(requests).encode())
        self.responder.answer(client)
        assert client.unanswered == b""
        return client

    def counted(self) -> dict[tuple[str, int], int]:
        """Return what was counted since the start."""
        counts = {key: tally.requests for key, tally in self.meter.tallies.items()}
        return {key: count for key, count in counts.items() if key not in PRESENT_FROM_THE_START or count}


def test_every_answer_is_counted_by_route_and_status() -> None:
    """Whether it was made or found in the cache, and each of those that were asked for at once."""
    desk = Desk()
    desk.ask("/a")
    desk.ask("/a", "/b", "/n", "/a")
    desk.ask("/a", method="HEAD")
    assert desk.counted() == {("/a", 200): 4, ("/b", 200): 1, ("/n", 404): 1}


def test_a_request_from_the_cache_is_counted() -> None:
    """As the HTTP server looks there first; one that is not there is counted by who answers it."""
    desk = Desk()
    head = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"
    assert desk.responder.cached(head) is None
    assert desk.counted() == {}
    desk.ask("/a")
    for _ in range(3):
        assert desk.responder.cached(head) is not None
    assert desk.counted() == {("/a", 200): 4}


def test_what_no_route_answers_is_other() -> None:
    """Unknown paths, requests that are none, refusals and faults: never a name that a client made up."""
    desk = Desk()
    desk.ask(*(f"/unknown{number}" for number in range(50)))
    desk.responder.answer(Conversation(b"GET / HTTP/1.1\r\n\r\n"))
    desk.responder.answer(Conversation(b"NONSENSE\r\n\r\n"))
    desk.responder.refuse(Conversation(b"GET /a HT"), error_response(408, "late"))
    desk.ask("/f")
    assert desk.counted() == {(OTHER, 200): 50, (OTHER, 400): 2, (OTHER, 408): 1, (OTHER, 500): 1}


def test_other_methods_are_counted() -> None:
    """With the route that they name."""
    desk = Desk()
    desk.ask("/a", method="OPTIONS")
    desk.ask("/a", method="POST")
    assert desk.counted() == {("/a", 204): 1, ("/a", 405): 1}


def test_a_subscription_is_counted_once_and_a_refused_one_as_such() -> None:
    """When it begins; what it is sent later are no requests. HEAD subscribes to nothing."""
    desk = Desk()
    assert desk.ask("/e").events is not None
    assert desk.ask("/e", method="HEAD", headers="Connection: close\r\n").events is None
    desk.meter.subscribers = lambda: 1
    assert desk.ask("/e").events is None
    assert desk.counted() == {("/e", 200): 2, (OTHER, 503): 1}


def test_what_alerts_wait_for_is_there_from_the_start() -> None:
    """A series that begins with its first fault has no increase that an alert could see."""
    assert {key: tally.requests for key, tally in Meter().tallies.items()} == PRESENT_FROM_THE_START


@pytest.mark.parametrize(
    ("lasted_s", "bucket"),
    [(0.0, 0), (BUCKETS_S[0], 0), (0.00051, 1), (BUCKETS_S[-1], len(BUCKETS_S) - 1), (60.0, len(BUCKETS_S))],
)
def test_a_duration_falls_into_the_bucket_that_includes_its_bound(lasted_s: float, bucket: int) -> None:
    """As `le` says; what is longer than all bounds counts as well."""
    meter = Meter()
    meter.count("/a", 200)
    meter.measure(lasted_s)
    assert meter.buckets == [int(number == bucket) for number in range(len(BUCKETS_S) + 1)]
    assert meter.seconds == lasted_s


def test_requests_measured_together_last_equally_long() -> None:
    """A measurement without requests counts for nothing."""
    meter = Meter()
    for requests, lasted_s in ((3, 0.02), (0, 5.0), (1, 0.2)):
        for _ in range(requests):
            meter.count("/a", 200)
        meter.measure(lasted_s)
    assert sum(meter.buckets) == 4
    assert meter.seconds == pytest.approx(0.26)
    assert (meter.buckets[BUCKETS_S.index(0.025)], meter.buckets[BUCKETS_S.index(0.25)]) == (3, 1)
