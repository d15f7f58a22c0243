"""How current the market is, not its luckiest symbol: ages, gaps, and what lives on REST.

Counted are the symbols that REST lists and that are not halted. For gaps and for the stream it is those of them that
the stream used to bring, or all, where it brought less than half. The market is as current as all but 1 % of them.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ...log import EventLogger
from ...schema import FEW, GAP_SECONDS
from ..context import Context
from ..source.rates import REST, FundingRate
from .book import Book

_log = EventLogger(__name__)


class Freshness(NamedTuple):
    """The market at one moment. Times are steady; where nothing has come they are the daemon's start."""

    symbols: int
    listed: int
    """Symbols counted: listed and not halted."""
    halted: int
    from_rest: int
    """Symbols that live on REST."""
    stale: int
    """Symbols counted that are older than `STALE_SECONDS`."""
    behind: int
    """Symbols that the stream used to bring and brings nothing current for."""
    oldest_s: float
    """When the oldest record of what is counted was true at Binance."""
    newest_s: float
    """The same for the newest of all."""
    served_s: float
    """When the market last got new data: as of its arrival where it was current then."""
    stream_s: float
    """As of when the stream has brought the market."""


@dataclass
class FreshnessWatch:
    """Measures the market and notes its gaps. Safe to call from any thread."""

    context: Context
    book: Book
    trouble: Callable[[], str]
    """Names what is wrong with the sources at the moment, for the cause of a gap."""
    gaps_ended: int = 0
    gap_seconds: float = 0.0
    not_running: bool = False
    """Whether the daemon did not run before the data that it found."""
    started_s: float = field(init=False)
    latest: Freshness = field(init=False)
    """As of the last observation."""

    def __post_init__(self) -> None:
        self._lock = threading.Lock()  # held for an observation, so that each gap is noted once
        self._gap_start_s: float | None = None
        self._clock, self._exchange_clock = self.context.clock, self.context.exchange_clock
        self.started_s = self._clock.steady_s()
        self.latest = self._measure(self.started_s)

    def start_at(self, steady_s: float) -> None:
        """Count from an earlier daemon's start where even that had no data; for the start, after the restoring."""
        self.started_s = min(self.started_s, steady_s)
        self.latest = self._measure(self._clock.steady_s())
        self.observe()

    def merge(self, rates: Sequence[FundingRate]) -> int:
        """Merge decoded rows of one source, noting the gap that they may end; return how many were new."""
        if self._clock.steady_s() - self.latest.served_s > GAP_SECONDS:
            self.observe()  # nobody may have seen the gap begin that this ends
        merged = self.book.merge(rates)
        if merged and self._gap_start_s is not None:
            self.observe()
        return merged

    def observe(self) -> Freshness:
        """Measure the market now; note its age, the beginning or the end of a gap; drop what is ahead of its time."""
        dropped = self.book.drop_ahead(self._exchange_clock.latest_record_ms(self._clock.steady_s()))
        if dropped:
            _log.warning("records dropped", count=dropped, cause="their event times are ahead of Binance's time")
        with self._lock:
            now = self._clock.now()
            latest = self._measure(now.steady_s)
            # What the market got it has got, also where what came since was old, or other symbols count now.
            self.latest = latest = latest._replace(served_s=max(latest.served_s, self.latest.served_s))
            self.context.history.data_age(now.wall_s, now.steady_s - latest.oldest_s)
            gap_start_s = self._gap_start_s
            in_gap = now.steady_s - latest.served_s > GAP_SECONDS
            if in_gap == (gap_start_s is not None):
                return latest
            self._gap_start_s = latest.served_s if in_gap else None
        if gap_start_s is not None:
            self._note_gap(gap_start_s, now.steady_s, now.wall_s)
        return latest

    def _note_gap(self, start_s: float, end_s: float, wall_s: float) -> None:
        cause, seconds = "not running" if self.not_running else self.trouble(), round(end_s - start_s, 3)
        self.not_running = False
        self.context.history.gap(wall_s - seconds, seconds, cause)
        self.gaps_ended += 1
        self.gap_seconds = round(self.gap_seconds + seconds, 3)
        self.context.throttle.warn("gap ended", cause, seconds=seconds)
        # The next one is another; where they come one soon after the other, they are one trouble all the same.
        self.context.throttle.resolve("gap ended")

    def _measure(self, now_s: float) -> Freshness:
        rates, from_stream = self.book.rates(), self.book.stream_rates()
        listed, halted, all_as_of_s = self.book.listed, self.book.halted, self._exchange_clock.all_as_of_s
        settings, start_s = self.context.settings, self.started_s
        stale_before_s, current_after_s = now_s - settings.stale_seconds, now_s - self.context.current_s
        times_s = all_as_of_s(rates)
        counted = [
            (rate, time_s)
            for rate, time_s in zip(rates, times_s, strict=True)
            if (listed is None or rate.symbol in listed) and rate.symbol not in halted
        ]
        used = [one for one in counted if one[0].symbol in from_stream]
        if 2 * len(used) < len(counted):
            used = counted
        brought = [from_stream[rate.symbol] for rate, _ in used if rate.symbol in from_stream]
        stream_s = all_as_of_s(brought) + [start_s] * (len(used) - len(brought))
        # When each came, or, where it was already old then, as of when it is.
        served_s = [
            rate.received_s if rate.received_s - time_s <= settings.silence_seconds else time_s for rate, time_s in used
        ]
        counted_s = [time_s for _, time_s in counted]
        from_rest_s = [time_s for rate, time_s in zip(rates, times_s, strict=True) if rate.source == REST]
        return Freshness(
            symbols=len(rates),
            listed=len(counted),
            halted=len(halted),
            from_rest=sum(time_s >= stale_before_s for time_s in from_rest_s),
            stale=sum(time_s < stale_before_s for time_s in counted_s),
            behind=sum(time_s < current_after_s for time_s in stream_s),
            oldest_s=min(counted_s, default=start_s),
            newest_s=max(times_s, default=start_s),
            served_s=_all_but_few(served_s, start_s),
            stream_s=_all_but_few(stream_s, start_s),
        )

    def stream_age_s(self) -> float:
        """Return the seconds since the stream last brought the market, by Binance's clock."""
        now_s = self._clock.steady_s()
        if now_s - self.latest.stream_s > self.context.current_s:
            self.observe()  # the last observation may be older than what has come since
        return now_s - self.latest.stream_s


def _all_but_few(times_s: list[float], without_any_s: float) -> float:
    """Return the time that all but a share of FEW have reached."""
    return sorted(times_s)[int(FEW * len(times_s))] if times_s else without_any_s
