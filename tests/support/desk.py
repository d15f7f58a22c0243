"""Book, freshness and feed of a daemon on one simulated clock, without threads, sockets or files."""

import json
from typing import Any

from binance_funding.daemon.record import REST, STREAM
from tests.support.clock import STEADY_S, WALL_S, SimulatedClock, learn_time
from tests.support.parts import Parts
from tests.support.samples import rate, stream_row

OFFSET_S = WALL_S - STEADY_S
"""Binance's time minus the simulated steady time; this host's wall clock starts out right."""


class Desk(Parts):
    """The parts at hand. Sources bring rows of the symbols named, true so many seconds before they come."""

    def __init__(self, **settings: Any) -> None:
        self.time = SimulatedClock()
        super().__init__(self.time.clock, **settings)
        self.trouble = "stream: it was cut"

    @property
    def now_s(self) -> float:
        """The steady time."""
        return self.time.steady_s

    def event_ms(self, lag_s: float = 0.0) -> int:
        """Return Binance's time so many seconds ago."""
        return round((self.now_s + OFFSET_S - lag_s) * 1000)

    def learn_time(self) -> None:
        """Let Binance's time become known."""
        learn_time(self.exchange_clock, OFFSET_S, self.now_s)

    def answer_time(self) -> None:
        """Let Binance answer what time it is there."""
        self.exchange_clock.note_answer(self.event_ms() / 1000, self.now_s, self.now_s)

    def stream(self, *symbols: str, lag_s: float = 0.0) -> int:
        """Let the stream bring these symbols; return how many rows were news."""
        return self._merge(STREAM, symbols, lag_s)

    def rest(self, *symbols: str, lag_s: float = 0.0) -> int:
        """Let REST bring these symbols without saying that they are all it lists; return how many rows were news."""
        return self._merge(REST, symbols, lag_s)

    def snapshot(self, *symbols: str, **standing_still_since_s: float) -> None:
        """Let REST list these symbols with current rows, and others with rows as of that steady time."""
        event_times_ms = {
            **dict.fromkeys(symbols, self.event_ms()),
            **{symbol: round((since_s + OFFSET_S) * 1000) for symbol, since_s in standing_still_since_s.items()},
        }
        rates = [
            rate(symbol, event_time_ms=event_ms, source=REST, received_s=self.now_s)
            for symbol, event_ms in event_times_ms.items()
        ]
        self.freshness.merge(rates, is_snapshot=True)
        self.book.note_snapshot(rates, self.now_s)

    def _merge(self, source: str, symbols: tuple[str, ...], lag_s: float) -> int:
        event_ms, received_s = self.event_ms(lag_s), self.now_s
        rates = [rate(symbol, event_time_ms=event_ms, source=source, received_s=received_s) for symbol in symbols]
        return self.freshness.merge(rates)

    def message(self, *symbols: str, lag_s: float = 0.0) -> bytes:
        """Return a message of the stream."""
        rows = [stream_row(symbol, E=self.event_ms(lag_s)) for symbol in symbols]
        return json.dumps({"stream": "!markPrice@arr", "data": rows}).encode()

    def newest(self) -> dict[str, tuple[int, str]]:
        """Return event time and source by symbol."""
        return {rate.symbol: (rate.event_time_ms, rate.source) for rate in self.book.rates()}

    def gaps(self) -> list[tuple[float, float, str]]:
        """Return start (wall time), seconds and cause of the gaps noted."""
        gaps = self.last_day.to_json(self.time.wall_s)["gaps"]
        return [(gap["start"], gap["seconds"], gap["cause"]) for gap in gaps]
