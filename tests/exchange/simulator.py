"""The exchange as a test sees it: a context manager whose methods may be called from any thread."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, TypeVar

from websockets.frames import Opcode

from tests.exchange.loop import LoopThread
from tests.exchange.market import STREAM, STREAM_1S, Market, envelope
from tests.exchange.rest import PREMIUM_INDEX, How, RestFault, RestRequest, RestService
from tests.exchange.stream import (
    LIVE_PATH,
    RETIRED_PATH,
    Attempt,
    Connection,
    ConnectionRecord,
    Lag,
    Refusal,
    StreamService,
    Timing,
)
from tests.support.waiting import PATIENCE_S, eventually

HOST = "127.0.0.1"
DEFAULT_BODIES = {
    403: "<html><head><title>403</title></head><body>Request blocked by the firewall.</body></html>",
    418: '{"code":-1003,"msg":"Way too many requests; this IP is banned for now."}',
    429: '{"code":-1003,"msg":"Too many requests; slow down."}',
    451: '{"code":0,"msg":"Service unavailable from a restricted location."}',
}

T = TypeVar("T")


class _Everyone:
    """A way to say which connections are meant."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return self._name


ALL = _Everyone("ALL")
"""Every live connection; there has to be one."""
FUTURE = _Everyone("FUTURE")
"""Every connection opened from now on, until `behave(FUTURE)`."""

Which = _Everyone | ConnectionRecord | int
"""ALL, FUTURE, a record, or an index into `Exchange.live`."""


class Exchange:
    """A simulated exchange on 127.0.0.1: WebSocket and REST, a port each, one thread "simulated-exchange".

    The intervals default to Binance's: a tick every 3 s at whole multiples on the exchange's clock, a ping
    every 3 min, closed without its pong after 10 min, cut after 24 h. Port 0 takes a free one.
    All methods and properties may be used from any thread but the exchange's own. A method returns when the
    exchange has done it; what a client sees of it follows over the network.
    Raises OSError from `start` where a port is taken, LookupError where a connection meant is not there.
    """

    def __init__(
        self,
        market: Market | None = None,
        *,
        tick_s: float = 3.0,
        ping_s: float = 180.0,
        pong_deadline_s: float = 600.0,
        lifetime_s: float = 86_400.0,
        clock_offset_s: float = 0.0,
        ws_port: int = 0,
        rest_port: int = 0,
    ) -> None:
        self.market = market or Market()
        self.clock_offset_s = clock_offset_s
        """The exchange's clock minus this host's. May be changed at any time."""
        self.rest_time_skew_s = 0.0
        """What `GET /fapi/v1/time` tells minus the exchange's clock. May be changed at any time."""
        self.rest_time_jump_s = 0.0
        """Every other answer of `GET /fapi/v1/time` is off by this as well. May be changed at any time."""
        self.rest_row_skew_s = 0.0
        """Event time of REST rows minus the exchange's clock. May be changed at any time."""
        self._times_asked = 0
        self._thread = LoopThread("simulated-exchange", self._start, self._stop)
        timing = Timing(tick_s, ping_s, pong_deadline_s, lifetime_s)
        self._stream = StreamService(self.market, timing, self.now_ms, self._thread.spawn)
        self._rest = RestService(self.market, self.now_ms, self._row_time_ms, self._server_time_ms)
        self._ports = {"ws": ws_port, "rest": rest_port}
        self._reserved: dict[str, socket.socket] = {}

    # Life

    def start(self) -> None:
        """Open both ports and start ticking."""
        with contextlib.ExitStack() as opened:
            for name, port in self._ports.items():
                self._reserved[name] = opened.enter_context(_bound_socket(port))
            opened.pop_all()
        self._ports = {name: sock.getsockname()[1] for name, sock in self._reserved.items()}
        self._thread.start()

    def stop(self) -> None:
        """Reset all connections, close the ports, join the thread. Raises the thread's first error."""
        self._thread.stop()

    def __enter__(self) -> Exchange:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    # Addresses and records

    @property
    def ws_port(self) -> int:
        """The port of the WebSocket side."""
        return self._ports["ws"]

    @property
    def rest_port(self) -> int:
        """The port of the REST side."""
        return self._ports["rest"]

    @property
    def ws_url(self) -> str:
        """The live stream's URL, with a tick every `tick_s`."""
        return f"ws://{HOST}:{self.ws_port}{LIVE_PATH}?streams={STREAM}"

    @property
    def ws_url_1s(self) -> str:
        """The live stream's URL with a tick every second."""
        return f"ws://{HOST}:{self.ws_port}{LIVE_PATH}?streams={STREAM_1S}"

    @property
    def retired_url(self) -> str:
        """The old URL: the handshake succeeds, pings come, data never does."""
        return f"ws://{HOST}:{self.ws_port}{RETIRED_PATH}?streams={STREAM}"

    @property
    def rest_url(self) -> str:
        """The REST base."""
        return f"http://{HOST}:{self.rest_port}"

    @property
    def connections(self) -> list[ConnectionRecord]:
        """Every connection whose handshake succeeded, oldest first."""
        return self._thread.call(lambda: list(self._stream.records))

    @property
    def live(self) -> list[ConnectionRecord]:
        """The open ones among `connections`, oldest first."""
        return [record for record in self.connections if record.is_open]

    @property
    def attempts(self) -> list[Attempt]:
        """Every WebSocket handshake, refused ones included."""
        return self._thread.call(lambda: list(self._stream.attempts))

    @property
    def ticks(self) -> list[int]:
        """The event times of the ticks so far, in ms."""
        return self._thread.call(lambda: list(self._stream.ticks))

    @property
    def rest_requests(self) -> list[RestRequest]:
        """Every REST request so far."""
        return self._thread.call(lambda: list(self._rest.requests))

    def now_ms(self) -> int:
        """Return the exchange's clock, in Unix milliseconds."""
        return int((time.time() + self.clock_offset_s) * 1000)

    def wait(self, condition: Callable[[], T], timeout_s: float = PATIENCE_S, what: str = "the condition") -> T:
        """Wait until a condition holds and return its value. Raises AssertionError after `timeout_s`."""
        return eventually(condition, what, timeout_s)

    def wait_for_live(self, count: int = 1, timeout_s: float = PATIENCE_S) -> list[ConnectionRecord]:
        """Wait until at least so many connections are live and return them."""
        return self.wait(
            lambda: live if len(live := self.live) >= count else [], timeout_s, f"{count} live connections"
        )

    # Sending

    def tick(self, event_time_ms: int | None = None) -> int:
        """Send a tick now, besides the regular ones; return its event time (default: now)."""
        at_ms = self.now_ms() if event_time_ms is None else event_time_ms
        self._thread.call(lambda: self._stream.tick(STREAM, at_ms))
        return at_ms

    def ping(self, which: Which = ALL) -> None:
        """Send a ping now, besides the regular ones."""
        self._each(which, self._stream.ping)

    def send(self, message: str | bytes, which: Which = ALL) -> None:
        """Send any message: str as a text frame, bytes as a binary one."""
        if isinstance(message, str):
            self.send_frame(Opcode.TEXT, message.encode(), which)
        else:
            self.send_frame(Opcode.BINARY, message, which)

    def send_rows(self, rows: list[dict[str, Any]], which: Which = ALL, stream: str = STREAM) -> None:
        """Send rows of any kind in a message of the stream."""
        self.send(envelope(rows, stream), which)

    def send_frame(self, opcode: Opcode, payload: bytes, which: Which = ALL, fin: bool = True) -> None:
        """Send one frame unchecked, such as a text frame of invalid UTF-8 or a lone fragment."""
        self._each(which, lambda connection: self._stream.send_frame(connection, opcode, payload, fin))

    def send_invalid_utf8(self, which: Which = ALL) -> None:
        """Send a mark price message as a text frame in which one byte makes it invalid UTF-8."""
        row = self.market.row("BTCUSDT", self.now_ms())
        self.send_frame(Opcode.TEXT, envelope([row]).encode().replace(b"BTCUSDT", b"BTC\xffSDT"), which)

    def send_huge(self, size_bytes: int = 40_000_000, which: Which = ALL) -> None:
        """Send one text frame of that size: valid JSON, an empty list of rows padded with blanks."""
        head, tail = envelope([]).encode().split(b"]")
        self.send_frame(Opcode.TEXT, head + b" " * (size_bytes - len(head) - len(tail) - 1) + b"]" + tail, which)

    def send_half_frame(self, which: Which = ALL) -> None:
        """Send half of a frame, then nothing any more: no data, no pings, no answers."""
        payload = self.market.messages(self.now_ms())[0].encode()
        self._each(which, lambda connection: self._stream.send_half_frame(connection, payload))

    def write(self, data: bytes, which: Which = ALL) -> None:
        """Write bytes to the TCP connection that need not be a frame."""
        self._each(which, lambda connection: connection.transport.write(data))

    # Endings

    def fail_over(self) -> None:
        """Let nothing pass any more on the connections that are open now, of stream and REST; new ones work.

        A firewall that fails over without its table of connections does this.
        """
        if self.live:
            self.stall(ALL)
        self._thread.call(self._rest.stall_open)

    def drop(self, which: Which = ALL) -> None:
        """End TCP connections with a FIN and no close frame."""
        self._each(which, lambda connection: self._stream.finish(connection, "dropped with FIN"))

    def reset(self, which: Which = ALL) -> None:
        """End TCP connections with an RST."""
        self._each(which, lambda connection: self._stream.reset(connection, "dropped with RST"))

    def close(self, code: int = 1000, reason: str = "", which: Which = ALL) -> None:
        """Start the closing handshake with a code."""
        self._each(which, lambda connection: self._stream.close(connection, code, reason))

    # Misbehaviour that lasts, until behave()

    def behave(self, which: Which = ALL) -> None:
        """End all lasting misbehaviour of the connections meant."""
        self._change(which, data=True, parts=(0, 1), event_time_ms=None, lag=Lag(0.0), stalled=False, trickle=None)

    def stall(self, which: Which = ALL) -> None:
        """Turn into a black hole: open, nothing comes, nothing received counts, a FIN is not answered."""
        self._change(which, stalled=True)

    def silence(self, which: Which = ALL) -> None:
        """Send no more data. Pings go on."""
        self._change(which, data=False)

    def stand_still(self, which: Which = ALL, event_time_ms: int | None = None) -> None:
        """Repeat one event time (default: the last tick's, else now) and its numbers with every tick."""
        at_ms = event_time_ms or self._thread.call(lambda: self._stream.last_event_time_ms) or self.now_ms()
        self._change(which, event_time_ms=at_ms)

    def lag(self, which: Which = ALL, behind_s: float = 0.0, growing_s_per_s: float = 0.0) -> None:
        """Let event times fall behind the exchange's clock, by `growing_s_per_s` more each second from now on.

        The numbers are those of the event times sent. With FUTURE each connection's lag grows from its opening.
        A connection that is to stand still goes on doing so.
        """
        self._change(which, lag=Lag(behind_s, growing_s_per_s))

    def lead(self, which: Which = ALL, ahead_s: float = 0.0) -> None:
        """Let event times be ahead of the exchange's clock."""
        self.lag(which, -ahead_s)

    def only_first_message(self, which: Which = ALL) -> None:
        """Send only the first message of every tick: all but TradFi."""
        self._change(which, parts=(0,))

    def only_second_message(self, which: Which = ALL) -> None:
        """Send only the second message of every tick: TradFi."""
        self._change(which, parts=(1,))

    def trickle(self, which: Which = ALL, piece_bytes: int = 1, pause_s: float = 0.01) -> None:
        """Send everything, pings included, in small pieces with pauses."""
        self._change(which, trickle=(piece_bytes, pause_s))

    # Symbols that misbehave on all connections, until told otherwise

    def lag_symbols(self, symbols: Iterable[str], behind_s: float) -> None:
        """Let these symbols' event times be behind those of the others in the stream; 0 ends it. REST is current."""
        self.market.lag(symbols, round(behind_s * 1000))

    def halt(self, symbols: Iterable[str]) -> int:
        """Let stream and REST bring nothing newer of these symbols; return the event time at which they stand.

        Their rows still come, with that event time; add them to `market.only_in_rest` to keep the stream's away.
        """
        last_ms = self._thread.call(lambda: self._stream.last_event_time_ms) or 0
        at_ms = max(last_ms, self.now_ms() // 1000 * 1000)
        self.market.halt(symbols, at_ms)
        return at_ms

    def resume(self, symbols: Iterable[str]) -> None:
        """End a halt."""
        self.market.resume(symbols)

    # Handshakes and reachability

    def refuse_handshakes(
        self,
        status: int,
        *,
        body: str | None = None,
        retry_after_s: int | None = None,
        headers: dict[str, str] | None = None,
        count: int | None = None,
    ) -> None:
        """Answer the next `count` WebSocket handshakes (None: all until accepted again) with a status."""
        refusal = Refusal(status, _body(status, body), _headers(retry_after_s, headers), count)
        self._thread.call(lambda: setattr(self._stream, "refusal", refusal))

    def hang_handshakes(self, count: int | None = None) -> None:
        """Accept TCP connections but leave WebSocket handshakes unanswered."""
        self.refuse_handshakes(0, body="", count=count)

    def accept_handshakes(self) -> None:
        """Answer handshakes as usual again."""
        self._thread.call(lambda: setattr(self._stream, "refusal", None))

    def down(self, *, ws: bool = True, rest: bool = True) -> None:
        """Refuse TCP connections and reset the open ones. The ports stay reserved for `up`."""
        self._thread.run(self._down(ws, rest))

    def up(self, *, ws: bool = True, rest: bool = True) -> None:
        """Listen on the same ports again."""
        self._thread.run(self._up(ws, rest))

    # REST faults, until rest_ok(), each for requests of which the target begins with `path`. A new fault replaces
    # those for its own path and for longer ones; of several that remain, the one with the longest path counts.

    def rest_ok(self, *, path: str = "/") -> None:
        """Answer REST requests as usual again."""
        self._thread.call(lambda: self._rest.clear_faults(path))

    def rest_fault(
        self,
        status: int = 200,
        *,
        body: str | bytes | None = None,
        retry_after_s: int | None = None,
        headers: dict[str, str] | None = None,
        content_type: str = "application/json",
        count: int | None = None,
        path: str = "/",
    ) -> None:
        """Answer the next `count` requests (None: all until `rest_ok`) with a status and a body.

        Without a body, 403, 418, 429 and 451 carry one like the exchange's, without the time a ban ends.
        """
        content = body if isinstance(body, bytes) else _body(status, body).encode()
        all_headers = {"Content-Type": content_type, **_headers(retry_after_s, headers)}
        self._set_rest_fault(RestFault(status, content, all_headers, "answer", count, path))

    def rest_ban(
        self, until_ms: int, *, retry_after_s: int | None = None, count: int | None = None, path: str = "/"
    ) -> None:
        """Answer 418 with the end of the ban in the body."""
        body = f'{{"code":-1003,"msg":"Way too many requests; IP banned until {until_ms}. Use the websocket."}}'
        self.rest_fault(418, body=body, retry_after_s=retry_after_s, count=count, path=path)

    def rest_garbage(self, *, path: str = "/") -> None:
        """Answer 200 with bytes that are neither JSON nor UTF-8."""
        self.rest_fault(200, body=b'\x00\xff[{"symbol":', path=path)

    def rest_html(self, *, path: str = "/") -> None:
        """Answer 200 with a page of HTML, as gateways do."""
        self.rest_fault(200, body="<html><body>Back soon</body></html>", content_type="text/html", path=path)

    def rest_wrong_shape(self, *, path: str = "/") -> None:
        """Answer 200 with good JSON of a shape that no endpoint has."""
        self.rest_fault(200, body='{"rows":[1,null,"BTCUSDT"]}', path=path)

    def rest_empty(self, *, path: str = PREMIUM_INDEX) -> None:
        """Answer 200 with an empty list."""
        self.rest_fault(200, body="[]", path=path)

    def rest_hang(self, *, path: str = "/") -> None:
        """Accept requests and never answer."""
        self._rest_how("hang", path)

    def rest_trickle(self, pause_s: float = 0.01, *, path: str = "/") -> None:
        """Send the right answer byte by byte, with a pause after each."""
        self._set_rest_fault(RestFault(how="trickle", pause_s=pause_s, path=path))

    def rest_cut(self, *, path: str = "/") -> None:
        """Send half of the right answer, then a FIN."""
        self._rest_how("cut", path)

    def rest_reset(self, *, path: str = "/") -> None:
        """Answer every request with an RST."""
        self._rest_how("reset", path)

    def _rest_how(self, how: How, path: str) -> None:
        self._set_rest_fault(RestFault(how=how, path=path))

    def _set_rest_fault(self, fault: RestFault) -> None:
        self._thread.call(lambda: self._rest.set_fault(fault))

    # The exchange's own thread

    async def _start(self) -> None:
        await self._up(ws=True, rest=True)
        self._thread.spawn(self._stream.tick_forever(STREAM, self._stream.timing.tick_s))
        self._thread.spawn(self._stream.tick_forever(STREAM_1S, 1.0))

    async def _stop(self) -> None:
        await self._down(ws=True, rest=True)
        for sock in self._reserved.values():
            sock.close()

    async def _up(self, ws: bool, rest: bool) -> None:
        for name, wanted, listen in (("ws", ws, self._stream.listen), ("rest", rest, self._rest.listen)):
            if wanted and name in self._reserved:
                await listen(self._reserved[name])
                del self._reserved[name]

    async def _down(self, ws: bool, rest: bool) -> None:
        if ws and "ws" not in self._reserved:
            await self._stream.stop_listening("exchange down")
            self._reserved["ws"] = _bound_socket(self._ports["ws"])
        if rest and "rest" not in self._reserved:
            await self._rest.stop_listening()
            self._reserved["rest"] = _bound_socket(self._ports["rest"])

    def _row_time_ms(self) -> int:
        """Return the event time of REST rows, which are made anew each second."""
        return self.now_ms() // 1000 * 1000 + round(self.rest_row_skew_s * 1000)

    def _server_time_ms(self) -> int:
        self._times_asked += 1
        jump_s = self.rest_time_jump_s if self._times_asked % 2 == 0 else 0.0
        return self.now_ms() + round((self.rest_time_skew_s + jump_s) * 1000)

    def _each(self, which: Which, action: Callable[[Connection], None]) -> None:
        def act() -> None:
            for connection in self._select(which):
                action(connection)

        self._thread.call(act)

    def _change(self, which: Which, **changes: Any) -> None:
        def change() -> None:
            if which is FUTURE:
                self._stream.future_behaviour = replace(self._stream.future_behaviour, **changes)
                return
            for connection in self._select(which):
                self._stream.behave(connection, replace(connection.behaviour, **changes))

        self._thread.call(change)

    def _select(self, which: Which) -> list[Connection]:
        connections = [one for one in self._stream.connections if one.record is not None and one.record.is_open]
        if which is FUTURE:
            raise LookupError("FUTURE is for lasting misbehaviour only")
        if isinstance(which, int):
            connections = connections[which : which + 1] if which >= 0 else connections[which:][:1]
        elif isinstance(which, ConnectionRecord):
            connections = [connection for connection in connections if connection.record is which]
        if not connections:
            raise LookupError(f"no live connection: {which!r}")
        return connections


def _bound_socket(port: int) -> socket.socket:
    """Return a bound socket that does not listen: connecting is refused, and nobody else gets the port."""
    # With the protocol named, asyncio turns on TCP_NODELAY; without, it leaves 40 ms pauses between writes.
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((HOST, port))
    except OSError:
        sock.close()
        raise
    return sock


def _body(status: int, body: str | None) -> str:
    return DEFAULT_BODIES.get(status, "") if body is None else body


def _headers(retry_after_s: int | None, headers: dict[str, str] | None) -> dict[str, str]:
    retry_after = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
    return {**retry_after, **(headers or {})}
