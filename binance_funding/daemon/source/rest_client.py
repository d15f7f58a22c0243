"""One REST request, with a deadline that holds wherever it hangs.

requests does the HTTP, gzip, proxies and TLS. Its timeouts are for one read, and none holds while a name is looked
up. So each request runs in a thread of its own, which is abandoned at the deadline and at the end of the program.
"""

import enum
import math
import queue
import threading
from collections.abc import Mapping
from typing import NamedTuple

import requests
import urllib3.exceptions

from ... import __version__
from ...clock import Clock
from . import faults
from .certificates import SystemCertificates
from .faults import Cause, Kind
from .lookup import LOOKUP_LIMIT_S, Lookup
from .refusals import refusal

# Eighty times the answer for today's market.
_MAX_ANSWER_BYTES = 16 * 1024 * 1024
# A small piece of gzip may unpack to a thousand times its size.
_PIECE_BYTES = 16 * 1024
# A kept connection that delivers nothing for so long is given up for a new one. A firewall that fails over ends all
# connections at once, without a word. In fallback this leaves time for the answer before the market is in a gap.
_KEPT_SILENT_S = 1.0
# A connection is used again within this time only: an idle one may have been closed meanwhile.
_KEPT_FOR_S = 30.0
# After a kept connection died, no connection is kept for so long. A slow exchange is then not asked twice each time.
_NOT_KEPT_FOR_S = 60.0
# Each request that hangs while a name is looked up leaves a thread behind.
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
        for scheme in ("http://", "https://"):
            self.mount(scheme, SystemCertificates())

    def get_redirect_target(self, _resp: requests.Response) -> str | None:
        """Follow no redirect. Not even its target is read, which may be anything."""
        return None


class _Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes


class _Event(enum.Enum):
    """What a request's thread, its lookup and `abort` tell the waiting thread."""

    LOOKUP_BEGAN = enum.auto()
    LOOKUP_ENDED = enum.auto()
    DONE = enum.auto()
    ABORTED = enum.auto()


class _Request:
    """One request, in a thread of its own."""

    def __init__(self, client: "RestClient", url: str, limit_s: float, session: _Session | None) -> None:
        # Written by the request's thread, and read by others after DONE.
        self.session = session
        """That of the kept connection at first, then that of the connection that was used last."""
        self.answer: _Answer | None = None
        self.error: Exception | None = None
        self.events: queue.SimpleQueue[_Event] = queue.SimpleQueue()
        self._is_abandoned = False
        self._is_via_proxy = False
        self._client = client
        self._url = url
        self._limit_s = limit_s
        self._steady_s = client.clock.steady_s
        self._thread = threading.Thread(target=self._run, name="request", daemon=True)

    def wait(self) -> _Answer:
        """Ask, and wait for the answer. Time for a name lookup does not count. Raises RestError or Aborted."""
        try:
            self._thread.start()
        except RuntimeError:  # the host allows no more threads
            raise RestError(Cause(Kind.CROWDED, "no thread can be started")) from None
        ends_s, left_s, is_looking_up = self._steady_s() + self._limit_s, 0.0, False
        while True:
            try:
                event = self.events.get(timeout=max(0.0, ends_s - self._steady_s()))
            except queue.Empty:
                self._is_abandoned = True
                raise RestError(faults.NO_NAME_IN_TIME if is_looking_up else faults.NO_ANSWER_IN_TIME) from None
            if event is _Event.LOOKUP_BEGAN:
                left_s, ends_s = ends_s - self._steady_s(), self._steady_s() + LOOKUP_LIMIT_S
                is_looking_up = True
            elif event is _Event.LOOKUP_ENDED:
                ends_s, is_looking_up = self._steady_s() + left_s, False
            elif event is _Event.ABORTED:
                self._is_abandoned = True
                raise Aborted
            elif self.answer is not None:
                return self.answer
            elif isinstance(self.error, _ERRORS):
                raise RestError(faults.from_error(self.error, via_proxy=self._is_via_proxy)) from self.error
            elif self.error is not None:
                raise self.error

    @property
    def is_alive(self) -> bool:
        """Whether its thread has not ended."""
        return self._thread.is_alive()

    def _run(self) -> None:
        try:
            self.answer = self._fetch()
        except Exception as error:  # noqa: BLE001 - the waiting thread raises it, bugs included
            self.error = error
        if self.session is not None and (self.answer is None or self._is_abandoned):
            self.session.close()
        self.events.put(_Event.DONE)

    def _fetch(self) -> _Answer:
        """Ask over the kept connection, then over a new one if the kept one turns out to be dead."""
        if self.session is not None:
            try:
                return self._ask(self.session, min(_KEPT_SILENT_S, self._limit_s))
            except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError):
                self.session.close()
                self._client.note_kept_connection_died()
                if self._is_abandoned or self._limit_s <= _KEPT_SILENT_S:
                    raise
        self.events.put(_Event.LOOKUP_BEGAN)
        lookup = Lookup(self._url, self._steady_s, lambda: self.events.put(_Event.LOOKUP_ENDED))
        self._client.lookup = lookup
        self._is_via_proxy = lookup.is_of_proxy
        self.session = _Session()
        return self._ask(self.session, self._limit_s)

    def _ask(self, session: _Session, silent_s: float) -> _Answer:
        # A host may have several addresses: one that is silent leaves time for the next.
        limits_s = (min(self._limit_s / 2, silent_s), silent_s)
        with session.get(self._url, timeout=limits_s, stream=True, allow_redirects=False) as response:
            body = bytearray()
            for piece in response.iter_content(_PIECE_BYTES):
                body += piece
                if self._is_abandoned or len(body) > self._client.max_answer_bytes:
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
        """What this IP has used of its weight in this minute, from the newest answer; "" before the first."""
        self.lookup: Lookup | None = None
        """The newest name lookup, None before the first."""
        self._session: _Session | None = None
        self._kept_since_s = -math.inf
        self._not_kept_until_s = -math.inf
        self._abandoned: list[_Request] = []
        self._request: _Request | None = None
        """The newest request."""
        self._is_stopped = False

    def get(self, path: str, within_s: float = math.inf) -> bytes:
        """Return the body of a successful answer. Raises RestError or Aborted.

        Blocks for the timeout or `within_s` at most, and while a name is looked up (LOOKUP_LIMIT_S at most).
        """
        self._abandoned = [request for request in self._abandoned if request.is_alive]
        if len(self._abandoned) >= _MAX_ABANDONED:
            raise RestError(Cause(Kind.CROWDED, f"{len(self._abandoned)} earlier requests still hang"))
        answer = self._ask(self.base_url + path, min(self.timeout_s, within_s))
        self.used_weight = answer.headers.get("x-mbx-used-weight-1m", self.used_weight)
        if answer.status != requests.codes.ok:
            raise RestError(refusal(answer.status, answer.headers, answer.body, self.clock.wall_s()))
        if len(answer.body) > self.max_answer_bytes:
            raise RestError(Cause(Kind.TOO_LARGE, f"answer of more than {self.max_answer_bytes >> 20} MiB"))
        return answer.body

    def _ask(self, url: str, limit_s: float) -> _Answer:
        session, self._session = self._session, None
        if session is not None and self.clock.steady_s() - self._kept_since_s > _KEPT_FOR_S:
            session.close()
            session = None
        request = self._request = _Request(self, url, limit_s, session)
        if self._is_stopped:
            raise Aborted
        try:
            answer = request.wait()
        except RestError:
            self._abandoned.append(request)
            raise
        self._session, self._kept_since_s = request.session, self.clock.steady_s()
        if self._kept_since_s < self._not_kept_until_s:
            self.close()
        return answer

    def note_kept_connection_died(self) -> None:
        """Keep no connection for a while. For the request's thread."""
        self._not_kept_until_s = self.clock.steady_s() + _NOT_KEPT_FOR_S

    def abort(self) -> None:
        """End the request under way and every later one: they raise Aborted. From any thread."""
        self._is_stopped = True
        if self._request is not None:
            self._request.events.put(_Event.ABORTED)

    def close(self) -> None:
        """Close the kept connection."""
        session, self._session = self._session, None
        if session is not None:
            session.close()
