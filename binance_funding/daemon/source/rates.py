"""The FundingRate record, and the decoding of both Binance formats into it. Pure: no I/O, no state.

Facts of the exchange, as of November 2026:
- Stream rows: `e` "markPriceUpdate", `E` event time ms, `s` symbol, `p` mark price, `i` index price, `r` funding rate,
  `T` next funding time ms, `st` 1 USD-M / 2 COIN-M (absent before 2026-06-30). Numbers are decimal strings. [1]
- REST rows: `symbol, markPrice, indexPrice, lastFundingRate, nextFundingTime, time`. [2]
- Delivery contracts and settling perpetuals have next funding time 0 and an empty or zero funding rate. [1]
- COIN-M rows travel on the same all-market stream; other streams reuse `p` with another meaning. [1]
[1] https://developers.binance.com/docs/derivatives/usds-margined-futures/websocket-market-streams
[2] https://developers.binance.com/docs/derivatives/usds-margined-futures/market-data/rest-api/Mark-Price
"""

import json
import re
from collections.abc import Callable
from operator import itemgetter
from typing import Any, NamedTuple

from ...log import printable
from ...schema import DECIMALS, refuse_constant

STREAM, REST = "websocket", "rest"

_LONGEST_SYMBOL = 64
_QUOTE_CHARACTERS = 200
# Far beyond any market. What is brackets and little else takes forty times its size when it is parsed.
_MOST_OBJECTS = 200_000
# Far beyond any price, and small enough that whoever calculates with it stays finite.
_LARGEST_NUMBER = 1e18

# Where each field of DECIMALS stands in a row of the stream, and of the premium index.
_SOURCES = {
    "fundingRate": ("r", "lastFundingRate"),
    "markPrice": ("p", "markPrice"),
    "indexPrice": ("i", "indexPrice"),
}
_RATE, _MARK_PRICE = DECIMALS.index("fundingRate"), DECIMALS.index("markPrice")

# Decimals that are JSON numbers as they stand and far from overflow: they need no float on their way to the file.
_DECIMAL = r"-?(?:0|[1-9][0-9]{0,17})(?:\.[0-9]{1,20})?"
_PLAIN_DECIMALS = re.compile(" ".join([_DECIMAL] * len(DECIMALS)))


class FundingRate(NamedTuple):
    """One symbol's funding rate and prices at one event time."""

    symbol: str
    decimals: tuple[str, ...]
    """In the order of `schema.DECIMALS`; the decimal texts sent, each a finite JSON number."""
    next_funding_time_ms: int
    event_time_ms: int
    """Binance's clock."""
    source: str
    """STREAM or REST."""
    received_s: float
    """Steady clock of this host."""

    @property
    def funding_rate(self) -> float:
        """Fraction per funding interval."""
        return float(self.decimals[_RATE])

    @property
    def mark_price(self) -> float:
        """Mark price in the quote asset."""
        return float(self.decimals[_MARK_PRICE])


class Decoded(NamedTuple):
    """The usable rows of one message, and what became of the others."""

    rates: list[FundingRate]
    median_event_time_ms: int
    """Of the usable rows, 0 without any: one absurd row must not speak for the others."""
    latest_event_time_ms: int
    rejected: int
    """Rows that were malformed; rows left out on purpose (COIN-M, no funding, other streams) do not count."""
    first_fault: str
    """What was wrong with the first rejected row, or ""."""

    def up_to(self, latest_ms: float) -> "Decoded":
        """Reject the rows whose event time is beyond this: what has not happened yet would block its symbol."""
        if self.latest_event_time_ms <= latest_ms:
            return self
        rates = [rate for rate in self.rates if rate.event_time_ms <= latest_ms]
        fault = self.first_fault or f"event time {self.latest_event_time_ms} is ahead of Binance's time"
        median_ms = self.median_event_time_ms if self.median_event_time_ms <= latest_ms else 0
        return Decoded(rates, median_ms, 0, self.rejected + len(self.rates) - len(rates), fault)


class MalformedMessage(ValueError):
    """A message or answer that is not the expected JSON at all; the text quotes at most 200 characters of it."""


def decode_stream(payload: bytes, received_s: float) -> Decoded:
    """Decode one WebSocket message, enveloped or bare.

    Raises MalformedMessage if it is not UTF-8, not JSON, or neither rows nor an event.
    """
    message = _parse(payload)
    if isinstance(message, dict):
        # Without envelope a single event is a row itself; whether it is a mark price is judged like that of any row.
        message = message.get("data", [message] if "e" in message else None)
    if isinstance(message, dict):
        message = [message]
    if not isinstance(message, list):
        raise MalformedMessage(f"no rows in {_quote(payload)}")
    return _decode_rows(message, _from_stream_row, received_s)


def decode_premium_index(body: bytes, received_s: float) -> Decoded:
    """Decode the answer to GET /fapi/v1/premiumIndex without symbol.

    Raises MalformedMessage if it is not UTF-8, not JSON, or not a list with at least one usable row.
    """
    decoded = _decode_rows(_parse_list(body), _from_premium_index_row, received_s)
    if not decoded.rates:
        raise MalformedMessage(decoded.first_fault or f"no usable rows in {_quote(body)}")
    return decoded


def decode_funding_info(body: bytes) -> dict[str, int]:
    """Decode the answer to GET /fapi/v1/fundingInfo: funding interval in hours by symbol; one not listed has 8.

    Malformed rows are left out. Raises MalformedMessage if it is not UTF-8, not JSON, or holds no usable row at all:
    no news must not pass for "all back to 8 h".
    """
    rows = [(row.get("symbol"), row.get("fundingIntervalHours")) for row in _parse_list(body) if isinstance(row, dict)]
    intervals = {s: hours for s, hours in rows if isinstance(s, str) and type(hours) is int and 1 <= hours <= 24}
    if not intervals:
        raise MalformedMessage(f"no funding intervals in {_quote(body)}")
    return intervals


def decode_server_time(body: bytes) -> float:
    """Decode the answer to GET /fapi/v1/time: Binance's time in Unix seconds. Raises MalformedMessage."""
    answer = _parse(body)
    time_ms = answer.get("serverTime") if isinstance(answer, dict) else None
    if type(time_ms) is not int or not 0 < time_ms < 1 << 53:
        raise MalformedMessage(f"no server time in {_quote(body)}")
    return time_ms / 1000


_json = json.JSONDecoder(parse_constant=refuse_constant)


def _parse(payload: bytes) -> Any:
    if payload.count(b"{") + payload.count(b"[") > _MOST_OBJECTS:
        raise MalformedMessage(f"more than {_MOST_OBJECTS} objects in {_quote(payload)}")
    try:
        return _json.decode(payload.decode("utf-8"))
    except (ValueError, RecursionError) as fault:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise MalformedMessage(f"not valid JSON ({fault}) in {_quote(payload)}") from fault


def _parse_list(body: bytes) -> list[Any]:
    answer = _parse(body)
    if not isinstance(answer, list):
        raise MalformedMessage(f"no list in {_quote(body)}")
    return answer


def _quote(payload: bytes) -> str:
    shown = payload[:_QUOTE_CHARACTERS].decode("utf-8", "replace")
    return repr(shown) + ("..." if len(payload) > _QUOTE_CHARACTERS else "")


def _explain(fault: Exception, row: Any) -> str:
    quoted = f"{str(fault)[:_QUOTE_CHARACTERS]} in row {str(row)[:_QUOTE_CHARACTERS]}"
    return f"{type(fault).__name__} {printable(quoted)}"


_Row = Any  # as parsed: whether it is even an object is for the conversion to find out
_Convert = Callable[[_Row, float], FundingRate | None]
_ROW_FAULTS = (KeyError, TypeError, ValueError, AttributeError, OverflowError)


def _decode_rows(rows: list[_Row], convert: _Convert, received_s: float) -> Decoded:
    rates: list[FundingRate] = []
    rejected, first_fault = 0, ""
    for row in rows:
        try:
            rate = convert(row, received_s)
        except _ROW_FAULTS as fault:
            rejected += 1
            first_fault = first_fault or _explain(fault, row)
            continue
        if rate is not None:
            rates.append(rate)
    times_ms = sorted([rate.event_time_ms for rate in rates])
    median_ms, latest_ms = (times_ms[(len(times_ms) - 1) // 2], times_ms[-1]) if times_ms else (0, 0)
    return Decoded(rates, median_ms, latest_ms, rejected, first_fault)


_stream_decimals, _index_decimals = (itemgetter(*keys) for keys in zip(*map(_SOURCES.get, DECIMALS), strict=True))


def _from_stream_row(row: _Row, received_s: float) -> FundingRate | None:
    if row["e"] != "markPriceUpdate" or row.get("st", 1) != 1:
        return None
    next_time, decimals = row["T"], _stream_decimals(row)
    if next_time == 0 or decimals[_RATE] == "":
        return None
    return _checked(row["s"], decimals, next_time, row["E"], STREAM, received_s)


def _from_premium_index_row(row: _Row, received_s: float) -> FundingRate | None:
    next_time, decimals = row["nextFundingTime"], _index_decimals(row)
    if next_time == 0 or decimals[_RATE] == "" or row.get("st", 1) != 1:
        return None
    return _checked(row["symbol"], decimals, next_time, row["time"], REST, received_s)


def _checked(
    symbol: Any, decimals: Any, next_time_ms: Any, event_time_ms: Any, source: str, received_s: float
) -> FundingRate:
    """Make the record. Raises TypeError or ValueError for whatever may not reach the file."""
    # A lone surrogate is not printable either: it could not be encoded when the file is written.
    if type(symbol) is not str or not symbol.isprintable() or not 0 < len(symbol) <= _LONGEST_SYMBOL:
        raise ValueError("symbol")
    if type(event_time_ms) is not int or not 0 < event_time_ms < 1 << 53:
        raise ValueError("event time")
    if type(next_time_ms) is not int or not 0 < next_time_ms < 1 << 53:
        raise ValueError("next funding time")
    try:
        plain = _PLAIN_DECIMALS.fullmatch(" ".join(decimals))
    except TypeError:  # a number instead of its text
        plain = None
    if plain is None:
        decimals = tuple(map(_number, decimals))
    if not float(decimals[_MARK_PRICE]) > 0:
        raise ValueError("mark price")
    return FundingRate(symbol, decimals, next_time_ms, event_time_ms, source, received_s)


def _number(value: Any) -> str:
    """Write an unusual spelling of a finite number as JSON does. Raises TypeError or ValueError for anything else."""
    if type(value) not in (str, int, float) or "_" in str(value):
        raise TypeError(f"number {value!r}")
    number = float(value)
    if not abs(number) < _LARGEST_NUMBER:  # False for NaN too
        raise ValueError(f"number {value!r}")
    return repr(number)
