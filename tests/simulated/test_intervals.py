"""Funding intervals in simulated time: an annualized rate is right, or marked, in every way in which they change."""

import itertools
from typing import NamedTuple

import pytest

from binance_funding.daemon.record import UNKNOWN_TERMS, Terms
from binance_funding.daemon.source.faults import NO_ANSWER_IN_TIME
from binance_funding.daemon.source.rest_client import RestError
from tests.support.simulated_rest import INFO, RestWorld, http_error

HOUR_S = 3600.0
SETTLEMENT_S = 2 * HOUR_S
"""From the start, 06:00 UTC, until the next settlement of intervals of 1, 2, 4 and 8 h."""
STEP_S = 3.0


class World(RestWorld):
    """A poller with its market and an exchange, which remembers what was shown of BTCUSDT at every tick."""

    def __init__(self, hours: int = 8) -> None:
        super().__init__()
        self.true_hours = hours
        """The interval that BTCUSDT really has."""
        self.published_s = 0.0
        """When fundingInfo last began to tell something else."""
        self.wrong_s = 0.0
        """For how long an interval that is wrong has been shown without a mark, since Binance published it."""
        self.longest_wrong_s = 0.0
        self.change(hours)
        self.publish()
        self.advance(90)

    def change(self, hours: int) -> None:
        """Let the interval of BTCUSDT be another from now on, as the next funding time shows."""
        self.true_hours = self.exchange.period_hours["BTCUSDT"] = hours

    def publish(self) -> None:
        """Let fundingInfo name the interval."""
        self.binance.intervals["BTCUSDT"] = self.true_hours
        self.published_s = self.exchange.now_s

    def shown(self) -> tuple[int, bool]:
        """Return the interval of BTCUSDT as it is shown, and whether it is marked as assumed."""
        terms = self.intervals.terms.get("BTCUSDT", UNKNOWN_TERMS)
        return terms.hours, terms.is_assumed

    def advance(self, seconds: float) -> None:
        """Let time pass, and look at what is shown."""
        until_s = self.exchange.now_s + seconds
        while self.exchange.now_s < until_s:
            super().advance(min(STEP_S, until_s - self.exchange.now_s))
            is_wrong = self.shown()[0] != self.true_hours and not self.shown()[1]
            self.wrong_s = self.exchange.now_s - self.published_s if is_wrong else 0.0
            self.longest_wrong_s = max(self.longest_wrong_s, self.wrong_s)

    def until(self, after_start_s: float) -> None:
        """Let time pass until so long after 06:00 UTC."""
        self.advance(after_start_s - (self.exchange.now_ms() / 1000 - 1_795_500_000))


class Change(NamedTuple):
    """One way in which an interval changes."""

    before: int
    after: int
    at_s: float
    """Seconds after 06:00 UTC."""
    shown: tuple[int, bool]
    """What is shown 10 s later, if fundingInfo is late."""


WAYS = {
    "at a settlement, shorter": Change(8, 1, SETTLEMENT_S, (1, True)),
    "at a settlement, half": Change(8, 4, SETTLEMENT_S, (4, True)),
    "at a settlement, longer": Change(4, 8, SETTLEMENT_S, (8, True)),
    "at a settlement, from hourly": Change(1, 4, SETTLEMENT_S, (4, True)),
    "12 min after a settlement": Change(8, 1, SETTLEMENT_S + 720, (8, True)),
    "12 min after a settlement, longer": Change(1, 4, SETTLEMENT_S + 720, (1, True)),
    "within a period, at an odd minute": Change(8, 1, 1860, (8, True)),
    "within a period, longer": Change(1, 8, SETTLEMENT_S - 5400, (1, True)),
    "with the same next funding time": Change(8, 1, SETTLEMENT_S - 1800, (8, False)),
    "with the same next funding time, longer": Change(4, 8, SETTLEMENT_S - 1800, (4, False)),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize("late_s", [0.0, 1000.0, 8 * HOUR_S], ids=["at once", "late", "hours late"])
def test_an_interval_is_right_or_marked_within_a_minute_of_its_publication(way: Change, late_s: float) -> None:
    """However late fundingInfo names it: also when the old interval fits the next funding time again."""
    world = World(way.before)
    world.until(way.at_s)
    assert world.shown() == (way.before, False)
    world.change(way.after)
    if late_s:
        # Before Binance has published it, only the next funding time can show it.
        world.published_s = world.exchange.now_s + late_s
        world.advance(10)
        assert world.shown() == way.shown
        world.advance(late_s - 10)
    world.publish()
    world.advance(600)
    assert world.longest_wrong_s <= 62
    assert world.shown() == (way.after, False)


def test_binance_is_asked_within_5_s_of_a_change_that_shows() -> None:
    """The mark is gone within seconds, if fundingInfo names the interval."""
    world = World(8)
    world.until(SETTLEMENT_S - 10)
    world.change(1)
    world.publish()
    world.advance(15)
    assert world.shown() == (1, False)
    assert world.longest_wrong_s <= 10


def test_many_changes_are_asked_for_every_20_s_at_most() -> None:
    """Binance allows 500 such requests in 5 min."""
    world = World(8)
    for _ in range(100):
        world.change(1 if world.true_hours == 8 else 8)
        world.publish()
        world.advance(6)
    times_s = world.binance.times_s(INFO)
    assert min(later_s - earlier_s for earlier_s, later_s in itertools.pairwise(times_s)) >= 20
    world.advance(30)
    assert world.shown() == (world.true_hours, False)


def test_the_intervals_are_asked_for_once_a_minute() -> None:
    """Whether they are known or cannot be had."""
    world = World()
    for fails in (lambda _path: None, lambda path: http_error(500) if path == INFO else None):
        world.binance.fails = fails
        first = len(world.binance.times_s(INFO))
        world.advance(HOUR_S)
        assert 58 <= len(world.binance.times_s(INFO)) - first <= 60
    assert world.shown() == (8, False)


@pytest.mark.parametrize(
    ("at_s", "hours"), [(SETTLEMENT_S, 1), (1860.0, 8)], ids=["at a settlement", "within a period"]
)
def test_while_fundinginfo_refuses_the_mark_stays(at_s: float, hours: int) -> None:
    """For hours, and over settlements at which the old interval would fit again."""
    world = World(8)
    world.until(at_s)
    world.binance.fails = lambda path: http_error(403) if path == INFO else None
    world.change(1)
    world.advance(20)
    assert world.shown() == (hours, True)
    world.until(9.5 * HOUR_S)
    assert world.shown() == (1, True)


def test_a_dividend_changes_the_interval_twice() -> None:
    """Each time it is right or marked; an answer that is late by one change does not end the mark."""
    world = World(8)
    world.until(SETTLEMENT_S + 1)
    world.change(1)
    world.advance(2 * HOUR_S)
    assert world.shown() == (1, True)
    world.change(8)
    world.advance(10)
    world.publish()
    world.advance(70)
    assert world.shown() == (8, False)


def test_a_funding_time_that_moves_and_moves_back_ends_the_mark() -> None:
    """The next answer confirms the interval."""
    world = World(8)
    world.change(1)
    world.advance(12)
    assert world.shown() == (8, True)
    world.change(8)
    world.advance(70)
    assert world.shown() == (8, False)


def test_an_interval_that_is_published_before_the_funding_time_moves_is_marked() -> None:
    """Nobody knows which of the two the rate is for."""
    world = World(8)
    world.binance.intervals["BTCUSDT"] = 1
    world.advance(70)
    assert world.shown() == (1, True)
    world.change(1)
    world.advance(70)
    assert world.shown() == (1, False)


def test_many_symbols_change_at_once() -> None:
    """They are marked together, and known together."""
    world = World()
    names = [f"S{number}USDT" for number in range(400)]
    world.exchange.symbols = world.exchange.listed = [*names, "BTCUSDT"]
    world.advance(70)
    assert not any(terms.is_assumed for terms in world.intervals.terms.values())
    world.until(SETTLEMENT_S)
    world.exchange.period_hours |= dict.fromkeys(names, 4)
    world.advance(6)
    assert {world.intervals.terms[name] for name in names} <= {Terms(4, None, None, is_assumed=True)}
    world.binance.intervals |= dict.fromkeys(names, 4)
    world.advance(70)
    assert {world.intervals.terms[name] for name in names} == {Terms(4, 0.02, -0.02)}


def test_a_symbol_that_fundinginfo_lacks_has_8_h() -> None:
    """It was never adjusted."""
    world = World()
    world.exchange.symbols = world.exchange.listed = ["BTCUSDT", "ETHUSDT", "NEWUSDT"]
    world.advance(70)
    assert world.intervals.terms["NEWUSDT"] == Terms(8, None, None)


def test_a_symbol_that_lacks_in_fundinginfo_against_its_funding_time_is_marked() -> None:
    """A new symbol with 4 h that fundingInfo does not list yet."""
    world = World()
    world.until(SETTLEMENT_S)
    world.exchange.symbols = world.exchange.listed = ["BTCUSDT", "ETHUSDT", "NEWUSDT"]
    world.exchange.period_hours["NEWUSDT"] = 4
    world.advance(70)
    assert world.intervals.terms["NEWUSDT"].is_assumed
    world.binance.intervals["NEWUSDT"] = 4
    world.advance(70)
    assert world.intervals.terms["NEWUSDT"] == Terms(4, 0.02, -0.02)


def test_an_interval_is_assumed_until_binance_has_listed_them() -> None:
    """A symbol that is not listed has 8 h only if there is a list."""
    world = RestWorld()
    world.binance.fails = lambda path: RestError(NO_ANSWER_IN_TIME) if path == INFO else None
    world.advance(120)
    assert world.intervals.terms == {}
    world.binance.fails = lambda path: None
    world.advance(61)
    assert world.intervals.terms == {"BTCUSDT": Terms(8, None, None), "ETHUSDT": Terms(4, 0.02, -0.02)}


def test_a_symbol_that_drops_out_of_fundinginfo_keeps_its_interval_for_one_answer() -> None:
    """It is marked meanwhile. If the next answer lacks it too, it is back to 8 h."""
    world = World()
    names = [f"S{number}USDT" for number in range(30)]
    world.exchange.symbols = world.exchange.listed = [*names, "BTCUSDT"]
    world.exchange.period_hours |= dict.fromkeys(names, 4)
    world.binance.intervals |= dict.fromkeys(names, 4)
    world.advance(70)
    del world.binance.intervals["S7USDT"]
    world.advance(61)
    assert world.intervals.terms["S7USDT"] == Terms(4, 0.02, -0.02, is_assumed=True)
    world.binance.intervals["S7USDT"] = 4
    world.advance(61)
    assert world.intervals.terms["S7USDT"] == Terms(4, 0.02, -0.02)
    del world.binance.intervals["S7USDT"]
    world.exchange.period_hours["S7USDT"] = 8
    world.advance(130)
    assert world.intervals.terms["S7USDT"] == Terms(8, None, None)


EMPTY, NO_LIST = b"[]", b"{}"
OTHERS, NO_HOURS = b'[{"symbol":"OTHERUSDT","fundingIntervalHours":4}]', b'[{"symbol":"ETHUSDT"}]'


@pytest.mark.parametrize("answer", [EMPTY, NO_LIST, OTHERS, NO_HOURS], ids=["empty", "no list", "others", "no hours"])
def test_an_answer_that_lacks_what_it_should_list_changes_nothing(
    answer: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """One `[]` does not turn all intervals to 8 h. It is logged, and asked for again."""
    world = RestWorld()
    world.advance(60)
    known = dict(world.intervals.terms)
    world.binance.bodies[INFO] = answer
    world.advance(HOUR_S)
    assert world.intervals.terms == known
    assert "funding intervals unknown" in caplog.text


def only_long_absence(world: World) -> None:
    """Let neither source bring anything for 2.5 h from half an hour before a settlement."""
    world.until(SETTLEMENT_S - 1800)
    world.stream_is_well = False
    world.binance.fails = lambda _path: RestError(NO_ANSWER_IN_TIME)


@pytest.mark.parametrize(
    ("before", "after", "shown"),
    [(1, 1, (1, False)), (4, 4, (4, False)), (8, 8, (8, False)), (8, 1, (8, True)), (1, 8, (1, True))],
)
def test_after_missed_settlements_only_a_contradiction_is_marked(
    before: int, after: int, shown: tuple[int, bool]
) -> None:
    """The next funding time has moved by several intervals, which says nothing by itself."""
    world = World(before)
    only_long_absence(world)
    world.change(after)
    world.advance(2.5 * HOUR_S)
    world.stream_is_well = True
    world.binance.fails = lambda path: http_error(500) if path == INFO else None
    world.advance(60)
    assert world.shown() == shown


def test_rest_that_is_behind_the_stream_at_a_settlement_marks_nothing() -> None:
    """Its rows have the old next funding time for a while."""
    world = World(8)
    world.exchange.rest_behind_s = 4.0
    world.stream_is_well = False
    for _ in range(8):
        world.advance(HOUR_S)
        assert world.shown() == (8, False)
