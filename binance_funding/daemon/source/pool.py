"""The stream side: several WebSocket connections at once, kept alive and replaced in time.

One supervising thread ("stream") decides everything. Each connection reads in a thread of its own ("stream-N").

Facts of the exchange, as of November 2026:
- Every connection is cut after 24 h. A retired address completes its handshake and stays silent for ever. [1]
- A connection can stay open and advance while its event times fall further and further behind. [2]
[1] https://developers.binance.com/docs/derivatives/usds-margined-futures/websocket-market-streams
[2] https://github.com/JKorf/Binance.Net/issues/1215
"""

import logging
import math
import random
import threading
from collections.abc import Callable
from typing import Any

from ...log import EventLogger
from ..context import Context
from ..market.feed import Feed
from . import faults
from .connection import Connection
from .faults import Cause, Kind
from .retry import AttemptAllowance, Backoff, next_url_index

_log = EventLogger(__name__)

# A connection has proved itself after it brought data for this long. Only then the next loss is answered quickly.
_PROVEN_AFTER_S = 60.0
# The longest wait while no connection brings anything current. With handshake and first message that makes 12 s.
_NONE_CURRENT_WAIT_S = 8.0
# How often the connections are looked at: while one of them is to be opened or ended, and while all are well.
_SHORT_STEP_S, _LONG_STEP_S = 0.1, 0.5
# After a pause of the process (SIGSTOP, suspend, a starved host), messages may wait unread: silence is counted anew.
_HELD_UP_S = 5.0
# This many losses in a row are logged one by one, more of them at growing intervals.
_MAX_LOSSES_LOGGED = 2
# A connection that was told to end may take this long for its close frame. Then it is aborted until it ends.
_CLOSE_WITHIN_S = 1.0
# After the exchange's return, all connections try again within this time.
_RETURN_WAIT_S = 2.0
# No more attempts are made while so many earlier ones hang, such as in a name lookup, where nothing can abort them.
_MAX_HANGING = 8


class _Slot:
    """One of the connections to be kept. Owned by the supervising thread."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.live: Connection | None = None
        """The connection that has brought current mark prices."""
        self.attempt: Connection | None = None
        """A connection that has not brought any yet: to become the live one, or to replace it."""
        self.url_index = 0
        """Index of the address to try next."""
        self.failures = 0
        """Attempts and connections that ended since the last proven connection. They make the wait longer."""
        self.losses = 0
        """Live connections lost since the last proven one. They make the log quieter."""
        self.failed_at_s = -math.inf
        self.retry_at_s = -math.inf
        """When to try next, at the latest."""
        self.replace_at_s = math.inf
        """When the live connection is to be replaced."""


class StreamPool:
    """Keeps `stream_connections` connections alive. Reading its public fields is safe from any thread."""

    def __init__(
        self,
        context: Context,
        feed: Feed,
        spawn: Callable[[str, Callable[[], None]], object],
        *,
        uniform: Callable[[float, float], float] = random.uniform,
        open_connection: Callable[..., Connection] = Connection,
        proven_after_s: float = _PROVEN_AFTER_S,
    ) -> None:
        """Open nothing yet. `spawn` starts a named thread whose unexpected end is noticed."""
        self.context = context
        self.feed = feed
        self.attempts = 0
        self.lost = 0
        self.replaced = 0
        self.last_connected_wall_s: float | None = None
        self.last_error: str | None = None
        self.progress_s = context.clock.steady_s()
        """Steady time at which the supervising thread last went round."""
        self._clock = context.clock
        self._settings = context.settings
        self._spawn = spawn
        self._open_connection = open_connection
        self._proven_after_s = proven_after_s
        self._wake = threading.Event()
        self._slots = [_Slot(number) for number in range(1, context.settings.stream_connections + 1)]
        self._closing: dict[Connection, float] = {}
        """Connections that were told to end, and until when each may take for that."""
        self._allowance = AttemptAllowance(self.progress_s)
        self._backoff = Backoff(context.settings, uniform)
        self._resumed_s = -math.inf
        """When the process last went on after a pause."""
        self._proven_url: str | None = None
        """The address that data last came from."""
        self._last_lag_s: float | None = None
        """How far the last connection was behind that was dropped for its lag, until another is live."""

    def restore(self, pause_s: float) -> None:
        """Wait for as long as Binance had asked an earlier daemon to."""
        self._allowance.pause(self._clock.steady_s() + pause_s)

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
        """Let the supervising thread look at the connections at once."""
        self._wake.set()

    def abort(self) -> None:
        """Abort every connection that has not ended by itself."""
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
        """Return how far the best connection is behind Binance's clock; None if that is not known.

        Without a connection, it is the lag of the last one that was dropped for its lag.
        """
        lags_s = [lag_s for connection in self._connections() if (lag_s := connection.lag_s()) is not None]
        return min(lags_s, default=self._last_lag_s) if self.context.exchange_clock.offset_s is not None else None

    def status(self) -> dict[str, Any]:
        """Return the stream's part of `connection_status`, ready for the state file."""
        live, lag_s, now = self.live(), self.lag_s(), self._clock.now()
        paused_until_s = self._allowance.paused_until_s
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
            "paused_until": now.wall_at(paused_until_s) if paused_until_s > now.steady_s else None,
        }

    def _connections(self) -> list[Connection]:
        return [c for slot in self._slots for c in (slot.live, slot.attempt) if c is not None]

    def _reap_closing(self) -> None:
        """Abort connections that have not ended in time after they were told to."""
        now_s = self._clock.steady_s()
        self._closing = {one: until_s for one, until_s in self._closing.items() if one.ending is None}
        for connection, until_s in self._closing.items():
            if now_s >= until_s:
                connection.abort()

    def _supervise_slot(self, slot: _Slot) -> None:
        now_s = self._clock.steady_s()
        for connection in filter(None, (slot.live, slot.attempt)):
            cause = self._ending(connection, now_s, is_live=connection is slot.live)
            if cause is not None:
                self._end(slot, connection, cause, now_s)
        if slot.live is not None:
            self._reset_once_proven(slot, slot.live, now_s)
        if slot.attempt is not None:
            if self._is_current(slot.attempt):
                self._mark_live(slot, slot.attempt, now_s)
        elif self._is_attempt_due(slot, now_s) and self._may_attempt(now_s):
            self._open(slot)

    def _may_attempt(self, now_s: float) -> bool:
        return len(self._closing) < _MAX_HANGING and self._allowance.take(now_s)

    def _reset_once_proven(self, slot: _Slot, live: Connection, now_s: float) -> None:
        """Forget the failures before a connection that has brought data for long enough."""
        if live.first_data_s is None or not slot.failed_at_s < live.first_data_s <= now_s - self._proven_after_s:
            return
        slot.failures = slot.losses = 0
        if all(other.losses <= _MAX_LOSSES_LOGGED for other in self._slots):
            again = (f"{event} again" for event in ("lost", "silent", "lagging"))
            self.context.throttle.resolve(*again, log_as="stream steady", live=len(self.live()))

    def _ending(self, connection: Connection, now_s: float, *, is_live: bool) -> Cause | None:
        """Return why the connection is over, None while it lives. Abort it if it brings nothing current."""
        if connection.ending is not None:
            return connection.ending
        silence_s, age_s = self._settings.silence_seconds, connection.age_s(now_s)
        without_s = age_s if is_live else max(age_s, connection.connecting_s(now_s))
        is_name_overdue = connection.is_name_overdue(now_s)
        if min(without_s, now_s - self._resumed_s) <= silence_s and not is_name_overdue:
            return None
        connection.abort()
        self._closing[connection] = now_s
        if is_name_overdue:
            return faults.NO_NAME_IN_TIME
        if connection.opened_s is None:
            return Cause(Kind.TIMEOUT, f"no handshake within {silence_s:g} s")
        if not self._is_current(connection) and connection.first_data_s is not None:
            self._last_lag_s = age_s
            return Cause(Kind.LAGGING, f"mark prices are {age_s:.0f} s behind Binance's clock")
        return Cause(Kind.SILENT, f"no new mark prices for {silence_s:g} s")

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
        slot.attempt = self._open_connection(self.context, slot.number, url, self.feed.take, self.wake)
        self._spawn(f"stream-{slot.number}", slot.attempt.run)

    def _choose_url(self, slot: _Slot) -> str:
        """Choose the slot's address. Only one slot at a time may leave the address that data last came from.

        Another address may open and stay silent. Not all slots should wait there when the exchange is back.
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
        if live == 1:
            self._follow(connection.url, now_s)
        level = logging.DEBUG if slot.losses > _MAX_LOSSES_LOGGED else logging.INFO
        after_s, replace_in_s = now_s - connection.started_s, round(slot.replace_at_s - now_s)
        facts: dict[str, Any] = {"conn": slot.number, "url": connection.url, "after_s": after_s, "live": live}
        _log.log(level, "connected", **facts, replace_in_s=replace_in_s)
        self.context.throttle.resolve("connect failed", "lagging", log_as="stream recovered", live=live)

    def _follow(self, url: str, now_s: float) -> None:
        """After an outage, let all other slots try the address that has just proved to work, and soon.

        An attempt of theirs at another address that has not opened by now is given up.
        """
        for slot in self._slots:
            if slot.live is not None:
                continue
            slot.url_index = self._settings.binance_ws_urls.index(url)
            slot.retry_at_s = min(slot.retry_at_s, now_s + self._backoff.scattered(_RETURN_WAIT_S))
            if slot.attempt is not None and slot.attempt.url != url:
                slot.attempt.abort()
                self._closing[slot.attempt] = now_s
                slot.attempt = None

    def _retire(self, slot: _Slot, replaced: Connection, now_s: float) -> None:
        replaced.close()
        self._closing[replaced] = now_s + _CLOSE_WITHIN_S
        self.replaced += 1
        self.context.last_day.count(self._clock.wall_s(), planned=1)
        _log.info("rotated", conn=slot.number, age_s=now_s - replaced.started_s)

    def _end(self, slot: _Slot, connection: Connection, cause: Cause, now_s: float) -> None:
        """Take a connection that is over from its slot; decide when and where to try next, count and log it."""
        was_live = connection is slot.live
        if was_live:
            slot.live = None
        else:
            slot.attempt = None
        self.last_error = str(cause)
        # The time it lived counts: what matters to the exchange is how often it is asked.
        lived_s = now_s - connection.started_s
        backoff_s = self._backoff.wait_s(slot.failures, is_unreachable=cause.is_unreachable)
        slot.retry_at_s = now_s + max(backoff_s - lived_s, self._backoff.min_wait_s())
        slot.failures += not cause.is_unreachable
        slot.failed_at_s = now_s
        if cause.wait_s:
            self._allowance.pause(now_s + cause.wait_s)
        urls = self._settings.binance_ws_urls
        if connection.first_data_s is None and connection.url == urls[slot.url_index]:
            slot.url_index = next_url_index(urls, slot.url_index, is_unreachable=cause.is_unreachable)
        wait_s = max(self._retry_at_s(slot), self._allowance.paused_until_s) - now_s
        slot.replace_at_s = now_s + wait_s  # for an attempt that was to replace a connection that is still live
        facts: dict[str, Any] = {"conn": slot.number, "retry_in_s": wait_s, "live": len(self.live())}
        if was_live:
            self._count_loss(slot, cause, age_s=lived_s, **facts, url=connection.url)
        else:
            event = "lagging" if cause.kind is Kind.LAGGING else "connect failed"
            next_ = "tried again, logged seldom"
            self.context.throttle.warn(event, str(cause), **facts, url=connection.url, next=next_)

    def _count_loss(self, slot: _Slot, cause: Cause, **facts: Any) -> None:
        """Count and log an unplanned disconnection.

        Losses without a proven connection between them are one trouble, which is logged less and less often.
        """
        self.lost += 1
        self.context.last_day.count(self._clock.wall_s(), unplanned=1)
        slot.losses += 1
        loss = "silent" if cause.kind is Kind.SILENT else "lagging" if cause.kind is Kind.LAGGING else "lost"
        if slot.losses > _MAX_LOSSES_LOGGED:
            self.context.throttle.warn(f"{loss} again", str(cause), **facts)
        else:
            _log.warning(loss, cause=str(cause), **facts)

    def _retry_at_s(self, slot: _Slot) -> float:
        """Return when the slot tries again, apart from a pause that Binance asked for."""
        now_s = self._clock.steady_s()
        is_any_current = any(connection.age_s(now_s) <= self.context.current_s for connection in self.live())
        return slot.retry_at_s if is_any_current else min(slot.retry_at_s, slot.failed_at_s + _NONE_CURRENT_WAIT_S)

    def _replacement_time_s(self, slot: _Slot, now_s: float) -> float:
        """Choose the latest time within the maximum age that is far enough from the other slots' replacements."""
        age_s = self._settings.connection_max_age_seconds
        apart_s = age_s / (2 * len(self._slots))
        others = [other.replace_at_s for other in self._slots if other is not slot and other.live]
        time_s = now_s + age_s
        while any(abs(time_s - other) < apart_s for other in others):
            time_s -= apart_s
        return time_s
