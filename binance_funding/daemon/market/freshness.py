"""How current the market is as a whole: ages, gaps, and how many symbols come from REST.

The counted symbols are those that REST lists and that are not halted. Gaps and the age of the stream are measured on
the counted symbols that the stream has delivered, or on all of them if it has delivered less than half. The market is
as current as all of these symbols but 1 %.
"""

import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ...log import EventLogger
from ..context import Context
from ..record import REST, FundingRate
from . import thresholds
from .book import Book

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
    """Symbols that the stream used to deliver and has delivered nothing current for."""
    oldest_s: float
    """When the oldest counted record was true at Binance."""
    newest_s: float
    """When the newest record was true at Binance."""
    served_s: float
    """When 99 % of the market last had new data: its arrival, or its event time if it was already old."""
    stream_s: float
    """The event time up to which the stream has delivered 99 % of the market."""


class _Gap:
    """A gap that has not ended."""

    def __init__(self, start_s: float) -> None:
        self.start_s = start_s
        self.missing: set[str] = set()  # every symbol that lacked new data at some time in the gap


class FreshnessWatch:
    """Measures the market and notes its gaps. Safe to call from any thread."""

    def __init__(self, context: Context, book: Book, trouble: Callable[[], str]) -> None:
        """Measure nothing yet; `trouble` names what is wrong with the sources at the moment, as the cause of a gap."""
        self.book = book
        self.gaps_ended = 0
        self.gap_seconds = 0.0
        self.not_running = False
        """True if the restored file is older than one gap: the first gap is then time without a daemon."""
        self._context = context
        self._trouble = trouble
        self._clock, self._exchange_clock = context.clock, context.exchange_clock
        self._lock = threading.Lock()  # held while the market is measured, so that each gap is noted once
        self._gap: _Gap | None = None
        self.started_s = self._clock.steady_s()
        """From when on the market counts as without data; an earlier daemon may have started before this one."""
        self.latest = self._measure(self.started_s)
        """The last measurement."""

    def start_at(self, started_s: float, served_s: float) -> None:
        """Go on from an earlier daemon, after the book was restored: its start, and when it last had new data."""
        self.started_s = min(self.started_s, started_s)
        latest = self._measure(self._clock.steady_s())
        self.latest = latest._replace(served_s=max(latest.served_s, min(served_s, latest.measured_s)))
        self.observe()

    def merge(self, rates: Sequence[FundingRate]) -> int:
        """Merge decoded rows of one source into the book; return how many were new."""
        now_s, latest = self._clock.steady_s(), self.latest
        # New data hides how old the data had become: note that first, unless somebody has just done so.
        is_unwatched = now_s - latest.measured_s > thresholds.UNWATCHED_S
        if is_unwatched or now_s - latest.served_s > thresholds.GAP_SECONDS:
            self.observe()
        merged = self.book.merge(rates)
        if merged and self._gap is not None:
            self.observe()
        return merged

    def observe(self) -> Freshness:
        """Measure the market now; note its age and the beginning or end of a gap; drop records ahead of their time."""
        dropped = self.book.drop_ahead(self._exchange_clock.latest_record_ms(self._clock.steady_s()))
        if dropped:
            _log.warning("records dropped", count=dropped, cause="their event times are ahead of Binance's time")
        with self._lock:
            now = self._clock.now()
            latest = self._measure(now.steady_s)
            # served_s never goes back, even if newer data is stale or the set of counted symbols changes.
            self.latest = latest = latest._replace(served_s=max(latest.served_s, self.latest.served_s))
            self._context.history.data_age(now.wall_s, now.steady_s - latest.oldest_s)
            ended = self._update_gap(latest)
        if ended is not None:
            self._note_gap(ended, now.steady_s, now.wall_s)
        return latest

    def _update_gap(self, latest: Freshness) -> _Gap | None:
        """Begin a gap, go on with it, or return the gap that has ended."""
        gap = self._gap
        if latest.measured_s - latest.served_s > thresholds.GAP_SECONDS:
            gap = self._gap = gap or _Gap(latest.served_s)
            gap.missing |= self._missing(latest.measured_s)
            return None
        self._gap = None
        if gap is None:
            return None
        # Symbols that turned out to be halted had no newer data to miss.
        is_real = not gap.missing or len(gap.missing - self.book.halted) > thresholds.MISSING_SHARE * latest.listed
        return gap if is_real else None

    def _missing(self, now_s: float) -> set[str]:
        since_s = now_s - thresholds.GAP_SECONDS
        return {rate.symbol for rate in self._counted()[0] if self._served_s(rate) < since_s}

    def _note_gap(self, gap: _Gap, end_s: float, end_wall_s: float) -> None:
        cause, seconds = "not running" if self.not_running else self._trouble(), round(end_s - gap.start_s, 3)
        self.not_running = False
        self._context.history.gap(end_wall_s - seconds, seconds, cause)
        self.gaps_ended += 1
        self.gap_seconds = round(self.gap_seconds + seconds, 3)
        self._context.throttle.warn("gap ended", cause, seconds=seconds)
        # The next gap is a new problem. The throttle still counts gaps that follow each other closely as one.
        self._context.throttle.resolve("gap ended")

    def _counted(self) -> tuple[list[FundingRate], list[FundingRate]]:
        """Return the newest records of the counted symbols, and of all others."""
        listed, halted = self.book.listed, self.book.halted
        counted: list[FundingRate] = []
        others: list[FundingRate] = []
        for rate in self.book.rates():
            is_counted = (listed is None or rate.symbol in listed) and rate.symbol not in halted
            (counted if is_counted else others).append(rate)
        return counted, others

    def _served_s(self, rate: FundingRate) -> float:
        """Return when a record arrived, or its event time if it was already old."""
        as_of_s = self._exchange_clock.as_of_s(rate.event_time_ms, rate.received_s)
        is_current = rate.received_s - as_of_s <= self._context.settings.silence_seconds
        return rate.received_s if is_current else as_of_s

    def _measure(self, now_s: float) -> Freshness:
        counted, others = self._counted()
        from_stream, all_as_of_s = self.book.stream_rates(), self._exchange_clock.all_as_of_s
        counted_s, others_s = all_as_of_s(counted), all_as_of_s(others)
        stale_before_s = now_s - self._context.settings.stale_seconds
        current_after_s = now_s - self._context.current_s
        used = [rate for rate in counted if rate.symbol in from_stream]
        if 2 * len(used) < len(counted):
            used = counted
        delivered = [from_stream[rate.symbol] for rate in used if rate.symbol in from_stream]
        stream_s = all_as_of_s(delivered) + [self.started_s] * (len(used) - len(delivered))
        dated = [*zip(counted, counted_s, strict=True), *zip(others, others_s, strict=True)]
        return Freshness(
            measured_s=now_s,
            symbols=len(dated),
            listed=len(counted),
            halted=len(self.book.halted),
            from_rest=sum(rate.source == REST and time_s >= stale_before_s for rate, time_s in dated),
            stale=sum(time_s < stale_before_s for time_s in counted_s),
            behind=sum(time_s < current_after_s for time_s in stream_s),
            oldest_s=min(counted_s, default=self.started_s),
            newest_s=max(counted_s + others_s, default=self.started_s),
            served_s=self._reached_by_most([self._served_s(rate) for rate in used]),
            stream_s=self._reached_by_most(stream_s),
        )

    def _reached_by_most(self, times_s: list[float]) -> float:
        """Return the time that all but 1 % have reached; without any, the daemon's start."""
        return sorted(times_s)[int(thresholds.MISSING_SHARE * len(times_s))] if times_s else self.started_s

    def stream_age_s(self) -> float:
        """Return the seconds since the stream last delivered the market, by Binance's clock."""
        now_s = self._clock.steady_s()
        if now_s - self.latest.stream_s > self._context.current_s:
            self.observe()  # newer data may have come since the last measurement
        return now_s - self.latest.stream_s
