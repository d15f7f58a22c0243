"""The exchange's WebSocket side. Everything here runs in the exchange's event loop, in its one thread.

Built on the public methods of websockets 15 to 17 and, where a peer misbehaves in ways no library offers, on two of
its hooks: `send_data` (all output passes it) and `process_event` (all frames received pass it).
"""

from __future__ import annotations

import asyncio
import functools
import http
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import Headers
from websockets.frames import DATA_OPCODES, Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import Event, State

from tests.exchange.market import STREAM, STREAM_1S, Market

LIVE_PATH = "/market/stream"
RETIRED_PATH = "/stream"
CLIENT_MESSAGES_PER_S = 10
SLOW_READER_LIMIT_BYTES = 64 * 2**20
RECORDS_KEPT = 100_000
CLOSE_TIMEOUT_S = 2.0
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Lag:
    """How far event times are behind the exchange's clock, or ahead of it where negative.

    It grows from `since_s` of the event loop's clock, or None: from when a connection gets this behaviour.
    """

    behind_s: float
    growing_s_per_s: float = 0.0
    since_s: float | None = None

    def behind_ms(self, now_s: float) -> int:
        """Return how far event times are behind by now."""
        grown_s = 0.0 if self.since_s is None else self.growing_s_per_s * (now_s - self.since_s)
        return round((self.behind_s + grown_s) * 1000)


@dataclass
class Behaviour:
    """How one connection is treated. The defaults are the real exchange's good days."""

    data: bool = True
    parts: tuple[int, ...] = (0, 1)
    event_time_ms: int | None = None
    lag: Lag = Lag(0.0)
    stalled: bool = False
    trickle: tuple[int, float] | None = None

    def event_time_at(self, tick_ms: int, now_s: float) -> int:
        """Return the event time sent with a tick; `now_s` is on the event loop's clock."""
        return self.event_time_ms or tick_ms - self.lag.behind_ms(now_s)


@dataclass(eq=False)
class ConnectionRecord:
    """What happened on one connection. Written by the exchange's thread, read by any; Unix seconds."""

    number: int
    path: str
    headers: dict[str, str]
    opened_at_s: float
    pings_sent: int = 0
    pongs_matched: int = 0
    pongs_unsolicited: int = 0
    client_pings: int = 0
    client_messages: int = 0
    messages_sent: int = 0
    closed_at_s: float | None = None
    close_code: int | None = None
    """The code the client sent (1005: none), or 1006 where the connection ended without its close frame."""
    ended_by: str | None = None
    """Why the exchange ended the connection; None where the client did."""
    client_gone: threading.Event = field(default_factory=threading.Event)
    """Set when the client has closed its end of the TCP connection, also where the exchange stalls."""

    @property
    def is_open(self) -> bool:
        """Tell whether both ends still hold the connection."""
        return self.closed_at_s is None and not self.client_gone.is_set()


@dataclass(frozen=True)
class Attempt:
    """One WebSocket handshake and the status it was answered with; 0 where it was left hanging."""

    at_s: float
    path: str
    headers: dict[str, str]
    status: int


@dataclass
class Refusal:
    """How the next handshakes are answered, `remaining` of them or (None) all; `status` 0: not at all."""

    status: int
    body: str
    headers: dict[str, str]
    remaining: int | None


@dataclass(frozen=True)
class Timing:
    """The exchange's intervals, in seconds."""

    tick_s: float
    ping_s: float
    pong_deadline_s: float
    lifetime_s: float


class Connection(ServerConnection):
    """A server connection that counts what it receives and can stall or trickle."""

    def __init__(self, service: StreamService, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.service = service
        self.behaviour = Behaviour()
        self.record: ConnectionRecord | None = None
        self.pings_outstanding: dict[bytes, None] = {}
        self.received_at_s: deque[float] = deque(maxlen=CLIENT_MESSAGES_PER_S)
        self.trickling = False
        self._backlog: deque[bytes] = deque()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Register the connection; a late one, accepted while the listening socket was closed, is reset."""
        super().connection_made(transport)
        self.service.transports.add(self.transport)
        if not self.service.is_listening:
            reset_transport(self.transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Complete the record."""
        super().connection_lost(exc)
        self.service.transports.discard(self.transport)
        if self.record is not None:
            self.record.close_code = int(self.protocol.close_code or 1006)
            self.record.closed_at_s = time.time()
            self.record.client_gone.set()

    def data_received(self, data: bytes) -> None:
        """Read, unless this connection is a black hole."""
        if not self.behaviour.stalled:
            super().data_received(data)

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Note that the client has left."""
        if self.record is not None:
            self.record.client_gone.set()
        if self.behaviour.stalled:
            return True  # keeps our end open: a black hole does not answer a FIN either
        return super().eof_received()

    def process_event(self, event: Event) -> None:
        """Count frames. Data frames go no further: nobody reads them, and a full queue stops all reading."""
        if not isinstance(event, Frame) or self.record is None:
            super().process_event(event)
            return
        if event.opcode is Opcode.CLOSE:
            return
        if event.opcode is Opcode.PING:
            self.record.client_pings += 1
        elif event.opcode is Opcode.PONG:
            self._count_pong(bytes(event.data))
        elif event.opcode in DATA_OPCODES:
            self.record.client_messages += 1
        self._hold_to_message_limit()

    def _count_pong(self, payload: bytes) -> None:
        assert self.record is not None
        if payload not in self.pings_outstanding:
            self.record.pongs_unsolicited += 1
            return
        self.record.pongs_matched += 1
        while self.pings_outstanding:  # a pong answers all pings up to its own (RFC 6455 section 5.5.3)
            oldest = next(iter(self.pings_outstanding))
            del self.pings_outstanding[oldest]
            if oldest == payload:
                return

    def _hold_to_message_limit(self) -> None:
        now_s = self.loop.time()
        full = len(self.received_at_s) == CLIENT_MESSAGES_PER_S
        if full and now_s - self.received_at_s[0] < 1.0:
            self.service.close(self, 1008, "Too many requests")
        self.received_at_s.append(now_s)

    def send_data(self) -> None:
        """Pass on what the protocol wants sent, unless this connection stalls or trickles."""
        if self.behaviour.stalled:
            self.protocol.data_to_send()
        elif self.trickling:
            self._backlog.extend(data for data in self.protocol.data_to_send() if data)
        else:
            super().send_data()
            if self.transport.get_write_buffer_size() > SLOW_READER_LIMIT_BYTES:
                self.service.reset(self, "slow reader")

    async def trickle_forever(self) -> None:
        """Write the backlog piece by piece while the behaviour says so, then at once what is left."""
        while (trickle := self.behaviour.trickle) is not None and not self.transport.is_closing():
            piece_bytes, pause_s = trickle
            if self._backlog:
                data = self._backlog.popleft()
                self.transport.write(data[:piece_bytes])
                if len(data) > piece_bytes:
                    self._backlog.appendleft(data[piece_bytes:])
            await asyncio.sleep(pause_s)
        self.trickling = False
        if not self.transport.is_closing():
            self.transport.writelines(self._backlog)
        self._backlog.clear()


class StreamService:
    """Handshakes, ticks, pings, limits, misbehaviour of all connections. For the event loop only."""

    def __init__(
        self,
        market: Market,
        timing: Timing,
        now_ms: Callable[[], int],
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self.market = market
        self.timing = timing
        self.records: deque[ConnectionRecord] = deque(maxlen=RECORDS_KEPT)
        self.attempts: deque[Attempt] = deque(maxlen=RECORDS_KEPT)
        self.ticks: deque[int] = deque(maxlen=RECORDS_KEPT)
        self.future_behaviour = Behaviour()
        self.refusal: Refusal | None = None
        self.connections: list[Connection] = []
        self.transports: set[asyncio.Transport] = set()
        self.last_event_time_ms: int | None = None
        self._now_ms = now_ms
        self._spawn = spawn
        self._server: Server | None = None
        self._opened = 0
        self._last_ping = 0

    # Listening

    async def listen(self, sock: socket.socket) -> None:
        """Accept connections on a bound socket, which then belongs to the server."""
        self._server = await serve(
            self._hold,
            sock=sock,
            process_request=self._answer_handshake,
            create_connection=cast("type[ServerConnection]", functools.partial(Connection, self)),
            compression=None,
            server_header=None,
            open_timeout=None,
            ping_interval=None,
            close_timeout=CLOSE_TIMEOUT_S,
        )

    @property
    def is_listening(self) -> bool:
        """Tell whether connections are accepted."""
        return self._server is not None

    async def stop_listening(self, reason: str) -> None:
        """Close the listening socket and reset every connection."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.close(close_connections=False)
        for connection in list(self.connections):
            self.reset(connection, reason)
        for transport in list(self.transports):  # those amid their handshake
            reset_transport(transport)
        await server.wait_closed()

    async def _answer_handshake(self, connection: ServerConnection, request: Request) -> Response | None:
        path = urlsplit(request.path).path
        refusal = self._next_refusal()
        if refusal is None and path not in (LIVE_PATH, RETIRED_PATH):
            refusal = Refusal(404, "Not Found", {}, None)
        status = 101 if refusal is None else refusal.status
        self.attempts.append(Attempt(time.time(), request.path, dict(request.headers.raw_items()), status))
        if refusal is None:
            return None
        if refusal.status == 0:
            await connection.wait_closed()
            return None
        return _response(refusal.status, refusal.body, refusal.headers)

    def _next_refusal(self) -> Refusal | None:
        refusal = self.refusal
        if refusal is not None and refusal.remaining is not None:
            refusal.remaining -= 1
            if refusal.remaining <= 0:
                self.refusal = None
        return refusal

    async def _hold(self, server_connection: ServerConnection) -> None:
        """Own one connection from its handshake to its end."""
        connection = cast("Connection", server_connection)
        request = connection.request
        assert request is not None
        self._opened += 1
        record = ConnectionRecord(self._opened - 1, request.path, dict(request.headers.raw_items()), time.time())
        connection.record = record
        self.behave(connection, self.future_behaviour)
        self.records.append(record)
        self.connections.append(connection)
        lifetime = connection.loop.call_later(
            self.timing.lifetime_s, self.finish, connection, f"{self.timing.lifetime_s:g} s are over"
        )
        pings = self._spawn(self._ping_forever(connection))
        try:
            await connection.wait_closed()
        finally:
            self.connections.remove(connection)
            lifetime.cancel()
            pings.cancel()

    # What the real exchange does

    async def tick_forever(self, stream: str, tick_s: float) -> None:
        """Send a tick at every whole multiple of the interval, on the exchange's clock."""
        tick_ms = round(tick_s * 1000)
        while True:
            now_ms = self._now_ms()
            # A timer may fire a moment early: without the tolerance the same tick would be sent twice.
            due_ms = ((now_ms + tick_ms // 10) // tick_ms + 1) * tick_ms
            await asyncio.sleep((due_ms - now_ms) / 1000)
            self.tick(stream, due_ms)

    def tick(self, stream: str, event_time_ms: int) -> None:
        """Send one tick's messages to every connection of a stream."""
        self.last_event_time_ms = event_time_ms
        if stream == STREAM:
            self.ticks.append(event_time_ms)
        payloads: dict[int, list[bytes]] = {}
        for connection in list(self.connections):
            behaviour = connection.behaviour
            if behaviour.data and not behaviour.stalled and _stream_of(connection) == stream:
                sent_ms = behaviour.event_time_at(event_time_ms, connection.loop.time())
                if sent_ms not in payloads:
                    payloads[sent_ms] = [text.encode() for text in self.market.messages(sent_ms, stream)]
                self._send_parts(connection, payloads[sent_ms])

    def _send_parts(self, connection: Connection, payloads: list[bytes]) -> None:
        for part in connection.behaviour.parts:
            if part < len(payloads):
                self.send_frame(connection, Opcode.TEXT, payloads[part])

    async def _ping_forever(self, connection: Connection) -> None:
        while True:
            await asyncio.sleep(self.timing.ping_s)
            if not connection.behaviour.stalled:
                self.ping(connection)

    def ping(self, connection: Connection) -> None:
        """Send a ping with a payload of its own, the exchange's time, and expect it back in time."""
        if connection.protocol.state is not State.OPEN or connection.record is None:
            return
        self._last_ping = max(self._now_ms(), self._last_ping + 1)
        payload = str(self._last_ping).encode()
        connection.pings_outstanding[payload] = None
        connection.record.pings_sent += 1
        connection.protocol.send_ping(payload)
        connection.send_data()
        connection.loop.call_later(self.timing.pong_deadline_s, self._require_pong, connection, payload)

    def _require_pong(self, connection: Connection, payload: bytes) -> None:
        if payload in connection.pings_outstanding and not connection.behaviour.stalled:
            self.close(connection, 1008, "Pong timeout")

    # Endings

    def close(self, connection: Connection, code: int, reason: str) -> None:
        """Start the closing handshake; the connection is cut when the client does not answer within 2 s."""
        if connection.protocol.state is State.OPEN:
            self._note_end(connection, f"close {code} {reason}".rstrip())
            self._spawn(connection.close(code, reason))

    def finish(self, connection: Connection, reason: str) -> None:
        """End the TCP connection with a FIN and no close frame."""
        self._note_end(connection, reason)
        connection.transport.close()

    def reset(self, connection: Connection, reason: str) -> None:
        """End the TCP connection with an RST."""
        self._note_end(connection, reason)
        reset_transport(connection.transport)

    def _note_end(self, connection: Connection, reason: str) -> None:
        if connection.record is not None and connection.record.ended_by is None:
            connection.record.ended_by = reason

    # Misbehaviour

    def behave(self, connection: Connection, behaviour: Behaviour) -> None:
        """Give a connection a behaviour of its own, equal to the one given; a lag that grows begins to, once."""
        lag = behaviour.lag
        if lag.since_s is None:
            lag = replace(lag, since_s=connection.loop.time())
        connection.behaviour = replace(behaviour, lag=lag)
        if behaviour.trickle is not None and not connection.trickling:
            connection.trickling = True
            self._spawn(connection.trickle_forever())

    def send_frame(self, connection: Connection, opcode: Opcode, payload: bytes, fin: bool = True) -> None:
        """Send one frame, unchecked: text frames of invalid UTF-8 and lone fragments included."""
        if connection.protocol.state is State.OPEN and connection.record is not None:
            connection.protocol.send_frame(Frame(opcode, payload, fin))
            connection.send_data()
            connection.record.messages_sent += 1

    def send_half_frame(self, connection: Connection, payload: bytes) -> None:
        """Send a text frame's header and half of its payload, then nothing any more."""
        frame = Frame(Opcode.TEXT, payload).serialize(mask=False)
        connection.transport.write(frame[: len(frame) - len(payload) // 2])
        self.behave(connection, replace(connection.behaviour, stalled=True))


def reset_transport(transport: asyncio.WriteTransport) -> None:
    """Close a transport's TCP connection with an RST."""
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.fileno() >= 0:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    transport.abort()


def _stream_of(connection: Connection) -> str | None:
    """Return the stream that a connection is sent: none on the retired path, whatever it asks for."""
    assert connection.record is not None
    url = urlsplit(connection.record.path)
    names = "/".join(parse_qs(url.query).get("streams", [])).split("/")
    if url.path != LIVE_PATH:
        return None
    return next((name for name in (STREAM, STREAM_1S) if name in names), None)


def _response(status: int, body: str, extra: Mapping[str, str]) -> Response:
    content = body.encode()
    headers = Headers({"Content-Type": "text/html", "Content-Length": str(len(content)), "Connection": "close"})
    for name, value in extra.items():
        headers[name] = value
    return Response(status, http.HTTPStatus(status).phrase, headers, content)
