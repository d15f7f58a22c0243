"""HTTP/1.1 messages: from the bytes of a request head to a Request, from a Response to the bytes of an answer. No I/O.

Requests are read by the letter of RFC 9112, without the leniency it permits: what is doubtful gets 400, because two
readings of one message are how requests are smuggled. What the RFC leaves open is settled like this:
- One empty line before a request line is skipped (section 2.2); bare CR, bare LF and folded lines are refused.
- Request bodies are not accepted. A well-formed announcement of one gets 413 (or 405, where the method is not served
  either); one that is malformed, repeated or framed in two ways gets 400.
- Expect is ignored: it concerns a body (RFC 9110 section 10.1.1).
- HTTP/1.2 and later are read as HTTP/1.1; another major version gets 505.
- A method that is not served gets 405, whatever its target.
- Any printable ASCII is accepted in a target except "#"; a path must be percent-encoded UTF-8.
"""

import json
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

METHODS = ("GET", "HEAD", "OPTIONS")
MAX_REQUEST_LINE_BYTES = 8000  # what RFC 9112 section 3 asks every server to support
MAX_HEAD_BYTES = 8192
MAX_HEADER_LINES = 64
JOIN_BYTES = 16384  # a body up to this size is copied behind its head; a larger one stays where it is

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_REQUEST_LINE = re.compile(rf"({_TOKEN.pattern}) ([!-~]+) HTTP/([0-9])\.([0-9])")
_HOST_CHARS = r"A-Za-z0-9\-._~%!$&'()*+,;="
_HOST = re.compile(rf"(?:\[[{_HOST_CHARS}:]+\]|[{_HOST_CHARS}]*)(?::[0-9]*)?")
_ABSOLUTE_FORM = re.compile(rf"(?i:https?)://(?=[^:/?])({_HOST.pattern})((?:[/?].*)?)")
_CONTENT_LENGTH = re.compile(r"[0-9]{1,20}")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_LINE_OCTETS = bytes([0x09, *range(0x20, 0x7F), *range(0x80, 0x100)])
_REASONS = {status.value: status.phrase for status in HTTPStatus}
_COMMON_HEADERS = ("Access-Control-Allow-Origin: *", "Access-Control-Expose-Headers: ETag, Retry-After")


class Request(NamedTuple):
    """A request: path percent-decoded, query as sent; header names in lower case, repeated ones joined by ", "."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]


class Response(NamedTuple):
    """A final answer (status 200 to 599), with its body whatever the method.

    Date, Content-Length, Connection and the Access-Control headers are added, and the body is left out where method or
    status forbid one.
    """

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


def error_response(status: int, message: str, headers: tuple[tuple[str, str], ...] = ()) -> Response:
    """Make an answer whose body is {"error": message}; no cache may keep it where status is 503."""
    no_store = (("Cache-Control", "no-store"),) if status == HTTPStatus.SERVICE_UNAVAILABLE else ()
    body = json.dumps({"error": message}, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
    return Response(status, body, (("Content-Type", "application/json; charset=utf-8"), *no_store, *headers))


class Refused(Exception):
    """The request is answered with `response` and the connection given up: what follows can no longer be trusted."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, message)
        self.response = error_response(status, message)


class Answer(NamedTuple):
    """An answer as it is sent: its bytes in one part or two, and whether the connection ends with it."""

    parts: tuple[bytes, ...]
    closes: bool


def find_head(received: bytes, position: int) -> tuple[int, int] | None:
    """Find where the next request's head begins and ends, its empty line included; None while it is incomplete.

    Raises Refused for an incomplete one that nothing to come could save.
    """
    start = position + 2 if received.startswith(b"\r\n", position) else position
    end = received.find(b"\r\n\r\n", start) + 4
    if end >= 4:
        return start, end
    incomplete = received[start:]
    _check_octets(incomplete.removesuffix(b"\r"))
    line, line_ended, _ = incomplete.partition(b"\r\n")
    if line_ended or len(line) > MAX_REQUEST_LINE_BYTES:
        _parse_request_line(line.decode("latin-1"))
    if len(incomplete) > MAX_HEAD_BYTES:
        raise Refused(431, "request header too large")
    return None


def is_head_request(received: bytes, position: int) -> bool:
    """Tell whether the request at position, even if refused or incomplete, is a HEAD: its answer has no body then."""
    return received.startswith((b"HEAD ", b"\r\nHEAD "), position)


def parse_head(head: bytes) -> tuple[Request, str]:
    """Parse a head found by find_head.

    Returns the request, and what Connection header its answer needs: "", "keep-alive" or "close". The target of a
    method that is not served is left undecoded. Raises Refused.
    """
    _check_octets(head)
    request_line, *lines = head[:-4].decode("latin-1").split("\r\n")
    method, target, minor_version = _parse_request_line(request_line)
    if len(head) > MAX_HEAD_BYTES or len(lines) > MAX_HEADER_LINES:
        raise Refused(431, "request header too large")
    headers = _parse_header_lines(lines)
    _check_host(headers, minor_version)
    connection = _connection_option(headers, minor_version)
    has_body = _announces_body(headers, minor_version)
    if method not in METHODS:
        return Request(method, target, "", headers), "close" if has_body else connection
    if has_body:
        raise Refused(413, "request bodies are not accepted")
    path, query = _parse_target(target, method, headers)
    return Request(method, path, query, headers), connection


def _check_octets(head: bytes) -> None:
    if head.replace(b"\r\n", b"").translate(None, _LINE_OCTETS):
        raise Refused(400, "control character, bare CR or bare LF in the request head")


def _parse_request_line(line: str) -> tuple[str, str, int]:
    if len(line) > MAX_REQUEST_LINE_BYTES:
        raise Refused(414, "request line too long")
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        raise Refused(400, "malformed request line")
    method, target, major_version, minor_version = match.groups()
    if major_version != "1":
        raise Refused(505, "only HTTP/1.1 and HTTP/1.0 are spoken here")
    return method, target, int(minor_version)


def _parse_header_lines(lines: list[str]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not _TOKEN.fullmatch(name):
            raise Refused(400, "malformed header line")
        name, value = name.lower(), value.strip(" \t")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def _check_host(headers: Mapping[str, str], minor_version: int) -> None:
    host = headers.get("host", "" if minor_version == 0 else None)
    if host is None or not _HOST.fullmatch(host):  # two of them are joined by ", ", and no host has a space
        raise Refused(400, "exactly one valid Host header is needed")


def _connection_option(headers: Mapping[str, str], minor_version: int) -> str:
    options = {option.strip(" \t").lower() for option in headers.get("connection", "").split(",")}
    if "close" in options:
        return "close"
    if minor_version == 0:
        return "keep-alive" if "keep-alive" in options else "close"
    return ""


def _announces_body(headers: Mapping[str, str], minor_version: int) -> bool:
    length = headers.get("content-length")
    if length is not None and not _CONTENT_LENGTH.fullmatch(length):  # nor do two of them, joined, look like one
        raise Refused(400, "malformed Content-Length")
    if "transfer-encoding" in headers:
        if length is not None or minor_version == 0 or headers["transfer-encoding"].lower() != "chunked":
            raise Refused(400, "ambiguous message framing")
        return True
    return length is not None and int(length) > 0


def _parse_target(target: str, method: str, headers: dict[str, str]) -> tuple[str, str]:
    if target == "*" and method == "OPTIONS":
        return "*", ""
    if not target.startswith("/"):
        absolute_form = _ABSOLUTE_FORM.fullmatch(target)
        if absolute_form is None:
            raise Refused(400, "malformed request target")
        headers["host"], target = absolute_form.groups()  # whatever the header said (RFC 9112 section 3.2.2)
    path, _, query = target.partition("?")
    if "#" in target or _BAD_ESCAPE.search(path):
        raise Refused(400, "malformed request target")
    try:
        return unquote_to_bytes(path).decode() or "/", query
    except UnicodeDecodeError:
        raise Refused(400, "the path is not UTF-8") from None


def encode(response: Response, connection: str, date: str, *, head_only: bool) -> Answer:
    """Make the bytes of an answer; connection is as parse_head returned it.

    Raises ValueError where a header holds what cannot be sent in one.
    """
    status, body, headers = response
    lines = [f"HTTP/1.1 {status} {_REASONS.get(status, '')}", f"Date: {date}"]
    lines += [f"{name}: {value}" for name, value in headers]
    lines += _COMMON_HEADERS
    if status in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED):
        head_only = True
    else:
        lines.append(f"Content-Length: {len(body)}")
    if connection:
        lines.append(f"Connection: {connection}")
    if not all(map(str.isprintable, lines)):
        raise ValueError(f"control character in a header: {headers!r}")
    head = "\r\n".join([*lines, "\r\n"]).encode("latin-1")
    if head_only:
        parts: tuple[bytes, ...] = (head,)
    elif len(body) <= JOIN_BYTES:
        parts = (head + body,)
    else:
        parts = (head, body)
    return Answer(parts, closes=connection == "close")
