"""REST standing in for the stream, in simulated time: when it begins and ends, how often it asks, and at what cost."""

import itertools
import logging
from collections.abc import Callable
from itertools import pairwise

import pytest

from tests.support.simulated_rest import INDEX, INFO, TIME, RestWorld, http_error, lost, most_in_any_minute

HOUR_S = 3600.0


def arrivals_s(world: RestWorld, takes_s: float) -> list[float]:
    """Return when the snapshots came."""
    return [at_s + takes_s for at_s in world.binance.times_s()]


def fallback_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what the log says of it: "on", "off"."""
    return [message.split()[1] for message in caplog.messages if message.startswith("fallback ")]


@pytest.mark.parametrize("takes_s", [0.05, 0.2, 1.0, 2.0])
def test_in_fallback_a_snapshot_arrives_every_10_s_at_the_latest(takes_s: float) -> None:
    """So there is no gap, whenever the stream ends; asked for on the dot they would come late by their duration."""
    world = RestWorld()
    world.binance.takes_s = lambda path: takes_s
    world.advance(100)
    world.stream_is_well = False
    world.oldest_s = 0.0
    world.advance(HOUR_S)
    assert world.stream_state.fallback_active
    in_fallback_s = [at_s for at_s in arrivals_s(world, takes_s) if at_s > world.exchange.now_s - HOUR_S + 10]
    assert max(later - earlier for earlier, later in pairwise(in_fallback_s)) <= 10
    assert world.oldest_s <= 12
    assert world.freshness.gaps_ended == 0


@pytest.mark.parametrize("phase_s", [0.1, 1.0, 2.5, 4.0, 6.0, 7.9, 8.1, 20.0, 59.0])
@pytest.mark.parametrize("live", [0, 2])
def test_no_gap_whenever_the_stream_ends(phase_s: float, live: int) -> None:
    """Shortly after a snapshot as well as long after one; connections lost or open and silent."""
    world = RestWorld()
    world.exchange.rest_behind_s = 3.0
    world.advance(120)
    last_asked_s = world.binance.times_s()[-1]
    world.advance(last_asked_s + 60 + phase_s - world.exchange.now_s)
    world.stream_is_well, world.live_while_unwell = False, live
    world.oldest_s = 0.0
    world.advance(65)
    assert world.freshness.gaps_ended == 0
    assert world.oldest_s <= 12
    assert most_in_any_minute(world.binance.weights()) <= 102


def test_fallback_begins_after_8_s_without_anything_current(caplog: pytest.LogCaptureFixture) -> None:
    """Not a poll later, and not before: a missed tick is no outage. It is logged with the age, and so is its end."""
    caplog.set_level(logging.INFO)
    world = RestWorld(REST_POLL_SECONDS=600)
    world.live_while_unwell = 2
    world.advance(10)
    world.stream_is_well = False
    last_s = world.exchange.now_s - world.freshness.stream_age_s()
    world.advance(last_s + 7.9 - world.exchange.now_s)
    assert not world.stream_state.fallback_active
    asked = len(world.binance.times_s())
    world.advance(1.5)
    assert world.stream_state.fallback_active
    assert world.binance.times_s()[asked] == pytest.approx(last_s + 8.3, abs=0.4)
    world.stream_is_well = True
    world.advance(100)
    assert fallback_lines(caplog) == ["on", "off"]
    assert "stream_age_s=8" in caplog.text


def test_fallback_begins_at_once_when_none_is_live_any_more() -> None:
    """A connection that was lost brings nothing: there is no reason to wait and see."""
    world = RestWorld()
    world.advance(50)
    world.stream_is_well = False
    world.advance(1.1)
    assert world.stream_state.fallback_active


def test_at_the_start_the_stream_gets_its_time() -> None:
    """None is live yet, and none has been: that is no outage until 8 s have passed."""
    world = RestWorld()
    world.stream_is_well = False
    world.advance(7)
    assert not world.stream_state.fallback_active
    world.advance(2)
    assert world.stream_state.fallback_active


def test_fallback_ends_only_when_the_stream_is_current_again(caplog: pytest.LogCaptureFixture) -> None:
    """A stream that is just at the limit must not turn it on and off: it has to come within half of it."""
    caplog.set_level(logging.INFO)
    world = RestWorld()
    world.advance(60)
    world.stream_is_well = False
    world.advance(60)
    world.live_while_unwell = 2
    for _ in range(200):
        world.feed.take(world.exchange.stream_message(behind_s=5.0))
        world.advance(3)
    assert world.stream_state.fallback_active
    assert fallback_lines(caplog) == ["on"]
    world.stream_is_well = True
    world.advance(10)
    assert fallback_lines(caplog) == ["on", "off"]


def test_after_a_restart_with_old_data_rest_is_asked_often_at_once() -> None:
    """The stream has not had its time yet, but what was taken over is old: a failed poll is repeated soon."""
    world = RestWorld()
    world.stream_is_well = False
    world.exchange.time.advance(1000)
    world.binance.fails = lambda path: lost()
    world.advance(30)
    assert len(world.binance.times_s()) >= 3


@pytest.mark.parametrize("period_s", [2.0, 9.0, 13.0, 25.0])
def test_a_stream_that_comes_and_goes_costs_no_more_than_one_that_is_gone(period_s: float) -> None:
    """Each time it goes fallback begins at once; that must not ask at once each time. And no data older than 12 s."""
    world = RestWorld()
    world.advance(100)
    world.oldest_s = 0.0
    for _ in range(int(600 / period_s)):
        world.stream_is_well = not world.stream_is_well
        world.advance(period_s)
    assert most_in_any_minute([(at_s, 10) for at_s in world.binance.times_s()]) <= 80
    assert world.oldest_s <= 12
    assert world.freshness.gaps_ended == 0


def hanging(*paths: str) -> Callable[[str], float]:
    """Let requests for these paths hang until their limit."""
    return lambda path: 1000.0 if path in paths else 0.2


@pytest.mark.parametrize("paths", [(TIME,), (INFO,), (TIME, INFO)])
def test_what_hangs_beside_the_snapshots_does_not_delay_them(paths: tuple[str, ...]) -> None:
    """Neither in fallback, nor when it has to begin."""
    world = RestWorld()
    world.binance.takes_s = hanging(*paths)
    world.live_while_unwell = 2
    world.advance(130)
    world.stream_is_well = False
    started_s = world.exchange.now_s
    world.advance(600)
    came_s = [at_s for at_s in arrivals_s(world, 0.2) if at_s > started_s]
    assert came_s[0] - started_s <= 9
    assert max(later - earlier for earlier, later in pairwise(came_s)) <= 10
    assert world.freshness.gaps_ended == 0


def test_what_hangs_beside_the_snapshots_gets_the_time_between_two_of_them() -> None:
    """Also where the user wants them every 3 s."""
    world = RestWorld(REST_FALLBACK_SECONDS=3)
    world.binance.takes_s = hanging(TIME, INFO)
    world.stream_is_well = False
    world.advance(600)
    in_fallback_s = world.binance.times_s()[1:]
    assert max(later - earlier for earlier, later in pairwise(in_fallback_s)) <= 3


@pytest.mark.parametrize("paths", [(), (TIME,), (INFO,), (TIME, INFO)])
def test_an_hour_of_fallback_weighs_about_80_a_minute(paths: tuple[str, ...]) -> None:
    """Eight snapshots and, once Binance's time is known, one question for it."""
    world = RestWorld()
    world.advance(60)
    world.binance.takes_s = hanging(*paths)
    world.stream_is_well = False
    world.advance(HOUR_S)
    assert most_in_any_minute([(at_s, 10) for at_s in world.binance.times_s()]) <= 80
    assert most_in_any_minute(world.binance.weights()) <= 82


@pytest.mark.parametrize("pattern", ["F", "FS", "FFS", "FFFS", "FFFFS", "FSS"])
def test_failed_requests_are_repeated_within_200_of_weight_a_minute(pattern: str) -> None:
    """Whatever the order of failures (F) and successes (S), and while Binance's time is unknown too."""
    world = RestWorld()
    world.binance.takes_s = hanging(TIME)
    world.advance(60)
    world.stream_is_well = False
    outcomes = itertools.cycle(pattern)
    world.binance.fails = lambda path: lost() if path == INDEX and next(outcomes) == "F" else None
    world.advance(HOUR_S)
    # The client may ask once more a minute, after a kept connection died.
    assert most_in_any_minute(world.binance.weights()) <= 200 - 10


@pytest.mark.parametrize("status", [403, 418, 429, 451])
def test_a_refusal_is_not_repeated_after_a_second(status: int) -> None:
    """Asking a firewall or a ban again makes it no friendlier."""
    world = RestWorld()
    world.advance(60)
    world.stream_is_well = False
    world.advance(30)
    world.binance.fails = lambda path: http_error(status, wait_s=30.0) if path == INDEX else None
    world.advance(60)
    refused_s = world.binance.times_s()[-3:]
    assert min(later - earlier for earlier, later in pairwise(refused_s)) >= 6


def test_single_failed_answers_during_fallback_lead_to_no_gap() -> None:
    """The request is repeated after a second."""
    world = RestWorld()
    world.advance(100)
    world.stream_is_well = False
    world.advance(30)
    world.oldest_s = 0.0
    for _ in range(20):
        left = iter([http_error(500)])
        world.binance.fails = lambda path, left=left: next(left, None) if path == INDEX else None  # type: ignore[misc]
        world.advance(35)
    assert world.freshness.gaps_ended == 0
    assert world.oldest_s <= 12


def test_the_time_is_asked_for_every_minute_whether_or_not_snapshots_are_usable() -> None:
    """Binance's time may be the reason why no row is."""
    world = RestWorld()
    world.advance(60)
    world.binance.bodies[INDEX] = b"[]"
    asked = len(world.binance.times_s(TIME))
    world.stream_is_well = False
    world.advance(HOUR_S)
    assert len(world.binance.times_s(TIME)) - asked == pytest.approx(60, abs=2)


def test_while_the_time_is_unknown_it_is_asked_for_every_3_s_at_most() -> None:
    """An answer that takes more than 2 s would be useless, and is not waited for."""
    world = RestWorld()
    world.binance.takes_s = hanging(TIME)
    world.advance(300)
    times_s = world.binance.times_s(TIME)
    assert min(later - earlier for earlier, later in pairwise(times_s)) >= 3
    assert len(times_s) >= 90


def test_a_part_of_the_market_that_the_stream_lost_comes_from_rest_just_as_fresh() -> None:
    """Half of it stays away while the other half goes on, whichever moment each symbol went at."""
    world = RestWorld()
    symbols = [f"S{number}USDT" for number in range(40)]
    world.exchange.symbols = world.exchange.listed = symbols
    world.advance(100)
    world.oldest_s = 0.0
    for gone in range(20):
        world.exchange.symbols = symbols[gone + 1 :]
        world.advance(1)
    world.advance(600)
    assert world.stream_state.fallback_active
    assert world.oldest_s <= 12
    assert world.freshness.gaps_ended == 0


def test_a_slow_answer_does_not_make_the_poller_ask_without_a_pause() -> None:
    """A request that takes 9 s is no reason to start the next one at once."""
    for takes_s in (4.0, 9.0):
        world = RestWorld()
        world.stream_is_well = False
        world.binance.takes_s = lambda path, takes_s=takes_s: takes_s if path == INDEX else 0.2  # type: ignore[misc]
        world.advance(HOUR_S)
        times_s = world.binance.times_s()
        assert min(later - earlier for earlier, later in pairwise(times_s)) >= 7.9
