"""Sends one REST request at a time, which ends at its deadline wherever it hangs.

requests does the HTTP, gzip, proxies and TLS. Its timeouts are for one read, and none holds while a name is looked
up. So each request runs in a thread of its own. At the deadline and at the end of the program nobody waits for that
thread any more, and its connection is shut down.
"""

import math
import threading
from collections.abc import Mapping
from typing import NamedTuple

import requests
import urllib3.exceptions

from ... import __version__
from ...clock import Clock
from . import faults
from .faults import Cause, Kind
from .libraries import LOOKUP_LIMIT_S, Lookup, SystemAdapter
from .refusals import refusal

# Eighty times the size of today's answer.
_MAX_ANSWER_BYTES = 16 * 1024 * 1024
# A small piece of gzip may unpack to a thousand times its size.
_PIECE_BYTES = 16 * 1024
# A connection is used again within this time only. The question for Binance's time, which follows a snapshot, then has
# a short round trip.
_KEPT_FOR_S = 5.0
# A request that hangs in a name lookup cannot be ended. No more are made while so many of them hang.
_MAX_ABANDONED = 16
_AGENT = f"binance-funding/{__version__}"
_ERRORS = (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError)


class RestError(Exception):
    """A request brought no usable answer."""

    def __init__(self, cause: Cause) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Aborted(Exception):
    """The request was ended by `abort`. This is no failure."""


class _Session(requests.Session):
    """A session that is used for one connection to Binance."""

    def __init__(self) -> None:
        super().__init__()
        self.headers.update({"User-Agent": _AGENT, "Accept-Encoding": "gzip"})
        # Without this, requests would send a password from ~/.netrc, even one for any host.
        self.auth = lambda request: request
        self.adapter = SystemAdapter()
        self.mount("http://", self.adapter)
        self.mount("https://", self.adapter)

    def get_redirect_target(self, _resp: requests.Response) -> str | None:
        """Return None, so that no redirect is followed. The target of the redirect is not even read."""
        return None


class _Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes


class _Request(threading.Thread):
    """One request. Its thread writes the answer or the error before it sets `is_over`."""

    def __init__(self, url: str, limit_s: float, max_bytes: int, session: _Session) -> None:
        super().__init__(name="request", daemon=True)
        self.url = url
        self.limit_s = limit_s
        self.session = session
        self.answer: _Answer | None = None
        self.error: Exception | None = None
        self.is_named = threading.Event()
        """Set when the name lookup is over. The limit of the request begins then."""
        self.is_over = threading.Event()
        """Set when the request has ended, or when nobody waits for its answer any more."""
        self._max_bytes = max_bytes

    def run(self) -> None:
        """Ask Binance."""
        try:
            self.answer = self._ask()
        except Exception as error:  # noqa: BLE001 - the waiting thread raises the exception again
            self.error = error
        if self.answer is None or self.is_over.is_set():  # Nobody will use the session again.
            self.session.close()
        self._end()

    def abandon(self) -> None:
        """End the wait for the answer, and shut down the connection. From any thread."""
        self._end()
        self.session.adapter.shut_down()

    def _end(self) -> None:
        self.is_over.set()
        self.is_named.set()

    def _ask(self) -> _Answer:
        # A host may have several addresses: one that is silent leaves time for the next.
        limits_s = (self.limit_s / 2, self.limit_s)
        with self.session.get(self.url, timeout=limits_s, stream=True, allow_redirects=False) as response:
            body = bytearray()
            for piece in response.iter_content(_PIECE_BYTES):
                body += piece
                if len(body) > self._max_bytes:
                    break
            return _Answer(response.status_code, response.headers, bytes(body))


class RestClient:
    """Asks Binance, one request at a time. For one thread; `abort` may be called from any."""

    def __init__(
        self, base_url: str, timeout_s: float, clock: Clock, max_answer_bytes: int = _MAX_ANSWER_BYTES
    ) -> None:
        self.base_url = base_url
        self.timeout_s = timeout_s
        self.clock = clock
        self.max_answer_bytes = max_answer_bytes
        self.used_weight = ""
        """The weight that this IP has used in this minute, as of the newest answer; "" before the first."""
        self.lookup: Lookup | None = None
        """The newest name lookup, None before the first."""
        self._kept: _Session | None = None
        """The session of the newest answer."""
        self._kept_since_s = -math.inf
        self._abandoned: list[_Request] = []
        """Failed requests whose threads have not ended."""
        self._request: _Request | None = None
        """The newest request."""
        self._is_stopped = False

    def get(self, path: str, within_s: float = math.inf) -> bytes:
        """Return the body of a successful answer. Raises RestError or Aborted.

        Blocks for the timeout or `within_s` at most, and while a name is looked up (LOOKUP_LIMIT_S at most).
        A request with `within_s` may use the connection of the request before it. A request without it, which is the
        important kind, goes over a new connection: a firewall that fails over forgets connections without notice.
        """
        self._abandoned = [request for request in self._abandoned if request.is_alive()]
        for request in self._abandoned:
            request.abandon()  # Meanwhile the request may have got past the name lookup.
        if len(self._abandoned) >= _MAX_ABANDONED:
            raise RestError(Cause(Kind.CROWDED, f"{len(self._abandoned)} earlier requests still hang"))
        answer = self._ask(self.base_url + path, within_s)
        self.used_weight = answer.headers.get("x-mbx-used-weight-1m", self.used_weight)
        if answer.status != requests.codes.ok:
            raise RestError(refusal(answer.status, answer.headers, answer.body, self.clock.wall_s()))
        if not answer.body:
            raise RestError(Cause(Kind.LOST, "the answer is empty, or was cut in its headers"))
        if len(answer.body) > self.max_answer_bytes:
            raise RestError(Cause(Kind.MALFORMED, f"answer of more than {self.max_answer_bytes >> 20} MiB"))
        return answer.body

    def _ask(self, url: str, within_s: float) -> _Answer:
        if within_s == math.inf or self.clock.steady_s() - self._kept_since_s > _KEPT_FOR_S:
            self.close()
        is_kept, session, self._kept = self._kept is not None, self._kept or _Session(), None
        limit_s = min(self.timeout_s, within_s)
        request = self._request = _Request(url, limit_s, self.max_answer_bytes, session)
        if self._is_stopped:
            raise Aborted
        try:
            answer = self._wait(request, is_kept)
        except RestError:
            request.abandon()
            self._abandoned.append(request)
            raise
        self._kept, self._kept_since_s = session, self.clock.steady_s()
        return answer

    def _wait(self, request: _Request, is_kept: bool) -> _Answer:
        """Start the request, with a name lookup beside it if it needs one, and wait for the end."""
        try:
            if is_kept:
                request.is_named.set()
            else:
                self.lookup = Lookup(request.url, self.clock.steady_s, request.is_named.set)
            try:
                request.start()
            except RuntimeError:
                raise RestError(faults.NO_THREAD) from None
            if not request.is_named.wait(LOOKUP_LIMIT_S):
                raise RestError(faults.NO_NAME_IN_TIME)
            if not request.is_over.wait(request.limit_s):
                raise RestError(faults.NO_ANSWER_IN_TIME)
            if request.error is not None and not self._is_stopped:
                raise request.error
        except _ERRORS as error:
            raise RestError(faults.from_error(error, self.lookup)) from error
        if request.answer is None or self._is_stopped:
            raise Aborted
        return request.answer

    def abort(self) -> None:
        """End the request under way and every later one: they raise Aborted. From any thread."""
        self._is_stopped = True
        if self._request is not None:
            self._request.abandon()

    def close(self) -> None:
        """Close the kept connection."""
        session, self._kept = self._kept, None
        if session is not None:
            session.close()
