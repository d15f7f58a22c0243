"""Joins the parts of the daemon, watches over them, and ends them. Everything here runs in the main thread."""

import functools
import gc
import logging
import math
import os
import threading
from collections.abc import Callable
from typing import Any

from .. import __version__, process, systemd
from ..clock import Clock, Moment
from ..log import EventLogger, LogThrottle, printable
from ..program import EX_CANTCREAT, EX_TEMPFAIL, Threads, acquire
from ..schema import STATUS, declared
from ..settings import Settings, SettingsError
from ..settlements import SettlementWriter
from ..state_file import AlreadyRunning, StateFile, why_not
from .market.book import Book
from .market.comparison import Comparison
from .market.exchange_clock import ExchangeClock
from .market.freshness import Freshness, FreshnessWatch
from .market.intervals import Intervals
from .market.last_day import LastDay
from .market.stream_state import StreamState
from .market.thresholds import LARGEST_WALL_OFFSET_S
from .output.publisher import Annotations, Publisher
from .output.restore import restore
from .source.connection import Connection
from .source.feed import Feed
from .source.libraries import check_certificates
from .source.pool import StreamPool
from .source.rest_client import RestClient
from .source.rest_poller import RestPoller
from .source.settlement_filler import REQUEST_WITHIN_S, SettlementFiller

_log = EventLogger("binance_funding.daemon")

# If one round of a thread takes longer, the watchdog is no longer fed. REST may wait for a name server and for every
# address of the host.
_STUCK_AFTER_S, _REST_STUCK_AFTER_S = 10.0, 180.0
_ROUND_S = 1.0
# If a round of the main thread took this much longer than planned, the host was paused (SIGSTOP, suspend), and so were
# the other threads. Their time limits begin anew, and the pause does not count as observed.
_HELD_UP_S = 3.0
_STOP_WITHIN_S = 1.6
_PRUNE_EVERY_S = 60.0
# The age in the status line is rounded down to this step, so the line does not change between two ticks.
_STATUS_AGE_STEP_S = 5
# Each update makes thousands of records without reference cycles. So a garbage collection after every 700 objects, as
# is the default, would find nothing.
GARBAGE_THRESHOLD = 400_000


def check(settings: Settings) -> None:
    """Check settings whose validity depends on this host, such as paths. Raises SettingsError."""
    check_certificates()
    if why := why_not(settings.state_file):
        raise SettingsError(f"STATE_FILE={settings.state_file} is not allowed: {why}")


class Daemon:
    """All parts of the daemon, connected. Tests replace the parts that use the network."""

    def __init__(
        self,
        settings: Settings,
        clock: Clock | None = None,
        *,
        threads: Threads | None = None,
        open_connection: Callable[..., Connection] = Connection,
        rest_client: RestClient | None = None,
        history_client: RestClient | None = None,
        notify: Callable[[str], bool] = systemd.notify,
    ) -> None:
        """Build the parts; start nothing."""
        self.settings = settings
        self.clock = clock or Clock()
        self.threads = threads or Threads()
        self.notify = notify
        self._stop = threading.Event()  # for the other threads; a signal handler must not touch it
        self._started_s = self.clock.steady_s()
        self._watched_s = self._started_s  # the last round of the main thread
        self._pruned_s = self._started_s
        self._resumed_s = self._started_s  # when the host was last found to have been paused
        self._status = ""  # the last status line that systemd got
        self._from_rest = 0  # the number of symbols from REST that was logged last
        self._is_writer = False
        self._usage: dict[str, float | None] = {}
        self._usage_s = -math.inf

        client = rest_client or RestClient(settings.binance_rest_url, settings.rest_timeout_seconds, self.clock)
        self._file = StateFile(settings.state_file)
        self._throttle = LogThrottle(_log, self.clock.steady_s)
        self._exchange_clock = ExchangeClock(self.clock)
        self._last_day = LastDay()
        self._comparison = Comparison(self.clock, self._last_day)
        self._stream_state = StreamState(settings, self.clock)
        clocks = self.clock, self._exchange_clock
        self._intervals = Intervals(self.clock)
        self._book = Book(settings, self._exchange_clock, self._intervals, self._stream_state)
        self._freshness = FreshnessWatch(settings, *clocks, self._book, self._last_day, self._trouble)
        market = self._book, self._freshness
        self._feed = Feed(settings, *clocks, *market, self._comparison)
        self._stream = StreamPool(
            settings,
            *clocks,
            self._last_day,
            self._feed.take,
            self.threads.start,
            open_connection=open_connection,
        )
        self._rest = RestPoller(
            settings, *clocks, *market, self._intervals, self._stream_state, client, self._feed, self._live_connections
        )
        self._publisher = Publisher(settings, *clocks, self._file, self._book, self._annotations, self._describe)
        self._history = SettlementFiller(
            SettlementWriter(settings.history_file, settings.history_days),
            history_client or RestClient(settings.binance_rest_url, settings.rest_timeout_seconds, self.clock),
            self.clock,
            self._throttle,
            now_ms=self._exchange_clock.now_ms,
            next_funding_times=lambda: self._book.next_funding_times(self.clock.steady_s()),
            last_estimates=self._book.last_estimates,
            may_ask=self._rest.may_ask_for_more,
            on_error=lambda error: self._rest.apply_pause(error.cause),
        )
        # Each part has a thread: its name, and the longest time that one round of it may take.
        self._parts: list[tuple[str, Publisher | StreamPool | RestPoller | SettlementFiller, float]] = [
            ("publisher", self._publisher, _STUCK_AFTER_S + settings.heartbeat_seconds),
            ("stream", self._stream, _STUCK_AFTER_S),
            ("rest", self._rest, _REST_STUCK_AFTER_S + settings.rest_timeout_seconds),
        ]
        if settings.history_days:
            self._parts.append(("history", self._history, _REST_STUCK_AFTER_S + REQUEST_WITHIN_S))

    def run(self) -> int:
        """Run until a stop is requested or a thread dies; return the exit status."""
        settings = self.settings
        facts: dict[str, Any] = {"state_file": settings.state_file, "connections": settings.stream_connections}
        facts |= {"urls": ",".join(settings.binance_ws_urls), "rest": settings.binance_rest_url}
        _log.info("starting", version=__version__, pid=os.getpid(), **facts)
        acquire(self._take_file, self._explain, self.threads.stop_request)
        for name, part, _ in self._parts:
            self.threads.start(name, functools.partial(part.run, self._stop))
        self.notify("READY=1")
        self.threads.guard("main", self._watch)
        return self._end()

    def _take_file(self) -> None:
        """Become the file's writer, restore its content, and write it. May be called again after a failure."""
        if not self._is_writer:
            self._file.lock()
            self._is_writer = True
            restore(
                self._file.path,
                self.settings,
                self.clock,
                book=self._book,
                intervals=self._intervals,
                freshness=self._freshness,
                last_day=self._last_day,
                comparison=self._comparison,
                rest=self._rest,
                stream=self._stream,
            )
        self._publisher.write()

    def _explain(self, error: OSError) -> tuple[str, int]:
        if isinstance(error, AlreadyRunning):
            return str(error), EX_TEMPFAIL
        words = (error.strerror or str(error)).lower()
        return f"STATE_FILE={self.settings.state_file} cannot be written: {words}", EX_CANTCREAT

    def _watch(self) -> None:
        """Measure freshness, keep STATUS current, and feed the watchdog while all threads progress, until a stop."""
        watchdog_s = systemd.watchdog_interval_s()
        round_s = min(_ROUND_S, watchdog_s or _ROUND_S)
        while not self.threads.stop_request.wait(round_s):
            now = self.clock.now()
            passed_s, self._watched_s = now.steady_s - self._watched_s, now.steady_s
            if passed_s > round_s + _HELD_UP_S:
                self._resumed_s = now.steady_s
            else:
                self._last_day.count(now.wall_s, observed=passed_s)
            freshness = self._freshness.observe()
            self._warn_of_clock()
            self._log_from_rest(freshness)
            if now.steady_s - self._pruned_s >= _PRUNE_EVERY_S:
                self._pruned_s = now.steady_s
                self._prune(now.steady_s)
            self._report_to_systemd(freshness, now.steady_s, has_watchdog=watchdog_s is not None)

    def _prune(self, now_s: float) -> None:
        self._book.prune_delisted(now_s)
        gc.collect()  # connections that have ended leave reference cycles behind

    def _report_to_systemd(self, freshness: Freshness, now_s: float, *, has_watchdog: bool) -> None:
        stuck = [name for name, part, limit_s in self._parts if now_s - max(part.progress_s, self._resumed_s) > limit_s]
        if stuck:
            cause = "no progress of thread " + " and ".join(stuck)
            self._throttle.warn("stuck", cause, logging.ERROR, next="watchdog" if has_watchdog else "restart it")
        else:
            self._throttle.resolve("stuck", log_as="moving again")
            # READY is repeated, because the first READY may have been lost.
            if has_watchdog and not self.notify("READY=1\nWATCHDOG=1"):
                self._throttle.warn("systemd not reached", "its notification socket takes nothing", next="tried again")
            else:
                self._throttle.resolve("systemd not reached", log_as="systemd reached again")
        # A newline in a text of Binance would start another sd_notify assignment.
        status = printable(self._status_line(freshness, now_s))
        if status != self._status:
            self._status = status
            self.notify(f"STATUS={status}")

    def _status_line(self, freshness: Freshness, now_s: float) -> str:
        live, age_s = self._live_connections(), (now_s - freshness.newest_s) // _STATUS_AGE_STEP_S * _STATUS_AGE_STEP_S
        connections = f"{live} of {self.settings.stream_connections} connections"
        if not freshness.symbols:
            return f"no data yet, {connections}: {self._trouble()}"
        is_streaming = live and not self._stream_state.fallback_active
        source = "stream" if is_streaming else "REST" if freshness.from_rest else "none"
        return (
            f"{freshness.symbols} symbols, newest {age_s:.0f} s old, source {source}, "
            f"{connections}, {freshness.from_rest} symbols from REST, {freshness.stale} stale"
        )

    def _warn_of_clock(self) -> None:
        offset_s, cause = self._exchange_clock.wall_offset_s(), "this host's clock differs from Binance's"
        if offset_s is not None and abs(offset_s) > LARGEST_WALL_OFFSET_S:
            self._throttle.warn("clock", cause, offset_s=round(offset_s, 1), next="check NTP")
        elif offset_s is not None:
            self._throttle.resolve("clock", log_as="clock right again")

    def _log_from_rest(self, freshness: Freshness) -> None:
        """Log when some symbols begin to come from REST although the stream is live, and when that ends."""
        if freshness.from_rest == self._from_rest or not self._stream.live():
            return
        self._from_rest = freshness.from_rest
        facts: dict[str, Any] = {"count": freshness.from_rest, "of": freshness.symbols}
        if freshness.from_rest:
            self._throttle.warn("symbols from REST", level=logging.INFO, **facts)
        else:
            self._throttle.resolve("symbols from REST", log_as="symbols from REST", **facts)

    def _live_connections(self) -> int:
        return len(self._stream.live())

    def _annotations(self) -> Annotations:
        book = self._book
        return Annotations(
            self._intervals.terms, book.interest_rates, book.listed, book.halted, self._history.summaries
        )

    def _trouble(self) -> str:
        """Name what is wrong with the sources, for the cause of a gap."""
        parts = [f"stream: {self._stream.trouble() or 'nothing came'}"]
        if self._rest.trouble:
            parts.append(f"REST: {self._rest.trouble}")
        return "; ".join(parts)

    def _describe(self, now: Moment) -> dict[str, Any]:
        """Return all members of the state file that follow the records."""
        offset_s, freshness = self._exchange_clock.wall_offset_s(), self._freshness.latest
        uncertainty_s, symbol_seconds = self._exchange_clock.uncertainty_s(), self._freshness.symbol_seconds.totals
        status = {
            **self._stream.status(),
            "last_message_time": self._feed.last_message_wall_s,
            "messages_received": self._feed.messages,
            "rejected_rows": self._feed.rejected_rows,
            "fallback_active": self._stream_state.fallback_active,
            "symbols_from_rest": freshness.from_rest,
            "symbols_behind": freshness.behind,
            "symbols_halted": freshness.halted,
            "market_served_time": now.wall_at(freshness.served_s),
            "clock_offset_seconds": None if offset_s is None else round(offset_s, 3),
            "age_uncertainty_seconds": None if uncertainty_s is None else round(uncertainty_s, 4),
            "symbol_seconds": round(symbol_seconds["all"], 3),
            "fresh_symbol_seconds": {within: round(s, 3) for within, s in symbol_seconds.items() if within != "all"},
            # Counted on the boot clock: setting the wall clock does not change how long the daemon has run.
            "daemon_start_time": now.wall_at(self._started_s),
            "gaps_ended": self._freshness.gaps_ended,
            "gap_seconds": self._freshness.gap_seconds,
            "history_error": str(self._history.fault) if self._history.fault else None,
        }
        return {
            "connection_status": {**declared(STATUS, status), "rest": self._rest.status()},
            "comparison": self._comparison.state,
            "process": self._process_usage(now.steady_s),
            **self._last_day.to_json(now.wall_s),
        }

    def _process_usage(self, now_s: float) -> dict[str, float | None]:
        """Return what this process uses as of the last heartbeat. Measuring it at every write costs too much."""
        if now_s - self._usage_s >= self.settings.heartbeat_seconds:
            self._usage, self._usage_s = process.usage(), now_s
        return self._usage

    def _end(self) -> int:
        """Stop all threads, write the last state, return the exit status."""
        self.notify("STOPPING=1")
        _log.info("stopping", cause="a thread died" if self.threads.crashed else "signal")
        self._stop.set()
        self._stream.wake()
        self._book.changed.set()
        self._rest.abort()
        self._history.abort()
        unfinished = self.threads.join(_STOP_WITHIN_S / 2)
        if unfinished:
            self._stream.abort()
            unfinished = self.threads.join(_STOP_WITHIN_S / 2)
        if unfinished:
            _log.info("still waiting at the end", threads=",".join(unfinished))
        if "publisher" not in unfinished and not self.threads.crashed:
            self._freshness.observe()
            self._publisher.write_or_log()  # the threads may have counted something while they ended
        return self.threads.exit_status()
