"""The parameters of a request, after the question mark. Pure."""

import re
from collections.abc import Collection, Mapping, Sequence
from urllib.parse import unquote_plus

from ..schema import SERVED
from .listing import SortOrder, upper

SORT_FIELDS = (*(one.name for one in SERVED), "ageSeconds")
_SHOWN_CHARACTERS = 40
_BAD_ESCAPE = re.compile("%(?![0-9A-Fa-f]{2})")

Given = Mapping[str, Sequence[str]]
"""The values of each parameter that a request has, in the order given."""


class InvalidParameter(Exception):
    """A parameter is missing, unknown or has a bad value; the text says what is allowed."""


def parse(query: str, allowed: Collection[str]) -> Given:
    """Decode a query. Raises InvalidParameter if it has a parameter that is not allowed."""
    given: dict[str, list[str]] = {}
    for piece in filter(None, query.split("&")):
        name, _, value = piece.partition("=")
        name = _decoded(name)
        if name not in allowed:
            hint = f"allowed: {', '.join(allowed)}" if allowed else "none is allowed here"
            raise InvalidParameter(f"unknown parameter '{name[:_SHOWN_CHARACTERS]}'; {hint}")
        given.setdefault(name, []).append(_decoded(value))
    return given


def _decoded(text: str) -> str:
    try:
        if not _BAD_ESCAPE.search(text):
            return unquote_plus(text, errors="strict")
    except UnicodeDecodeError:
        pass
    raise InvalidParameter("a parameter is not percent-encoded UTF-8")


def symbols(given: Given) -> tuple[str, ...] | None:
    """Return the symbols that are named, each once and in upper case; None if the parameter is absent."""
    if "symbols" not in given:
        return None
    names = [name.strip() for name in upper(",".join(given["symbols"])).split(",")]
    named = tuple(dict.fromkeys(filter(None, names)))
    if not named:
        raise InvalidParameter("'symbols' is empty; allowed: names with commas between them, e.g. BTCUSDT,ETHUSDT")
    return named


def sort_order(given: Given) -> SortOrder | None:
    """Return the order that `sort` asks for; None if the parameter is absent."""
    if "sort" not in given:
        return None
    text, *others = given["sort"]
    order = SortOrder(text.removeprefix("-"), text.startswith("-"))
    if others or order.field not in SORT_FIELDS:
        raise InvalidParameter(f"'sort' must be one field; allowed, with '-' to reverse: {', '.join(SORT_FIELDS)}")
    return order


def limit(given: Given) -> int | None:
    """Return the value of `limit`; None if the parameter is absent."""
    if "limit" not in given:
        return None
    text, *others = given["limit"]
    if others or not re.fullmatch("[1-9][0-9]{0,8}", text):
        raise InvalidParameter("'limit' must be one whole number, 1 or more")
    return int(text)
