"""A small HTTP/1.1 server for GET, HEAD and OPTIONS: one thread, one selector, everything bounded.

It knows nothing of what it serves: a handler turns a Request into a Response. Answers are cached while the caller's
version stays equal, so that most requests cost one recv, one dict look-up and one send.
"""

import contextlib
import math
import selectors
import socket
import struct
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import KW_ONLY, dataclass, field

from ...log import EventLogger, LogThrottle
from .limits import Limits
from .listener import accept
from .message import Request, Response, error_response
from .meter import Meter
from .responder import FULL, Responder

_RECV_BYTES = 16 << 10
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # struct linger
_LATE = error_response(408, "the request was not complete in time")
_MOST_BUFFERS = 1024  # of one sendmsg: IOV_MAX of Linux
_NO_EVENTS: Iterator[list[bytes]] = iter(())

_log = EventLogger(__name__)


@dataclass(eq=False, slots=True)
class _State:
    """A row of the table. Its clients are in the order in which they entered it and run out of time."""

    events: int
    on_ready: Callable[["_Client"], None]
    limit_s: float
    on_expiry: Callable[["_Client"], None]
    clients: OrderedDict["_Client", None] = field(default_factory=OrderedDict)


@dataclass(eq=False, slots=True)
class _Client:
    sock: socket.socket
    state: _State
    since_s: float
    unanswered: bytes = b""
    unsent: list[bytes | memoryview] = field(default_factory=list)
    closes: bool = False  # when all is sent
    events: Iterator[list[bytes]] = _NO_EVENTS  # what is sent to a subscriber, in place of further answers


@dataclass(eq=False, repr=False)
class HttpServer:
    """Serves what handler answers to the connections of a listening socket, which it owns, until stopped.

    With max_connections the one idle longest gives way to a new one; where none is idle, the one whose request has been
    incomplete for longest; where all are being answered, the new one gets 503. Half of them may subscribe to events.
    """

    listener: socket.socket
    handler: Callable[[Request], Response]  # called by serve() for GET and HEAD: everybody waits while it runs
    _: KW_ONLY
    max_connections: int
    cache_version: Callable[[], Hashable] = lambda: None  # called after each wake-up, before requests are answered
    limits: Limits = field(default_factory=Limits)
    meter: Meter = field(default_factory=Meter)
    steady_s: Callable[[], float] = time.monotonic
    wall_s: Callable[[], float] = time.time
    on_alive: Callable[[], object] = lambda: None  # called every alive_every_s, requests or not: for a watchdog
    alive_every_s: float | None = None

    def __post_init__(self) -> None:
        self.address: tuple[str, int] = self.listener.getsockname()[:2]
        self.listener.setblocking(False)
        self._throttle = LogThrottle(_log, self.steady_s, first_wait_s=10.0)
        of_caller = self.handler, self.cache_version, self.max_connections // 2, self.wall_s, self.limits
        self._responder = Responder(*of_caller, self._throttle, self.meter)
        self._now_s = self._due_s = self.steady_s()
        self._accept_due_s = math.inf
        self._alive_due_s = math.inf if self.alive_every_s is None else self._now_s

        # What a client waits for, what is done then; how long it may, what is done else; and the states that follow.
        # From everywhere a fault of its socket leads to closed.
        limits, read, write = self.limits, selectors.EVENT_READ, selectors.EVENT_WRITE
        self._new = _State(read, self._read, limits.idle_s, self._close)  # all but subscribed: pushing comes first
        self._idle = _State(read, self._read, limits.idle_s, self._close)  # idle, reading, writing, pushing, closing
        self._reading = _State(read, self._read, limits.request_s, self._refuse_and_close)  # the same
        self._writing = _State(write, self._answer, limits.write_s, self._reset)  # the same
        self._pushing = _State(write, self._push, limits.write_s, self._reset)  # pushing, subscribed
        self._subscribed = _State(read, self._read, math.inf, self._close)  # pushing, subscribed
        self._closing = _State(read, self._read, limits.closing_s, self._close)  # closed
        self._closed = _State(0, self._close, math.inf, self._close)  # none: what still comes changes nothing
        self._subscribers = (self._pushing, self._subscribed)
        self._open_states = (self._new, self._idle, self._reading, self._writing, *self._subscribers, self._closing)
        self.meter.connections = lambda: sum(len(state.clients) for state in self._open_states[:-1])
        self.meter.subscribers = lambda: sum(len(state.clients) for state in self._subscribers)
        self._push_due_s = self._now_s
        self._to_look_at: list[_Client] = []

        self._stop_receiver, self._stop_sender = socket.socketpair()
        self._stop_sender.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._stop_receiver, read)
        self._selector.register(self.listener, read)

    def serve(self) -> None:
        """Serve until stop() is called; then answer what was asked, within drain_s, and close everything."""
        try:
            while self._run_once(math.inf):
                pass
            self._drain()
        finally:
            for client in [client for state in self._open_states for client in state.clients]:
                self._close(client)
            for resource in (self._selector, self.listener, self._stop_receiver, self._stop_sender):
                resource.close()

    def stop(self) -> None:
        """Make serve() return, called already or not. Never blocks or raises; safe in any thread and signal handler."""
        with contextlib.suppress(OSError):  # full: it was called often enough; closed: serve() has returned
            self._stop_sender.send(b"\0")

    def _run_once(self, until_s: float) -> bool:
        """Wait until something is due, at most until until_s, and do it. False once stop() was called."""
        due_s = min(self._due_s, until_s)
        ready = self._selector.select(None if due_s == math.inf else max(0.0, due_s - self._now_s))
        self._now_s = self.steady_s()
        self._responder.refresh()
        pushes = self.limits.pushes_per_turn
        for client in [key.data for key, _ in ready if key.data is not None]:
            pushes -= client.state is self._pushing
            if pushes >= 0 or client.state is not self._pushing:  # the others come round at once
                self._act(client.state.on_ready, client)
        self._look_for_events(pushes)
        others = [key.fileobj for key, _ in ready if key.data is None]
        if self.listener in others:  # after the clients, so that nobody whose request has come is taken for idle
            self._accept()
        self._due_s = self._expire()
        self.meter.end_turn(self.steady_s() - self._now_s)
        return self._stop_receiver not in others

    def _look_for_events(self, pushes: int) -> None:
        """Every now and then look what there is for each subscriber, and send it; at most to so many in one turn."""
        if self._push_due_s <= self._now_s and not self._to_look_at:
            self._push_due_s = self._now_s + self.limits.push_every_s
            self._to_look_at = list(self._subscribed.clients)
        while self._to_look_at and pushes > 0:
            client = self._to_look_at.pop()
            if client.state is self._subscribed and (events := next(client.events)):
                client.unsent += events
                pushes -= 1
                self._act(self._push, client)

    def _act(self, action: Callable[..., None], client: _Client, *args: Response) -> None:
        try:
            action(client, *args)
        except OSError:  # reset, broken pipe, timed out: the client is gone
            self._close(client)

    def _expire(self) -> float:
        """End the waits that are over; return when the next one will be."""
        dues_s = [math.inf]
        for state in self._open_states:
            while state.clients:
                client = next(iter(state.clients))
                if client.since_s + state.limit_s > self._now_s:
                    dues_s.append(client.since_s + state.limit_s)
                    break
                self._act(state.on_expiry, client)
        if self._accept_due_s <= self._now_s:
            self._accept_due_s = math.inf
            self._selector.register(self.listener, selectors.EVENT_READ)
        if self.alive_every_s is not None and self._alive_due_s <= self._now_s:
            self._alive_due_s = self._now_s + self.alive_every_s
            self.on_alive()
        push_due_s = self._now_s if self._to_look_at else self._push_due_s if self._subscribed.clients else math.inf
        return min(*dues_s, push_due_s, self._accept_due_s, self._alive_due_s)

    def _drain(self) -> None:
        """Accept nobody more, give everybody the last answer, and close who has asked nothing for drain_s."""
        for sock in (self._stop_receiver, *([self.listener] if self._accept_due_s == math.inf else [])):
            self._selector.unregister(sock)
        self.listener.close()
        self._responder.drain()
        for client in [client for state in self._subscribers for client in state.clients]:
            self._close(client)
        for state in (self._new, self._idle, self._reading):
            state.limit_s = min(state.limit_s, self.limits.drain_s)
        self._accept_due_s, self._due_s, end_s = math.inf, self._now_s, self._now_s + self.limits.drain_s
        while self._now_s < end_s and any(state.clients for state in self._open_states):
            self._run_once(end_s)

    def _accept(self) -> None:
        for number in range(self.limits.per_turn):
            is_full = self.meter.connections() >= self.max_connections
            if is_full and number:
                return  # those accepted in this turn look as if they waited, as nothing was read from them yet
            try:
                sock = accept(self.listener)
            except OSError as error:
                if not self._make_room():
                    self._pause_accepting(error)
                return
            if sock is None:
                return
            is_refused = is_full and not self._make_room()
            client = _Client(sock, self._new, self._now_s)
            self._new.clients[client] = None
            self._selector.register(sock, self._new.events, client)
            if is_refused:
                self._throttle.warn("full", connections=self.max_connections, next="new connections get 503")
                self._act(self._refuse_and_close, client, FULL)
            elif not is_full:
                self._throttle.resolve("full", "accept paused", log_as="accepting again")

    def _pause_accepting(self, error: OSError) -> None:
        self._throttle.warn("accept paused", str(error.strerror), retry_in_s=self.limits.accept_pause_s)
        self._selector.unregister(self.listener)  # it stays readable: select would return at once, again and again
        self._accept_due_s = self._now_s + self.limits.accept_pause_s

    def _make_room(self) -> bool:
        """Close the connection idle longest, else the one with the oldest incomplete request; False if all are busy.

        The first request of a connection counts as incomplete: a crowd must not displace who is about to ask.
        """
        waiting = [next(iter(state.clients)) for state in (self._idle, self._reading, self._new) if state.clients]
        if waiting:
            self._close(waiting[0] if self._idle.clients else min(waiting, key=lambda client: client.since_s))
        return bool(waiting)

    def _enter(self, client: _Client, state: _State) -> None:
        """Change to a state, or begin the same one again. Closed is final."""
        before = client.state
        if before is self._closed:
            return
        del before.clients[client]
        client.state, client.since_s = state, self._now_s
        if state is self._closed:
            self._selector.unregister(client.sock)
            client.sock.close()
            return
        state.clients[client] = None
        if state.events != before.events:
            self._selector.modify(client.sock, state.events, client)

    def _close(self, client: _Client) -> None:
        self._enter(client, self._closed)

    def _reset(self, client: _Client) -> None:
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._close(client)

    def _read(self, client: _Client) -> None:
        received = client.sock.recv(_RECV_BYTES)
        if not received:
            self._close(client)
        if not received or client.closes:  # closing: what is still sent is dropped
            return
        client.unanswered += received
        encoded = self._responder.cached(client.unanswered)
        if encoded is None:
            self._answer(client)
        else:  # exactly one request, asked before: nearly all of them
            client.unanswered = b""
            client.unsent += encoded.buffers
            client.closes = encoded.closes
            self._flush_then(client, self._idle)

    def _answer(self, client: _Client) -> None:
        """Send what is left, then answer what was received and is due in this turn."""
        if not self._send(client):
            return
        if not client.closes:
            answers, client.unanswered = self._responder.answer(client.unanswered)
            client.unsent += answers.buffers
            client.closes = answers.closes
            if answers.events is not None:
                client.events, client.unanswered = answers.events, b""
                client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.limits.push_buffer_bytes)
                client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(self.limits.write_s * 1000))
                self._push(client)
                return
        if not client.unanswered:
            self._flush_then(client, self._idle)
        elif client.unsent or client.closes:  # what is left may be complete: a socket with room comes round at once
            self._flush_then(client, self._writing)
        elif client.state is not self._reading:  # else its time runs on from its first byte
            self._enter(client, self._reading)

    def _push(self, client: _Client) -> None:
        """Send what is left; then, to a client that took it all, what it lacks by now."""
        is_sent = self._send(client)
        if is_sent:
            client.unsent += next(client.events)
            is_sent = self._send(client)
        self._enter(client, self._subscribed if is_sent else self._pushing)

    def _refuse_and_close(self, client: _Client, response: Response = _LATE) -> None:
        client.unsent += self._responder.refuse(client.unanswered, response).buffers
        client.closes = True
        self._flush_then(client, self._closing)

    def _flush_then(self, client: _Client, state: _State) -> None:
        """Send, then enter state; or writing while something is left to send, or closing where that was all."""
        if not self._send(client):
            state = self._writing
        elif client.closes:
            # To close with unread input would send a reset, which can destroy the answer before the client has read it:
            # say that no more will come, and read on for a while (RFC 9112 section 9.6).
            client.sock.shutdown(socket.SHUT_WR)
            state = self._closing
            if len(state.clients) >= self.limits.closing_connections:
                self._close(next(iter(state.clients)))
        self._enter(client, state)

    def _send(self, client: _Client) -> bool:
        """Give the kernel as much as it takes, in one write; True when nothing is left."""
        unsent = client.unsent
        if not unsent:
            return True
        try:
            sent = client.sock.send(unsent[0]) if len(unsent) == 1 else client.sock.sendmsg(unsent[:_MOST_BUFFERS])
        except BlockingIOError:
            return False
        while unsent and sent >= len(unsent[0]):
            sent -= len(unsent.pop(0))
        if sent:
            unsent[0] = memoryview(unsent[0])[sent:]
        return not unsent
