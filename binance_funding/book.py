"""The newest funding rate of each symbol, whichever source brought it; how fresh the whole is, and its gaps."""

import logging
import math
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from . import events
from .clock import Clock
from .history import GAP_SECONDS, History
from .rates import STREAM, FundingRate, usual_event_time_ms

_log = logging.getLogger(__name__)

# A symbol that nothing has brought for so long has left the market.
_FORGET_S = 86_400
# Seventy times today's market: what claims to be more is a fault, and kept for a day it would fill the memory.
_MOST_SYMBOLS = 65_536
# Smoothing of the clock offset; a jump larger than the second number is no noise, and where so many come one after the
# other, it is a clock that was set. (A single one is a message that was old when it came.)
_OFFSET_WEIGHT, _OFFSET_JUMP_S, _OFFSET_JUMPS = 0.1, 1.0, 3


class Counts(NamedTuple):
    """How many symbols the book holds, by what keeps them fresh."""

    symbols: int
    from_rest: int
    stale: int


class Book:
    """Newest rate per symbol. Safe to call from any thread; no call blocks for longer than a merge (about 1 ms)."""

    def __init__(
        self, clock: Clock, history: History, *, silence_s: float, stale_s: float, trouble: Callable[[], str]
    ) -> None:
        """Start empty. `trouble` names what is wrong with the sources at the moment, for the cause of a gap."""
        self._clock = clock
        self._history = history
        self._silence_s = min(silence_s, stale_s)  # stale data never keeps REST out
        self._stale_s = stale_s
        self._trouble = trouble
        self._repeats = events.Repeats(_log, clock.steady_s)
        self._started_s = clock.steady_s()
        self._lock = threading.Lock()  # guards every field below: streams and REST merge, the publisher reads
        self._newest: dict[str, FundingRate] = {}
        self._from_stream: dict[str, FundingRate] = {}
        # Last event times of forgotten symbols: REST may repeat a dead symbol's last row for ever.
        self._departed: dict[str, int] = {}
        self._full = False
        self._advanced_s: float | None = None
        self._stream_advanced_s: float | None = None
        self._not_running = False
        self._clock_offset_s: float | None = None
        self._offset_jumps = 0
        self.gaps_ended = 0
        self.gap_seconds = 0.0
        self.changed = threading.Event()
        """Set whenever a merge brought something new; whoever waits for it clears it."""

    def merge(self, rates: Sequence[FundingRate]) -> int:
        """Take in decoded rows of one source; return how many of them brought something newer.

        Event time decides: an older row or an equal one changes nothing. A REST row replaces a stream row only where
        that has not advanced for `silence_s`, so that REST cannot hide what the stream is doing.
        """
        if not rates:
            return 0
        source, received_s = rates[0].source, rates[0].received_s
        with self._lock:
            merged = self._merge_stream(rates) if source == STREAM else self._merge_rest(rates, received_s)
            if merged:
                self._note_advance(source, received_s)
                self._measure_clock(source, received_s, rates)
        if merged:
            self.changed.set()
        return merged

    def _merge_stream(self, rates: Sequence[FundingRate]) -> int:
        newest, from_stream, merged = self._newest, self._from_stream, 0
        for rate in rates:
            symbol = rate.symbol
            known = newest.get(symbol)
            newest_ms = self._admitted_after_ms(symbol) if known is None else known.event_time_ms
            if newest_ms < rate.event_time_ms:
                newest[symbol] = from_stream[symbol] = rate
                merged += 1
        return merged

    def _merge_rest(self, rates: Sequence[FundingRate], received_s: float) -> int:
        merged = 0
        for rate in rates:
            known = self._newest.get(rate.symbol)
            if known is None:
                is_newer = rate.event_time_ms > self._admitted_after_ms(rate.symbol)
            else:
                left_to_stream = known.source == STREAM and received_s - known.received_s <= self._silence_s
                is_newer = rate.event_time_ms > known.event_time_ms and not left_to_stream
            if is_newer:
                self._newest[rate.symbol] = rate
                merged += 1
        return merged

    def _admitted_after_ms(self, symbol: str) -> float:
        """Return the event time that a row of a symbol not in the book must exceed."""
        if len(self._newest) < _MOST_SYMBOLS:
            return self._departed.get(symbol, 0)
        if not self._full:
            self._full = True
            _log.error("%s", events.line("too many symbols", most=_MOST_SYMBOLS, next="new ones are left out"))
        return math.inf

    def _note_advance(self, source: str, received_s: float) -> None:
        age_s = received_s - (self._started_s if self._advanced_s is None else self._advanced_s)
        wall_s = self._clock.wall_s()
        self._history.data_age(wall_s, age_s)
        if age_s > GAP_SECONDS:
            self._end_gap(wall_s - age_s, age_s)
        self._not_running = False
        self._advanced_s = received_s
        if source == STREAM:
            self._stream_advanced_s = received_s

    def _end_gap(self, start_wall_s: float, seconds: float) -> None:
        cause = "not running" if self._not_running else self._trouble()
        self._history.gap(start_wall_s, seconds, cause)
        self.gaps_ended += 1
        self.gap_seconds = round(self.gap_seconds + round(seconds, 3), 3)
        self._repeats.tell("gap ended", cause, seconds=seconds)
        # The next one is another; where they come one soon after the other, they are one trouble all the same.
        self._repeats.over("gap ended")

    def _measure_clock(self, source: str, received_s: float, rates: Sequence[FundingRate]) -> None:
        # A snapshot's event times are seconds old where nothing moved: it measures only while no stream does.
        if source != STREAM and self._stream_age_s(received_s) <= self._silence_s:
            return
        now = self._clock.now()
        received_wall_s = now.wall_s - (now.steady_s - received_s)
        offset_s = usual_event_time_ms(rates) / 1000 - received_wall_s
        smoothed_s = self._clock_offset_s
        jumped = smoothed_s is not None and abs(offset_s - smoothed_s) > _OFFSET_JUMP_S
        self._offset_jumps = self._offset_jumps + 1 if jumped else 0
        if self._offset_jumps % _OFFSET_JUMPS:
            return
        if smoothed_s is None or jumped:
            smoothed_s = offset_s
        self._clock_offset_s = smoothed_s + _OFFSET_WEIGHT * (offset_s - smoothed_s)

    def take_over(self, rates: Iterable[FundingRate], down_s: float, started_s: float | None = None) -> None:
        """Start with what an earlier daemon left, with its old times.

        It started at `started_s` (steady time), since when nothing had come if it left no rates, and stopped writing
        `down_s` seconds ago.
        """
        with self._lock:
            self._newest = {rate.symbol: rate for rate in rates}
            self._from_stream = {rate.symbol: rate for rate in self._newest.values() if rate.source == STREAM}
            self._advanced_s = max((rate.received_s for rate in self._newest.values()), default=started_s)
            self._not_running = down_s > GAP_SECONDS

    def forget_departed(self) -> None:
        """Drop the symbols that no source has brought for 24 h."""
        oldest_s = self._clock.steady_s() - _FORGET_S
        with self._lock:
            departed = [rate.symbol for rate in self._newest.values() if rate.received_s < oldest_s]
            if len(self._departed) > _MOST_SYMBOLS:
                self._departed.clear()
            for symbol in departed:
                self._departed[symbol] = self._newest.pop(symbol).event_time_ms
                self._from_stream.pop(symbol, None)

    def rates(self) -> list[FundingRate]:
        """Return the newest rate of each symbol."""
        with self._lock:
            return list(self._newest.values())

    def stream_rates(self) -> dict[str, FundingRate]:
        """Return what the stream itself brought within `stale_s`, by symbol."""
        oldest_s = self._clock.steady_s() - self._stale_s
        with self._lock:
            return {symbol: rate for symbol, rate in self._from_stream.items() if rate.received_s >= oldest_s}

    def counts(self) -> Counts:
        """Count the symbols, those that live on REST, and those that are stale."""
        rates, oldest_s = self.rates(), self._clock.steady_s() - self._stale_s
        fresh = [rate for rate in rates if rate.received_s >= oldest_s]
        return Counts(len(rates), sum(rate.source != STREAM for rate in fresh), len(rates) - len(fresh))

    def age_s(self) -> float:
        """Return the seconds since any source brought something new; since the start if none ever did."""
        with self._lock:
            last_s = self._started_s if self._advanced_s is None else self._advanced_s
        return self._clock.steady_s() - last_s

    def stream_age_s(self) -> float:
        """Return the seconds since the stream brought something new; since the start if it never did."""
        with self._lock:
            return self._stream_age_s(self._clock.steady_s())

    def _stream_age_s(self, steady_s: float) -> float:
        return steady_s - (self._started_s if self._stream_advanced_s is None else self._stream_advanced_s)

    def clock_offset_s(self) -> float | None:
        """Return Binance's time minus this host's, smoothed, the way of the message included; None until measured."""
        with self._lock:
            return self._clock_offset_s
