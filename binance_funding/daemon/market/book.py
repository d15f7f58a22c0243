"""The newest funding rate of each symbol, whichever source brought it, and which of them REST lists.

Old means old by Binance's clock (exchange_clock.py). Pure but for its lock.
"""

import math
import threading
from collections.abc import Iterable, Sequence

from ..context import Context
from ..source.rates import STREAM, FundingRate

# A symbol that nothing has brought for so long has left the market.
_KEPT_S = 86_400
# Seventy times today's market: what claims to be more is a fault, and kept for a day it would fill the memory.
MOST_SYMBOLS = 65_536
# So many symbols standing still at once are an outage of the exchange, which excuses none of them.
_MOST_HALTED = 0.05
# A snapshot that lacks more of what the last one listed is a fault, and delists nothing.
_MOST_DELISTED = 0.1


class Book:
    """Newest rate per symbol. Safe to call from any thread; no call blocks for longer than a merge (about 1 ms)."""

    def __init__(self, context: Context, most_symbols: int = MOST_SYMBOLS) -> None:
        self._silence_s = context.settings.silence_seconds
        self._exchange_clock = context.exchange_clock
        self._current_s = context.current_s
        self._most_symbols = most_symbols
        self._lock = threading.Lock()  # guards every field below: streams and REST merge, the publisher reads
        self._newest: dict[str, FundingRate] = {}
        self._from_stream: dict[str, FundingRate] = {}
        # Last event times of pruned symbols: REST may repeat a dead symbol's last row for ever.
        self._pruned: dict[str, int] = {}
        # What stood still at the last snapshot. Replaced as a whole.
        self._still: dict[str, FundingRate] = {}
        self.listed: frozenset[str] | None = None
        """The symbols that REST's last snapshot held; None before the first. Replaced as a whole."""
        self.stream_is_live = False
        """Whether there is a stream that symbols can be left to."""
        self.changed = threading.Event()
        """Set whenever a merge brought something new; whoever waits for it clears it."""

    def merge(self, rates: Sequence[FundingRate]) -> int:
        """Take in decoded rows of one source; return how many of them brought something newer.

        Event time decides: an older row or an equal one changes nothing. A REST row replaces a stream row only where
        that is no longer current, or not by comparison with it, so that REST cannot hide what the stream is doing.
        """
        merged = 0
        with self._lock:
            newest, from_stream = self._newest, self._from_stream
            for rate in rates:
                symbol = rate.symbol
                known = newest.get(symbol)
                newest_ms = self._admitted_after_ms(symbol) if known is None else known.event_time_ms
                is_new = newest_ms < rate.event_time_ms
                if rate.source == STREAM:
                    # Also what REST is ahead of: it tells how far behind the stream is.
                    if is_new or (known is not None and self._is_news_of_stream(rate)):
                        from_stream[symbol] = rate
                elif is_new:
                    is_new = not self._is_left_to_stream(known, rate)
                if is_new:
                    newest[symbol] = rate
                    merged += 1
        if merged:
            self.changed.set()
        return merged

    def _is_news_of_stream(self, rate: FundingRate) -> bool:
        known = self._from_stream.get(rate.symbol)
        return known is None or known.event_time_ms < rate.event_time_ms

    def _is_left_to_stream(self, known: FundingRate | None, rate: FundingRate) -> bool:
        return (
            self.stream_is_live
            and known is not None
            and known.source == STREAM
            and rate.received_s - self._exchange_clock.as_of_s(known.event_time_ms, known.received_s) <= self._current_s
            and rate.event_time_ms - known.event_time_ms <= self._current_s * 1000
        )

    def _admitted_after_ms(self, symbol: str) -> float:
        """Return the event time that a row of a symbol not in the book must exceed."""
        return self._pruned.get(symbol, 0) if len(self._newest) < self._most_symbols else math.inf

    def note_snapshot(self, rates: Sequence[FundingRate], now_s: float) -> None:
        """Take note of what a snapshot lists, after its merge.

        A symbol is halted where even so its record stays older than `SILENCE_SECONDS`: the exchange has nothing newer.
        """
        listed = frozenset(rate.symbol for rate in rates)
        with self._lock:
            before = self.listed or frozenset(self._newest)
            if len(before - listed) > _MOST_DELISTED * len(before):
                listed |= before & self._newest.keys()
            known = [self._newest[symbol] for symbol in listed if symbol in self._newest]
            times_s, since_s = self._exchange_clock.all_as_of_s(known), now_s - self._silence_s
            still = {rate.symbol: rate for rate, time_s in zip(known, times_s, strict=True) if time_s < since_s}
            self._still = still if len(still) <= _MOST_HALTED * len(listed) else {}
            self.listed = listed or None

    @property
    def halted(self) -> frozenset[str]:
        """The listed symbols whose own REST rows stand still, until something newer comes."""
        return frozenset(symbol for symbol, rate in self._still.items() if self._newest.get(symbol) is rate)

    def restore(self, rates: Iterable[FundingRate]) -> None:
        """Start with what an earlier daemon left, with its old times."""
        with self._lock:
            self._newest = {rate.symbol: rate for rate in rates}
            self._from_stream = {rate.symbol: rate for rate in self._newest.values() if rate.source == STREAM}

    def prune_delisted(self, now_s: float) -> None:
        """Drop the symbols that no source has brought anything new for in 24 h."""
        with self._lock:
            delisted = [rate.symbol for rate in self._newest.values() if rate.received_s < now_s - _KEPT_S]
            if len(self._pruned) > self._most_symbols:
                self._pruned.clear()
            for symbol in delisted:
                self._pruned[symbol] = self._newest.pop(symbol).event_time_ms
                self._from_stream.pop(symbol, None)

    def drop_ahead(self, latest_ms: float) -> int:
        """Drop the records whose event times lie beyond this, proved wrong after they came; return how many."""
        with self._lock:
            for symbol in [symbol for symbol, rate in self._from_stream.items() if rate.event_time_ms > latest_ms]:
                del self._from_stream[symbol]
            ahead = [symbol for symbol, rate in self._newest.items() if rate.event_time_ms > latest_ms]
            for symbol in ahead:
                del self._newest[symbol]
            self._newest.update((symbol, self._from_stream[symbol]) for symbol in ahead if symbol in self._from_stream)
            return len(ahead)

    def is_full(self) -> bool:
        """Tell whether new symbols are left out because there are too many."""
        return len(self._newest) >= self._most_symbols

    def rates(self) -> list[FundingRate]:
        """Return the newest rate of each symbol."""
        with self._lock:
            return list(self._newest.values())

    def stream_rates(self) -> dict[str, FundingRate]:
        """Return what the stream itself brought last, by symbol, for those in the book."""
        with self._lock:
            return dict(self._from_stream)
