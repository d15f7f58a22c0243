"""The funding interval, cap and floor of each symbol, and whether the interval is only assumed.

Binance names all of them in fundingInfo. An interval also shows in the next funding time, which often changes before
fundingInfo does. While the two contradict each other, the record is marked.

Facts of the exchange, as of November 2026:
- A funding time is a whole multiple of its interval (1, 2, 4 or 8 h) since midnight UTC.
- Intervals change by machine within 15 min after a settlement, by announcement at odd minutes, and around dividends.
  The next funding time then moves, or stays where the old and the new period end together. [1]
- A symbol that fundingInfo does not list has 8 h. [1]
[1] https://developers.binance.com/docs/derivatives/usds-margined-futures/market-data/rest-api/Get-Funding-Rate-Info
"""

import math
import threading
from collections.abc import Iterable, Mapping

from ...clock import Clock
from ..record import UNKNOWN_TERMS, FundingRate, Terms
from . import thresholds

_HOUR_MS = 3_600_000
_LONGEST_HOURS = 24
_UNLISTED = UNKNOWN_TERMS._replace(is_assumed=False)


class ImplausibleAnswer(ValueError):
    """An answer to fundingInfo that lacks many of the symbols that it should list."""


class Intervals:
    """The terms of all symbols. Safe to call from any thread."""

    def __init__(self, clock: Clock) -> None:
        self.terms: Mapping[str, Terms] = {}
        """Terms by symbol. Replaced as a whole. A symbol that is missing has UNKNOWN_TERMS."""
        self._clock = clock
        self._lock = threading.Lock()  # guards every field here: messages move funding times, REST brings the terms
        self._contradicted: dict[str, int] = {}
        """Intervals that the next funding time last contradicted, by symbol. fundingInfo is late if it repeats them."""
        self._missing: frozenset[str] = frozenset()
        """Symbols that the last answer lacked although their interval is not the usual one."""
        self._asked_s = -math.inf
        self._contradicted_s = -math.inf  # when a funding time last contradicted an interval

    @property
    def ask_due_s(self) -> float:
        """The steady time from which fundingInfo should be asked for; -inf at the beginning."""
        with self._lock:
            is_urgent = self._contradicted_s >= self._asked_s
            return self._asked_s + (thresholds.INTERVALS_SOON_S if is_urgent else thresholds.INTERVALS_EVERY_S)

    def note_asked(self, asked_s: float) -> None:
        """Take note that fundingInfo is being asked for, whatever comes of it."""
        with self._lock:
            self._asked_s = asked_s

    def restore(self, terms: Mapping[str, Terms]) -> None:
        """Go on from the terms that an earlier daemon knew."""
        with self._lock:
            self.terms = terms

    def note_moves(self, moves: Iterable[tuple[FundingRate, FundingRate]]) -> None:
        """Take note of records whose next funding time differs from that of the record before."""
        changed: dict[str, Terms] = {}
        with self._lock:
            for before, after in moves:
                symbol, terms = after.symbol, self.terms.get(after.symbol, UNKNOWN_TERMS)
                settled_hours = _settled_hours(before, after)
                if settled_hours == terms.hours or (settled_hours is None and _fits(after, terms.hours)):
                    if self._contradicted.get(symbol) == terms.hours:
                        del self._contradicted[symbol]  # the funding time has moved back
                    continue
                self._contradicted[symbol] = terms.hours
                changed[symbol] = terms._replace(hours=settled_hours or terms.hours, is_assumed=True)
            if changed:
                self.terms = {**self.terms, **changed}
                self._contradicted_s = self._clock.steady_s()

    def note_answer(self, answer: Mapping[str, Terms], rates: Iterable[FundingRate]) -> None:
        """Take over an answer to fundingInfo, for the symbols of the newest records. Raises ImplausibleAnswer.

        If the answer lacks a symbol with an unusual interval, the symbol keeps this interval, marked as assumed. If the
        next answer lacks it too, the symbol gets the usual interval.
        """
        with self._lock:
            newest = {rate.symbol: rate for rate in rates}
            unusual = {s for s in newest if self.terms.get(s, _UNLISTED).hours != _UNLISTED.hours}
            missing = frozenset(unusual - answer.keys())
            if len(missing) > thresholds.MAX_UNLISTED_SHARE * len(unusual):
                raise ImplausibleAnswer(f"{len(missing)} of {len(unusual)} known symbols are missing")
            terms = {}
            for symbol, rate in newest.items():
                if symbol in missing and symbol not in self._missing:
                    terms[symbol] = self.terms[symbol]._replace(is_assumed=True)
                else:
                    terms[symbol] = self._confirmed(rate, answer.get(symbol, _UNLISTED))
            self._missing = missing
            known = self._contradicted.items()
            self._contradicted = {s: hours for s, hours in known if s in terms and terms[s].is_assumed}
            if terms != self.terms:
                self.terms = terms

    def _confirmed(self, rate: FundingRate, named: Terms) -> Terms:
        """Return the named terms. If the next funding time contradicts their interval, it is marked as assumed."""
        if named.hours != self._contradicted.get(rate.symbol) and _fits(rate, named.hours):
            return named
        known = self.terms.get(rate.symbol, named)
        return named._replace(hours=known.hours if known.is_assumed else named.hours, is_assumed=True)


def _fits(rate: FundingRate, hours: int) -> bool:
    """Tell whether the next funding time is possible with this interval."""
    wait_ms = rate.next_funding_time_ms - rate.event_time_ms
    period_ms = hours * _HOUR_MS
    return rate.next_funding_time_ms % period_ms == 0 and wait_ms <= period_ms + thresholds.SETTLED_WITHIN_S * 1000


def _settled_hours(before: FundingRate, after: FundingRate) -> int | None:
    """Return the hours between the funding time that has just passed and the next one; None if none has passed.

    After an hour, a settlement may have been missed. The difference then says nothing, and the result is None.
    """
    late_ms = after.event_time_ms - before.next_funding_time_ms
    hours, rest_ms = divmod(after.next_funding_time_ms - before.next_funding_time_ms, _HOUR_MS)
    is_settlement = -thresholds.SETTLED_WITHIN_S * 1000 <= late_ms < _HOUR_MS
    return hours if is_settlement and not rest_ms and 1 <= hours <= _LONGEST_HOURS else None
