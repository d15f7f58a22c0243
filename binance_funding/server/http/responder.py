"""From the bytes of requests to the bytes of answers, which are cached for the next who asks the same. No I/O."""

import logging
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import NamedTuple

from ...log import LogThrottle
from .limits import Limits
from .message import METHODS, BadRequest, Request, Response, encode, error_response, parse_head
from .meter import OTHER, Meter, Tally

_ALLOW = ", ".join(METHODS)
_PREFLIGHT = Response(
    204,
    b"",
    (
        ("Allow", _ALLOW),
        ("Access-Control-Allow-Methods", _ALLOW),
        ("Access-Control-Allow-Headers", "*"),
        ("Access-Control-Max-Age", "86400"),
    ),
)
FULL = error_response(503, "too many connections", ("Retry-After", "1"))
_SUBSCRIBERS_FULL = error_response(503, "too many subscribers", ("Retry-After", "1"))
_NOT_SERVED = error_response(405, "this method is not served", ("Allow", _ALLOW))


class Encoded(NamedTuple):
    """Answers as they are sent, in as few buffers as they need; whether the connection ends with them; what follows.

    The tally is that of a single answer.
    """

    buffers: tuple[bytes, ...]
    closes: bool
    events: Iterator[list[bytes]] | None = None
    tally: Tally = Tally()


@dataclass(eq=False)
class Responder:
    """Answers GET and HEAD by its handler, other methods and bad requests by itself.

    An answer is cached by the bytes of its request while cache_version returns an equal value, at most until the second
    in its Date is over. An exception of the handler is logged, and answered with 500.
    """

    handler: Callable[[Request], Response]
    cache_version: Callable[[], Hashable]
    max_subscribers: int
    wall_s: Callable[[], float]
    limits: Limits
    throttle: LogThrottle
    meter: Meter = field(default_factory=Meter)
    cache: dict[bytes, Encoded] = field(default_factory=dict)
    is_draining: bool = False
    """Nothing is cached any more, and the last answer of each connection closes it."""

    def __post_init__(self) -> None:
        self._cached_bytes = 0
        self._cached_for: tuple[Hashable, int] | None = None
        self._date = ""

    def refresh(self) -> None:
        """Empty the cache where it is outdated, or has become too big. Raises what cache_version raises."""
        version = self.cache_version(), int(self.wall_s())
        if version != self._cached_for:
            self.cache.clear()
            self._cached_bytes = 0
            self._cached_for, self._date = version, formatdate(version[1], usegmt=True)

    def drain(self) -> None:
        """From now on, let the last answer of each connection close it."""
        self.is_draining = True
        self.cache.clear()

    def cached(self, head: bytes) -> Encoded | None:
        """Return the answer to a request asked before, and count it; None where it is not in the cache."""
        encoded = self.cache.get(head)
        if encoded is not None:
            encoded.tally.requests += 1  # as Meter.count does, without the call: this is nearly all there is to do
            self.meter.in_turn += 1
        return encoded

    def answer(self, received: bytes) -> tuple[Encoded, bytes]:
        """Answer the complete requests received, as many as are due to one client in one turn; return the rest too."""
        buffers: tuple[bytes, ...] = ()
        for _ in range(self.limits.per_turn):
            end = received.find(b"\r\n\r\n", 2) + 4  # from 2, as an empty line may come before a request
            head, rest = (received[:end], received[end:]) if end >= 4 else (received, b"")
            encoded = self.cached(head) or self._answer(head, is_last=not rest)
            if encoded is None:
                break
            received, buffers = rest, buffers + encoded.buffers
            if encoded.closes or sum(map(len, buffers)) > self.limits.unsent_bytes:
                return Encoded(buffers, encoded.closes, encoded.events), received
        return Encoded(buffers, closes=False), received

    def refuse(self, head: bytes, response: Response) -> Encoded:
        """Encode the last answer of a connection, to a request of which maybe just the beginning is known."""
        head_only = head.startswith((b"HEAD ", b"\r\nHEAD "))
        return self._encode(response, "close", head_only=head_only)

    def _encode(self, response: Response, connection: str, *, head_only: bool, route: str = OTHER) -> Encoded:
        buffers = encode(response, connection, self._date, head_only=head_only)
        tally = self.meter.count(route, response.status)
        return Encoded(buffers, connection == "close", None if head_only else response.events, tally)

    def _answer(self, head: bytes, *, is_last: bool) -> Encoded | None:
        try:
            parsed = parse_head(head)
        except BadRequest as error:
            return self.refuse(head, error_response(*error.args))
        if parsed is None:
            return None
        request, connection = parsed
        if self.is_draining and is_last:
            connection = "close"
        head_only = request.method == "HEAD"
        try:
            response, route = self._respond(request), self.meter.route_of(request)
            if response.events is not None and not head_only:
                return self._subscribe(response, route, head)
            encoded = self._encode(response, connection, head_only=head_only, route=route)
        except Exception as error:  # noqa: BLE001 - a fault in one answer must not end the others
            self._log_failure(request, error)
            return self._encode(error_response(500, "internal error"), connection, head_only=head_only)
        self._keep(head, encoded)
        return encoded

    def _respond(self, request: Request) -> Response:
        if request.method == "OPTIONS":
            return _PREFLIGHT
        return self.handler(request) if request.method in METHODS else _NOT_SERVED

    def _subscribe(self, response: Response, route: str, head: bytes) -> Encoded:
        """Answer the last request of a connection: its body goes on until that ends.

        In chunks, as some clients (Python's requests) wait for 512 bytes where they are not told what is complete;
        HTTP/1.0 knows none (RFC 9112 section 6.1).
        """
        if self.meter.subscribers() >= self.max_subscribers:
            self.throttle.warn("subscribers full", next="further ones get 503")
            return self.refuse(head, _SUBSCRIBERS_FULL)
        if response.events and not head.lstrip().partition(b"\r\n")[0].endswith(b"/1.0"):
            headers = (*response.headers, ("Transfer-Encoding", "chunked"))
            response = response._replace(headers=headers, events=_chunked(response.events))
        return self._encode(response, "close", head_only=False, route=route)

    def _log_failure(self, request: Request, error: Exception) -> None:
        facts = {"method": request.method, "path": request.path[:200]}
        self.throttle.warn("request failed", type(error).__name__, logging.ERROR, exc_info=True, **facts)

    def _keep(self, head: bytes, encoded: Encoded) -> None:
        self._cached_bytes += len(head) + sum(map(len, encoded.buffers))
        if self._cached_bytes > self.limits.cache_bytes:
            self._cached_for = None  # empty it before the next turn
        elif not self.is_draining:
            self.cache[head] = encoded


def _chunked(events: Iterator[list[bytes]]) -> Iterator[list[bytes]]:
    """Frame what is yielded at once as one chunk (RFC 9112 section 7.1)."""
    for buffers in events:
        yield [b"%X\r\n" % sum(map(len, buffers)), *buffers, b"\r\n"] if buffers else []
