"""Which client notices a dead connection: run_forever without pings, run_forever with pings, or this project's daemon?

Each of the three clients meets four peers, all at the same time, on the loopback interface:

no-handshake    accepts the TCP connection and never sends an HTTP answer
silent-address  completes the handshake, sends and answers pings, and never sends a mark price
frozen-peer     hangs after three messages, while its kernel still acknowledges
dead-path       drops every segment of the client after three messages

Times on the command line and in the output are full size. The experiment divides them by --scale while it runs; with
--scale 1 it runs in real time. It needs Linux, because dead-path uses a socket filter.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import functools
import json
import platform
import re
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import websocket
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

LOOPBACK = "127.0.0.1"
DAEMON = Path(__file__).parents[2] / "binance_funding_ws_daemon.py"
STOP_LIMIT_S = 30.0
SO_ATTACH_FILTER = 26  # from <asm-generic/socket.h>, because the socket module does not export it
# websocket-client asks the kernel for these probes on every connection: after 30 s without data, 3 probes 10 s apart.
TCP_KEEPALIVE_S = {socket.TCP_KEEPIDLE: 30, socket.TCP_KEEPINTVL: 10}


@dataclass(frozen=True)
class Timing:
    """Every interval of the experiment, in seconds. It runs `scale` times as fast as full size."""

    scale: float
    ping_interval_s: float = 30.0
    ping_timeout_s: float = 10.0
    silence_s: float = 15.0
    feed_interval_s: float = 3.0
    watch_s: float = 100.0

    def divided(self) -> Timing:
        """Return the intervals, divided by the scale."""
        return Timing(self.scale, *(value / self.scale for value in list(vars(self).values())[1:]))


@dataclass
class Outcome:
    """When the client reported an error, and the error. Both are None if it reported none within watch_s."""

    noticed_after_s: float | None = None
    error: str | None = None


def drop_everything(sock: socket.socket) -> None:
    """Drop each arriving segment before TCP sees it. From now on, nothing is acknowledged or answered."""
    accept_no_byte = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # BPF_RET | BPF_K, 0
    program = struct.pack("HP", 1, ctypes.addressof(accept_no_byte))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


def mark_price() -> str:
    """Return a message of the all-market stream with one row."""
    now_ms = time.time_ns() // 1_000_000
    row = {"e": "markPriceUpdate", "E": now_ms, "s": "BTCUSDT", "p": "91725.8", "i": "91769.8", "r": "0.0001"}
    row["T"] = now_ms + 3_600_000
    return json.dumps({"stream": "!markPrice@arr", "data": [row]})


PEERS = ("no-handshake", "silent-address", "frozen-peer", "dead-path")


class Peer:
    """A server for one client. It can behave in each of the four ways."""

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self._over = threading.Event()

    def _send_three(self, connection: ServerConnection) -> None:
        for _ in range(3):
            connection.send(mark_price())
            self._over.wait(self._timing.feed_interval_s)

    def _silent_address(self, connection: ServerConnection) -> None:
        while not self._over.wait(self._timing.feed_interval_s):
            with contextlib.suppress(ConnectionClosed):
                connection.ping()

    def _frozen_peer(self, connection: ServerConnection) -> None:
        self._send_three(connection)
        with connection.protocol_mutex:  # the reading thread needs this lock for every frame
            self._over.wait()

    def _dead_path(self, connection: ServerConnection) -> None:
        self._send_three(connection)
        drop_everything(connection.socket)
        self._over.wait()

    @contextlib.contextmanager
    def running(self, peer: str) -> Iterator[str]:
        """Serve until the `with` block ends. Yields the URL."""
        if peer == "no-handshake":
            with socket.create_server((LOOPBACK, 0)) as listener:
                yield f"ws://{LOOPBACK}:{listener.getsockname()[1]}"
            return
        handlers = {
            "silent-address": self._silent_address,
            "frozen-peer": self._frozen_peer,
            "dead-path": self._dead_path,
        }
        with serve(handlers[peer], LOOPBACK, 0, ping_interval=None, close_timeout=0.1) as server:
            thread = threading.Thread(target=server.serve_forever, name=peer)
            thread.start()
            try:
                yield f"ws://{LOOPBACK}:{server.socket.getsockname()[1]}"
            finally:
                self._over.set()
                server.shutdown()
                thread.join(STOP_LIMIT_S)


def run_forever(url: str, timing: Timing, *, pings: bool) -> Outcome:
    """Run websocket-client's own loop until it reports an error or watch_s have passed.

    The loop returns up to 3 s after the report, because it waits for the peer to answer its close frame.
    """
    outcome = Outcome()
    started_mono_s = time.monotonic()

    def on_error(_app: websocket.WebSocketApp, error: Exception) -> None:
        if outcome.noticed_after_s is None:
            outcome.noticed_after_s = time.monotonic() - started_mono_s
            outcome.error = f"{type(error).__name__}: {error}"

    app = websocket.WebSocketApp(url, on_error=on_error)
    sockopt = [
        (socket.IPPROTO_TCP, option, max(1, round(seconds / timing.scale)))
        for option, seconds in TCP_KEEPALIVE_S.items()
    ]

    def client() -> None:
        app.run_forever(
            sockopt=None if timing.scale == 1 else sockopt,
            ping_interval=timing.ping_interval_s if pings else 0,
            ping_timeout=timing.ping_timeout_s if pings else None,
            http_no_proxy=[LOOPBACK],
        )

    thread = threading.Thread(target=client, name="client", daemon=True)
    thread.start()
    thread.join(timing.watch_s)
    seen = Outcome(outcome.noticed_after_s, outcome.error)
    app.keep_running = False
    if app.sock and app.sock.sock:
        with contextlib.suppress(OSError):
            app.sock.sock.shutdown(socket.SHUT_RDWR)
    thread.join(STOP_LIMIT_S)
    if thread.is_alive():
        raise TimeoutError("run_forever did not end")
    return seen


def run_daemon(url: str, timing: Timing) -> Outcome:
    """Run this project's daemon with one connection until it reports the loss of it or watch_s have passed."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            "BINANCE_WS_URLS": url,
            "BINANCE_REST_URL": f"http://{LOOPBACK}:1",  # nothing listens on this port
            "STREAM_CONNECTIONS": "1",
            "SILENCE_SECONDS": str(timing.silence_s),
            "STATE_FILE": f"{folder}/state.json",
        }
        with subprocess.Popen(
            [sys.executable, DAEMON],
            cwd=folder,  # so that it reads no .env file
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            over = threading.Timer(timing.watch_s, process.terminate)
            over.start()
            try:
                return read_log(process.stdout or ())
            finally:
                over.cancel()
                process.terminate()


def read_log(lines: Iterable[str]) -> Outcome:
    """Read the daemon's log until it reports the end of its connection. Time counts from the first line."""
    started_mono_s: float | None = None
    for line in lines:
        started_mono_s = started_mono_s or time.monotonic()
        ending = re.search(r'(silent|lost|connect failed) cause=(".*?"|\S+)', line)
        if ending:
            return Outcome(time.monotonic() - started_mono_s, ending.group())
    return Outcome()


Client = Callable[[str, Timing], Outcome]
CLIENTS: dict[str, Client] = {
    "pings off": functools.partial(run_forever, pings=False),
    "pings on": functools.partial(run_forever, pings=True),
    "daemon": run_daemon,
}


def run(peer: str, client: Client, timing: Timing) -> Outcome:
    """Connect one client to a new peer and return what the client noticed."""
    with Peer(timing).running(peer) as url:
        return client(url, timing)


def run_all(timing: Timing) -> dict[tuple[str, str], Outcome]:
    """Connect every client to every peer, all at the same time. The keys of the result are (peer, client)."""
    keys = [(peer, client) for peer in PEERS for client in CLIENTS]
    with ThreadPoolExecutor(len(keys)) as pool:
        outcomes = pool.map(lambda key: run(key[0], CLIENTS[key[1]], timing), keys)
        return dict(zip(keys, outcomes, strict=True))


def main() -> None:
    """Run the whole experiment and print its outcome."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=10.0, help="run this many times as fast (default: %(default)g)")
    for name, value in vars(Timing(1.0)).items():
        if name != "scale":
            option = "--" + name.removesuffix("_s").replace("_", "-")
            parser.add_argument(option, type=float, default=value, dest=name, help="seconds (default: %(default)g)")
    full_size = Timing(**vars(parser.parse_args()))
    print(
        f"websocket-client {version('websocket-client')}, websockets {version('websockets')}, "
        f"Python {platform.python_version()}; run {full_size.scale:g} times as fast, times are full size"
    )
    for (peer, client), outcome in run_all(full_size.divided()).items():
        if outcome.noticed_after_s is None:
            end = f"        nothing noticed in {full_size.watch_s:g} s"
        else:
            end = f"{outcome.noticed_after_s * full_size.scale:5.1f} s  {outcome.error}"
        print(f"{peer:15} {client:10} {end}")


if __name__ == "__main__":
    main()
