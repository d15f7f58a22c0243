"""HTTP/1.1 by the letter: what is a request, what is none, and what an answer looks like. No sockets."""

import contextlib
import json
import time

import pytest

from binance_funding.server.http.message import (
    BadRequest,
    Request,
    Response,
    encode,
    error_response,
    parse_head,
    take_head,
)

DATE = "Sun, 09 Sep 2001 01:46:40 GMT"


def read(received: bytes) -> tuple[Request, str] | None:
    """Parse the first head, if it is complete."""
    taken = take_head(received, 0)
    return taken and parse_head(taken[0])


def parsed(head: bytes) -> Request:
    """Parse a complete and valid head."""
    result = read(head)
    assert result is not None
    return result[0]


def connection_header(head: bytes) -> str:
    """Return the Connection header of the answer to this head."""
    result = read(head)
    assert result is not None
    return result[1]


def refusal(received: bytes) -> int:
    """Return the status with which these bytes are refused."""
    with pytest.raises(BadRequest) as refused:
        read(received)
    status, message = refused.value.args
    assert json.loads(error_response(status, message).body) == {"error": message}
    return int(status)


def test_a_request_is_decoded() -> None:
    """The path is percent-decoded, the query is not, header names are in lower case and repeated ones joined."""
    lines = b"Host: x\r\nAccept: a\r\nX-Empty:\r\nACCEPT: \t b c \t\r\n"
    head = b"GET /funding/%E5%B8%81%2fx?a=%41&b=? HTTP/1.1\r\n" + lines + b"\r\n"
    headers = {"host": "x", "accept": "a, b c", "x-empty": ""}
    assert parsed(head) == Request("GET", "/funding/币/x", "a=%41&b=?", headers)


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("http://example.com/a?b=c", "/a", "b=c"),
        ("HTTPS://[::1]:8888/", "/", ""),
        ("http://example.com", "/", ""),
        ("http://example.com?b", "/", "b"),
    ],
)
def test_an_absolute_target_is_accepted(target: str, path: str, query: str) -> None:
    """Path and query are read as from the ordinary form."""
    assert parsed(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode()) == Request("GET", path, query, {"host": "x"})


@pytest.mark.parametrize(
    "target",
    [
        *("/a#b", "/?a#b", "/%", "/%4", "/%zz", "/%ff", "/%ed%a0%80", "*", "a", "?a", "/?%zz", "/?a=%4", "/?%"),
        *("ftp://x/", "http:///x", "http://u@x/", "http://x:p/", "//%"),
    ],
)
def test_a_malformed_target_is_refused(target: str) -> None:
    """Fragments, broken escapes in path or query, paths that are not UTF-8, other schemes, no host, user names: 400."""
    assert refusal(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode()) == 400


@pytest.mark.parametrize(
    "line",
    [
        *(b"\r\n", b"GET", b"GET /", b"GET  / HTTP/1.1", b"GET /  HTTP/1.1", b" GET / HTTP/1.1", b"GET / HTTP/1.1 "),
        *(b"GET\t/\tHTTP/1.1", b"G(T / HTTP/1.1", b"GET / http/1.1", b"GET / HTTP/1", b"GET / HTTP/1.10"),
        *(b"GET / HTTP/11", b"GET / x HTTP/1.1", b"GET /\xe5\xb8\x81 HTTP/1.1", b"GET /\x7f HTTP/1.1"),
        *(b"GET /\x00 HTTP/1.1", b"GET / HTTP/\xb2.1"),
    ],
)
def test_a_malformed_request_line_is_refused(line: bytes) -> None:
    """400."""
    assert refusal(line + b"\r\nHost: x\r\n\r\n") == 400


@pytest.mark.parametrize(
    "line",
    [
        *(b"A : b", b" A: b", b"A: b\r\n c", b"A: b\r\n\tc", b"A", b": b", b"A(b): c", b"\xe4: b"),
        *(b"A: \x00", b"A: \x01", b"A: \x7f", b"A: b\rc", b"A: b\nC: d", b"A: b\r", b"A: b\r\r\n\nC: d"),
    ],
)
def test_a_malformed_header_line_is_refused(line: bytes) -> None:
    """Blanks before the colon, folded lines, no names, control characters, bare CR or LF: 400."""
    assert refusal(b"GET / HTTP/1.1\r\nHost: x\r\n" + line + b"\r\n\r\n") == 400


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET / HTTP/1.1\n", 400),
        (b"GET / HTTP/1.1\r\nA: \x01", 400),
        (b"GET / HTTP/1.1\r\nA: b\rc", 400),
        (b"GET /\r\n", 400),
        (b"\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00", 400),
        (b"PRI * HTTP/2.0\r\n", 505),
        (b"GET /" + b"a" * 8000, 414),
        (b"GET / HTTP/1.1\r\nA: " + b"a" * 8192, 431),
    ],
)
def test_an_incomplete_head_that_nothing_can_save_is_refused(head: bytes, status: int) -> None:
    """The client does not have to wait until its time is over."""
    assert refusal(head) == status


def test_every_beginning_of_a_valid_head_is_incomplete() -> None:
    """Also where it ends within a line end, and with the longest request line there may be."""
    longest = b"GET /" + b"a" * 7986 + b" HTTP/1.1\r\nHost: x\r\n\r\n"
    assert len(longest.partition(b"\r\n")[0]) == 8000
    for head in (b"\r\nGET / HTTP/1.1\r\nHost: x\r\nA: b\r\n\r\n", longest):
        for end in range(len(head)):
            assert read(head[:end]) is None
        assert read(head) is not None


def test_the_end_of_a_head_is_found_however_the_head_is_cut() -> None:
    """Each part is passed on with the number of bytes that were checked before."""
    received = b"\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n"
    for first in range(len(received)):
        for second in range(first, len(received)):
            assert take_head(received[:first], 0) is None
            assert take_head(received[:second], first) is None
            assert take_head(received + b"GET", second) == (received[2:], b"GET")


@pytest.mark.parametrize("line", [b"A: \x01b\r\n", b"A: b\rc\r\n", b"A: b\nc\r\n"])
def test_a_control_character_is_found_however_the_head_is_cut(line: bytes) -> None:
    """As soon as it has come, or with the byte behind it."""
    received = b"GET / HTTP/1.1\r\n" + line
    for cut in range(len(received) - 2):
        with contextlib.suppress(BadRequest):
            assert take_head(received[:cut], 0) is None
            assert take_head(received, cut) is None
            pytest.fail(f"not found when cut at {cut}")


def test_a_head_that_comes_byte_by_byte_costs_little() -> None:
    """Only the new bytes are looked at: 24,000 of them take a second at most, and a fraction of it when idle."""
    head = b"GET /?" + b"q" * 16000 + b" HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 8000 + b"\r\n\r\n"
    before_s = time.thread_time()
    for received in range(1, len(head)):
        assert take_head(head[:received], received - 1) is None
    assert time.thread_time() - before_s < 1


def test_heads_up_to_the_limits_are_accepted() -> None:
    """8000 bytes of request line, 64 header lines, 8192 bytes of head; one more is refused."""

    def head(line_bytes: int, lines: int, head_bytes: int) -> bytes:
        request_line = "GET /" + "a" * (line_bytes - 14) + " HTTP/1.1\r\n"
        headers = ["Host: x\r\n", *["A: b\r\n"] * (lines - 2)]
        padding = head_bytes - len(request_line) - sum(map(len, headers)) - len("B: \r\n\r\n")
        return "".join([request_line, *headers, "B: ", "b" * padding, "\r\n\r\n"]).encode()

    for within in (head(8000, 2, 8100), head(100, 64, 1000), head(100, 3, 8192), b"\r\n" + head(100, 3, 8192)):
        assert read(within) is not None
    assert refusal(head(8001, 2, 8100)) == 414
    assert refusal(head(100, 65, 1000)) == 431
    assert refusal(head(100, 3, 8193)) == 431


def test_a_query_has_a_limit_of_its_own() -> None:
    """It may name every symbol of the market, percent-encoded: 16384 bytes beside what the rest may have."""

    def head(path_bytes: int, query_bytes: int, field_bytes: int) -> bytes:
        line = f"GET /{'a' * path_bytes}?{'q' * query_bytes} HTTP/1.1"
        return f"{line}\r\nHost: x\r\nA: {'b' * field_bytes}\r\n\r\n".encode()

    assert len(parsed(head(7985, 16384, 100)).query) == 16384
    assert read(head(10, 16384, 8100)) is not None
    assert refusal(head(10, 16385, 10)) == 414
    assert refusal(head(7986, 10, 10)) == 414
    assert refusal(head(10, 16384, 8192)) == 431
    assert refusal(b"GET /?" + b"q" * 16385) == 414


@pytest.mark.parametrize(
    "hosts", ["", "Host: a\r\nHost: a\r\n", "Host:\r\nHost:\r\n", "Host: a b\r\n", "Host: a/b\r\n", "Host: u@a\r\n"]
)
def test_http_1_1_needs_exactly_one_valid_host(hosts: str) -> None:
    """Else 400 (RFC 9112 section 3.2)."""
    assert refusal(f"GET / HTTP/1.1\r\n{hosts}\r\n".encode()) == 400


@pytest.mark.parametrize("host", ["", "a", "a_b.example:80", "127.0.0.1:8888", "[::1]", "[fe80::1%25eth0]:80", "a:"])
def test_valid_hosts_are_accepted(host: str) -> None:
    """Names, addresses of both kinds, with port or without; an empty one is valid too."""
    assert parsed(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()).headers == {"host": host}


def test_http_1_0_needs_no_host() -> None:
    """It has no such header to send."""
    assert parsed(b"GET / HTTP/1.0\r\n\r\n") == Request("GET", "/", "", {})


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (b"Content-Length: 3\r\n", 413),
        (b"Transfer-Encoding: chunked\r\n", 413),
        (b"Transfer-Encoding: Chunked\r\n", 413),
        (b"Transfer-Encoding: gzip\r\n", 400),
        (b"Transfer-Encoding: chunked\r\nContent-Length: 0\r\n", 400),
        (b"Content-Length: 0\r\nContent-Length: 5\r\n", 400),
        *(
            (b"Content-Length: " + length + b"\r\n", 400)
            for length in (b"", b"-1", b"+0", b"0x0", b"1.0", b"\xb2", b"1_0", b"0, 0", b"0" * 21)
        ),
    ],
)
def test_a_request_with_a_body_is_refused(headers: bytes, status: int) -> None:
    """413, or 400 where its length is in doubt."""
    assert refusal(b"GET / HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n") == status


def test_http_1_0_has_no_transfer_encoding() -> None:
    """400: it may come from one who does not know it (RFC 9112 section 6.1)."""
    assert refusal(b"GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n") == 400


@pytest.mark.parametrize("header", ["Content-Length: 0", "Content-Length: 00", "Expect: 100-continue", "TE: trailers"])
def test_headers_that_announce_no_body_are_accepted(header: str) -> None:
    """A length of zero is none, and Expect concerns a body only."""
    assert parsed(f"GET / HTTP/1.1\r\nHost: x\r\n{header}\r\n\r\n".encode()).path == "/"


@pytest.mark.parametrize("line", ["POST /%", "get /", "BREW /#", "CONNECT a:80", "TRACE *", "!#$%&'*+-.^_`|~9 x"])
def test_other_methods_are_parsed_whatever_their_target(line: str) -> None:
    """The target is left as it came; where a body follows, the connection closes."""
    head = f"{line} HTTP/1.1\r\nHost: x\r\n".encode()
    method, target = line.split(" ")
    assert parsed(head + b"\r\n") == Request(method, target, "", {"host": "x"})
    assert connection_header(head + b"\r\n") == ""
    assert connection_header(head + b"Content-Length: 3\r\n\r\n") == "close"
    assert connection_header(head + b"Transfer-Encoding: chunked\r\n\r\n") == "close"


@pytest.mark.parametrize(
    ("version", "header", "expected"),
    [
        ("1.1", "", ""),
        ("1.1", "Connection: close\r\n", "close"),
        ("1.1", "Connection: Close\r\n", "close"),
        ("1.1", "Connection: keep-alive, close\r\n", "close"),
        ("1.1", "Connection: x ,\tCLOSE\r\n", "close"),
        ("1.1", "Connection: x\r\nConnection: close\r\n", "close"),
        ("1.1", "Connection: keep-alive\r\n", ""),
        ("1.0", "", "close"),
        ("1.0", "Connection: Keep-Alive\r\n", "keep-alive"),
        ("1.0", "Connection: keep-alive, close\r\n", "close"),
        ("1.2", "", ""),
        ("1.9", "Connection: close\r\n", "close"),
    ],
)
def test_the_connection_header_follows_version_and_wish(version: str, header: str, expected: str) -> None:
    """HTTP/1.1 stays open unless asked to close, HTTP/1.0 closes unless asked to stay; close wins (RFC 9112 9.3)."""
    assert connection_header(f"GET / HTTP/{version}\r\nHost: x\r\n{header}\r\n".encode()) == expected


@pytest.mark.parametrize("version", ["0.9", "2.0", "3.1"])
def test_other_major_versions_are_refused(version: str) -> None:
    """505."""
    assert refusal(f"GET / HTTP/{version}\r\nHost: x\r\n\r\n".encode()) == 505


def encoded(response: Response, connection: str = "", *, head_only: bool = False) -> bytes:
    """Encode in one piece."""
    return b"".join(encode(response, connection, DATE, head_only=head_only))


def test_an_answer_has_what_every_answer_needs() -> None:
    """Date, length, and leave for dashboards of other origins to read it and its ETag."""
    assert encoded(Response(200, b"body", (("ETag", '"x"'),)), "close") == (
        b'HTTP/1.1 200 OK\r\nDate: Sun, 09 Sep 2001 01:46:40 GMT\r\nETag: "x"\r\n'
        b"Access-Control-Allow-Origin: *\r\nAccess-Control-Expose-Headers: ETag, Retry-After\r\n"
        b"Content-Length: 4\r\nConnection: close\r\n\r\nbody"
    )


def test_the_answer_to_head_has_the_headers_of_get_and_no_body() -> None:
    """Content-Length included (RFC 9110 section 9.3.2)."""
    for body in (b"body", b"x" * 100_000):
        get = encoded(Response(200, body))
        assert encoded(Response(200, body), head_only=True) + body == get


@pytest.mark.parametrize("status", [204, 304])
def test_an_answer_without_content_has_neither_body_nor_length(status: int) -> None:
    """Whatever the handler says (RFC 9110 sections 8.6 and 15)."""
    answer = encoded(Response(status, b"body"))
    assert b"Content-Length" not in answer
    assert answer.endswith(b"\r\n\r\n")


def test_a_big_body_is_not_copied() -> None:
    """It is sent from where it is; a small one travels with its head."""
    body = b"x" * 100_000
    assert encode(Response(200, body), "", DATE, head_only=False)[1] is body
    assert len(encode(Response(200, b"small"), "", DATE, head_only=False)) == 1


@pytest.mark.parametrize("value", ["a\r\nB: c", "\x00", "币"])
def test_a_header_that_cannot_be_sent_is_an_error(value: str) -> None:
    """It never reaches the client, where it could pass for a header or a body of its own."""
    with pytest.raises(ValueError, match=r"control character|latin-1"):
        encode(Response(200, b"", (("A", value),)), "", DATE, head_only=False)


def test_an_error_may_not_be_stored() -> None:
    """A proxy must not give one client's error to another client."""
    own = (("Content-Type", "application/json; charset=utf-8"), ("Cache-Control", "no-store"))
    given = ("Retry-After", "5")
    assert error_response(503, "stale", given) == Response(503, b'{"error":"stale"}\n', (*own, given))
    assert json.loads(error_response(404, '币"').body) == {"error": '币"'}
