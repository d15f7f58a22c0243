"""Every record as it is served: rendered once for each change, and since when it is so. Pure; for one thread."""

import json
from bisect import bisect_right
from collections.abc import Mapping
from operator import itemgetter
from typing import Any

from ..clock import Moment
from ..schema import MARKS, SERVED, TEXT
from .view import View

Symbols = frozenset[str] | None
"""Symbols in upper case, known or not; None for all."""

dump = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode

_FIELDS = [one for one in SERVED if one.name != "symbol"]
_values = itemgetter(*(one.name for one in _FIELDS))
_TEMPLATE = ",".join(f'"{one.name}":"%s"' if one.kind is TEXT else f'"{one.name}":%s' for one in _FIELDS)
_MARKS = (*(one.name for one in MARKS), "stale")


class _Entry:
    """A record, since the edition in which it became what it is. Without a record: the symbol left in that edition."""

    __slots__ = ("edition", "record", "text")

    def __init__(self, edition: int, record: Mapping[str, Any] | None) -> None:
        self.edition, self.record, self.text = edition, record, ""


class Listing:
    """All records, the stale ones marked as such: none may pass for a fresh one."""

    def __init__(self) -> None:
        self.edition = 0
        """Grows whenever a record changed, came, left, became stale or fresh again."""
        self._view: View | None = None
        self._stale = 0
        self._updated_at: float | None = None
        self._entries: dict[str, _Entry] = {}
        self._by_upper_case: dict[str, str] = {}
        self._editions: list[int] = []
        self._bodies: dict[tuple[Symbols, int], bytes] = {}

    def refresh(self, view: View, now: Moment) -> None:
        """Bring the listing up to date with the file, and with what became stale meanwhile."""
        stale = view.stale(view.update_times, now)
        if view is self._view and stale == self._stale:
            return
        self._view, self._stale, self._updated_at = view, stale, view.newest_update_s
        self._by_upper_case |= view.by_upper_case
        self.edition += 1
        entries, oldest_fresh_s = self._entries, view.oldest_fresh_s(now)
        for symbol, record in view.records.items():
            current = {**record, "stale": True} if record["updatedAt"] < oldest_fresh_s else record
            entry = entries.get(symbol)
            if entry is None or entry.record != current:
                entries[symbol] = _Entry(self.edition, current)
        for symbol in entries.keys() - view.records.keys():
            if entries[symbol].record is not None:
                entries[symbol] = _Entry(self.edition, None)
        self._editions = sorted({entry.edition for entry in entries.values()})
        self._bodies.clear()

    def body(self, symbols: Symbols = None, since: int = 0) -> bytes:
        """Return the records of these symbols as a JSON object.

        With an edition: what has changed since, and which symbols have left; b"" where nothing has.
        """
        # Whoever missed the same changes gets the same bytes, however long ago the first of them was.
        key = symbols, bisect_right(self._editions, since) if since else -1
        if key not in self._bodies:
            self._bodies[key] = self._render(symbols, since)
        return self._bodies[key]

    def _render(self, symbols: Symbols, since: int) -> bytes:
        names = self._entries if symbols is None else map(self._by_upper_case.get, sorted(symbols))
        changed = [(name, self._entries[name]) for name in names if name and self._entries[name].edition > since]
        if since and not changed:
            return b""
        texts = [_text(name, entry) for name, entry in changed if entry.record is not None]
        head: dict[str, Any] = {"updatedAt": self._updated_at, "count": len(texts)}
        if since and len(texts) < len(changed):
            head["removed"] = [name for name, entry in changed if entry.record is None]
        return f'{dump(head)[:-1]},"data":{{{",".join(texts)}}}}}'.encode()


def _text(symbol: str, entry: _Entry) -> str:
    """Return a record as a member of a JSON object: a third of the time that the json module takes for it.

    Its numbers are neither infinite nor NaN, and its texts those of `schema`, but for the symbol.
    """
    if not entry.text and entry.record is not None:
        name, marks = dump(symbol), [f',"{mark}":true' for mark in _MARKS if mark in entry.record]
        entry.text = f'{name}:{{"symbol":{name},{_TEMPLATE % _values(entry.record)}{"".join(marks)}}}'
    return entry.text
