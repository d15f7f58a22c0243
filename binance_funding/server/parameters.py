"""The parameters of a request, after the question mark. Pure."""

import re
from collections.abc import Collection, Mapping, Sequence
from urllib.parse import parse_qs

from ..schema import SERVED
from .listing import SortOrder, upper

SORT_FIELDS = (*(one.name for one in SERVED), "ageSeconds")
_SHOWN_CHARACTERS = 40
# A client may repeat `symbols` for each symbol. A query of 16 KiB could repeat it more often than is quickly read.
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
        raise InvalidParameter("'symbols' is empty; allowed: names with commas between them, e.g. BTCUSDT,ETHUSDT")
    return named


def sort_order(given: Given) -> SortOrder | None:
    """Return the order that `sort` asks for; None if the parameter is absent."""
    orders = [SortOrder(text.removeprefix("-"), text.startswith("-")) for text in given.get("sort", ())]
    if len(orders) > 1 or any(order.field not in SORT_FIELDS for order in orders):
        raise InvalidParameter(f"'sort' must be one field; allowed, with '-' to reverse: {', '.join(SORT_FIELDS)}")
    return orders[0] if orders else None


def limit(given: Given) -> int | None:
    """Return the value of `limit`; None if the parameter is absent."""
    texts = given.get("limit", ())
    if len(texts) > 1 or not all(re.fullmatch("[1-9][0-9]{0,8}", text) for text in texts):
        raise InvalidParameter("'limit' must be one whole number, 1 or more")
    return int(texts[0]) if texts else None
