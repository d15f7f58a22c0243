"""The parameters of a request, after the question mark. Pure."""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from urllib.parse import parse_qs

from ..schema import SERVED, TEXT
from .listing import AGE, SortOrder, upper

SORT_FIELDS = (*(one.name for one in SERVED), AGE)
_NUMBER_FIELDS = {*SORT_FIELDS} - {one.name for one in SERVED if one.kind == TEXT}
_SORT = re.compile(r"(?P<minus>-?)(?:(?P<field>\w+)|abs\((?P<number>\w+)\))", re.ASCII)
_DECIMAL = re.compile(r"[0-9]+(\.[0-9]*)?|\.[0-9]+", re.ASCII)
_SHOWN_CHARACTERS = 40
# A client may repeat `symbols` for each symbol. Without a limit, the repetitions in a query of 16 KiB would be slow.
_MOST_PARAMETERS = 2000
_BAD_ESCAPE = re.compile("%(?![0-9A-Fa-f]{2})")

Given = Mapping[str, Sequence[str]]
"""The values of each parameter that a request has, in the order given."""


class InvalidParameter(Exception):
    """A parameter is missing, unknown or has a bad value; the text says what is allowed."""


def parse(query: str, allowed: Collection[str]) -> Given:
    """Decode a query. Raises InvalidParameter if it has a parameter that is not allowed."""
    try:
        if _BAD_ESCAPE.search(query):
            raise ValueError
        given = parse_qs(query, keep_blank_values=True, errors="strict", max_num_fields=_MOST_PARAMETERS)
    except ValueError:
        hint = f"the query is not percent-encoded UTF-8, or has more than {_MOST_PARAMETERS} parameters"
        raise InvalidParameter(hint) from None
    for name in given:
        if name not in allowed:
            hint = f"allowed: {', '.join(allowed)}" if allowed else "none is allowed here"
            raise InvalidParameter(f"unknown parameter '{name[:_SHOWN_CHARACTERS]}'; {hint}")
    return given


def symbols(given: Given) -> tuple[str, ...] | None:
    """Return the symbols that are named, each once and in upper case; None if the parameter is absent."""
    if "symbols" not in given:
        return None
    names = [name.strip() for name in upper(",".join(given["symbols"])).split(",")]
    named = tuple(dict.fromkeys(filter(None, names)))
    if not named:
        raise InvalidParameter("symbols must be names separated by commas, for example BTCUSDT,ETHUSDT")
    return named


def sort_order(given: Given) -> SortOrder | None:
    """Return the order that `sort` asks for; None if the parameter is absent."""
    text = _single(given, "sort")
    if text is None:
        return None
    match = _SORT.fullmatch(text)
    if match and match["field"] in SORT_FIELDS:
        return SortOrder(match["field"], descending=bool(match["minus"]))
    if match and match["number"] in _NUMBER_FIELDS:
        return SortOrder(match["number"], descending=bool(match["minus"]), by_magnitude=True)
    forms = "field or abs(field), with '-' before it for the largest first"
    raise InvalidParameter(f"sort must be {forms}; the fields are {', '.join(SORT_FIELDS)}")


def limit(given: Given) -> int | None:
    """Return the value of `limit`; None if the parameter is absent."""
    text = _single(given, "limit")
    if text is not None and not re.fullmatch("[1-9][0-9]{0,8}", text):
        raise InvalidParameter("limit must be a whole number, 1 or more")
    return None if text is None else int(text)


def max_age_s(given: Given) -> float:
    """Return the value of `maxAge`; infinity if the parameter is absent."""
    text = _single(given, "maxAge")
    if text is None:
        return math.inf
    value = float(text) if _DECIMAL.fullmatch(text) else 0.0
    if value <= 0:
        raise InvalidParameter("maxAge must be a number of seconds above 0, for example 12 or 2.5")
    return value


def _single(given: Given, name: str) -> str | None:
    """Return the value of a parameter that may be given once; None if it is absent."""
    values = given.get(name, ())
    if len(values) > 1:
        raise InvalidParameter(f"{name} must be given only once")
    return values[0] if values else None
