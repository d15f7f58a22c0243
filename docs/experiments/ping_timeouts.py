"""With which servers and handlers does a connection survive, with and without websocket-client's ping check?

Each of three clients meets four cases, all at the same time, each with its own server on the loopback interface.

The clients:
pings on     WebSocketApp.run_forever with ping_interval and ping_timeout, the faulty configuration
pings off    the same with ping_interval=0 and skip_utf8_validation=True
websockets   the client of another library, with the same ping interval and timeout

The cases:
no-pong      the server never answers a ping, but sends data
slow-handler the server answers at once, but the client handles messages more slowly than they arrive
one-stall    the server answers at once, but the client needs longer than ping_timeout for one message
healthy      the server answers at once, and the client is fast

The server uses `websockets`, so that a fault of websocket-client cannot be in both peers. Times on the command line and
in the output are full size. The experiment divides them by --scale while it runs; with --scale 1 it runs in real time.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import copy
import functools
import json
import logging
import platform
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version

import websocket
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed, ConnectionClosedError
from websockets.frames import Frame, Opcode
from websockets.sync.client import connect

STOP_LIMIT_S = 30.0
QUIET = logging.getLogger("docs.experiments.quiet")  # hides the keepalive timeouts that `websockets` would log
QUIET.setLevel(logging.CRITICAL + 1)


@dataclass(frozen=True)
class Timing:
    """Every interval of one experiment, in seconds."""

    ping_interval_s: float = 30.0
    ping_timeout_s: float = 10.0
    feed_interval_s: float = 3.0
    slow_handler_s: float = 5.0
    stall_s: float = 15.0
    server_ping_interval_s: float = 20.0
    watch_s: float = 110.0

    def divided_by(self, scale: float) -> Timing:
        """Return the intervals of the same experiment, run `scale` times as fast."""
        return Timing(**{name: value / scale for name, value in vars(self).items()})


@dataclass(frozen=True)
class Case:
    """How the server and the message handler of the client behave."""

    server_answers_pings: bool = True
    slow_handler: bool = False
    one_stall: bool = False


CASES = {
    "no-pong": Case(server_answers_pings=False),
    "slow-handler": Case(slow_handler=True),
    "one-stall": Case(one_stall=True),
    "healthy": Case(),
}


@dataclass
class Outcome:
    """What client and server observed. Times are in seconds since run_forever was called."""

    ended_after_s: float | None = None
    error: str | None = None
    messages: int = 0
    last_data_age_s: float = 0.0
    pongs_read: int = 0
    pings_at_server: int = 0
    pongs_from_server_s: list[float] = field(default_factory=list)
    server_pings_answered: int = 0


class Exchange:
    """A server that sends mark prices and pings, and records which pings it receives and which it answers."""

    def __init__(self, case: Case, timing: Timing, outcome: Outcome, started_mono_s: float) -> None:
        self._case = case
        self._timing = timing
        self._outcome = outcome
        self._started_mono_s = started_mono_s

    async def serve_client(self, connection: ServerConnection) -> None:
        """Send one message per interval until the client disconnects."""
        self._watch_pongs(connection)
        pinging = asyncio.create_task(self._ping_client(connection))
        try:
            while True:
                row = {
                    "e": "markPriceUpdate",
                    "E": time.time_ns() // 1_000_000,
                    "s": "BTCUSDT",
                    "r": "0.0001",
                }
                await connection.send(json.dumps({"stream": "!markPrice@arr", "data": [row]}))
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(connection.wait_closed(), self._timing.feed_interval_s)
        except ConnectionClosed:
            pass
        finally:
            pinging.cancel()

    async def _ping_client(self, connection: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            while True:
                await asyncio.sleep(self._timing.server_ping_interval_s)
                # The future completes only for a pong that copies this payload.
                await (await connection.ping(str(time.time_ns() // 1_000_000)))
                self._outcome.server_pings_answered += 1

    def _watch_pongs(self, connection: ServerConnection) -> None:
        """Record each ping of the client and its answer, or suppress the answer.

        While `websockets` parses a ping, it passes the pong to send_frame. This server sends no other pongs, so each
        pong frame means one ping of the client.
        """
        send_frame = connection.protocol.send_frame

        def send_frame_but_watch_pongs(frame: Frame) -> None:
            if frame.opcode is Opcode.PONG:
                self._outcome.pings_at_server += 1
                if not self._case.server_answers_pings:
                    return
                self._outcome.pongs_from_server_s.append(time.monotonic() - self._started_mono_s)
            send_frame(frame)

        connection.protocol.send_frame = send_frame_but_watch_pongs  # type: ignore[method-assign]


@contextlib.contextmanager
def running(exchange: Exchange) -> Iterator[str]:
    """Serve in a new thread until the `with` block ends. Yields the URL."""
    started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event, int]] = Future()

    async def main() -> None:
        stop = asyncio.Event()
        # ping_interval=None turns the keepalive of `websockets` off: only the exchange sends pings.
        async with serve(exchange.serve_client, "127.0.0.1", 0, ping_interval=None, close_timeout=0.1) as server:
            port = next(iter(server.sockets)).getsockname()[1]
            started.set_result((asyncio.get_running_loop(), stop, port))
            await stop.wait()

    thread = threading.Thread(target=asyncio.run, args=(main(),), name="exchange")
    thread.start()
    loop, stop, port = started.result(STOP_LIMIT_S)
    try:
        yield f"ws://127.0.0.1:{port}"
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(STOP_LIMIT_S)


class Handler:
    """The callbacks of the client."""

    def __init__(self, case: Case, timing: Timing, outcome: Outcome, started_mono_s: float) -> None:
        self._case = case
        self._timing = timing
        self._outcome = outcome
        # Stall one message before the ping at twice the interval, which is the first ping of releases up to 1.9.0.
        self._stall_at_mono_s = started_mono_s + 2 * timing.ping_interval_s - timing.feed_interval_s
        self._stalled = False

    def on_message(self, _app: websocket.WebSocketApp | None, message: str | bytes) -> None:
        """Handle one message, as slowly as the case demands."""
        event_time_s = json.loads(message)["data"][0]["E"] / 1000
        self._outcome.messages += 1
        self._outcome.last_data_age_s = time.time() - event_time_s
        if self._case.slow_handler:
            time.sleep(self._timing.slow_handler_s)
        if self._case.one_stall and not self._stalled and time.monotonic() >= self._stall_at_mono_s:
            self._stalled = True
            time.sleep(self._timing.stall_s)

    def on_pong(self, _app: websocket.WebSocketApp | None, _payload: bytes) -> None:
        """Count a pong that the loop has read."""
        self._outcome.pongs_read += 1

    def on_error(self, _app: websocket.WebSocketApp | None, error: Exception) -> None:
        """Store the error."""
        self._outcome.error = f"{type(error).__name__}: {error}"


class WebSocketAppClient:
    """websocket-client's own loop, in the faulty configuration (pings, UTF-8 validation) or in ours (neither)."""

    def __init__(self, url: str, handler: Handler, timing: Timing, *, pings: bool) -> None:
        self._app = websocket.WebSocketApp(
            url, on_message=handler.on_message, on_pong=handler.on_pong, on_error=handler.on_error
        )
        self._timing = timing
        self._pings = pings

    def run(self) -> None:
        """Read until the connection ends or stop() is called."""
        self._app.run_forever(
            ping_interval=self._timing.ping_interval_s if self._pings else 0,
            ping_timeout=self._timing.ping_timeout_s if self._pings else None,
            skip_utf8_validation=not self._pings,
            http_no_proxy=["127.0.0.1"],
        )

    def stop(self) -> None:
        """Make run() return at the next message, or when the server closes the connection."""
        self._app.keep_running = False


class WebsocketsClient:
    """The client of the library `websockets`, with the same ping interval and timeout."""

    def __init__(self, url: str, handler: Handler, timing: Timing) -> None:
        self._handler = handler
        self._stopping = False
        self._connect = connect(
            url,
            ping_interval=timing.ping_interval_s,
            ping_timeout=timing.ping_timeout_s,
            proxy=None,
            close_timeout=0.1,
            logger=QUIET,
        )

    def run(self) -> None:
        """Read until the connection ends or stop() is called."""
        try:
            with self._connect as connection:
                for message in connection:
                    if self._stopping:
                        break
                    self._handler.on_message(None, message)
        except ConnectionClosedError as error:
            self._handler.on_error(None, error)

    def stop(self) -> None:
        """Make run() return at the next message, or when the server closes the connection."""
        self._stopping = True


CLIENTS: dict[str, Callable[[str, Handler, Timing], WebSocketAppClient | WebsocketsClient]] = {
    "pings on": functools.partial(WebSocketAppClient, pings=True),
    "pings off": functools.partial(WebSocketAppClient, pings=False),
    "websockets": WebsocketsClient,
}


def run(client_name: str, case: Case, timing: Timing) -> Outcome:
    """Run one client until its connection ends or watch_s have passed.

    Raises TimeoutError if the client does not stop after that.
    """
    outcome = Outcome()
    started_mono_s = time.monotonic()
    with running(Exchange(case, timing, outcome, started_mono_s)) as url:
        client = CLIENTS[client_name](url, Handler(case, timing, outcome, started_mono_s), timing)

        def run_client() -> None:
            client.run()
            outcome.ended_after_s = time.monotonic() - started_mono_s

        thread = threading.Thread(target=run_client, name="client", daemon=True)
        thread.start()
        thread.join(timing.watch_s)
        seen = copy.deepcopy(outcome)
        client.stop()
    thread.join(STOP_LIMIT_S)
    if thread.is_alive():
        raise TimeoutError("the client did not stop")
    return seen


def run_all(timing: Timing) -> dict[tuple[str, str], Outcome]:
    """Run every client with every case, all at the same time. The keys of the result are (client, case)."""
    keys = [(client, case) for client in CLIENTS for case in CASES]
    with ThreadPoolExecutor(len(keys)) as pool:
        outcomes = pool.map(lambda key: run(key[0], CASES[key[1]], timing), keys)
        return dict(zip(keys, outcomes, strict=True))


def describe(outcome: Outcome, scale: float, watch_s: float) -> str:
    """Return the columns under HEADER. Times are in full-size seconds."""
    end, since_pong = f"alive at {watch_s:.1f} s", ""
    if outcome.ended_after_s is not None:
        end = f" dead at {outcome.ended_after_s * scale:5.1f} s"
        if outcome.pongs_from_server_s:
            since_pong = f"{(outcome.ended_after_s - outcome.pongs_from_server_s[-1]) * scale:.1f} s"
    pings = f"{outcome.pings_at_server}/{len(outcome.pongs_from_server_s)}/{outcome.pongs_read}"
    data = f"{outcome.messages:>4}, {outcome.last_data_age_s * scale:4.1f} s"
    error = "" if outcome.error is None else outcome.error.partition(": ")[2]
    return f"{end:17} {pings:7} {since_pong:>8} {outcome.server_pings_answered:>7}    {data}  {error}".rstrip()


HEADER = """\
client      case          connection        client    answer server's  messages,
                                            pings*      sent** pings*** age of last  error"""

FOOTER = """\
*   reached the server / answered by it / answers read by run_forever
**  how long before the end of the connection the server had sent its last answer
*** answered by the client, with their payload"""


def main() -> None:
    """Run the whole experiment and print its outcome."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=20.0, help="run this many times as fast (default: %(default)g)")
    full_size = Timing()
    for name, value in vars(full_size).items():
        option = "--" + name.removesuffix("_s").replace("_", "-")
        parser.add_argument(option, type=float, default=value, dest=name, help="seconds (default: %(default)g)")
    arguments = vars(parser.parse_args())
    scale = arguments.pop("scale")
    timing = Timing(**arguments)
    print(
        f"websocket-client {version('websocket-client')}, websockets {version('websockets')}, "
        f"Python {platform.python_version()}; run {scale:g} times as fast, times are full size"
    )
    print(HEADER)
    for (client, case), outcome in run_all(timing.divided_by(scale)).items():
        print(f"{client:11} {case:13} {describe(outcome, scale, timing.watch_s)}")
    print(FOOTER)


if __name__ == "__main__":
    main()
