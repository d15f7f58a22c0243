"""Connections without sockets, and a stream pool over them, in simulated time: the test writes the fate of each."""

from collections.abc import Callable
from typing import Any

from binance_funding.daemon.source.connection import Connection
from binance_funding.daemon.source.faults import Cause, Kind
from tests.support.clock import learn_time
from tests.support.parts import Parts
from tests.support.simulated_exchange import TICK_S, SimulatedExchange

_STARTS_WITHIN_S = 0.01


class Line(Connection):
    """A connection without a socket: the test says what it brings and how it ends. Made by `Lines.open_connection`."""

    def __init__(self, lines: "Lines", *args: Any) -> None:
        super().__init__(*args)
        self.lines = lines
        self.behind_s: Callable[[], float] = lambda: 0.0
        """How far behind Binance's clock what it brings is, in seconds."""
        self.brings_data = False
        self.ends_when_told = True
        self.told_to_close_s: float | None = None
        self.aborts = 0

    def run(self) -> None:
        """Do what a thread would do after its start, a moment later."""
        self.lines.exchange.in_(_STARTS_WITHIN_S, lambda: None if self.ending else self.lines.answer(self))

    def brings(self, behind_s: Callable[[], float] | float = 0.0) -> None:
        """Bring mark prices from now on, every 3 s until the end, so far behind Binance's clock."""
        self.behind_s = behind_s if callable(behind_s) else lambda: behind_s
        if not self.brings_data:
            self.brings_data = True
            self._tick()

    def falls_behind(self, by_s_each_s: float) -> None:
        """Fall further behind from now on, by so many seconds each second."""
        from_s = self.lines.exchange.now_s
        self.behind_s = lambda: by_s_each_s * (self.lines.exchange.now_s - from_s)

    def _tick(self) -> None:
        if self.ending is not None or not self.brings_data:
            return
        exchange = self.lines.exchange
        self.opened_s = self.opened_s or exchange.now_s
        self._receive(exchange.stream_message(self.behind_s()))
        exchange.in_(TICK_S, self._tick)

    def ends(self, detail: str = "connection reset by peer", kind: Kind = Kind.LOST, **facts: Any) -> None:
        """End as it would by itself; `facts` are the other fields of Cause."""
        self.ending = self.ending or Cause(kind, detail, **facts)
        self.on_change()

    def close(self) -> None:
        """Note that it was told; say goodbye unless it hangs."""
        self.told_to_close_s = self.lines.exchange.now_s
        if self.ends_when_told:
            self.ends("closed by us")

    def abort(self) -> None:
        """Note that it was broken; end unless it hangs."""
        self.aborts += 1
        if self.ends_when_told:
            self.ends("closed by us")


class Lines:
    """All connections opened so far; `answer` is what the exchange does with every new one."""

    def __init__(self, exchange: SimulatedExchange) -> None:
        self.exchange = exchange
        self.all: list[Line] = []
        self.answer: Callable[[Line], None] = Line.brings
        self.pool_is_woken = False
        """Set whenever a connection has changed: the pool then looks around at once."""

    def open_connection(self, *args: Any) -> Line:
        """Stand in for Connection, as StreamPool and Daemon take it."""
        *others, on_change = args

        def change() -> None:
            self.pool_is_woken = True
            on_change()

        line = Line(self, *others, change)
        self.all.append(line)
        return line

    @property
    def open(self) -> list[Line]:
        """The connections that have not ended, oldest first."""
        return [line for line in self.all if line.ending is None]


def start_at_once(_name: str, target: Callable[[], None], *, is_needed: bool = True) -> bool:
    """Stand in for Threads.start where a Line is what runs: it only plans what it is going to do."""
    target()
    return True


class World(Parts):
    """A stream pool in simulated time, with all that it needs."""

    def __init__(
        self,
        *urls: str,
        uniform: Callable[[float, float], float] = lambda _low, high: high,
        proven_after_s: float = 60.0,
        knows_time: bool = True,
        **settings: Any,
    ) -> None:
        self.exchange = SimulatedExchange()
        self.lines = Lines(self.exchange)
        addresses = ",".join(urls) or "ws://one.example/market"
        super().__init__(self.exchange.time.clock, binance_ws_urls=addresses, **settings)
        if knows_time:
            learn_time(self.exchange_clock, self.exchange.offset_s, self.exchange.now_s)
        self.pool = self.new_pool(
            start_at_once,
            uniform=uniform,
            open_connection=self.lines.open_connection,
            proven_after_s=proven_after_s,
        )
        self.rounds = 0

    @property
    def now_s(self) -> float:
        """The simulated steady time."""
        return self.exchange.now_s

    def advance(self, seconds: float) -> None:
        """Let the pool live for so long: supervise its connections, wait as it says or until it is woken."""
        until_s = self.now_s + seconds
        while self.now_s < until_s:
            self.rounds += 1
            self.lines.pool_is_woken = False
            self._wait(min(self.now_s + self.pool.step(), until_s))

    def _wait(self, until_s: float) -> None:
        while not self.lines.pool_is_woken and self.exchange.next_event_s() <= until_s:
            self.exchange.run_next_event()
        if not self.lines.pool_is_woken:
            self.exchange.time.advance(until_s - self.now_s)


def refuses(cause: str = "handshake refused", **facts: Any) -> Callable[[Line], None]:
    """Let every new connection end at once."""
    return lambda line: line.ends(cause, **facts)


def opens_and_stays_silent(line: Line) -> None:
    """As a retired address does."""
    line.opened_s = line.lines.exchange.now_s


def unreachable(line: Line) -> None:
    """Nothing listens at the address."""
    line.ends("connection refused", Kind.TCP)


def brings_late(behind_s: float) -> Callable[[Line], None]:
    """Let every new connection bring mark prices that are so far behind from the start."""
    return lambda line: line.brings(behind_s)


def by_url(**answers: Callable[[Line], None]) -> Callable[[Line], None]:
    """Let the address decide: `one`, `two` for the hosts one.example and two.example."""
    return lambda line: answers[line.url.split("//")[1].split(".")[0]](line)
