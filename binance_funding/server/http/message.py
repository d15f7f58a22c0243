"""HTTP/1.1 messages: from the bytes of a request head to a Request, from a Response to the bytes sent. No I/O.

Requests are read by the letter of RFC 9112, without the leniency it permits: what is doubtful gets 400, because two
readings of one message are how requests are smuggled. What the RFC leaves open is decided like this:
- One empty line before a request line is skipped (section 2.2); bare CR, bare LF and folded lines are refused.
- A request body gets 413, or 405 where the method is not served either; one whose announcement is malformed, repeated
  or framed in two ways gets 400. Expect is ignored: it concerns a body (RFC 9110 section 10.1.1).
- HTTP/1.2 and later are read as HTTP/1.1; another major version gets 505. Methods not served get 405 on any target.
- Any printable ASCII is accepted in a target except "#"; a path must be percent-encoded UTF-8.
"""

import json
import re
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

METHODS = ("GET", "HEAD", "OPTIONS")
# Without its query, which may name every symbol. The first number is from RFC 9112 section 3.
_MAX_REQUEST_LINE_BYTES, _MAX_HEAD_BYTES, _MAX_HEADER_LINES = 8000, 8192, 64
_MAX_QUERY_BYTES = 16384
_JOIN_BYTES = 16384  # a body up to this size is copied behind its head; a larger one stays where it is

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
_ORIGIN = rf"(?:(?i:https?)://(?=[^:/?])({_HOST.pattern})|(?=/))"
_TARGET = re.compile(rf"{_ORIGIN}(/(?:[^%?#]|%[0-9A-Fa-f]{{2}})*)?(?:\?([^#]*))?")
# RFC 9110 section 8.6: Content-Length = 1*DIGIT
_CONTENT_LENGTH = re.compile(r"[0-9]{1,20}")


class Request(NamedTuple):
    """A request: path percent-decoded, query as sent; header names in lower case, repeated ones joined by ", "."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]


class Response(NamedTuple):
    """A final answer with a status of http.HTTPStatus, and with its body whatever the method; encode does the rest.

    With events, the body goes on for as long as the client stays: with what they yield whenever it can take more.
    """

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    events: Iterator[list[bytes]] | None = None


def error_response(status: int, message: str, *headers: tuple[str, str]) -> Response:
    """Make a response whose body is {"error": message}. No cache may keep it: other clients must not get it."""
    body = json.dumps({"error": message}, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
    own_headers = (("Content-Type", "application/json; charset=utf-8"), ("Cache-Control", "no-store"))
    return Response(status, body, (*own_headers, *headers))


class BadRequest(Exception):
    """The request gets error_response(*args) and the connection is closed: what follows can no longer be trusted."""


def parse_head(head: bytes) -> tuple[Request, str] | None:
    """Parse a head, its empty line included; None while that is to come, and may come.

    Returns the request and the Connection header of its answer, "" for none. The target of a method that is not served
    is left undecoded. Raises BadRequest, for an incomplete head as soon as nothing to come could save it.
    """
    head = head.removeprefix(b"\r\n")
    if _BAD_OCTET.search(head):
        raise BadRequest(400, "control character, bare CR or bare LF in the request head")
    line, line_ended, rest = head.decode("latin-1").partition("\r\n")
    query_bytes = len(line.partition("?")[2].partition(" ")[0])
    if len(line.removesuffix("\r")) - query_bytes > _MAX_REQUEST_LINE_BYTES or query_bytes > _MAX_QUERY_BYTES:
        raise BadRequest(414, "request line too long")
    if not line_ended:
        return None
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        raise BadRequest(400, "malformed request line")
    method, target, major_version, minor_version = match.groups()
    if major_version != "1":
        raise BadRequest(505, "only HTTP/1.1 and HTTP/1.0 are served")
    if len(head) - query_bytes > _MAX_HEAD_BYTES or rest.count("\r\n") > _MAX_HEADER_LINES + 1:
        raise BadRequest(431, "request header too large")
    if not head.endswith(b"\r\n\r\n"):
        return None
    headers = _parse_header_lines(rest.split("\r\n")[:-2], minor_version)
    connection, has_body = _connection_option(headers, minor_version), _announces_body(headers, minor_version)
    if method not in METHODS:
        return Request(method, target, "", headers), "close" if has_body else connection
    if has_body:
        raise BadRequest(413, "request bodies are not accepted")
    return Request(method, *_parse_target(target, method, headers), headers), connection


def _parse_header_lines(lines: list[str], minor_version: str) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not _TOKEN.fullmatch(name):
            raise BadRequest(400, "malformed header line")
        name, value = name.lower(), value.strip(" \t")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    host = headers.get("host", "" if minor_version == "0" else None)
    if host is None or not _HOST.fullmatch(host):  # two of them are joined by ", ", and no host has a space
        raise BadRequest(400, "exactly one valid Host header is needed")
    return headers


def _connection_option(headers: Mapping[str, str], minor_version: str) -> str:
    options = {option.strip(" \t").lower() for option in headers.get("connection", "").split(",")}
    if "close" in options or (minor_version == "0" and "keep-alive" not in options):
        return "close"
    return "keep-alive" if minor_version == "0" else ""


def _announces_body(headers: Mapping[str, str], minor_version: str) -> bool:
    length, coding = headers.get("content-length"), headers.get("transfer-encoding")
    if length is not None and not _CONTENT_LENGTH.fullmatch(length):  # two of them, joined, do not match either
        raise BadRequest(400, "malformed Content-Length")
    if coding is not None and (length is not None or minor_version == "0" or coding.lower() != "chunked"):
        raise BadRequest(400, "ambiguous message framing")
    return coding is not None or int(length or 0) > 0


def _parse_target(target: str, method: str, headers: dict[str, str]) -> tuple[str, str]:
    if target == "*" and method == "OPTIONS":
        return "*", ""
    match = _TARGET.fullmatch(target)
    if match is None:
        raise BadRequest(400, "malformed request target")
    host, path, query = match.groups()
    if host is not None:
        headers["host"] = host  # whatever the header said (RFC 9112 section 3.2.2)
    try:
        return unquote_to_bytes(path or "/").decode(), query or ""
    except UnicodeDecodeError:
        raise BadRequest(400, "the path is not UTF-8") from None


def encode(response: Response, connection: str, date: str, *, head_only: bool) -> tuple[bytes, ...]:
    """Make the bytes of a response, in one buffer or two; connection is as parse_head returned it.

    Adds Date, Content-Length, Connection and the Access-Control headers; leaves the body out with head_only, and where
    the status forbids one. Raises ValueError where a header holds what cannot be sent in one.
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
