"""Connections that fall behind Binance's clock, in simulated time."""

import logging

import pytest

from tests.support.simulated_stream import Line, World, brings_late, opens_and_stays_silent


def lines_of(caplog: pytest.LogCaptureFixture, event: str) -> list[str]:
    """Return the log lines of the event, however it is spelled when it comes again."""
    return [message for message in caplog.messages if message.startswith(event)]


@pytest.mark.parametrize("behind_s", [10.0, 20.0, 300.0])
def test_a_connection_that_lags_from_the_start_never_becomes_live(
    caplog: pytest.LogCaptureFixture, behind_s: float
) -> None:
    """However much it brings: 300 s behind it would be served for ever. An hour of it is few lines, its end one."""
    caplog.set_level(logging.INFO)
    world = World()
    world.lines.answer = brings_late(behind_s)
    for _ in range(3600):
        world.advance(1)
        assert not world.pool.live()
    assert world.pool.lost == 0
    assert 1 <= len(lines_of(caplog, "lagging cause=")) <= 5
    assert "s behind Binance's clock" in lines_of(caplog, "lagging cause=")[0]
    world.lines.answer = Line.brings
    world.advance(30)
    assert len(world.pool.live()) == 2
    assert len(lines_of(caplog, "stream recovered")) == 1


def test_the_way_of_the_data_is_no_lag() -> None:
    """A few seconds are what a distant host sees; they cost nothing."""
    world = World()
    world.lines.answer = brings_late(4.0)
    world.advance(600)
    assert (len(world.pool.live()), len(world.lines.all), world.pool.lost) == (2, 2, 0)


def test_a_connection_that_falls_behind_is_dropped_with_how_far(caplog: pytest.LogCaptureFixture) -> None:
    """Half a second each second, event times advancing all the while: it is not silent, and not fresh."""
    world = World(STREAM_CONNECTIONS=1)
    world.advance(60)
    first = world.lines.all[0]
    first.falls_behind(0.5)
    world.advance(28)
    assert first.ending is None
    world.lines.answer = brings_late(20.0)
    world.advance(5)
    assert first.ending is not None
    assert len(lines_of(caplog, 'lagging cause="mark prices are 15 s behind Binance\'s clock"')) == 1
    assert world.pool.lost == 1
    assert "behind Binance's clock" in (world.pool.trouble() or "")


def test_one_of_two_that_lags_is_replaced_and_does_not_count_as_live() -> None:
    """The other goes on; nothing of what the lagging one brought made it look worse."""
    world = World()
    world.advance(60)
    lagging, good = world.lines.all
    lagging.falls_behind(0.9)
    world.advance(18)
    assert lagging.ending is not None
    world.advance(5)
    assert good in world.pool.live()
    assert len(world.pool.live()) == 2
    assert len(world.lines.all) == 3


def test_how_far_the_best_connection_is_behind_is_told_at_any_moment() -> None:
    """Also between two attempts, when there is no connection that could be asked."""
    world = World()
    world.lines.answer = brings_late(40.0)
    world.advance(10)
    for _ in range(120):
        world.advance(0.7)
        assert world.pool.lag_s() == pytest.approx(40, abs=3)
    world.lines.answer = Line.brings
    world.advance(30)
    assert world.pool.lag_s() == pytest.approx(0, abs=0.1)
    world.lines.open[0].behind_s = lambda: 5.0
    world.advance(10)
    assert world.pool.status()["stream_lag_seconds"] == pytest.approx(0, abs=0.1)


def test_a_stream_that_is_silent_does_not_lag() -> None:
    """It is told as silent, and names no lag."""
    world = World(STREAM_CONNECTIONS=1)
    world.advance(60)
    world.lines.answer = opens_and_stays_silent
    world.lines.open[0].brings_data = False
    world.advance(40)
    assert world.pool.last_error == "no new mark prices for 15 s"
    assert world.pool.lag_s() is None


def test_while_the_time_of_binance_is_not_known_nothing_lags() -> None:
    """Arrival stands in: this host's clock alone proves nothing against the stream."""
    world = World(knows_time=False)
    world.lines.answer = brings_late(300.0)
    world.advance(60)
    assert len(world.pool.live()) == 2
    assert world.pool.lag_s() is None


@pytest.mark.parametrize("step_s", [9.0, -9.0, 3600.0, -3600.0, 86_400.0, -86_400.0])
def test_a_wall_clock_that_is_set_makes_no_lag(step_s: float) -> None:
    """Binance's time is kept on the boot clock."""
    world = World()
    world.advance(60)
    world.exchange.time.set_wall_by(step_s)
    world.advance(60)
    assert (len(world.pool.live()), world.pool.lost) == (2, 0)
    assert world.pool.lag_s() == pytest.approx(0, abs=0.1)


def test_after_a_pause_of_the_host_silence_and_lag_are_counted_anew() -> None:
    """What came meanwhile waits to be read: the connections have SILENCE_SECONDS to catch up."""
    world = World()
    world.advance(60)
    for line in world.lines.open:
        line.brings_data = False
    world.exchange.time.advance(22)
    world.advance(10)
    assert not world.pool.live()
    assert all(line.ending is None for line in world.lines.all)
    for line in world.lines.open:
        line.brings()
    world.advance(30)
    assert (len(world.pool.live()), world.pool.lost, len(world.lines.all)) == (2, 0, 2)


def test_a_connection_that_does_not_catch_up_after_a_pause_is_dropped() -> None:
    """It is given SILENCE_SECONDS, not for ever."""
    world = World(STREAM_CONNECTIONS=1)
    world.advance(60)
    world.lines.all[0].brings_data = False
    world.exchange.time.advance(22)
    world.advance(16)
    assert world.lines.all[0].ending is not None
