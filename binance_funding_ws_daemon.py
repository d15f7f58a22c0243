#!/usr/bin/env python3
"""Keep the newest funding rate of every Binance USD-M perpetual in one JSON file.

The story, in the order in which data flows:
  stream.py      several WebSocket connections to !markPrice@arr, each in a thread, watched by one
  rest.py        the premium index: at the start, once a minute, and every 10 s while the stream is stale
  rates.py       both formats become FundingRate records
  book.py        the newest record of each symbol, whichever source brought it
  publisher.py   the book and all that is known about its freshness become the state file
  state_file.py  which is replaced atomically, for the HTTP server and everybody else
"""

import gc
import logging
import os
import sys
import threading
from typing import Any

from binance_funding import __version__, events, service
from binance_funding.book import Book
from binance_funding.clock import Clock
from binance_funding.comparison import Comparison
from binance_funding.feed import Feed
from binance_funding.history import History
from binance_funding.publisher import Publisher
from binance_funding.rest import RestClient, RestPoller
from binance_funding.settings import DAEMON, EX_CONFIG, Settings
from binance_funding.state_file import AlreadyRunning, StateFile
from binance_funding.stream import StreamPool
from binance_funding.takeover import take_over

_log = logging.getLogger("binance_funding.daemon")

EX_OK, EX_SOFTWARE, EX_CANTCREAT, EX_TEMPFAIL = 0, 70, 73, 75

# What a thread may take for one round before the watchdog is no longer fed. REST may wait for a name server and for
# every address of the host; what trickles in for ever, headers included, ends here.
_STUCK_AFTER_S, _REST_STUCK_AFTER_S = 10.0, 180.0
_ROUND_S = 1.0
_STOP_WITHIN_S = 1.6
_CLOCK_WARNING_S = 5.0
_FORGET_EVERY_S = 60.0
# A tick brings thousands of records that live on, and no cycles: looking for some after every 700 is work in vain.
GARBAGE_THRESHOLD = 400_000


class Daemon:
    """All parts, joined. Everything here runs in the main thread."""

    def __init__(self, settings: Settings, clock: Clock | None = None) -> None:
        self._settings = settings
        self._clock = clock = clock or Clock()
        self._stop = threading.Event()
        self._threads = service.Threads(on_crash=self._stop.set)
        self._repeats = events.Repeats(logging.getLogger("binance_funding"), clock.steady_s)
        self._started = clock.now()
        self._watched_s = self._started.steady_s
        self._forgot_s = self._started.steady_s
        self._status = ""
        self._live_on_rest = 0

        self._history = History()
        self._comparison = Comparison()
        self._book = Book(
            clock,
            self._history,
            silence_s=settings.silence_seconds,
            stale_s=settings.stale_seconds,
            trouble=self._trouble,
        )
        self._feed = Feed(self._book, clock, self._repeats)
        self._stream = StreamPool(
            settings, self._feed, self._history, clock=clock, spawn=self._threads.start, repeats=self._repeats
        )
        self._rest = RestPoller(
            settings,
            RestClient(settings.binance_rest_url, settings.rest_timeout_seconds, clock),
            self._book,
            self._comparison,
            self._history,
            clock=clock,
            repeats=self._repeats,
        )
        self._file = StateFile(settings.state_file)
        self._publisher = Publisher(
            self._file,
            self._book,
            clock=clock,
            heartbeat_s=settings.heartbeat_seconds,
            interval_hours=lambda: self._rest.interval_hours,
            describe=self._describe,
            repeats=self._repeats,
        )

    def run(self) -> int:
        """Run until a signal comes or a thread dies; return the exit status."""
        service.on_signals(self._stop.set)
        if os.path.exists(self._file.path) and not os.path.isfile(self._file.path):
            _log.error("STATE_FILE=%s is not allowed: it is there, and not a regular file", self._settings.state_file)
            return EX_CONFIG
        try:
            self._file.lock()
            take_over(self._file.path, self._clock, self._book, self._rest, self._history, self._comparison)
            self._publisher.write()
        except AlreadyRunning as error:
            _log.error("%s; this one stops", error)
            return EX_TEMPFAIL
        except OSError as error:
            _log.error("STATE_FILE=%s cannot be written: %s", self._settings.state_file, error.strerror or error)
            # A directory that does not exist is a wrong setting; a full disk or a lost right may be mended.
            return EX_CONFIG if isinstance(error, (FileNotFoundError, NotADirectoryError)) else EX_CANTCREAT
        self._start_threads()
        service.notify("READY=1")
        if not service.ends_well("main", self._watch):
            self._threads.crashed = self._threads.crashed or "main"
        return self._end()

    def _start_threads(self) -> None:
        self._threads.start("publisher", lambda: self._publisher.run(self._stop))
        self._threads.start("stream", lambda: self._stream.run(self._stop))
        self._threads.start("rest", lambda: self._rest.run(self._stop))

    def _watch(self) -> None:
        """Go round until the stop: count the time watched, keep STATUS current, feed the watchdog while all moves."""
        watchdog_s = service.watchdog_interval_s()
        round_s = min(_ROUND_S, watchdog_s or _ROUND_S)
        while not self._stop.wait(round_s):
            now = self._clock.now()
            self._history.count(now.wall_s, observed=now.steady_s - self._watched_s)
            self._watched_s = now.steady_s
            self._warn_of_clock()
            self._tell_live_on_rest()
            if now.steady_s - self._forgot_s >= _FORGET_EVERY_S:
                self._forgot_s = now.steady_s
                self._book.forget_departed()
                gc.collect()  # what ended connections leave behind goes round in circles, and there may be many
            self._tell_systemd(now.steady_s, watchdog_s is not None)

    def _tell_systemd(self, now_s: float, watchdog: bool) -> None:
        stuck = [
            name
            for name, progress_s, allowed_s in (
                ("stream", self._stream.progress_s, _STUCK_AFTER_S),
                ("publisher", self._publisher.progress_s, _STUCK_AFTER_S + self._settings.heartbeat_seconds),
                ("rest", self._rest.progress_s, _REST_STUCK_AFTER_S + self._settings.rest_timeout_seconds),
            )
            if now_s - progress_s > allowed_s
        ]
        if stuck:
            cause = "no progress of thread " + " and ".join(stuck)
            self._repeats.tell("stuck", cause, logging.ERROR, next="watchdog" if watchdog else "restart it")
        else:
            self._tell_over("stuck", "moving again")
            # READY again, since the first may not have been heard either.
            if watchdog and not service.notify("READY=1\nWATCHDOG=1"):
                self._repeats.tell("systemd not told", "its notification socket takes nothing", next="tried again")
            else:
                self._tell_over("systemd not told", "systemd told again")
        # What Binance says ends up in it, and a line of its own would be an order to systemd.
        status = "".join(c if c.isprintable() else " " for c in self._status_line())
        if status != self._status:
            self._status = status
            service.notify(f"STATUS={status}")

    def _status_line(self) -> str:
        counts, live = self._book.counts(), len(self._stream.live())
        source = "stream" if live and not self._rest.fallback_active else "REST" if counts.from_rest else "none"
        if not counts.symbols:
            return f"no data yet, {live} of {self._settings.stream_connections} connections: {self._trouble()}"
        return (
            f"{counts.symbols} symbols, newest {self._book.age_s():.0f} s old, source {source}, "
            f"{live} of {self._settings.stream_connections} connections, {counts.from_rest} symbols from REST, "
            f"{counts.stale} stale"
        )

    def _warn_of_clock(self) -> None:
        offset_s = self._book.clock_offset_s()
        if offset_s is None:
            return
        if abs(offset_s) > _CLOCK_WARNING_S:
            self._repeats.tell("clock", "this host's clock differs from Binance's", offset_s=offset_s, next="check NTP")
        else:
            self._tell_over("clock", "clock right again")

    def _tell_over(self, trouble: str, event: str) -> None:
        lasted_s = self._repeats.over(trouble)
        if lasted_s is not None:
            _log.info("%s", events.line(event, after_s=lasted_s))

    def _tell_live_on_rest(self) -> None:
        """Log when a part of the market that the stream used to bring lives on REST, and when it no longer does."""
        counts = self._book.counts()
        if counts.from_rest == self._live_on_rest or not self._stream.live():
            return
        self._live_on_rest = counts.from_rest
        facts = {"count": counts.from_rest, "of": counts.symbols}
        if counts.from_rest:
            self._repeats.tell("symbols from REST", "", logging.INFO, **facts)
        elif self._repeats.over("symbols from REST") is not None:
            _log.info("%s", events.line("symbols from REST", **facts))

    def _trouble(self) -> str:
        """Name what is wrong with the sources, for the cause of a gap."""
        parts = [f"stream: {self._stream.trouble() or 'nothing came'}"]
        if self._rest.trouble:
            parts.append(f"REST: {self._rest.trouble}")
        return "; ".join(parts)

    def _describe(self, wall_s: float) -> dict[str, Any]:
        """Return all members of the state file that follow the rates."""
        gaps, history = self._history.to_json(wall_s)
        offset_s = self._book.clock_offset_s()
        counts = self._book.counts()
        return {
            "connection_status": {
                **self._stream.status(),
                "rejected_rows": self._feed.rejected_rows + self._rest.rejected_rows,
                "rest": self._rest.status(),
                "fallback_active": self._rest.fallback_active,
                "symbols_from_rest": counts.from_rest,
                "clock_offset_seconds": None if offset_s is None else round(offset_s, 3),
                "daemon_start_time": round(self._started.wall_s, 3),
                "gaps_ended": self._book.gaps_ended,
                "gap_seconds": self._book.gap_seconds,
            },
            "comparison": self._comparison.to_json(),
            "gaps": gaps,
            "history": history,
        }

    def _end(self) -> int:
        """Stop all threads, write the last state, return the exit status."""
        service.notify("STOPPING=1")
        _log.info("%s", events.line("stopping", cause="a thread died" if self._threads.crashed else "signal"))
        self._stop.set()
        self._stream.wake()
        self._book.changed.set()
        unfinished = self._threads.join(_STOP_WITHIN_S / 2)
        if unfinished:
            self._stream.abort()
            unfinished = self._threads.join(_STOP_WITHIN_S / 2)
        if unfinished:
            _log.info("%s", events.line("still waiting at the end", threads=",".join(unfinished)))
        if "publisher" not in unfinished and not self._threads.crashed:
            self._publisher.write_or_tell()  # what the others counted while they ended
        return EX_SOFTWARE if self._threads.crashed else EX_OK


def _spare_loopback_the_proxy() -> None:
    """Keep connections to this host away from a proxy: requests and websocket-client both read `no_proxy`."""
    given = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    os.environ["no_proxy"] = ",".join(filter(None, [given, "localhost", "127.0.0.1", "::1"]))


def main() -> int:
    """Run the daemon; return its exit status."""
    settings = service.start_program(DAEMON, "Keep the newest Binance USD-M funding rates in a JSON file.")
    _spare_loopback_the_proxy()
    _log.info(
        "%s",
        events.line(
            "starting",
            version=__version__,
            pid=os.getpid(),
            state_file=settings.state_file,
            connections=settings.stream_connections,
            urls=",".join(settings.binance_ws_urls),
            rest=settings.binance_rest_url,
        ),
    )
    gc.set_threshold(GARBAGE_THRESHOLD)
    return Daemon(settings).run()


if __name__ == "__main__":
    sys.exit(main())
