"""The settlement history's file: what it keeps, and what faults it survives."""

import contextlib
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from binance_funding.settlements import (
    DAY_MS,
    HOUR_MS,
    MINUTE_MS,
    PUBLISHED_WITHIN_MS,
    HistoryFault,
    Settlement,
    SettlementWriter,
    read,
)
from tests.exchange.ledger import Row
from tests.support.settlement_world import fast_folder, in_order, stored, to_row
from tests.support.source import ROOT

HOUR = 1_795_507_200_000
"""A whole number of 8 hours."""
LATER = HOUR + 2 * HOUR_MS


@pytest.fixture
def path() -> Iterator[str]:
    """Where the history is."""
    with fast_folder() as folder:
        yield str(folder / "history.sqlite3")


@pytest.fixture
def writer(path: str) -> SettlementWriter:
    """A writer of an empty history."""
    return SettlementWriter(path, 90)


def settlement(symbol: str = "BTCUSDT", hours: int = 0, late_ms: int = 5, **fields: object) -> Settlement:
    """Return a settlement so many hours after HOUR."""
    good = Settlement(symbol, HOUR + hours * HOUR_MS + late_ms, "Regular", 10_000, 9_172_587_823_913)
    return good._replace(**fields)  # type: ignore[arg-type]


def rows_of(*settlements: Settlement) -> list[Row]:
    """Return settlements as `stored` does."""
    return in_order([to_row(one) for one in settlements])


def fails(action: object, *args: object) -> str:
    """Return the text of the fault that an action ends in."""
    with pytest.raises(HistoryFault) as caught:
        action(*args)  # type: ignore[operator]
    return str(caught.value)


# What is kept


def test_a_settlement_is_kept_as_it_was_sent(writer: SettlementWriter, path: str) -> None:
    """Twice added it is there once. A dividend 8 ms later is another one."""
    dividend = settlement(late_ms=13, rate_type="Special", rate_e8=-1_240_000)
    old = settlement("OLDUSDT", mark_price_e8=None)
    for _ in range(2):
        writer.add([settlement(), dividend, old])
    assert stored(path) == rows_of(settlement(), old, dividend)


def test_the_last_estimate_comes_with_the_settlement(writer: SettlementWriter, path: str) -> None:
    """It may become known later, and belongs to the ordinary settlement."""
    writer.expect(HOUR, {"BTCUSDT": None, "ETHUSDT": None})
    writer.expect(HOUR, {"BTCUSDT": 0.00009999})
    writer.add([settlement(late_ms=47), settlement(late_ms=55, rate_type="Special"), settlement("ETHUSDT")])
    assert [row.last_estimate_e8 for row in read(path, "BTCUSDT", HOUR, LATER).rows] == [9_999, None]
    assert [row.last_estimate_e8 for row in read(path, "ETHUSDT", HOUR, LATER).rows] == [None]


def test_a_time_is_complete_if_its_hours_are_known_and_nothing_is_awaited(writer: SettlementWriter, path: str) -> None:
    """A dividend that comes before the ordinary settlement changes nothing about this."""

    def is_complete(symbol: str, from_ms: int = HOUR) -> bool:
        return read(path, symbol, from_ms, HOUR + HOUR_MS - 1).is_complete

    writer.add([settlement("ETHUSDT")])
    assert not is_complete("ETHUSDT")
    writer.expect(HOUR, {"BTCUSDT": None})
    assert is_complete("ETHUSDT")
    assert not is_complete("ETHUSDT", HOUR - 1)
    assert not is_complete("BTCUSDT")
    writer.add([settlement(rate_type="Special")])
    assert not is_complete("BTCUSDT")
    writer.add([settlement()])
    assert is_complete("BTCUSDT")


def test_a_time_before_the_history_is_not_complete(writer: SettlementWriter, path: str) -> None:
    """However long before. Without any hour, nothing is."""
    writer.next_hour(HOUR)
    assert not read(path, "BTCUSDT", 0, HOUR).is_complete
    writer.expect(HOUR, {})
    assert not read(path, "BTCUSDT", 0, HOUR - 50 * DAY_MS).is_complete
    assert not read(path, "BTCUSDT", 0, HOUR).is_complete
    assert read(path, "BTCUSDT", HOUR, HOUR).is_complete


def test_what_binance_does_not_have_after_ten_minutes_did_not_take_place(writer: SettlementWriter) -> None:
    """An answer from before that proves nothing."""
    writer.expect(HOUR, {"BTCUSDT": None})
    writer.add([], [HOUR], HOUR + PUBLISHED_WITHIN_MS - 1)
    assert writer.is_awaiting(HOUR)
    writer.add([], [HOUR], HOUR + PUBLISHED_WITHIN_MS)
    assert not writer.is_awaiting(HOUR)


def test_an_hour_is_asked_for_ten_minutes_after_its_beginning_and_after_its_end(path: str) -> None:
    """Before that, the hours before it, the newest first; hours that are left out are skipped."""
    writer = SettlementWriter(path, 3)
    writer.expect(HOUR, {})
    now_ms = HOUR + 9 * MINUTE_MS
    asked = []
    while (hour_ms := writer.next_hour(now_ms, {HOUR - 5 * HOUR_MS})) is not None:
        writer.add([], [hour_ms], now_ms)
        asked.append(hour_ms)
    back = [HOUR - hours * HOUR_MS for hours in range(1, 3 * 24 + 1) if hours != 5]
    assert asked == back
    for minutes, expected in ((10, HOUR), (11, HOUR - HOUR_MS), (69, None), (70, HOUR), (71, None)):
        now_ms = HOUR + minutes * MINUTE_MS
        hour_ms = writer.next_hour(now_ms, {HOUR - 5 * HOUR_MS, HOUR + HOUR_MS})
        assert hour_ms == expected, minutes
        if hour_ms is not None:
            writer.add([], [hour_ms], now_ms)


def test_sums_are_of_the_last_full_hours(writer: SettlementWriter) -> None:
    """A settlement of 24 h ago has just left the window, however late it was dated. Dividends are part of a sum."""
    writer.expect(HOUR, {})
    rows = [settlement(hours=-hours, late_ms=47, rate_e8=1 << hours) for hours in range(0, 25, 8)]
    writer.add([*rows, settlement(late_ms=500, rate_type="Special", rate_e8=-7)])
    for hours in range(24):
        writer.add([], [HOUR - hours * HOUR_MS], LATER)
    summary = writer.summaries(HOUR + 60_000)["BTCUSDT"]
    assert summary.sum_24h_e8 == 1 + (1 << 8) + (1 << 16) - 7
    assert (summary.sum_7d_e8, summary.sum_30d_e8) == (None, None)
    assert (summary.settled_rate_e8, summary.settled_time_ms) == (1, HOUR + 47)
    writer.expect(HOUR + HOUR_MS, {"BTCUSDT": None})
    assert writer.summaries(HOUR + HOUR_MS + 1)["BTCUSDT"].sum_24h_e8 is None


def test_a_limit_leaves_out_the_oldest(writer: SettlementWriter, path: str) -> None:
    """And the time that the answer is about begins with the first row that is left."""
    writer.expect(HOUR, {})
    for hours in range(3):
        writer.add([settlement(hours=-8 * hours)], [HOUR - 8 * hours * HOUR_MS], LATER)
    window = read(path, "BTCUSDT", HOUR - DAY_MS, HOUR + 1000, limit=1)
    everything = read(path, "BTCUSDT", HOUR - DAY_MS, HOUR + 1000, limit=3)
    assert (window.from_ms, [row.funding_time_ms for row in window.rows]) == (HOUR + 5, [HOUR + 5])
    assert window.is_complete
    assert (everything.from_ms, len(everything.rows), everything.is_complete) == (HOUR - DAY_MS, 3, False)


def test_an_interval_over_unknown_hours_is_not_known(writer: SettlementWriter, path: str) -> None:
    """There may have been a settlement within them."""
    for hours in (0, 1, 2, 4):
        writer.add([settlement(hours=hours)], [HOUR + hours * HOUR_MS], HOUR + DAY_MS)
    rows = read(path, "BTCUSDT", HOUR + HOUR_MS, HOUR + DAY_MS).rows
    assert [row.interval_hours for row in rows] == [1, 1, None]


def test_everything_is_forgotten_when_it_is_older_than_is_kept(path: str) -> None:
    """Settlements, estimates and hours."""
    writer = SettlementWriter(path, 1)
    writer.expect(HOUR, {"BTCUSDT": 0.1})
    writer.add([settlement()])
    writer.expect(HOUR + DAY_MS + HOUR_MS, {})
    with contextlib.closing(sqlite3.connect(path)) as raw:
        counts = [
            raw.execute(f"SELECT COUNT(*) FROM {table}").fetchone() for table in ("settlement", "expected", "hour")
        ]
    assert counts == [(0,), (0,), (1,)]


_batches = st.lists(
    st.tuples(st.integers(0, 40), st.sampled_from(["add", "again", "lost", "restart", "expect"])), max_size=60
)


@settings(max_examples=60, deadline=None)
@given(batches=_batches)
def test_any_order_of_hours_losses_repetitions_and_restarts_ends_in_the_ledger(
    batches: list[tuple[int, str]],
) -> None:
    """When no hour is left to ask for, every row is there once."""
    with fast_folder() as folder:
        fill_in_any_order(folder, batches)


def fill_in_any_order(folder: Path, batches: list[tuple[int, str]]) -> None:
    """Add batches as they are told, then whatever is missing, and compare."""
    ledger = {
        hour: [settlement(f"S{n}", hours=-hour, late_ms=n) for n in range(hour % 4)]
        + [settlement("S1", hours=-hour, late_ms=20, rate_type="Special")] * (hour % 5 == 1)
        for hour in range(48)
    }
    now_ms = HOUR + 3 * HOUR_MS
    writer = SettlementWriter(str(folder / "h"), 1)
    for hour, what in batches:
        rows, checked = ledger[hour], [HOUR - hour * HOUR_MS]
        if what == "restart":
            writer = SettlementWriter(str(folder / "h"), 1)
        elif what == "expect":
            writer.expect(HOUR + 2 * HOUR_MS, {"S0": None, "S1": 0.01})
        elif what == "lost":
            writer.add(rows[: len(rows) // 2])
        else:
            writer.add(rows, checked, now_ms)
    while (hour_ms := writer.next_hour(now_ms)) is not None:
        writer.add(ledger.get((HOUR - hour_ms) // HOUR_MS, []), [hour_ms], now_ms)
    kept = [row for hour in range(22) for row in ledger[hour]]
    assert stored(str(folder / "h"), now_ms - DAY_MS) == rows_of(*kept)


# Faults


_ENDLESS_WRITER = """
import sys
from binance_funding.settlements import Settlement, SettlementWriter
writer = SettlementWriter(sys.argv[1], 90)
hour, start = 3_600_000, int(sys.argv[2])
while True:
    writer.add(
        [Settlement(f"S{n:03}", start + n % 48, "Regular", n - 50, 10**8) for n in range(200)],
        [start], start + 2 * hour,
    )
    print(start, flush=True)
    start -= hour
"""


def test_sigkill_at_any_write_leaves_whole_batches(path: str) -> None:
    """Every batch that was reported is there, at most one more, and each with all its rows."""
    dice, next_ms = random.Random(5), HOUR
    for _ in range(25):
        process = subprocess.Popen(
            [sys.executable, "-c", _ENDLESS_WRITER, path, str(next_ms)], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        assert process.stdout is not None
        reported = [int(process.stdout.readline()) for _ in range(dice.randrange(1, 6))]
        time.sleep(dice.random() * 0.02)
        process.send_signal(signal.SIGKILL)
        reported += [int(line) for line in process.communicate()[0].splitlines() if line.endswith("0")]
        writer = SettlementWriter(path, 90)
        next_hour_ms = writer.next_hour(HOUR + 2 * HOUR_MS, {HOUR + HOUR_MS, HOUR + 2 * HOUR_MS})
        assert next_hour_ms in (reported[-1] - HOUR_MS, reported[-1] - 2 * HOUR_MS)
        next_ms = next_hour_ms
    rows = stored(path)
    assert len(rows) == 200 * ((HOUR - next_ms) // HOUR_MS)


def test_a_damaged_file_is_set_aside_and_a_new_one_started(writer: SettlementWriter, path: str) -> None:
    """No journal is left that sqlite would apply to the new file. Readers find the new one."""
    writer.add([settlement()], [HOUR], LATER)
    size = os.path.getsize(path)
    Path(path).write_bytes(os.urandom(size))
    Path(path + "-journal").write_bytes(b"junk")
    fails(read, path, "BTCUSDT", HOUR, LATER)
    assert ".broken" in fails(writer.next_hour, HOUR)
    assert os.path.getsize(path + ".broken") == size
    assert not os.path.exists(path + "-journal")
    writer.add([settlement("ETHUSDT")], [HOUR], LATER)
    assert [row.symbol for row in read(path, "ETHUSDT", HOUR, LATER).rows] == ["ETHUSDT"]


def test_damage_inside_the_file_is_found_at_the_start(writer: SettlementWriter, path: str) -> None:
    """Its head may be right."""
    writer.add([settlement(f"S{n}") for n in range(2000)], [HOUR], LATER)
    with open(path, "r+b") as file:
        file.seek(5 * 4096)
        file.write(os.urandom(8 * 4096))
    restarted = SettlementWriter(path, 90)
    assert ".broken" in fails(restarted.next_hour, HOUR)
    assert restarted.next_hour(LATER) is not None


@pytest.mark.parametrize("content", [b"", b"SQLite format 3\0"], ids=["empty", "cut short"])
def test_a_file_without_content_becomes_a_history(writer: SettlementWriter, path: str, content: bytes) -> None:
    """An earlier daemon may have been killed when it had just created the file."""
    Path(path).write_bytes(content)
    if content:
        assert ".broken" in fails(writer.next_hour, HOUR)
    writer.add([settlement()])
    assert stored(path) == rows_of(settlement())


def test_a_locked_file_is_a_fault_at_once_for_a_reader(writer: SettlementWriter, path: str) -> None:
    """It never waits; the writer waits for about a second. Nothing is lost by either."""
    writer.add([settlement()])
    lock = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    lock.execute("BEGIN EXCLUSIVE")
    began_s = time.monotonic()
    assert "locked" in fails(read, path, "BTCUSDT", HOUR, LATER)
    assert time.monotonic() - began_s < 0.5
    assert "locked" in fails(writer.add, [settlement("ETHUSDT")])
    assert os.path.exists(path)
    timer = threading.Timer(0.3, lock.close)
    timer.start()
    writer.add([settlement("ETHUSDT")])
    timer.join()
    assert len(stored(path)) == 2


def test_a_file_that_is_not_there_yet_is_a_fault_for_a_reader(writer: SettlementWriter, path: str) -> None:
    """Until the writer creates it. The writer does not go on with a file that was deleted either."""
    assert "No such file" in fails(read, path, "BTCUSDT", HOUR, LATER)
    writer.add([settlement()], [HOUR], LATER)
    assert len(read(path, "BTCUSDT", HOUR, LATER).rows) == 1
    os.remove(path)
    writer.add([settlement("ETHUSDT")])
    assert stored(path) == rows_of(settlement("ETHUSDT"))


def in_child(action: object) -> int:
    """Run an action in a child process and return its exit status."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            action()  # type: ignore[operator]
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_full_disk_is_a_fault_until_there_is_room(writer: SettlementWriter, path: str) -> None:
    """What was there stays readable. The batch that failed is not there, and can be added again."""
    writer.add([settlement()], [HOUR], LATER)

    def fill() -> None:
        soft = os.path.getsize(path) + 20_000
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        one = SettlementWriter(path, 90)
        batch = [settlement(f"S{n}") for n in range(1000)]
        fails(one.add, batch)
        assert len(stored(path)) == 1
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        one.add(batch)

    assert in_child(fill) == 0
    assert len(stored(path)) == 1001


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_reader_may_be_another_user_without_write_access(tmp_path: Path) -> None:
    """Whatever the umask of the writer. A commit that was killed half-way is a fault until the daemon repairs it."""
    folder = Path("/tmp") / f"history-{os.getpid()}"
    folder.mkdir(mode=0o755)
    path = str(folder / "h")
    old_umask = os.umask(0o077)
    try:
        writer = SettlementWriter(path, 90)
        writer.add([settlement()], [HOUR], LATER)

        def read_all() -> None:
            os.setgid(65534)
            os.setuid(65534)
            assert len(read(path, "BTCUSDT", HOUR, LATER).rows) == 1

        def read_a_half_commit() -> None:
            os.setgid(65534)
            os.setuid(65534)
            fails(read, path, "BTCUSDT", HOUR, LATER)

        def die_in_a_commit() -> None:
            raw = sqlite3.connect(path, isolation_level=None)
            raw.execute("PRAGMA cache_size = 1")
            raw.execute("BEGIN IMMEDIATE")
            raw.executemany(
                "INSERT INTO settlement VALUES (?, ?, 1, 'Regular', 1, 1)", [(n, f"S{n}") for n in range(20_000)]
            )
            os.kill(os.getpid(), signal.SIGKILL)

        assert in_child(read_all) == 0
        assert in_child(die_in_a_commit) == -signal.SIGKILL
        assert os.path.exists(path + "-journal")
        assert in_child(read_a_half_commit) == 0
        assert writer.next_hour(LATER) is not None
        assert in_child(read_all) == 0
        assert stored(path) == rows_of(settlement())
    finally:
        os.umask(old_umask)
        shutil.rmtree(folder)


def test_a_directory_that_cannot_be_written_is_a_fault(tmp_path: Path) -> None:
    """And one that is missing."""
    missing = SettlementWriter(str(tmp_path / "none" / "h"), 90)
    fails(missing.next_hour, HOUR)
    (tmp_path / "none").mkdir()
    assert missing.next_hour(HOUR) is not None
