"""What keeps a state file, fed tick by tick: our daemon and its yardstick."""

import contextlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bench.feeder import Feeder
from bench.machine import cpu_s, on_measured_core, settled_cpu_s
from tests.exchange import Exchange, Market
from tests.support.programs import STATE_FILE, Program

_LOOK_EVERY_S = 0.0001
_PATIENCE_S = 30.0


class Messages(NamedTuple):
    """One tick: its messages, a symbol of each, and the event time of all."""

    payloads: tuple[bytes, ...]
    symbols: tuple[str, ...]
    event_time_ms: int


class Tick(NamedTuple):
    """What one tick cost, and for each message the seconds from its last byte to the file that holds it."""

    cpu_s: float
    visible_after_s: list[float]


def next_messages(market: Market) -> Messages:
    """Return a tick in which every row has advanced to now."""
    event_time_ms = time.time_ns() // 1_000_000
    payloads = tuple(message.encode() for message in market.messages(event_time_ms))
    return Messages(payloads, ("BTCUSDT", "TSLAUSDT"), event_time_ms)


def market_of(rows: int) -> Market:
    """Return a market of which so many rows are kept, TradFi in a second message as on the real service."""
    tradfi = rows // 4
    return Market(usd_m=rows - tradfi, tradfi=tradfi)


class Subject:
    """A program that writes a state file, and the stream that feeds it."""

    def __init__(self, program: Program, feeder: Feeder, connections: int) -> None:
        """Wait until the program has connected."""
        self.program = program
        self.pid = program.process.pid
        self.path = program.folder / STATE_FILE
        self._feeder = feeder
        feeder.accept(connections)

    def take(self, messages: Messages) -> Tick:
        """Send a tick, wait until the file holds it and the program rests. Raises TimeoutError."""
        before_s = cpu_s(self.pid)
        sent_s = self._feeder.send(messages.payloads)
        seen_s = self._wait_for(messages)
        taken_s = settled_cpu_s(self.pid) - before_s
        return Tick(taken_s, [seen - sent for seen, sent in zip(seen_s, sent_s, strict=True)])

    def _wait_for(self, messages: Messages) -> list[float]:
        """Return the monotonic time at which each message was first seen in the file."""
        seen_s: dict[str, float] = {}
        known_file, deadline_s = (0, 0), time.monotonic() + _PATIENCE_S
        while len(seen_s) < len(messages.symbols):
            now_s = time.monotonic()
            with contextlib.suppress(FileNotFoundError):
                info = os.stat(self.path)
                if (info.st_ino, info.st_mtime_ns) != known_file:
                    known_file = info.st_ino, info.st_mtime_ns
                    content = self.path.read_bytes()
                    for symbol in messages.symbols:
                        if symbol not in seen_s and _event_time_ms(content, symbol) == messages.event_time_ms:
                            seen_s[symbol] = now_s
            if now_s > deadline_s:
                raise TimeoutError("\n".join(["the tick did not reach the file", *self.program.log]))
            time.sleep(_LOOK_EVERY_S)
        return [seen_s[symbol] for symbol in messages.symbols]


def _event_time_ms(content: bytes, symbol: str) -> int:
    found = re.search(rb'"%s": ?\{[^}]*"eventTime": ?([0-9]+)' % symbol.encode(), content)
    return int(found[1]) if found else 0


@contextlib.contextmanager
def running_daemon(exchange: Exchange, folder: Path, connections: int, **settings: object) -> Iterator[Subject]:
    """Run the daemon on the measured core, its REST side served by the exchange, its settings the defaults."""
    addresses = {"BINANCE_REST_URL": exchange.rest_url, "STREAM_CONNECTIONS": connections}
    with _running("binance_funding_ws_daemon.py", folder, connections, {**addresses, **settings}) as subject:
        yield subject


@contextlib.contextmanager
def running_baseline(folder: Path) -> Iterator[Subject]:
    """Run the yardstick on the measured core."""
    with _running("bench/baseline.py", folder, 1, {}) as subject:
        yield subject


@contextlib.contextmanager
def _running(script: str, folder: Path, connections: int, settings: dict[str, object]) -> Iterator[Subject]:
    folder.mkdir()
    with contextlib.closing(Feeder()) as feeder:
        addresses = {"BINANCE_WS_URLS": feeder.url, "STATE_FILE": folder / STATE_FILE}
        with on_measured_core():
            program = Program(script, folder, {**addresses, **settings})
        with program:
            yield Subject(program, feeder, connections)
