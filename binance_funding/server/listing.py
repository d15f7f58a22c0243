"""Every record as it is served: rendered once for each change, and found by name, by order, or by when it changed.

Pure; for one thread.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from . import unknown
from .content import Content, Record

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
_UPPER_CASE = {code: code - 32 for code in range(ord("a"), ord("z") + 1)}
# Updates of all symbols that are kept until the next edition. Nearly all subscribers need the same update.
_MOST_JOINED = 4
AGE = "ageSeconds"
NOTHING: Mapping[str, Any] = {}
_STALE = b',"stale":true}'
_STALE_ERROR = b',"stale":true,"error":"stale data","maxAgeSeconds":%a}'


def dump(content: Mapping[str, Any]) -> bytes:
    """Return a JSON object on a line of its own."""
    return _encode(content).encode() + b"\n"


def upper(names: str) -> str:
    """Return names in upper case. Only ASCII letters change, because some other letters would become S or K."""
    return names.translate(_UPPER_CASE)


class SortOrder(NamedTuple):
    """A field of the records, whether the largest value comes first, and whether its sign is ignored."""

    field: str
    descending: bool
    by_magnitude: bool = False

    def sort(self, all_listed: Iterable["Listed"]) -> list["Listed"]:
        """Return symbols in this order. Those whose value is not known come last, whatever the direction."""
        known: list[tuple[Any, Listed]] = []
        not_known: list[Listed] = []
        for listed in all_listed:
            value = listed.age_when_written_s if self.field == AGE else listed.record[self.field]
            if value is None:
                not_known.append(listed)
            else:
                known.append((abs(value) if self.by_magnitude else value, listed))
        known.sort(key=itemgetter(0), reverse=self.descending)
        return [*(listed for _, listed in known), *not_known]


class Listed:
    """One symbol and its record. The listing changes it in place, and subscribers keep references to it."""

    __slots__ = ("_json", "age_when_written_s", "edition", "is_stale", "member", "record", "symbol")

    def __init__(self, symbol: str) -> None:
        self.symbol = symbol
        self.record: Record = {}
        self.age_when_written_s = 0.0
        self.is_stale = False
        """Whether the record is older than STALE_SECONDS. A reader's own limit may be stricter."""
        self.edition = 0
        """Edition of the listing in which the record last changed."""
        self._json = b""
        """The record as a JSON object without its closing brace. Empty until somebody needs it."""
        self.member = b""
        """The record after a comma and its symbol, as a member of the object that holds many records."""

    def change(self, record: Record, *, is_stale: bool, edition: int) -> None:
        """Take the record of a newer edition."""
        self.record, self.is_stale, self.edition = record, is_stale, edition
        self._json = self.member = b""

    def render(self) -> bytes:
        """Return `member`. It is made once for each change, because everybody shares these bytes."""
        if not self.member:
            self._json = _encode(self.record)[:-1].encode()
            self.member = b",%b:%b%b" % (_encode(self.symbol).encode(), self._json, _STALE if self.is_stale else b"}")
        return self.member

    def is_older(self, file_age_s: float, limit_s: float) -> bool:
        """Tell whether the record is older than a limit."""
        return self.age_when_written_s > limit_s - file_age_s

    def member_within(self, file_age_s: float, limit_s: float) -> bytes:
        """Return `member` as it is for a reader with a stricter limit."""
        member = self.member or self.render()
        return member if self.is_stale or not self.is_older(file_age_s, limit_s) else member[:-1] + _STALE

    def with_age(self, file_age_s: float, limit_s: float) -> bytes:
        """Return the record as a JSON object with its age. If it is older than the limit, it says so."""
        self.render()
        age_s = round(self.age_when_written_s + file_age_s, 3)
        end = _STALE_ERROR % limit_s if self.is_older(file_age_s, limit_s) else b"}"
        return b'%b,"ageSeconds":%a%b' % (self._json, age_s, end)


class Listing:
    """All records of the file as they are served now. A stale record is marked, so that it cannot pass for fresh."""

    def __init__(self) -> None:
        self.edition = 1
        """Grows whenever a record changes, comes, leaves, becomes stale or becomes fresh again. 0 is before all."""
        self.all: tuple[Listed, ...] = ()
        """The symbols in the order of the file. The tuple is replaced only when symbols come, leave or move."""
        self.by_name: dict[str, Listed] = {}
        """The symbols by their names in upper case."""
        self._by_symbol: dict[str, Listed] = {}
        self._content: Content | None = None
        self._stale_count = 0
        self._updated_at_s: float | None = None
        self._orders: dict[SortOrder, list[Listed]] = {}
        """The symbols of this content in each order that somebody asked for."""
        self._joined: dict[int, list[bytes]] = {}
        """Results of `changes_of_all` in this edition, by its argument."""

    def refresh(self, content: Content, file_age_s: float) -> None:
        """Bring the listing up to date with the file, and mark the records that became stale meanwhile."""
        stale_count = content.stale_count(file_age_s, content.stale_s)
        if content is self._content and stale_count == self._stale_count:
            return
        if content is not self._content:
            self._orders.clear()
        self._content, self._stale_count = content, stale_count
        edition, has_changed = self.edition + 1, False
        by_symbol: dict[str, Listed] = {}
        for symbol, record in content.records.items():
            listed = self._by_symbol.get(symbol) or Listed(symbol)
            listed.age_when_written_s = content.age_when_written_s(record)
            is_stale = listed.is_older(file_age_s, content.stale_s)
            if listed.record != record or listed.is_stale != is_stale:
                listed.change(record, is_stale=is_stale, edition=edition)
                has_changed = True
            by_symbol[symbol] = listed
        if list(by_symbol) != list(self._by_symbol):
            self._by_symbol, self.all = by_symbol, tuple(by_symbol.values())
            self.by_name = {upper(symbol): listed for symbol, listed in by_symbol.items()}
            has_changed = True
        if has_changed:
            self.edition = edition
            self._joined.clear()
            self._updated_at_s = max((listed.record["updatedAt"] for listed in self.all), default=None)

    def unknown(self, name: str) -> bytes:
        """Return the JSON object that stands in place of the record of an unknown symbol, given in upper case."""
        error, suggestion = unknown.explain(name, self.by_name) if self.all else ("no data yet", "")
        body = f'{{"symbol":{_encode(name)},"error":"{error}"'
        if suggestion:
            body += f',"suggestion":{_encode(self.by_name[suggestion].symbol)}'
        return f"{body}}}".encode()

    def in_order(self, order: SortOrder) -> list[Listed]:
        """Return all symbols in this order, which is made once for each content."""
        if order not in self._orders:
            self._orders[order] = order.sort(self.all)
        return self._orders[order]

    def fresh(self) -> list[Record]:
        """Return the records that a person may act on: neither stale, nor halted, nor delisted."""
        fresh = [listed.record for listed in self.all if not listed.is_stale]
        return [record for record in fresh if "halted" not in record and "unlisted" not in record]

    def within(self, file_age_s: float, limit_s: float) -> bytes:
        """Return all records as `changes_of_all` does, but as they are for a reader with a stricter limit."""
        members = [listed.member_within(file_age_s, limit_s) for listed in self.all]
        return b"".join(self._object(members, NOTHING))

    def changes_of_all(self, since: int) -> list[bytes]:
        """Return what `changes` returns for all symbols, joined into one piece that is made once for everybody.

        Only a few such pieces are kept. Subscribers that read slowly may get the smaller shared pieces instead.
        """
        if since in self._joined:
            return self._joined[since]
        pieces = self.changes(self.all, since)
        if since and len(self._joined) >= _MOST_JOINED:
            return pieces
        self._joined[since] = [b"".join(pieces)] if pieces else []
        return self._joined[since]

    def changes(self, selected: Sequence[Listed], since: int, more: Mapping[str, Any] = NOTHING) -> list[bytes]:
        """Return the selected records that changed after an edition, as the pieces of a JSON object on its own line.

        The object also holds the members in `more`. Edition 0 stands for everything. The pieces are shared with all
        other callers. The list is empty if nothing changed and `more` is empty.
        """
        changed = [listed.member or listed.render() for listed in selected if listed.edition > since]
        return self._object(changed, more) if changed or more or not since else []

    def _object(self, members: Sequence[bytes], more: Mapping[str, Any]) -> list[bytes]:
        """Return the object that holds these members and more in its head, in pieces, as a line of its own."""
        head = {"updatedAt": self._updated_at_s, "count": len(members), **more}
        first = [members[0][1:]] if members else []
        return [_encode(head)[:-1].encode() + b',"data":{', *first, *members[1:], b"}}\n"]


class Selection:
    """The symbols that a subscriber follows: all, or those that it named, whether they are listed yet or not."""

    def __init__(self, listing: Listing, names: str | None) -> None:
        """Follow names in upper case with commas between them; None for all."""
        self._listing = listing
        # As bytes, invented names cost no more than they took in the query.
        self._names = None if names is None else names.encode()
        self._all: tuple[Listed, ...] = ()
        """`Listing.all` when the names were last looked up."""
        self._listed: tuple[Listed, ...] = ()

    def changes(self, since: int) -> list[bytes]:
        """Return what changed after the edition of the last call, in pieces; everything if `since` is 0."""
        more: dict[str, Any] = {}
        if self._all is not self._listing.all and (removed := self._look_up()):
            more["removed"] = removed
        if not since and self._names is not None:
            # Before the first data, no symbol is unknown.
            by_name = self._listing.by_name
            more["unknown"] = [name for name in self._split_names() if name not in by_name] if by_name else []
        if self._names is None and not more:
            return self._listing.changes_of_all(since)
        return self._listing.changes(self._listed, since, more)

    def _split_names(self) -> list[str]:
        return self._names.decode().split(",") if self._names else []

    def _look_up(self) -> list[str]:
        """Look the names up again; return the symbols that have left since the last time."""
        before, self._all = self._listed, self._listing.all
        self._listed = self._all
        if self._names is not None:
            names = set(self._split_names())
            self._listed = tuple(listed for name, listed in self._listing.by_name.items() if name in names)
        symbols = {listed.symbol for listed in self._listed}
        return [listed.symbol for listed in before if listed.symbol not in symbols]
