"""A small HTTP/1.1 server for GET, HEAD and OPTIONS. It has one thread and one selector, and everything is bounded.

The loop shares its time. A turn ends after about 10 ms: 6 for clients whose sockets are ready, 2 for expired times and
new events, 2 for newcomers. The client that was served longest ago comes first. A client with many requests at once
gets 2 ms of a turn. Clients without a turn need no queue: the next select() reports their sockets again.
"""

import contextlib
import errno
import logging
import math
import selectors
import socket
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from operator import attrgetter

from ...log import EventLogger, LogThrottle
from .connections import Client, Connections, Rule, State
from .message import BadRequest, Request, Response, error_response, take_head
from .meter import Meter
from .responder import Encoded, Responder

_RECV_BYTES = 16 << 10
_MAX_BUFFERS = 1024  # one sendmsg() takes no more: IOV_MAX of Linux
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_LATE = error_response(408, "the request was not complete in time")
_FULL = error_response(503, "too many connections", ("Retry-After", "1"))
_SUBSCRIBERS_FULL = error_response(503, "too many subscribers", ("Retry-After", "1"))
_IDLE, _CLOSED = State.IDLE, State.CLOSED  # Enum look-ups are slow before Python 3.12
_ASKING = (State.IDLE, State.READING, State.NEW)
_SUBSCRIBERS = (State.SUBSCRIBED, State.PUSHING)

_log = EventLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of time and memory. Each is for one connection unless its comment says otherwise."""

    turn_s: float = 0.006  # for serving all clients that ask, in one turn of the loop
    share_s: float = 0.002  # for one client in one turn; also for all subscribers, and for all new connections
    idle_s: float = 30.0  # without a request, since the connection began or since its last answer
    request_s: float = 10.0  # from the first byte of a request to its last
    # For a client to take all answers that it asked for at once. A subscriber must also acknowledge its bytes within
    # this time: the kernel buffers small events even for a host that has vanished.
    write_s: float = 30.0
    stalled_s: float = 2.0  # a client that takes no bytes for this time gives way when a newcomer needs its place
    push_every_s: float = 0.05  # between two looks for new events, for all subscribers
    send_buffer_bytes: int = 128 << 10  # in the kernel, for bytes that a client has not taken; the kernel doubles it
    push_buffer_bytes: int = 64 << 10  # the same for a subscriber
    unsent_bytes: int = 128 << 10  # answers queued for a client before its next request is looked at
    closing_s: float = 2.0  # for a client to close its side after its last answer
    closing_connections: int = 128  # in the whole server; beyond this number, the oldest of them is closed at once
    drain_s: float = 0.5  # for all last answers after stop(); clients of a stored listening socket wait this long


class HttpServer:
    """Serves the handler's answers to the clients of a listening socket, which it owns, until stopped.

    Half of max_connections may subscribe to events. When all places are taken, a new connection gets the place of the
    connection that has waited longest for a request or for the rest of one. If there is none, it gets the place of a
    connection that has taken no bytes for a while. Otherwise it gets 503.
    """

    def __init__(
        self,
        listener: socket.socket,
        handler: Callable[[Request], Response],
        *,
        max_connections: int,
        cache_version: Callable[[], Hashable] = lambda: None,
        limits: Limits = Limits(),
        meter: Meter | None = None,
        steady_s: Callable[[], float] = time.monotonic,
        on_alive: Callable[[], object] = lambda: None,
        alive_every_s: float = math.inf,
    ) -> None:
        """Watch the listener, but serve nothing yet.

        Everybody waits while serve() calls `handler` for a request, and `cache_version` in each turn: answers are
        cached while it stays equal. `on_alive` is called every alive_every_s, to feed a watchdog.
        """
        self.address: tuple[str, int] = listener.getsockname()[:2]
        self._listener = listener
        self._max_connections = max_connections
        self._limits = limits
        self._meter = meter or Meter()
        self._steady_s = steady_s
        self._on_alive = on_alive
        self._alive_every_s = alive_every_s
        self._throttle = LogThrottle(_log, steady_s, first_wait_s=10.0)
        self._responder = Responder(handler, cache_version, self._meter.route_of, self._throttle)
        self._turn = 0
        self._now_s = steady_s()  # when this turn began; all times are of the same clock
        self._due_s = self._now_s  # when the next turn begins even if no socket is ready
        self._alive_due_s = self._now_s if alive_every_s < math.inf else math.inf  # when on_alive is called next
        self._share_s = limits.share_s  # for one client in this turn
        self._is_draining = False  # after stop(), the last answer to each client closes its connection
        read, write, close = selectors.EVENT_READ, selectors.EVENT_WRITE, self._close
        s = State
        any_but_new, subscribed = frozenset(State) - {s.NEW}, frozenset({*_SUBSCRIBERS, s.CLOSED})
        # The table of states. A connection changes its state only as the last column allows.
        self._rules = {
            # state: event to wait for, action then, time limit, action then, states that may follow
            s.NEW: Rule(read, self._read, limits.idle_s, close, any_but_new),
            s.IDLE: Rule(read, self._read, limits.idle_s, close, any_but_new),
            s.READING: Rule(read, self._read, limits.request_s, self._refuse_and_close, any_but_new - {s.READING}),
            s.WRITING: Rule(write, self._answer, limits.write_s, close, any_but_new),
            s.SUBSCRIBED: Rule(read, self._read, limits.push_every_s, self._push, subscribed),
            s.PUSHING: Rule(write, self._send_events, limits.write_s, close, subscribed),
            s.CLOSING: Rule(read, self._read, limits.closing_s, close, frozenset({s.CLOSED})),
            s.CLOSED: Rule(0, close, math.inf, close, frozenset()),
        }

        self._stop_receiver, self._stop_sender = socket.socketpair()  # stop() writes to one, the loop watches the other
        self._stop_sender.setblocking(False)
        listener.setblocking(False)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, limits.send_buffer_bytes)  # its connections inherit it
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._stop_receiver, read)
        self._selector.register(listener, read)
        self._connections = Connections(self._selector, self._rules)
        self._meter.connections = lambda: self._connections.count(*_ASKING, State.WRITING, *_SUBSCRIBERS)
        self._meter.subscribers = lambda: self._connections.count(*_SUBSCRIBERS)

    def serve(self) -> None:
        """Serve until stop() is called; then answer pending requests, within drain_s, and close everything."""
        try:
            while self._run_once(math.inf):
                pass
            self._begin_draining()
            end_s = self._now_s + self._limits.drain_s
            while self._now_s < end_s and self._connections.count(*State):
                self._run_once(end_s)
        finally:
            for client in self._connections.of(*State):
                self._close(client)
            for resource in (self._selector, self._listener, self._stop_receiver, self._stop_sender):
                resource.close()

    def _begin_draining(self) -> None:
        """Accept nobody, give everybody the last answer, and close connections that ask nothing within drain_s."""
        self._is_draining, self._due_s = True, self._now_s
        self._selector.unregister(self._stop_receiver)
        self._selector.unregister(self._listener)
        self._listener.close()
        for client in self._connections.of(*_SUBSCRIBERS):
            self._close(client)
        for state in _ASKING:
            self._rules[state].limit_s = min(self._rules[state].limit_s, self._limits.drain_s)

    def stop(self) -> None:
        """Make serve() return, even if it is called later. Never blocks or raises. For any thread or signal handler."""
        with contextlib.suppress(OSError):  # stop() was called often, or serve() has returned and closed it
            self._stop_sender.send(b"\0")

    def _run_once(self, until_s: float) -> bool:
        """Wait until something is due, at most until until_s, and run one turn. False once stop() was called."""
        self._turn += 1
        due_s = min(self._due_s, until_s)
        ready = self._selector.select(None if due_s == math.inf else max(0.0, due_s - self._now_s))
        self._now_s = self._steady_s()
        self._responder.refresh()
        self._serve([key.data for key, _ in ready if key.data is not None])
        others = [key.fileobj for key, _ in ready if key.data is None]
        if self._listener in others:  # after the clients: a request that has come must not cost its client its place
            until_s = self._steady_s() + self._limits.share_s
            while self._accept() and self._steady_s() < until_s:
                pass
        self._due_s = self._expire()
        return self._stop_receiver not in others

    def _serve(self, ready: list[Client]) -> None:
        """Serve clients whose sockets are ready, until the time is over. The others wait for the next turn."""
        until_s = self._now_s + self._limits.turn_s
        # With more than three clients the share is shorter, so that all of them are soon served.
        self._share_s = min(self._limits.share_s, self._limits.turn_s / (len(ready) or 1))
        queue = iter(sorted(ready, key=attrgetter("served")))
        for client in queue:
            self._act(client, self._rules[client.state].on_ready)
            if self._steady_s() >= until_s:
                break
        self._meter.measure(self._steady_s() - self._now_s)
        for client in queue:
            if client.state in (State.NEW, _IDLE):  # bytes have come, so the client does not count as idle any more
                self._connections.enter(client, State.READING, self._now_s)

    def _act(self, client: Client, action: Callable[..., None], *arguments: Response) -> None:
        """Serve a client. A fault of its socket, or of our code, ends this client only."""
        if client.state is _CLOSED:  # in this turn, to make room for another client
            return
        client.served = self._turn
        try:
            action(client, *arguments)
            return
        except OSError:  # connection reset, broken pipe, timed out: the client is gone
            pass
        except Exception as error:  # noqa: BLE001 - a fault with one client must not end the others
            facts = {"state": client.state.name.lower(), "next": "this connection is closed"}
            self._throttle.warn("connection failed", type(error).__name__, logging.ERROR, exc_info=True, **facts)
        if client.state is not _CLOSED:
            self._close(client)

    def _expire(self) -> float:
        """Do what is due by the clock, for one client's share of time; return when something is due again."""
        until_s = self._steady_s() + self._limits.share_s
        if self._alive_due_s <= self._now_s:
            self._alive_due_s = self._now_s + self._alive_every_s
            self._on_alive()
        due_s = self._alive_due_s
        for state, rule in self._rules.items():
            while client := self._connections.first(state):
                client_due_s = client.since_s + rule.limit_s
                if client_due_s > self._now_s or self._steady_s() >= until_s:
                    due_s = min(due_s, client_due_s)
                    break
                self._act(client, rule.on_expiry)
        return due_s

    def _accept(self) -> bool:
        """Accept one connection, in place of another if all places are taken. False if no more can be accepted now."""
        is_full = self._meter.connections() >= self._max_connections
        dispensable = self._most_dispensable() if is_full else None
        if is_full and not dispensable and self._connections.count(*_ASKING):
            return False  # in the next turn one of these is dispensable
        try:
            client = self._connections.accept(self._listener, self._now_s, self._turn)
        except OSError as error:
            if error.errno not in _EXHAUSTED:  # nobody waits, or the client has gone: man accept(2), "Error handling"
                return False
            dispensable = self._most_dispensable()
            if dispensable:
                self._act(dispensable, self._close)
            else:
                self._throttle.warn("accept paused", str(error.strerror), next="new connections wait")
                # The selector reports the listener again at once. Without this pause, the loop would use all CPU time.
                time.sleep(0.02)
            return dispensable is not None
        if dispensable:
            self._act(dispensable, self._close)
        elif is_full:
            self._throttle.warn("full", connections=self._max_connections, next="new connections get 503")
            self._act(client, self._refuse_and_close, _FULL)
        else:
            self._throttle.resolve("full", "accept paused", log_as="accepting again")
        return True

    def _most_dispensable(self) -> Client | None:
        """Return the connection that is closed first to make room; None if all are being answered.

        A connection that came or was served in this turn is spared: its next request may have come meanwhile.
        """
        # An incomplete request counts like none: many of them must not displace clients that were served recently.
        waiting = filter(None, map(self._connections.first, _ASKING))
        longest = min(waiting, key=attrgetter("since_s"), default=None)
        if longest and longest.since_s < self._now_s:
            return longest
        writing = self._connections.of(State.WRITING, State.PUSHING)
        return next((client for client in writing if client.took_s <= self._now_s - self._limits.stalled_s), None)

    def _close(self, client: Client) -> None:
        self._connections.enter(client, _CLOSED, self._now_s)

    def _read(self, client: Client) -> None:
        received = client.sock.recv(_RECV_BYTES)
        if not received:
            self._close(client)
        elif not client.closes:  # no further requests of a subscriber, or of a closing connection, are answered
            client.unanswered += received
            encoded = None if self._is_draining else self._responder.cache.get(client.unanswered)
            if encoded is None:
                self._answer(client)
            else:  # the bytes are exactly one request that was asked before, as most are
                client.unanswered, client.checked = b"", 0
                self._queue(client, encoded)
                self._flush_then(client, _IDLE)

    def _answer(self, client: Client) -> None:
        """Send the unsent bytes, then answer requests for one client's share of the turn."""
        if not self._send(client):
            return
        until_s, unsent_bytes = self._steady_s() + self._share_s, 0
        while client.unanswered and not client.closes:
            encoded = self._next_answer(client)
            if encoded is None:
                break
            self._queue(client, encoded)
            unsent_bytes += sum(map(len, encoded.buffers))
            if unsent_bytes > self._limits.unsent_bytes or self._steady_s() >= until_s:
                break
        if client.events is not None:
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._limits.push_buffer_bytes)
            client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(self._limits.write_s * 1000))
            self._push(client)
        elif b"\r\n".startswith(client.unanswered):  # an empty line does not begin a request
            self._flush_then(client, _IDLE)
        elif client.unsent or client.closes:  # the rest may hold complete requests, for the next turn
            self._flush_then(client, State.WRITING)
        elif client.state is not State.READING:  # the time of a request runs from its first byte
            self._connections.enter(client, State.READING, self._now_s)

    def _next_answer(self, client: Client) -> Encoded | None:
        """Answer the first unanswered request; None if it is not complete yet."""
        beginning = client.unanswered
        try:
            taken = take_head(beginning, client.checked)
            if taken is None:
                client.checked = len(beginning)
                return None
            head, client.unanswered = taken
            client.checked = 0
            encoded = self._responder.answer(head, closes=self._is_draining and not client.unanswered)
        except BadRequest as error:
            return self._responder.refuse(beginning, error_response(*error.args))
        if encoded.events is not None and self._meter.subscribers() >= self._max_connections // 2:
            self._throttle.warn("subscribers full", next="new subscribers get 503")
            return self._responder.refuse(beginning, _SUBSCRIBERS_FULL)
        return encoded

    def _queue(self, client: Client, encoded: Encoded) -> None:
        client.unsent += encoded.buffers
        client.closes, client.events = encoded.closes, encoded.events
        self._meter.count(encoded.route, encoded.status)

    def _push(self, client: Client) -> None:
        """Send new events, if there are any, to a subscriber that has taken all others."""
        assert client.events is not None
        try:
            client.unsent += next(client.events)
        except OSError as error:  # it would pass for a fault of the socket
            raise RuntimeError("the events failed") from error
        self._send_events(client)

    def _send_events(self, client: Client) -> None:
        # Their due times draw together, so that all subscribers cost one turn of the loop and not one each.
        since_s = self._now_s - self._now_s % self._limits.push_every_s / 2
        self._connections.enter(client, State.SUBSCRIBED if self._send(client) else State.PUSHING, since_s)

    def _refuse_and_close(self, client: Client, response: Response = _LATE) -> None:
        self._queue(client, self._responder.refuse(client.unanswered, response))
        self._flush_then(client, State.CLOSING)

    def _flush_then(self, client: Client, state: State) -> None:
        """Send, then enter the state. Enter WRITING if bytes are left, or CLOSING if this was the last answer."""
        if not self._send(client):
            state = State.WRITING
        elif client.closes:
            # close() with unread input would send a reset, which can destroy the answer before the client has read it.
            # Say that no more will come, and read on for a while (RFC 9112 section 9.6).
            client.sock.shutdown(socket.SHUT_WR)
            state = State.CLOSING
            oldest = self._connections.first(state)
            if oldest and self._connections.count(state) >= self._limits.closing_connections:
                self._close(oldest)
        self._connections.enter(client, state, self._now_s)

    def _send(self, client: Client) -> bool:
        """Give the kernel as much as it takes in one write; True if nothing is left."""
        unsent = client.unsent
        if not unsent:
            return True
        try:
            sent = client.sock.send(unsent[0]) if len(unsent) == 1 else client.sock.sendmsg(unsent[:_MAX_BUFFERS])
        except BlockingIOError:
            return False
        client.took_s = self._now_s
        while unsent and sent >= len(unsent[0]):
            sent -= len(unsent.pop(0))
        if sent:
            unsent[0] = memoryview(unsent[0])[sent:]
        return not unsent
