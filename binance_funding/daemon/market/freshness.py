"""How current the market is as a whole: ages, gaps, and how many symbols come from REST.

The counted symbols are those that REST lists and that are not halted. Gaps and the age of the stream are measured on
the counted symbols that the stream has delivered, or on all of them if it has delivered less than half. The market is
as current as all of these symbols but 1 %.
"""

import math
import threading
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ...clock import Clock
from ...log import EventLogger, LogThrottle
from ...settings import Settings
from ..record import REST, FundingRate
from . import thresholds
from .book import Book
from .exchange_clock import ExchangeClock
from .last_day import LastDay
from .symbol_seconds import SymbolSeconds

_log = EventLogger(__name__)


class Freshness(NamedTuple):
    """The market at one moment. Times are on the steady clock; without any data they are the daemon's start."""

    measured_s: float
    """When it was measured."""
    symbols: int
    listed: int
    """Counted symbols: listed and not halted."""
    halted: int
    from_rest: int
    """Symbols whose newest record is from REST and is not stale."""
    stale: int
    """Counted symbols that are older than `STALE_SECONDS`."""
    behind: int
    """Symbols that the stream used to deliver, but whose newest row from the stream is not current."""
    oldest_s: float
    """When the oldest counted record was true at Binance."""
    newest_s: float
    """When the newest record was true at Binance."""
    served_s: float
    """When 99 % of the market last had new data: its arrival, or its event time if it was already old."""
    stream_s: float
    """The event time up to which the stream has delivered 99 % of the market."""


class _Times(NamedTuple):
    """The times of all records, kept until something changes. The lists are sorted."""

    as_of: tuple[int, float | None, float]
    """Version of the book, offset of Binance's time, and start. If one of them changes, these times are outdated."""
    symbols: int
    halted: int
    newest_s: float | None
    latest_event_ms: int
    counted_s: list[float]
    rest_s: list[float]
    stream_s: list[float]
    served_s: list[float]


class _Gap:
    """A gap that has not ended."""

    def __init__(self, start_s: float, not_running_s: float) -> None:
        self.start_s = start_s
        self.not_running_s = not_running_s  # the part of the gap in which no daemon ran
        self.missing: set[str] = set()  # every symbol that lacked new data at some time in the gap


class FreshnessWatch:
    """Measures the market and notes its gaps. Safe to call from any thread."""

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        exchange_clock: ExchangeClock,
        book: Book,
        last_day: LastDay,
        trouble: Callable[[], str],
    ) -> None:
        """Measure nothing yet; `trouble` names what is wrong with the sources at the moment, as the cause of a gap."""
        self.gaps_ended = 0
        self.gap_seconds = 0.0
        self.symbol_seconds = SymbolSeconds(settings.stale_seconds, last_day)
        self._not_running_s = 0.0  # time without a daemon, as part of the first gap
        self._settings = settings
        self._current_s = thresholds.current_s(settings)
        self._clock = clock
        self._exchange_clock = exchange_clock
        self._book = book
        self._last_day = last_day
        self._throttle = LogThrottle(_log, clock.steady_s)
        self._trouble = trouble
        self._lock = threading.Lock()  # held while the market is measured, so that each gap is noted once
        self._gap: _Gap | None = None
        self._collected: _Times | None = None
        self.started_s = self._clock.steady_s()
        """Start of the time without data, before any data. An earlier daemon may have started before this daemon."""
        self.latest = self._measure(self.started_s)
        """The last measurement."""

    def start_at(self, started_s: float, served_s: float, not_running_s: float) -> None:
        """Go on from an earlier daemon, after the book was restored.

        The arguments are its start, the time of its last new data, and the seconds since then without a daemon. During
        these seconds, no record counts as fresh.
        """
        self.started_s = min(self.started_s, started_s)
        self._not_running_s = not_running_s
        now = self._clock.now()
        latest = self._measure(now.steady_s)
        self.symbol_seconds.add([-math.inf] * latest.listed, now.steady_s - not_running_s, now)
        self.latest = latest._replace(served_s=max(latest.served_s, min(served_s, latest.measured_s)))
        self.observe()

    def merge(self, rates: Sequence[FundingRate], *, is_snapshot: bool = False) -> int:
        """Merge decoded rows of one source into the book; return how many were new.

        The rows of a snapshot may change which symbols are counted.
        """
        now_s, latest = self._clock.steady_s(), self.latest
        # After the merge nobody can see how old the data had become, so measure before it. This is not needed if the
        # last measurement is recent and all records are young.
        is_unwatched = now_s - latest.measured_s > thresholds.UNWATCHED_S
        is_old = now_s - min(latest.oldest_s, latest.served_s) > thresholds.FRESH_S[0]
        if is_unwatched or is_old or is_snapshot or not latest.symbols:
            self.observe()
        merged = self._book.merge(rates)
        if merged and self._gap is not None:
            self.observe()
        return merged

    def observe(self) -> Freshness:
        """Measure the market now; note its age and the beginning or end of a gap; drop records ahead of their time."""
        latest_ms = self._exchange_clock.latest_record_ms(self._clock.steady_s())
        if self._times().latest_event_ms > latest_ms:
            dropped = self._book.drop_ahead(latest_ms)
            _log.warning("records dropped", count=dropped, cause="their event times are ahead of Binance's time")
        with self._lock:
            now = self._clock.now()
            latest = self._measure(now.steady_s)
            self.symbol_seconds.add(self._times().counted_s, self.latest.measured_s, now)
            # served_s never goes back, even if newer data is stale or the set of counted symbols changes.
            self.latest = latest = latest._replace(served_s=max(latest.served_s, self.latest.served_s))
            self._last_day.data_age(now.wall_s, now.steady_s - latest.oldest_s)
            ended = self._update_gap(latest)
        if ended is not None:
            self._note_gap(ended, now.steady_s, now.wall_s)
        return latest

    def _update_gap(self, latest: Freshness) -> _Gap | None:
        """Begin a gap, go on with it, or return the gap that has ended."""
        gap = self._gap
        if latest.measured_s - latest.served_s > thresholds.GAP_SECONDS:
            if gap is None:
                gap = self._gap = _Gap(latest.served_s, self._not_running_s)
                self._not_running_s = 0.0
            gap.missing |= self._missing(latest.measured_s)
            return None
        self._gap = None
        if gap is None:
            return None
        # Symbols that proved to be halted do not count, because the exchange had no newer data of them.
        is_real = not gap.missing or len(gap.missing - self._book.halted) > thresholds.MISSING_SHARE * latest.listed
        return gap if is_real else None

    def _missing(self, now_s: float) -> set[str]:
        counted, since_s = self._counted()[0], now_s - thresholds.GAP_SECONDS
        served_s = self._all_served_s(counted, self._exchange_clock.all_as_of_s(counted))
        return {rate.symbol for rate, time_s in zip(counted, served_s, strict=True) if time_s < since_s}

    def _note_gap(self, gap: _Gap, end_s: float, end_wall_s: float) -> None:
        seconds = round(end_s - gap.start_s, 3)
        cause = self._cause(gap.not_running_s, seconds)
        self._last_day.gap(end_wall_s - seconds, seconds, cause)
        self.gaps_ended += 1
        self.gap_seconds = round(self.gap_seconds + seconds, 3)
        self._throttle.warn("gap ended", cause, seconds=seconds)
        # The next gap is a new problem. The throttle still counts gaps that follow each other closely as one.
        self._throttle.resolve("gap ended")

    def _cause(self, not_running_s: float, seconds: float) -> str:
        """Name what caused a gap of this length. Two causes are named with the seconds of each."""
        if not_running_s <= thresholds.GAP_SECONDS:
            return self._trouble()
        outage_s = seconds - not_running_s
        if outage_s <= thresholds.GAP_SECONDS:
            return "not running"
        return f"not running for {not_running_s:.0f} s; for {outage_s:.0f} s {self._trouble()}"

    def _counted(self) -> tuple[list[FundingRate], list[FundingRate]]:
        """Return the newest records of the counted symbols, and of all others."""
        listed, halted = self._book.listed, self._book.halted
        counted: list[FundingRate] = []
        others: list[FundingRate] = []
        for rate in self._book.rates():
            is_counted = (listed is None or rate.symbol in listed) and rate.symbol not in halted
            (counted if is_counted else others).append(rate)
        return counted, others

    def _all_served_s(self, rates: list[FundingRate], times_s: list[float]) -> list[float]:
        """Return when each record arrived, or its time at Binance if it was already old."""
        silence_s = self._settings.silence_seconds
        pairs = zip([rate.received_s for rate in rates], times_s, strict=True)
        return [received_s if received_s - time_s <= silence_s else time_s for received_s, time_s in pairs]

    def _measure(self, now_s: float) -> Freshness:
        market = self._times()
        stale_before_s = now_s - self._settings.stale_seconds
        return Freshness(
            measured_s=now_s,
            symbols=market.symbols,
            listed=len(market.counted_s),
            halted=market.halted,
            from_rest=len(market.rest_s) - bisect_left(market.rest_s, stale_before_s),
            stale=bisect_left(market.counted_s, stale_before_s),
            behind=bisect_left(market.stream_s, now_s - self._current_s),
            oldest_s=min(market.counted_s[:1], default=self.started_s),
            newest_s=self.started_s if market.newest_s is None else market.newest_s,
            served_s=self._reached_by_most(market.served_s),
            stream_s=self._reached_by_most(market.stream_s),
        )

    def _times(self) -> _Times:
        """Return the times of all records; they are collected again only after something has changed."""
        as_of = self._book.version, self._exchange_clock.offset_s, self.started_s
        if self._collected is None or self._collected.as_of != as_of:
            self._collected = self._collect(as_of)
        return self._collected

    def _collect(self, as_of: tuple[int, float | None, float]) -> _Times:
        counted, others = self._counted()
        from_stream, all_as_of_s = self._book.stream_rates(), self._exchange_clock.all_as_of_s
        counted_s, others_s = all_as_of_s(counted), all_as_of_s(others)
        used = [rate for rate in counted if rate.symbol in from_stream]
        if 2 * len(used) < len(counted):
            used = counted
        used_s = counted_s if len(used) == len(counted) else all_as_of_s(used)
        delivered = [from_stream[rate.symbol] for rate in used if rate.symbol in from_stream]
        # Usually the newest records are those of the stream.
        stream_s = used_s if delivered == used else all_as_of_s(delivered)
        stream_s = stream_s + [self.started_s] * (len(used) - len(delivered))
        rates = counted + others if others else counted
        return _Times(
            as_of=as_of,
            symbols=len(rates),
            halted=len(self._book.halted),
            newest_s=max(counted_s + others_s, default=None),
            latest_event_ms=max([rate.event_time_ms for rate in rates], default=0),
            counted_s=sorted(counted_s),
            rest_s=sorted(all_as_of_s([rate for rate in rates if rate.source == REST])),
            stream_s=sorted(stream_s),
            served_s=sorted(self._all_served_s(used, used_s)),
        )

    def _reached_by_most(self, sorted_s: list[float]) -> float:
        """Return the time that 99 % of these times reach or exceed. Without any times, return the daemon's start."""
        return sorted_s[int(thresholds.MISSING_SHARE * len(sorted_s))] if sorted_s else self.started_s

    def stream_age_s(self) -> float:
        """Return the seconds since the stream last delivered the market, by Binance's clock."""
        now_s = self._clock.steady_s()
        if now_s - self.latest.stream_s > self._current_s:
            self.observe()  # newer data may have come since the last measurement
        return now_s - self.latest.stream_s
