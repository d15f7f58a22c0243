"""Binance in simulated time: what time it is there, what it sends, and what happens when."""

import heapq
import json
from collections.abc import Callable

from tests.support.clock import STEADY_S, SimulatedClock
from tests.support.samples import EVENT_MS, index_row, stream_row

HOUR_MS = 3_600_000
TICK_S = 3.0
"""Time between two messages of the stream."""
TIME_AT_START_S = EVENT_MS / 1000
"""Binance's time when a SimulatedClock starts: that of its wall clock."""


class SimulatedExchange:
    """One exchange and its timeline. Stream, REST and the test share it; for one thread."""

    def __init__(self, time: SimulatedClock | None = None) -> None:
        self.time = time or SimulatedClock()
        self.symbols = ["BTCUSDT", "ETHUSDT"]
        """What the stream brings."""
        self.listed = ["BTCUSDT", "ETHUSDT"]
        """What REST lists."""
        self.period_hours = {"ETHUSDT": 4}
        """Hours between two fundings, as the next funding times show them; 8 for the others."""
        self.halted_at_ms: dict[str, int] = {}
        """Event times at which the rows of these symbols stand still, in both sources."""
        self.rest_behind_s = 0.0
        """How old the rows of a snapshot are when they are sent."""
        self.ahead_s = 0.0
        """Binance's clock minus what this host's showed when it started; setting the latter does not change it."""
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    @property
    def now_s(self) -> float:
        """The simulated steady time."""
        return self.time.steady_s

    def now_ms(self, behind_s: float = 0.0) -> int:
        """Return Binance's time in ms, or what it was so many seconds ago."""
        return round((TIME_AT_START_S + self.now_s - STEADY_S + self.ahead_s - behind_s) * 1000)

    @property
    def offset_s(self) -> float:
        """Binance's time minus the simulated steady time, as an ExchangeClock keeps it."""
        return TIME_AT_START_S - STEADY_S + self.ahead_s

    def stream_message(self, behind_s: float = 0.0) -> bytes:
        """Return a message of !markPrice@arr with event times that lie so far behind."""
        times = self._events_of(self.symbols, behind_s)
        rows = [stream_row(symbol, E=at, T=self.next_funding_ms(symbol, at)) for symbol, at in times]
        return json.dumps({"stream": "!markPrice@arr", "data": rows}).encode()

    def premium_index(self) -> bytes:
        """Return the answer to GET /fapi/v1/premiumIndex."""
        times = self._events_of(self.listed, self.rest_behind_s)
        rows = [index_row(symbol, time=at, nextFundingTime=self.next_funding_ms(symbol, at)) for symbol, at in times]
        return json.dumps(rows).encode()

    def next_funding_ms(self, symbol: str, event_ms: int) -> int:
        """Return the next funding time of a symbol at some time."""
        period_ms = self.period_hours.get(symbol, 8) * HOUR_MS
        return (event_ms // period_ms + 1) * period_ms

    def _events_of(self, symbols: list[str], behind_s: float) -> list[tuple[str, int]]:
        now_ms = self.now_ms(behind_s)
        return [(symbol, min(now_ms, self.halted_at_ms.get(symbol, now_ms))) for symbol in symbols]

    def in_(self, seconds: float, action: Callable[[], None]) -> None:
        """Let something happen in so many seconds."""
        self._count += 1
        heapq.heappush(self._events, (self.now_s + seconds, self._count, action))

    def next_event_s(self) -> float:
        """Return the steady time of what happens next, infinite where nothing is planned."""
        return self._events[0][0] if self._events else float("inf")

    def run_next_event(self) -> None:
        """Let time pass until the next event, and let it happen."""
        at_s, _, action = heapq.heappop(self._events)
        self.time.advance(max(0.0, at_s - self.now_s))
        action()
