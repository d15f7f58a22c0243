"""What may follow the question mark of a request. Pure."""

import re
from collections.abc import Collection
from typing import NamedTuple
from urllib.parse import parse_qs

from ..schema import SERVED
from .view import upper

SORT_FIELDS = (*(one.name for one in SERVED), "ageSeconds")
_SHOWN_CHARACTERS = 40


class InvalidParameter(Exception):
    """A parameter is missing, not served or has a bad value; the text says what is allowed."""


class Parameters(NamedTuple):
    """What a request asks for: symbols in upper case, each once, None where they are not named; limit None for all."""

    symbols: tuple[str, ...] | None = None
    sort: str = ""
    limit: int | None = None


def read_parameters(query: str, allowed: Collection[str]) -> Parameters:
    """Read a query, of which only the parameters allowed may be given. Raises InvalidParameter."""
    try:
        given = parse_qs(query, keep_blank_values=True, errors="strict")
    except ValueError:
        raise InvalidParameter("a parameter is not percent-encoded UTF-8") from None
    served = f"allowed: {', '.join(allowed)}" if allowed else "none is allowed here"
    for name in given:
        if name not in allowed:
            raise InvalidParameter(f"unknown parameter '{name[:_SHOWN_CHARACTERS]}'; {served}")
    return Parameters(_symbols(given.get("symbols")), _sort(given.get("sort")), _limit(given.get("limit")))


def _symbols(values: list[str] | None) -> tuple[str, ...] | None:
    if values is None:
        return None
    symbols = [upper(symbol.strip()) for symbol in ",".join(values).split(",")]
    named = tuple(dict.fromkeys(filter(None, symbols)))
    if not named:
        raise InvalidParameter("'symbols' is empty; allowed: names with commas between them, e.g. BTCUSDT,ETHUSDT")
    return named


def _sort(values: list[str] | None) -> str:
    if values and (len(values) > 1 or values[0].removeprefix("-") not in SORT_FIELDS):
        raise InvalidParameter(f"'sort' is not one field; allowed, with '-' to reverse: {', '.join(SORT_FIELDS)}")
    return values[0] if values else ""


def _limit(values: list[str] | None) -> int | None:
    if values and (len(values) > 1 or not re.fullmatch("[1-9][0-9]{0,8}", values[0])):
        raise InvalidParameter("'limit' is not one number above 0; allowed: whole numbers from 1")
    return int(values[0]) if values else None
