"""A settlement filler over a simulated exchange's ledger, in simulated time."""

import json
import math
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple
from urllib.parse import parse_qsl, urlsplit

from binance_funding.daemon.source.faults import Cause, Kind
from binance_funding.daemon.source.rest_client import RestError
from binance_funding.daemon.source.settlement_filler import SettlementFiller
from binance_funding.log import EventLogger, LogThrottle
from binance_funding.settlements import Settlement, SettlementWriter
from tests.exchange.ledger import Ledger, Row, SharedAllowance
from tests.exchange.market import HOUR_MS, Market
from tests.support.clock import SimulatedClock

TICK_MS = 3000
_NEAR_HOUR_MS = 30_000
SMALL = {"usd_m": 12, "tradfi": 4, "coin_m": 0, "fundless": 0}


def failure(status: str, wait_s: float = 0.0) -> RestError:
    """Return the error of a request that failed."""
    is_refusal = status.isdigit()
    return RestError(Cause(Kind.REFUSED if is_refusal else Kind.LOST, status, int(status) if is_refusal else 0, wait_s))


class Asked(NamedTuple):
    """One request for settlements, and when it was sent (steady time)."""

    at_s: float
    query: Mapping[str, str]

    @property
    def span_ms(self) -> int:
        """How much time was asked for."""
        return int(self.query["endTime"]) - int(self.query["startTime"]) + 1


class LedgerClient:
    """Answers as Binance would, from the ledger, after 0.2 s."""

    def __init__(self, world: "SettlementWorld") -> None:
        self._world = world
        self.fails: Callable[[], RestError | None] = lambda: None
        self.replace: Callable[[bytes], bytes] = lambda body: body
        """Changes the body of an answer."""
        self.asked: list[Asked] = []
        self.allowance = SharedAllowance()

    def abort(self) -> None:
        """Nothing is ever under way."""

    def close(self) -> None:
        """There is no connection."""

    def get(self, path: str, within_s: float = math.inf) -> bytes:
        """Answer, or raise RestError; time passes meanwhile."""
        query = dict(parse_qsl(urlsplit(path).query))
        self.asked.append(Asked(self._world.time.steady_s, query))
        assert not self.allowance.take(self._world.time.steady_s)
        self._world.time.advance(0.2)
        if error := self.fails():
            raise error
        status, body = self._world.ledger.answer(query, self._world.now_ms())
        assert status == 200, body
        return self.replace(json.dumps(body).encode())


class SettlementWorld:
    """A filler with all that it needs. The stream shows rows around each full hour."""

    def __init__(self, folder: Path, days: int = 2, market: Market | None = None) -> None:
        self.path = str(folder / "history.sqlite3")
        self.days = days
        self.time = SimulatedClock()
        self.market = market or Market(**SMALL)
        self.ledger = Ledger(self.market)
        self.client = LedgerClient(self)
        self.is_current = True
        """Whether the records are current."""
        self.may_ask = True
        self.errors: list[RestError] = []
        self.on_step: Callable[[], None] = lambda: None
        self.next_funding_times: Callable[[], dict[str, int]] = self._next_funding_times
        self._ticked_ms = 0
        self.last_shown: dict[tuple[str, int], float] = {}
        """By symbol and next funding time: the last rate that the stream showed."""
        self.filler = self._new_filler()

    def now_ms(self) -> int:
        """Return Binance's time."""
        return round(self.time.wall_s * 1000)

    def restart(self) -> None:
        """Let the process be killed and started again."""
        self.filler = self._new_filler()

    def _new_filler(self) -> SettlementFiller:
        return SettlementFiller(
            SettlementWriter(self.path, self.days),
            self.client,
            self.time.clock,
            LogThrottle(EventLogger("test"), self.time.clock.steady_s),
            now_ms=self.now_ms,
            next_funding_times=lambda: self.next_funding_times(),  # noqa: PLW0108 - a test may replace it
            last_estimates=self._last_estimates,
            may_ask=lambda: self.may_ask,
            on_error=self.errors.append,
        )

    def _next_funding_times(self) -> dict[str, int]:
        now_ms = self.now_ms()
        listed = [one for one in self.market.symbols if now_ms < self.ledger.listed_until_ms.get(one, now_ms + 1)]
        return {one: self.ledger.next_funding_time_ms(one, now_ms) if self.is_current else 0 for one in listed}

    def advance(self, seconds: float, *, leap: bool = False) -> None:
        """Let the filler live for so long, waiting as it says. With `leap`, idle times within an hour are left out."""
        until_s = self.time.steady_s + seconds
        while self.time.steady_s < until_s - 1e-6:
            asked = len(self.client.asked)
            self._tick()
            wait_s = self.filler.step()
            self._tick()
            self.on_step()
            if leap and len(self.client.asked) == asked:
                wait_s = max(wait_s, self._leap_s())
            self.time.advance(max(0.0, min(wait_s, until_s - self.time.steady_s)))

    def _leap_s(self) -> float:
        """Return the seconds to the next time of an hour at which anything may happen."""
        into_ms = self.now_ms() % HOUR_MS
        marks_s = (21, 31, 36, 65, 100, 125, 250, 601, 605, 3596)
        return min([mark_s - into_ms / 1000 for mark_s in marks_s if mark_s * 1000 > into_ms], default=0.0)

    def _tick(self) -> None:
        now_ms = self.now_ms()
        tick_ms = now_ms // TICK_MS * TICK_MS
        into_ms = tick_ms % HOUR_MS
        if not self.is_current or tick_ms == self._ticked_ms or _NEAR_HOUR_MS < into_ms < HOUR_MS - _NEAR_HOUR_MS:
            return
        for at_ms in range(max(self._ticked_ms + TICK_MS, tick_ms - _NEAR_HOUR_MS), tick_ms + 1, TICK_MS):
            for symbol in self.market.symbols:
                next_ms = self.ledger.next_funding_time_ms(symbol, at_ms)
                self.last_shown[symbol, next_ms] = float(self.market.row(symbol, at_ms)["r"])
        self._ticked_ms = tick_ms

    def _last_estimates(self, settlement_ms: int) -> dict[str, float]:
        shown = self.last_shown.items()
        return {symbol: rate for (symbol, next_ms), rate in shown if next_ms == settlement_ms}

    def stored(self, from_ms: int = 0) -> list[Row]:
        """Return what the history holds, in Binance's format."""
        return stored(self.path, from_ms)

    def settled(self, since_ms: int) -> list[Row]:
        """Return the ledger's rows since a time."""
        return self.ledger.rows(since_ms, self.now_ms())

    def oldest_kept_ms(self) -> int:
        """Return the first hour of the time that is kept."""
        return (self.now_ms() - self.days * 24 * HOUR_MS) // HOUR_MS * HOUR_MS


def in_order(rows: list[Row]) -> list[Row]:
    """Return rows in an order of their own, to be compared."""
    return sorted(rows, key=lambda row: (row["fundingTime"], row["symbol"], row["rateType"]))


def to_row(settlement: Settlement) -> Row:
    """Return a settlement in Binance's format."""
    symbol, time_ms, rate_type, rate_e8, price_e8, *_ = settlement
    rate, price = (Decimal(value or 0).scaleb(-8) for value in (rate_e8, price_e8))
    mark_price = "" if price_e8 is None else f"{price:.8f}"
    values = symbol, time_ms, f"{rate:.8f}", mark_price, rate_type
    return dict(zip(("symbol", "fundingTime", "fundingRate", "markPrice", "rateType"), values, strict=True))


def stored(path: str, from_ms: int = 0) -> list[Row]:
    """Return everything that a history holds, in Binance's format and ascending order."""
    query = (
        "SELECT symbol, funding_time_ms, rate_type, rate_e8, mark_price_e8 FROM settlement "
        "WHERE funding_time_ms >= ? ORDER BY funding_time_ms, symbol, rate_type"
    )
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return [to_row(Settlement(*row)) for row in connection.execute(query, (from_ms,))]


@contextmanager
def fast_folder() -> Iterator[Path]:
    """A folder in memory if there is one: simulated months sync thousands of times."""
    shared = "/dev/shm"
    with TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else None) as folder:
        yield Path(folder)
