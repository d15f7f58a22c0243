"""The stream side: several WebSocket connections at once, kept alive and replaced in time.

One supervising thread ("stream") decides everything. Each connection reads in a thread of its own ("stream-N").

Facts of the exchange, as of November 2026:
- Every connection is cut after 24 h. A retired address completes its handshake and stays silent for ever. [1]
- A connection can stay open and advance while its event times fall further and further behind. [2]
- No limit on attempts is documented for futures. Spot allows 300 per 5 min and IP, which is one per second. [3]
[1] https://developers.binance.com/docs/derivatives/usds-margined-futures/websocket-market-streams
[2] https://github.com/JKorf/Binance.Net/issues/1215
[3] https://developers.binance.com/docs/binance-spot-api-docs/web-socket-streams
"""

import itertools
import logging
import math
import random
import threading
from collections.abc import Callable
from typing import Any

from ...clock import Clock
from ...log import EventLogger, LogThrottle
from ...settings import Settings
from ..market.exchange_clock import ExchangeClock
from ..market.last_day import LastDay
from ..market.thresholds import current_s
from . import faults
from .connection import Connection
from .faults import Cause, Kind

_log = EventLogger(__name__)

# A connection is proven after it has brought data for this long. Only then the waits after failures become short again.
_PROVEN_AFTER_S = 60.0
# All connections together make one attempt per this time. After a quiet time, a burst of this many is allowed.
_ATTEMPT_EVERY_S, _BURST = 1.25, 8
# The longest wait if nothing answers at all (refused, unreachable, no DNS). Asking again burdens nobody, the exchange's
# return is noticed soon, and an outage does not count against the connection that ends it.
_UNREACHABLE_WAIT_S = 1.0
# The longest wait while no connection brings anything current. With handshake and first message that makes 12 s.
_NONE_CURRENT_WAIT_S = 8.0
# When one connection is live again, the others try again within this time.
_RETURN_WAIT_S = 2.0
# How often the connections are looked at. The first data and the end of a connection are noticed at once.
_STEP_S = 0.25
# After a pause of the process (SIGSTOP, suspend, a starved host), messages may wait unread. Silence is counted anew.
_HELD_UP_S = 5.0
# Up to this many losses in a row are logged one by one. Further losses are logged at growing intervals.
_MAX_LOSSES_LOGGED = 4
# A replaced connection may take this long for its close frame. Then it is aborted.
_CLOSE_WITHIN_S = 1.0
# No more attempts are made while so many earlier ones hang, such as in a name lookup, where nothing can abort them.
_MAX_HANGING = 8


class StreamPool:
    """Keeps `stream_connections` connections alive. Reading its public fields is safe from any thread."""

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        exchange_clock: ExchangeClock,
        last_day: LastDay,
        take: Callable[[bytes], int],
        spawn: Callable[..., bool],
        *,
        uniform: Callable[[float, float], float] = random.uniform,
        open_connection: Callable[..., Connection] = Connection,
        proven_after_s: float = _PROVEN_AFTER_S,
    ) -> None:
        """Open nothing yet. Each connection hands its messages to `take`: see Connection. `spawn` is Threads.start."""
        self.attempts = 0
        """Attempts after a failure or a loss."""
        self.lost = 0
        self.replaced = 0
        self.last_connected_wall_s: float | None = None
        self.last_error: str | None = None
        self.progress_s = clock.steady_s()
        """Steady time at which the last step began."""
        self._settings = settings
        self._current_s = current_s(settings)
        self._clock = clock
        self._exchange_clock = exchange_clock
        self._last_day = last_day
        self._throttle = LogThrottle(_log, clock.steady_s)
        self._take = take
        self._spawn = spawn
        self._uniform = uniform
        self._open_connection = open_connection
        self._proven_after_s = proven_after_s
        self._wake = threading.Event()
        self._attempts: tuple[Connection, ...] = ()
        """Connections that have not brought current mark prices yet."""
        self._live: tuple[Connection, ...] = ()
        """Connections that have brought some, oldest first. Both tuples are replaced as a whole, for other threads."""
        self._closing: dict[Connection, float] = {}
        """Connections that were told to end, and when each is aborted."""
        self._failures = 0
        """Attempts and connections that ended since the last proven connection. They make the wait longer."""
        self._losses = 0
        """Live connections lost since the last proven one. The more of them, the less is logged."""
        self._failed_at_s = -math.inf
        self._retry_at_s = -math.inf
        """When to open a connection that is missing or that is to replace another."""
        self._replace_at_s = math.inf
        """When to replace the oldest connection."""
        self._booked_until_s = -math.inf
        """Each attempt moves this time on by _ATTEMPT_EVERY_S. A burst moves it into the future."""
        self._paused_until_s = -math.inf
        """End of the pause that Binance asked for."""
        self._resumed_s = -math.inf
        """When the process last continued after a pause."""
        self._proven_url = settings.binance_ws_urls[0]
        """The address from which data last came. Before any data, it is the first address."""
        self._url_index = 0
        """Index of the address to try next."""
        self._last_lag_s: float | None = None
        """Lag of the last connection that was dropped for its lag; None once another connection is live."""

    def restore(self, pause_s: float) -> None:
        """Wait for the rest of a pause that Binance asked an earlier daemon for."""
        self._paused_until_s = self._clock.steady_s() + pause_s

    def run(self, stop: threading.Event) -> None:
        """Keep the connections alive until `stop` is set and `wake` called; then close them all. Blocks."""
        while not stop.is_set():
            self._wake.clear()
            self._wake.wait(self.step())
        for connection in (*self._live, *self._attempts):
            connection.close()

    def step(self) -> float:
        """Supervise every connection once; return the seconds to the next step. For its thread; never blocks."""
        now_s = self._clock.steady_s()
        if now_s - self.progress_s > _HELD_UP_S:
            self._resumed_s = now_s
        self.progress_s = now_s
        for connection in (*self._live, *self._attempts):
            cause = self._ending(connection, now_s)
            if cause is not None:
                self._end(connection, cause, now_s)
            elif connection in self._attempts and self._is_current(connection):
                self._mark_live(connection, now_s)
        self._reset_once_proven(now_s)
        self._reap_closing(now_s)
        while self._is_attempt_due(now_s) and self._may_attempt(now_s):
            self._open()
        return _STEP_S

    def wake(self) -> None:
        """Let the supervising thread look at the connections at once."""
        self._wake.set()

    def abort(self) -> None:
        """Abort every connection that has not ended by itself."""
        for connection in (*self._live, *self._attempts, *self._closing):
            connection.abort()

    def live(self) -> list[Connection]:
        """Return the connections that bring current mark prices now."""
        now_s, silence_s = self._clock.steady_s(), self._settings.silence_seconds
        return [one for one in self._live if one.ending is None and one.age_s(now_s) <= silence_s]

    def trouble(self) -> str | None:
        """Return why connections are missing now; None if all are live."""
        return self.last_error if len(self.live()) < self._settings.stream_connections else None

    def lag_s(self) -> float | None:
        """Return how far the best connection is behind Binance's clock; None if that is not known.

        If there is no connection, return the lag of the last connection that was dropped for its lag.
        """
        if self._exchange_clock.offset_s is None:
            return None
        lags_s = [lag_s for one in (*self._live, *self._attempts) if (lag_s := one.lag_s()) is not None]
        return min(lags_s, default=self._last_lag_s)

    def status(self) -> dict[str, Any]:
        """Return the stream's part of `connection_status`, ready for the state file."""
        live, lag_s, now = self.live(), self.lag_s(), self._clock.now()
        return {
            "connected": bool(live),
            "connections": len(live),
            "connections_wanted": self._settings.stream_connections,
            "url": live[0].url if live else None,
            "last_connected_time": self.last_connected_wall_s,
            "disconnects": self.lost,
            "planned_disconnects": self.replaced,
            "reconnect_attempts": self.attempts,
            "last_error": self.last_error,
            "stream_lag_seconds": None if lag_s is None else round(lag_s, 3),
            "paused_until": now.wall_at(self._paused_until_s) if self._paused_until_s > now.steady_s else None,
        }

    def _ending(self, connection: Connection, now_s: float) -> Cause | None:
        """Return why the connection is over, None while it lives. Abort it if it brings nothing current."""
        if connection.ending is not None:
            return connection.ending
        silence_s, age_s = self._settings.silence_seconds, connection.age_s(now_s)
        without_s = age_s if connection in self._live else max(age_s, connection.connecting_s(now_s))
        if min(without_s, now_s - self._resumed_s) <= silence_s:
            return None
        self._closing[connection] = now_s
        if connection.opened_s is None:
            lookup = connection.lookup
            is_named = lookup is None or lookup.ended_s is not None
            return Cause(Kind.TIMEOUT, f"no handshake within {silence_s:g} s") if is_named else faults.NO_NAME_IN_TIME
        if connection.first_data_s is not None and not self._is_current(connection):
            self._last_lag_s = age_s
            return Cause(Kind.LAGGING, f"mark prices are {age_s:.0f} s behind Binance's clock")
        return Cause(Kind.SILENT, f"no new mark prices for {silence_s:g} s")

    def _is_current(self, connection: Connection) -> bool:
        """Tell whether its newest mark prices were current when they came."""
        lag_s = connection.lag_s()
        return lag_s is not None and lag_s <= self._current_s

    def _reap_closing(self, now_s: float) -> None:
        """Abort connections that have not ended in time after they were told to."""
        self._closing = {one: until_s for one, until_s in self._closing.items() if one.ending is None}
        for connection, until_s in self._closing.items():
            if now_s >= until_s:
                connection.abort()

    def _reset_once_proven(self, now_s: float) -> None:
        """Reset the number of failures once a connection has brought data for long enough."""
        firsts_s = [one.first_data_s for one in self._live if one.first_data_s is not None]
        if self._failures and any(self._failed_at_s < first_s <= now_s - self._proven_after_s for first_s in firsts_s):
            self._failures = self._losses = 0
            self._throttle.resolve("lost", "silent", log_as="stream steady", live=len(self.live()))

    def _is_attempt_due(self, now_s: float) -> bool:
        """Tell whether to open a connection, either because one is missing or to replace the oldest."""
        wanted, retry_at_s = self._settings.stream_connections, self._retry_at_s
        if len(self._live) >= wanted:
            return now_s >= max(self._replace_at_s, retry_at_s) and not self._attempts
        return now_s >= self._next_attempt_s() and len(self._live) + len(self._attempts) < wanted

    def _next_attempt_s(self) -> float:
        """Return when a missing connection is opened, apart from a pause that Binance asked for."""
        now_s = self._clock.steady_s()
        is_any_current = any(connection.age_s(now_s) <= self._current_s for connection in self.live())
        longest_s = math.inf if is_any_current else self._failed_at_s + _NONE_CURRENT_WAIT_S
        return min(self._retry_at_s, longest_s)

    def _may_attempt(self, now_s: float) -> bool:
        """Tell whether an attempt is allowed now, and book it if it is."""
        is_booked_up = self._booked_until_s > now_s + (_BURST - 1) * _ATTEMPT_EVERY_S
        if is_booked_up or now_s < self._paused_until_s or len(self._closing) >= _MAX_HANGING:
            return False
        self._booked_until_s = max(self._booked_until_s, now_s) + _ATTEMPT_EVERY_S
        return True

    def _open(self) -> None:
        is_replacement = len(self._live) >= self._settings.stream_connections
        self.attempts += not is_replacement and self._failed_at_s > -math.inf
        taken = [one.number for one in (*self._live, *self._attempts)]
        number = next(number for number in itertools.count(1) if number not in taken)
        url = self._choose_url(is_replacement=is_replacement)
        clocks = self._clock, self._exchange_clock
        connection = self._open_connection(self._settings, *clocks, number, url, self._take, self.wake)
        self._attempts = (*self._attempts, connection)
        if not self._spawn(f"stream-{number}", connection.run, is_needed=False):
            connection.ending = faults.NO_THREAD

    def _choose_url(self, *, is_replacement: bool) -> str:
        """Choose the address of an attempt. Only one attempt at a time uses another address than the proven one.

        Another address may accept the connection and stay silent. If all attempts waited there, none would notice that
        the exchange is back.
        """
        urls = self._settings.binance_ws_urls
        if any(one.first_data_s is None and one.url != self._proven_url for one in self._attempts):
            return self._proven_url
        # A planned replacement risks no data, so it tries whether the first address works again.
        return urls[0] if is_replacement and self._failures == 0 else urls[self._url_index]

    def _mark_live(self, connection: Connection, now_s: float) -> None:
        """Count an attempt that has brought current mark prices as live. It may replace the oldest connection."""
        # Attempts at other addresses are ended. They might only wait there until they count as silent.
        elsewhere = [one for one in self._attempts if one.url != connection.url]
        self._closing |= dict.fromkeys(elsewhere, now_s)
        self._attempts = tuple(one for one in self._attempts if one is not connection and one not in elsewhere)
        self._live = (*self._live, connection)
        if len(self._live) > self._settings.stream_connections:
            self._retire_oldest(now_s)
        # Of n connections, the oldest is replaced n times within the greatest age. This spreads them over the day.
        age_s = self._settings.connection_max_age_seconds
        self._replace_at_s = min(now_s + age_s / len(self._live), self._live[0].started_s + age_s)
        self._retry_at_s = min(self._retry_at_s, now_s + self._scattered(_RETURN_WAIT_S))
        self._url_index = self._settings.binance_ws_urls.index(connection.url)
        self._proven_url, self._last_lag_s = connection.url, None
        self.last_connected_wall_s = round(self._clock.wall_s(), 3)
        level, live = logging.DEBUG if self._losses > _MAX_LOSSES_LOGGED else logging.INFO, len(self.live())
        after_s = now_s - connection.started_s
        _log.log(level, "connected", conn=connection.number, url=connection.url, after_s=after_s, live=live)
        self._throttle.resolve("connect failed", "lagging", log_as="stream recovered", live=live)

    def _retire_oldest(self, now_s: float) -> None:
        oldest, *others = self._live
        self._live = tuple(others)
        oldest.close()
        self._closing[oldest] = now_s + _CLOSE_WITHIN_S
        self.replaced += 1
        self._last_day.count(self._clock.wall_s(), planned=1)
        _log.info("rotated", conn=oldest.number, age_s=now_s - oldest.started_s)

    def _end(self, connection: Connection, cause: Cause, now_s: float) -> None:
        """Remove a connection that is over; decide when and where to try next, count and log it."""
        was_live = connection in self._live
        self._live = tuple(one for one in self._live if one is not connection)
        self._attempts = tuple(one for one in self._attempts if one is not connection)
        self.last_error = str(cause)
        # The life of the connection counts as part of the wait, because the wait only limits how often we connect.
        lived_s = now_s - connection.started_s
        wait_s = self._scattered(max(self._backoff_s(cause) - lived_s, self._settings.reconnect_min_seconds))
        self._failed_at_s, self._retry_at_s = now_s, now_s + wait_s
        self._failures += not cause.is_unreachable
        if cause.wait_s:  # If there are several pauses, the longest one holds.
            self._paused_until_s = max(self._paused_until_s, now_s + cause.wait_s)
        urls = self._settings.binance_ws_urls
        if connection.first_data_s is None and connection.url == urls[self._url_index]:
            self._url_index = (self._url_index + 1) % len(urls)
        retry_in_s = max(self._next_attempt_s(), self._paused_until_s) - now_s
        facts: dict[str, Any] = {"conn": connection.number, "retry_in_s": retry_in_s, "live": len(self.live())}
        if was_live:
            self._count_loss(cause, age_s=lived_s, **facts, url=connection.url)
        else:
            event = "lagging" if cause.kind is Kind.LAGGING else "connect failed"
            next_ = "tried again, logged seldom"
            self._throttle.warn(event, str(cause), **facts, url=connection.url, next=next_)

    def _count_loss(self, cause: Cause, **facts: Any) -> None:
        """Count and log an unplanned disconnection. Losses without a proven connection between them are one problem."""
        self.lost += 1
        self._last_day.count(self._clock.wall_s(), unplanned=1)
        self._losses += 1
        loss = cause.kind.value if cause.kind in (Kind.SILENT, Kind.LAGGING) else "lost"
        self._throttle.warn(loss, str(cause), kind=str(min(self._losses, _MAX_LOSSES_LOGGED)), **facts)

    def _backoff_s(self, cause: Cause) -> float:
        """Return the longest wait after a failure: twice as long for each failure before it."""
        min_s = self._settings.reconnect_min_seconds
        wait_s = max(min_s, _UNREACHABLE_WAIT_S) if cause.is_unreachable else min_s * 2.0 ** min(self._failures, 30)
        return min(wait_s, self._settings.reconnect_max_seconds)

    def _scattered(self, longest_s: float) -> float:
        """Return a time between half of the longest and all of it, so that not all hosts return at the same moment."""
        return self._uniform(longest_s / 2, longest_s)
