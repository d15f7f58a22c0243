"""The stream side: several WebSocket connections at once, kept alive, replaced in time, never hammered.

One supervising thread ("stream") decides everything; each connection reads in a thread of its own ("stream-N").

Facts of the exchange, as of November 2026:
- Every connection is cut after 24 h; a retired address completes its handshake and stays silent for ever. [1]
- No limit on attempts is documented for futures; spot allows 300 per 5 min and IP: this keeps below one per second. [2]
[1] https://developers.binance.com/docs/derivatives/usds-margined-futures/websocket-market-streams
[2] https://developers.binance.com/docs/binance-spot-api-docs/web-socket-streams
"""

import logging
import math
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

from . import events
from .clock import Clock
from .connection import Connection, Ending
from .feed import Feed
from .history import History
from .settings import Settings

_log = logging.getLogger(__name__)

# A connection has proved itself after bringing data for this long; only then may the next loss be answered quickly.
_PROVEN_AFTER_S = 60.0
# In the long run no more than one attempt per this time over all connections; so many may come at once.
_ATTEMPT_EVERY_S, _ATTEMPTS_AT_ONCE = 1.25, 8
# The wait where nobody is there at all (refused, unreachable, no DNS): asking again burdens nobody, the exchange's
# return is noticed at once, and an outage does not count against the connection that ends it.
_NOBODY_THERE_WAIT_S = 1.0
_LONGEST_STEP_S = 1.0
# Held up for longer (SIGSTOP, suspend, a starved host), what came meanwhile is unread: silence is counted anew.
_HELD_UP_S = 5.0
# So many losses in a row are told one by one; what then goes on is told at growing intervals.
_LOSSES_TOLD = 2
# A connection that was told to end may need so long for its goodbye; then it is broken, again and again until it ends.
_GOODBYE_S = 1.0


class Spawn(Protocol):
    """Starts a named thread whose unexpected end is noticed."""

    def __call__(self, name: str, target: Callable[[], None]) -> threading.Thread:
        """Start the thread and return it."""


@dataclass
class _Slot:
    """One of the connections to be kept. Owned by the supervising thread."""

    number: int
    current: Connection | None = None
    successor: Connection | None = None
    candidate: int = 0
    """Index of the address to try next."""
    failures: int = 0
    """Attempts and connections that ended, since one proved itself: they make the wait longer."""
    failed_at_s: float = -math.inf
    has_failed: bool = False
    """Whether one ever ended: the next attempt is not the first."""
    retry_at_s: float = 0.0
    replace_at_s: float = math.inf
    """When a connection that has brought data is to be replaced."""
    losses: int = 0
    """Connections that ended after bringing data, since one proved itself: they make the log quieter."""
    unsteady: bool = False
    """Whether the last loss was one too many to be told by itself."""


class StreamPool:
    """Keeps `stream_connections` connections alive. Reading its public fields is safe from any thread."""

    def __init__(
        self,
        settings: Settings,
        feed: Feed,
        history: History,
        *,
        clock: Clock,
        spawn: Spawn,
        repeats: events.Repeats,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._settings = settings
        self._feed = feed
        self._history = history
        self._clock = clock
        self._spawn = spawn
        self._repeats = repeats
        self._uniform = uniform
        self._wake = threading.Event()
        self._slots = [_Slot(number) for number in range(1, settings.stream_connections + 1)]
        self._leaving: list[tuple[Connection, float]] = []
        self._attempts_left = float(_ATTEMPTS_AT_ONCE)
        self._attempts_counted_s = clock.steady_s()
        self._paused_until_s = 0.0
        self._proven_url: str | None = None
        self._resumed_s = -math.inf
        self.progress_s = clock.steady_s()
        """Steady time at which the supervising thread last went round."""
        self.attempts = 0
        self.lost = 0
        self.replaced = 0
        self.last_connected_wall_s: float | None = None
        self.last_error: str | None = None

    def run(self, stop: threading.Event) -> None:
        """Keep the connections alive until `stop` is set and `wake` called; then close them all. Blocks."""
        while not stop.is_set():
            self._wake.clear()
            self.step()
            self._wake.wait(self._time_to_next_step_s())
        for connection in self._connections():
            connection.close()

    def step(self) -> None:
        """Look after every connection once. For the supervising thread; never blocks."""
        now_s = self._clock.steady_s()
        if now_s - self.progress_s > _HELD_UP_S:
            self._resumed_s = now_s
        for slot in self._slots:
            self._look_after(slot)
        self._see_off()
        self.progress_s = self._clock.steady_s()

    def wake(self) -> None:
        """Let the supervising thread look around at once."""
        self._wake.set()

    def abort(self) -> None:
        """Break every connection that has not ended by itself."""
        for connection in [*self._connections(), *(leaving for leaving, _ in self._leaving)]:
            connection.abort()

    def live(self) -> list[Connection]:
        """Return the connections that bring mark prices now."""
        now_s, silence_s = self._clock.steady_s(), self._settings.silence_seconds
        return [
            connection
            for connection in self._connections()
            if connection.settled and connection.ending is None and connection.idle_s(now_s) <= silence_s
        ]

    def trouble(self) -> str | None:
        """Return what keeps connections from being live now, None if all are."""
        return self.last_error if len(self.live()) < len(self._slots) else None

    def status(self) -> dict[str, Any]:
        """Return the stream's part of `connection_status`, ready for the state file."""
        live = self.live()
        return {
            "connected": bool(live),
            "connections": len(live),
            "connections_wanted": len(self._slots),
            "url": live[0].url if live else None,
            "last_connected_time": self.last_connected_wall_s,
            "last_message_time": self._feed.last_message_wall_s,
            "messages_received": self._feed.messages,
            "disconnects": self.lost,
            "planned_disconnects": self.replaced,
            "reconnect_attempts": self.attempts,
            "last_error": self.last_error,
        }

    def _connections(self) -> list[Connection]:
        return [c for slot in self._slots for c in (slot.current, slot.successor) if c is not None]

    def _see_off(self) -> None:
        """Break connections that do not end as they were told, wherever they hang."""
        now_s = self._clock.steady_s()
        self._leaving = [(leaving, until_s) for leaving, until_s in self._leaving if leaving.ending is None]
        for leaving, until_s in self._leaving:
            if now_s >= until_s:
                leaving.abort()

    def _look_after(self, slot: _Slot) -> None:
        now_s = self._clock.steady_s()
        if slot.current is not None:
            self._check_current(slot, slot.current, now_s)
        if slot.successor is not None:
            self._check_successor(slot, slot.successor, now_s)
        if slot.current is None and slot.successor is None:
            if now_s >= slot.retry_at_s and self._may_attempt(now_s):
                self.attempts += slot.has_failed
                slot.current = self._connect(slot)
        elif self._is_replacement_due(slot, now_s) and self._may_attempt(now_s):
            if slot.failures == 0:
                slot.candidate = 0  # a planned replacement risks nothing: time to see whether the first address is back
            slot.successor = self._connect(slot)

    def _check_current(self, slot: _Slot, connection: Connection, now_s: float) -> None:
        ending = self._ending(connection, now_s)
        if ending is not None:
            slot.current = None
            wait_s = self._plan_retry(slot, connection, ending, now_s)
            if connection.proven_s is None:
                self._tell_failure(slot, connection, ending, wait_s)
            else:
                self._tell_loss(slot, connection, ending, wait_s, now_s)
        elif connection.proven_s is not None and not connection.settled:
            self._settle(slot, connection, now_s)
        elif connection.proven_s is not None and slot.failed_at_s < connection.proven_s <= now_s - _PROVEN_AFTER_S:
            slot.failures = slot.losses = 0
            if slot.unsteady:
                self._note_steady(slot)

    def _check_successor(self, slot: _Slot, successor: Connection, now_s: float) -> None:
        ending = self._ending(successor, now_s)
        if ending is not None:
            slot.successor = None
            wait_s = self._plan_retry(slot, successor, ending, now_s)
            slot.replace_at_s = math.inf if slot.current is None else now_s + wait_s
            self._tell_failure(slot, successor, ending, wait_s)
        elif successor.proven_s is not None:
            self._replace(slot, successor, now_s)

    def _ending(self, connection: Connection, now_s: float) -> Ending | None:
        """Return why the connection is over, None while it lives; a silent one is freed at once."""
        if connection.ending is not None:
            return connection.ending
        silence_s = self._settings.silence_seconds
        if min(connection.idle_s(now_s), now_s - self._resumed_s) <= silence_s:
            return None
        connection.abort()
        self._leaving.append((connection, now_s))
        if connection.opened_s is None:
            return Ending(f"no handshake within {silence_s:g} s")
        return Ending(f"no new mark prices for {silence_s:g} s", silent=True)

    def _connect(self, slot: _Slot) -> Connection:
        connection = Connection(
            slot.number,
            self._choose_url(slot),
            take=self._feed.take,
            clock=self._clock,
            connect_timeout_s=min(10.0, self._settings.silence_seconds),
            on_change=self.wake,
        )
        self._spawn(f"stream-{slot.number}", connection.run)
        return connection

    def _choose_url(self, slot: _Slot) -> str:
        """Choose the slot's candidate; but only one slot at a time looks elsewhere than where data last came from.

        An address may open and stay silent: the exchange's return must not find all slots waiting there.
        """
        url = self._settings.binance_ws_urls[slot.candidate]
        elsewhere = any(c.proven_s is None and c.url != self._proven_url for c in self._connections())
        return self._proven_url if self._proven_url is not None and elsewhere else url

    def _settle(self, slot: _Slot, connection: Connection, now_s: float) -> None:
        """A connection has brought its first mark prices."""
        self.last_connected_wall_s = round(self._clock.wall_s(), 3)
        self._proven_url = connection.url
        connection.settled = True
        slot.replace_at_s = self._replacement_time_s(slot, now_s)
        _log.log(
            logging.DEBUG if slot.unsteady else logging.INFO,
            "%s",
            events.line(
                "connected",
                conn=slot.number,
                url=connection.url,
                after_s=now_s - connection.started_s,
                live=len(self.live()),
                replace_in_s=round(slot.replace_at_s - now_s),
            ),
        )
        if self._repeats.over("connect failed") is not None:
            _log.info("%s", events.line("stream recovered", live=len(self.live())))

    def _replace(self, slot: _Slot, successor: Connection, now_s: float) -> None:
        old = slot.current
        slot.current, slot.successor = successor, None
        if old is not None:
            old.close()
            self._leaving.append((old, now_s + _GOODBYE_S))
            self.replaced += 1
            self._history.count(self._clock.wall_s(), planned=1)
            _log.info("%s", events.line("rotated", conn=slot.number, age_s=now_s - old.started_s, url=successor.url))
        self._settle(slot, successor, now_s)

    def _plan_retry(self, slot: _Slot, connection: Connection, ending: Ending, now_s: float) -> float:
        """Decide when and where the slot tries next; return the wait in seconds."""
        self.last_error = ending.cause
        # The time it lived counts: what matters to the exchange is how often it is asked.
        lived_s = now_s - connection.started_s
        least_s = self._jittered(self._settings.reconnect_min_seconds)
        wait_s = max(self._backoff_s(slot, ending) - lived_s, least_s, ending.wait_s)
        slot.retry_at_s = now_s + wait_s
        slot.failures += not ending.nobody_there
        slot.failed_at_s = now_s
        slot.has_failed = True
        if ending.wait_s:
            self._paused_until_s = max(self._paused_until_s, now_s + ending.wait_s)
        if connection.proven_s is None:
            slot.candidate = self._next_candidate(slot.candidate, elsewhere=ending.nobody_there)
        return wait_s

    def _next_candidate(self, candidate: int, elsewhere: bool) -> int:
        """Choose the address after this one; where nobody is there, one of another host if there is any."""
        urls = self._settings.binance_ws_urls
        following = [(candidate + step) % len(urls) for step in range(1, len(urls) + 1)]
        here = urlsplit(urls[candidate]).netloc
        if elsewhere:
            following = [index for index in following if urlsplit(urls[index]).netloc != here] or [candidate]
        return following[0]

    def _tell_failure(self, slot: _Slot, connection: Connection, ending: Ending, wait_s: float) -> None:
        """Log the end of a connection that never brought mark prices: a failed attempt, not a disconnection."""
        live = len(self.live())
        self._repeats.tell(
            "connect failed", ending.cause, conn=slot.number, url=connection.url, retry_in_s=wait_s, live=live
        )

    def _tell_loss(self, slot: _Slot, connection: Connection, ending: Ending, wait_s: float, now_s: float) -> None:
        """Count and log an unplanned disconnection."""
        slot.replace_at_s = math.inf
        self.lost += 1
        self._history.count(self._clock.wall_s(), unplanned=1)
        facts = {
            "conn": slot.number,
            "age_s": now_s - connection.started_s,
            "retry_in_s": wait_s,
            "live": len(self.live()),
            "url": connection.url,
        }
        event = "silent" if ending.silent else "lost"
        # A loss is an event; one after the other, without any connection proving itself in between, is one trouble.
        slot.losses += 1
        slot.unsteady = slot.losses > _LOSSES_TOLD
        if slot.unsteady:
            self._repeats.tell(f"{event} again", ending.cause, logging.WARNING, **facts)
        else:
            _log.warning("%s", events.line(event, cause=ending.cause, **facts))

    def _note_steady(self, slot: _Slot) -> None:
        slot.unsteady = False
        if any(other.unsteady for other in self._slots):
            return
        lasted_s = self._repeats.over("silent again", "lost again")
        if lasted_s is not None:
            _log.info("%s", events.line("stream steady", after_s=lasted_s, live=len(self.live())))

    def _backoff_s(self, slot: _Slot, ending: Ending) -> float:
        least_s, most_s = self._settings.reconnect_min_seconds, self._settings.reconnect_max_seconds
        wait_s = least_s * 2.0 ** min(slot.failures, 30)
        if ending.nobody_there:
            wait_s = max(least_s, _NOBODY_THERE_WAIT_S)
        return self._jittered(min(wait_s, most_s))

    def _jittered(self, wait_s: float) -> float:
        return self._uniform(wait_s / 2, wait_s)

    def _may_attempt(self, now_s: float) -> bool:
        """Take one attempt from the allowance that all connections share."""
        refill = (now_s - self._attempts_counted_s) / _ATTEMPT_EVERY_S
        self._attempts_left = min(self._attempts_left + refill, _ATTEMPTS_AT_ONCE)
        self._attempts_counted_s = now_s
        if now_s < self._paused_until_s or self._attempts_left < 1:
            return False
        self._attempts_left -= 1
        return True

    def _is_replacement_due(self, slot: _Slot, now_s: float) -> bool:
        one_under_way = any(other.successor is not None for other in self._slots)
        return slot.current is not None and now_s >= slot.replace_at_s and not one_under_way

    def _replacement_time_s(self, slot: _Slot, now_s: float) -> float:
        """Choose the latest time within the maximum age that is far enough from the other slots' replacements."""
        age_s = self._settings.connection_max_age_seconds
        apart_s = age_s / (2 * len(self._slots))
        others = [other.replace_at_s for other in self._slots if other is not slot]
        time_s = now_s + age_s
        while any(abs(time_s - other) < apart_s for other in others):
            time_s -= apart_s
        return time_s

    def _time_to_next_step_s(self) -> float:
        now_s = self._clock.steady_s()
        times_s = [connection.started_s for connection in self._connections() if connection.fresh_s is None]
        times_s += [c.fresh_s for c in self._connections() if c.fresh_s is not None]
        due_s = [time_s + self._settings.silence_seconds for time_s in times_s]
        due_s += [max(slot.retry_at_s, now_s + 0.1) for slot in self._slots if slot.current is None]
        due_s += [max(slot.replace_at_s, now_s + 0.1) for slot in self._slots]
        due_s += [max(until_s, now_s + 0.1) for _, until_s in self._leaving]
        return min(max(min(due_s) - now_s, 0.005), _LONGEST_STEP_S)
