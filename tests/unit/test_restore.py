"""What a starting daemon takes over: old data with its old times, whoever set the clock meanwhile."""

import json
from pathlib import Path
from typing import Any

import pytest

from binance_funding.daemon.output.restore import restore
from binance_funding.daemon.record import FundingRate, Terms
from binance_funding.daemon.source.connection import Connection
from binance_funding.daemon.source.refusals import LONGEST_BAN_S
from binance_funding.daemon.source.rest_client import RestClient
from binance_funding.state_file import EMPTY
from tests.support.clock import STEADY_S, WALL_S, SimulatedClock, learn_time
from tests.support.parts import Parts
from tests.support.samples import EVENT_MS, NEXT_FUNDING_MS, put, record, state, status
from tests.support.state_files import OLD_FILE

OFFSET_S = WALL_S - STEADY_S
DOWN_S = 5.0


class StartingDaemon(Parts):
    """The parts that take something over, on simulated clocks; nothing of them runs."""

    def __init__(self, path: Path, boot_id: str | None = None) -> None:
        self.path = path
        self.time = SimulatedClock() if boot_id is None else SimulatedClock(boot_id)
        self.time.advance(DOWN_S)
        self._build()

    def _build(self) -> None:
        super().__init__(self.time.clock)
        self.trouble = "stream: nothing came"
        self.rest = self.new_poller(RestClient("http://127.0.0.1:9", 1.0, self.time.clock), lambda: 0)
        self.stream = self.new_pool(self._never_spawned, open_connection=self._never_opened)

    def restore(self) -> None:
        """Take over what the file holds."""
        self._build()
        restore(
            str(self.path),
            self.settings,
            self.clock,
            book=self.book,
            intervals=self.intervals,
            freshness=self.freshness,
            last_day=self.last_day,
            comparison=self.comparison,
            rest=self.rest,
            stream=self.stream,
        )

    def ages_s(self) -> dict[str, float]:
        """Return the age of each record."""
        rates = self.book.rates()
        times_s = self.exchange_clock.all_as_of_s(rates)
        ages_s = [round(self.time.steady_s - time_s, 3) for time_s in times_s]
        return dict(zip([rate.symbol for rate in rates], ages_s, strict=True))

    def gaps(self) -> list[tuple[float, str]]:
        """Return seconds and cause of the gaps known."""
        return [(gap["seconds"], gap["cause"]) for gap in self.last_day.to_json(self.time.wall_s)["gaps"]]

    def merge_new_row(self, symbol: str) -> None:
        """Let the stream bring a current row."""
        now_s = self.time.steady_s
        event_ms = round((now_s + OFFSET_S) * 1000)
        self.freshness.merge([FundingRate(symbol, 0.5, 1.5, 1.5, NEXT_FUNDING_MS, event_ms, "websocket", now_s)])

    @staticmethod
    def _never_spawned(*_args: Any, **_options: Any) -> bool:
        raise AssertionError("restoring starts nothing")

    @staticmethod
    def _never_opened(*_args: Any) -> Connection:
        raise AssertionError("restoring opens nothing")


@pytest.fixture
def daemon(tmp_path: Path) -> StartingDaemon:
    """A daemon that starts five seconds after a file of WALL_S was written, in the same boot."""
    return StartingDaemon(tmp_path / "state.json")


def test_records_are_taken_over_with_their_old_times(daemon: StartingDaemon) -> None:
    """All that the file holds of them: staleness stays true."""
    put(daemon.path, state({"A": record(updatedAt=WALL_S - 20.5, source="rest"), "币": record()}))
    daemon.restore()
    first, second = daemon.book.rates()
    assert first == FundingRate(
        "A",
        0.0001,
        91725.87823913,
        91769.87543478,
        NEXT_FUNDING_MS,
        EVENT_MS,
        "rest",
        STEADY_S - 20.5,
        estimated_settle_price=91731.1,
        interest_rate=0.0001,
    )
    assert (second.symbol, second.source, second.received_s) == ("币", "websocket", STEADY_S)
    assert list(daemon.book.stream_rates()) == ["币"]


@pytest.mark.parametrize("set_by_s", [0.0, 3600.0, -3600.0, 86_400.0])
def test_a_clock_set_meanwhile_changes_nothing_within_one_boot(daemon: StartingDaemon, set_by_s: float) -> None:
    """Ages and what Binance asked to wait are on the clock that nobody can set."""
    rest = {**status()["rest"], "paused_until": WALL_S + 65.0}
    content = state({"A": record(updatedAt=WALL_S - 20)}, connection_status=status(paused_until=WALL_S + 35, rest=rest))
    put(daemon.path, content)
    daemon.time.set_wall_by(set_by_s)
    daemon.restore()
    assert daemon.book.rates()[0].received_s == STEADY_S - 20
    now_s = daemon.time.wall_s
    assert daemon.stream.status()["paused_until"] == pytest.approx(now_s + 30, abs=0.01)
    assert daemon.rest.status()["paused_until"] == pytest.approx(now_s + 60, abs=0.01)


@pytest.mark.parametrize("wall_error_s", [0.0, -3600.0, -24.0])
def test_after_a_reboot_the_records_are_stale(tmp_path: Path, wall_error_s: float) -> None:
    """A host without a clock of its own does not know for how long it was off, until Binance's time is known."""
    daemon = StartingDaemon(tmp_path / "state.json", boot_id="another")
    daemon.time.steady_s = 10.0
    daemon.time.set_wall_by(wall_error_s)
    put(daemon.path, state({"A": record()}, connection_status=status(paused_until=WALL_S + 35)))
    daemon.restore()
    assert daemon.exchange_clock.offset_s is None
    assert daemon.ages_s()["A"] >= daemon.settings.stale_seconds
    assert daemon.freshness.observe().newest_s <= daemon.time.steady_s - daemon.settings.stale_seconds
    learn_time(daemon.exchange_clock, WALL_S + 600 - 10, 10)
    assert daemon.ages_s()["A"] >= 600


def test_a_file_from_the_future_is_as_old_as_the_boot(tmp_path: Path) -> None:
    """Its clock was ahead: no record of it may pass for new until then, or be later than now."""
    daemon = StartingDaemon(tmp_path / "state.json", boot_id="another")
    daemon.time.steady_s = 300.0
    put(daemon.path, state({"A": record()}, updated_at=WALL_S + 3600))
    daemon.restore()
    (rate,) = daemon.book.rates()
    assert rate.received_s <= 0


def test_no_record_came_later_than_now(daemon: StartingDaemon) -> None:
    """Whatever the file claims: it would be fresh until then, and kept for ever."""
    put(daemon.path, state({"A": record(updatedAt=WALL_S + 1e6)}))
    daemon.restore()
    assert daemon.book.rates()[0].received_s == daemon.time.steady_s


def test_binances_time_is_not_taken_over(daemon: StartingDaemon) -> None:
    """A wrong one would outlive every restart; ages are those of the file until it is known."""
    put(daemon.path, state({"A": record(updatedAt=WALL_S - 7)}))
    daemon.restore()
    assert daemon.exchange_clock.offset_s is None
    assert daemon.ages_s() == {"A": 7 + DOWN_S}


def test_a_pause_that_is_over_is_none(daemon: StartingDaemon) -> None:
    """Nor is one that was never asked for."""
    put(daemon.path, state(connection_status=status(paused_until=WALL_S + DOWN_S - 1)))
    daemon.restore()
    assert daemon.stream.status()["paused_until"] is None
    assert daemon.rest.status()["paused_until"] is None


def test_a_pause_from_a_clock_that_was_ahead_ends_all_the_same(daemon: StartingDaemon) -> None:
    """No ban is longer than three days, whatever the old file says."""
    until = {"paused_until": WALL_S + 10 * 365 * 86_400}
    put(daemon.path, state(connection_status=status(**until, rest={**status()["rest"], **until})))
    daemon.restore()
    for part in (daemon.stream, daemon.rest):
        assert part.status()["paused_until"] == pytest.approx(daemon.time.wall_s + LONGEST_BAN_S)


def test_the_terms_of_funding_are_taken_over_with_their_marks(daemon: StartingDaemon) -> None:
    """Interval, cap, floor, interest rate, and whether the interval is only assumed."""
    records = {
        "FOUR": record(fundingIntervalHours=4, fundingRateCap=0.02, fundingRateFloor=-0.02, interestRate=0.0003),
        "NEW": record(fundingRateCap=None, fundingRateFloor=None, interestRate=None, fundingIntervalAssumed=True),
    }
    put(daemon.path, state(records))
    daemon.restore()
    assert daemon.intervals.terms == {"FOUR": Terms(4, 0.02, -0.02), "NEW": Terms(8, None, None, is_assumed=True)}
    assert daemon.book.interest_rates == {"FOUR": 0.0003}


def test_gaps_the_day_and_the_comparison_go_on(daemon: StartingDaemon) -> None:
    """As they were written; a restart as short as this one was watched too."""
    quarter = {"start": WALL_S - WALL_S % 900, "observed": 60.0, "unplanned": 1, "planned": 0, "worst": 3.5}
    content = state(gaps=[{"start": WALL_S - 100, "seconds": 12.0, "cause": "x"}], history=[quarter])
    put(daemon.path, content)
    daemon.restore()
    assert daemon.gaps() == [(12.0, "x")]
    (known,) = daemon.last_day.to_json(daemon.time.wall_s)["history"]
    assert known.items() >= {**quarter, "observed": 60 + DOWN_S, "worst": 5.0}.items()
    assert daemon.comparison.state == content["comparison"]


@pytest.mark.parametrize(("down_s", "gaps"), [(DOWN_S, []), (60.0, [(61.0, "not running")])])
def test_a_time_without_a_daemon_is_a_gap(daemon: StartingDaemon, down_s: float, gaps: list[Any]) -> None:
    """From the last data before it to the first after it; one of less than ten seconds is none."""
    daemon.time.advance(down_s - DOWN_S)
    put(daemon.path, state({"A": record(updatedAt=WALL_S)}))
    daemon.restore()
    daemon.time.advance(1)
    daemon.merge_new_row("A")
    assert daemon.gaps() == gaps


@pytest.mark.parametrize(("down_s", "gaps"), [(9.0, []), (10.0, [(11.0, "stream: nothing came")])])
def test_a_gap_over_a_restart_begins_when_data_last_arrived(
    daemon: StartingDaemon, down_s: float, gaps: list[Any]
) -> None:
    """Its rows were 3 s old by then: that is lag, and not time without data."""
    daemon.time.advance(down_s - DOWN_S)
    put(daemon.path, state({"A": record(updatedAt=WALL_S - 3)}, connection_status=status(market_served_time=WALL_S)))
    daemon.restore()
    daemon.time.advance(1)
    daemon.merge_new_row("A")
    assert daemon.gaps() == gaps


def test_a_daemon_before_that_had_no_data_leaves_its_start(daemon: StartingDaemon) -> None:
    """The market has been waiting since then."""
    put(daemon.path, state({}, connection_status=status(daemon_start_time=WALL_S - 500)))
    daemon.restore()
    assert daemon.freshness.latest.oldest_s == STEADY_S - 500


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (None, []),
        (b"junk", ['old state dropped cause="{path}: not valid JSON (Expecting value: line 1 column 1 (char 0))"']),
        (json.dumps(state()).encode(), ["took over symbols=1 not_running_s=5"]),
        (json.dumps(state({})).encode(), []),
    ],
    ids=["no file", "junk", "good", "empty"],
)
def test_one_line_says_what_was_taken_over(
    daemon: StartingDaemon, caplog: pytest.LogCaptureFixture, content: bytes | None, lines: list[str]
) -> None:
    """A file that cannot be read is dropped with a warning; none is no news."""
    caplog.set_level("INFO")
    if content is not None:
        put(daemon.path, content)
    daemon.restore()
    assert caplog.messages == [line.format(path=daemon.path) for line in lines]


def test_a_file_that_says_nothing_leaves_all_as_it_is(daemon: StartingDaemon) -> None:
    """Every default is one that can be taken over."""
    put(daemon.path, {**EMPTY, "updated_at": WALL_S})
    daemon.restore()
    assert (daemon.book.rates(), daemon.gaps(), daemon.intervals.terms) == ([], [], {})
    assert daemon.exchange_clock.offset_s is None


def test_the_file_of_the_release_before_is_taken_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Records, intervals, gaps, the day and the comparison: an upgrade costs nothing of them."""
    caplog.set_level("INFO")
    written: dict[str, Any] = json.loads(OLD_FILE.read_bytes())
    daemon = StartingDaemon(OLD_FILE, boot_id=written["boot_id"])
    daemon.time.wall_s, daemon.time.steady_s = written["updated_at"] + 3, written["boottime"] + 3
    daemon.restore()
    assert caplog.messages == ["took over symbols=18 not_running_s=3"]
    assert daemon.gaps() == [(11.228, "not running")]
    taken = {rate.symbol: rate for rate in daemon.book.rates()}
    assert taken.keys() == written["funding_state"].keys()
    for symbol, old in written["funding_state"].items():
        rate, age_s = taken[symbol], written["updated_at"] + 3 - old["updatedAt"]
        assert (rate.funding_rate, rate.mark_price, rate.source) == (
            old["fundingRate"],
            old["markPrice"],
            old["source"],
        )
        assert daemon.time.steady_s - rate.received_s == pytest.approx(age_s, abs=0.001)
    intervals = {symbol: old["fundingIntervalHours"] for symbol, old in written["funding_state"].items()}
    assert {symbol: terms.hours for symbol, terms in daemon.intervals.terms.items()} == intervals
    assert daemon.comparison.state == written["comparison"]
    (quarter,) = daemon.last_day.to_json(daemon.time.wall_s)["history"]
    assert (quarter["runs"], quarter["compared"], quarter["worst"]) == (7, 84, 11.228)
