"""One WebSocket connection to the mark price stream, from connecting to its end, in a thread of its own.

The connection sends no pings. Binance pings every 3 min, and the library answers with the payload of the ping. The
protocol does not show that a connection has died; StreamPool notices it by `age_s`. See docs/ping-pong-timeouts.md.
"""

import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

import websocket

from ...clock import Clock
from ...settings import Settings
from ..market.exchange_clock import ExchangeClock
from . import faults
from .faults import Cause, Kind
from .libraries import LOOKUP_LIMIT_S, BadProxy, Lookup, shut_down
from .refusals import refusal

# A hundred times the size of today's messages. To parse an even larger message could take all memory.
_MAX_MESSAGE_BYTES = 16 * 1024 * 1024
_MAX_CONNECTING_S = 10.0
# A read times out this often, to see whether the connection should close. The library keeps a partly received frame.
_READ_TIMEOUT_S = 0.5
# Source: RFC 6455, 7.4.1.
_CLOSE_CODES = {
    1000: "normal",
    1001: "going away",
    1005: "no code given",
    1008: "policy violation",
    1011: "server error",
}


class _BoundedWebSocket(websocket.WebSocket):
    """A WebSocket with a limit on the size of a message, which any thread can abort."""

    def __init__(self, max_message_bytes: int) -> None:
        self.message_bytes = 0
        self._max_message_bytes = max_message_bytes
        self._is_aborted = False
        # The decoder checks UTF-8. The check of the library is pure Python, and takes 25 times as long as the parsing.
        super().__init__(skip_utf8_validation=True)

    @property
    def sock(self) -> socket.socket | None:
        """The socket. The library sets it when TCP, proxy and TLS are ready; it is None before that."""
        return self._sock

    @sock.setter
    def sock(self, sock: socket.socket | None) -> None:
        self._sock = sock
        if sock is not None and self._is_aborted:
            shut_down(sock)

    def abort(self) -> None:
        """End the connection at once, even while it is being set up. The method of the library cannot do that."""
        self._is_aborted = True
        if self.sock is not None:
            shut_down(self.sock)

    def _recv(self, bufsize: int) -> bytes:
        if self._is_aborted:
            # The kernel may still hold megabytes of tiny fragments. The library would read them all before it noticed.
            raise websocket.WebSocketConnectionClosedException("aborted")
        received: bytes = super()._recv(bufsize)  # type: ignore[no-untyped-call]
        self.message_bytes += len(received)
        if self.message_bytes > self._max_message_bytes:
            raise websocket.WebSocketPayloadException(f"message of more than {self._max_message_bytes >> 20} MiB")
        return received


class Connection:
    """One connection. Its own thread writes the fields; any thread may read them."""

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        exchange_clock: ExchangeClock,
        number: int,
        url: str,
        take: Callable[[bytes], int],
        on_change: Callable[[], None],
        max_message_bytes: int = _MAX_MESSAGE_BYTES,
    ) -> None:
        """Connect nothing yet.

        `take` gets each message and returns its median event time in ms, 0 if it has no usable mark price.
        `on_change` is called in the connection's thread after the first mark prices and after the end.
        """
        self.number = number
        self.url = url
        self.on_change = on_change
        self.started_s = clock.steady_s()
        self.lookup: Lookup | None = None
        """The name lookup of the first host, which may be a proxy; None before it begins."""
        self.opened_s: float | None = None
        """Steady time at which the handshake succeeded."""
        self.first_data_s: float | None = None
        """Steady time of the first usable mark prices."""
        self.last_advance_s: float | None = None
        """Steady time at which the event time of its mark prices last advanced."""
        self.newest_event_time_ms = 0
        self.ending: Cause | None = None
        """Why the connection ended; None while it lives."""
        self._settings = settings
        self._clock = clock
        self._exchange_clock = exchange_clock
        self._take = take
        self._closing = threading.Event()
        self._websocket: Any = _BoundedWebSocket(max_message_bytes)

    def run(self) -> None:
        """Connect, and read until the connection ends; blocks. Network errors are not raised: see `ending`."""
        ending = Cause(Kind.LOST, "closed by us")
        try:
            if not self._closing.is_set():
                self._connect()
                ending = self._read() or ending
        except (websocket.WebSocketException, OSError, BadProxy) as error:
            ending = self._explain(error)
        finally:
            self._websocket.shutdown()
            self.ending = ending
            self.on_change()

    def close(self) -> None:
        """Ask the connection to send a close frame (code 1000) and end; returns at once. From any thread."""
        self._closing.set()

    def abort(self) -> None:
        """End the connection without a close frame; returns at once. From any thread, any number of times.

        A name lookup or the setup of TCP, proxy and TLS cannot be interrupted. The thread ends after it.
        """
        self._closing.set()
        self._websocket.abort()

    def connecting_s(self, now_s: float) -> float:
        """Return how long the connection has waited for mark prices, without the time of the name lookup."""
        since_s = self.started_s
        if self.lookup is not None:
            looked_up_s = min(now_s, self.started_s + LOOKUP_LIMIT_S)
            since_s = looked_up_s if self.lookup.ended_s is None else self.lookup.ended_s
        return now_s - since_s

    def age_s(self, now_s: float) -> float:
        """Return the age of the newest mark prices by Binance's clock; before the first ones, `connecting_s`."""
        if self.last_advance_s is None:
            return self.connecting_s(now_s)
        return now_s - self._exchange_clock.as_of_s(self.newest_event_time_ms, self.last_advance_s)

    def lag_s(self) -> float | None:
        """Return how old the newest mark prices were when they arrived; None before the first ones."""
        return None if self.last_advance_s is None else self.age_s(self.last_advance_s)

    def _connect(self) -> None:
        self.lookup = Lookup(self.url, self._clock.steady_s)
        timeout_s = min(_MAX_CONNECTING_S, self._settings.silence_seconds)
        try:
            # No redirect is followed. It would be an uncounted attempt, to an address that is not in the settings.
            self._websocket.connect(self.url, timeout=timeout_s, suppress_origin=True, redirect_limit=0)
        except (websocket.WebSocketException, OSError):
            raise
        except Exception as error:
            # The library parses status line, headers and cookies without checks, so it may raise any exception.
            raise websocket.WebSocketProtocolException(f"the handshake's answer is not HTTP ({error})") from error
        self.opened_s = self._clock.steady_s()
        self._websocket.settimeout(_READ_TIMEOUT_S)

    def _read(self) -> Cause | None:
        """Read until the connection ends. Return why the peer closed it; None if we close it."""
        while not self._closing.is_set():
            try:
                opcode, frame = self._websocket.recv_data_frame(control_frame=True)
            except websocket.WebSocketTimeoutException:
                continue
            if opcode == websocket.ABNF.OPCODE_CLOSE:
                return _closed_by_peer(frame.data)
            if opcode in (websocket.ABNF.OPCODE_TEXT, websocket.ABNF.OPCODE_BINARY):
                self._websocket.message_bytes = 0
                self._receive(frame.data)
        self._websocket.send_close()
        return None

    def _receive(self, payload: bytes) -> None:
        event_time_ms = self._take(payload)
        if event_time_ms <= self.newest_event_time_ms:
            return
        now_s = self._clock.steady_s()
        self.newest_event_time_ms, self.last_advance_s = event_time_ms, now_s
        if self.first_data_s is None:
            self.first_data_s = now_s
            self.on_change()

    def _explain(self, error: Exception) -> Cause:
        if isinstance(error, websocket.WebSocketBadStatusException) and error.status_code is not None:
            headers, body = error.resp_headers or {}, error.resp_body or b""
            return refusal(error.status_code, headers, body, self._clock.wall_s())
        return faults.from_error(error, self.lookup)


def _closed_by_peer(data: bytes) -> Cause:
    code = struct.unpack("!H", data[:2])[0] if len(data) >= 2 else 1005
    reason = data[2:].decode("utf-8", "replace") or _CLOSE_CODES.get(code, "unknown")
    return Cause(Kind.LOST, f"closed by the exchange with code {code} ({reason})")
