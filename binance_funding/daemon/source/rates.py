"""Decodes both formats of Binance into FundingRate records. Pure: no I/O, no state.

Facts of the exchange, as of November 2026:
- Stream rows: `e` "markPriceUpdate", `E` event time ms, `s` symbol, `p` mark price, `i` index price, `r` funding rate,
  `P` estimated settle price, `T` next funding time ms, `st` 1 USD-M / 2 COIN-M (absent before 2026-06-30). Numbers
  are decimal strings. [1]
- REST rows: `symbol, markPrice, indexPrice, estimatedSettlePrice, lastFundingRate, interestRate, nextFundingTime,
  time`. [2]
- Delivery contracts and settling perpetuals have next funding time 0 and an empty or zero funding rate. [1]
- COIN-M rows travel on the same all-market stream; other streams reuse `p` with another meaning. [1]
[1] https://developers.binance.com/docs/derivatives/usds-margined-futures/websocket-market-streams
[2] https://developers.binance.com/docs/derivatives/usds-margined-futures/market-data/rest-api/Mark-Price
"""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from ...log import printable
from ...schema import refuse_constant
from ..record import REST, STREAM, FundingRate, Terms

_LONGEST_SYMBOL = 64
_QUOTE_CHARACTERS = 200
# Far more than any market has. A text of nothing but brackets takes forty times its size in memory when parsed.
_MOST_OBJECTS = 200_000
# Far above any price, and small enough that calculations with it do not become infinite.
_LARGEST_NUMBER = 1e18
_LONGEST_INTERVAL_HOURS = 24

_USD_M = 1


class Decoded(NamedTuple):
    """The usable rows of one message, and the number of rejected rows."""

    rates: list[FundingRate]
    median_event_time_ms: int
    """Median event time of the usable rows, 0 if there are none. One absurd row does not change it."""
    latest_event_time_ms: int
    """Latest event time of the usable rows, 0 if there are none."""
    rejected: int
    """Number of malformed rows. Rows of COIN-M, rows without funding and rows of other streams are not malformed."""
    first_fault: str
    """Fault of the first rejected row; "" if there is none."""

    def up_to(self, latest_ms: float) -> "Decoded":
        """Reject the rows with a later event time. If such a row were kept, no correct row could replace it."""
        if self.latest_event_time_ms <= latest_ms:
            return self
        rates = [rate for rate in self.rates if rate.event_time_ms <= latest_ms]
        fault = self.first_fault or f"event time {self.latest_event_time_ms} is ahead of Binance's time"
        median_ms = self.median_event_time_ms if self.median_event_time_ms <= latest_ms else 0
        return Decoded(rates, median_ms, 0, self.rejected + len(self.rates) - len(rates), fault)


class MalformedMessage(ValueError):
    """A message or answer is not the expected JSON at all. The text quotes at most 200 characters of it."""


def decode_stream(payload: bytes, received_s: float) -> Decoded:
    """Decode one WebSocket message, with or without its envelope.

    Raises MalformedMessage if it is not UTF-8, not JSON, or holds neither rows nor an event.
    """
    message = _parse(payload)
    if isinstance(message, dict):
        # Without an envelope, a single event is itself a row. The conversion checks whether it is a mark price.
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


def decode_funding_info(body: bytes) -> dict[str, Terms]:
    """Decode the answer to GET /fapi/v1/fundingInfo; return the terms of each listed symbol.

    Rows without a usable interval are left out. Raises MalformedMessage if the answer is not UTF-8, not JSON, or has no
    usable row: otherwise an empty answer would mean that all symbols have 8 h.
    """
    terms = {}
    for row in _parse_list(body):
        if isinstance(row, dict) and isinstance(symbol := row.get("symbol"), str):
            hours = row.get("fundingIntervalHours")
            if type(hours) is int and 1 <= hours <= _LONGEST_INTERVAL_HOURS:
                cap, floor = row.get("adjustedFundingRateCap"), row.get("adjustedFundingRateFloor")
                terms[symbol] = Terms(hours, _optional(cap), _optional(floor))
    if not terms:
        raise MalformedMessage(f"no funding intervals in {_quote(body)}")
    return terms


def decode_server_time(body: bytes) -> float:
    """Decode the answer to GET /fapi/v1/time; return Binance's time in Unix seconds. Raises MalformedMessage."""
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


_Row = Any  # as parsed; it may not even be an object, which the conversion finds out
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


def _leave_out(market: Any) -> None:
    """Check the market of a row that is left out. Raises TypeError if it is not a number: the row is malformed then."""
    if type(market) is not int:
        raise TypeError(f"market {market!r}")


def _from_stream_row(row: _Row, received_s: float) -> FundingRate | None:
    if row["e"] != "markPriceUpdate":
        return None
    if (market := row.get("st", _USD_M)) != _USD_M:
        _leave_out(market)
        return None
    next_time, funding_rate = row["T"], row["r"]
    if next_time == 0 or funding_rate == "":
        return None
    settle_price = row.get("P")
    return _checked(
        row["s"], funding_rate, row["p"], row["i"], settle_price, None, next_time, row["E"], STREAM, received_s
    )


def _from_premium_index_row(row: _Row, received_s: float) -> FundingRate | None:
    next_time, funding_rate, prices = (
        row["nextFundingTime"],
        row["lastFundingRate"],
        (row["markPrice"], row["indexPrice"]),
    )
    if (market := row.get("st", _USD_M)) != _USD_M:
        _leave_out(market)
        return None
    if next_time == 0 or funding_rate == "":
        return None
    numbers = funding_rate, *prices, row.get("estimatedSettlePrice"), row.get("interestRate")
    return _checked(row["symbol"], *numbers, next_time, row["time"], REST, received_s)


def _checked(
    symbol: Any,
    funding_rate: Any,
    mark_price: Any,
    index_price: Any,
    settle_price: Any,
    interest_rate: Any,
    next_time_ms: Any,
    event_time_ms: Any,
    source: str,
    received_s: float,
) -> FundingRate:
    """Make the record. Raises TypeError or ValueError if a value is not allowed in the state file."""
    # isprintable() also rejects half a surrogate pair, which could not be encoded when the file is written.
    if type(symbol) is not str or not symbol.isprintable() or not 0 < len(symbol) <= _LONGEST_SYMBOL:
        raise ValueError("symbol")
    if type(event_time_ms) is not int or not 0 < event_time_ms < 1 << 53:
        raise ValueError("event time")
    if type(next_time_ms) is not int or not 0 < next_time_ms < 1 << 53:
        raise ValueError("next funding time")
    # float() also accepts underscores and digits of other scripts. If the values are not strings, their sum raises
    # TypeError or has no isascii().
    texts = funding_rate + mark_price + index_price
    if not texts.isascii() or "_" in texts:
        raise ValueError("number")
    rate, mark, index = float(funding_rate), float(mark_price), float(index_price)
    # The condition is also false for NaN.
    if not (-_LARGEST_NUMBER < rate < _LARGEST_NUMBER and 0 < mark < _LARGEST_NUMBER and 0 < index < _LARGEST_NUMBER):
        raise ValueError(f"one of the numbers {rate}, {mark}, {index}")
    settle = _optional(settle_price)
    interest = None if interest_rate is None else _optional(interest_rate)  # thousands of rows do not have it
    return FundingRate(symbol, rate, mark, index, next_time_ms, event_time_ms, source, received_s, settle, interest)


def _optional(value: Any) -> float | None:
    """Convert an optional number of a row; return None if it is missing or malformed."""
    if type(value) is not str or not value.isascii() or "_" in value:
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if -_LARGEST_NUMBER < number < _LARGEST_NUMBER else None
