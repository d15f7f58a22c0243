"""The stream side: several WebSocket connections at once, kept alive, replaced in time, never hammered.

One supervising thread ("stream") decides everything; each connection reads in a thread of its own ("stream-N").

Facts of the exchange, as of November 2026:
- Every connection is cut after 24 h; a retired address completes its handshake and stays silent for ever. [1]
- A connection can stay open and advance while its event times fall further and further behind. [2]
- No limit on attempts is documented for futures; spot allows 300 per 5 min and IP: this keeps below one per second. [3]
[1] https://developers.binance.com/docs/derivatives/usds-margined-futures/websocket-market-streams
[2] https://github.com/JKorf/Binance.Net/issues/1215
[3] https://developers.binance.com/docs/binance-spot-api-docs/web-socket-streams
"""

import logging
import math
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from ...log import EventLogger
from ..context import Context
from ..market.feed import Feed
from .connection import Connection, Ending

_log = EventLogger(__name__)

# A connection has proved itself after bringing data for this long; only then may the next loss be answered quickly.
_PROVEN_AFTER_S = 60.0
# In the long run no more than one attempt per this time over all connections; so many may come at once.
_ATTEMPT_EVERY_S, _ATTEMPTS_AT_ONCE = 1.25, 8
# The wait where nothing answers at all (refused, unreachable, no DNS): asking again burdens nobody, the exchange's
# return is noticed at once, and an outage does not count against the connection that ends it.
_UNREACHABLE_WAIT_S = 1.0
# The longest wait while no connection brings anything current: with handshake and first message that makes 12 s.
_NONE_CURRENT_WAIT_S = 8.0
# How often the connections are looked at: while one of them is to be opened or ended, and while all are well.
_SHORT_STEP_S, _LONG_STEP_S = 0.1, 0.5
# Held up for longer (SIGSTOP, suspend, a starved host), what came meanwhile is unread: silence is counted anew.
_HELD_UP_S = 5.0
# So many losses in a row are logged one by one; what then goes on is logged at growing intervals.
_LOSSES_LOGGED = 2
# A connection that was told to end may need so long for its close frame; then it is broken, until it ends.
_CLOSE_WITHIN_S = 1.0
_RETURN_WAIT_S = 2.0


@dataclass
class _Slot:
    """One of the connections to be kept. Owned by the supervising thread."""

    number: int
    live: Connection | None = None
    """The connection that has brought current mark prices."""
    attempt: Connection | None = None
    """One that has not yet: to become the live one, or to replace it."""
    url_index: int = 0
    """Index of the address to try next."""
    failures: int = 0
    """Attempts and connections that ended since one proved itself: they make the wait longer."""
    losses: int = 0
    """Those of them that had been live: they make the log quieter."""
    failed_at_s: float = -math.inf
    retry_at_s: float = -math.inf
    """When to try next, at the latest."""
    replace_at_s: float = math.inf
    """When the live connection is to be replaced."""


@dataclass
class StreamPool:
    """Keeps `stream_connections` connections alive. Reading its public fields is safe from any thread."""

    context: Context
    feed: Feed
    spawn: Callable[[str, Callable[[], None]], object]
    """Starts a named thread whose unexpected end is noticed."""
    uniform: Callable[[float, float], float] = random.uniform
    open_connection: Callable[..., Connection] = Connection
    proven_after_s: float = _PROVEN_AFTER_S
    attempts: int = field(default=0, init=False)
    lost: int = field(default=0, init=False)
    replaced: int = field(default=0, init=False)
    last_connected_wall_s: float | None = field(default=None, init=False)
    last_error: str | None = field(default=None, init=False)
    progress_s: float = field(init=False)
    """Steady time at which the supervising thread last went round."""

    def __post_init__(self) -> None:
        self._clock, self._settings = self.context.clock, self.context.settings
        self._wake = threading.Event()
        self._slots = [_Slot(number) for number in range(1, self._settings.stream_connections + 1)]
        self._closing: dict[Connection, float] = {}  # until when each may need for its end
        self._attempts_left = float(_ATTEMPTS_AT_ONCE)
        self.progress_s = self._attempts_counted_s = self._clock.steady_s()
        self._paused_until_s = self._resumed_s = -math.inf
        self._proven_url: str | None = None
        self._last_lag_s: float | None = None

    def restore(self, pause_s: float) -> None:
        """Go on waiting for as long as Binance had asked an earlier daemon to."""
        self._paused_until_s = self._clock.steady_s() + pause_s

    def run(self, stop: threading.Event) -> None:
        """Keep the connections alive until `stop` is set and `wake` called; then close them all. Blocks."""
        while not stop.is_set():
            self._wake.clear()
            self._wake.wait(self.step())
        for connection in self._connections():
            connection.close()

    def step(self) -> float:
        """Supervise every connection once; return the seconds to the next step. For its thread; never blocks."""
        now_s = self._clock.steady_s()
        if now_s - self.progress_s > _HELD_UP_S:
            self._resumed_s = now_s
        for slot in self._slots:
            self._supervise_slot(slot)
        self._reap_closing()
        self.progress_s = self._clock.steady_s()
        is_steady = not self._closing and all(slot.live and not slot.attempt for slot in self._slots)
        return _LONG_STEP_S if is_steady else _SHORT_STEP_S

    def wake(self) -> None:
        """Let the supervising thread look around at once."""
        self._wake.set()

    def abort(self) -> None:
        """Break every connection that has not ended by itself."""
        for connection in [*self._connections(), *self._closing]:
            connection.abort()

    def live(self) -> list[Connection]:
        """Return the connections that bring current mark prices now."""
        now_s, silence_s = self._clock.steady_s(), self._settings.silence_seconds
        candidates = [slot.live for slot in self._slots if slot.live is not None]
        return [one for one in candidates if one.ending is None and one.age_s(now_s) <= silence_s]

    def trouble(self) -> str | None:
        """Return what keeps connections from being live now, None if all are."""
        return self.last_error if len(self.live()) < len(self._slots) else None

    def lag_s(self) -> float | None:
        """Return how far the best connection is behind Binance's clock; None where that is not known.

        Where there is none it is how far the last one was that was dropped for it, until another has become live.
        """
        lags_s = [lag_s for connection in self._connections() if (lag_s := connection.lag_s()) is not None]
        return min(lags_s, default=self._last_lag_s) if self.context.exchange_clock.offset_s is not None else None

    def status(self) -> dict[str, Any]:
        """Return the stream's part of `connection_status`, ready for the state file."""
        live, lag_s, now = self.live(), self.lag_s(), self._clock.now()
        return {
            "connected": bool(live),
            "connections": len(live),
            "connections_wanted": len(self._slots),
            "url": live[0].url if live else None,
            "last_connected_time": self.last_connected_wall_s,
            "last_message_time": self.feed.last_message_wall_s,
            "messages_received": self.feed.messages,
            "disconnects": self.lost,
            "planned_disconnects": self.replaced,
            "reconnect_attempts": self.attempts,
            "last_error": self.last_error,
            "stream_lag_seconds": None if lag_s is None else round(lag_s, 3),
            "paused_until": now.wall_at(self._paused_until_s) if self._paused_until_s > now.steady_s else None,
        }

    def _connections(self) -> list[Connection]:
        return [c for slot in self._slots for c in (slot.live, slot.attempt) if c is not None]

    def _reap_closing(self) -> None:
        """Break connections that do not end as they were told, wherever they hang."""
        now_s = self._clock.steady_s()
        self._closing = {one: until_s for one, until_s in self._closing.items() if one.ending is None}
        for connection, until_s in self._closing.items():
            if now_s >= until_s:
                connection.abort()

    def _supervise_slot(self, slot: _Slot) -> None:
        now_s = self._clock.steady_s()
        for connection in filter(None, (slot.live, slot.attempt)):
            ending = self._ending(connection, now_s, is_live=connection is slot.live)
            if ending is not None:
                self._end(slot, connection, ending, now_s)
        if slot.live is not None:
            self._reset_once_proven(slot, slot.live, now_s)
        if slot.attempt is not None:
            if self._is_current(slot.attempt):
                self._mark_live(slot, slot.attempt, now_s)
        elif self._is_attempt_due(slot, now_s) and self._may_attempt(now_s):
            self._open(slot)

    def _reset_once_proven(self, slot: _Slot, live: Connection, now_s: float) -> None:
        """Forget the failures before a connection that has brought data for long enough."""
        if live.first_data_s is None or not slot.failed_at_s < live.first_data_s <= now_s - self.proven_after_s:
            return
        slot.failures = slot.losses = 0
        if all(other.losses <= _LOSSES_LOGGED for other in self._slots):
            again = (f"{event} again" for event in ("lost", "silent", "lagging"))
            self.context.throttle.resolve(*again, log_as="stream steady", live=len(self.live()))

    def _ending(self, connection: Connection, now_s: float, *, is_live: bool) -> Ending | None:
        """Return why the connection is over, None while it lives; one that brings nothing current is freed at once."""
        if connection.ending is not None:
            return connection.ending
        silence_s, age_s = self._settings.silence_seconds, connection.age_s(now_s)
        without_s = age_s if is_live else max(age_s, now_s - connection.started_s)
        if min(without_s, now_s - self._resumed_s) <= silence_s:
            return None
        connection.abort()
        self._closing[connection] = now_s
        if connection.opened_s is None:
            return Ending(f"no handshake within {silence_s:g} s")
        if not self._is_current(connection) and connection.first_data_s is not None:
            self._last_lag_s = age_s
            return Ending(f"mark prices are {age_s:.0f} s behind Binance's clock", event="lagging")
        return Ending(f"no new mark prices for {silence_s:g} s", event="silent")

    def _is_current(self, connection: Connection) -> bool:
        """Tell whether its newest mark prices were current when they came."""
        lag_s = connection.lag_s()
        return lag_s is not None and lag_s <= self.context.current_s

    def _is_attempt_due(self, slot: _Slot, now_s: float) -> bool:
        if slot.live is None:
            return now_s >= self._retry_at_s(slot)
        # One replacement at a time.
        return now_s >= slot.replace_at_s and not any(other.live and other.attempt for other in self._slots)

    def _open(self, slot: _Slot) -> None:
        if slot.live is None:
            self.attempts += slot.failed_at_s > -math.inf
        elif slot.failures == 0:
            slot.url_index = 0  # a planned replacement risks nothing: time to see whether the first address is back
        url = self._choose_url(slot)
        slot.attempt = self.open_connection(self.context, slot.number, url, self.feed.take, self.wake)
        self.spawn(f"stream-{slot.number}", slot.attempt.run)

    def _choose_url(self, slot: _Slot) -> str:
        """Choose the slot's address; but only one slot at a time tries another than the one data last came from.

        An address may open and stay silent: the exchange's return must not find all slots waiting there.
        """
        url = self._settings.binance_ws_urls[slot.url_index]
        elsewhere = any(c.first_data_s is None and c.url != self._proven_url for c in self._connections())
        return self._proven_url if self._proven_url is not None and elsewhere else url

    def _mark_live(self, slot: _Slot, connection: Connection, now_s: float) -> None:
        """Let an attempt that has brought current mark prices become the slot's live connection."""
        replaced, slot.live, slot.attempt = slot.live, connection, None
        if replaced is not None:
            self._retire(slot, replaced, now_s)
        self.last_connected_wall_s = round(self._clock.wall_s(), 3)
        self._proven_url, self._last_lag_s = connection.url, None
        slot.replace_at_s = self._replacement_time_s(slot, now_s)
        live = len(self.live())
        if live == 1:  # the exchange is back: the others need not wait out what they had planned
            for other in self._slots:
                other.retry_at_s = min(other.retry_at_s, now_s + self._jittered(_RETURN_WAIT_S))
        level = logging.DEBUG if slot.losses > _LOSSES_LOGGED else logging.INFO
        after_s, replace_in_s = now_s - connection.started_s, round(slot.replace_at_s - now_s)
        facts: dict[str, Any] = {"conn": slot.number, "url": connection.url, "after_s": after_s, "live": live}
        _log.log(level, "connected", **facts, replace_in_s=replace_in_s)
        self.context.throttle.resolve("connect failed", "lagging", log_as="stream recovered", live=live)

    def _retire(self, slot: _Slot, replaced: Connection, now_s: float) -> None:
        replaced.close()
        self._closing[replaced] = now_s + _CLOSE_WITHIN_S
        self.replaced += 1
        self.context.last_day.count(self._clock.wall_s(), planned=1)
        _log.info("rotated", conn=slot.number, age_s=now_s - replaced.started_s)

    def _end(self, slot: _Slot, connection: Connection, ending: Ending, now_s: float) -> None:
        """Take a connection that is over from its slot; decide when and where that tries next, count and log it."""
        was_live = connection is slot.live
        if was_live:
            slot.live = None
        else:
            slot.attempt = None
        self.last_error = ending.cause
        # The time it lived counts: what matters to the exchange is how often it is asked.
        lived_s, least_s = now_s - connection.started_s, self._jittered(self._settings.reconnect_min_seconds)
        slot.retry_at_s = now_s + max(self._backoff_s(slot, ending) - lived_s, least_s)
        slot.failures += not ending.unreachable
        slot.failed_at_s = now_s
        if ending.wait_s:
            self._paused_until_s = max(self._paused_until_s, now_s + ending.wait_s)
        if connection.first_data_s is None and connection.url == self._settings.binance_ws_urls[slot.url_index]:
            slot.url_index = self._next_url_index(slot.url_index, elsewhere=ending.unreachable)
        wait_s = max(self._retry_at_s(slot), self._paused_until_s) - now_s
        slot.replace_at_s = now_s + wait_s  # where what failed was to replace one that is still live
        facts: dict[str, Any] = {"conn": slot.number, "retry_in_s": wait_s, "live": len(self.live())}
        if was_live:
            self._count_loss(slot, ending, age_s=lived_s, **facts, url=connection.url)
        else:
            event = "lagging" if ending.event == "lagging" else "connect failed"
            next_ = "tried again, logged seldom"
            self.context.throttle.warn(event, ending.cause, **facts, url=connection.url, next=next_)

    def _count_loss(self, slot: _Slot, ending: Ending, **facts: Any) -> None:
        """Count and log an unplanned disconnection.

        A loss is an event; one after the other, without any connection proving itself in between, is one trouble.
        """
        self.lost += 1
        self.context.last_day.count(self._clock.wall_s(), unplanned=1)
        slot.losses += 1
        if slot.losses > _LOSSES_LOGGED:
            self.context.throttle.warn(f"{ending.event} again", ending.cause, **facts)
        else:
            _log.warning(ending.event, cause=ending.cause, **facts)

    def _next_url_index(self, index: int, *, elsewhere: bool) -> int:
        """Choose the address after this one; where nothing answers, one of another host if there is any."""
        urls = self._settings.binance_ws_urls
        hosts = [urlsplit(url).netloc for url in urls]
        following = [*range(index + 1, len(urls)), *range(index)]
        return next((other for other in following if not elsewhere or hosts[other] != hosts[index]), index)

    def _retry_at_s(self, slot: _Slot) -> float:
        """Return when the slot tries again, a pause that Binance asked for aside."""
        now_s = self._clock.steady_s()
        is_any_current = any(connection.age_s(now_s) <= self.context.current_s for connection in self.live())
        return slot.retry_at_s if is_any_current else min(slot.retry_at_s, slot.failed_at_s + _NONE_CURRENT_WAIT_S)

    def _backoff_s(self, slot: _Slot, ending: Ending) -> float:
        least_s, most_s = self._settings.reconnect_min_seconds, self._settings.reconnect_max_seconds
        wait_s = max(least_s, _UNREACHABLE_WAIT_S) if ending.unreachable else least_s * 2.0 ** min(slot.failures, 30)
        return self._jittered(min(wait_s, most_s))

    def _jittered(self, wait_s: float) -> float:
        return self.uniform(wait_s / 2, wait_s)

    def _may_attempt(self, now_s: float) -> bool:
        """Take one attempt from the allowance that all connections share."""
        refill = (now_s - self._attempts_counted_s) / _ATTEMPT_EVERY_S
        self._attempts_left = min(self._attempts_left + refill, _ATTEMPTS_AT_ONCE)
        self._attempts_counted_s = now_s
        if now_s < self._paused_until_s or self._attempts_left < 1:
            return False
        self._attempts_left -= 1
        return True

    def _replacement_time_s(self, slot: _Slot, now_s: float) -> float:
        """Choose the latest time within the maximum age that is far enough from the other slots' replacements."""
        age_s = self._settings.connection_max_age_seconds
        apart_s = age_s / (2 * len(self._slots))
        others = [other.replace_at_s for other in self._slots if other is not slot and other.live]
        time_s = now_s + age_s
        while any(abs(time_s - other) < apart_s for other in others):
            time_s -= apart_s
        return time_s
