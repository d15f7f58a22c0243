"""A stand-in for RestClient that answers in simulated time, and a poller over it."""

import json
import math
from collections.abc import Callable
from typing import Any, cast

from binance_funding.daemon.source.faults import NO_ANSWER_IN_TIME, Cause, Kind
from binance_funding.daemon.source.rest_client import RestClient, RestError
from tests.support.parts import Parts
from tests.support.simulated_exchange import TICK_S, SimulatedExchange

INDEX, TIME, INFO = "/fapi/v1/premiumIndex", "/fapi/v1/time", "/fapi/v1/fundingInfo"
_WEIGHTS = {INDEX: 10, TIME: 1, INFO: 0}
_TIMEOUT_S = 10.0


class Binance:
    """Answers as Binance would at that moment, after a while, and remembers when it was asked for what."""

    def __init__(self, exchange: SimulatedExchange) -> None:
        self.exchange = exchange
        self.takes_s: Callable[[str], float] = lambda _path: 0.2
        """How long an answer to the path takes; above the limit of the request it ends in a timeout."""
        self.fails: Callable[[str], RestError | None] = lambda _path: None
        """What a request for the path ends in, None where it succeeds."""
        self.bodies: dict[str, bytes] = {}
        """Answers other than the right ones, by path."""
        self.intervals = {"ETHUSDT": 4}
        """What fundingInfo names. It may be late, or early, against what the next funding times show."""
        self.time_wrong_by_s = 0.0
        self.asked: list[tuple[float, str]] = []
        self.aborted = 0
        self.closed = False

    def get(self, path: str, within_s: float = math.inf) -> bytes:
        """Answer, or raise RestError; time passes meanwhile."""
        self.asked.append((self.exchange.now_s, path))
        takes_s, limit_s = self.takes_s(path), min(within_s, _TIMEOUT_S)
        if takes_s > limit_s:
            self.exchange.time.advance(limit_s)
            raise RestError(NO_ANSWER_IN_TIME)
        self.exchange.time.advance(takes_s / 2)
        error, body = self.fails(path), self._body(path)
        self.exchange.time.advance(takes_s / 2)
        if error is not None:
            raise error
        return body

    def _body(self, path: str) -> bytes:
        if path in self.bodies:
            return self.bodies[path]
        if path == TIME:
            return json.dumps({"serverTime": self.exchange.now_ms(-self.time_wrong_by_s)}).encode()
        if path == INFO:
            more = {"adjustedFundingRateCap": "0.02000000", "adjustedFundingRateFloor": "-0.02000000"}
            rows = [{"symbol": name, "fundingIntervalHours": hours, **more} for name, hours in self.intervals.items()]
            return json.dumps(rows).encode()
        return self.exchange.premium_index()

    def abort(self) -> None:
        """Note it."""
        self.aborted += 1

    def close(self) -> None:
        """Note it."""
        self.closed = True

    def times_s(self, path: str = INDEX) -> list[float]:
        """Return the times at which the path was asked for."""
        return [at_s for at_s, asked in self.asked if asked == path]

    def weights(self) -> list[tuple[float, int]]:
        """Return the weight of every request with its time."""
        return [(at_s, _WEIGHTS[path]) for at_s, path in self.asked]


def lost(detail: str = "connection reset by peer") -> RestError:
    """Return the error of a request whose connection broke."""
    return RestError(Cause(Kind.LOST, detail))


def http_error(status: int, wait_s: float = 0.0) -> RestError:
    """Return the error of a request that was answered with this status."""
    return RestError(Cause(Kind.REFUSED, code=status, wait_s=wait_s))


def refused(status: int, wait_s: float = 0.0) -> Callable[[str], RestError]:
    """Let every request be refused."""
    return lambda _path: http_error(status, wait_s)


class RestWorld(Parts):
    """A poller with all that it needs; the stream is well until `stream_is_well` is taken away."""

    def __init__(self, **settings: Any) -> None:
        self.exchange = SimulatedExchange()
        self.binance = Binance(self.exchange)
        super().__init__(self.exchange.time.clock, **settings)
        self.stream_is_well = True
        self.live = 2
        """Live connections while the stream is well."""
        self.live_while_unwell = 0
        self.oldest_s = 0.0
        """Greatest age that the oldest record ever had, by Binance's clock, since it was last set to 0."""
        self.poller = self.new_poller(
            cast("RestClient", self.binance),
            lambda: self.live if self.stream_is_well else self.live_while_unwell,
        )
        self._ticked_s = -math.inf

    def advance(self, seconds: float) -> None:
        """Let the poller live for so long, waiting as it says; the stream ticks every 3 s, and between two steps."""
        until_s = self.exchange.now_s + seconds
        while self.exchange.now_s < until_s:
            self._tick()
            self._note_age()
            wait_s = self.poller.step()
            self._note_age()
            self.exchange.time.advance(min(wait_s, max(0.0, until_s - self.exchange.now_s)))

    def _tick(self) -> None:
        if self.stream_is_well and self.exchange.now_s - self._ticked_s >= TICK_S:
            self._ticked_s = self.exchange.now_s
            self.feed.take(self.exchange.stream_message())

    def _note_age(self) -> None:
        self.freshness.observe()
        now_ms = self.exchange.now_ms()
        ages_s = [(now_ms - rate.event_time_ms) / 1000 for rate in self.book.rates()]
        self.oldest_s = max([self.oldest_s, *ages_s])


def most_in_any_minute(requests: list[tuple[float, int]]) -> int:
    """Return the greatest sum of what belongs to requests (time, amount) within any 60 s."""
    return max(sum(amount for at_s, amount in requests if 0 <= at_s - from_s < 60) for from_s, _ in requests)
