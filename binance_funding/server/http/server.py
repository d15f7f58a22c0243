"""A small HTTP/1.1 server for GET, HEAD and OPTIONS. It has one thread and one selector, and everything is bounded.

A handler turns a Request into a Response; the server does not know the content. Answers are cached as long as the
caller's version stays equal, so most requests cost one recv, one dict look-up and one send.

The loop shares its time. A turn ends after about 10 ms: 6 for clients that ask, 2 for subscribers, 2 for newcomers. The
client that was served longest ago comes first. A client with many requests at once gets 2 ms of a turn. Clients without
a turn need no queue: the next select() reports their sockets again.
"""

import contextlib
import logging
import math
import selectors
import socket
import struct
import time
from collections.abc import Callable, Hashable
from operator import attrgetter

from ...log import EventLogger, LogThrottle
from .connections import Client, Connections, Rule, State
from .limits import Limits
from .listener import accept
from .message import Request, Response, error_response
from .meter import Meter
from .responder import FULL, Responder

_RECV_BYTES = 16 << 10
_MAX_BUFFERS = 1024  # one sendmsg() takes no more: IOV_MAX of Linux
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # struct linger
_LATE = error_response(408, "the request was not complete in time")
_SUBSCRIBERS = (State.SUBSCRIBED, State.PUSHING)
_IDLE, _PUSHING, _CLOSED = State.IDLE, State.PUSHING, State.CLOSED  # Enum look-ups are slow before Python 3.12
_SERVED = (State.NEW, State.IDLE, State.READING, State.WRITING, *_SUBSCRIBERS)

_log = EventLogger(__name__)


class HttpServer:
    """Serves the handler's answers to the clients of a listening socket, which it owns, until stopped.

    Half of max_connections may subscribe to events. When all places are taken, a new connection gets the place of the
    connection that has been idle for longest. If none is idle, it gets the place of one that has not taken any bytes
    for a while, or else of the one whose request has been incomplete for longest. Otherwise it gets 503.
    """

    def __init__(
        self,
        listener: socket.socket,
        handler: Callable[[Request], Response],
        *,
        max_connections: int,
        cache_version: Callable[[], Hashable] = lambda: None,
        limits: Limits = Limits(),  # noqa: B008 - frozen
        meter: Meter | None = None,
        steady_s: Callable[[], float] = time.monotonic,
        wall_s: Callable[[], float] = time.time,
        on_alive: Callable[[], object] = lambda: None,
        alive_every_s: float = math.inf,
    ) -> None:
        """Watch the listener, but serve nothing yet.

        serve() calls `handler` for GET and HEAD, and `cache_version` in each turn; everybody waits for them. It calls
        `on_alive` every alive_every_s, whether requests come or not, to feed a watchdog.
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
        self._responder = Responder(
            handler,
            cache_version,
            max_subscribers=max_connections // 2,
            limits=limits,
            throttle=self._throttle,
            meter=self._meter,
            steady_s=steady_s,
            wall_s=wall_s,
        )

        # When this turn began. All times are of the same clock.
        self._now_s = steady_s()
        # When the next turn begins even if no socket is ready.
        self._due_s = self._now_s
        # Time for one client in this turn.
        self._share_s = limits.share_s
        # When accepting goes on after the host had no files left; infinite while it goes on.
        self._accept_due_s = math.inf
        # When on_alive is called next.
        self._alive_due_s = self._now_s if alive_every_s < math.inf else math.inf
        # When the server next looks for events for all subscribers.
        self._push_due_s = self._now_s
        # The subscribers that still wait for their turn in the present look for events.
        self._unpushed: list[Client] = []
        # Number of this turn.
        self._turn = 0

        read, write, close = selectors.EVENT_READ, selectors.EVENT_WRITE, self._close
        s = State
        any_but_new = frozenset(State) - {s.NEW}
        # The table of states. A connection changes its state only as the last column allows.
        self._rules = {
            # state: event to wait for, action then, time limit, action then, states that may follow
            s.NEW: Rule(read, self._read, limits.idle_s, close, any_but_new),
            s.IDLE: Rule(read, self._read, limits.idle_s, close, any_but_new),
            s.READING: Rule(read, self._read, limits.request_s, self._refuse_and_close, any_but_new - {s.READING}),
            s.WRITING: Rule(write, self._answer, limits.write_s, self._reset, any_but_new),
            s.SUBSCRIBED: Rule(read, self._read, math.inf, close, frozenset({s.PUSHING, s.CLOSED})),
            s.PUSHING: Rule(write, self._push, limits.write_s, self._reset, frozenset({*_SUBSCRIBERS, s.CLOSED})),
            s.CLOSING: Rule(read, self._read, limits.closing_s, close, frozenset({s.CLOSED})),
            s.CLOSED: Rule(0, close, math.inf, close, frozenset()),
        }

        # stop() writes to one end and the loop watches the other.
        self._stop_receiver, self._stop_sender = socket.socketpair()
        self._stop_sender.setblocking(False)
        listener.setblocking(False)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, limits.send_buffer_bytes)  # its connections inherit it
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._stop_receiver, read)
        self._selector.register(listener, read)
        self._connections = Connections(self._selector, self._rules)
        self._meter.connections = lambda: self._connections.count(*_SERVED)
        self._meter.subscribers = lambda: self._connections.count(*_SUBSCRIBERS)

    def serve(self) -> None:
        """Serve until stop() is called; then answer pending requests, within drain_s, and close everything."""
        try:
            while self._run_once(math.inf):
                pass
            self._drain()
        finally:
            for client in self._connections.of(*State):
                self._close(client)
            for resource in (self._selector, self._listener, self._stop_receiver, self._stop_sender):
                resource.close()

    def stop(self) -> None:
        """Make serve() return, called already or not. Never blocks or raises; safe in any thread and signal handler."""
        with contextlib.suppress(OSError):  # full of earlier calls, or closed because serve() has returned
            self._stop_sender.send(b"\0")

    def _run_once(self, until_s: float) -> bool:
        """Wait until something is due, at most until until_s, and run one turn. False once stop() was called."""
        due_s = min(self._due_s, until_s)
        ready = self._selector.select(None if due_s == math.inf else max(0.0, due_s - self._now_s))
        self._now_s = self._steady_s()
        self._turn += 1
        self._responder.refresh()
        clients = [key.data for key, _ in ready if key.data is not None]
        self._serve([client for client in clients if client.state is not _PUSHING])
        self._serve_subscribers([client for client in clients if client.state is _PUSHING])
        others = [key.fileobj for key, _ in ready if key.data is None]
        if self._listener in others:  # after the clients: a request that has come must not cost its client its place
            until_s = self._steady_s() + self._limits.share_s
            while self._accept() and self._steady_s() < until_s:
                pass
        self._due_s = self._expire()
        return self._stop_receiver not in others

    def _serve(self, ready: list[Client]) -> None:
        """Serve clients that ask, until the time is over. The others wait, and do not count as idle any more."""
        queue = iter(sorted(ready, key=attrgetter("served")))
        until_s = self._now_s + self._limits.turn_s
        self._share_s = min(self._limits.share_s, self._limits.turn_s / (len(ready) or 1))
        for client in queue:
            noticed_s = client.noticed_s
            if noticed_s is None:
                self._act(client, self._rules[client.state].on_ready)
            else:
                self._meter.measure(self._steady_s() - self._now_s)  # of requests that did not wait
                client.noticed_s = None
                self._act(client, self._rules[client.state].on_ready)
                self._meter.measure(self._steady_s() - noticed_s)
            if self._steady_s() >= until_s:
                break
        self._meter.measure(self._steady_s() - self._now_s)
        for client in queue:
            client.noticed_s = self._now_s if client.noticed_s is None else client.noticed_s
            if client.state in (State.NEW, State.IDLE):
                self._enter(client, State.READING)

    def _serve_subscribers(self, writable: list[Client]) -> None:
        """Push events to subscribers that can take more. Now and then, look for new events for all others."""
        if self._push_due_s <= self._now_s and not self._unpushed:
            self._push_due_s = self._now_s + self._limits.push_every_s
            self._unpushed = self._connections.of(State.SUBSCRIBED)
        until_s = self._steady_s() + self._limits.share_s
        queue = sorted({*self._unpushed, *writable}, key=attrgetter("served"), reverse=True)
        while queue:
            client = queue.pop()
            if client.state in _SUBSCRIBERS:
                self._act(client, self._push)
            if self._steady_s() >= until_s:
                break
        self._unpushed = queue

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
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not end the other clients
            facts = {"state": client.state.name.lower(), "next": "this connection is closed"}
            self._throttle.warn("connection failed", type(error).__name__, logging.ERROR, exc_info=True, **facts)
        if client.state is not _CLOSED:
            self._close(client)

    def _expire(self) -> float:
        """Do what is due by the clock; return when something is due again."""
        dues_s = [math.inf]
        for state, rule in self._rules.items():
            while client := self._connections.first(state):
                if client.since_s + rule.limit_s > self._now_s:
                    dues_s.append(client.since_s + rule.limit_s)
                    break
                self._act(client, rule.on_expiry)
        if self._accept_due_s <= self._now_s:
            self._accept_due_s = math.inf
            self._selector.register(self._listener, selectors.EVENT_READ)
        if self._alive_due_s <= self._now_s:
            self._alive_due_s = self._now_s + self._alive_every_s
            self._on_alive()
        if self._connections.count(State.SUBSCRIBED):
            dues_s.append(self._now_s if self._unpushed else self._push_due_s)
        return min(*dues_s, self._accept_due_s, self._alive_due_s)

    def _drain(self) -> None:
        """Accept nobody, give everybody the last answer, and close connections that ask nothing within drain_s."""
        self._selector.unregister(self._stop_receiver)
        if self._accept_due_s == math.inf:
            self._selector.unregister(self._listener)
        self._listener.close()
        self._responder.drain()
        for client in self._connections.of(*_SUBSCRIBERS):
            self._close(client)
        for state in (State.NEW, State.IDLE, State.READING):
            self._rules[state].limit_s = min(self._rules[state].limit_s, self._limits.drain_s)
        self._accept_due_s, self._due_s, end_s = math.inf, self._now_s, self._now_s + self._limits.drain_s
        while self._now_s < end_s and self._connections.count(*State):
            self._run_once(end_s)

    def _accept(self) -> bool:
        """Accept one connection, in place of another if all places are taken. False if no more can be accepted now."""
        is_full = self._connections.count(*_SERVED) >= self._max_connections
        dispensable = self._most_dispensable() if is_full else None
        if is_full and not dispensable and self._connections.count(State.NEW, State.IDLE, State.READING):
            return False  # in the next turn one of these is dispensable
        try:
            sock = accept(self._listener)
            if sock is None:
                return False
            if dispensable:
                self._act(dispensable, self._reset)
            client = self._connections.add(sock, self._now_s, self._turn)
        except OSError as error:
            dispensable = self._most_dispensable()
            if dispensable:
                self._act(dispensable, self._reset)
                return True
            self._throttle.warn("accept paused", str(error.strerror), retry_in_s=self._limits.accept_pause_s)
            self._selector.unregister(self._listener)  # it stays ready, so the loop would not sleep
            self._accept_due_s = self._now_s + self._limits.accept_pause_s
            return False
        if is_full and not dispensable:
            self._throttle.warn("full", connections=self._max_connections, next="new connections get 503")
            self._act(client, self._refuse_and_close, FULL)
        elif not is_full:
            self._throttle.resolve("full", "accept paused", log_as="accepting again")
        return True

    def _most_dispensable(self) -> Client | None:
        """Return the connection that is closed first to make room; None if all are being answered.

        A connection that came or was served in this turn is spared: its next request may have come meanwhile.
        """
        idle, reading, new = map(self._connections.first, (State.IDLE, State.READING, State.NEW))
        if idle and idle.since_s < self._now_s:
            return idle
        for client in self._connections.of(State.WRITING, State.PUSHING):
            if client.took_s <= self._now_s - self._limits.stalled_s:
                return client
        # The first request of a connection counts as incomplete: a crowd must not displace a client about to ask.
        oldest = min(filter(None, (reading, new)), key=attrgetter("since_s"), default=None)
        return oldest if oldest and oldest.since_s < self._now_s else None

    def _enter(self, client: Client, state: State) -> None:
        self._connections.enter(client, state, self._now_s)

    def _close(self, client: Client) -> None:
        self._enter(client, State.CLOSED)

    def _reset(self, client: Client) -> None:
        """Close the connection. With bytes unsent, send a reset, so that the kernel does not keep them."""
        if client.unsent:
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._close(client)

    def _read(self, client: Client) -> None:
        received = client.sock.recv(_RECV_BYTES)
        if not received:
            self._close(client)
            return
        if client.closes:  # a subscriber, or closing: further requests are not answered
            return
        client.unanswered += received
        encoded = self._responder.cached(client.unanswered)
        if encoded is None:
            self._answer(client)
        else:  # the bytes are exactly one request that was asked before, as most are
            client.unanswered, client.checked = b"", 0
            client.unsent += encoded.buffers
            client.closes = encoded.closes
            self._flush_then(client, _IDLE)

    def _answer(self, client: Client) -> None:
        """Send the unsent bytes, then answer requests for one client's share of the turn."""
        if not self._send(client):
            return
        if not client.closes:
            self._responder.answer(client, self._steady_s() + self._share_s)
            if client.events is not None:
                client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._limits.push_buffer_bytes)
                client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(self._limits.write_s * 1000))
                self._push(client)
                return
        if b"\r\n".startswith(client.unanswered):  # an empty line does not begin a request
            self._flush_then(client, State.IDLE)
        elif client.unsent or client.closes:  # the rest may hold complete requests, for the next turn
            self._flush_then(client, State.WRITING)
        elif client.state is not State.READING:  # the time of a request runs from its first byte
            self._enter(client, State.READING)

    def _push(self, client: Client) -> None:
        """Send the unsent events. If the subscriber has taken them all, send further ones."""
        if self._send(client):
            client.unsent += self._next_events(client)
        if not self._send(client):
            self._enter(client, State.PUSHING)
        elif client.state is not State.SUBSCRIBED:
            self._enter(client, State.SUBSCRIBED)

    def _next_events(self, client: Client) -> list[bytes]:
        assert client.events is not None
        try:
            return next(client.events)
        except OSError as error:
            raise RuntimeError("the events failed") from error  # an OSError would pass for one of the socket

    def _refuse_and_close(self, client: Client, response: Response = _LATE) -> None:
        self._responder.refuse(client, response)
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
