"""The decoding of `GET /fapi/v1/fundingRate`. Pure: no I/O, no state.

Facts of the exchange, as of November 2026 [1]:
- A row is {"symbol", "fundingTime" in ms, "fundingRate", "markPrice", "rateType"}; numbers are decimal texts with eight
  places. `markPrice` is "" before 2023-10-31T08:00Z. Rows come in ascending order.
- An error is an object, of two different kinds, and not a list.
[1] https://developers.binance.com/docs/derivatives/usds-margined-futures/market-data/rest-api/Get-Funding-Rate-History
"""

import json
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, NamedTuple

from ...log import printable
from ...schema import refuse_constant
from ...settlements import E8, REGULAR, Settlement
from .rates import MalformedMessage

_DECIMAL = re.compile(r"-?[0-9]{1,10}(\.[0-9]{1,8}0*)?", re.ASCII)
_WORD = re.compile(r"[A-Za-z_]{1,20}")
_LONGEST_SYMBOL = 64
_QUOTE_BYTES = 200
_ROW_FAULTS = (KeyError, TypeError, ValueError, AttributeError)


class DecodedSettlements(NamedTuple):
    """The usable rows of one answer, and how many were malformed."""

    rows: list[Settlement]
    length: int
    """Rows in the answer, malformed ones included."""
    rejected: int
    first_fault: str
    """What was wrong with the first malformed row, or ""."""


def decode(body: bytes, from_ms: int, to_ms: int) -> DecodedSettlements:
    """Decode the answer about a time, both ends included.

    Raises MalformedMessage if it is not a list in UTF-8 JSON, or if a row lies outside of that time. Such a row answers
    another question; a cache may have sent it.
    """
    quoted = repr(body[:_QUOTE_BYTES].decode("utf-8", "replace"))
    try:
        answer = json.loads(body.decode("utf-8"), parse_constant=refuse_constant)
    except (ValueError, RecursionError) as error:
        raise MalformedMessage(f"not valid JSON ({error}) in {quoted}") from error
    if not isinstance(answer, list):
        raise MalformedMessage(f"no list of settlements in {quoted}")
    decoded = [_decode_row(row) for row in answer]
    rows = [row for row in decoded if isinstance(row, Settlement)]
    faults = [fault for fault in decoded if isinstance(fault, str)]
    for settlement in rows:
        if not from_ms <= settlement.funding_time_ms <= to_ms:
            raise MalformedMessage(f"a settlement at {settlement.funding_time_ms}, asked for {from_ms} to {to_ms}")
    return DecodedSettlements(rows, len(answer), len(faults), faults[0] if faults else "")


def _decode_row(row: Any) -> Settlement | str:
    """Return the settlement, or what is wrong with the row."""
    try:
        return _settlement(row)
    except _ROW_FAULTS as fault:
        return printable(f"{type(fault).__name__} {fault} in row {str(row)[:_QUOTE_BYTES]}")


def _settlement(row: Mapping[str, Any]) -> Settlement:
    symbol, time_ms, rate_type = row["symbol"], row["fundingTime"], row.get("rateType", REGULAR)
    if type(symbol) is not str or not symbol.isprintable() or not 0 < len(symbol) <= _LONGEST_SYMBOL:
        raise ValueError("symbol")
    if type(time_ms) is not int:
        raise ValueError("funding time")
    if not _WORD.fullmatch(rate_type):
        raise ValueError("rate type")
    rate_e8 = _e8(row["fundingRate"])
    mark_price_e8 = None if row["markPrice"] == "" else _e8(row["markPrice"])
    # Nobody pays a whole position at once: the largest dividend of 2026 was 1.24 %.
    if abs(rate_e8) >= E8 or (mark_price_e8 is not None and mark_price_e8 <= 0):
        raise ValueError("number")
    return Settlement(symbol, time_ms, rate_type, rate_e8, mark_price_e8)


def _e8(text: Any) -> int:
    """Return a decimal text as a whole number of 0.00000001. Raises ValueError or TypeError."""
    if not _DECIMAL.fullmatch(text):
        raise ValueError("number")
    return int(Decimal(text) * E8)
