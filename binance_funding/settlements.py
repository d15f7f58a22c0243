"""The settlement history: one sqlite3 file, written by the daemon and read by the server.

The file says for each hour whether its settlements are known, and lists the settlements that are awaited. So every
answer can tell whether something is missing from it:
- An hour is *known* if the daemon watched its beginning (table `hour`, `asked_ms` 0), or if Binance was asked for the
  whole hour, at the earliest 10 minutes after its beginning (`asked_ms`: when, by Binance's clock).
- A settlement is *awaited* (table `due`) from the moment at which it was due until its row arrives. If Binance does
  not have it 10 minutes later, it did not take place.
- A time is complete if all its hours are known and nothing is awaited in it.

The rows of one hour stand together, in the order of their symbols. So an hour is written to a few pages (a table in
the order of symbols was 25 times as much to write), and one symbol is found with one step for each hour.

The journal is sqlite's rollback journal, because readers of a write-ahead log need write access.
"""

import contextlib
import enum
import os
import sqlite3
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple
from urllib.parse import quote

MINUTE_MS, HOUR_MS, DAY_MS = 60_000, 3_600_000, 86_400_000
REGULAR = "Regular"
"""The rate type of an ordinary settlement. A dividend has another one."""
E8 = 100_000_000
"""Rates and prices are kept as whole numbers of 0.00000001: Binance sends eight decimal places."""
PUBLISHED_WITHIN_MS = 10 * MINUTE_MS
"""A settlement that Binance does not have after this time did not take place. Binance documents no limit; one client
waits 90 s."""

_LONGEST_INTERVAL_MS = DAY_MS
_SUM_DAYS = (1, 7, 30)
# The daemon's thread waits this long for a reader to finish. A reader never waits.
_WRITER_WAITS_S = 1.0

SCHEMA = (
    """
    CREATE TABLE settlement (
        hour_ms INTEGER NOT NULL, symbol TEXT NOT NULL, funding_time_ms INTEGER NOT NULL, rate_type TEXT NOT NULL,
        rate_e8 INTEGER NOT NULL, mark_price_e8 INTEGER, last_estimate_e8 INTEGER,
        PRIMARY KEY (hour_ms, symbol, funding_time_ms, rate_type)
    ) WITHOUT ROWID;
    CREATE TABLE hour (hour_ms INTEGER PRIMARY KEY, asked_ms INTEGER NOT NULL);
    CREATE TABLE due (
        due_ms INTEGER NOT NULL, symbol TEXT NOT NULL, estimate_e8 INTEGER, PRIMARY KEY (due_ms, symbol)
    ) WITHOUT ROWID;
    """,
)
"""Scripts that each turn a file into one of the next version. The version is in `user_version`."""

_COLUMNS = "settlement.symbol, funding_time_ms, rate_type, rate_e8, mark_price_e8, last_estimate_e8"


class Settlement(NamedTuple):
    """One settlement, its time as Binance sent it."""

    symbol: str
    funding_time_ms: int
    rate_type: str
    rate_e8: int
    mark_price_e8: int | None = None
    last_estimate_e8: int | None = None
    """The last rate that the stream showed before the settlement."""
    interval_hours: int | None = None
    """Hours since the settlement before it, None for a dividend or if that settlement is not known. Not stored."""


class Window(NamedTuple):
    """Settlements within a time, in ascending order."""

    rows: list[Settlement]
    from_ms: int
    """The beginning of that time: the first row, if a limit left out older ones."""
    is_complete: bool


class Summary(NamedTuple):
    """What the settlements of one symbol amount to. A sum is None if a settlement may be missing from it."""

    settled_rate_e8: int | None
    """Of the last ordinary settlement."""
    settled_time_ms: int | None
    sum_24h_e8: int | None
    sum_7d_e8: int | None
    sum_30d_e8: int | None


class CheckedHour(NamedTuple):
    """An hour that Binance was asked for, and when, by Binance's clock."""

    hour_ms: int
    asked_ms: int


class FaultKind(enum.Enum):
    """Why the history cannot be used. The value is the beginning of the sentence for people."""

    MISSING = "there is no settlement history yet"
    UNAVAILABLE = "the settlement history cannot be used now"
    DAMAGED = "the settlement history is damaged"
    VERSION = "the settlement history has another version"


class HistoryFault(Exception):
    """The history cannot be used. Trying again later is right whatever the kind."""

    def __init__(self, kind: FaultKind, detail: str) -> None:
        super().__init__(f"{kind.value}: {detail}")
        self.kind = kind


class _Database:
    """A connection that is opened when first used, and again if the file was replaced. For one thread."""

    def __init__(self, path: str) -> None:
        self._path = os.path.abspath(path)
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        """Device and inode of the file that is open."""

    def close(self) -> None:
        """Close the connection. The next use opens it again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _connect(self) -> sqlite3.Connection:
        """Open the file. Its content is not looked at yet."""
        raise NotImplementedError

    def _prepare(self, connection: sqlite3.Connection) -> None:
        """Check the content of a file that was just opened."""
        raise NotImplementedError

    def _look(self) -> tuple[int, int]:
        info = os.stat(self._path)
        return info.st_dev, info.st_ino

    @contextlib.contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        """Run one transaction. Raises HistoryFault, and then nothing has changed."""
        try:
            if self._connection is None or self._look() != self._identity:
                self.close()
                # The identity is taken first: a file that replaces this one meanwhile is then opened next time.
                self._identity = self._look()
                self._connection = self._connect()
                self._prepare(self._connection)
            self._connection.execute(begin)
            yield self._connection
            self._connection.execute("COMMIT")
        except (sqlite3.Error, OSError) as error:
            self.close()  # This rolls back.
            raise self._fault(error) from error
        except BaseException:
            self.close()
            raise

    def _fault(self, error: Exception) -> HistoryFault:
        # The sqlite3 module raises the base class itself for SQLITE_CORRUPT and SQLITE_NOTADB only.
        kind = FaultKind.DAMAGED if type(error) is sqlite3.DatabaseError else FaultKind.UNAVAILABLE
        return HistoryFault(kind, f"{self._path}: {error}")


class SettlementReader(_Database):
    """Reads the history. Never waits for a lock and never writes, so it may run as a user without write access.

    For one thread. Every method raises HistoryFault: the file is missing, locked for a moment by a commit, damaged, or
    of another version, or the daemon was killed during a commit and has not repaired the file yet.
    """

    def history(self, symbol: str, from_ms: int, to_ms: int, limit: int | None = None) -> Window:
        """Return the settlements of a symbol with their intervals: those within a time, of these the newest `limit`."""
        since_ms = from_ms - _LONGEST_INTERVAL_MS  # the first interval needs the settlement before it
        with self._transaction("BEGIN") as connection:
            rows = _settlements(
                connection,
                "hour JOIN settlement USING (hour_ms) WHERE hour_ms BETWEEN ? AND ? AND symbol = ? "
                "AND funding_time_ms <= ? ORDER BY hour_ms, funding_time_ms",
                (_hour_of(since_ms), to_ms, symbol, to_ms),
            )
            missing_ms = _missing_hours(connection, since_ms, to_ms)
            due = connection.execute("SELECT due_ms FROM due WHERE symbol = ? AND due_ms <= ?", (symbol, to_ms))
            missing_ms = sorted([*missing_ms, *(due_ms for (due_ms,) in due)])
        asked = [row for row in _with_intervals(rows, missing_ms) if row.funding_time_ms >= from_ms]
        if limit is not None and len(asked) > limit:
            asked = asked[-limit:]
            from_ms = asked[0].funding_time_ms
        return Window(asked, from_ms, not _is_any_within(missing_ms, _hour_of(from_ms), to_ms))

    def window(self, from_ms: int, to_ms: int, limit: int, *, symbol: str | None, newest: bool) -> Window:
        """Return the oldest or the newest settlements within a time, of one symbol or of all. Intervals are left out.

        The window is complete if no hour is unknown, from the beginning of the history on. If the limit leaves rows
        out, this is about the time of the others.
        """
        # By way of the hours, the rows of one symbol are found without reading those of the others.
        source = "settlement" if symbol is None else "hour JOIN settlement USING (hour_ms)"
        of_symbol, symbols = ("", ()) if symbol is None else ("AND symbol = ?", (symbol,))
        direction = "DESC" if newest else "ASC"
        with self._transaction("BEGIN") as connection:
            rows = _settlements(
                connection,
                f"{source} WHERE hour_ms BETWEEN ? AND ? AND funding_time_ms BETWEEN ? AND ? {of_symbol} "
                f"ORDER BY hour_ms {direction}, funding_time_ms {direction} LIMIT ?",
                (_hour_of(from_ms), to_ms, from_ms, to_ms, *symbols, limit),
            )
            if len(rows) == limit:
                from_ms, to_ms = (rows[-1].funding_time_ms, to_ms) if newest else (from_ms, rows[-1].funding_time_ms)
            oldest_ms = _oldest_known_hour(connection)
            missing_ms = [0] if oldest_ms is None else _missing_hours(connection, max(from_ms, oldest_ms), to_ms)
        return Window(rows[::-1] if newest else rows, from_ms, not missing_ms)

    def _connect(self) -> sqlite3.Connection:
        uri = f"file:{quote(self._path)}?mode=ro"
        return sqlite3.connect(uri, uri=True, timeout=0.0, isolation_level=None)

    def _prepare(self, connection: sqlite3.Connection) -> None:
        version = _version(connection)
        if version != len(SCHEMA):
            raise HistoryFault(FaultKind.VERSION, f"{self._path}: {version} instead of {len(SCHEMA)}")

    def _fault(self, error: Exception) -> HistoryFault:
        if isinstance(error, FileNotFoundError):
            return HistoryFault(FaultKind.MISSING, self._path)
        return super()._fault(error)


class SettlementWriter(_Database):
    """Writes the history, each method in one transaction: after a crash, all of it is there or none.

    For the daemon's one thread; a method waits at most about a second for a reader. Every method raises HistoryFault.
    A damaged file is renamed to `.broken` before that, and the next call starts a new one.
    """

    def __init__(self, path: str, days: int, schema: Sequence[str] = SCHEMA) -> None:
        super().__init__(path)
        self._days = days
        """How long settlements are kept."""
        self._schema = schema

    def expect(self, due_ms: int, symbols: Collection[str]) -> None:
        """Note that the beginning of an hour was watched, or another settlement time, and who is due at that moment.

        Forgets the settlements that are older than is kept.
        """
        hour_ms = _hour_of(due_ms)
        awaited = [(due_ms, symbol, hour_ms, symbol, due_ms, due_ms + MINUTE_MS) for symbol in symbols]
        oldest_ms = self._oldest_hour(due_ms)
        with self._transaction("BEGIN IMMEDIATE") as connection:
            connection.executemany(
                "INSERT OR IGNORE INTO due (due_ms, symbol) SELECT ?, ? WHERE NOT EXISTS ("
                "SELECT * FROM settlement WHERE hour_ms = ? AND symbol = ? AND funding_time_ms >= ? "
                "AND funding_time_ms < ?)",
                awaited,
            )
            connection.execute("INSERT OR IGNORE INTO hour VALUES (?, 0)", (hour_ms,))
            for column in ("settlement WHERE hour_ms", "hour WHERE hour_ms", "due WHERE due_ms"):
                connection.execute(f"DELETE FROM {column} < ?", (oldest_ms,))  # noqa: S608 - three constants

    def keep_estimates(self, due_ms: int, estimates_e8: Mapping[str, int]) -> None:
        """Keep the last estimates before awaited settlements until these arrive."""
        rows = [(rate_e8, due_ms, symbol) for symbol, rate_e8 in estimates_e8.items()]
        with self._transaction("BEGIN IMMEDIATE") as connection:
            connection.executemany("UPDATE due SET estimate_e8 = ? WHERE due_ms = ? AND symbol = ?", rows)

    def add(self, rows: Sequence[Settlement], checked: CheckedHour | None = None) -> None:
        """Add settlements. Those that are there already stay as they are. They are no longer awaited.

        With an hour, everything that Binance has of it has been added, by this call and others before it.
        """
        regular = [row for row in rows if row.rate_type == REGULAR]
        in_order = sorted(rows, key=lambda row: row.symbol)
        values = [(*row[:5], _hour_of(row.funding_time_ms), REGULAR, MINUTE_MS) for row in in_order]
        spans = [(row.symbol, row.funding_time_ms - MINUTE_MS + 1, row.funding_time_ms) for row in regular]
        with self._transaction("BEGIN IMMEDIATE") as connection:
            connection.executemany(
                "INSERT OR IGNORE INTO settlement VALUES (?6, ?1, ?2, ?3, ?4, ?5, CASE ?3 WHEN ?7 THEN ("
                "SELECT estimate_e8 FROM due WHERE symbol = ?1 AND due_ms > ?2 - ?8 AND due_ms <= ?2) END)",
                values,
            )
            connection.executemany("DELETE FROM due WHERE symbol = ? AND due_ms BETWEEN ? AND ?", spans)
            if checked is not None:
                connection.execute("INSERT OR REPLACE INTO hour VALUES (?, ?)", checked)
                last_ms = min(checked.hour_ms + HOUR_MS - 1, checked.asked_ms - PUBLISHED_WITHIN_MS)
                connection.execute("DELETE FROM due WHERE due_ms BETWEEN ? AND ?", (checked.hour_ms, last_ms))

    def awaited(self, since_ms: int) -> list[int]:
        """Return when the settlements that are awaited were due, the newest first."""
        query = "SELECT DISTINCT due_ms FROM due WHERE due_ms >= ? ORDER BY due_ms DESC"
        with self._transaction("BEGIN") as connection:
            return [due_ms for (due_ms,) in connection.execute(query, (since_ms,))]

    def next_hour(self, now_ms: int, leave_out: Collection[int] = ()) -> int | None:
        """Return the newest hour that Binance has to be asked for, None if there is nothing to ask.

        An hour is asked for 10 minutes after its beginning and again 10 minutes after its end.
        """
        with self._transaction("BEGIN") as connection:
            asked_ms = dict(connection.execute("SELECT hour_ms, asked_ms FROM hour"))
        for hour_ms in range(_hour_of(now_ms), self._oldest_hour(now_ms) - 1, -HOUR_MS):
            due_ms = hour_ms + PUBLISHED_WITHIN_MS
            if asked_ms.get(hour_ms, 0) >= due_ms:
                due_ms += HOUR_MS
            if asked_ms.get(hour_ms, 0) < due_ms <= now_ms and hour_ms not in leave_out:
                return hour_ms
        return None

    def summaries(self, now_ms: int) -> dict[str, Summary]:
        """Return the last settlement and the sums of every symbol; takes 0.1 s for 900 symbols.

        The sum of 24 h is that of the last 24 full hours: a symbol with an interval of 8 h always has three in it.
        """
        hour_ms = _hour_of(now_ms)
        first_hours = [hour_ms - days * DAY_MS + HOUR_MS for days in _SUM_DAYS]
        sums = ", ".join(f"SUM(rate_e8) FILTER (WHERE hour_ms >= {first_ms})" for first_ms in first_hours)
        # Beside MAX, sqlite takes `rate_e8` from the row that has the greatest value.
        query = (
            f"SELECT symbol, MAX(CASE rate_type WHEN ? THEN funding_time_ms END), rate_e8, {sums} "  # noqa: S608 - numbers
            "FROM settlement WHERE hour_ms >= ? GROUP BY symbol"
        )
        found = {}
        with self._transaction("BEGIN") as connection:
            is_known = [not _missing_hours(connection, first_ms, hour_ms) for first_ms in first_hours]
            awaited = dict(connection.execute("SELECT symbol, MAX(due_ms) FROM due GROUP BY symbol"))
            for symbol, time_ms, rate_e8, *amounts in connection.execute(query, (REGULAR, first_hours[-1])):
                shown = [
                    amount or 0 if known and awaited.get(symbol, 0) < first_ms else None
                    for amount, known, first_ms in zip(amounts, is_known, first_hours, strict=True)
                ]
                found[symbol] = Summary(None if time_ms is None else rate_e8, time_ms, *shown)
        return found

    def _oldest_hour(self, now_ms: int) -> int:
        return _hour_of(now_ms - self._days * DAY_MS)

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=_WRITER_WAITS_S, isolation_level=None)

    def _prepare(self, connection: sqlite3.Connection) -> None:
        version, newest = _version(connection), len(self._schema)
        if version > newest:
            raise HistoryFault(FaultKind.VERSION, f"{self._path}: {version}, newer than {newest}")
        for number in range(version, newest):
            script = f"BEGIN IMMEDIATE; {self._schema[number]} PRAGMA user_version = {number + 1}; COMMIT;"
            connection.executescript(script)
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)

    def _look(self) -> tuple[int, int]:
        # Created here if it is missing, so that its mode does not depend on the umask: the server may be another user.
        with contextlib.suppress(FileExistsError):
            fd = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            os.fchmod(fd, 0o644)
            os.close(fd)
        return super()._look()

    def _fault(self, error: Exception) -> HistoryFault:
        fault = super()._fault(error)
        if fault.kind is not FaultKind.DAMAGED:
            return fault
        try:
            # No journal is left: sqlite applied or deleted it when it opened the file.
            os.replace(self._path, f"{self._path}.broken")
        except OSError as why:
            return HistoryFault(FaultKind.DAMAGED, f"{self._path}: {error}; it cannot be renamed: {why}")
        return HistoryFault(FaultKind.DAMAGED, f"{self._path}: {error}; it was renamed to {self._path}.broken")


def to_decimal(value_e8: int) -> str:
    """Write a rate or price as Binance does: eight decimal places."""
    whole, rest = divmod(abs(value_e8), E8)
    return f"{'-' if value_e8 < 0 else ''}{whole}.{rest:08d}"


def _version(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)


def _settlements(connection: sqlite3.Connection, source: str, values: tuple[str | int, ...]) -> list[Settlement]:
    query = f"SELECT {_COLUMNS} FROM {source}"  # noqa: S608 - sources are written in this module
    return [Settlement(*row) for row in connection.execute(query, values)]


def _hour_of(time_ms: int) -> int:
    return time_ms // HOUR_MS * HOUR_MS


def _missing_hours(connection: sqlite3.Connection, from_ms: int, to_ms: int) -> list[int]:
    """Return the hours within a time that are not known, in ascending order.

    The last hour before the oldest known one stands for all hours before it: a client may ask for 50 years.
    """
    first_ms, last_ms = _hour_of(from_ms), _hour_of(to_ms)
    oldest_ms = _oldest_known_hour(connection)
    first_ms = max(first_ms, last_ms if oldest_ms is None else min(last_ms, oldest_ms - HOUR_MS))
    known = connection.execute("SELECT hour_ms FROM hour WHERE hour_ms BETWEEN ? AND ?", (first_ms, last_ms))
    hours = {hour_ms for (hour_ms,) in known}
    return [hour_ms for hour_ms in range(first_ms, last_ms + 1, HOUR_MS) if hour_ms not in hours]


def _oldest_known_hour(connection: sqlite3.Connection) -> int | None:
    (oldest_ms,) = connection.execute("SELECT MIN(hour_ms) FROM hour").fetchone()
    return None if oldest_ms is None else int(oldest_ms)


def _is_any_within(sorted_ms: list[int], from_ms: int, to_ms: int) -> bool:
    return bisect_left(sorted_ms, from_ms) < bisect_right(sorted_ms, to_ms)


def _with_intervals(rows: list[Settlement], missing_ms: list[int]) -> Iterator[Settlement]:
    """Yield the settlements of one symbol with their intervals. Binance's answers name none."""
    before_ms: int | None = None
    for row in rows:
        time_ms = row.funding_time_ms
        if row.rate_type != REGULAR:
            yield row
            continue
        if before_ms is None or _is_any_within(missing_ms, _hour_of(before_ms), time_ms):
            yield row
        else:
            yield row._replace(interval_hours=round((time_ms - before_ms) / HOUR_MS))
        before_ms = time_ms
