"""From the book to the file: rendered once, written at every change and at every heartbeat."""

import contextlib
import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from binance_funding.clock import Moment
from binance_funding.daemon.market.exchange_clock import ExchangeClock
from binance_funding.daemon.output.publisher import Annotations, Publisher, Renderer
from binance_funding.daemon.record import REST, Terms
from binance_funding.state_file import StateFile, read
from tests.support.clock import BOOT_ID, STEADY_S, WALL_S, SimulatedClock, learn_time
from tests.support.parts import Parts
from tests.support.samples import EVENT_MS, NEXT_FUNDING_MS, rate
from tests.support.waiting import PATIENCE_S, eventually

NEVER_S = 3600.0
OFFSET_S = WALL_S - STEADY_S
USUAL = Terms(8, None, None)
PLAIN = Annotations({"A": USUAL, "B": USUAL}, {}, None, frozenset())
"""Nothing is known but that A and B have the usual interval."""


@pytest.fixture
def exchange_clock() -> ExchangeClock:
    """Binance's time, not known yet."""
    return ExchangeClock(SimulatedClock().clock)


@pytest.fixture
def renderer(exchange_clock: ExchangeClock) -> Renderer:
    """A renderer that has rendered nothing."""
    return Renderer(exchange_clock)


def as_records(texts: list[bytes]) -> dict[str, Any]:
    """Parse rendered texts as they stand in the file."""
    records: dict[str, Any] = json.loads(b"{" + b",".join(texts) + b"}")
    return records


def test_a_rate_is_rendered_as_the_documented_record(renderer: Renderer) -> None:
    """Names, units and clocks of the state file; the numbers are those sent, the interval is 8 h unless known."""
    rates = [
        rate('币"A', funding_rate=-0.00000001, mark_price=91725.87823913, received_s=STEADY_S + 0.1049),
        rate("B", source=REST, estimated_settle_price=100.125),
    ]
    terms = {'币"A': USUAL, "B": Terms(4, 0.003, -0.003)}
    annotations = Annotations(terms, {"B": 0.0001}, frozenset({'币"A', "B"}), frozenset())
    assert as_records(renderer.render(rates, OFFSET_S, annotations)) == {
        '币"A': {
            "fundingRate": -0.00000001,
            "markPrice": 91725.87823913,
            "indexPrice": 100.25,
            "nextFundingTime": NEXT_FUNDING_MS,
            "eventTime": EVENT_MS,
            "updatedAt": WALL_S + 0.105,
            "fundingIntervalHours": 8,
            "source": "websocket",
            "estimatedSettlePrice": None,
            "interestRate": None,
            "fundingRateCap": None,
            "fundingRateFloor": None,
        },
        "B": {
            "fundingRate": 0.0001,
            "markPrice": 100.5,
            "indexPrice": 100.25,
            "nextFundingTime": NEXT_FUNDING_MS,
            "eventTime": EVENT_MS,
            "updatedAt": WALL_S,
            "fundingIntervalHours": 4,
            "source": "rest",
            "estimatedSettlePrice": 100.125,
            "interestRate": 0.0001,
            "fundingRateCap": 0.003,
            "fundingRateFloor": -0.003,
        },
    }


def test_a_rate_that_has_not_changed_is_not_rendered_again(renderer: Renderer) -> None:
    """Its text is the same object; only the changed one is new."""
    first, second = rate("A"), rate("B")
    before = renderer.render([first, second], OFFSET_S, PLAIN)
    changed = rate("B", funding_rate=0.5)
    after = renderer.render([first, changed], OFFSET_S + 0.001, PLAIN)
    assert after[0] is before[0]
    assert as_records(after)["B"]["fundingRate"] == 0.5


def test_updated_at_is_when_the_data_was_true_at_binance(renderer: Renderer, exchange_clock: ExchangeClock) -> None:
    """By Binance's time as soon as it is known, never later than it came, written on this host's clock."""
    late = rate("A", event_time_ms=EVENT_MS - 40_000)
    assert as_records(renderer.render([late], OFFSET_S, PLAIN))["A"]["updatedAt"] == WALL_S
    learn_time(exchange_clock, OFFSET_S)
    assert as_records(renderer.render([late], OFFSET_S, PLAIN))["A"]["updatedAt"] == WALL_S - 40
    early = rate("A", event_time_ms=EVENT_MS + 3000)
    assert as_records(renderer.render([early], OFFSET_S, PLAIN))["A"]["updatedAt"] == WALL_S


@pytest.mark.parametrize("wrong_by_s", [9.0, -9.0, 86_400.0])
def test_a_wrong_wall_clock_changes_no_age(
    renderer: Renderer, exchange_clock: ExchangeClock, wrong_by_s: float
) -> None:
    """It only says on which clock the age is written: written and updated are both wrong by as much."""
    learn_time(exchange_clock, OFFSET_S)
    late = rate("A", event_time_ms=EVENT_MS - 5000)
    rendered = as_records(renderer.render([late], OFFSET_S + wrong_by_s, PLAIN))
    assert rendered["A"]["updatedAt"] == WALL_S + wrong_by_s - 5


def test_a_set_wall_clock_changes_the_time_of_update(renderer: Renderer) -> None:
    """The same instant is written on the clock as it is now, so that updated_at minus updatedAt stays the age."""
    rates = [rate("A")]
    renderer.render(rates, OFFSET_S, PLAIN)
    assert as_records(renderer.render(rates, OFFSET_S - 3600, PLAIN))["A"]["updatedAt"] == WALL_S - 3600
    assert as_records(renderer.render(rates, OFFSET_S, PLAIN))["A"]["updatedAt"] == WALL_S


def test_a_slow_drift_of_either_clock_never_adds_up(renderer: Renderer, exchange_clock: ExchangeClock) -> None:
    """Steps too small to matter each are written once they do together."""
    rates = [rate("A", event_time_ms=EVENT_MS - 60_000)]
    learn_time(exchange_clock, OFFSET_S)
    for step in range(100):
        shown = as_records(renderer.render(rates, OFFSET_S + step * 0.0004, PLAIN))["A"]["updatedAt"]
        assert abs(shown - (WALL_S - 60 + step * 0.0004)) <= 0.003
    for step in range(100):
        learn_time(exchange_clock, OFFSET_S + step * 0.0004)
        shown = as_records(renderer.render(rates, OFFSET_S, PLAIN))["A"]["updatedAt"]
        assert abs(shown - (WALL_S - 60 - step * 0.0004)) <= 0.003


def test_new_funding_intervals_are_written_at_once(renderer: Renderer) -> None:
    """Although no rate has changed."""
    rates = [rate("A")]
    renderer.render(rates, OFFSET_S, PLAIN)
    assert as_records(renderer.render(rates, OFFSET_S, PLAIN._replace(terms={"A": Terms(1, None, None)})))["A"] == {
        **as_records(renderer.render(rates, OFFSET_S, PLAIN))["A"],
        "fundingIntervalHours": 1,
    }


@pytest.mark.parametrize(
    ("annotations", "marks"),
    [
        (PLAIN, set()),
        (PLAIN._replace(halted=frozenset({"A"})), {"halted"}),
        (PLAIN._replace(listed=frozenset({"A"})), set()),
        (PLAIN._replace(listed=frozenset({"B"})), {"unlisted"}),
        (PLAIN._replace(terms={}), {"fundingIntervalAssumed"}),
        (PLAIN._replace(terms={"A": USUAL._replace(is_assumed=True)}), {"fundingIntervalAssumed"}),
    ],
)
def test_a_record_is_marked_by_what_is_known_of_its_symbol(
    renderer: Renderer, annotations: Annotations, marks: set[str]
) -> None:
    """At once, although no rate has changed, and only as long as it holds."""
    rates = [rate("A")]
    plain = as_records(renderer.render(rates, OFFSET_S, PLAIN))["A"]
    marked = as_records(renderer.render(rates, OFFSET_S, annotations))["A"]
    assert marked == {**plain, **dict.fromkeys(marks, True)}
    assert as_records(renderer.render(rates, OFFSET_S, PLAIN))["A"] == plain


def test_a_removed_symbol_is_not_rendered(renderer: Renderer) -> None:
    """Nothing of it is kept, and it comes back as it is then."""
    gone = rate("A")
    before = renderer.render([gone, rate("B")], OFFSET_S, PLAIN)
    assert list(as_records(renderer.render([rate("B")], OFFSET_S, PLAIN))) == ["B"]
    assert renderer.render([gone, rate("B")], OFFSET_S, PLAIN)[0] is not before[0]
    back = as_records(renderer.render([rate("B"), rate("A", funding_rate=0.7)], OFFSET_S, PLAIN))
    assert back["A"]["fundingRate"] == 0.7


class Office:
    """A publisher with all that it needs, writing into a directory."""

    def __init__(self, directory: Path, heartbeat_s: float) -> None:
        self.path = directory / "state.json"
        self.time = SimulatedClock()
        parts = Parts(self.time.clock, heartbeat_seconds=heartbeat_s)
        self.book = parts.book
        self.described = 0
        self.publisher = Publisher(
            parts.settings,
            parts.clock,
            parts.exchange_clock,
            StateFile(str(self.path)),
            self.book,
            lambda: PLAIN,
            self.describe,
        )
        self.stop = threading.Event()

    def describe(self, now: Moment) -> dict[str, Any]:
        """Return the members that the daemon adds."""
        self.described += 1
        return {"described": self.described, "at": now.wall_s}

    def rate_in_file(self) -> float:
        """Return the funding rate of A in the file."""
        funding_rate: float = read(str(self.path))["funding_state"]["A"]["fundingRate"]
        return funding_rate

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run the publisher's thread within the block."""
        thread = threading.Thread(target=self.publisher.run, args=(self.stop,))
        thread.start()
        try:
            yield
        finally:
            self.stop.set()
            self.book.changed.set()
            thread.join(PATIENCE_S)
            assert not thread.is_alive()


def test_the_file_holds_the_book_and_what_is_described(tmp_path: Path) -> None:
    """Version, time of writing on both clocks, pid, records, and the rest."""
    office = Office(tmp_path, NEVER_S)
    office.book.merge([rate("A")])
    office.time.advance(1.23456)
    office.publisher.write()
    content = json.loads(office.path.read_bytes())
    assert list(content["funding_state"]) == ["A"]
    del content["funding_state"]
    assert content == {
        "version": 1,
        "updated_at": WALL_S + 1.235,
        "daemon_pid": os.getpid(),
        "boot_id": BOOT_ID,
        "boottime": STEADY_S + 1.235,
        "described": 1,
        "at": WALL_S + 1.23456,
    }
    read(str(office.path))


def test_a_change_is_written_without_waiting_for_the_heartbeat(tmp_path: Path) -> None:
    """The heartbeat here would take an hour."""
    office = Office(tmp_path, NEVER_S)
    with office.running():
        office.book.merge([rate("A")])
        eventually(office.path.exists, "the first file")
        office.book.merge([rate("A", event_time_ms=EVENT_MS + 1, funding_rate=0.5)])
        eventually(lambda: office.rate_in_file() == 0.5, "the change in the file")


def test_both_messages_of_a_tick_are_written_together(tmp_path: Path) -> None:
    """Whether the second comes a moment after the first, or before the publisher has woken up."""
    office = Office(tmp_path, NEVER_S)
    with office.running():
        for tick in range(1, 21):
            office.book.merge([rate("A", event_time_ms=EVENT_MS + tick)])
            office.book.merge([rate("B", event_time_ms=EVENT_MS + tick)])
            eventually(lambda tick=tick: office.described >= tick, "the file of the tick")  # type: ignore[misc]
    assert office.described <= 30  # a busy machine may be late with some


def test_the_file_is_written_at_every_heartbeat(tmp_path: Path) -> None:
    """Data or not."""
    office = Office(tmp_path, 0.02)
    with office.running():
        eventually(lambda: office.described >= 3, "three heartbeats")
        eventually(office.path.exists, "the file")


def test_the_last_state_is_written_at_the_end(tmp_path: Path) -> None:
    """Stop and change together end the thread, with the file up to date."""
    office = Office(tmp_path, NEVER_S)
    with office.running():
        office.book.merge([rate("A")])
        eventually(office.path.exists, "the first file")
        office.stop.set()
        office.book.merge([rate("A", event_time_ms=EVENT_MS + 1, funding_rate=0.5)])
    assert office.rate_in_file() == 0.5


def test_a_file_that_cannot_be_written_is_logged_once_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One line at ERROR however often it fails, one when it works again; the thread goes on meanwhile."""
    directory = tmp_path / "gone"
    directory.mkdir()
    office = Office(directory, 0.02)
    shutil.rmtree(directory)
    with office.running():
        eventually(lambda: office.described >= 4, "four attempts")
        office.time.advance(5)
        eventually(lambda: office.publisher.progress_s == STEADY_S + 5, "progress")
        directory.mkdir()
        eventually(office.path.exists, "the file")
        eventually(lambda: len(caplog.records) >= 2, "both lines")
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
    assert caplog.messages[0].startswith('state file not written cause="no such file or directory" file=')
    assert caplog.messages[1] == "state file written again after_s=5"
