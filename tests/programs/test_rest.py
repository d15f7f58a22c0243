"""The REST client over real sockets, against the simulated exchange and worse peers."""

import gzip
import json
import os
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from binance_funding.clock import Clock
from binance_funding.daemon.source import rest_client
from binance_funding.daemon.source.faults import Cause, Kind
from binance_funding.daemon.source.rest_client import Aborted, RestClient, RestError
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
    client = RestClient(exchange.rest_url, 1.0, Clock())
    yield client
    client.close()
    exchange.rest_ok()


def cause_of(client: RestClient, path: str = INDEX) -> Cause:
    """Return why the request fails."""
    with pytest.raises(RestError) as caught:
        client.get(path)
    assert "\n" not in str(caught.value)
    return caught.value.cause


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
    cause = cause_of(client)
    assert (cause.kind, cause.code, cause.wait_s) == (Kind.REFUSED, status, wait_s)


@pytest.mark.parametrize(
    ("fail", "kind", "label"),
    [
        pytest.param(lambda e: e.rest_hang(), Kind.TIMEOUT, "timeout", id="hanging"),
        pytest.param(lambda e: e.rest_trickle(), Kind.TIMEOUT, "timeout", id="trickling"),
        pytest.param(lambda e: e.rest_cut(), Kind.LOST, "connection", id="cut in the middle"),
        pytest.param(lambda e: e.rest_reset(), Kind.LOST, "connection", id="RST"),
        pytest.param(
            lambda e: e.rest_fault(200, body=b"junk", headers={"Content-Encoding": "gzip"}),
            Kind.PROTOCOL,
            "malformed",
            id="no gzip",
        ),
    ],
)
def test_a_failed_request_has_a_cause_and_the_next_one_succeeds(
    exchange: Exchange, client: RestClient, fail: Callable[[Exchange], None], kind: Kind, label: str
) -> None:
    """No error of a library reaches the caller."""
    fail(exchange)
    cause = cause_of(client)
    assert (cause.kind, cause.label) == (kind, label)
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
        assert (cause_of(client_of(peer)).code, peer.accepted) == (302, 1)


@pytest.mark.parametrize("host", ["x..example", "nowhere.invalid", "x" * 70 + ".example"])
def test_a_name_that_cannot_be_resolved_is_a_fault_of_dns(host: str) -> None:
    """And counts as a failed connection."""
    cause = cause_of(RestClient(f"http://{host}", 10, Clock()))
    assert (cause.kind, cause.label) == (Kind.DNS, "connection")


def test_a_port_where_nothing_listens_is_a_fault_of_tcp() -> None:
    """With the words of the system."""
    cause = cause_of(RestClient(f"http://127.0.0.1:{free_port()}", 0.5, Clock()))
    assert (cause.kind, str(cause)) == (Kind.TCP, "no connection: connection refused")


def test_a_password_in_netrc_is_not_sent(
    exchange: Exchange, client: RestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests would send one that is meant for any host."""
    (tmp_path / "netrc").write_text("default login me password secret\n", encoding="ascii")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    client.get(INDEX)
    assert "authorization" not in exchange.rest_requests[-1].headers


# Memory


@pytest.mark.parametrize("is_packed", [False, True])
def test_an_answer_without_end_is_given_up(exchange: Exchange, is_packed: bool) -> None:
    """A hundred times today's market would take the memory of the host; what counts is the size when unpacked."""
    body = b"[" + b" " * (8 << 20) + b"]"
    headers = {"Content-Encoding": "gzip"} if is_packed else {}
    exchange.rest_fault(200, body=gzip.compress(body) if is_packed else body, headers=headers)
    client = RestClient(exchange.rest_url, 10, Clock(), max_answer_bytes=1 << 20)
    cause = cause_of(client)
    assert (cause.label, str(cause)) == ("malformed", "answer of more than 1 MiB")
    exchange.rest_ok()
    assert client.get(INDEX).startswith(b"[")
    client.close()


def test_an_answer_that_is_too_long_as_it_was_packed_is_given_up(exchange: Exchange) -> None:
    """Nothing of it is left on the connection for the next answer to begin with."""
    exchange.rest_fault(200, body=gzip.compress(os.urandom(2 << 20)), headers={"Content-Encoding": "gzip"})
    client = RestClient(exchange.rest_url, 10, Clock(), max_answer_bytes=1 << 20)
    assert cause_of(client).kind is Kind.MALFORMED
    exchange.rest_ok()
    assert client.get(INDEX).startswith(b"[")
    client.close()


MEASURE = """
import resource, sys
from binance_funding.clock import Clock
from binance_funding.daemon.source.rest_client import RestClient, RestError
client = RestClient(sys.argv[1], 60, Clock())
peak_mb = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before_mb = peak_mb()
try:
    client.get("/")
    print("answered")
except RestError as error:
    print(error.cause.label)
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
    """The limit holds for the whole answer, not for one byte of it."""
    with Listener(trickles(beginning, piece)) as peer:
        started_s = time.monotonic()
        cause = cause_of(client_of(peer, timeout_s=0.3))
        assert time.monotonic() - started_s < 10
    # Too many headers may be found malformed first.
    assert cause.label in ("timeout", "malformed")


def test_a_request_may_have_less_time_than_others(exchange: Exchange) -> None:
    """What goes beside the snapshots must not hold them up."""
    client = RestClient(exchange.rest_url, 30, Clock())
    exchange.rest_hang()
    with pytest.raises(RestError, match="no answer in time"):
        client.get(INDEX, 0.2)
    client.close()
    exchange.rest_ok()


# The kept connection


def keeps_on(sock: socket.socket) -> None:
    """Answer one request after the other."""
    while sock.recv(4096):
        sock.sendall(OK)


def test_a_small_question_uses_the_connection_of_the_request_before_it() -> None:
    """TCP and TLS would cost three round trips, and make the answer about Binance's time less exact."""
    now_s = [1000.0]
    with Listener(keeps_on) as peer:
        client = RestClient(f"http://127.0.0.1:{peer.port}", 10, Clock(steady_s=lambda: now_s[0]))
        assert [client.get("/"), client.get("/", 5), client.get("/", 5)] == [b"[]"] * 3
        assert peer.accepted == 1
        now_s[0] += 6
        client.get("/", 5)
        assert peer.accepted == 2
        client.close()


def test_a_snapshot_goes_over_a_new_connection() -> None:
    """A firewall that fails over forgets connections: the stream and a kept connection often die together."""
    with Listener(keeps_on) as peer:
        client = client_of(peer, timeout_s=10)
        assert [client.get("/") for _ in range(2)] == [b"[]"] * 2
        assert peer.accepted == 2
        client.close()


def test_a_new_connection_that_is_closed_without_an_answer_is_a_failure() -> None:
    """Asking again at once would double the load on whoever is in trouble."""
    with Listener(answers(b"")) as peer:
        assert cause_of(client_of(peer, timeout_s=10)).kind is Kind.LOST
        assert peer.accepted == 1


@pytest.mark.parametrize("cut", [b"HTTP/1.1 200 OK\r\nContent-Le", b"HTTP/1.1 200 OK\r\nDate: today\r\n"])
def test_an_answer_that_is_cut_in_its_headers_is_a_failure(cut: bytes) -> None:
    """The library takes it for a complete answer without a body."""
    with Listener(answers(cut)) as peer:
        assert cause_of(client_of(peer, timeout_s=10)).kind is Kind.LOST


def test_an_answer_without_length_ends_with_its_connection() -> None:
    """Which is then not used again."""
    with Listener(answers(b"HTTP/1.1 200 OK\r\n\r\n[1]")) as peer:
        client = client_of(peer)
        assert (client.get("/"), client.get("/")) == (b"[1]", b"[1]")
        assert peer.accepted == 2


# A name server that is slow


@pytest.fixture
def slow_names(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Let every lookup wait for this event; all names are then this host's."""
    answered, lookup = threading.Event(), socket.getaddrinfo

    def getaddrinfo(_host: object, *args: Any, **options: Any) -> Any:
        answered.wait(60)
        return lookup("127.0.0.1", *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return answered


def test_the_time_for_a_name_lookup_does_not_count(exchange: Exchange, slow_names: threading.Event) -> None:
    """The request gets its whole time afterwards."""
    client = RestClient(exchange.rest_url.replace("127.0.0.1", "exchange.example"), 0.5, Clock())
    threading.Timer(1.5, slow_names.set).start()
    assert client.get(INDEX).startswith(b"[")
    client.close()


def test_requests_that_hang_in_a_name_lookup_are_bounded(
    monkeypatch: pytest.MonkeyPatch, slow_names: threading.Event
) -> None:
    """Each leaves its thread behind, since nothing can end it. DNS is named, and then how many hang."""
    monkeypatch.setattr(rest_client, "LOOKUP_LIMIT_S", 0.02)
    client = RestClient("http://exchange.example:9", 10, Clock())
    before = threading.active_count()
    kinds = [cause_of(client).kind for _ in range(40)]
    assert kinds[0] is Kind.DNS
    assert kinds[-1] is Kind.CROWDED
    assert threading.active_count() - before <= 40
    slow_names.set()
    eventually(lambda: cause_of(client).kind is Kind.TCP, "a request after the hanging ones have ended")


@pytest.mark.parametrize(
    "beginning",
    [
        pytest.param(b"HTTP/1.1 200 OK\r\nX-Long: ", id="a header"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n", id="the body"),
        pytest.param(b"HTTP/1.1 200 OK\r\n\r\n", id="a body without length"),
    ],
)
def test_a_peer_that_trickles_for_ever_holds_no_thread(beginning: bytes) -> None:
    """Each request that was given up has its connection shut down: later requests find places and threads."""
    with Listener(trickles(beginning, pause_s=0.1)) as peer:
        client, before = client_of(peer, timeout_s=0.3), threading.active_count()
        assert {cause_of(client).kind for _ in range(2)} == {Kind.TIMEOUT}
        eventually(lambda: threading.active_count() == before, "the end of both requests", within_s=5)


def test_a_proxy_that_trickles_for_ever_holds_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection is ended although it has not been set up."""
    with Listener(trickles(b"HTTP/1.1 200 OK\r\nX-Long: ", pause_s=0.1)) as proxy:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.port}")
        client, before = RestClient("https://exchange.invalid", 0.3, Clock()), threading.active_count()
        assert cause_of(client).kind is Kind.TIMEOUT
        eventually(lambda: threading.active_count() == before, "the end of the request", within_s=5)


# Aborting


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
def test_a_request_under_way_can_be_aborted(beginning: bytes) -> None:
    """At the end of the daemon nobody waits for REST_TIMEOUT_SECONDS, and nothing is asked again."""
    ended = threading.Event()

    with Listener(trickles(beginning, pause_s=60 if not beginning else 0.02)) as peer:
        client = client_of(peer, timeout_s=60)

        def ask() -> None:
            with pytest.raises(Aborted):
                client.get("/")
            ended.set()

        threading.Thread(target=ask, name="asking").start()
        eventually(lambda: peer.accepted, "the request")
        client.abort()
        assert ended.wait(10)
        with pytest.raises(Aborted):
            client.get("/")
        assert peer.accepted == 1
