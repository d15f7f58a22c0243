"""Where the daemon's time for a tick goes: its parts, called one by one with the same messages, in turns with it."""

import gc
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from bench.machine import on_measured_core
from bench.subjects import Messages
from binance_funding.clock import Clock
from binance_funding.daemon.market.book import Book
from binance_funding.daemon.market.exchange_clock import ExchangeClock
from binance_funding.daemon.market.intervals import Intervals
from binance_funding.daemon.market.stream_state import StreamState
from binance_funding.daemon.output.publisher import Annotations, Renderer
from binance_funding.daemon.source.rates import decode_stream
from binance_funding.daemon.supervisor import GARBAGE_THRESHOLD
from binance_funding.settings import Settings
from binance_funding.state_file import StateFile

_T = TypeVar("_T")


class Stages:
    """The parts of one tick with one connection, each timed every time `take` is called."""

    def __init__(self, folder: Path) -> None:
        settings, self._clock = Settings(), Clock()
        exchange_clock = ExchangeClock(self._clock)
        self._book = Book(settings, exchange_clock, Intervals(self._clock), StreamState(settings, self._clock))
        self._renderer = Renderer(exchange_clock)
        self._annotations = Annotations({}, {}, None, frozenset())
        self._file = StateFile(str(folder / "stages.json"))
        self._tick_s: dict[str, float] = {}
        self._taken_s: dict[str, list[float]] = {}
        # The garbage collector is part of the cost, as the daemon has it; going through all that this process holds
        # besides is not.
        gc.set_threshold(GARBAGE_THRESHOLD)
        gc.freeze()

    def take(self, messages: Messages) -> None:
        """Do with the messages of a tick what the daemon does, on the measured core."""
        self._tick_s = defaultdict(float)
        with on_measured_core():
            for payload in messages.payloads:
                self._take_one(payload)
        for name, seconds in self._tick_s.items():
            self._taken_s.setdefault(name, []).append(seconds)

    def _take_one(self, payload: bytes) -> None:
        received_s = self._clock.steady_s()
        self._timed("parsing alone", lambda: json.loads(payload.decode()))
        rates = self._timed("parsing and checking every row", lambda: decode_stream(payload, received_s)).rates
        self._timed("newest of each symbol", lambda: self._book.merge(rates))
        newest = self._book.rates()
        texts = self._timed("rendering the new records", lambda: self._renderer.render(newest, 0.0, self._annotations))
        self._timed("writing the file", lambda: self._file.write(texts, {}, {}))

    def _timed(self, name: str, work: Callable[[], _T]) -> _T:
        start_s = time.thread_time()
        result = work()
        self._tick_s[name] += time.thread_time() - start_s
        return result

    def shares(self, whole_s: float) -> str:
        """Say what each part takes of a tick that costs the daemon `whole_s` CPU seconds; the last is what is left."""
        parts = {name: statistics.median(taken_s) for name, taken_s in self._taken_s.items()}
        of_which_s = parts.pop("parsing alone")
        parts["receiving, threads, statistics"] = whole_s - sum(parts.values())
        shares = [f"- {name}: {seconds * 1e3:.2f} ms ({seconds / whole_s:.0%})" for name, seconds in parts.items()]
        shares[0] += f", of which the json module alone would take {of_which_s * 1e3:.2f} ms"
        return "\n".join([f"Of the {whole_s * 1e3:.2f} ms for a tick with one connection:", "", *shares])
