"""The clocks: wall time, time since boot, and deadlines that cover several steps."""

import time

import pytest

from binance_funding.clock import Clock, Deadline, Moment
from tests.support.clock import BOOT_ID, STEADY_S, WALL_S, SimulatedClock


def test_a_moment_is_read_from_both_clocks() -> None:
    """Unix seconds, and seconds since boot."""
    assert SimulatedClock().clock.now() == Moment(wall_s=WALL_S, steady_s=STEADY_S)


def test_the_real_wall_clock_is_unix_time() -> None:
    """That of the host."""
    before_s = time.time()
    assert before_s <= Clock().wall_s() <= time.time()


def test_the_real_steady_clock_counts_the_time_in_which_the_host_was_suspended() -> None:
    """It is CLOCK_BOOTTIME: on the monotonic clock data hours old would look fresh afterwards."""
    before_s = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert before_s <= Clock().steady_s() <= time.clock_gettime(time.CLOCK_BOOTTIME)


def test_the_boot_is_named() -> None:
    """All processes of one boot find the same name; tests may give another."""
    assert Clock().boot_id == Clock().boot_id != ""
    assert SimulatedClock().clock.boot_id == BOOT_ID


def test_setting_the_wall_clock_moves_no_steady_time() -> None:
    """As on a real host."""
    simulated = SimulatedClock()
    simulated.set_wall_by(-3600)
    assert simulated.clock.now() == Moment(WALL_S - 3600, STEADY_S)


def test_a_deadline_counts_down_and_stays_at_zero() -> None:
    """It is over at the very moment."""
    simulated = SimulatedClock()
    deadline = Deadline(5, simulated.clock.steady_s)
    assert (deadline.remaining_s(), deadline.is_over()) == (5, False)
    simulated.advance(4.5)
    assert (deadline.remaining_s(), deadline.is_over()) == (0.5, False)
    simulated.advance(0.5)
    assert (deadline.remaining_s(), deadline.is_over()) == (0, True)
    simulated.advance(60)
    assert (deadline.remaining_s(), deadline.is_over()) == (0, True)


@pytest.mark.parametrize("within_s", [0.0, -1.0])
def test_a_deadline_without_time_is_over_at_once(within_s: float) -> None:
    """Nothing is left, and never less than nothing."""
    deadline = Deadline(within_s, SimulatedClock().clock.steady_s)
    assert (deadline.remaining_s(), deadline.is_over()) == (0, True)


def test_a_deadline_does_not_care_for_the_wall_clock() -> None:
    """Nobody who sets it makes anything late."""
    simulated = SimulatedClock()
    deadline = Deadline(5, simulated.clock.steady_s)
    simulated.set_wall_by(86_400)
    assert deadline.remaining_s() == 5
