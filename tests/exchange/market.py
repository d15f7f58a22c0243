"""A market whose every number follows from symbol and event time: a test can recompute what was sent.

The shapes are those of Binance's USD-M futures: mark price rows as `!markPrice@arr` pushes them, the answers
of `GET /fapi/v1/premiumIndex`, of `GET /fapi/v1/fundingInfo` and of `GET /fapi/v1/fundingRate`.
Prices move like the real ones: within 5 s by less than 0.2 % and funding rates by less than 0.00002.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

STREAM = "!markPrice@arr"
STREAM_1S = "!markPrice@arr@1s"

USD_M_BASES = """
BTC ETH 币安人生 BNB SOL XRP DOGE ADA AVAX LINK LTC DOT TRX BCH UNI NEAR APT SUI ARB OP ATOM FIL ETC XLM AAVE
INJ TIA SEI WLD ENA ONDO PENDLE TAO FET 1000PEPE 1000SHIB 1000BONK 1000FLOKI 1MBABYDOGE WIF JUP
"""
TRADFI_BASES = "TSLA AAPL NVDA AMZN GOOGL META MSFT COIN MSTR HOOD PLTR INTC XAU XAG XPT XPD CL QQQ SPY"
COIN_M_BASES = "BTC ETH BNB SOL XRP DOGE ADA AVAX LINK LTC DOT TRX BCH UNI NEAR APT SUI ATOM FIL ETC"
DELIVERIES = "BTCUSDT_261225 ETHUSDT_261225 BTCUSDT_270326 ETHUSDT_270326"

WAVE_PERIOD_MS = 600_000
WAVE_PRICE_RATIO = 0.01
WAVE_FUNDING_RATE = 0.0001
MISMATCH_PRICE_FACTOR = 1.01
MISMATCH_FUNDING_RATE = 0.0005
HOUR_MS = 3_600_000
SLOW_WAVE_PERIOD_MS = 5 * HOUR_MS
SETTLED_LATE_MS = 8


class Expected(NamedTuple):
    """What a correct reader makes of one row: plain floats, times in ms, the interval in hours."""

    funding_rate: float
    mark_price: float
    index_price: float
    next_funding_time_ms: int
    event_time_ms: int
    funding_interval_h: int


@dataclass(frozen=True)
class Instrument:
    """One contract: `market_id` is the row's `st`, `fundless_rate` its `r` where it has no funding."""

    symbol: str
    market_id: int
    base_price: float
    base_rate: float
    phase: float
    interval_h: int
    interval_listed: bool
    fundless_rate: str | None
    has_unknown_field: bool
    interval_before_h: int = 8
    """The interval until `interval_from_ms`."""
    interval_from_ms: int = 0


class Market:
    """The instruments and their numbers; pure, but for what a test may change at any time, from any thread.

    `only_in_rest` and `only_in_stream` are left out of the other source; the REST rows of `rest_mismatch` differ
    by more than any comparison tolerates (1 % of the mark price, 0.0005 of the funding rate).
    `lag`, `halt`, `list_later` and `unlist` change event times and what there is, `change_interval` and
    `publish_intervals` how often funding is paid and what fundingInfo says of it. All this is read anew for every
    message and answer. `row` and `expected` know the numbers of every symbol that was ever listed.
    """

    def __init__(self, *, usd_m: int = 664, tradfi: int = 217, coin_m: int = 30, fundless: int = 51) -> None:
        self.only_in_rest: set[str] = set()
        self.only_in_stream: set[str] = set()
        self.rest_mismatch: set[str] = set()
        self._published_h: dict[str, int] = {}  # what fundingInfo still says where it is late
        self._behind_ms: dict[str, int] = {}
        self._halted_at_ms: dict[str, int] = {}
        usd_m_symbols = _symbols(USD_M_BASES, "USDT", "SIM{:03d}USDT", usd_m)
        tradfi_symbols = _symbols(TRADFI_BASES, "USDT", "EQ{:03d}USDT", tradfi)
        coin_m_symbols = _symbols(COIN_M_BASES, "USD_PERP", "SIM{:03d}USD_PERP", coin_m)
        fundless_symbols = _symbols(DELIVERIES, "", "OLD{:03d}USDT", fundless)
        self._usd_m = [_instrument(symbol) for symbol in usd_m_symbols]
        self._tradfi = [_instrument(symbol) for symbol in tradfi_symbols]
        self._coin_m = [_instrument(symbol, market_id=2) for symbol in coin_m_symbols]
        self._fundless = [
            _instrument(symbol, fundless_rate="0.00000000" if place % 2 else "")
            for place, symbol in enumerate(fundless_symbols)
        ]
        self._by_symbol = {one.symbol: one for one in self._first_message() + self._tradfi}
        self.symbols = frozenset(usd_m_symbols + tradfi_symbols)
        """What a service for USD-M funding rates has to show: USD-M and TradFi perpetuals."""
        self.tradfi_symbols = frozenset(tradfi_symbols)
        self.coin_m_symbols = frozenset(coin_m_symbols)
        self.fundless_symbols = frozenset(fundless_symbols)

    def row(self, symbol: str, event_time_ms: int) -> dict[str, Any]:
        """Return the stream's row of a symbol. Raises KeyError for a symbol the market never had."""
        return _row(self._by_symbol[symbol], event_time_ms)

    def expected(self, symbol: str, event_time_ms: int) -> Expected:
        """Return what a reader must make of that row, and of its REST twin unless in `rest_mismatch`."""
        row = self.row(symbol, event_time_ms)
        return Expected(
            float(row["r"] or "0"),
            float(row["p"]),
            float(row["i"]),
            row["T"],
            row["E"],
            self.funding_interval_h(symbol),
        )

    def funding_interval_h(self, symbol: str) -> int:
        """Return the hours between two fundings of a symbol: 1, 2, 4 or 8."""
        return self._by_symbol[symbol].interval_h

    def change_interval(self, symbols: Iterable[str], interval_h: int, from_ms: int = 0) -> None:
        """Let other intervals hold from that time on: the next funding times show them, fundingInfo does not yet.

        Raises KeyError for a symbol the market never had.
        """
        for symbol in symbols:
            one = self._by_symbol[symbol]
            self._published_h.setdefault(symbol, one.interval_h)
            changed = replace(one, interval_h=interval_h, interval_before_h=one.interval_h, interval_from_ms=from_ms)
            self._replace(replace(changed, interval_listed=True))

    def publish_intervals(self) -> None:
        """Let fundingInfo name the intervals that hold."""
        self._published_h.clear()

    def _replace(self, changed: Instrument) -> None:
        self._by_symbol = {**self._by_symbol, changed.symbol: changed}
        self._usd_m = [self._by_symbol[one.symbol] for one in self._usd_m]
        self._tradfi = [self._by_symbol[one.symbol] for one in self._tradfi]

    def list_later(self, symbols: Iterable[str], interval_h: int = 4) -> None:
        """Add USD-M perpetuals to both sources, and to the funding info with that interval.

        Raises ValueError for a symbol that is listed already.
        """
        names = list(symbols)
        if listed := self.symbols.intersection(names):
            raise ValueError(f"listed already: {sorted(listed)}")
        added = [replace(_instrument(one), interval_h=interval_h, interval_listed=True) for one in names]
        self._by_symbol.update({one.symbol: one for one in added})
        self._usd_m = self._usd_m + added
        self.symbols = self.symbols.union(names)

    def unlist(self, symbols: Iterable[str]) -> None:
        """Take perpetuals out of both sources and of the funding info. Raises KeyError for one that is not listed."""
        gone = frozenset(symbols)
        if unknown := gone - self.symbols:
            raise KeyError(*sorted(unknown))
        self._usd_m = [one for one in self._usd_m if one.symbol not in gone]
        self._tradfi = [one for one in self._tradfi if one.symbol not in gone]
        self.symbols = self.symbols - gone
        self.tradfi_symbols = self.tradfi_symbols - gone

    def lag(self, symbols: Iterable[str], behind_ms: int) -> None:
        """Let the stream's event times of some symbols be that far behind the others'; 0 ends it."""
        self._behind_ms = {**self._behind_ms, **dict.fromkeys(symbols, behind_ms)}

    def halt(self, symbols: Iterable[str], event_time_ms: int) -> None:
        """Let neither source bring rows of these symbols newer than an event time: that is sent again instead."""
        self._halted_at_ms = {**self._halted_at_ms, **dict.fromkeys(symbols, event_time_ms)}

    def resume(self, symbols: Iterable[str]) -> None:
        """End a halt."""
        resumed = frozenset(symbols)
        self._halted_at_ms = {one: at_ms for one, at_ms in self._halted_at_ms.items() if one not in resumed}

    def messages(self, event_time_ms: int, stream: str = STREAM) -> tuple[str, ...]:
        """Return the messages of one tick: all but TradFi, then TradFi (left out in a market without any)."""
        parts = [self._first_message(), self._tradfi] if self._tradfi else [self._first_message()]
        return tuple(
            envelope(
                [self._stream_row(one, event_time_ms) for one in part if one.symbol not in self.only_in_rest], stream
            )
            for part in parts
        )

    def premium_index(self, event_time_ms: int) -> list[dict[str, Any]]:
        """Return the answer of `GET /fapi/v1/premiumIndex` without symbol: everything but COIN-M."""
        instruments = self._usd_m + self._fundless + self._tradfi
        return [
            self._premium_index_row(one, self._held(one.symbol, event_time_ms))
            for one in instruments
            if one.symbol not in self.only_in_stream
        ]

    def funding_info(self) -> list[dict[str, Any]]:
        """Return the answer of `GET /fapi/v1/fundingInfo`: symbols of adjusted cap, floor or interval."""
        return [
            {
                "symbol": one.symbol,
                "adjustedFundingRateCap": "0.02000000",
                "adjustedFundingRateFloor": "-0.02000000",
                "fundingIntervalHours": self._published_h.get(one.symbol, one.interval_h),
                "disclaimer": False,
            }
            for one in self._usd_m + self._tradfi
            if one.interval_listed
        ]

    def funding_history(self, symbol: str, now_ms: int, start_ms: int, limit: int) -> list[dict[str, Any]]:
        """Return the answer of `GET /fapi/v1/fundingRate` for a symbol: what was settled until now, oldest first.

        Settled is what the rows of that moment say. Its time is a few ms late, as the real ones often are.
        Raises KeyError for a symbol the market never had.
        """
        if self._by_symbol[symbol].fundless_rate is not None:
            return []
        step_ms = self.funding_interval_h(symbol) * HOUR_MS
        newest_ms = now_ms // step_ms * step_ms
        rows = [self.row(symbol, newest_ms - back * step_ms) for back in reversed(range(limit))]
        settled = [
            {
                "symbol": symbol,
                "fundingTime": row["E"] + zlib.crc32(f"{symbol}{row['E']}".encode()) % SETTLED_LATE_MS,
                "fundingRate": row["r"],
                "markPrice": row["p"],
            }
            for row in rows
        ]
        return [one for one in settled if start_ms <= one["fundingTime"] <= now_ms]

    def _first_message(self) -> list[Instrument]:
        return self._usd_m + self._coin_m + self._fundless

    def _held(self, symbol: str, event_time_ms: int) -> int:
        return min(event_time_ms, self._halted_at_ms.get(symbol, event_time_ms))

    def _stream_row(self, one: Instrument, event_time_ms: int) -> dict[str, Any]:
        behind_ms = self._behind_ms.get(one.symbol, 0)
        return _row(one, self._held(one.symbol, event_time_ms - behind_ms))

    def _premium_index_row(self, one: Instrument, event_time_ms: int) -> dict[str, Any]:
        row = _row(one, event_time_ms)
        mark_price, funding_rate = row["p"], row["r"]
        if one.symbol in self.rest_mismatch:
            mark_price = _decimal(float(mark_price) * MISMATCH_PRICE_FACTOR)
            funding_rate = _decimal(float(funding_rate or "0") + MISMATCH_FUNDING_RATE)
        return {
            "symbol": one.symbol,
            "markPrice": mark_price,
            "indexPrice": row["i"],
            "estimatedSettlePrice": row["P"],
            "lastFundingRate": funding_rate,
            "interestRate": "0.00010000",
            "nextFundingTime": row["T"],
            "time": event_time_ms,
        }


def envelope(rows: Iterable[dict[str, Any]], stream: str = STREAM) -> str:
    """Return the text of one combined-stream message."""
    return to_json({"stream": stream, "data": list(rows)})


def ticker_row(symbol: str, event_time_ms: int) -> dict[str, Any]:
    """Return a row of the stream `!ticker@arr`, whose `p` is a price change and no mark price."""
    return {
        "e": "24hrTicker",
        "E": event_time_ms,
        "s": symbol,
        "p": "-120.50000000",
        "P": "-0.131",
        "c": "91725.87",
    }


def to_json(value: object) -> str:
    """Return JSON as Binance writes it: no blanks, symbols in plain UTF-8."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _row(one: Instrument, event_time_ms: int) -> dict[str, Any]:
    angle = one.phase + math.tau * (event_time_ms % WAVE_PERIOD_MS) / WAVE_PERIOD_MS
    mark_price = one.base_price * (1 + WAVE_PRICE_RATIO * math.sin(angle))
    index_price = one.base_price * (1 + WAVE_PRICE_RATIO * math.sin(angle - 0.05))
    row: dict[str, Any] = {
        "e": "markPriceUpdate",
        "E": event_time_ms,
        "s": one.symbol,
        "p": _decimal(mark_price),
        "ap": _decimal((mark_price + index_price) / 2),
        "P": _decimal(index_price * 0.9995),
        "i": _decimal(index_price),
        "r": one.fundless_rate,
        "T": 0,
        "st": one.market_id,
    }
    if one.fundless_rate is None:
        is_changed = event_time_ms >= one.interval_from_ms
        interval_ms = (one.interval_h if is_changed else one.interval_before_h) * HOUR_MS
        slow_angle = one.phase + math.tau * (event_time_ms % SLOW_WAVE_PERIOD_MS) / SLOW_WAVE_PERIOD_MS
        waves = math.cos(angle) + math.cos(slow_angle)  # the slow one tells settlements apart
        row["r"] = _decimal(one.base_rate + WAVE_FUNDING_RATE * waves)
        row["T"] = (event_time_ms // interval_ms + 1) * interval_ms
    if one.has_unknown_field:
        row["zz"] = "1"
    return row


def _decimal(value: float) -> str:
    return f"{value:.8f}"


def _symbols(bases: str, suffix: str, numbered: str, count: int) -> list[str]:
    named = [base + suffix for base in bases.split()[:count]]
    return named + [numbered.format(number) for number in range(count - len(named))]


def _instrument(symbol: str, *, market_id: int = 1, fundless_rate: str | None = None) -> Instrument:
    seed = zlib.crc32(symbol.encode())
    interval_h, listed = _interval(seed) if market_id == 1 and fundless_rate is None else (8, False)
    if symbol.startswith("BTC"):
        base_price, interval_h, listed = 91_700.0, 8, False
    else:
        base_price = 10.0 ** (seed % 7000 / 1000 - 3)
    return Instrument(
        symbol=symbol,
        market_id=market_id,
        base_price=base_price,
        base_rate=(seed % 61 - 30) / 100_000,
        phase=math.tau * (seed % 997) / 997,
        interval_h=interval_h,
        interval_listed=listed,
        fundless_rate=fundless_rate,
        has_unknown_field=seed % 5 == 0,
    )


def _interval(seed: int) -> tuple[int, bool]:
    """Return hours and whether fundingInfo lists it: half of the symbols have 8 h, most of those unlisted."""
    place = seed % 20
    return ((1, True), (2, True))[place] if place < 2 else (4, True) if place < 10 else (8, place < 13)
