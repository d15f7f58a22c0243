"""Decides when to send which REST request, in a thread of its own ("rest"), so that the stream never waits for it.

Facts of the exchange, as of November 2026:
- GET /fapi/v1/premiumIndex without symbol: all symbols, weight 10 of 2400 per minute. [1]
- GET /fapi/v1/time: weight 1. [2]
- GET /fapi/v1/fundingInfo: symbols with adjusted terms (others have 8 h), at most 500 requests per 5 min. [3]
- Refused requests cost weight too, and asking too early lengthens a ban; see refusals.py.
[1] https://developers.binance.com/docs/derivatives/usds-margined-futures/market-data/rest-api/Mark-Price
[2] https://developers.binance.com/docs/derivatives/usds-margined-futures/market-data/rest-api/Check-Server-Time
[3] https://developers.binance.com/docs/derivatives/usds-margined-futures/market-data/rest-api/Get-Funding-Rate-Info
"""

import contextlib
import math
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

from ...clock import Clock
from ...log import EventLogger, LogThrottle
from ...settings import Settings
from ..market.book import Book
from ..market.exchange_clock import ExchangeClock
from ..market.freshness import FreshnessWatch
from ..market.intervals import ImplausibleAnswer, Intervals
from ..market.stream_state import StreamState
from ..market.thresholds import current_s
from . import rates
from .faults import Cause, Kind
from .feed import Feed
from .rest_client import Aborted, RestClient, RestError

PREMIUM_INDEX, TIME, _FUNDING_INFO = "/fapi/v1/premiumIndex", "/fapi/v1/time", "/fapi/v1/fundingInfo"
_INTERVALS_LIMIT_S = 5.0
# An answer with a longer round trip is too inexact to use.
_TIME_LIMIT_S = 2.0
# A request other than for a snapshot is sent only if there is this much time until the next snapshot.
_MIN_SPARE_S = 0.5
# If Binance refuses without a time (firewall, country), each wait is twice as long as the last, up to this.
_MAX_WAIT_WITHOUT_RETRY_AFTER_S = 300.0
_WITHOUT_RETRY_AFTER = (403, 451)
# During fallback, an answer should arrive every REST_FALLBACK_SECONDS, even if a new connection is needed for it. So
# each request is sent after this share of that time. With 10 s, that is at most 8 requests a minute: a weight of 80.
_FALLBACK_SHARE = 0.8
# During fallback, a failed request is repeated after these times. A refused request is not. The weight stays below 200
# a minute.
_RETRY_DELAYS_S = (1.0, 2.0, 4.0)
_MIN_STEP_S, _MAX_STEP_S = 0.05, 1.0
_REFUSED, _FAILED = "REST refused", "REST failed"
_KNOWN_LABELS = ("403", "418", "429", "451", "connection", "malformed", "old", "timeout")


class RestPoller:
    """Sends REST requests when they are due, and hands on the answers. Any thread may read its public fields."""

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        exchange_clock: ExchangeClock,
        book: Book,
        freshness: FreshnessWatch,
        intervals: Intervals,
        stream_state: StreamState,
        client: RestClient,
        feed: Feed,
        live_connections: Callable[[], int],
    ) -> None:
        """Send nothing yet. `live_connections` returns the number of live connections of the stream."""
        self.polls = 0
        self.errors: Counter[str] = Counter(dict.fromkeys(_KNOWN_LABELS, 0))
        """Failed polls by the label of their cause. Usual labels begin at 0: Prometheus then sees the first one."""
        self.last_success_wall_s: float | None = None
        self.last_error: str | None = None
        self.trouble: str | None = None
        """Why the last snapshot failed; None if it succeeded."""
        self.progress_s = clock.steady_s()
        """Steady time at which the last step began. It stays the same while a request hangs."""
        self._settings = settings
        self._current_s = current_s(settings)
        self._clock = clock
        self._exchange_clock = exchange_clock
        self._book = book
        self._freshness = freshness
        self._intervals = intervals
        self._stream_state = stream_state
        self._throttle = LogThrottle(EventLogger(__name__), clock.steady_s)
        self._client = client
        self._feed = feed
        self._live_connections = live_connections
        self._took_s = 0.0
        """How long the last request for a snapshot took."""
        self._asked_s = -math.inf
        """Steady time of the last request for a snapshot."""
        self._counted_from_s = -math.inf
        """Steady time from which the wait for the next snapshot counts during fallback."""
        self._paused_until_s = -math.inf
        self._refused_in_a_row = 0
        self._failed_in_a_row = 0
        self._retry_at_s = math.inf
        """When a failed request is repeated during fallback; infinite if none is to be repeated."""

    def restore(self, pause_s: float) -> None:
        """Wait for the rest of a pause that Binance asked an earlier daemon for."""
        self._paused_until_s = self._clock.steady_s() + pause_s

    def run(self, stop: threading.Event) -> None:
        """Send requests until `stop` is set; blocks. `abort` ends a request that is under way."""
        with contextlib.suppress(Aborted):
            while not stop.wait(self.step()):
                pass
        self._client.close()

    def abort(self) -> None:
        """Abort the request that is under way. For the end of the program, from any thread."""
        self._client.abort()

    def step(self) -> float:
        """Send the request that is due, if any; return the seconds to the next step. Blocks. For the polling thread."""
        self.progress_s = now_s = self._clock.steady_s()
        self._update_fallback()
        wait_s = self._due_s() - now_s
        if wait_s <= 0:
            self._poll()
            return 0.0
        if now_s >= self._paused_until_s:
            spare_s = min(wait_s, self._until_fallback_s())
            if spare_s >= min(_MIN_SPARE_S, self._settings.rest_fallback_seconds / 2) and self._ask_extra(spare_s):
                return 0.0
        return min(wait_s, _MAX_STEP_S, max(_MIN_STEP_S, self._until_fallback_s()))

    def may_ask_for_more(self) -> bool:
        """Whether other requests than snapshots may be sent: not in fallback, nor paused, nor before a snapshot."""
        is_paused = self._clock.steady_s() < self._paused_until_s
        return not self._stream_state.fallback_active and not is_paused and self.last_success_wall_s is not None

    def status(self) -> dict[str, Any]:
        """Return `connection_status.rest`, ready for the state file."""
        now = self._clock.now()
        return {
            "polls": self.polls,
            "errors": sum(self.errors.values()),
            "errors_by_status": dict(self.errors),
            "last_success_time": self.last_success_wall_s,
            "paused_until": now.wall_at(self._paused_until_s) if self._paused_until_s > now.steady_s else None,
            "last_error": self.last_error,
            "trouble": self.trouble,
        }

    def _due_s(self) -> float:
        """Return the steady time at which the next request for a snapshot is due."""
        due_s, fallback_s = self._asked_s + self._settings.rest_poll_seconds, self._settings.rest_fallback_seconds
        latest = self._freshness.latest
        # Symbols that the stream does not deliver would become stale between two routine snapshots.
        if self._stream_state.fallback_active or latest.from_rest or latest.behind or not latest.symbols:
            in_fallback_s = self._counted_from_s + _FALLBACK_SHARE * fallback_s
            due_s = min(due_s + fallback_s, in_fallback_s, self._retry_at_s)
        return max(due_s, self._paused_until_s)

    def _until_fallback_s(self) -> float:
        """Return the seconds until the fallback starts if the stream stays silent; infinite during fallback."""
        if self._stream_state.fallback_active:
            return math.inf
        return self._current_s - self._freshness.stream_age_s()

    def _update_fallback(self) -> None:
        """Start or end the fallback, by the age of the stream."""
        age_s, latest = self._freshness.stream_age_s(), self._freshness.latest
        if self._stream_state.update(self._live_connections(), age_s, behind=latest.behind, of=latest.listed):
            # An earlier snapshot might be no newer than the last rows of the stream.
            self._counted_from_s = latest.served_s - self._took_s

    def _poll(self) -> None:
        """Request one snapshot, compare it with the stream, and merge it."""
        self._asked_s = self._counted_from_s = self._clock.steady_s()
        self._retry_at_s = math.inf
        self.polls += 1
        try:
            body = self._client.get(PREMIUM_INDEX)
            self._took_s = self._clock.steady_s() - self._asked_s
            age_s = self._feed.take_snapshot(body)
        except (RestError, rates.MalformedMessage) as error:
            self._note_failure(_cause(error))
            return
        if age_s > self._current_s:
            self._note_failure(Cause(Kind.OLD, f"the rows of the snapshot are {age_s:.0f} s old"))
            return
        # This comes after the merge, because a gap that ends with the merge is logged with `trouble` as its cause.
        self.last_success_wall_s, self.trouble = round(self._clock.wall_s(), 3), None
        self._refused_in_a_row = self._failed_in_a_row = 0
        self._throttle.resolve(_REFUSED, _FAILED, log_as="REST recovered")

    def _note_failure(self, cause: Cause) -> None:
        """Count and log a failed snapshot, and decide when to request the next one."""
        now_s = self._clock.steady_s()
        self.apply_pause(cause)
        if cause.code in _WITHOUT_RETRY_AFTER and self._paused_until_s <= now_s:
            wait_s = self._settings.rest_fallback_seconds * 2.0 ** min(self._refused_in_a_row, 20)
            self._paused_until_s = now_s + min(wait_s, _MAX_WAIT_WITHOUT_RETRY_AFTER_S)
            self._refused_in_a_row += 1
        if not cause.is_refusal and self._failed_in_a_row < len(_RETRY_DELAYS_S):
            self._retry_at_s = now_s + _RETRY_DELAYS_S[self._failed_in_a_row]
        self._failed_in_a_row += 1
        self.errors[cause.label] += 1
        self.last_error = self.trouble = str(cause)
        event = _REFUSED if cause.is_refusal else _FAILED
        self._throttle.warn(event, str(cause), next_in_s=round(max(0.0, self._due_s() - now_s), 1))

    def apply_pause(self, cause: Cause) -> None:
        """Send nothing for as long as Binance asked, whichever request it refused."""
        if cause.wait_s:
            self._paused_until_s = self._clock.steady_s() + cause.wait_s

    def _ask_extra(self, spare_s: float) -> bool:
        """Request Binance's time or the funding intervals, if one of them is due. Return whether one was."""
        now_s = self._clock.steady_s()
        if now_s >= self._exchange_clock.ask_due_s:
            self._exchange_clock.note_asked(now_s)
            self._request_extra(TIME, min(_TIME_LIMIT_S, spare_s), self._learn_time)
            return True
        if now_s >= self._intervals.ask_due_s and self._freshness.latest.symbols:
            self._intervals.note_asked(now_s)
            self._request_extra(_FUNDING_INFO, min(_INTERVALS_LIMIT_S, spare_s), self._learn_intervals)
            return True
        return False

    def _request_extra(self, path: str, limit_s: float, learn: Callable[[bytes, float], None]) -> None:
        asked_s = self._clock.steady_s()
        trouble = "time of Binance not learned" if path == TIME else "funding intervals unknown"
        over = "time of Binance learned again" if path == TIME else "funding intervals known again"
        try:
            learn(self._client.get(path, limit_s), asked_s)
        except (RestError, rates.MalformedMessage, ImplausibleAnswer) as error:
            cause = _cause(error)
            self.apply_pause(cause)
            if self.trouble is None:  # otherwise REST fails as a whole, and that is already logged
                self._throttle.warn(trouble, str(cause), next="asked again")
        else:
            self._throttle.resolve(trouble, log_as=over)

    def _learn_time(self, body: bytes, asked_s: float) -> None:
        self._exchange_clock.note_answer(rates.decode_server_time(body), asked_s, self._clock.steady_s())

    def _learn_intervals(self, body: bytes, _asked_s: float) -> None:
        self._intervals.note_answer(rates.decode_funding_info(body), self._book.rates())


def _cause(error: RestError | ValueError) -> Cause:
    return error.cause if isinstance(error, RestError) else Cause(Kind.MALFORMED, str(error))
