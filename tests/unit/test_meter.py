"""The counters of the HTTP server: the counting itself, and the requests that a server counts."""

from itertools import repeat

import pytest

from binance_funding.server.http.message import Request, Response
from binance_funding.server.http.meter import BUCKETS_S, OTHER, Meter
from tests.support.http_client import Client, running

PRESENT_FROM_THE_START = {(OTHER, 500): 0, (OTHER, 503): 0}


def handler(request: Request) -> Response:
    """Answer 200, 404 for /n, events for /e; fail for /f."""
    if request.path == "/f":
        raise RuntimeError("a fault")
    return Response(404 if request.path == "/n" else 200, b"", events=repeat([b"."]) if request.path == "/e" else None)


def route_of(request: Request) -> str:
    """Return the path if it has one letter."""
    return request.path if len(request.path) == 2 else OTHER


def counted(*requests: bytes, max_connections: int = 2) -> dict[tuple[str, int], int]:
    """Return the counts of a server that was asked this, each item by a client of its own."""
    meter = Meter(route_of)
    with running(handler, meter=meter, max_connections=max_connections) as server:
        for received in requests:
            with Client(server.address) as client:
                client.send(received)
                if received.startswith(b"GET /e "):
                    client.sock.recv(1000)  # the answer has no end
                else:
                    client.rest()
    assert sum(meter.buckets) == sum(meter.requests.values())
    return {key: count for key, count in meter.requests.items() if key not in PRESENT_FROM_THE_START or count}


def get(*paths: str, method: str = "GET") -> bytes:
    """Return requests for all paths, the last of which closes the connection."""
    heads = [f"{method} {path} HTTP/1.1\r\nHost: x\r\n" for path in paths]
    return ("\r\n".join(heads) + "Connection: close\r\n\r\n").encode()


def test_every_answer_is_counted_by_route_and_status() -> None:
    """Cached answers, pipelined requests and methods that are not served are counted too."""
    others = [get("/a", method=method) for method in ("HEAD", "OPTIONS", "POST")]
    assert counted(get("/a"), get("/a", "/b", "/n", "/a"), get("/a"), *others) == {
        ("/a", 200): 5,
        ("/b", 200): 1,
        ("/n", 404): 1,
        ("/a", 204): 1,
        ("/a", 405): 1,
    }


def test_requests_that_no_route_answers_are_other() -> None:
    """A client cannot make up a name: unknown paths, bad requests and faults have the same route."""
    unknown = get(*(f"/unknown{number}" for number in range(50)))
    bad = b"GET / HTTP/1.1\r\n\r\n", b"NONSENSE\r\n\r\n"
    assert counted(unknown, *bad, get("/f")) == {(OTHER, 200): 50, (OTHER, 400): 2, (OTHER, 500): 1}


def test_a_subscription_is_counted_once_and_a_refused_one_as_such() -> None:
    """HEAD subscribes to nothing."""
    assert counted(get("/e"), get("/e", method="HEAD")) == {("/e", 200): 2}
    assert counted(get("/e"), max_connections=1) == {(OTHER, 503): 1}


def test_series_that_alerts_need_exist_from_the_start() -> None:
    """A series that begins with its first fault has no increase that an alert could see."""
    assert Meter().requests == PRESENT_FROM_THE_START


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
