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
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

from .clock import Moment

STREAM, REST = "websocket", "rest"

# How far this host's clock may be behind, at the most.
_LATEST_EVENT_AHEAD_S = 86_400
_LONGEST_SYMBOL = 64
_QUOTE_CHARACTERS = 200
# Far beyond any market. What is brackets and little else takes forty times its size when it is parsed.
_MOST_OBJECTS = 200_000
# Far beyond any price, and small enough that whoever calculates with it stays finite.
_LARGEST_NUMBER = 1e18

# Three decimals that are JSON numbers as they stand and far from overflow: they need no float on their way to the file.
_DECIMAL = r"(-?(?:0|[1-9][0-9]{0,17})(?:\.[0-9]{1,20})?)"
_THREE_DECIMALS = re.compile(f"{_DECIMAL} {_DECIMAL} {_DECIMAL}")


class FundingRate(NamedTuple):
    """One symbol's funding rate and prices at one event time."""

    symbol: str
    funding_rate: str
    """Fraction per funding interval; this and the prices are the decimal texts sent, each a finite JSON number."""
    mark_price: str
    index_price: str
    next_funding_time_ms: int
    event_time_ms: int
    """Binance's clock."""
    source: str
    """STREAM or REST."""
    received_s: float
    """Steady clock of this host."""


class Decoded(NamedTuple):
    """The usable rows of one message, and what became of the others."""

    rates: list[FundingRate]
    rejected: int
    """Rows that were malformed; rows left out on purpose (COIN-M, no funding, other streams) do not count."""
    first_fault: str
    """What was wrong with the first rejected row, or ""."""


class MalformedMessage(ValueError):
    """A message or answer that is not the expected JSON at all; the text quotes at most 200 characters of it."""


def decode_stream(payload: bytes, received: Moment) -> Decoded:
    """Decode one WebSocket message, enveloped or bare.

    Raises MalformedMessage if it is not UTF-8, not JSON, or neither rows nor an event.
    """
    latest_ms, received_s = latest_event_time_ms(received), received.steady_s

    def convert_at_once(parsed: dict[str, Any]) -> Any:
        # While the row is in the CPU's cache: thousands of them, parsed first and converted after, would not fit.
        if "data" in parsed:
            return parsed  # the envelope, whatever else it may carry
        try:
            return _from_stream_row(parsed, received_s, latest_ms) or _LEFT_OUT
        except _ROW_FAULTS:
            return parsed  # a malformed row, which is judged below

    message = _parse(payload, json.JSONDecoder(object_hook=convert_at_once, parse_constant=_refuse_constant))
    if isinstance(message, dict):
        # Without envelope a single event is a row itself; whether it is a mark price is judged like that of any row.
        message = message.get("data", [message] if "e" in message else None)
    if isinstance(message, (dict, FundingRate)):
        message = [message]
    if not isinstance(message, list):
        raise MalformedMessage(f"no rows in {_quote(payload)}")
    return _decode_rows(message, _from_stream_row, received)


def decode_premium_index(body: bytes, received: Moment) -> Decoded:
    """Decode the answer to GET /fapi/v1/premiumIndex without symbol.

    Raises MalformedMessage if it is not UTF-8, not JSON, or not a list of rows.
    """
    answer = _parse(body)
    if not isinstance(answer, list):
        raise MalformedMessage(f"no list in {_quote(body)}")
    return _decode_rows(answer, _from_premium_index_row, received)


def decode_funding_info(body: bytes) -> dict[str, int]:
    """Decode the answer to GET /fapi/v1/fundingInfo: funding interval in hours by symbol; one not listed has 8.

    Malformed rows are left out. Raises MalformedMessage if it is not UTF-8, not JSON, not a list of rows, or if it has
    rows and none of them can be used: no news must not pass for "all back to 8 h".
    """
    answer = _parse(body)
    if not isinstance(answer, list):
        raise MalformedMessage(f"no list in {_quote(body)}")
    rows = [(row.get("symbol"), row.get("fundingIntervalHours")) for row in answer if isinstance(row, dict)]
    intervals = {s: hours for s, hours in rows if isinstance(s, str) and type(hours) is int and 1 <= hours <= 24}
    if answer and not intervals:
        raise MalformedMessage(f"no funding intervals in {_quote(body)}")
    return intervals


def latest_event_time_ms(now: Moment) -> float:
    """Return the event time beyond which a row is nonsense: let in, it would block its symbol until then."""
    return (now.wall_s + _LATEST_EVENT_AHEAD_S) * 1000


def usual_event_time_ms(rates: Sequence[FundingRate]) -> int:
    """Return the median event time of a message, 0 if it is empty: one absurd row must not speak for the others."""
    times_ms = sorted([rate.event_time_ms for rate in rates])
    return times_ms[len(times_ms) // 2] if times_ms else 0


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_json = json.JSONDecoder(parse_constant=_refuse_constant)


def _parse(payload: bytes, decoder: json.JSONDecoder = _json) -> Any:
    if payload.count(b"{") + payload.count(b"[") > _MOST_OBJECTS:
        raise MalformedMessage(f"more than {_MOST_OBJECTS} objects in {_quote(payload)}")
    try:
        return decoder.decode(payload.decode("utf-8"))
    except (ValueError, RecursionError) as fault:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise MalformedMessage(f"{_reason(fault)} in {_quote(payload)}") from fault


def _reason(fault: Exception) -> str:
    if isinstance(fault, UnicodeDecodeError):
        return f"invalid UTF-8 at byte {fault.start}"
    if isinstance(fault, RecursionError):
        return "nesting too deep"
    return f"invalid JSON ({fault})"


def _quote(payload: bytes) -> str:
    shown = payload[:_QUOTE_CHARACTERS].decode("utf-8", "replace")
    return repr(shown) + ("..." if len(payload) > _QUOTE_CHARACTERS else "")


def _tell_fault(fault: Exception, row: Any) -> str:
    return f"{type(fault).__name__} {str(fault)[:_QUOTE_CHARACTERS]} in row {str(row)[:_QUOTE_CHARACTERS]}"


_Row = Any  # as parsed: whether it is even an object is for the conversion to find out
_Convert = Callable[[_Row, float, float], FundingRate | None]
_ROW_FAULTS = (KeyError, TypeError, ValueError, AttributeError, OverflowError)
_LEFT_OUT = {"e": "left out on purpose"}


def _decode_rows(rows: list[_Row], convert: _Convert, received: Moment) -> Decoded:
    latest_ms = latest_event_time_ms(received)
    received_s = received.steady_s
    rates: list[FundingRate] = []
    rejected, first_fault = 0, ""
    for row in rows:
        if type(row) is FundingRate:
            rates.append(row)
            continue
        try:
            rate = convert(row, received_s, latest_ms)
        except _ROW_FAULTS as fault:
            rejected += 1
            first_fault = first_fault or _tell_fault(fault, row)
            continue
        if rate is not None:
            rates.append(rate)
    return Decoded(rates, rejected, first_fault)


def _from_stream_row(row: _Row, received_s: float, latest_ms: float) -> FundingRate | None:
    if row["e"] != "markPriceUpdate" or row.get("st", 1) != 1:
        return None
    rate, next_time = row["r"], row["T"]
    if next_time == 0 or rate == "":
        return None
    return _checked(row["s"], rate, row["p"], row["i"], next_time, row["E"], STREAM, received_s, latest_ms)


def _from_premium_index_row(row: _Row, received_s: float, latest_ms: float) -> FundingRate | None:
    rate, next_time = row["lastFundingRate"], row["nextFundingTime"]
    if next_time == 0 or rate == "" or row.get("st", 1) != 1:
        return None
    return _checked(
        row["symbol"],
        rate,
        row["markPrice"],
        row["indexPrice"],
        next_time,
        row["time"],
        REST,
        received_s,
        latest_ms,
    )


def _checked(
    symbol: Any,
    rate: Any,
    mark_price: Any,
    index_price: Any,
    next_time_ms: Any,
    event_time_ms: Any,
    source: str,
    received_s: float,
    latest_ms: float,
) -> FundingRate:
    """Make the record. Raises TypeError or ValueError for whatever may not reach the file."""
    # A lone surrogate is not printable either: it could not be encoded when the file is written.
    if type(symbol) is not str or not symbol.isprintable() or not 0 < len(symbol) <= _LONGEST_SYMBOL:
        raise ValueError("symbol")
    if type(event_time_ms) is not int or not 0 < event_time_ms <= latest_ms:
        raise ValueError("event time")
    if type(next_time_ms) is not int or not 0 < next_time_ms < 1 << 53:
        raise ValueError("next funding time")
    decimals = _THREE_DECIMALS.fullmatch(f"{rate} {mark_price} {index_price}")
    if decimals is not None:
        rate, mark_price, index_price = decimals.groups()
    else:
        rate, mark_price, index_price = _number(rate), _number(mark_price), _number(index_price)
    return FundingRate(symbol, rate, mark_price, index_price, next_time_ms, event_time_ms, source, received_s)


def _number(value: Any) -> str:
    """Write an unusual spelling of a finite number as JSON does. Raises TypeError or ValueError for anything else."""
    if type(value) not in (str, int, float) or "_" in str(value):
        raise TypeError(f"number {value!r}")
    number = float(value)
    if not abs(number) < _LARGEST_NUMBER:  # nor NaN
        raise ValueError(f"number {value!r}")
    return repr(number)
