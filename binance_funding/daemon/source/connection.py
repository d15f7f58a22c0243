"""One WebSocket connection to the mark price stream, from connecting to its end, in a thread of its own.

It never pings: Binance pings (every 3 min) and the library answers with the ping's payload. That a connection has died
is noticed by whoever watches `age_s`, not by the protocol. See docs/ping-pong-timeouts.md.
"""

import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import websocket

from ...clock import Deadline
from ..context import Context
from . import refusals, transport

# Room for a hundred times today's market; a larger message is a fault, and parsing it would take all memory.
_LARGEST_MESSAGE_BYTES = 16 * 1024 * 1024
_LONGEST_CONNECTING_S = 10.0
# How often a blocked read looks whether it should close. What was half received by then is kept by the library.
_READ_TIMEOUT_S = 0.5

# What the other side sent may be quoted in a cause, which goes into the log, the state file and systemd's status.
_LONGEST_CAUSE = 300

# Source: RFC 6455, 7.4.1.
_CLOSE_CODES = {1000: "normal", 1001: "going away", 1008: "policy violation", 1011: "server error"}


class Ending(NamedTuple):
    """Why a connection ended."""

    cause: str
    unreachable: bool = False
    """Nothing answered at the address at all, so that asking again soon burdens nobody."""
    wait_s: float = 0.0
    """For how long Binance asked not to be called."""
    event: str = "lost"
    """What the log calls it: "lost"; "silent" or "lagging" where the connection was still open."""


class _BoundedWebSocket(websocket.WebSocket):
    """A WebSocket that gives up on a message of absurd size while it is still being received."""

    def __init__(self, largest_message_bytes: int) -> None:
        # The decoder checks UTF-8 itself: the library's check is pure Python and costs 25 times the parsing.
        super().__init__(skip_utf8_validation=True)
        self.largest_message_bytes = largest_message_bytes
        self.message_bytes = 0
        self.given_up = False

    def _recv(self, bufsize: int) -> bytes:
        if self.given_up:
            # Megabytes of tiny fragments may still wait in the kernel, and the library would read them all.
            raise websocket.WebSocketConnectionClosedException("given up")
        received: bytes = super()._recv(bufsize)  # type: ignore[no-untyped-call]
        self.message_bytes += len(received)
        if self.message_bytes > self.largest_message_bytes:
            raise websocket.WebSocketPayloadException(f"message of more than {self.largest_message_bytes >> 20} MiB")
        return received


@dataclass(eq=False)
class Connection:
    """One connection. Its fields are written by its own thread, and may be read by any."""

    context: Context
    number: int
    url: str
    take: Callable[[bytes], int]
    """Gets each message and returns its median event time in ms, 0 if it has no usable mark price."""
    on_change: Callable[[], None]
    """Called in the connection's thread after the first mark prices and after the end."""
    largest_message_bytes: int = _LARGEST_MESSAGE_BYTES
    connect: transport.Connect = transport.connect
    started_s: float = field(init=False)
    opened_s: float | None = field(default=None, init=False)
    first_data_s: float | None = field(default=None, init=False)
    """Steady time of the first usable mark prices."""
    last_advance_s: float | None = field(default=None, init=False)
    """Steady time at which the event time of its mark prices last advanced."""
    newest_event_time_ms: int = field(default=0, init=False)
    ending: Ending | None = field(default=None, init=False)
    """Set once, when the connection is over."""

    def __post_init__(self) -> None:
        self.started_s = self.context.clock.steady_s()
        self._closing = threading.Event()
        self._websocket: Any = _BoundedWebSocket(self.largest_message_bytes)

    def run(self) -> None:
        """Connect and read until the end, however it comes; blocks. Errors of the network end up in `ending`."""
        ending = Ending("closed by us")
        try:
            self._connect()
            ending = self._read() or ending
        except (websocket.WebSocketException, OSError) as error:
            ending = _explain(error, self.opened_s is not None, self.context.clock.wall_s())
        finally:
            self._websocket.shutdown()
            self.ending = ending._replace(cause=ending.cause[:_LONGEST_CAUSE])
            self.on_change()

    def close(self) -> None:
        """Ask the connection to say goodbye (close code 1000) and end; returns at once. From any thread."""
        self._closing.set()

    def abort(self) -> None:
        """Break the connection at once, whatever it is doing; returns at once. From any thread, more than once."""
        self._closing.set()
        self._websocket.given_up = True
        transport.shut_down(self._websocket.sock)

    def age_s(self, now_s: float) -> float:
        """Return how old its newest mark prices are by Binance's clock; before the first, how long it has tried."""
        if self.last_advance_s is None:
            return now_s - self.started_s
        return now_s - self.context.exchange_clock.as_of_s(self.newest_event_time_ms, self.last_advance_s)

    def lag_s(self) -> float | None:
        """Return how old its newest mark prices were when they came, None before the first."""
        return None if self.last_advance_s is None else self.age_s(self.last_advance_s)

    def _connect(self) -> None:
        timeout_s = min(_LONGEST_CONNECTING_S, self.context.settings.silence_seconds)
        sock = self.connect(self.url, Deadline(timeout_s, self.context.clock.steady_s))
        sock.settimeout(timeout_s)
        try:
            # Redirects are not followed: each would be an attempt that nobody counts, to wherever the answer says.
            self._websocket.connect(self.url, socket=sock, suppress_origin=True, redirect_limit=0)
        except (websocket.WebSocketException, OSError):
            raise
        except Exception as error:
            # The library parses status line, headers and cookies without checking them first: anything may come out.
            raise websocket.WebSocketProtocolException(f"the handshake's answer is not HTTP ({error})") from error
        self.opened_s = self.context.clock.steady_s()
        self._websocket.settimeout(_READ_TIMEOUT_S)

    def _read(self) -> Ending | None:
        """Read until asked to close (None) or closed by the peer."""
        while not self._closing.is_set():
            try:
                opcode, frame = self._websocket.recv_data_frame(control_frame=True)
            except websocket.WebSocketTimeoutException:
                continue
            if opcode == websocket.ABNF.OPCODE_CLOSE:
                return Ending(_closed_by_peer(frame.data))
            if opcode in (websocket.ABNF.OPCODE_TEXT, websocket.ABNF.OPCODE_BINARY):
                self._websocket.message_bytes = 0
                self._receive(frame.data)
        self._websocket.send_close()
        return None

    def _receive(self, payload: bytes) -> None:
        event_time_ms = self.take(payload)
        if event_time_ms <= self.newest_event_time_ms:
            return
        now_s = self.context.clock.steady_s()
        self.newest_event_time_ms, self.last_advance_s = event_time_ms, now_s
        if self.first_data_s is None:
            self.first_data_s = now_s
            self.on_change()


def _closed_by_peer(data: bytes) -> str:
    if len(data) < 2:
        return "closed by the exchange without a code"
    code = struct.unpack("!H", data[:2])[0]
    reason = data[2:].decode("utf-8", "replace")
    return f"closed by the exchange with code {code} ({reason or _CLOSE_CODES.get(code, 'unknown')})"


def _explain(error: Exception, opened: bool, wall_s: float) -> Ending:
    """Say in words what ended a connection that was opened, or not."""
    if isinstance(error, transport.NoConnection):
        return Ending(str(error), unreachable=error.is_unreachable)
    if isinstance(error, websocket.WebSocketBadStatusException):
        return _handshake_refused(error, wall_s)
    if isinstance(error, (websocket.WebSocketTimeoutException, TimeoutError)):
        return Ending("no answer in time" + ("" if opened else " while connecting"))
    if isinstance(error, websocket.WebSocketConnectionClosedException):
        return Ending("connection ended without close frame (1006)" if opened else "connection ended during handshake")
    if isinstance(error, OSError):
        return Ending(transport.explain(error))
    return Ending(f"protocol error: {error}")


def _handshake_refused(error: websocket.WebSocketBadStatusException, wall_s: float) -> Ending:
    if error.status_code is None:
        return Ending("protocol error: the handshake's answer has no status line")
    body = (error.resp_body or b"").decode("utf-8", "replace")
    refusal = refusals.explain(error.status_code, error.resp_headers or {}, body, wall_s)
    return Ending(f"handshake refused: {refusal.words}", wait_s=refusal.wait_s)
