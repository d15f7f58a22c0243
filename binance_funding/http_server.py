"""A small HTTP/1.1 server for GET, HEAD and OPTIONS: one thread, one selector, everything bounded.

It knows nothing of what it serves: a handler turns a Request into a Response. The answers are kept, ready to send, for
as long as the caller's epoch stays the same, and at most until the second in their Date is over. So most requests cost
one recv, one look into a dict and one send.

Every connection is in one of four states: idle, reading (part of a request has come), writing (an answer has not left
yet, or more requests wait for their turn), lingering (all is said; waiting for the client to close). Each state has
one time limit. While a client does not take its answers, nothing more is read from it.
"""

import contextlib
import errno
import logging
import math
import resource
import selectors
import socket
import struct
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from email.utils import formatdate

from . import events
from .http_message import (
    METHODS,
    Answer,
    Refused,
    Request,
    Response,
    encode,
    error_response,
    find_head,
    is_head_request,
    parse_head,
)

__all__ = ["HttpServer", "Request", "Response", "error_response", "raise_file_limit"]

RECV_BYTES = 16384
READY_BYTES = 8 << 20  # all ready-made answers together, with the requests they belong to
UNSENT_BYTES = 256 << 10  # answers queued for one client before its next request is looked at
REQUESTS_AT_ONCE = 64  # of one client, before the others have their turn
ACCEPTS_AT_ONCE = 64
ACCEPT_PAUSE_S = 0.5
LINGER_S = 2.0
LINGER_BYTES = 256 << 10
MAX_LINGERING = 128
DRAIN_S = 1.0
LOG_AGAIN_S = (10.0, 3600.0)  # a trouble that lasts is logged again after the one, then less often, down to the other
SPARE_FILES = MAX_LINGERING + 64  # files open beside the connections served

_OUT_OF_FILES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # struct linger
_ALLOW = ("Allow", ", ".join(METHODS))
_PREFLIGHT = (
    _ALLOW,
    ("Access-Control-Allow-Methods", _ALLOW[1]),
    ("Access-Control-Allow-Headers", "*"),
    ("Access-Control-Max-Age", "86400"),
)

_log = logging.getLogger(__name__)


class _Client:
    """A connection: bytes not answered yet, buffers not sent yet, and the state it entered at since_s."""

    __slots__ = ("closing", "discarded_bytes", "since_s", "sock", "state", "unanswered", "unsent")

    def __init__(self, sock: socket.socket, state: "_State", since_s: float) -> None:
        self.sock = sock
        self.state = state
        self.since_s = since_s
        self.unanswered = b""
        self.unsent: list[bytes | memoryview] = []
        self.closing = False
        self.discarded_bytes = 0


_Action = Callable[[_Client], None]


class _State:
    """What its clients wait for and what then happens. Who came first is first, and is the first to run out of time."""

    __slots__ = ("clients", "events", "limit_s", "on_expiry", "on_ready")

    def __init__(self, events: int, on_ready: _Action, limit_s: float, on_expiry: _Action) -> None:
        self.events = events
        self.on_ready = on_ready
        self.limit_s = limit_s
        self.on_expiry = on_expiry
        self.clients: OrderedDict[_Client, None] = OrderedDict()


class HttpServer:
    """Serves what handler answers, on one address, until stopped.

    handler: called for GET and HEAD in the thread of serve(), so everybody waits while it runs. An exception it lets
    out is logged with its traceback, though seldom if it comes again and again, and answered with 500.

    epoch: called after each wake-up, before requests are answered. While it returns an equal value, an answer may be
    given to further requests of the same bytes without asking handler. An exception from epoch ends serve().

    max_connections: when reached, the connection idle longest is closed for a new one; where none is idle, the new one
    gets 503. idle_s: limit for a connection without a request. request_s: limit for a request, from its first byte to
    its last; 408 beyond. write_s: limit for a client to take the answers to what it asked at once; reset beyond.

    alive: called every alive_s while the loop goes round, requests or not; for a watchdog.
    """

    def __init__(
        self,
        host: str,
        port: int,
        handler: Callable[[Request], Response],
        *,
        max_connections: int,
        epoch: Callable[[], Hashable] = lambda: None,
        idle_s: float = 30.0,
        request_s: float = 10.0,
        write_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
        alive: Callable[[], object] = lambda: None,
        alive_s: float | None = None,
    ) -> None:
        """Bind and listen. Port 0 takes any free one: see `address`. "::" serves IPv4 too.

        Raises OSError where the host is unknown or the address not to be had.
        """
        self._handler = handler
        self._epoch = epoch
        self._max_connections = max_connections
        self._clock = clock
        self._now_s = clock()
        self._ready: dict[bytes, Answer] = {}
        self._ready_bytes = 0
        self._ready_for: tuple[Hashable, int] | None = None
        self._date = ""
        self._accept_again_s = math.inf
        self._alive = alive
        self._alive_every_s = math.inf if alive_s is None else alive_s
        self._alive_next_s = math.inf if alive_s is None else -math.inf
        self._next_s = self._alive_next_s
        self._quiet: dict[str, tuple[float, float]] = {}

        read, write = selectors.EVENT_READ, selectors.EVENT_WRITE
        self._idle = _State(read, self._on_readable, idle_s, self._close)
        self._reading = _State(read, self._on_readable, request_s, self._on_request_late)
        self._writing = _State(write, self._on_writable, write_s, self._reset)
        self._lingering = _State(read, self._discard, LINGER_S, self._close)
        self._states = (self._idle, self._reading, self._writing, self._lingering)

        self._listener = _listen(host, port)
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        self._stop_receiver, self._stop_sender = socket.socketpair()
        self._stop_sender.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._stop_receiver, read)
        self._selector.register(self._listener, read)

    def serve(self) -> None:
        """Serve until stop() is called, then close everything; answers under way get a second to leave."""
        try:
            while self._turn(math.inf):
                pass
            self._drain()
        finally:
            for state in self._states:
                for client in tuple(state.clients):
                    self._close(client)
            self._selector.close()
            for sock in (self._listener, self._stop_receiver, self._stop_sender):
                sock.close()

    def stop(self) -> None:
        """Make serve() return, even if it has not been called yet.

        Never blocks or raises; safe in any thread, in a signal handler, and more than once.
        """
        with contextlib.suppress(OSError):  # full: said often enough; closed: serve() has returned
            self._stop_sender.send(b"\0")

    def _turn(self, until_s: float) -> bool:
        """Wait until something is due, but not beyond until_s, and do it. False once stop() was called."""
        next_s = min(self._next_s, until_s)
        ready = self._selector.select(None if next_s == math.inf else max(0.0, next_s - self._now_s))
        self._now_s = self._clock()
        self._forget_outdated()
        stopped, newcomers = False, False
        for key, _ in ready:
            client = key.data
            if client is not None:
                self._act(client, client.state.on_ready)
            elif key.fileobj is self._listener:
                newcomers = True
            else:
                stopped = True
        if newcomers:  # after the others, so that nobody whose request has come is taken for idle
            self._accept_some()
        self._next_s = self._expire()
        return not stopped

    def _act(self, client: _Client, action: _Action) -> None:
        try:
            action(client)
        except OSError:  # reset, broken pipe, timed out: the client is gone, as is its right
            self._close(client)

    def _expire(self) -> float:
        """End the waits that are over; return when the next will be."""
        next_s = math.inf
        for state in self._states:
            while state.clients:
                client = next(iter(state.clients))
                due_s = client.since_s + state.limit_s
                if due_s > self._now_s:
                    next_s = min(next_s, due_s)
                    break
                self._act(client, state.on_expiry)
        if self._accept_again_s <= self._now_s:
            self._accept_again_s = math.inf
            self._selector.register(self._listener, selectors.EVENT_READ)
        if self._alive_next_s <= self._now_s:
            self._alive_next_s = self._now_s + self._alive_every_s
            self._alive()
        return min(next_s, self._accept_again_s, self._alive_next_s)

    def _drain(self) -> None:
        """Take no more connections or requests, but let the answers already made reach their clients."""
        self._selector.unregister(self._stop_receiver)
        if self._accept_again_s == math.inf:
            self._selector.unregister(self._listener)
        self._accept_again_s = math.inf
        self._listener.close()
        for client in (*self._idle.clients, *self._reading.clients):
            self._close(client)
        for client in self._writing.clients:
            client.closing = True
        end_s = self._clock() + DRAIN_S
        while (self._writing.clients or self._lingering.clients) and self._now_s < end_s:
            self._turn(end_s)

    # Connections

    def _accept_some(self) -> None:
        accepted = 0
        while accepted < ACCEPTS_AT_ONCE and self._accept(others_may_go=not accepted):
            accepted += 1

    def _accept(self, *, others_may_go: bool) -> bool:
        """Take one client from the queue; False if there is none, or no room left in this turn.

        Others go only for the first of a turn: those just accepted look idle, as nothing was read from them yet.
        """
        served = len(self._idle.clients) + len(self._reading.clients) + len(self._writing.clients)
        full = served >= self._max_connections
        if full and not others_may_go:
            return False
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in _OUT_OF_FILES:
                return True  # this one hung up while it queued
            if others_may_go and not self._free_idle():
                self._pause_accepting(error)
            return False
        sock.setblocking(False)
        refused = full and not self._free_idle()
        client = _Client(sock, self._idle, self._now_s)
        self._idle.clients[client] = None
        self._selector.register(sock, self._idle.events, client)
        if refused:
            self._act(client, self._on_full)
        return True

    def _pause_accepting(self, error: OSError) -> None:
        """Stop watching the listening socket: it stays readable, and select would return at once for ever."""
        if self._seldom("accept"):
            _log.warning("%s", events.line("accept paused", cause=error.strerror or error, retry_in_s=ACCEPT_PAUSE_S))
        self._selector.unregister(self._listener)
        self._accept_again_s = self._now_s + ACCEPT_PAUSE_S

    def _free_idle(self) -> bool:
        """Close the connection idle longest; False if none is idle."""
        if not self._idle.clients:
            return False
        self._close(next(iter(self._idle.clients)))
        return True

    def _enter(self, client: _Client, state: _State) -> None:
        before = client.state
        if state is before:
            state.clients.move_to_end(client)
        else:
            del before.clients[client]
            state.clients[client] = None
            client.state = state
            if state.events != before.events:
                self._selector.modify(client.sock, state.events, client)
        client.since_s = self._now_s

    def _close(self, client: _Client) -> None:
        del client.state.clients[client]
        self._selector.unregister(client.sock)
        client.sock.close()

    def _reset(self, client: _Client) -> None:
        """Close, and drop what the kernel still holds for a client that does not take it."""
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._close(client)

    def _linger(self, client: _Client) -> None:
        """Say that no more will come, and read on for a while (RFC 9112 section 9.6).

        To close a socket with unread input sends a reset, which can destroy the answer before the client has read it.
        """
        client.sock.shutdown(socket.SHUT_WR)
        if len(self._lingering.clients) >= MAX_LINGERING:
            self._close(next(iter(self._lingering.clients)))
        self._enter(client, self._lingering)

    def _discard(self, client: _Client) -> None:
        received = len(client.sock.recv(RECV_BYTES))
        client.discarded_bytes += received
        if not received or client.discarded_bytes > LINGER_BYTES:
            self._close(client)

    # Requests and answers

    def _on_readable(self, client: _Client) -> None:
        received = client.sock.recv(RECV_BYTES)
        if not received:
            self._close(client)
            return
        client.unanswered += received
        answer = self._ready.get(client.unanswered)
        if answer is None:
            self._answer_all(client)
        else:  # exactly one request, asked before: nearly all of them
            client.unanswered = b""
            client.unsent += answer.parts
            client.closing = answer.closes
            self._settle(client, self._idle)

    def _on_writable(self, client: _Client) -> None:
        if client.unsent:
            self._send(client)
        if not client.unsent:
            if client.closing:
                self._linger(client)
            else:
                self._answer_all(client)

    def _on_request_late(self, client: _Client) -> None:
        self._say_goodbye(client, error_response(408, "the request was not complete in time"))

    def _on_full(self, client: _Client) -> None:
        if self._seldom("full"):
            _log.warning("%s", events.line("full", busy=self._max_connections, next="new connections get 503"))
        self._say_goodbye(client, error_response(503, "too many connections", (("Retry-After", "1"),)))

    def _say_goodbye(self, client: _Client, response: Response) -> None:
        head_only = is_head_request(client.unanswered, 0)
        client.unsent += encode(response, "close", self._date, head_only=head_only).parts
        client.closing = True
        self._settle(client, self._lingering)

    def _answer_all(self, client: _Client) -> None:
        """Answer the complete requests received, as many as are due to one client in one turn."""
        received, position, size = client.unanswered, 0, 0
        for _ in range(REQUESTS_AT_ONCE):
            answer, position = self._next_answer(received, position)
            if answer is None:
                break
            client.unsent += answer.parts
            client.closing = answer.closes
            size += sum(map(len, answer.parts))
            if answer.closes or size > UNSENT_BYTES:
                break
        client.unanswered = received[position:]
        if not client.unanswered:
            self._settle(client, self._idle)
        elif answer is not None:  # more in the next turn: a socket that can take more comes round again at once
            self._settle(client, self._writing)
        elif position or client.state is not self._reading:  # else its time runs on from its first byte
            self._settle(client, self._reading)

    def _next_answer(self, received: bytes, position: int) -> tuple[Answer | None, int]:
        """Return the answer to the request at position, None while it is incomplete, and where the next begins."""
        try:
            found = find_head(received, position)
            if found is None:
                return None, position
            start, end = found
            head = received[start:end]
            return self._ready.get(head) or self._make_answer(head), end
        except Refused as refused:
            head_only = is_head_request(received, position)
            return encode(refused.response, "close", self._date, head_only=head_only), len(received)

    def _make_answer(self, head: bytes) -> Answer:
        request, connection = parse_head(head)
        head_only = request.method == "HEAD"
        try:
            answer = encode(self._respond(request), connection, self._date, head_only=head_only)
        except Exception:  # noqa: BLE001 - a fault in one answer must not end the others; told by _log.exception
            if self._seldom("handler"):
                _log.exception("%s %.200r failed", request.method, request.path)
            return encode(error_response(500, "internal error"), connection, self._date, head_only=head_only)
        self._keep_ready(head, answer)
        return answer

    def _respond(self, request: Request) -> Response:
        if request.method == "OPTIONS":
            return Response(204, b"", _PREFLIGHT)
        if request.method not in METHODS:
            return error_response(405, "this method is not served", (_ALLOW,))
        return self._handler(request)

    def _keep_ready(self, head: bytes, answer: Answer) -> None:
        self._ready_bytes += len(head) + sum(map(len, answer.parts))
        if self._ready_bytes > READY_BYTES:
            self._forget_ready()
        else:
            self._ready[head] = answer

    def _forget_ready(self) -> None:
        self._ready.clear()
        self._ready_bytes = 0

    def _forget_outdated(self) -> None:
        ready_for = self._epoch(), int(time.time())
        if ready_for != self._ready_for:
            self._ready_for = ready_for
            self._forget_ready()
            self._date = formatdate(ready_for[1], usegmt=True)

    def _settle(self, client: _Client, state: _State) -> None:
        """Send, then enter state; or writing while something is left to send, or lingering if all is said."""
        if client.unsent:
            self._send(client)
        if client.unsent:
            self._enter(client, self._writing)
        elif client.closing:
            self._linger(client)
        else:
            self._enter(client, state)

    def _send(self, client: _Client) -> None:
        """Give the kernel as much as it takes, in one write."""
        unsent = client.unsent
        try:
            sent = client.sock.send(unsent[0]) if len(unsent) == 1 else client.sock.sendmsg(unsent)
        except BlockingIOError:
            return
        while unsent and sent >= len(unsent[0]):
            sent -= len(unsent.pop(0))
        if sent:
            unsent[0] = memoryview(unsent[0])[sent:]

    def _seldom(self, topic: str) -> bool:
        """Tell whether to log what may happen a thousand times a second: at first, then at growing intervals."""
        first_wait_s, longest_wait_s = LOG_AGAIN_S
        quiet_until_s, wait_s = self._quiet.get(topic, (-math.inf, 0.0))
        if self._now_s < quiet_until_s:
            return False
        lasting = self._now_s < quiet_until_s + wait_s
        wait_s = min(2 * wait_s, longest_wait_s) if lasting else first_wait_s
        self._quiet[topic] = self._now_s + wait_s, wait_s
        return True


def _listen(host: str, port: int) -> socket.socket:
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    dual_stack = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
    listener = socket.create_server(address, family=family, backlog=1024, dualstack_ipv6=dual_stack)
    listener.setblocking(False)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit it
    return listener


def raise_file_limit(max_connections: int) -> int:
    """Raise this process's limit of open files so that max_connections fit, as far as its hard limit allows.

    Returns how many of them do fit.
    """
    needed = max_connections + SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    fitting = max_connections if soft == resource.RLIM_INFINITY else soft - SPARE_FILES
    return max(0, min(max_connections, fitting))
