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
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...clock import Moment
from ..context import Context
from ..market.feed import Feed
from ..record import REST, FundingRate
from . import rates
from .faults import Cause, Kind
from .rest_client import Aborted, RestClient, RestError

PREMIUM_INDEX, TIME, _FUNDING_INFO = "/fapi/v1/premiumIndex", "/fapi/v1/time", "/fapi/v1/fundingInfo"
_INTERVALS_KEPT_S, _INTERVALS_RETRY_S, _INTERVALS_LIMIT_S = 3600.0, 55.0, 5.0
# An answer with a longer round trip says too little about the time.
_TIME_LIMIT_S = 2.0
# A question that is not for a snapshot needs this much time before the next snapshot may be due.
_MIN_SPARE_S = 0.5
# An answer that lacks more of the symbols whose interval was known is a fault.
_MAX_UNLISTED_SHARE = 0.1
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
    """Asks when it is due, merges into the book, compares. Reading its public fields is safe from any thread."""

    def __init__(self, context: Context, client: RestClient, feed: Feed, live_connections: Callable[[], int]) -> None:
        self.context = context
        self.client = client
        self.feed = feed
        self.live_connections = live_connections
        self.polls = 0
        self.errors: Counter[str] = Counter(dict.fromkeys(_KNOWN_LABELS, 0))
        """Failed polls by the label of their cause. The usual labels exist from the start, so that the first shows."""
        self.last_success_wall_s: float | None = None
        self.last_error: str | None = None
        self.trouble: str | None = None
        """What keeps snapshots from coming now."""
        self.fallback_active = False
        self.interval_hours: Mapping[str, int] = {}
        """Funding interval by symbol, if Binance lists it. Replaced as a whole."""
        self.interval_known: frozenset[str] = frozenset()
        """The symbols at the time when Binance last listed the intervals. An unlisted one of them has 8 h."""
        self.progress_s = context.clock.steady_s()
        """Steady time at which the thread last went round. A request that hangs keeps it standing."""
        self._clock = context.clock
        self._settings = context.settings
        self._throttle = context.throttle
        self._exchange_clock = context.exchange_clock
        self._freshness = feed.freshness
        self._book = feed.freshness.book
        self._was_live = False
        """Whether a connection of the stream has been live."""
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
        self._intervals_learned_s = -math.inf
        self._intervals_asked_s = -math.inf

    def restore(self, pause_s: float, interval_hours: Mapping[str, int], interval_known: frozenset[str]) -> None:
        """Go on from what an earlier daemon knew: a ban outlives it, and so do the funding intervals."""
        self.interval_hours, self.interval_known = interval_hours, interval_known
        self._paused_until_s = self._clock.steady_s() + pause_s

    def run(self, stop: threading.Event) -> None:
        """Ask until `stop` is set; blocks, for a request under way until `abort`."""
        with contextlib.suppress(Aborted):
            while not stop.wait(self.step()):
                pass
        self.client.close()

    def abort(self) -> None:
        """Abort the request under way, at the end of the program. From any thread."""
        self.client.abort()

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
        if self.fallback_active or latest.from_rest or not latest.symbols:
            in_fallback_s = self._counted_from_s + _FALLBACK_SHARE * fallback_s
            due_s = min(due_s + fallback_s, in_fallback_s, self._retry_at_s)
        return max(due_s, self._paused_until_s)

    def _until_fallback_s(self) -> float:
        """Return the seconds until silence of the stream would start the fallback, infinite during fallback."""
        return math.inf if self.fallback_active else self.context.current_s - self._freshness.stream_age_s()

    def _update_fallback(self) -> None:
        """Decide whether the stream brings the market. If it does not, snapshots come often."""
        live, age_s, limit_s = self.live_connections(), self._freshness.stream_age_s(), self.context.current_s
        # Fallback ends when the stream comes within half the limit. In between, it stays as it was.
        active = age_s > (limit_s / 2 if self.fallback_active else limit_s) or (self._was_live and not live)
        self._was_live = self._was_live or live > 0
        self._book.stream_is_live = live > 0 and age_s <= limit_s / 2
        if active == self.fallback_active:
            return
        self.fallback_active, latest = active, self._freshness.latest
        if active:
            # Asked for any earlier, a snapshot might bring nothing newer than the stream had.
            self._counted_from_s = latest.served_s - self._took_s
            self._throttle.warn("fallback on", stream_age_s=age_s, live=live, behind=latest.behind, of=latest.listed)
        else:
            self._throttle.resolve("fallback on", log_as="fallback off", live=live)

    def _poll(self) -> None:
        """Ask for one snapshot, compare and merge it."""
        self._asked_s = self._counted_from_s = self._clock.steady_s()
        self._retry_at_s = math.inf
        self.polls += 1
        try:
            body = self.client.get(PREMIUM_INDEX)
            received = self._clock.now()
            self._took_s = received.steady_s - self._asked_s
            decoded = self.feed.admit(rates.decode_premium_index(body, received.steady_s), REST, received.steady_s)
            if not decoded.rates:
                raise rates.MalformedMessage(decoded.first_fault)
        except (RestError, rates.MalformedMessage) as error:
            self._note_failure(_cause(error))
            return
        self._compare(decoded.rates, received)
        self._freshness.merge(decoded.rates)
        age_s = self._book.note_snapshot(decoded.rates, received.steady_s)
        if age_s > self.context.current_s:
            self._note_failure(Cause(Kind.OLD, f"the rows of the snapshot are {age_s:.0f} s old"))
            return
        # After the merge: a gap that it ends is logged with the trouble of its time.
        self.last_success_wall_s, self.trouble = round(received.wall_s, 3), None
        self._refused_in_a_row = self._failed_in_a_row = 0
        self._throttle.resolve(_REFUSED, _FAILED, log_as="REST recovered")

    def _compare(self, snapshot: Sequence[FundingRate], received: Moment) -> None:
        oldest_s = received.steady_s - self._settings.stale_seconds
        stream = {symbol: rate for symbol, rate in self._book.stream_rates().items() if rate.received_s >= oldest_s}
        result = self.context.comparison.run(stream, snapshot, received.wall_s)
        counted = {name: result[name] for name in ("compared", "mismatched")}
        self.context.last_day.count(received.wall_s, runs=1, **counted)

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
        if self._are_intervals_due(now_s):
            self._intervals_asked_s = now_s
            self._request_extra(_FUNDING_INFO, min(_INTERVALS_LIMIT_S, spare_s), self._learn_intervals)
            return True
        return False

    def _request_extra(self, path: str, limit_s: float, learn: Callable[[bytes, float], None]) -> None:
        asked_s = self._clock.steady_s()
        trouble = "time of Binance not learned" if path == TIME else "funding intervals unknown"
        over = "time of Binance learned again" if path == TIME else "funding intervals known again"
        try:
            learn(self.client.get(path, limit_s), asked_s)
        except (RestError, rates.MalformedMessage) as error:
            cause = _cause(error)
            self._apply_pause(cause)
            if self.trouble is None:  # else REST fails as a whole, and this has been logged
                self._throttle.warn(trouble, str(cause), next="asked again")
        else:
            self._throttle.resolve(trouble, log_as=over)

    def _learn_time(self, body: bytes, asked_s: float) -> None:
        self._exchange_clock.note_answer(rates.decode_server_time(body), asked_s, self._clock.steady_s())

    def _are_intervals_due(self, now_s: float) -> bool:
        """Whether the funding intervals are an hour old, or a symbol is new."""
        if now_s < self._intervals_asked_s + _INTERVALS_RETRY_S:
            return False
        symbols, is_old = self._symbols(), now_s - self._intervals_learned_s >= _INTERVALS_KEPT_S
        return bool(symbols) and (is_old or not symbols <= self.interval_known)

    def _learn_intervals(self, body: bytes, _asked_s: float) -> None:
        """Take over the intervals. A symbol that an answer no longer lists keeps its interval."""
        listed, symbols = rates.decode_funding_info(body), self._symbols()
        known = {symbol: hours for symbol, hours in self.interval_hours.items() if symbol in symbols}
        lost = known.keys() - listed.keys()
        if len(lost) > _MAX_UNLISTED_SHARE * len(known):
            raise rates.MalformedMessage(f"{len(lost)} of {len(known)} known symbols are missing")
        self.interval_hours, self.interval_known = {**known, **listed}, symbols
        self._intervals_learned_s = self._clock.steady_s()

    def _symbols(self) -> frozenset[str]:
        return frozenset(rate.symbol for rate in self._book.rates())


def _cause(error: RestError | rates.MalformedMessage) -> Cause:
    return error.cause if isinstance(error, RestError) else Cause(Kind.MALFORMED, str(error))
