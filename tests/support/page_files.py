"""State files for the page, written as of now: a market to look at, and a day to remember."""

import collections
import math
import threading
import time
import zlib
from pathlib import Path
from types import TracebackType
from typing import Any

from binance_funding.settlements import DAY_MS, E8, HOUR_MS, REGULAR, Settlement, SettlementWriter, hour_of
from tests.exchange import Market
from tests.support.programs import STATE_FILE, Server
from tests.support.samples import put, record, state, status

PATIENT = {"STALE_SECONDS": 180, "HEARTBEAT_SECONDS": 60}
"""Settings with which a file that nobody writes again stays fresh for as long as a test needs."""
QUARTER_S = 900
HISTORY_FILE = "history.sqlite3"
_SUMS = ("24h", "7d", "30d")
HOSTILE = "<img src=x onerror=alert(1)>"
NON_ASCII = "币安人生USDT"


def aged(age_s: float, **fields: Any) -> dict[str, Any]:
    """Return a record that was true so long ago; its funding is in 2 h 0 min 30 s from then."""
    at_s = time.time() - age_s
    unknown = dict.fromkeys(("settledFundingRate", "settledFundingTime", *map("fundingRateSum{}".format, _SUMS)))
    times = {"updatedAt": round(at_s, 3), "eventTime": int(at_s * 1000), "nextFundingTime": int((at_s + 7230) * 1000)}
    return record(**{**unknown, **times, **fields})


def settled(rate: float, sum_7d: float | None = None) -> dict[str, Any]:
    """Return what a record says of settlements: the last one, and the sum of a week if none is missing."""
    sums = {} if sum_7d is None else {"fundingRateSum24h": sum_7d / 7, "fundingRateSum7d": sum_7d}
    return {"settledFundingRate": rate, "settledFundingTime": int(time.time() * 1000) - 7_000_000, **sums}


def market() -> dict[str, dict[str, Any]]:
    """Return records that differ in every column and in what is wrong with them."""
    named = {
        "BTCUSDT": aged(0.5, fundingRate=0.0001, markPrice=91725.878, indexPrice=91769.875, **settled(0.00008, 0.0021)),
        "ETHUSDT": aged(
            1.0, fundingRate=-0.00025, markPrice=3250.5, indexPrice=3248.0, fundingIntervalHours=4, **settled(-0.0003)
        ),
        NON_ASCII: aged(1.5, fundingRate=0.0015, markPrice=0.0012345678, indexPrice=0.0012345, fundingIntervalHours=1),
        HOSTILE: aged(2.0, fundingRate=0.0, markPrice=12.0, indexPrice=0.0),
        "OLDUSDT": aged(1000.0, fundingRate=0.003, markPrice=1.0, indexPrice=1.0),
        "HALTUSDT": aged(100.0, fundingRate=0.002, halted=True, fundingIntervalAssumed=True),
        "LATEUSDT": aged(90.0, fundingRate=0.0004),
        "RESTUSDT": aged(3.0, fundingRate=0.0005, source="rest"),
        "LEFTUSDT": aged(4.0, fundingRate=0.0006, unlisted=True),
    }
    many = {
        f"SIM{n:03d}USDT": aged(
            5 + n / 10,
            fundingRate=(n * 7 % 40 - 20) / 1e5,
            markPrice=10.0 + n * 13 % 40,
            indexPrice=10.0 + n * 13 % 40 + (n * 3 % 40 - 20) / 1000,
            fundingIntervalHours=(1, 2, 4, 8)[n % 4],
            nextFundingTime=int((time.time() + 3600 + n * 11 % 40 * 60) * 1000),
        )
        for n in range(40)
    }
    return {**named, **many}


def served(**members: Any) -> dict[str, Any]:
    """Return a connection status in which no gap opens, however long a test looks at it."""
    return status(market_served_time=time.time() + 3600, **{"age_uncertainty_seconds": 0.12, **members})


def write(folder: Path, records: dict[str, dict[str, Any]], **members: Any) -> None:
    """Write a file of now in which all is well, but for the members given."""
    good = {"updated_at": time.time(), "boot_id": "", "connection_status": served()}
    put(folder / STATE_FILE, state(records, **{**good, **members}))


def quarter_start_s() -> int:
    """Return when this quarter hour began."""
    return int(time.time() // QUARTER_S) * QUARTER_S


def quarter(start_s: int, **counts: float) -> dict[str, float]:
    """Return a quarter hour of `history` that went well, but for the counts given."""
    good = {"observed": 900, "unplanned": 0, "planned": 0, "runs": 15, "compared": 9000, "mismatched": 0, "worst": 3.1}
    fresh = {"within_5s": 9_999_870, "within_12s": 9_999_999, "within_limit": 10_000_000}
    return {"start": start_s, **good, "symbol_seconds": 10_000_000, **fresh, **counts}


def serve(folder: Path, **settings: Any) -> Server:
    """Return a server over the folder's file, which nobody writes again."""
    return Server(folder, HISTORY_FILE=str(folder / HISTORY_FILE), **{**PATIENT, **settings})


def settlements(hours: int, days: float = 90, *, complete: bool = True) -> dict[str, Any]:
    """Return the history of a symbol: a rate that goes up and down, each with an estimate close by."""
    last_ms = int(time.time() // (hours * 3600)) * hours * HOUR_MS
    count = int(days * 24 / hours)
    data: list[dict[str, Any]] = []
    for n in range(count):
        at_ms = last_ms - (count - 1 - n) * hours * HOUR_MS
        rate = round(1e-4 * hours / 8 * (1 + 2.5 * math.sin(n * hours / 90) + math.sin(n * 12.9898) * 0.8), 8)
        data.append(
            {
                "fundingTime": at_ms + n % 9,
                "fundingRate": rate,
                "lastEstimate": round(rate + 4e-6 * math.sin(n * 7.7), 8),
                "fundingIntervalHours": hours,
            }
        )
    return {"complete": complete, "data": data}


def write_history(folder: Path, histories: dict[str, dict[str, Any]]) -> None:
    """Write the settlement history. Of a symbol that is not complete, the settlement of one hour is awaited."""
    (folder / HISTORY_FILE).unlink(missing_ok=True)
    writer, now_ms = SettlementWriter(str(folder / HISTORY_FILE), days=120), int(time.time() * 1000)
    this_hour_ms = hour_of(now_ms)
    awaited_ms = this_hour_ms // (4 * HOUR_MS) * 4 * HOUR_MS - 3 * HOUR_MS  # an hour without settlements
    known_ms = range(this_hour_ms - 92 * DAY_MS, this_hour_ms + 1, HOUR_MS)
    rows, estimates = [], collections.defaultdict[int, dict[str, float | None]](dict)
    for symbol, history in histories.items():
        for row in history["data"][:1]:  # the interval of the first one is known from the settlement before it
            before_ms = row["fundingTime"] - row["fundingIntervalHours"] * HOUR_MS
            rows.append(Settlement(symbol, before_ms, REGULAR, 0, None))
        if not history["complete"]:
            estimates[awaited_ms][symbol] = None
        for row in history["data"]:
            rate_e8 = round(row["fundingRate"] * E8)
            rows.append(Settlement(symbol, row["fundingTime"], REGULAR, rate_e8, round(100.5 * E8)))
            estimates[hour_of(row["fundingTime"])][symbol] = row["lastEstimate"]
    writer.add(rows, [hour_ms for hour_ms in known_ms if hour_ms != awaited_ms], now_ms)
    for hour_ms in sorted(estimates):
        writer.expect(hour_ms, estimates[hour_ms])


def names(count: int) -> list[str]:
    """Return so many symbols, the first of which everybody knows."""
    market = Market()
    known = sorted(market.symbols, key=lambda symbol: (symbol.startswith("SIM"), symbol))
    return [*known, *(f"MORE{n:04d}USDT" for n in range(count))][:count]


def wave(symbol: str, tick: int, **fields: Any) -> dict[str, Any]:
    """Return a record that changes with every tick in all that can change, and has all that a record can have."""
    seed = zlib.crc32(symbol.encode()) / 2**32
    hours = (8, 4, 8, 4, 1)[int(seed * 997) % 5]
    rate = round(1e-4 * math.tan((seed * 2 - 1) * 1.45) * (1 + 0.2 * math.sin(tick * 1.7 + seed * 40)), 8)
    mark = 10 ** (seed * 7 - 2)
    next_ms = (int(time.time() * 1000) // (hours * 3_600_000) + 1) * hours * 3_600_000
    settled = round(rate * 0.9 + 2e-6, 8)
    numbers = {
        "fundingRate": rate,
        "markPrice": round(mark * (1 + 1e-4 * math.sin(tick + seed * 9)), 8),
        "indexPrice": round(mark * (1 + 4e-4 * (seed - 0.5)), 8),
        "fundingIntervalHours": hours,
        "nextFundingTime": next_ms,
        "settledFundingRate": settled,
        "settledFundingTime": next_ms - hours * 3_600_000 + 3,
        "fundingRateSum24h": round(settled * 24 / hours, 8),
        "fundingRateSum7d": round(settled * 150 / hours, 8),
        "fundingRateSum30d": round(settled * 600 / hours, 8),
        "fundingRateCap": 0.02,
        "fundingRateFloor": -0.02,
    }
    return aged(0.2 + seed * 2, **{**numbers, **fields})


class Ticking:
    """A file that is written anew at every tick, with so many symbols whose every number has changed."""

    def __init__(self, folder: Path, count: int, tick_s: float, **members: Any) -> None:
        self.names = names(count)
        self._folder, self._tick_s, self._members = folder, tick_s, members
        self._stop = threading.Event()
        self._writer = threading.Thread(target=self._write, name="ticks")
        self._tick = 0
        self.tick()

    def tick(self) -> None:
        """Write the next tick."""
        self._tick += 1
        write(self._folder, {symbol: wave(symbol, self._tick) for symbol in self.names}, **self._members)

    def _write(self) -> None:
        while not self._stop.wait(self._tick_s):
            self.tick()

    def __enter__(self) -> "Ticking":
        self._writer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._writer.join()
