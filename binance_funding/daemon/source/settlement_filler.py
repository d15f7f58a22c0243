"""Keeps the settlement history complete: notes which settlements are due, and asks Binance for what is missing.

Facts of the exchange, as of November 2026 [1]:
- `fundingRate` and `fundingInfo` share 500 requests in 5 min. At most 20 a minute leave most of them unused.
- Without a symbol, an answer has the rows of all symbols, at most 1,000, and in a longer window the oldest of them.
- When a settlement can be asked for is not documented.
[1] https://developers.binance.com/docs/derivatives/usds-margined-futures/market-data/rest-api/Get-Funding-Rate-History
"""

import contextlib
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import urlencode

from ...clock import Clock
from ...log import LogThrottle
from ...settlements import (
    E8,
    HOUR_MS,
    MINUTE_MS,
    PUBLISHED_WITHIN_MS,
    CheckedHour,
    HistoryFault,
    SettlementWriter,
    Summary,
)
from ..market.last_estimates import LastEstimates
from . import settlement_rows
from .rates import MalformedMessage
from .rest import BrokenOff, RestError

FUNDING_RATE = "/fapi/v1/fundingRate"
_MAX_ROWS = 1000
_REQUEST_EVERY_S = 3.05  # Any minute has at most 20 requests in it.
_REQUEST_WITHIN_S = 10.0
_STEP_S = 5.0
_FIRST_ASK_MS = 30_000
# So long after a settlement time, the next funding times of the stream have moved on, even if it lags.
_ESTIMATES_AFTER_MS = 20_000
# After a longer time without a step (a paused host), what happened meanwhile was not watched.
_MAX_UNWATCHED_MS = 60_000
# A fault is met with waits that double from the first of these to the second.
_FIRST_RETRY_S, _LONGEST_RETRY_S = 10.0, 320.0
# An hour whose answer is in doubt is asked for again after this time. Meanwhile it counts as unknown.
_DOUBTED_FOR_S = 3600.0
# At these hours of the day every symbol is settled, so an answer without rows is wrong.
_ALL_SETTLED_MS = 8 * HOUR_MS
# While old hours are filled, the sums are computed once in this time.
_SUMMARIES_EVERY_S = 60.0
_TROUBLE = "settlement history incomplete"


class Client(Protocol):
    """What asks Binance, for this thread alone."""

    def get(self, path: str, within_s: float) -> bytes:
        """Return the body of a successful answer. Raises RestError, or BrokenOff at the end of the program."""


@dataclass
class _Window:
    """A time that Binance is being asked for, page by page."""

    from_ms: int
    """Moves on from page to page."""
    to_ms: int
    asked_ms: int
    """When the first page was asked for, by Binance's clock."""
    hour_ms: int | None = None
    """The hour that is known once all pages have come, None if the window is shorter."""
    symbols: list[str] = field(default_factory=list)
    """To be asked for one by one at `from_ms`, since one page cannot hold all rows of that millisecond."""
    is_malformed: bool = False
    is_empty: bool = True


class SettlementFiller:
    """Fills the history in a thread of its own ("settlements"): the newest first, and nothing while snapshots suffer.

    `run` and `step` are for that thread. The public attributes can be read from any.
    """

    def __init__(
        self,
        writer: SettlementWriter,
        client: Client,
        clock: Clock,
        throttle: LogThrottle,
        *,
        now_ms: Callable[[], int | None],
        next_funding_times: Callable[[], Mapping[str, int]],
        estimates: LastEstimates,
        may_ask: Callable[[], bool],
        on_error: Callable[[RestError], None],
    ) -> None:
        """Keep the arguments; open nothing.

        now_ms: Binance's time, None while it is unknown.
        next_funding_times: of every listed symbol, in ms; 0 if its record is not current. A new mapping each time.
        may_ask: False during fallback, during a pause that Binance asked for, and before the first snapshot.
        on_error: told of every failed request, so that a pause that Binance asks for holds for the snapshots, too.
        """
        self._writer = writer
        self._client = client
        self._clock = clock
        self._throttle = throttle
        self._now_ms = now_ms
        self._next_funding_times = next_funding_times
        self._estimates = estimates
        self._may_ask = may_ask
        self._on_error = on_error
        self._watched_ms: int | None = None
        """Binance's time at the last step."""
        self._expected: Mapping[str, int] = {}
        """The next funding times at the last step."""
        self._window: _Window | None = None
        self._without_estimates: set[int] = set()
        """Settlement times whose last estimates are not in the history yet."""
        self._next_ask_ms: dict[int, int] = {}
        """By settlement time: when to ask for it next."""
        self._doubted_until_s: dict[int, float] = {}
        """By hour: until when it is left out, since its last answer had malformed rows or none at all."""
        self._not_before_s = clock.steady_s() + _REQUEST_EVERY_S
        """No request is sent before this steady time. So a daemon that is restarted again and again keeps the pace."""
        self._retry_s = _FIRST_RETRY_S
        self._summarize_at_s = -math.inf
        """When to compute the summaries next."""
        self.rejected_rows = 0
        self.fault: HistoryFault | RestError | MalformedMessage | None = None
        """What keeps the history from being filled now."""
        self.summaries: Mapping[str, Summary] = {}
        """By symbol; replaced as a whole when something has changed. Empty while the history cannot be read."""
        self.progress_s = clock.steady_s()
        """Steady time of the last step; stands still while a request hangs."""

    def resume(self, at_ms: int, next_funding_times: Mapping[str, int]) -> None:
        """Go on from what an earlier daemon knew at that time, so that a short restart misses no settlement time."""
        self._watched_ms, self._expected = at_ms, next_funding_times

    def run(self, stop: threading.Event) -> None:
        """Fill until `stop` is set; blocks, for a request under way until the client is told to end it."""
        with contextlib.suppress(BrokenOff):
            while not stop.wait(self.step()):
                pass
        self._writer.close()

    def step(self) -> float:
        """Do what is due, at most one request; return the seconds to the next step. Raises BrokenOff."""
        self.progress_s = self._clock.steady_s()
        now_ms = self._now_ms()
        if now_ms is None:
            self.summaries, self._summarize_at_s = {}, -math.inf
            return 1.0
        try:
            self._watch(now_ms)
            self._keep_estimates(now_ms)
            if self._may_ask() and self.progress_s >= self._not_before_s:
                self._ask(now_ms)
            if self.progress_s >= self._summarize_at_s:
                self.summaries, self._summarize_at_s = self._writer.summaries(now_ms), math.inf
        except (HistoryFault, RestError, MalformedMessage) as error:
            self._note_fault(error)
        until_hour_s = (HOUR_MS - now_ms % HOUR_MS) / 1000
        until_request_s = self._not_before_s - self._clock.steady_s()
        return max(0.05, min(_STEP_S, until_hour_s, until_request_s if until_request_s > 0 else _STEP_S))

    def _watch(self, now_ms: int) -> None:
        """Note the settlement times that have passed since the last step, and who was due at each.

        A symbol is due if its next funding time was not later, or if its record was not current.
        """
        watched_ms, expected = self._watched_ms, self._expected
        times = self._next_funding_times()
        if watched_ms is None or watched_ms // HOUR_MS != now_ms // HOUR_MS:
            self._summarize_at_s = -math.inf
        if watched_ms is not None and expected and 0 <= now_ms - watched_ms <= _MAX_UNWATCHED_MS:
            passed = {time_ms for time_ms in expected.values() if watched_ms < time_ms <= now_ms}
            passed.update(range(watched_ms // HOUR_MS * HOUR_MS + HOUR_MS, now_ms + 1, HOUR_MS))
            for due_ms in sorted(passed):
                due = [symbol for symbol, time_ms in expected.items() if time_ms <= due_ms]
                self._writer.expect(due_ms, due)
                self._without_estimates.add(due_ms)
                self._summarize_at_s = -math.inf
        self._watched_ms, self._expected = now_ms, times

    def _keep_estimates(self, now_ms: int) -> None:
        """Put the last estimates into the history soon after a settlement time: there they survive a restart."""
        for due_ms in sorted(self._without_estimates):
            if now_ms >= due_ms + _ESTIMATES_AFTER_MS:
                rates = self._estimates.before(due_ms)
                self._writer.keep_estimates(due_ms, {symbol: round(rate * E8) for symbol, rate in rates.items()})
                self._without_estimates.remove(due_ms)

    def _ask(self, now_ms: int) -> None:
        """Ask for the next page of what is missing."""
        window = self._window = self._window or self._next_window(now_ms)
        if window is None:
            return
        symbol = window.symbols[-1] if window.symbols else None
        to_ms = window.to_ms if symbol is None else window.from_ms
        query: dict[str, str | int] = {"startTime": window.from_ms, "endTime": to_ms, "limit": _MAX_ROWS}
        if symbol is not None:
            query["symbol"] = symbol
        self._not_before_s = self._clock.steady_s() + _REQUEST_EVERY_S
        body = self._client.get(f"{FUNDING_RATE}?{urlencode(query)}", _REQUEST_WITHIN_S)
        answer = settlement_rows.decode(body, window.from_ms, to_ms)
        if not answer.length and window.hour_ms == window.from_ms and window.from_ms % _ALL_SETTLED_MS == 0:
            raise MalformedMessage(f"no settlement at all in the hour from {window.from_ms} on")
        if answer.rejected:
            self.rejected_rows += answer.rejected
            window.is_malformed = True
            self._throttle.warn("settlement rows rejected", answer.first_fault, rows=answer.rejected)
        window.is_empty = window.is_empty and not answer.length
        is_last = self._turn_page(window, answer)
        self._writer.add(answer.rows, self._checked_hour(window) if is_last else None)
        self._retry_s, self.fault = _FIRST_RETRY_S, None
        self._throttle.resolve(_TROUBLE, log_as="settlement history filled again")
        is_recent = now_ms - window.to_ms < HOUR_MS
        at_s = -math.inf if is_last and is_recent else self._clock.steady_s() + _SUMMARIES_EVERY_S
        self._summarize_at_s = min(self._summarize_at_s, at_s)
        if is_last:
            self._window = None

    def _checked_hour(self, window: _Window) -> CheckedHour | None:
        """Return the hour that is known now that all pages of a window have come.

        An hour without settlements is believed when it is asked for the second time: there are few of them.
        """
        hour_ms = window.hour_ms
        if hour_ms is None:
            return None
        if window.is_malformed or (window.is_empty and hour_ms not in self._doubted_until_s):
            self._doubted_until_s[hour_ms] = self._clock.steady_s() + _DOUBTED_FOR_S
            return None
        self._doubted_until_s.pop(hour_ms, None)
        return CheckedHour(hour_ms, window.asked_ms)

    def _turn_page(self, window: _Window, answer: settlement_rows.DecodedSettlements) -> bool:
        """Prepare the next request of a window; return whether there is none.

        A page that is full is followed by the one from its last millisecond on: rows that came already are not stored
        twice. If that millisecond fills a page by itself, the symbols that are not on it are asked for one by one.
        """
        if window.symbols:
            window.symbols.pop()
            if not window.symbols:
                window.from_ms += 1
            return False
        if answer.length < _MAX_ROWS or not answer.rows:
            return True
        last_ms = max(row.funding_time_ms for row in answer.rows)
        if last_ms > window.from_ms:
            window.from_ms = last_ms
        else:
            window.symbols = sorted(self._expected.keys() - {row.symbol for row in answer.rows})
            window.from_ms += 0 if window.symbols else 1
        return False

    def _next_window(self, now_ms: int) -> _Window | None:
        """Choose what to ask for: recent settlements that are awaited, else the newest hour that is not known."""
        awaited = self._writer.awaited(now_ms - PUBLISHED_WITHIN_MS)
        self._next_ask_ms = {due_ms: at_ms for due_ms, at_ms in self._next_ask_ms.items() if due_ms in awaited}
        for due_ms in awaited:
            if now_ms < self._next_ask_ms.get(due_ms, due_ms + _FIRST_ASK_MS):
                continue
            self._next_ask_ms[due_ms] = now_ms + (now_ms - due_ms)
            return _Window(due_ms, due_ms + MINUTE_MS - 1, now_ms)
        now_s = self._clock.steady_s()
        left_out = {hour_ms for hour_ms, until_s in self._doubted_until_s.items() if now_s < until_s}
        hour_ms = self._writer.next_hour(now_ms, left_out)
        return None if hour_ms is None else _Window(hour_ms, hour_ms + HOUR_MS - 1, now_ms, hour_ms)

    def _note_fault(self, error: HistoryFault | RestError | MalformedMessage) -> None:
        """Wait, and begin with the window again."""
        self.fault, self._window = error, None
        if isinstance(error, HistoryFault):
            self.summaries, self._summarize_at_s = {}, -math.inf
        elif isinstance(error, RestError):
            self._on_error(error)
        self._not_before_s = self._clock.steady_s() + self._retry_s
        self._throttle.warn(_TROUBLE, str(error), next_in_s=self._retry_s)
        self._retry_s = min(2 * self._retry_s, _LONGEST_RETRY_S)
