"""The HTTP server against h11, another reading of the same RFC: on what it sends, and on requests damaged at random."""

import json
import os
import random
import string
from collections.abc import Iterator

import h11
import pytest

from binance_funding.server.http.server import HttpServer
from tests.support.http_client import Client, echo, exchange, running

FUZZ_REQUESTS = int(os.environ.get("HTTP_FUZZ_REQUESTS", "10000"))


@pytest.fixture
def server() -> Iterator[HttpServer]:
    """A server that echoes."""
    with running(echo) as server:
        yield server


TOKEN = string.ascii_letters + string.digits + "!#$%&'*+-.^_`|~"
VISIBLE = "".join(map(chr, [*range(0x21, 0x7F), *range(0xA0, 0x100)]))
VISIBLE_ASCII = VISIBLE[:94]
WITH_A_MEANING = {"host", "connection", "content-length", "transfer-encoding", "expect", "upgrade"}


def text(chance: random.Random, alphabet: str, most: int) -> str:
    """Return one to most random characters."""
    return "".join(chance.choices(alphabet, k=chance.randint(1, most)))


def random_headers(chance: random.Random) -> dict[str, str]:
    """Return up to three headers that mean nothing to a server; in each value a blank or a tab."""
    names = [text(chance, TOKEN, 12) for _ in range(3)]
    values = [text(chance, VISIBLE, 20) + chance.choice(" \t") + text(chance, VISIBLE, 20) for _ in names]
    return {name: value for name, value in zip(names, values, strict=True) if name.lower() not in WITH_A_MEANING}


def test_what_h11_sends_is_accepted_and_understood(server: HttpServer) -> None:
    """Random methods, targets and headers: the handler sees what was meant."""
    chance = random.Random(20261124)
    with Client(server.address) as client:
        for _ in range(2000):
            method = chance.choice(["GET", "HEAD"])
            path = "/" + text(chance, VISIBLE_ASCII.translate({ord(c): None for c in "#%?"}), 30)
            query = text(chance, VISIBLE_ASCII.translate({ord(c): None for c in "#%"}), 30)
            headers = random_headers(chance)
            lines = [(name.encode(), value.encode("latin-1")) for name, value in {"Host": "x", **headers}.items()]
            request = h11.Request(method=method, target=f"{path}?{query}", headers=lines)
            client.send(h11.Connection(h11.CLIENT).send(request) or b"")
            reply = client.reply(method)
            assert reply.status == 200
            seen = {name.lower(): value for name, value in headers.items()}
            if method == "GET" and len(seen) == len(headers):
                assert json.loads(reply.body) == [method, path, query, {"host": "x", **seen}]


SEEDS = (
    b"GET / HTTP/1.1\r\nHost: localhost:8888\r\nUser-Agent: x\r\n\r\n",
    b"HEAD /funding/BTCUSDT?x=1&y=%20 HTTP/1.1\r\nHost: a\r\nAccept: */*\r\nConnection: close\r\n\r\n",
    b"GET /%E5%B8%81 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    b"GET http://example.com/a?b HTTP/1.1\r\nHost: example.com\r\nContent-Length: 0\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: [::1]:80\r\nOrigin: http://x\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
    b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n0\r\n\r\n",
)
SPLINTERS = (
    *(b"\r\n", b"\r", b"\n", b"\0", b" ", b"\t", b":", b"%", b"#", b",", b"0", b"\xff", b"\x7f", b"\r\n\r\n"),
    *(b"Host: b\r\n", b"Content-Length: 5\r\n", b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n"),
    *(b" HTTP/1.1", b"HTTP/2.0", b"close", b"A" * 8200, b"X:y\r\n" * 70),
)


def mutated(chance: random.Random) -> bytes:
    """One of the seeds, damaged in one to four places."""
    payload = bytearray(chance.choice(SEEDS))
    for _ in range(chance.randint(1, 4)):
        start = chance.randrange(len(payload) + 1)
        end = min(len(payload), start + chance.randint(0, 12))
        kind = chance.randrange(6)
        if kind == 0:
            payload[start : start + 1] = bytes([chance.randrange(256)])
        elif kind == 1:
            del payload[start:end]
        elif kind == 2:
            payload[start:start] = payload[start:end]
        elif kind == 3:
            payload += chance.choice(SEEDS)
        else:
            payload[start : end if kind == 4 else start] = chance.choice(SPLINTERS)
    return bytes(payload)


def h11_rejects(payload: bytes) -> bool:
    """Whether h11, as a server, finds the first request in payload wrong."""
    judge = h11.Connection(h11.SERVER)
    judge.receive_data(payload)
    try:
        judge.next_event()
    except h11.RemoteProtocolError:
        return True
    return False


@pytest.mark.timeout(600)
def test_damaged_requests_end_in_correct_answers_or_a_clean_close(server: HttpServer) -> None:
    """As h11 judges them; whole ones are answered in any case, and what h11 rejects never reaches the handler.

    There is one difference: RFC 9112 section 2.2 wants an empty line before a request ignored, which h11 does not.
    HTTP_FUZZ_REQUESTS sets how many are tried.
    """
    chance = random.Random(9112)
    served = 0
    for _ in range(FUZZ_REQUESTS):
        payload = mutated(chance)
        try:
            replies = exchange(server, payload)
        except (h11.RemoteProtocolError, OSError) as fault:
            raise AssertionError(f"{payload!r}: {fault!r}") from fault
        assert replies or b"\r\n\r\n" not in payload.removeprefix(b"\r\n"), payload
        if replies and "x-method" in replies[0].headers:
            served += 1
            assert payload.startswith(b"\r\n") or not h11_rejects(payload), payload
    assert FUZZ_REQUESTS / 20 < served < FUZZ_REQUESTS / 2, "the damage is not of a kind that tests much"
    with Client(server.address) as client:
        assert client.get().status == 200
