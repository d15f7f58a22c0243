"""From the book to the file: rendered once, written at every change and at every heartbeat."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from binance_funding import events
from binance_funding.book import Book
from binance_funding.history import History
from binance_funding.publisher import Publisher, Renderer
from binance_funding.rates import REST
from binance_funding.state_file import StateFile, read
from tests.fakes import BOOT_ID, EVENT_MS, NEXT_FUNDING_MS, STEADY_S, WALL_S, FakeClock, rate

LIMIT_S = 30.0
NEVER_S = 3600.0
OFFSET_S = WALL_S - STEADY_S


def wait_until(condition: Callable[[], object]) -> None:
    """Look often until the condition holds; fail after a generous limit."""
    deadline_s = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline_s, "it never came true"
        time.sleep(0.005)


def as_records(texts: list[bytes]) -> dict[str, Any]:
    """Parse rendered texts as they stand in the file."""
    records: dict[str, Any] = json.loads(b"{" + b",".join(texts) + b"}")
    return records


def test_a_rate_is_rendered_as_the_documented_record() -> None:
    """Names, units and clocks of the state file; the numbers are those sent, the interval is 8 h unless told."""
    renderer = Renderer()
    rates = [
        rate('币"A', funding_rate="-0.00000001", mark_price="91725.87823913", received_s=STEADY_S + 0.1049),
        rate("B", source=REST),
    ]
    assert as_records(renderer.render(rates, OFFSET_S, {"B": 4})) == {
        '币"A': {
            "fundingRate": -0.00000001,
            "markPrice": 91725.87823913,
            "indexPrice": 100.25,
            "nextFundingTime": NEXT_FUNDING_MS,
            "eventTime": EVENT_MS,
            "updatedAt": WALL_S + 0.105,
            "fundingIntervalHours": 8,
            "source": "websocket",
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
        },
    }


def test_a_rate_that_has_not_changed_is_not_rendered_again() -> None:
    """Its text is the same object; only the changed one is new."""
    renderer, intervals = Renderer(), dict[str, int]()
    first, second = rate("A"), rate("B")
    before = renderer.render([first, second], OFFSET_S, intervals)
    after = renderer.render([first, second._replace(funding_rate="0.5")], OFFSET_S + 0.05, intervals)
    assert after[0] is before[0]
    assert as_records(after)["B"]["fundingRate"] == 0.5


def test_a_set_wall_clock_changes_the_time_of_update() -> None:
    """The same instant is told on the clock as it is now, so that updated_at minus updatedAt stays the age."""
    renderer, intervals = Renderer(), dict[str, int]()
    rates = [rate("A")]
    renderer.render(rates, OFFSET_S, intervals)
    assert as_records(renderer.render(rates, OFFSET_S - 3600, intervals))["A"]["updatedAt"] == WALL_S - 3600
    assert as_records(renderer.render(rates, OFFSET_S, intervals))["A"]["updatedAt"] == WALL_S


def test_a_slow_drift_of_the_clock_never_adds_up() -> None:
    """Steps too small to matter each are told once they do together."""
    renderer, intervals, rates = Renderer(), dict[str, int](), [rate("A")]
    for step in range(100):
        told = as_records(renderer.render(rates, OFFSET_S + step * 0.03, intervals))["A"]["updatedAt"]
        assert abs(told - (WALL_S + step * 0.03)) <= 0.11


def test_new_funding_intervals_are_told_at_once() -> None:
    """Although no rate has changed."""
    renderer, rates = Renderer(), [rate("A")]
    renderer.render(rates, OFFSET_S, {})
    assert as_records(renderer.render(rates, OFFSET_S, {"A": 1}))["A"]["fundingIntervalHours"] == 1


def test_a_forgotten_symbol_is_not_rendered() -> None:
    """And comes back as it is then."""
    renderer, intervals = Renderer(), dict[str, int]()
    renderer.render([rate("A"), rate("B")], OFFSET_S, intervals)
    assert list(as_records(renderer.render([rate("B")], OFFSET_S, intervals))) == ["B"]
    back = as_records(renderer.render([rate("B"), rate("A", funding_rate="0.7")], OFFSET_S, intervals))
    assert back["A"]["fundingRate"] == 0.7


class Office:
    """A publisher with all that it needs, writing into a directory."""

    def __init__(self, directory: Path, heartbeat_s: float) -> None:
        self.path = directory / "state.json"
        self.time = FakeClock()
        self.book = Book(self.time.clock, History(), silence_s=15, stale_s=180, trouble=lambda: "x")
        self.intervals: Mapping[str, int] = {}
        self.described = 0
        self.publisher = Publisher(
            StateFile(str(self.path)),
            self.book,
            clock=self.time.clock,
            heartbeat_s=heartbeat_s,
            interval_hours=lambda: self.intervals,
            describe=self.describe,
            repeats=events.Repeats(logging.getLogger("tests.publisher"), self.time.clock.steady_s),
        )
        self.stop = threading.Event()

    def describe(self, wall_s: float) -> dict[str, Any]:
        """Return the members that the daemon adds."""
        self.described += 1
        return {"described": self.described, "at": wall_s}

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
            thread.join(LIMIT_S)
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
        wait_until(office.path.exists)
        office.book.merge([rate("A", event_time_ms=EVENT_MS + 1, funding_rate="0.5")])
        wait_until(lambda: read(str(office.path))["funding_state"]["A"]["fundingRate"] == 0.5)


def test_the_file_is_written_at_every_heartbeat(tmp_path: Path) -> None:
    """Data or not."""
    office = Office(tmp_path, 0.02)
    with office.running():
        wait_until(lambda: office.described >= 3)
        wait_until(office.path.exists)


def test_the_last_state_is_written_at_the_end(tmp_path: Path) -> None:
    """Stop and change together end the thread, with the file up to date."""
    office = Office(tmp_path, NEVER_S)
    with office.running():
        office.book.merge([rate("A")])
        wait_until(office.path.exists)
        office.stop.set()
        office.book.merge([rate("A", event_time_ms=EVENT_MS + 1, funding_rate="0.5")])
    assert read(str(office.path))["funding_state"]["A"]["fundingRate"] == 0.5


def test_a_file_that_cannot_be_written_is_told_once_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One line at ERROR however often it fails, one when it works again; the thread goes on meanwhile."""
    directory = tmp_path / "gone"
    directory.mkdir()
    office = Office(directory, 0.02)
    shutil.rmtree(directory)
    with office.running():
        wait_until(lambda: office.described >= 4)
        office.time.advance(5)
        wait_until(lambda: office.publisher.progress_s == STEADY_S + 5)
        directory.mkdir()
        wait_until(office.path.exists)
        wait_until(lambda: len(caplog.records) >= 2)
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
    assert caplog.messages[0].startswith('state file not written cause="no such file or directory" file=')
    assert caplog.messages[1] == "state file written again after_s=5"
