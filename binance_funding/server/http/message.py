"""HTTP/1.1 messages: from the bytes of a request head to a Request, from a Response to the bytes sent. No I/O.

Requests are read by the letter of RFC 9112, without the leniency that it permits. A doubtful request gets 400, because
request smuggling needs two readings of one message. Where the RFC leaves a choice, this module decides:
- One empty line before a request line is skipped (section 2.2). Bare CR, bare LF and folded lines are refused.
- A request with a body gets 413, or 405 if its method is not served. It gets 400 if the length of the body is
  malformed, given twice or given in two ways. Expect is ignored: it concerns a body (RFC 9110 section 10.1.1).
- HTTP/1.2 and later are read as HTTP/1.1. Another major version gets 505. Other methods get 405 on any target.
- A target may hold any printable ASCII except "#". Each "%" must begin an escape, and a decoded path must be UTF-8.
"""

import json
import re
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

METHODS = ("GET", "HEAD", "OPTIONS")
# Line and head are counted without the query, which may name every symbol. 8000 is from RFC 9112 section 3.
_MAX_REQUEST_LINE_BYTES, _MAX_HEAD_BYTES, _MAX_HEADER_LINES, _MAX_QUERY_BYTES = 8000, 8192, 64, 16384
_JOIN_BYTES = 16384  # a body up to this size is copied behind its head; a larger body is not copied
_HEADER_TOO_LARGE = "request header too large"

# RFC 9110 section 5.6.2: token = 1*tchar
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
# RFC 9112 section 3: request-line = method SP request-target SP HTTP-version
_REQUEST_LINE = re.compile(rf"({_TOKEN.pattern}) ([!-~]+) HTTP/([0-9])\.([0-9])")
# RFC 9110 section 5.5: field-vchar = VCHAR / obs-text; also SP, HTAB, and CR before LF (section 2.2 of RFC 9112)
_BAD_OCTET = re.compile(rb"[^\t\r\n -~\x80-\xFF]|\r(?!\n|\Z)|(?<!\r)\n")
# RFC 9110 section 7.2: Host = uri-host [ ":" port ]
_HOST_CHAR = r"A-Za-z0-9\-._~%!$&'()*+,;="
_HOST = re.compile(rf"(?:\[[{_HOST_CHAR}:]+\]|[{_HOST_CHAR}]*)(?::[0-9]*)?")
# RFC 9112 section 3.2: request-target = origin-form / absolute-form / ... (no userinfo, a host)
_ORIGIN = rf"(?:(?i:https?)://(?=[^:/?]){_HOST.pattern}|(?=/))"
_ESCAPE = r"%[0-9A-Fa-f]{2}"
_TARGET = re.compile(rf"{_ORIGIN}(/[^%?#]*(?:{_ESCAPE}[^%?#]*)*)?(?:\?([^%#]*(?:{_ESCAPE}[^%#]*)*))?")
# RFC 9110 section 8.6: Content-Length = 1*DIGIT
_CONTENT_LENGTH = re.compile(r"[0-9]{1,20}")


class Request(NamedTuple):
    """A request."""

    method: str
    path: str  # percent-decoded
    query: str  # not decoded
    headers: Mapping[str, str]  # names in lower case; the values of a repeated header are joined by ", "


class Response(NamedTuple):
    """A final answer. Its status is in http.HTTPStatus, and its body is that of a GET, whatever the method."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    events: Iterator[list[bytes]] | None = None  # further parts of a body that never ends


def error_response(status: int, message: str, *headers: tuple[str, str]) -> Response:
    """Make a response whose body is {"error": message}. No cache may keep it: other clients must not get it."""
    body = json.dumps({"error": message}, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
    own_headers = (("Content-Type", "application/json; charset=utf-8"), ("Cache-Control", "no-store"))
    return Response(status, body, (*own_headers, *headers))


class BadRequest(Exception):
    """The request gets error_response(*args) and its connection is closed, because its end is unknown or doubtful."""


def take_head(received: bytes, checked: int) -> tuple[bytes, bytes] | None:
    """Split received bytes behind the first head, whose last line is empty; None if the head is not complete yet.

    Drops one empty line before the head. The first `checked` bytes were passed to an earlier call and are not searched
    again. Raises BadRequest for an incomplete head that no further bytes can save.
    """
    start = 2 if received.startswith(b"\r\n") else 0
    end = received.find(b"\r\n\r\n", max(start, checked - 3)) + 4
    if end >= 4:
        return received[start:end], received[end:]
    _parse_beginning(received[start:], max(0, checked - start))
    return None


def _parse_beginning(head: bytes, checked: int) -> tuple[str, str, str]:
    """Check a head as far as it has come. Return method, target and minor version, "" before its first line ends."""
    if _BAD_OCTET.search(head, max(0, checked - 1)):
        raise BadRequest(400, "control character, bare CR or bare LF in the request head")
    line, line_end, _ = head.partition(b"\r")
    query_bytes = len(line.partition(b"?")[2].partition(b" ")[0])
    if len(line) - query_bytes > _MAX_REQUEST_LINE_BYTES or query_bytes > _MAX_QUERY_BYTES:
        raise BadRequest(414, "request line too long")
    if len(head) - query_bytes > _MAX_HEAD_BYTES:
        raise BadRequest(431, _HEADER_TOO_LARGE)
    if not line_end or checked > len(line) or head == b"\r":  # the line is incomplete, was parsed before, or is empty
        return "", "", ""
    match = _REQUEST_LINE.fullmatch(line.decode("latin-1"))
    if match is None:
        raise BadRequest(400, "malformed request line")
    method, target, major_version, minor_version = match.groups()
    if major_version != "1":
        raise BadRequest(505, "only HTTP/1.1 and HTTP/1.0 are served")
    return method, target, minor_version


def parse_head(head: bytes) -> tuple[Request, str]:
    """Parse a complete head; return the request and the Connection header of its answer, or "". Raises BadRequest."""
    method, target, minor_version = _parse_beginning(head, 0)
    lines = head.decode("latin-1").split("\r\n")[1:-2]
    if len(lines) > _MAX_HEADER_LINES:
        raise BadRequest(431, _HEADER_TOO_LARGE)
    headers = _parse_header_lines(lines, minor_version)
    connection, has_body = _connection_option(headers, minor_version), _announces_body(headers, minor_version)
    if method not in METHODS:
        return Request(method, target, "", headers), "close" if has_body else connection
    if has_body:
        raise BadRequest(413, "request bodies are not accepted")
    return Request(method, *_parse_target(target, method), headers), connection


def _parse_header_lines(lines: list[str], minor_version: str) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not _TOKEN.fullmatch(name):
            raise BadRequest(400, "malformed header line")
        name, value = name.lower(), value.strip(" \t")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    host = headers.get("host", "" if minor_version == "0" else None)
    if host is None or not _HOST.fullmatch(host):  # two hosts are joined by ", ", and a valid host has no space
        raise BadRequest(400, "exactly one valid Host header is needed")
    return headers


def _connection_option(headers: Mapping[str, str], minor_version: str) -> str:
    options = {option.strip(" \t").lower() for option in headers.get("connection", "").split(",")}
    if "close" in options or (minor_version == "0" and "keep-alive" not in options):
        return "close"
    return "keep-alive" if minor_version == "0" else ""


def _announces_body(headers: Mapping[str, str], minor_version: str) -> bool:
    length, coding = headers.get("content-length"), headers.get("transfer-encoding")
    if length is not None and not _CONTENT_LENGTH.fullmatch(length):  # two headers arrive joined by ", "
        raise BadRequest(400, "malformed Content-Length")
    if coding is not None and (length is not None or minor_version == "0" or coding.lower() != "chunked"):
        raise BadRequest(400, "ambiguous message framing")
    return coding is not None or int(length or 0) > 0


def _parse_target(target: str, method: str) -> tuple[str, str]:
    if target == "*" and method == "OPTIONS":
        return "*", ""
    match = _TARGET.fullmatch(target)
    if match is None:
        raise BadRequest(400, "malformed request target")
    path, query = match.groups()
    try:
        return unquote_to_bytes(path or "/").decode(), query or ""
    except UnicodeDecodeError:
        raise BadRequest(400, "the path is not UTF-8") from None


def encode(response: Response, connection: str, date: str, *, head_only: bool) -> tuple[bytes, ...]:
    """Make the bytes of a response, in one buffer or two. `connection` is the value that parse_head returned.

    Leaves the body out with head_only, and if the status forbids a body. Raises ValueError for an impossible header.
    """
    status, body, headers, events = response
    bodiless = status in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)
    headers += (("Access-Control-Allow-Origin", "*"), ("Access-Control-Expose-Headers", "ETag, Retry-After"))
    headers += () if bodiless or events else (("Content-Length", str(len(body))),)
    headers += (("Connection", connection),) if connection else ()
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", f"Date: {date}", *map(": ".join, headers)]
    if not all(map(str.isprintable, lines)):
        raise ValueError(f"control character in a header: {headers!r}")
    head = "\r\n".join([*lines, "\r\n"]).encode("latin-1")
    body = b"" if head_only or bodiless else body
    return (head + body,) if len(body) <= _JOIN_BYTES else (head, body)
