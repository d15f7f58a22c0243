"""From the bytes of requests to the bytes of answers. Equal requests get cached answers. No I/O."""

import logging
import math
from collections.abc import Callable, Hashable, Iterator
from email.utils import formatdate
from typing import NamedTuple

from ...log import LogThrottle
from .connections import Conversation
from .limits import Limits
from .message import METHODS, BadRequest, Request, Response, encode, error_response, parse_head, take_head
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
# Memory of a cache entry beside its bytes: four objects and a place in the dict, measured on Python 3.11.
_ENTRY_BYTES = 500


class Encoded(NamedTuple):
    """One answer as it is sent."""

    buffers: tuple[bytes, ...]
    closes: bool
    """True if it is the last answer of its connection."""
    events: Iterator[list[bytes]] | None
    """Further parts of its body, for a subscriber."""
    tally: Tally
    """Counts the requests that get this answer."""


class Responder:
    """Answers GET and HEAD by its handler, other methods and bad requests by itself.

    An answer is cached by the bytes of its request until cache_version returns another value, or until the second in
    its Date header is over. An exception of the handler is logged and answered with 500.
    """

    def __init__(
        self,
        handler: Callable[[Request], Response],
        cache_version: Callable[[], Hashable],
        *,
        max_subscribers: int,
        limits: Limits,
        throttle: LogThrottle,
        meter: Meter,
        steady_s: Callable[[], float],
        wall_s: Callable[[], float],
    ) -> None:
        """Keep the arguments. refresh() must be called before the first request is answered."""
        self._handler = handler
        self._cache_version = cache_version
        self._max_subscribers = max_subscribers
        self._steady_s = steady_s
        self._wall_s = wall_s
        self._limits = limits
        self._throttle = throttle
        self._meter = meter
        self._cache: dict[bytes, Encoded] = {}
        self._cached_bytes = 0
        # The cache holds answers of this version and this second; None if it must be emptied.
        self._cached_for: tuple[Hashable, int] | None = None
        self._date = ""
        # True after drain(): nothing is cached any more, and the last answer to each client closes its connection.
        self._is_draining = False

    def refresh(self) -> None:
        """Empty the cache if it is outdated or full. Raises any exception of cache_version."""
        version = self._cache_version(), int(self._wall_s())
        if version != self._cached_for:
            self._cache.clear()
            self._cached_bytes = 0
            self._cached_for, self._date = version, formatdate(version[1], usegmt=True)

    def drain(self) -> None:
        """From now on, close each connection after its last answer."""
        self._is_draining = True
        self._cache.clear()

    def cached(self, head: bytes) -> Encoded | None:
        """Return the answer to an earlier request of the same bytes, and count the request; None if there is none."""
        encoded = self._cache.get(head)
        if encoded is not None:
            # This is Meter.count() without the call: most requests come here and nowhere else.
            encoded.tally.requests += 1
            self._meter.unmeasured += 1
        return encoded

    def answer(self, client: Conversation, until_s: float = math.inf) -> None:
        """Answer the complete requests that a client has sent, in order.

        Stops behind an answer that closes the connection, that is ready after until_s, or that makes the unsent bytes
        more than unsent_bytes.
        """
        unsent_bytes = 0
        while client.unanswered and not client.closes:
            try:
                taken = take_head(client.unanswered, client.checked)
            except BadRequest as error:
                self.refuse(client, error_response(*error.args))
                return
            if taken is None:
                client.checked = len(client.unanswered)
                return
            head, client.unanswered = taken
            client.checked = 0
            encoded = self.cached(head) or self._answer(head, is_last=not client.unanswered)
            client.unsent += encoded.buffers
            client.closes, client.events = encoded.closes, encoded.events
            unsent_bytes += sum(map(len, encoded.buffers))
            if unsent_bytes > self._limits.unsent_bytes or self._steady_s() >= until_s:
                return

    def refuse(self, client: Conversation, response: Response) -> None:
        """Give a client its last answer, to a request of which perhaps only the beginning has come."""
        encoded = self._refusal(client.unanswered, response)
        client.unsent += encoded.buffers
        client.closes = True

    def _answer(self, head: bytes, *, is_last: bool) -> Encoded:
        try:
            request, connection = parse_head(head)
        except BadRequest as error:
            return self._refusal(head, error_response(*error.args))
        if self._is_draining and is_last:
            connection = "close"
        head_only = request.method == "HEAD"
        try:
            response, route = self._respond(request), self._meter.route_of(request)
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
        return self._handler(request) if request.method in METHODS else _NOT_SERVED

    def _subscribe(self, response: Response, route: str, head: bytes) -> Encoded:
        """Answer the last request of a connection; the body of the answer goes on until the connection ends.

        The body is chunked, because some clients (Python's requests) otherwise collect 512 bytes before they deliver
        any. HTTP/1.0 has no chunks (RFC 9112 section 6.1).
        """
        if self._meter.subscribers() >= self._max_subscribers:
            self._throttle.warn("subscribers full", next="new subscribers get 503")
            return self._refusal(head, _SUBSCRIBERS_FULL)
        if response.events and not head.partition(b"\r\n")[0].endswith(b"/1.0"):
            headers = (*response.headers, ("Transfer-Encoding", "chunked"))
            response = response._replace(headers=headers, events=_chunked(response.events))
        return self._encode(response, "close", head_only=False, route=route)

    def _refusal(self, beginning: bytes, response: Response) -> Encoded:
        head_only = beginning.startswith((b"HEAD ", b"\r\nHEAD "))
        return self._encode(response, "close", head_only=head_only)

    def _encode(self, response: Response, connection: str, *, head_only: bool, route: str = OTHER) -> Encoded:
        buffers = encode(response, connection, self._date, head_only=head_only)
        tally = self._meter.count(route, response.status)
        return Encoded(buffers, connection == "close", None if head_only else response.events, tally)

    def _log_failure(self, request: Request, error: Exception) -> None:
        facts = {"method": request.method, "path": request.path[:200]}
        self._throttle.warn("request failed", type(error).__name__, logging.ERROR, exc_info=True, **facts)

    def _keep(self, head: bytes, encoded: Encoded) -> None:
        self._cached_bytes += _ENTRY_BYTES + len(head) + sum(map(len, encoded.buffers))
        if self._cached_bytes > self._limits.cache_bytes:
            self._cached_for = None  # refresh() empties the cache before the next turn
        elif not self._is_draining:
            self._cache[head] = encoded


def _chunked(events: Iterator[list[bytes]]) -> Iterator[list[bytes]]:
    """Frame each item as one chunk (RFC 9112 section 7.1). An empty item stays empty: an empty chunk ends a body."""
    for buffers in events:
        yield [b"%X\r\n" % sum(map(len, buffers)), *buffers, b"\r\n"] if buffers else []
