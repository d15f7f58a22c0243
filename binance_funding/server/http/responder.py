"""From the bytes of a request to the bytes of its answer. Equal requests get cached answers. No I/O."""

import logging
import time
from collections.abc import Callable, Hashable, Iterator
from email.utils import formatdate
from typing import NamedTuple

from ...log import LogThrottle
from .message import METHODS, Request, Response, encode, error_response, parse_head
from .meter import OTHER

_ALLOW = ", ".join(METHODS)
_ALLOW_METHODS = ("Allow", _ALLOW), ("Access-Control-Allow-Methods", _ALLOW)
_ALLOW_HEADERS = ("Access-Control-Allow-Headers", "*"), ("Access-Control-Max-Age", "86400")
_PREFLIGHT = Response(204, b"", (*_ALLOW_METHODS, *_ALLOW_HEADERS))
_NOT_SERVED = error_response(405, "this method is not served", ("Allow", _ALLOW))
_CACHE_BYTES = 8 << 20  # for all cached answers, with their requests and their bookkeeping
_ENTRY_BYTES = 500  # memory of a cache entry beside its bytes, measured on Python 3.11


class Encoded(NamedTuple):
    """An answer as it is sent."""

    buffers: tuple[bytes, ...]
    closes: bool  # True if it is the last answer of its connection
    events: Iterator[list[bytes]] | None  # further parts of its body, for a subscriber
    route: str  # to be counted under this route and status
    status: int


class Responder:
    """Answers GET and HEAD by its handler, and other methods by itself.

    An answer is cached by the bytes of its request while cache_version and the second in its Date header stay equal.
    """

    def __init__(
        self,
        handler: Callable[[Request], Response],
        cache_version: Callable[[], Hashable],
        route_of: Callable[[Request], str],
        throttle: LogThrottle,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        """Keep the arguments. refresh() must be called before the first request is answered."""
        self._handler = handler
        self._cache_version = cache_version
        self._route_of = route_of
        self._throttle = throttle
        self._wall_s = wall_s
        self.cache: dict[bytes, Encoded] = {}  # answers to earlier requests, by the bytes of the requests
        self._cached_bytes = 0
        self._cached_for: tuple[Hashable, int] | None = None  # version and second of the cached answers
        self._date = ""

    def refresh(self) -> None:
        """Empty the cache if it is outdated or full. Raises any exception of cache_version."""
        version = self._cache_version(), int(self._wall_s())
        if version != self._cached_for or self._cached_bytes > _CACHE_BYTES:
            self.cache.clear()
            self._cached_bytes = 0
            self._cached_for, self._date = version, formatdate(version[1], usegmt=True)

    def answer(self, head: bytes, *, closes: bool = False) -> Encoded:
        """Answer a request, and close its connection if the request or `closes` says so. Raises BadRequest."""
        if not closes and head in self.cache:
            return self.cache[head]
        request, connection = parse_head(head)
        connection = "close" if closes else connection
        head_only = request.method == "HEAD"
        try:
            if request.method in ("GET", "HEAD"):
                response = self._handler(request)
            else:
                response = _PREFLIGHT if request.method == "OPTIONS" else _NOT_SERVED
            if response.events is not None and not head_only:
                connection, response = "close", _chunked(response, head)
            encoded = self._encode(response, connection, head_only=head_only, route=self._route_of(request))
        except Exception as error:  # noqa: BLE001 - a fault in one answer must not end the others
            facts = {"method": request.method, "path": request.path[:200]}
            self._throttle.warn("request failed", type(error).__name__, logging.ERROR, exc_info=True, **facts)
            return self._encode(error_response(500, "internal error"), connection, head_only=head_only)
        if not closes and encoded.events is None:
            self.cache[head] = encoded
            self._cached_bytes += _ENTRY_BYTES + len(head) + sum(map(len, encoded.buffers))
        return encoded

    def refuse(self, beginning: bytes, response: Response) -> Encoded:
        """Make the last answer of a connection, to a request of which perhaps only the beginning has come."""
        return self._encode(response, "close", head_only=beginning.startswith((b"HEAD ", b"\r\nHEAD ")))

    def _encode(self, response: Response, connection: str, *, head_only: bool, route: str = OTHER) -> Encoded:
        buffers = encode(response, connection, self._date, head_only=head_only)
        events = None if head_only else response.events
        return Encoded(buffers, connection == "close", events, route, response.status)


def _chunked(response: Response, head: bytes) -> Response:
    """Frame each item of the events as one chunk, except for HTTP/1.0 (RFC 9112 sections 6.1 and 7.1)."""
    if response.events is None or head.partition(b"\r\n")[0].endswith(b"/1.0"):
        return response
    # An empty item stays empty, because an empty chunk would end the body.
    events = ([b"%X\r\n" % sum(map(len, item)), *item, b"\r\n"] if item else [] for item in response.events)
    return response._replace(headers=(*response.headers, ("Transfer-Encoding", "chunked")), events=events)
