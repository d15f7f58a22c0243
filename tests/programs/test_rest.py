"""The REST client over real sockets, against the simulated exchange and worse peers."""

import gzip
import json
import os
import socket
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from binance_funding.daemon.source.rest import BrokenOff, RestClient, RestError

from binance_funding.clock import Clock
from tests.exchange import Exchange, Market
from tests.support.peers import Listener, answers, trickles
from tests.support.programs import ROOT, free_port
from tests.support.waiting import eventually

INDEX, INFO = "/fapi/v1/premiumIndex", "/fapi/v1/fundingInfo"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]"


@pytest.fixture(scope="module")
def exchange() -> Iterator[Exchange]:
    """A small exchange; every test leaves its REST side as it should be."""
    with Exchange(Market(usd_m=5, tradfi=0, coin_m=0, fundless=0)) as exchange:
        yield exchange


@pytest.fixture
def client(exchange: Exchange) -> Iterator[RestClient]:
    """A client with a short timeout."""
    client = RestClient(exchange.rest_url, 0.5, Clock())
    yield client
    client.close()
    exchange.rest_ok()


def error_of(client: RestClient, path: str = INDEX) -> RestError:
    """Return the error that the request ends in."""
    with pytest.raises(RestError) as caught:
        client.get(path)
    return caught.value


def client_of(peer: Listener, timeout_s: float = 0.5) -> RestClient:
    """Return a client of something else than an exchange."""
    return RestClient(f"http://127.0.0.1:{peer.port}", timeout_s, Clock())


def test_an_answer_is_its_body(exchange: Exchange, client: RestClient) -> None:
    """Compressed on the wire."""
    assert {row["symbol"] for row in json.loads(client.get(INDEX))} >= exchange.market.symbols
    assert isinstance(json.loads(client.get(INFO)), list)
    assert "gzip" in exchange.rest_requests[-1].headers["accept-encoding"]


@pytest.mark.parametrize(
    ("status", "headers", "body", "wait_s"),
    [
        pytest.param(429, {"Retry-After": "7"}, "", 7, id="seconds"),
        pytest.param(
            418,
            {"Retry-After": "Wed, 24 Nov 2027 00:01:30 GMT", "Date": "Wed, 24 Nov 2027 00:00:00 GMT"},
            "",
            90,
            id="date",
        ),
        pytest.param(
            418,
            {"Date": "Wed, 24 Nov 2027 00:00:00 GMT"},
            '{"code":-1003,"msg":"Way too many requests; IP banned until 1827014460000. Use the websocket."}',
            60,
            id="end of the ban in the body",
        ),
        pytest.param(418, {}, "", 120, id="ban without an end"),
        pytest.param(429, {"Date": "Wed, 24 Nov 2027 00:00:15 GMT"}, "", 45, id="end of the minute"),
        pytest.param(503, {"Retry-After": "30"}, "", 30, id="maintenance"),
        pytest.param(403, {}, "", 0, id="firewall"),
        pytest.param(500, {}, "", 0, id="server error"),
    ],
)
def test_a_refusal_says_how_long_to_wait(
    exchange: Exchange, client: RestClient, status: int, headers: dict[str, str], body: str, wait_s: float
) -> None:
    """Wherever Binance says it, by Binance's clock where its answer carries one."""
    exchange.rest_fault(status, headers=headers, body=body)
    error = error_of(client)
    assert (error.status, error.wait_s) == (str(status), wait_s)
    assert f"HTTP {status}" in str(error)


@pytest.mark.parametrize(
    ("fail", "status", "words"),
    [
        pytest.param(lambda e: e.rest_hang(), "timeout", "no answer in time", id="hanging"),
        pytest.param(lambda e: e.rest_trickle(), "timeout", "no answer in time", id="trickling"),
        pytest.param(lambda e: e.rest_cut(), "connection", "it ended amid the answer", id="cut in the middle"),
        pytest.param(lambda e: e.rest_reset(), "connection", "connection reset", id="RST"),
        pytest.param(
            lambda e: e.rest_fault(200, body=b"junk", headers={"Content-Encoding": "gzip"}),
            "malformed",
            "answer not understood",
            id="not what it says it is",
        ),
    ],
)
def test_whatever_goes_wrong_is_one_error_in_words(
    exchange: Exchange, client: RestClient, fail: Callable[[Exchange], None], status: str, words: str
) -> None:
    """No error of a library, no traceback; and the next request is as good as any."""
    fail(exchange)
    error = error_of(client)
    assert error.status == status
    assert words in str(error)
    assert "\n" not in str(error)
    exchange.rest_ok()
    assert client.get(INDEX).startswith(b"[")


@pytest.mark.parametrize(
    "location",
    [b"/fapi/v1/fundingInfo", b"http://[/", b"http://x.example:port/", "/b\u0159ezen".encode(), b"\xff\xfe", b""],
    ids=["elsewhere", "unclosed bracket", "port of letters", "UTF-8", "no text at all", "empty"],
)
def test_a_redirect_is_not_followed_wherever_it_leads(location: bytes) -> None:
    """It is an answer that was not expected, and named by its status."""
    answer = b"HTTP/1.1 302 Found\r\nLocation: " + location + b"\r\nContent-Length: 0\r\n\r\n"
    with Listener(answers(answer)) as peer:
        error = error_of(client_of(peer))
        assert (error.status, peer.accepted) == ("302", 1)
    assert "HTTP 302" in str(error)


def test_a_name_that_cannot_be_resolved_is_named() -> None:
    """And counts as a failed connection."""
    error = error_of(RestClient("http://x..example", 0.5, Clock()))
    assert (error.status, str(error)) == ("connection", "no connection: DNS: the host name cannot be resolved")


def test_where_nothing_listens_it_is_named() -> None:
    """In the words of the system."""
    error = error_of(RestClient(f"http://127.0.0.1:{free_port()}", 0.5, Clock()))
    assert (error.status, str(error)) == ("connection", "no connection: connection refused")


# Memory


@pytest.mark.parametrize("is_packed", [False, True])
def test_an_answer_without_end_is_given_up(exchange: Exchange, is_packed: bool) -> None:
    """A hundred times today's market would take the memory of the host; what counts is the size when unpacked."""
    body = b"[" + b" " * (8 << 20) + b"]"
    headers = {"Content-Encoding": "gzip"} if is_packed else {}
    exchange.rest_fault(200, body=gzip.compress(body) if is_packed else body, headers=headers)
    client = RestClient(exchange.rest_url, 10, Clock(), largest_answer_bytes=1 << 20)
    error = error_of(client)
    assert (error.status, str(error)) == ("malformed", "answer of more than 1 MiB")
    exchange.rest_ok()
    assert client.get(INDEX).startswith(b"[")
    client.close()


def test_an_answer_that_is_too_long_as_it_was_packed_is_given_up(exchange: Exchange) -> None:
    """Nothing of it is left on the connection for the next answer to begin with."""
    exchange.rest_fault(200, body=gzip.compress(os.urandom(2 << 20)), headers={"Content-Encoding": "gzip"})
    client = RestClient(exchange.rest_url, 10, Clock(), largest_answer_bytes=1 << 20)
    assert str(error_of(client)) == "answer of more than 1 MiB"
    exchange.rest_ok()
    assert client.get(INDEX).startswith(b"[")
    client.close()


MEASURE = """
import resource, sys
from binance_funding.clock import Clock
from binance_funding.daemon.source.rest import RestClient, RestError
client = RestClient(sys.argv[1], 60, Clock())
peak_mb = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before_mb = peak_mb()
try:
    client.get("/")
    print("answered")
except RestError as error:
    print(error.status)
print(peak_mb() - before_mb)
"""


@pytest.fixture(scope="module")
def bomb() -> bytes:
    """Return a quarter of a megabyte of gzip that unpacks to 256 MB."""
    packer, zeros = zlib.compressobj(wbits=zlib.MAX_WBITS | 16), bytes(1 << 20)
    return b"".join([*(packer.compress(zeros) for _ in range(256)), packer.flush()])


@pytest.mark.parametrize(("status", "outcome"), [(200, "malformed"), (302, "302"), (403, "403"), (500, "500")])
def test_no_answer_takes_more_than_64_mb(tmp_path: Path, bomb: bytes, status: int, outcome: str) -> None:
    """However it unpacks, and whatever the status that it comes with."""
    with Exchange(Market(usd_m=1, tradfi=0, coin_m=0, fundless=0)) as exchange:
        exchange.rest_fault(status, body=bomb, headers={"Content-Encoding": "gzip"})
        script = tmp_path / "measure.py"
        script.write_text(MEASURE, encoding="utf-8")
        done = subprocess.run(
            [sys.executable, str(script), exchange.rest_url],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
    said, grown_mb = done.stdout.split()
    assert said == outcome
    assert float(grown_mb) < 64


# What trickles


@pytest.mark.parametrize(
    ("beginning", "piece"),
    [
        pytest.param(b"", b"H", id="status line"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX-Long: ", b"x", id="a header"),
        pytest.param(b"HTTP/1.1 200 OK\r\n", b"A: b\r\n", id="many headers"),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", id="not yet"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n", b" ", id="the body"),
        pytest.param(b"HTTP/1.1 200 OK\r\n\r\n", b" ", id="a body without length"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0", id="the size of a chunk"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"A: b\r\n", id="trailers"),
    ],
)
def test_an_answer_that_trickles_ends_with_the_timeout(beginning: bytes, piece: bytes) -> None:
    """The limit holds for the whole answer, not for one byte of it; and no thread is left behind."""
    threads = set(threading.enumerate())
    with Listener(trickles(beginning, piece)) as peer:
        error = error_of(client_of(peer, timeout_s=0.3))
    # Too many headers, or too many a promise of an answer, may be found malformed first.
    assert error.status in ("timeout", "malformed")
    assert set(threading.enumerate()) <= threads


def test_a_request_may_have_less_time_than_others(exchange: Exchange) -> None:
    """What goes beside the snapshots must not hold them up."""
    client = RestClient(exchange.rest_url, 30, Clock())
    exchange.rest_hang()
    with pytest.raises(RestError, match="no answer in time"):
        client.get(INDEX, 0.2)
    client.close()
    exchange.rest_ok()


# The kept connection


def test_one_connection_serves_one_request_after_the_other() -> None:
    """TCP and TLS cost three round trips."""

    def talk(sock: socket.socket) -> None:
        while sock.recv(4096):
            sock.sendall(OK)

    with Listener(talk) as peer:
        client = client_of(peer)
        assert [client.get("/") for _ in range(3)] == [b"[]"] * 3
        assert peer.accepted == 1
        client.close()


@pytest.mark.parametrize("end", ["closed", "reset"])
def test_a_kept_connection_that_is_closed_when_it_is_used_again_is_no_failure(end: str) -> None:
    """The exchange may close an idle one at any moment: the request is made once more, on a new one."""

    def talk(sock: socket.socket) -> None:
        sock.recv(4096)
        sock.sendall(OK)
        sock.recv(4096)  # the next request: it gets no answer
        if end == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    with Listener(talk) as peer:
        client = client_of(peer, timeout_s=10)
        assert client.get("/") == b"[]"
        assert client.get("/") == b"[]"
        assert peer.accepted == 2
        client.close()


def test_a_new_connection_that_is_closed_without_an_answer_is_a_failure() -> None:
    """Asking again at once would double the load on whoever is in trouble."""
    with Listener(answers(b"")) as peer:
        client = client_of(peer, timeout_s=10)
        assert error_of(client).status == "connection"
        assert peer.accepted == 1


@pytest.mark.parametrize("answer", [b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Le", b"HTTP/1.1 403 Forbi"])
def test_an_answer_that_ends_amid_its_headers_is_a_failure(answer: bytes) -> None:
    """It is no answer with fewer headers, and no refusal either."""
    with Listener(answers(answer)) as peer:
        assert error_of(client_of(peer)).status == "connection"


def test_an_answer_without_length_ends_with_its_connection() -> None:
    """Which is then not used again."""
    with Listener(answers(b"HTTP/1.1 200 OK\r\n\r\n[1]")) as peer:
        client = client_of(peer)
        assert (client.get("/"), client.get("/")) == (b"[1]", b"[1]")
        assert peer.accepted == 2


# Breaking off


@pytest.mark.parametrize(
    "beginning",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nX-Long: ",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
    ],
    ids=["before the answer", "amid headers", "amid the body", "amid a body without length"],
)
def test_a_request_under_way_can_be_broken_off(beginning: bytes) -> None:
    """At the end of the daemon nobody waits for REST_TIMEOUT_SECONDS; nor is it asked again."""
    ended: list[bool] = []

    with Listener(trickles(beginning, pause_s=60 if not beginning else 0.02)) as peer:
        client = client_of(peer, timeout_s=60)

        def ask() -> None:
            with pytest.raises(BrokenOff):
                client.get("/")
            ended.append(True)

        thread = threading.Thread(target=ask, name="request")
        thread.start()
        eventually(lambda: peer.accepted, "the request")

        def is_over() -> bool:
            client.break_off()
            thread.join(0.1)
            return not thread.is_alive()

        eventually(is_over, "the request's end")
        assert ended
        with pytest.raises(BrokenOff):
            client.get("/")
        assert peer.accepted == 1
