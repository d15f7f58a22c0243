"""The newest record of each symbol, whichever source delivered it, and the symbols that are listed and halted.

The age of a record is counted by Binance's clock (exchange_clock.py), not from its arrival.
"""

import statistics
import threading
from collections.abc import Iterable, Mapping, Sequence

from ...settings import Settings
from ..record import STREAM, FundingRate
from . import thresholds
from .exchange_clock import ExchangeClock
from .intervals import Intervals
from .stream_state import StreamState


class Book:
    """Newest rate per symbol. Safe to call from any thread; no call blocks for longer than a merge (about 1 ms)."""

    def __init__(
        self, settings: Settings, exchange_clock: ExchangeClock, intervals: Intervals, stream_state: StreamState
    ) -> None:
        self._exchange_clock = exchange_clock
        self._intervals = intervals
        self._stream_state = stream_state
        self._current_s = thresholds.current_s(settings)
        self._lock = threading.Lock()  # guards every field below: streams and REST merge, the publisher reads
        self._newest: dict[str, FundingRate] = {}
        self._from_stream: dict[str, FundingRate] = {}  # the newest row that the stream itself delivered
        self._before_settlement: dict[str, FundingRate] = {}
        """The last row of the stream before the next funding time of a symbol moved on."""
        self._last_listed: frozenset[str] = frozenset()  # the symbols of the last snapshot
        self._halted_at_ms: dict[str, int] = {}  # event times of the halted symbols; replaced as a whole
        self.listed: frozenset[str] | None = None
        """The symbols of the last two REST snapshots; None before the first. Replaced as a whole."""
        self.interest_rates: Mapping[str, float] = {}
        """Interest rate by symbol, from the last snapshot. Replaced as a whole."""
        self.version = 0
        """Grows with every change of the records, of `listed` or of `halted`."""
        self.news = 0
        """How many merges brought something new."""
        self.changed = threading.Event()
        """Set by every merge that brought something new. The publisher waits for it and clears it."""

    def merge(self, rates: Sequence[FundingRate]) -> int:
        """Merge decoded rows of one source; return how many of them were newer than the known records.

        An older or equal event time changes nothing. While the stream works, a REST row replaces a stream row only if
        the stream row is not current, or is much older than the REST row. So REST does not hide a faulty stream.
        """
        merged, moves = 0, []
        with self._lock:
            newest, from_stream = self._newest, self._from_stream
            for rate in rates:
                symbol = rate.symbol
                known = newest.get(symbol)
                is_new = self._is_admitted(rate) if known is None else known.event_time_ms < rate.event_time_ms
                if rate.source == STREAM:
                    # Here also rows count that are older than a REST row: they show how far the stream is behind.
                    if is_new or (known is not None and self._is_news_of_stream(rate)):
                        before = from_stream.get(symbol)
                        if before is not None and before.next_funding_time_ms < rate.next_funding_time_ms:
                            self._before_settlement[symbol] = before
                        from_stream[symbol] = rate
                elif is_new:
                    is_new = not self._is_left_to_stream(known, rate)
                if is_new:
                    if known is not None and known.next_funding_time_ms != rate.next_funding_time_ms:
                        moves.append((known, rate))
                    newest[symbol] = rate
                    merged += 1
            if moves:
                self._intervals.note_moves(moves)
            self.version += 1  # even if no record is new, because `_from_stream` may have changed
            self.news += merged > 0
        if merged:
            self.changed.set()
        return merged

    def _is_admitted(self, rate: FundingRate) -> bool:
        """Refuse unknown symbols with old rows: REST may repeat the last row of a removed symbol for ever."""
        return rate.received_s - self._as_of_s(rate) < thresholds.KEPT_S

    def _is_news_of_stream(self, rate: FundingRate) -> bool:
        known = self._from_stream.get(rate.symbol)
        return known is None or known.event_time_ms < rate.event_time_ms

    def _is_left_to_stream(self, known: FundingRate | None, rate: FundingRate) -> bool:
        return (
            self._stream_state.keeps_rows
            and known is not None
            and known.source == STREAM
            and rate.received_s - self._as_of_s(known) <= self._current_s
            and rate.event_time_ms - known.event_time_ms <= self._current_s * 1000
        )

    def _as_of_s(self, rate: FundingRate) -> float:
        return self._exchange_clock.as_of_s(rate.event_time_ms, rate.received_s)

    def note_snapshot(self, rates: Sequence[FundingRate], received_s: float) -> float:
        """Take note of the symbols that a snapshot lists, after its merge. It has at least one row.

        Returns the age of its median row in seconds. If that row is not current, nothing is learned about halts.
        """
        median_ms = statistics.median_low(rate.event_time_ms for rate in rates)
        age_s = received_s - self._exchange_clock.as_of_s(median_ms, received_s)
        listed, halted_before_ms = (
            frozenset(rate.symbol for rate in rates),
            median_ms - thresholds.HALTED_BEHIND_S * 1000,
        )
        with self._lock:
            if age_s <= self._current_s:
                halted = {r.symbol: r.event_time_ms for r in rates if r.event_time_ms < halted_before_ms}
                is_outage = len(halted) > thresholds.MAX_HALTED_SHARE * len(listed)
                self._halted_at_ms = {} if is_outage else halted
            self.listed, self._last_listed = self._last_listed | listed, listed
            if (interest_rates := _interest_rates(rates)) != self.interest_rates:
                self.interest_rates = interest_rates
            self.version += 1
        return age_s

    @property
    def halted(self) -> frozenset[str]:
        """The symbols for which the exchange itself has nothing newer; a newer row of any source ends the halt."""
        newest, halted_at_ms = self._newest, self._halted_at_ms
        return frozenset(s for s, at_ms in halted_at_ms.items() if s in newest and newest[s].event_time_ms <= at_ms)

    def restore(self, rates: Iterable[FundingRate]) -> None:
        """Start with the records of an earlier daemon and their old times."""
        with self._lock:
            self._newest = {rate.symbol: rate for rate in rates}
            self.interest_rates = _interest_rates(self._newest.values())
            self._from_stream = {rate.symbol: rate for rate in self._newest.values() if rate.source == STREAM}
            self.version += 1

    def prune_delisted(self, now_s: float) -> None:
        """Remove the symbols for which no source has delivered anything new in 24 h."""
        with self._lock:
            oldest_s = now_s - thresholds.KEPT_S
            for symbol in [rate.symbol for rate in self._newest.values() if self._as_of_s(rate) < oldest_s]:
                del self._newest[symbol]
                self._from_stream.pop(symbol, None)
                self.version += 1

    def drop_ahead(self, latest_ms: float) -> int:
        """Drop the records with later event times, which proved wrong after their arrival; return their number."""
        with self._lock:
            for symbol in [symbol for symbol, rate in self._from_stream.items() if rate.event_time_ms > latest_ms]:
                del self._from_stream[symbol]
            ahead = [symbol for symbol, rate in self._newest.items() if rate.event_time_ms > latest_ms]
            for symbol in ahead:
                del self._newest[symbol]
            self._newest.update((symbol, self._from_stream[symbol]) for symbol in ahead if symbol in self._from_stream)
            self.version += 1
            return len(ahead)

    def rates(self) -> list[FundingRate]:
        """Return the newest rate of each symbol."""
        with self._lock:
            return list(self._newest.values())

    def last_estimates(self, settlement_ms: int) -> dict[str, float]:
        """Return the last rate of the stream before a settlement, by symbol, if the stream showed it until then."""
        oldest_ms = settlement_ms - thresholds.ESTIMATE_WITHIN_S * 1000
        with self._lock:
            rows = list(self._before_settlement.values())
        return {
            row.symbol: row.funding_rate
            for row in rows
            if row.next_funding_time_ms == settlement_ms and row.event_time_ms >= oldest_ms
        }

    def next_funding_times(self, now_s: float) -> dict[str, int]:
        """Return the next funding time of each symbol in ms; 0 if its record is too old to tell.

        Empty before the first snapshot, because symbols may be missing until then.
        """
        rates = self.rates() if self.listed is not None else []
        oldest_s = now_s - thresholds.FUNDING_TIME_WITHIN_S
        times_s = self._exchange_clock.all_as_of_s(rates)
        return {
            rate.symbol: rate.next_funding_time_ms if as_of_s >= oldest_s else 0
            for rate, as_of_s in zip(rates, times_s, strict=True)
        }

    def stream_rates(self) -> dict[str, FundingRate]:
        """Return the newest row that the stream delivered for each symbol in the book."""
        with self._lock:
            return dict(self._from_stream)


def _interest_rates(rates: Iterable[FundingRate]) -> dict[str, float]:
    return {rate.symbol: rate.interest_rate for rate in rates if rate.interest_rate is not None}
