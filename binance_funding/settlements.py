"""The settlement history: one sqlite3 file, written by the daemon and read by the server.

Settlements take place at full hours. The file says what is known, so an answer can tell whether something is missing:
- An hour is *known* (table `hour`) if the daemon watched its beginning, or if it asked Binance for the hour at least 10
  minutes after its beginning. `asked_ms` is the time of that request by Binance's clock; 0 if there was none.
- A symbol is *expected* (table `expected`) at each watched hour at which it was due. The row also keeps the last
  estimate that the stream showed before.
- A settlement is *awaited* (view `awaited`) while it is expected, but neither there nor known not to have taken place.

The journal is sqlite's rollback journal, because readers of a write-ahead log need write access.
"""

import contextlib
import os
import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple
from urllib.parse import quote

MINUTE_MS, HOUR_MS, DAY_MS = 60_000, 3_600_000, 86_400_000
REGULAR = "Regular"
"""The rate type of an ordinary settlement. A dividend has another one."""
E8 = 100_000_000
"""Rates and prices are kept as whole numbers of 0.00000001, because Binance sends eight decimal places."""
PUBLISHED_WITHIN_MS = 10 * MINUTE_MS
"""A settlement that Binance does not have after this time did not take place. Binance documents no limit; one client
waits 90 s. The view `awaited` contains this number, too."""

_SUM_DAYS = (1, 7, 30)
# The daemon's thread waits this long for a reader to finish. A reader never waits.
_WRITER_WAITS_S = 1.0

# The rows of one hour stand together, in the order of their symbols. So an hour is written to a few pages, and one
# symbol is found with one step for each hour. CROSS JOIN makes sqlite go from the few open hours to their symbols.
_SCHEMA = """
    BEGIN IMMEDIATE;
    CREATE TABLE settlement (
        hour_ms INTEGER NOT NULL, symbol TEXT NOT NULL, funding_time_ms INTEGER NOT NULL, rate_type TEXT NOT NULL,
        rate_e8 INTEGER NOT NULL, mark_price_e8 INTEGER, PRIMARY KEY (hour_ms, symbol, funding_time_ms, rate_type)
    ) WITHOUT ROWID;
    CREATE TABLE hour (hour_ms INTEGER PRIMARY KEY, asked_ms INTEGER NOT NULL);
    CREATE TABLE expected (
        hour_ms INTEGER NOT NULL, symbol TEXT NOT NULL, estimate_e8 INTEGER, PRIMARY KEY (hour_ms, symbol)
    ) WITHOUT ROWID;
    CREATE VIEW awaited AS
        SELECT hour_ms, symbol FROM hour CROSS JOIN expected USING (hour_ms)
        WHERE asked_ms < hour_ms + 600000 AND NOT EXISTS (
            SELECT * FROM settlement
            WHERE hour_ms = expected.hour_ms AND symbol = expected.symbol AND rate_type = 'Regular'
        );
    PRAGMA user_version = 1;
    COMMIT;
"""


class Settlement(NamedTuple):
    """One settlement, its time as Binance sent it."""

    symbol: str
    funding_time_ms: int
    rate_type: str
    rate_e8: int
    mark_price_e8: int | None
    last_estimate_e8: int | None = None
    """The last rate that the stream showed before the settlement."""
    interval_hours: int | None = None
    """Hours since the settlement before it. None for a dividend, or if that settlement is not known."""


class Window(NamedTuple):
    """Settlements of one symbol within a time, in ascending order."""

    rows: list[Settlement]
    from_ms: int
    """The beginning of that time: the first row, if a limit left out older rows."""
    is_complete: bool


class Summary(NamedTuple):
    """The last settlement of one symbol and its sums. A sum is None if a settlement may be missing from it."""

    settled_rate_e8: int | None
    settled_time_ms: int | None
    sum_24h_e8: int | None
    sum_7d_e8: int | None
    sum_30d_e8: int | None


class HistoryFault(Exception):
    """The history cannot be read or written; the text says why. A later attempt may succeed."""


def hour_of(time_ms: int) -> int:
    """Return the beginning of the hour that contains a time."""
    return time_ms // HOUR_MS * HOUR_MS


def read(path: str, symbol: str, from_ms: int, to_ms: int, limit: int | None = None) -> Window:
    """Return the settlements of a symbol within a time, both ends included; of these the newest `limit`.

    Never waits for a lock and never writes, so the reader may be a user without write access. Raises HistoryFault.
    """
    since_ms = hour_of(from_ms) - DAY_MS  # the first interval needs the settlement before it
    try:
        open(path, "rb").close()  # says why the file cannot be opened; sqlite does not
        uri = f"file:{quote(os.path.abspath(path))}?mode=ro"
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=0.0, isolation_level=None)) as connection:
            connection.execute("BEGIN")
            found = connection.execute(
                "SELECT symbol, funding_time_ms, rate_type, rate_e8, mark_price_e8, "
                "CASE rate_type WHEN ? THEN estimate_e8 END "
                "FROM hour CROSS JOIN settlement USING (hour_ms) LEFT JOIN expected USING (hour_ms, symbol) "
                "WHERE hour_ms BETWEEN ? AND ? AND symbol = ? AND funding_time_ms <= ? "
                "ORDER BY hour_ms, funding_time_ms",
                (REGULAR, since_ms, to_ms, symbol, to_ms),
            )
            rows = [Settlement(*row) for row in found]
            known = connection.execute(
                "SELECT hour_ms FROM hour WHERE hour_ms BETWEEN ? AND ? "
                "EXCEPT SELECT hour_ms FROM awaited WHERE symbol = ?",
                (since_ms, to_ms, symbol),
            )
            known_ms = {hour_ms for (hour_ms,) in known}
    except (sqlite3.Error, OSError) as error:
        raise HistoryFault(f"the settlement history cannot be read: {error}") from error
    within = [row for row in _with_intervals(rows, known_ms) if row.funding_time_ms >= from_ms]
    if limit is not None and len(within) > limit:
        within = within[-limit:]
        from_ms = within[0].funding_time_ms
    first_ms, last_ms = hour_of(from_ms), hour_of(to_ms)
    known_hours = sum(first_ms <= hour_ms for hour_ms in known_ms)
    return Window(within, from_ms, known_hours == (last_ms - first_ms) // HOUR_MS + 1)


def _with_intervals(rows: list[Settlement], known_ms: Collection[int]) -> Iterator[Settlement]:
    """Yield the settlements of one symbol with their intervals, which Binance's answers do not name."""
    before_ms: int | None = None
    for row in rows:
        hour_ms = hour_of(row.funding_time_ms)
        if row.rate_type != REGULAR:
            yield row
            continue
        is_known = before_ms is not None and all(h in known_ms for h in range(before_ms, hour_ms + 1, HOUR_MS))
        yield row._replace(interval_hours=(hour_ms - before_ms) // HOUR_MS) if before_ms and is_known else row
        before_ms = hour_ms


class SettlementWriter:
    """Writes the history, each method in one transaction: after a crash, all of it is there or none.

    For the daemon's one thread. A method waits at most about a second for a reader. Every method raises HistoryFault.
    A damaged file is renamed to `.broken` before that, and the next call starts a new one.
    """

    def __init__(self, path: str, days: int) -> None:
        self._path = os.path.abspath(path)
        self._days = days
        """How long settlements are kept."""
        self._is_checked = False
        """Whether the whole file has been read once to find damage."""

    def expect(self, hour_ms: int, estimates: Mapping[str, float | None]) -> None:
        """Note that the beginning of an hour was watched, who was due, and the last estimate of each if it is known.

        May be repeated when estimates become known. Forgets the settlements that are older than is kept.
        """
        rows = [(hour_ms, symbol, None if rate is None else round(rate * E8)) for symbol, rate in estimates.items()]
        with self._transaction() as connection:
            connection.executemany("INSERT OR REPLACE INTO expected VALUES (?, ?, ?)", rows)
            connection.execute("INSERT OR IGNORE INTO hour VALUES (?, 0)", (hour_ms,))
            for table in ("settlement", "expected", "hour"):
                query = f"DELETE FROM {table} WHERE hour_ms < ?"  # noqa: S608 - three constants
                connection.execute(query, (self._oldest_hour(hour_ms),))

    def add(self, rows: Sequence[Settlement], hours_ms: Collection[int] = (), asked_ms: int = 0) -> None:
        """Add settlements; those that are there already stay as they are.

        hours_ms: the hours of which `rows` are everything that Binance had at `asked_ms`.
        """
        values = [(hour_of(row.funding_time_ms), *row[:5]) for row in rows]
        with self._transaction() as connection:
            connection.executemany("INSERT OR IGNORE INTO settlement VALUES (?, ?, ?, ?, ?, ?)", sorted(values))
            connection.executemany("INSERT OR REPLACE INTO hour VALUES (?, ?)", [(h, asked_ms) for h in hours_ms])

    def is_awaiting(self, hour_ms: int) -> bool:
        """Whether a settlement of an hour is awaited."""
        with self._transaction() as connection:
            query = "SELECT 1 FROM awaited WHERE hour_ms = ? LIMIT 1"
            return connection.execute(query, (hour_ms,)).fetchone() is not None

    def next_hour(self, now_ms: int, leave_out: Collection[int] = ()) -> int | None:
        """Return the newest hour that Binance has to be asked for; None if there is nothing to ask.

        An hour is asked for 10 minutes after its beginning, and again 10 minutes after its end: late rows and rows at
        an unusual time are then found.
        """
        with self._transaction() as connection:
            asked_ms = dict(connection.execute("SELECT hour_ms, asked_ms FROM hour"))
        for hour_ms in range(hour_of(now_ms), self._oldest_hour(now_ms) - 1, -HOUR_MS):
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
        hour_ms = hour_of(now_ms)
        first_hours = [hour_ms - days * DAY_MS + HOUR_MS for days in _SUM_DAYS]
        sums = ", ".join(f"SUM(rate_e8) FILTER (WHERE hour_ms >= {first_ms})" for first_ms in first_hours)
        # Beside MAX, sqlite takes `rate_e8` from the row that has the greatest value.
        query = (
            f"SELECT symbol, MAX(CASE rate_type WHEN ? THEN funding_time_ms END), rate_e8, {sums} "  # noqa: S608 - numbers
            "FROM settlement WHERE hour_ms >= ? GROUP BY symbol"
        )
        with self._transaction() as connection:
            known = [hour for (hour,) in connection.execute("SELECT hour_ms FROM hour WHERE hour_ms <= ?", (hour_ms,))]
            awaited = dict(connection.execute("SELECT symbol, MAX(hour_ms) FROM awaited GROUP BY symbol"))
            found = connection.execute(query, (REGULAR, first_hours[-1])).fetchall()
        is_known = [
            sum(hour >= first_ms for hour in known) == days * 24
            for days, first_ms in zip(_SUM_DAYS, first_hours, strict=True)
        ]
        summaries = {}
        for symbol, time_ms, rate_e8, *amounts in found:
            sums_e8 = [
                amount or 0 if known_time and awaited.get(symbol, 0) < first_ms else None
                for amount, known_time, first_ms in zip(amounts, is_known, first_hours, strict=True)
            ]
            summaries[symbol] = Summary(None if time_ms is None else rate_e8, time_ms, *sums_e8)
        return summaries

    def _oldest_hour(self, now_ms: int) -> int:
        return hour_of(now_ms - self._days * DAY_MS)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Run one transaction. Raises HistoryFault, and then nothing has changed.

        The file is opened each time, so a file that was replaced or deleted needs no care.
        """
        try:
            self._create()
            with contextlib.closing(
                sqlite3.connect(self._path, timeout=_WRITER_WAITS_S, isolation_level=None)
            ) as connection:
                self._prepare(connection)
                connection.execute("BEGIN IMMEDIATE")
                yield connection
                connection.execute("COMMIT")
        except (sqlite3.Error, OSError) as error:
            raise HistoryFault(f"the settlement history cannot be written: {self._set_aside(error)}") from error

    def _create(self) -> None:
        """Create the file if it is missing, readable by all whatever the umask: the server may be another user."""
        with contextlib.suppress(FileExistsError):
            fd = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            os.fchmod(fd, 0o644)
            os.close(fd)

    def _prepare(self, connection: sqlite3.Connection) -> None:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == 0:
            connection.executescript(_SCHEMA)
        if not self._is_checked:
            (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict)
            self._is_checked = True

    def _set_aside(self, error: Exception) -> str:
        """Rename the file if the error says that it is damaged; return what happened."""
        # The sqlite3 module raises the base class itself for SQLITE_CORRUPT and SQLITE_NOTADB only.
        if type(error) is not sqlite3.DatabaseError:
            return str(error)
        try:
            os.replace(self._path, f"{self._path}.broken")
        except OSError as why:
            return f"{error}; the file cannot be renamed: {why}"
        return f"{error}; the file was renamed to {self._path}.broken"
