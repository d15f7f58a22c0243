"""Keeps the settlement history complete: notes which settlements are due, and asks Binance for what is missing.

Facts of the exchange, as of November 2026 [1]:
- `fundingRate` and `fundingInfo` share 500 requests in 5 min. At most 20 a minute leave most of them unused.
- Without a symbol, an answer has the rows of all symbols: at most 1,000, the oldest of the time that was asked for.
- When a settlement can be asked for is not documented.
- At 0, 8 and 16 h UTC every symbol is settled.
[1] https://developers.binance.com/docs/derivatives/usds-margined-futures/market-data/rest-api/Get-Funding-Rate-History
"""

import contextlib
import threading
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple, Protocol
from urllib.parse import urlencode

from ...clock import Clock
from ...log import LogThrottle
from ...settlements import (
    HOUR_MS,
    MINUTE_MS,
    PUBLISHED_WITHIN_MS,
    HistoryFault,
    Settlement,
    SettlementWriter,
    Summary,
    hour_of,
)
from . import settlement_rows
from .rates import MalformedMessage
from .rest_client import Aborted, RestError

FUNDING_RATE = "/fapi/v1/fundingRate"
REQUEST_WITHIN_S = 10.0
"""Longest wait for one answer."""
_MAX_ROWS = 1000
_REQUEST_EVERY_S = 3.05  # Any minute has at most 20 requests in it.
_FIRST_ASK_MS = 30_000
# So long after a settlement, the next funding times of the stream have moved on, even if it lags.
_ESTIMATES_AFTER_MS = 20_000
# After a longer time without a step (a paused host), nobody knows who was due meanwhile.
_MAX_UNWATCHED_MS = 60_000
_RETRY_S = 30.0
# Old settlements are asked for in windows that begin when every symbol is settled. So no correct answer is empty, and
# an empty answer of an overloaded server is never taken for an hour without settlements.
_WINDOW_MS = 8 * HOUR_MS
_TROUBLE = "settlement history incomplete"


class Client(Protocol):
    """What asks Binance, for this thread alone. A RestClient is such a client."""

    def get(self, path: str, within_s: float) -> bytes:
        """Return the body of a successful answer. Raises RestError, or Aborted at the end of the program."""

    def abort(self) -> None:
        """End the request under way and every later one. From any thread."""

    def close(self) -> None:
        """Close the kept connection."""


class _Window(NamedTuple):
    """A time to ask for, both ends included."""

    from_ms: int
    to_ms: int
    hours_ms: Collection[int]
    """The hours that are known after the answer."""


class SettlementFiller:
    """Fills the history in a thread of its own: the newest first, and nothing while snapshots suffer.

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
        last_estimates: Callable[[int], Mapping[str, float]],
        may_ask: Callable[[], bool],
        on_error: Callable[[RestError], None],
    ) -> None:
        """Keep the arguments; open nothing.

        now_ms: Binance's time, None while it is unknown.
        next_funding_times: of every symbol, in ms; 0 if its record is not current. Empty before the first snapshot.
        last_estimates: the last rate of the stream before the settlement at this time, by symbol.
        may_ask: False during fallback, during a pause that Binance asked for, and before the first snapshot.
        on_error: gets every failed request, so that a pause that Binance asks for holds for the snapshots, too.
        """
        self._writer = writer
        self._client = client
        self._clock = clock
        self._throttle = throttle
        self._now_ms = now_ms
        self._next_funding_times = next_funding_times
        self._last_estimates = last_estimates
        self._may_ask = may_ask
        self._on_error = on_error
        self._watched_ms: int | None = None
        """Binance's time at the last step."""
        self._expected: Mapping[str, int] = {}
        """The next funding times at the last step."""
        self._estimates_due_ms: int | None = None
        """The hour whose last estimates are not in the history yet."""
        self._awaited_ms = 0
        """The last hour whose beginning was watched."""
        self._next_ask_ms = 0
        """When to ask for the awaited settlements of that hour."""
        self._useless: dict[int, int] = {}
        """By hour: in which hour its answer was useless. It is asked for again in the next hour."""
        self._not_before_s = clock.steady_s() + _REQUEST_EVERY_S
        """No request is sent before this steady time. So a daemon that restarts again and again keeps the pace, too."""
        self._summarized_ms: int | None = None
        """The hour of the summaries, None if something has changed since."""
        self.rejected_rows = 0
        self.fault: HistoryFault | RestError | MalformedMessage | None = None
        """What keeps the history from being filled now."""
        self.summaries: Mapping[str, Summary] = {}
        """By symbol; replaced as a whole. Empty while the history cannot be used or Binance's time is unknown."""
        self.progress_s = clock.steady_s()
        """Steady time of the last step or request; stands still while a request hangs."""

    def run(self, stop: threading.Event) -> None:
        """Fill until `stop` is set; blocks, for a request under way until `abort`."""
        with contextlib.suppress(Aborted):
            while not stop.wait(self.step()):
                pass
        self._client.close()

    def abort(self) -> None:
        """Abort the request under way, at the end of the program. From any thread."""
        self._client.abort()

    def step(self) -> float:
        """Do what is due, at most one window; return the seconds to the next step. Raises Aborted."""
        self.progress_s = self._clock.steady_s()
        now_ms = self._now_ms()
        if now_ms is None:
            self.summaries, self._summarized_ms = {}, None
            return 1.0
        try:
            self._watch(now_ms)
            has_answer = self.progress_s >= self._not_before_s and self._may_ask() and self._fill(now_ms)
            if self._summarized_ms != hour_of(now_ms):
                self.summaries, self._summarized_ms = self._writer.summaries(now_ms), hour_of(now_ms)
            if has_answer or isinstance(self.fault, HistoryFault):
                self.fault = None
                self._throttle.resolve(_TROUBLE, log_as="settlement history filled again")
        except (HistoryFault, RestError, MalformedMessage) as error:
            self._note_fault(error)
        return max(0.05, min(_REQUEST_EVERY_S, (HOUR_MS - now_ms % HOUR_MS) / 1000))

    def _watch(self, now_ms: int) -> None:
        """At a full hour, note who is due: each symbol whose next funding time has come or is not known for sure."""
        hour_ms, watched_ms = hour_of(now_ms), self._watched_ms
        if (
            watched_ms is not None
            and self._expected
            and watched_ms < hour_ms <= now_ms <= watched_ms + _MAX_UNWATCHED_MS
        ):
            due = [symbol for symbol, time_ms in self._expected.items() if time_ms <= hour_ms]
            self._writer.expect(hour_ms, dict.fromkeys(due))
            self._awaited_ms = self._estimates_due_ms = hour_ms
            self._next_ask_ms = hour_ms + _FIRST_ASK_MS
            self._summarized_ms = None
        due_ms = self._estimates_due_ms
        if due_ms is not None and now_ms >= due_ms + _ESTIMATES_AFTER_MS:
            self._writer.expect(due_ms, self._last_estimates(due_ms))
            self._estimates_due_ms = None
        self._watched_ms, self._expected = now_ms, self._next_funding_times()

    def _fill(self, now_ms: int) -> bool:
        """Ask for a window of what is missing, if anything is; return whether there was an answer."""
        window = self._next_window(now_ms)
        if window is None:
            return False
        rejected_before = self.rejected_rows
        try:
            rows = self._fetch(window)
        except MalformedMessage:
            self._useless.update(dict.fromkeys(window.hours_ms, hour_of(now_ms)))
            raise
        if rows is None:
            return False
        if self.rejected_rows > rejected_before:
            self._useless.update(dict.fromkeys(window.hours_ms, hour_of(now_ms)))
            self._writer.add(rows)
        else:
            self._writer.add(rows, window.hours_ms, now_ms)
        self._summarized_ms = None
        return True

    def _next_window(self, now_ms: int) -> _Window | None:
        """Choose what to ask for: settlements that are awaited, else the newest hour that is not known."""
        awaited_ms = self._awaited_ms
        is_recent = now_ms < awaited_ms + PUBLISHED_WITHIN_MS
        if is_recent and now_ms >= self._next_ask_ms and self._writer.is_awaiting(awaited_ms):
            self._next_ask_ms = now_ms + (now_ms - awaited_ms)
            return _Window(awaited_ms, awaited_ms + MINUTE_MS - 1, ())
        self._useless = {hour_ms: at_ms for hour_ms, at_ms in self._useless.items() if at_ms == hour_of(now_ms)}
        hour_ms = self._writer.next_hour(now_ms, self._useless)
        if hour_ms is None:
            return None
        from_ms = hour_ms // _WINDOW_MS * _WINDOW_MS
        return _Window(from_ms, hour_ms + HOUR_MS - 1, range(from_ms, hour_ms + 1, HOUR_MS))

    def _fetch(self, window: _Window) -> list[Settlement] | None:
        """Return all settlements of a window; None if snapshots need the exchange for themselves meanwhile.

        A page that is full is followed by the page that begins with its last millisecond.
        """
        rows: list[Settlement] = []
        from_ms = window.from_ms
        while self._may_ask():
            now_s = self.progress_s = self._clock.steady_s()
            self._not_before_s = max(self._not_before_s, now_s) + _REQUEST_EVERY_S
            query = urlencode({"startTime": from_ms, "endTime": window.to_ms, "limit": _MAX_ROWS})
            page = settlement_rows.decode(
                self._client.get(f"{FUNDING_RATE}?{query}", REQUEST_WITHIN_S), from_ms, window.to_ms
            )
            if page.rejected:
                self.rejected_rows += page.rejected
                self._throttle.warn("settlement rows rejected", page.first_fault, rows=page.rejected)
            rows += page.rows
            if page.length < _MAX_ROWS:
                if window.hours_ms and all(row.funding_time_ms >= window.from_ms + HOUR_MS for row in rows):
                    raise MalformedMessage(f"no settlement at {window.from_ms}, where every symbol is settled")
                return rows
            last_ms = max((row.funding_time_ms for row in page.rows), default=from_ms)
            if last_ms == from_ms:
                raise MalformedMessage(
                    f"{page.length} settlements at {from_ms} fill an answer, so others may be missing"
                )
            from_ms = last_ms
        return None

    def _note_fault(self, error: HistoryFault | RestError | MalformedMessage) -> None:
        """Log the fault, and ask again later."""
        self.fault = error
        if isinstance(error, HistoryFault):
            self.summaries, self._summarized_ms = {}, None
        elif isinstance(error, RestError):
            self._on_error(error)
        self._not_before_s = self._clock.steady_s() + _RETRY_S
        self._throttle.warn(_TROUBLE, str(error), next_in_s=_RETRY_S)
