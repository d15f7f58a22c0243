"""When REST is asked for what: one thread ("rest"), never in the stream's way.

Facts of the exchange, as of November 2026:
- GET /fapi/v1/premiumIndex without symbol: all symbols, weight 10 of 2400 per minute. [1]
- GET /fapi/v1/time: weight 1. [2]
- GET /fapi/v1/fundingInfo: symbols whose interval was ever adjusted (others have 8 h), at most 500 per 5 min. [3]
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
# An answer with a longer round trip says too little about the time.
_TIME_LIMIT_S = 2.0
# A question that is not for a snapshot needs this much time before the next snapshot may be due.
_MIN_SPARE_S = 0.5
# If Binance refuses without saying for how long (firewall, country), the wait doubles up to this.
_MAX_WAIT_WITHOUT_RETRY_AFTER_S = 300.0
_WITHOUT_RETRY_AFTER = (403, 451)
# In fallback a snapshot is asked for at this share of REST_FALLBACK_SECONDS after the one before, because its answer
# should come that often, over a new connection if need be. With 10 s that makes at most 8 in a minute: a weight of 80.
_FALLBACK_SHARE = 0.8
# In fallback a failed request is repeated so soon. Refusals are not. The weight stays below 200 a minute.
_RETRY_DELAYS_S = (1.0, 2.0, 4.0)
_MIN_STEP_S, _MAX_STEP_S = 0.05, 1.0
_REFUSED, _FAILED = "REST refused", "REST failed"
_KNOWN_LABELS = ("403", "418", "429", "451", "connection", "malformed", "old", "timeout")


class RestPoller:
    """Asks when it is due, and hands the answers on. Reading its public fields is safe from any thread."""

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
        """Ask nothing yet. `live_connections` returns how many connections of the stream are live."""
        self.polls = 0
        self.errors: Counter[str] = Counter(dict.fromkeys(_KNOWN_LABELS, 0))
        """Failed polls by the label of their cause. The usual labels exist from the start, so that the first shows."""
        self.last_success_wall_s: float | None = None
        self.last_error: str | None = None
        self.trouble: str | None = None
        """What keeps snapshots from coming now."""
        self.progress_s = clock.steady_s()
        """Steady time at which the thread last went round. A request that hangs keeps it standing."""
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
        """How long the last snapshot took."""
        self._asked_s = -math.inf
        """Steady time of the last question for a snapshot."""
        self._counted_from_s = -math.inf
        """Steady time from which the next snapshot in fallback is timed."""
        self._paused_until_s = -math.inf
        self._refused_in_a_row = 0
        self._failed_in_a_row = 0
        self._retry_at_s = math.inf
        """When a failed snapshot is asked for again in fallback."""

    def restore(self, pause_s: float) -> None:
        """Wait for as long as Binance had asked an earlier daemon to."""
        self._paused_until_s = self._clock.steady_s() + pause_s

    def run(self, stop: threading.Event) -> None:
        """Ask until `stop` is set; blocks, for a request under way until `abort`."""
        with contextlib.suppress(Aborted):
            while not stop.wait(self.step()):
                pass
        self._client.close()

    def abort(self) -> None:
        """Abort the request under way, at the end of the program. From any thread."""
        self._client.abort()

    def step(self) -> float:
        """Ask for what is due; return the seconds to the next step. For the polling thread; blocks for the request."""
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
        """Return when the next snapshot is to be asked for."""
        due_s, fallback_s = self._asked_s + self._settings.rest_poll_seconds, self._settings.rest_fallback_seconds
        latest = self._freshness.latest
        # Symbols that only REST delivers would be stale between two routine snapshots.
        if self._stream_state.fallback_active or latest.from_rest or not latest.symbols:
            in_fallback_s = self._counted_from_s + _FALLBACK_SHARE * fallback_s
            due_s = min(due_s + fallback_s, in_fallback_s, self._retry_at_s)
        return max(due_s, self._paused_until_s)

    def _until_fallback_s(self) -> float:
        """Return the seconds until silence of the stream would start the fallback, infinite during fallback."""
        if self._stream_state.fallback_active:
            return math.inf
        return self._current_s - self._freshness.stream_age_s()

    def _update_fallback(self) -> None:
        """Let it be decided whether the stream brings the market. While it does not, snapshots come often."""
        age_s, latest = self._freshness.stream_age_s(), self._freshness.latest
        if self._stream_state.update(self._live_connections(), age_s, behind=latest.behind, of=latest.listed):
            # A snapshot that comes any earlier might bring nothing newer than the stream had.
            self._counted_from_s = latest.served_s - self._took_s

    def _poll(self) -> None:
        """Ask for one snapshot, compare and merge it."""
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
        # After the merge: a gap that it ends is logged with the trouble of its time.
        self.last_success_wall_s, self.trouble = round(self._clock.wall_s(), 3), None
        self._refused_in_a_row = self._failed_in_a_row = 0
        self._throttle.resolve(_REFUSED, _FAILED, log_as="REST recovered")

    def _note_failure(self, cause: Cause) -> None:
        """Count and log a failed snapshot, and decide when the next one is asked for."""
        now_s = self._clock.steady_s()
        self._apply_pause(cause)
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

    def _apply_pause(self, cause: Cause) -> None:
        """Wait for as long as Binance asked, whichever request it refused."""
        if cause.wait_s:
            self._paused_until_s = self._clock.steady_s() + cause.wait_s

    def _ask_extra(self, spare_s: float) -> bool:
        """Ask for the time or the intervals if one of them is due. Return whether one was."""
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
            self._apply_pause(cause)
            if self.trouble is None:  # else REST fails as a whole, and this has been logged
                self._throttle.warn(trouble, str(cause), next="asked again")
        else:
            self._throttle.resolve(trouble, log_as=over)

    def _learn_time(self, body: bytes, asked_s: float) -> None:
        self._exchange_clock.note_answer(rates.decode_server_time(body), asked_s, self._clock.steady_s())

    def _learn_intervals(self, body: bytes, _asked_s: float) -> None:
        self._intervals.note_answer(rates.decode_funding_info(body), self._book.rates())


def _cause(error: RestError | ValueError) -> Cause:
    return error.cause if isinstance(error, RestError) else Cause(Kind.MALFORMED, str(error))
