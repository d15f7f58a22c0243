"""REST snapshots of the premium index, with rate-limit manners: one thread ("rest"), never in the stream's way.

Facts of the exchange, as of November 2026:
- GET /fapi/v1/premiumIndex without symbol: all symbols, weight 10 of 2400 per minute. [1]
- GET /fapi/v1/fundingInfo: symbols whose interval was ever adjusted (others have 8 h), at most 500 per 5 min. [2]
- Refused requests cost weight too, and asking too early lengthens a ban; see refusals.py.
[1] https://developers.binance.com/docs/derivatives/usds-margined-futures/market-data/rest-api/Mark-Price
[2] https://developers.binance.com/docs/derivatives/usds-margined-futures/market-data/rest-api/Get-Funding-Rate-Info
"""

import logging
import threading
from collections import Counter
from collections.abc import Mapping
from typing import Any

import requests
import urllib3.exceptions

from . import events, refusals
from .book import Book
from .breakable import Sockets, breakable_session
from .clock import Clock, Moment
from .comparison import Comparison
from .history import History
from .rates import MalformedMessage, decode_funding_info, decode_premium_index
from .settings import Settings

_log = logging.getLogger(__name__)

_PREMIUM_INDEX, _FUNDING_INFO = "/fapi/v1/premiumIndex", "/fapi/v1/fundingInfo"
_FUNDING_INFO_EVERY_S, _FUNDING_INFO_RETRY_S = 3600.0, 300.0
# Eighty times the answer of today's market.
_LARGEST_ANSWER_BYTES = 16 * 1024 * 1024
# Where Binance refuses without saying for how long (firewall, country), the wait doubles up to this.
_LONGEST_UNTOLD_WAIT_S = 300.0
_LONGEST_STEP_S = 1.0
_LONGEST_WORDS = 300
_REFUSED, _FAILED = "REST refused", "REST failed"
_UNTOLD = ("403", "451")
_KNOWN_STATUSES = ("403", "418", "429", "451", "connection", "malformed", "timeout")


class RestError(Exception):
    """A request brought no usable answer: `status` is HTTP's or a word, `wait_s` for how long Binance said to wait."""

    def __init__(self, words: str, status: str, wait_s: float = 0.0) -> None:
        super().__init__(words)
        self.status = status
        self.wait_s = wait_s


class RestClient:
    """Asks Binance over one kept connection. For one thread; `close` from any."""

    def __init__(self, base_url: str, timeout_s: float, clock: Clock) -> None:
        self._base_url = base_url
        self._timeout_s = timeout_s
        self._clock = clock
        self._sockets = Sockets()
        self._session = breakable_session(self._sockets)

    def get(self, path: str) -> bytes:
        """Return the body of a successful answer; blocks for at most about twice the timeout. Raises RestError."""
        deadline_s = self._clock.steady_s() + self._timeout_s
        # What trickles in anywhere but in the body never comes to the deadline of `_read`.
        late = threading.Timer(2 * self._timeout_s, self._sockets.break_off)
        late.name, late.daemon = "rest-deadline", True
        late.start()
        try:
            with self._session.get(
                self._base_url + path, timeout=self._timeout_s, stream=True, allow_redirects=False
            ) as response:
                body = self._read(response, deadline_s)
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            if self._clock.steady_s() > deadline_s:
                raise RestError("no answer in time", "timeout") from error
            raise RestError(_describe(error)[:_LONGEST_WORDS], _kind(error)) from error
        finally:
            late.cancel()
        if response.status_code != 200:
            refusal = refusals.explain(
                response.status_code, response.headers, body.decode("utf-8", "replace"), self._clock.wall_s()
            )
            raise RestError(refusal.words, str(response.status_code), refusal.wait_s)
        return body

    def _read(self, response: requests.Response, deadline_s: float) -> bytes:
        """Read the body under one deadline: the library's timeout starts anew with every byte that trickles in."""
        chunks, size = [], 0
        while chunk := response.raw.read1(65_536, decode_content=True):
            chunks.append(chunk)
            size += len(chunk)
            if size > _LARGEST_ANSWER_BYTES:
                raise RestError(f"answer of more than {_LARGEST_ANSWER_BYTES >> 20} MiB", "malformed")
            if self._clock.steady_s() > deadline_s:
                raise RestError(f"answer not complete within {self._timeout_s:g} s", "timeout")
        if self._clock.steady_s() > deadline_s:
            # Broken off amid headers or chunks, which looks like an end.
            raise RestError("no answer in time", "timeout")
        return b"".join(chunks)

    def close(self) -> None:
        """Close the kept connection."""
        self._session.close()


def _kind(error: Exception) -> str:
    timeouts = (requests.Timeout, urllib3.exceptions.TimeoutError, TimeoutError)
    return "timeout" if isinstance(error, timeouts) else "connection"


def _describe(error: Exception) -> str:
    """Say in a few words what hides in the library's nested errors."""
    if _kind(error) == "timeout":
        return "no answer in time"
    if isinstance(error, requests.exceptions.SSLError):
        return f"TLS: {_innermost(error)}"
    if isinstance(error, requests.exceptions.ProxyError):
        return f"proxy: {_innermost(error)}"
    return f"no connection: {_innermost(error)}"


def _innermost(error: BaseException) -> str:
    inner: object = error
    while isinstance(inner, BaseException):
        following = getattr(inner, "reason", None) or inner.__cause__ or inner.__context__
        if not isinstance(following, BaseException):
            break
        inner = following
    if isinstance(inner, OSError) and inner.strerror:
        return inner.strerror.lower()
    return str(inner)


class RestPoller:
    """Polls when it is due, merges into the book, compares. Reading its fields is safe from any thread."""

    def __init__(
        self,
        settings: Settings,
        client: RestClient,
        book: Book,
        comparison: Comparison,
        history: History,
        *,
        clock: Clock,
        repeats: events.Repeats,
    ) -> None:
        self._settings = settings
        self._client = client
        self._book = book
        self._comparison = comparison
        self._history = history
        self._clock = clock
        self._repeats = repeats
        self.progress_s = clock.steady_s()
        """Steady time at which the thread last went round; a request that hangs keeps it standing."""
        self._started_s: float | None = None
        self._took_s = 0.0
        self._refused_in_a_row = 0
        self._paused_until_s = 0.0
        self._funding_info_due_s = 0.0
        self.interval_hours: Mapping[str, int] = {}
        """Funding interval by symbol where it is not 8 h; replaced as a whole."""
        self.polls = 0
        self.errors = Counter(dict.fromkeys(_KNOWN_STATUSES, 0))
        """Failed polls by HTTP status or kind of failure; the usual ones from the start, so that the first shows."""
        self.rejected_rows = 0
        self.last_success_wall_s: float | None = None
        self.last_error: str | None = None
        self.trouble: str | None = None
        """What keeps snapshots from coming now."""
        self.fallback_active = False
        self._fallback_since_s = 0.0

    def restore(self, paused_until_wall_s: float | None, interval_hours: Mapping[str, int]) -> None:
        """Go on from what an earlier daemon knew: a ban outlives it, and so do the funding intervals."""
        self.interval_hours = interval_hours
        if paused_until_wall_s is not None:
            now = self._clock.now()
            remaining_s = min(paused_until_wall_s - now.wall_s, refusals.LONGEST_BAN_S)
            self._paused_until_s = now.steady_s + max(0.0, remaining_s)

    def run(self, stop: threading.Event) -> None:
        """Poll until `stop` is set; blocks, at most for one request after that."""
        while not stop.wait(self.step()):
            pass
        self._client.close()

    def step(self) -> float:
        """Poll if it is due; return the seconds to the next step. For the polling thread; blocks for the requests."""
        self.progress_s = self._clock.steady_s()
        self._update_fallback()
        wait_s = self._due_s() - self.progress_s
        if wait_s > 0:
            return min(wait_s, self._time_to_fallback_s(), _LONGEST_STEP_S)
        if self._poll() and self._clock.steady_s() >= self._funding_info_due_s:
            self._ask_funding_info()
        return 0.0

    def status(self) -> dict[str, Any]:
        """Return `connection_status.rest`, ready for the state file."""
        now = self._clock.now()
        pause_s = self._paused_until_s - now.steady_s
        return {
            "polls": self.polls,
            "errors": sum(self.errors.values()),
            "errors_by_status": dict(self.errors),
            "last_success_time": self.last_success_wall_s,
            "paused_until": round(now.wall_s + pause_s, 3) if pause_s > 0 else None,
            "last_error": self.last_error,
            "trouble": self.trouble,
        }

    def _due_s(self) -> float:
        if self._started_s is None:
            return self._paused_until_s
        interval_s = self._settings.rest_poll_seconds
        if self.fallback_active or self._book.age_s() > self._settings.stale_seconds or not self._book.counts().symbols:
            # It is the answer that should come that often: asked on time, it would come late by its own duration.
            interval_s = self._settings.rest_fallback_seconds
            interval_s -= min(interval_s / 4, self._took_s + interval_s / 50)
        return max(self._started_s + interval_s, self._paused_until_s)

    def _time_to_fallback_s(self) -> float:
        to_stale_s = self._settings.stale_seconds - self._book.stream_age_s()
        return max(0.01, to_stale_s) if not self.fallback_active else _LONGEST_STEP_S

    def _update_fallback(self) -> None:
        age_s, now_s = self._book.stream_age_s(), self._clock.steady_s()
        active = age_s > self._settings.stale_seconds
        if active == self.fallback_active:
            return
        self.fallback_active = active
        if active:
            self._fallback_since_s = now_s
            every_s = self._settings.rest_fallback_seconds
            _log.warning("%s", events.line("fallback on", stream_age_s=age_s, rest_every_s=every_s))
        else:
            _log.warning("%s", events.line("fallback off", stream_age_s=age_s, lasted_s=now_s - self._fallback_since_s))

    def _poll(self) -> bool:
        """Ask for one snapshot, compare and merge it; return whether it could be used."""
        self._started_s = self._clock.steady_s()
        self.polls += 1
        try:
            body = self._client.get(_PREMIUM_INDEX)
            received = self._clock.now()
            decoded = decode_premium_index(body, received)
        except (RestError, MalformedMessage) as error:
            self._note_error(error)
            return False
        self._took_s = received.steady_s - self._started_s
        if decoded.rejected:
            self.rejected_rows += decoded.rejected
            self._repeats.tell("rejected rows", decoded.first_fault, total=self.rejected_rows)
        result = self._comparison.run(self._book.stream_rates(), decoded.rates, received.wall_s)
        counted = {name: result[name] for name in ("compared", "mismatched")}
        self._history.count(received.wall_s, runs=1, **counted)
        self._book.merge(decoded.rates)
        self._note_success(received)  # after the merge: a gap that it ends is told with the trouble there was
        return True

    def _note_success(self, received: Moment) -> None:
        self.last_success_wall_s = round(received.wall_s, 3)
        self.trouble = None
        self._refused_in_a_row = 0
        lasted_s = self._repeats.over(_REFUSED, _FAILED)
        if lasted_s is not None:
            _log.info("%s", events.line("REST recovered", after_s=lasted_s))

    def _note_error(self, error: Exception) -> None:
        status, wait_s = "malformed", 0.0
        if isinstance(error, RestError):
            status, wait_s = error.status, error.wait_s
        if not wait_s and status in _UNTOLD:
            wait_s = self._settings.rest_fallback_seconds * 2.0 ** min(self._refused_in_a_row, 20)
            wait_s = min(wait_s, _LONGEST_UNTOLD_WAIT_S)
            self._refused_in_a_row += 1
        now_s = self._clock.steady_s()
        if wait_s:
            self._paused_until_s = now_s + wait_s
        self.errors[status] += 1
        self.last_error = self.trouble = str(error)
        event = _REFUSED if status.isdigit() else _FAILED
        self._repeats.tell(event, str(error), next_in_s=round(max(0.0, self._due_s() - now_s), 1))

    def _ask_funding_info(self) -> None:
        """Refresh the funding intervals; on failure the last known ones stay in force."""
        retry_s = _FUNDING_INFO_RETRY_S
        try:
            self.interval_hours = decode_funding_info(self._client.get(_FUNDING_INFO))
            retry_s = _FUNDING_INFO_EVERY_S
            lasted_s = self._repeats.over("funding intervals unknown")
            if lasted_s is not None:
                _log.info("%s", events.line("funding intervals known again", after_s=lasted_s))
        except (RestError, MalformedMessage) as error:
            if isinstance(error, RestError) and error.wait_s:
                self._paused_until_s = self._clock.steady_s() + error.wait_s
            known = len(self.interval_hours)
            self._repeats.tell("funding intervals unknown", str(error), last_known=known, next_in_s=retry_s)
        self._funding_info_due_s = self._clock.steady_s() + retry_s
