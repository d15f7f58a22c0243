"""One WebSocket connection to the mark price stream, from connecting to its end, in a thread of its own.

It never pings: Binance pings (every 3 min) and the library answers with the ping's payload. That a connection has died
is noticed by whoever watches `fresh_s`, not by the protocol. See docs/ping-pong-timeouts.md.
"""

import errno
import logging
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import websocket

from . import refusals
from .clock import Clock

_log = logging.getLogger(__name__)

# Room for a hundred times today's market; a larger message is a fault, and parsing it would take all memory.
_LARGEST_MESSAGE_BYTES = 16 * 1024 * 1024
# How often a blocked read looks whether it should close. What was half received by then is kept by the library.
_READ_TIMEOUT_S = 0.5

# What the other side sent may be quoted in a cause, which goes into the log, the state file and systemd's status.
_LONGEST_CAUSE = 300

_NOBODY_THERE = {errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN}

_CLOSE_CODES = {
    1000: "normal",
    1001: "going away",
    1006: "no close frame",
    1008: "policy violation",
    1011: "server error",
}


class Ending(NamedTuple):
    """Why a connection ended."""

    cause: str
    nobody_there: bool = False
    """Nothing answered at the address at all, so that asking again soon burdens nobody."""
    wait_s: float = 0.0
    """For how long Binance asked not to be called."""
    silent: bool = False
    """It was still open, but brought nothing any more."""


class _MessageTooLarge(websocket.WebSocketException):
    """A message exceeds what could be a real one."""


class _BoundedWebSocket(websocket.WebSocket):
    """A WebSocket that gives up on a message of absurd size while it is still being received."""

    def __init__(self) -> None:
        # The decoder checks UTF-8 itself: the library's check is pure Python and costs 25 times the parsing.
        super().__init__(skip_utf8_validation=True)
        self.message_bytes = 0
        self.given_up = False

    def _recv(self, bufsize: int) -> bytes:
        if self.given_up:
            # Megabytes of tiny fragments may still wait in the kernel, and the library would read them all.
            raise websocket.WebSocketConnectionClosedException("given up")
        received: bytes = super()._recv(bufsize)  # type: ignore[no-untyped-call]
        self.message_bytes += len(received)
        if self.message_bytes > _LARGEST_MESSAGE_BYTES:
            raise _MessageTooLarge(f"message of more than {_LARGEST_MESSAGE_BYTES >> 20} MiB")
        return received


class Connection:
    """One connection. The fields are written by its own thread and may be read by any."""

    def __init__(
        self,
        number: int,
        url: str,
        *,
        take: Callable[[bytes], int],
        clock: Clock,
        connect_timeout_s: float,
        on_change: Callable[[], None],
    ) -> None:
        """Open nothing yet. `take` gets each message and returns its usual event time in ms, 0 if it has none;
        `on_change` is called (in the connection's thread) after the first mark prices and after the end.
        """
        self.number = number
        self.url = url
        self.started_s = clock.steady_s()
        self.opened_s: float | None = None
        self.proven_s: float | None = None
        """Steady time of the first usable mark prices."""
        self.settled = False
        """Set by the supervisor when it has taken note of the first mark prices."""
        self.fresh_s: float | None = None
        """Steady time at which the event time of its mark prices last advanced."""
        self.ending: Ending | None = None
        """Set once, when the connection is over."""
        self._take = take
        self._clock = clock
        self._connect_timeout_s = connect_timeout_s
        self._on_change = on_change
        self._newest_event_ms = 0
        self._closing = threading.Event()
        self._websocket: Any = _BoundedWebSocket()

    def run(self) -> None:
        """Connect and read until the end, however it comes; blocks. Errors of the network end up in `ending`."""
        ending = Ending("closed by us")
        try:
            self._connect()
            ending = self._read() or ending
        except (websocket.WebSocketException, OSError) as error:
            reached = self._websocket.sock is not None
            ending = _explain(error, reached, self.opened_s is not None, self._clock.wall_s())
        finally:
            self._websocket.shutdown()
            self.ending = ending._replace(cause=ending.cause[:_LONGEST_CAUSE])
            self._on_change()

    def close(self) -> None:
        """Ask the connection to say goodbye (close code 1000) and end; returns at once. From any thread."""
        self._closing.set()

    def abort(self) -> None:
        """Break the connection at once, whatever it is doing; returns at once. From any thread, more than once."""
        self._closing.set()
        self._websocket.given_up = True
        sock = self._websocket.sock
        if sock is None:
            return
        try:
            # Not the TLS socket's own shutdown, which would take the session away under the reading thread.
            socket.socket.shutdown(sock, socket.SHUT_RDWR)
        except OSError as error:
            _log.debug("connection %d was gone already: %s", self.number, error)

    def idle_s(self, now_s: float) -> float:
        """Return the seconds without an advance of its mark prices, counted from the start of connecting."""
        return now_s - (self.started_s if self.fresh_s is None else self.fresh_s)

    def _connect(self) -> None:
        try:
            # Redirects are not followed: each would be an attempt that nobody counts, to wherever the answer says.
            self._websocket.connect(self.url, timeout=self._connect_timeout_s, suppress_origin=True, redirect_limit=0)
        except (websocket.WebSocketException, OSError):
            raise
        except Exception as error:
            # The library parses status line, headers and cookies without checking them first: anything may come out.
            raise websocket.WebSocketProtocolException(f"the handshake's answer is not HTTP ({error})") from error
        self.opened_s = self._clock.steady_s()
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
        newest_event_ms = self._take(payload)
        if newest_event_ms <= self._newest_event_ms:
            return
        self._newest_event_ms = newest_event_ms
        self.fresh_s = self._clock.steady_s()
        if self.proven_s is None:
            self.proven_s = self.fresh_s
            self._on_change()


def _closed_by_peer(data: bytes) -> str:
    if len(data) < 2:
        return "closed by the exchange without a code"
    code = struct.unpack("!H", data[:2])[0]
    reason = data[2:].decode("utf-8", "replace")
    return f"closed by the exchange with code {code} ({reason or _CLOSE_CODES.get(code, 'unknown')})"


def _explain(error: Exception, reached: bool, opened: bool, wall_s: float) -> Ending:
    """Say in words what ended a connection: one to a host that was reached, and that was opened, or not."""
    if isinstance(error, websocket.WebSocketBadStatusException):
        return _refused(error, wall_s)
    if isinstance(error, websocket.WebSocketAddressException):
        return Ending("DNS: the host name cannot be resolved", nobody_there=True)
    if isinstance(error, ssl.SSLError) or isinstance(error.__cause__, ssl.SSLError):
        return Ending(f"TLS: {error}")
    if isinstance(error, (websocket.WebSocketTimeoutException, TimeoutError)):
        return Ending("no answer in time" + ("" if opened else " while connecting"), nobody_there=not reached)
    if isinstance(error, websocket.WebSocketConnectionClosedException):
        return Ending("connection ended without close frame (1006)" if opened else "connection ended during handshake")
    if isinstance(error, OSError):
        return Ending(f"{error.strerror or error}".lower(), nobody_there=not opened and error.errno in _NOBODY_THERE)
    return Ending(f"{error}" if isinstance(error, _MessageTooLarge) else f"protocol error: {error}")


def _refused(error: websocket.WebSocketBadStatusException, wall_s: float) -> Ending:
    if error.status_code is None:
        return Ending("protocol error: the handshake's answer has no status line")
    headers = {name.lower(): value for name, value in (error.resp_headers or {}).items()}
    body = (error.resp_body or b"").decode("utf-8", "replace")
    refusal = refusals.explain(error.status_code, headers, body, wall_s)
    return Ending(f"handshake refused: {refusal.words}", wait_s=refusal.wait_s)
