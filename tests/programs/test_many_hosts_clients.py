"""Strange clients of the nginx in front: whatever they send, they change nothing for anybody else."""

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import requests

from tests.support.hosts import PATHS, Crowd, Hosts
from tests.support.http_client import Client, Reply
from tests.support.nginx import Nginx, running_nginx
from tests.support.peers import Listener, records
from tests.support.programs import free_port
from tests.support.waiting import PATIENCE_S, eventually


class Strange(NamedTuple):
    """A strange request: what follows its path, and the status that it gets; None if it waits for no answer."""

    rest: bytes
    status: int | None = 200
    method: str = "GET"

    def ask(self, port: int, path: str) -> Reply | None:
        """Send the request over a connection of its own."""
        with Client(("127.0.0.1", port)) as client:
            client.send(f"{self.method} {path} ".encode() + self.rest)
            return None if self.status is None else client.reply(self.method)


def _with(*lines: str, body: bytes = b"") -> bytes:
    return "\r\n".join(["HTTP/1.1", "Host: x", *lines, "", ""]).encode("latin-1") + body


STRANGE = {
    "body": Strange(_with("Content-Length: 5", body=b"hello")),
    "chunked body": Strange(_with("Transfer-Encoding: chunked", body=b"5\r\nhello\r\n0\r\n\r\n")),
    "large body": Strange(_with("Content-Length: 2000", body=b"a" * 2000), 413),
    "body that does not come": Strange(_with("Content-Length: 5"), None),
    "malformed body": Strange(_with("Transfer-Encoding: chunked", body=b"z\r\n"), 400),
    "unknown coding": Strange(_with("Transfer-Encoding: gzip, chunked"), 501),
    "cookie of 9 KB": Strange(_with("Cookie: " + "a" * 9000)),
    "cookie of 40 KB": Strange(_with("Cookie: " + "a" * 40_000), 431),
    "70 headers": Strange(_with(*["A: a"] * 70)),
    "header of 200 KB": Strange(_with(*["A: " + "a" * 1000] * 200), 431),
    "control character": Strange(_with("A: \x01")),
    "zero": Strange(_with("A: \x00"), 400),
    "two hosts": Strange(_with("Host: y"), 400),
    "no host": Strange(b"HTTP/1.1\r\n\r\n", 400),
    "half a request": Strange(b"HTTP/1.1\r\nHost:", None),
    "HTTP/1.0": Strange(b"HTTP/1.0\r\n\r\n"),
    "HTTP/2.0": Strange(b"HTTP/2.0\r\nHost: x\r\n\r\n", 505),
    "HEAD": Strange(_with(), method="HEAD"),
    "OPTIONS": Strange(_with(), 204, "OPTIONS"),
    "POST": Strange(_with("Content-Length: 0"), 405, "POST"),
    "TRACE": Strange(_with(), 405, "TRACE"),
    "other method by header": Strange(_with("X-HTTP-Method-Override: DELETE")),
    "upgrade": Strange(_with("Upgrade: websocket", "Connection: upgrade")),
    "Range": Strange(_with("Range: bytes=0-3")),
    "Expect": Strange(_with("Expect: 100-continue")),
    "no-cache": Strange(_with("Cache-Control: no-cache", "Pragma: no-cache")),
    "If-None-Match": Strange(_with("If-None-Match: *"), 304),
    "If-Match": Strange(_with('If-Match: "x"'), 412),
    "If-Unmodified-Since": Strange(_with("If-Unmodified-Since: Mon, 01 Jan 2001 00:00:00 GMT"), 412),
    "HTML": Strange(_with("Accept: text/html", "Accept-Encoding: gzip")),
}

# Each names metrics or push, or would do so for a server that is less strict.
NOT_PASSED_ON = (
    "/metrics",
    "/metrics/",
    "/metrics?x=1",
    "//metrics",
    "/./metrics",
    "/%6detrics",
    "/%2fmetrics",
    "/metrics%2f",
    "/METRICS",
    "/funding/../metrics",
    "/funding/%2e%2e%2fmetrics",
    "/funding/stream/",
    "/funding/stream%2f",
    "/funding/stream/.",
    "/funding/",
    "/funding/BTCUSDT/",
    "/first-host-is-fresh",
    "/binance-funding-error",
)


class Recorded(NamedTuple):
    """A host that notes what reaches it, and the nginx in front of it."""

    heads: list[str]
    nginx: Nginx


@contextlib.contextmanager
def recorded(folder: Path, *answers: bytes) -> Iterator[Recorded]:
    """Run a host that gives these answers, the last of them again and again, behind nginx."""
    heads: list[str] = []
    with Listener(records(heads, answers)) as host, running_nginx(folder, host.port, free_port()) as nginx:
        yield Recorded(heads, nginx)


def _answer(status: str, content: bytes = b"{}") -> bytes:
    return f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content


def _early_in_a_second() -> None:
    """Wait until enough of the second is left for two questions: a copy is used only as long as it lasts."""
    eventually(lambda: time.time() % 1 < 0.5, "the first half of a second")


@pytest.mark.parametrize("strange", STRANGE.values(), ids=STRANGE.keys())
def test_who_asks_the_same_after_a_strange_client_gets_the_answer(hosts: Hosts, strange: Strange) -> None:
    """In the same second. The strange client gets an answer of its own, in JSON; nginx logs no alert."""
    path = f"/funding/batch?symbols=BTCUSDT&limit={1 + list(STRANGE.values()).index(strange)}"
    _early_in_a_second()
    reply = strange.ask(hosts.nginx.port, path)
    polite = hosts.ask(path)
    assert (polite.status_code, polite.json()["found"]) == (200, 1)
    assert "[alert]" not in hosts.nginx.errors()
    if strange.status is None:
        return
    assert reply is not None
    assert reply.status == strange.status
    assert reply.headers["access-control-allow-origin"] == "*"
    if reply.status >= 400:
        assert list(json.loads(reply.body)) == ["error"]
        assert (reply.headers["content-type"], reply.headers["cache-control"]) == (
            "application/json; charset=utf-8",
            "no-store",
        )


def test_one_strange_client_in_a_loop_spoils_no_answer(hosts: Hosts) -> None:
    """Beside it, all answers are right, and the hosts are asked as seldom as without it."""
    stop, asked = threading.Event(), 0

    def be_strange() -> None:
        nonlocal asked
        while not stop.is_set():
            for strange in STRANGE.values():
                for path in PATHS:
                    with contextlib.suppress(ConnectionError):  # where nginx does not read to the end
                        strange.ask(hosts.nginx.port, path)
                    asked += 1

    client = threading.Thread(target=be_strange, name="strange client")
    with Crowd(hosts.nginx, clients=4, pause_s=0.02) as crowd:
        client.start()
        eventually(lambda: asked > 4 * len(STRANGE) * len(PATHS) and crowd.answers > 500, "some rounds of both")
        stop.set()
        client.join(PATIENCE_S)
    assert crowd.wrong == []
    assert crowd.most_per_s() < 4  # one a second for the list with gzip, one without


@pytest.mark.parametrize(
    ("asked", "reaches_the_host"),
    [
        (("GET /funding HTTP/1.0", "Content-Length: 0", "Cookie: a"), "GET /funding"),
        (("GET http://elsewhere/funding?x=%zz HTTP/1.1", "Host: here", "Upgrade: h2c"), "GET /funding?x=%zz"),
        (("GET /funding HTTP/1.1", "Host: x", "Accept-Encoding: br, gzip"), "GET /funding gzip"),
        (("HEAD / HTTP/1.1", "Host: x", "Accept: text/html;q=0.9, */*"), "GET / text/html"),
        (("GET /funding/A HTTP/1.1", "Host: x", "Accept: text/html", "Accept-Encoding: gzip"), "GET /funding/A"),
    ],
)
def test_only_path_query_and_two_headers_reach_a_host(
    tmp_path: Path, asked: tuple[str, ...], reaches_the_host: str
) -> None:
    """The two headers are reduced to what matters to the answer."""
    with recorded(tmp_path, _answer("200 OK")) as host, Client(("127.0.0.1", host.nginx.port)) as client:
        client.send("\r\n".join([*asked, "", ""]).encode())
        assert client.reply(asked[0].partition(" ")[0]).status == 200
    line, *headers = host.heads[0].splitlines()
    assert headers.pop(0) == "Host: binance-funding"
    values = [header.partition(": ")[2] for header in headers if header]
    assert " ".join([line.removesuffix(" HTTP/1.1"), *values]) == reaches_the_host


def test_what_is_subscribed_to_reaches_a_host_and_nothing_else_of_the_request(tmp_path: Path) -> None:
    """After the question whether this host is fresh."""
    head = "GET {} HTTP/1.1\r\nHost: binance-funding\r\n{}\r\n"
    with recorded(tmp_path, _answer("200 OK")) as host, Client(("127.0.0.1", host.nginx.port)) as client:
        client.get("/funding/stream?symbols=A", "Content-Length: 1\r\nAccept-Encoding: gzip\r\nCookie: a\r\n\r\na")
    gzip = "Accept-Encoding: gzip\r\n"
    assert host.heads == [head.format("/funding/health", gzip), head.format("/funding/stream?symbols=A", gzip)]


def test_a_subscription_with_a_large_body_is_refused_in_json(hosts: Hosts) -> None:
    """As any other request with one."""
    reply = STRANGE["large body"].ask(hosts.nginx.port, "/funding/stream")
    assert reply is not None
    assert (reply.status, json.loads(reply.body)) == (413, {"error": "request body too large"})


def test_no_spelling_of_metrics_or_push_reaches_a_host_by_another_way(tmp_path: Path) -> None:
    """Nor does any path that no host serves."""
    with recorded(tmp_path, _answer("200 OK")) as host, Client(("127.0.0.1", host.nginx.port)) as client:
        for path in NOT_PASSED_ON:
            reply = client.get(path)
            assert (reply.status, list(json.loads(reply.body))) == (404, ["error"])
            assert (reply.headers["cache-control"], reply.headers["access-control-allow-origin"]) == ("no-store", "*")
    assert host.heads == []


@pytest.mark.parametrize("refusal", ["400 Bad Request", "413 Content Too Large", "431 Request Header Fields Too Large"])
def test_the_refusal_of_a_host_is_kept_for_nobody(tmp_path: Path, refusal: str) -> None:
    """The next client gets an answer of its own in the same second."""
    with recorded(tmp_path, _answer(refusal), _answer("200 OK")) as host:
        _early_in_a_second()
        statuses = [requests.get(f"{host.nginx.url}/funding", timeout=PATIENCE_S).status_code for _ in range(2)]
    assert statuses == [int(refusal[:3]), 200]


def test_a_query_that_names_every_symbol_is_served_and_kept(hosts: Hosts) -> None:
    """16 KiB, the most that a host reads; nginx keeps its answer as any other."""
    path = "/funding/batch?symbols=BTCUSDT".ljust(16_384 + len("/funding/batch?"), ",")
    _early_in_a_second()
    answers = [hosts.ask(path) for _ in range(2)]
    assert [answer.json()["found"] for answer in answers] == [1, 1]
    assert [asked.path for asked in hosts.nginx.asked()].count(path) == 1
    assert hosts.ask(path + "," * 20_000).json() == {"error": "request line too long"}


def test_copies_are_deleted_when_nobody_asks_for_them_any_more(hosts: Hosts) -> None:
    """However many different questions there were."""
    for limit in range(1, 200):
        hosts.ask(f"/funding/batch?sort=fundingRate&limit={limit}")
    assert hosts.nginx.copies()
    eventually(lambda: not hosts.nginx.copies(), "the copies are deleted")
