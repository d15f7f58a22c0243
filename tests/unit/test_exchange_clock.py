"""What time it is at Binance: learned, corrected, and in doubt where a message contradicts it."""

import math
from collections.abc import Callable

import pytest

from binance_funding.daemon.market.exchange_clock import ExchangeClock, Verdict
from tests.support.clock import STEADY_S, WALL_S, SimulatedClock, learn_time

HOUR_S = 3600.0
TICK_S = 3.0


class Host:
    """A host with a stream that brings a row every 3 s, and a daemon that asks for the time when it is due.

    `slew` is the rate error of the boot clock: at 0.08 it gains 80 ms each second.
    """

    def __init__(self) -> None:
        self.time = SimulatedClock()
        self.clock = ExchangeClock(self.time.clock)
        self.binance_s = WALL_S
        """Binance's true time."""
        self.slew = 0.0
        self.way_s = 0.05, 0.05
        """How long a question and its answer take."""
        self.answers: Callable[[float], float | None] = lambda true_s: true_s
        """What is answered at that time, None where nothing is."""
        self.stream_ahead_s = 0.0
        self.asked_s: list[float] = []
        """Binance's time at each question."""
        self.row = 0.0, self.time.steady_s
        """The newest row that was let in: event time in Unix seconds, and its arrival."""
        self.verdicts: list[Verdict] = []
        self._ticked_s = -math.inf

    def advance(self, seconds: float) -> None:
        """Let real time pass."""
        self.binance_s += seconds
        self.time.advance(seconds * (1 + self.slew))

    def pause(self, seconds: float) -> None:
        """Stop the host together with its clocks, as a hypervisor does."""
        self.binance_s += seconds

    def ask(self) -> None:
        """Ask for Binance's time, and wait for the answer."""
        asked_s = self.time.steady_s
        self.asked_s.append(self.binance_s)
        self.clock.note_asked(asked_s)
        self.advance(self.way_s[0])
        answer_s = self.answers(self.binance_s)
        self.advance(self.way_s[1])
        if answer_s is not None:
            self.clock.note_answer(round(answer_s, 3), asked_s, self.time.steady_s)

    def tick(self, lag_s: float = 0.0) -> Verdict:
        """Receive a message."""
        event_s = self.binance_s - lag_s + self.stream_ahead_s
        verdict = self.clock.judge(round(event_s * 1000), self.time.steady_s)
        if verdict is Verdict.TIMELY:
            self.row = event_s, self.time.steady_s
        self.verdicts.append(verdict)
        return verdict

    def run(self, seconds: float, step_s: float = 0.5) -> list[float]:
        """Let the daemon run for so long; return the error of the newest row's age after each step."""
        errors_s, until_s = [], self.binance_s + seconds
        while self.binance_s < until_s:
            if self.binance_s - self._ticked_s >= TICK_S:
                self._ticked_s = self.binance_s
                self.tick()
            if self.time.steady_s >= self.clock.ask_due_s:
                self.ask()
            errors_s.append(self.age_error_s())
            self.advance(step_s)
        return errors_s

    def age_error_s(self) -> float:
        """Return how much too old the newest row is found to be."""
        event_s, received_s = self.row
        return self.time.steady_s - self.clock.as_of_s(round(event_s * 1000), received_s) - self.row_age_s()

    def row_age_s(self) -> float:
        """Return the true age of the newest row that was let in."""
        return self.binance_s - self.row[0]

    def error_s(self) -> float | None:
        """Return by how much the known time is wrong, None while it is unknown."""
        offset_s = self.clock.offset_s
        return None if offset_s is None else self.time.steady_s + offset_s - self.binance_s


@pytest.fixture
def host() -> Host:
    """A host that has known the time for five minutes."""
    host = Host()
    host.run(300)
    assert host.error_s() == pytest.approx(0, abs=0.01)
    host.asked_s.clear()
    return host


def worst_s(errors_s: list[float]) -> float:
    """Return the greatest error."""
    return max(map(abs, errors_s))


# How it is learned


def test_one_answer_suffices_where_events_say_nearly_the_same() -> None:
    """Up to 15 s: a stream that lags less than that is enough to tell a lie from the truth."""
    for lag_s, is_known in ((0.0, True), (14.0, True), (16.0, False)):
        host = Host()
        host.tick(lag_s)
        host.ask()
        assert (host.clock.offset_s is not None) is is_known


def test_without_events_two_answers_must_agree() -> None:
    """The second is asked for 3 s after the first."""
    host = Host()
    assert host.clock.ask_due_s == -math.inf
    host.ask()
    assert host.clock.offset_s is None
    assert host.clock.ask_due_s == pytest.approx(host.time.steady_s - 0.1 + 3)
    host.advance(3)
    host.ask()
    assert host.error_s() == pytest.approx(0, abs=0.001)


@pytest.mark.parametrize("lag_s", [-HOUR_S, 300.0])
def test_a_stream_that_is_wrong_from_the_start_delays_the_time_by_one_answer(lag_s: float) -> None:
    """Whether it lags or leads."""
    host = Host()
    host.stream_ahead_s = -lag_s
    host.run(5)
    assert host.error_s() == pytest.approx(0, abs=0.01)


def test_it_is_asked_for_once_a_minute_while_known_and_every_3_s_while_not(host: Host) -> None:
    """Whether the questions are answered or not."""
    host.run(600)
    assert 9 <= len(host.asked_s) <= 11
    unknown = Host()
    unknown.answers = lambda _true_s: None
    unknown.run(60)
    assert 15 <= len(unknown.asked_s) <= 21


def test_a_slow_answer_is_not_used() -> None:
    """A round trip of more than 2 s leaves too much open."""
    host = Host()
    host.way_s = 1.0, 1.1
    host.run(60)
    assert host.clock.offset_s is None
    host.way_s = 1.0, 1.0
    host.run(6)
    assert host.clock.offset_s is not None


@pytest.mark.parametrize("way_s", [(1.9, 0.05), (0.05, 1.9)])
def test_one_slow_direction_costs_half_the_round_trip_at_most(way_s: tuple[float, float]) -> None:
    """From the start or from later on; no row is lost by it."""
    for host in (Host(), Host()):
        host.run(5)
        host.way_s = way_s
        errors_s = host.run(600)
        assert worst_s(errors_s) <= sum(way_s) / 2 + 0.01
        assert set(host.verdicts) == {Verdict.TIMELY}


# How it is corrected


@pytest.mark.parametrize("pause_s", [60.0, 9.0, 4.0, HOUR_S])
def test_a_paused_virtual_machine_is_current_within_20_s_and_right_within_two_minutes(
    host: Host, pause_s: float, caplog: pytest.LogCaptureFixture
) -> None:
    """Its boot clock stood still as well, so Binance is ahead of all that it knows."""
    host.pause(pause_s)
    host.run(20)
    assert host.row_age_s() <= TICK_S + 0.5
    host.run(100)
    assert worst_s(host.run(60)) <= 1
    assert sum("time of Binance corrected" in message for message in caplog.messages) == 1


@pytest.mark.parametrize("apart_s", [5.0, 20.0, 61.0, 300.0])
def test_two_short_pauses_are_both_corrected(host: Host, apart_s: float) -> None:
    """Together they are more than the 10 s that a single one may be wrong by."""
    for _ in range(2):
        host.pause(6)
        host.run(apart_s)
    host.run(120)
    assert worst_s(host.run(60)) <= 1
    assert host.row_age_s() <= TICK_S + 0.5


@pytest.mark.parametrize("behind_s", [60.0, 9.0, 4.0])
def test_a_boot_clock_that_jumped_ahead_is_corrected_within_two_minutes(host: Host, behind_s: float) -> None:
    """No event contradicts it: the next two answers do."""
    host.time.advance(behind_s)
    host.run(120)
    assert worst_s(host.run(60)) <= 1


@pytest.mark.parametrize(("slew", "wrong_by_s"), [(0.08, 6.0), (-0.08, 2.0)])
def test_a_boot_clock_that_is_slewed_never_locks_out_the_data(host: Host, slew: float, wrong_by_s: float) -> None:
    """NTP slews the boot clock, too: by 8 % for minutes. Ages stay near the truth, and are right soon afterwards."""
    host.slew = slew
    for _ in range(600):
        assert worst_s(host.run(1)) <= wrong_by_s
        assert host.row_age_s() < 10
    host.slew = 0.0
    host.run(120)
    assert worst_s(host.run(60)) <= 1


# What lies


def cached(for_s: float) -> Callable[[float], float]:
    """Answer as a cache does that keeps each answer for so long."""
    kept_s = [-math.inf]

    def answer(true_s: float) -> float:
        if true_s - kept_s[0] > for_s:
            kept_s[0] = true_s
        return kept_s[0]

    return answer


@pytest.mark.parametrize("kept_for_s", [2.0, 5.0, 20.0, 45.0, 90.0, 600.0, 1e9])
@pytest.mark.parametrize("from_start", [True, False])
def test_old_answers_from_a_cache_are_not_adopted(kept_for_s: float, from_start: bool) -> None:
    """Two different ones do not agree, and the same one twice says nothing."""
    host = Host()
    if not from_start:
        host.run(100)
    host.answers = cached(kept_for_s)
    assert worst_s(host.run(900)) <= 1
    assert set(host.verdicts) == {Verdict.TIMELY}
    host.answers = lambda true_s: true_s
    host.run(10)
    assert host.error_s() == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("lie_s", [HOUR_S, -HOUR_S, 20.0, -20.0])
def test_single_wrong_answers_change_nothing(host: Host, lie_s: float) -> None:
    """Even if every second one is wrong."""
    lies = iter(range(10_000))
    host.answers = lambda true_s: true_s + lie_s * (next(lies) % 2)
    assert worst_s(host.run(600)) <= 0.1
    assert set(host.verdicts) == {Verdict.TIMELY}


@pytest.mark.parametrize("ahead_s", [1.5, 9.0, HOUR_S])
def test_a_message_ahead_of_a_confirmed_time_is_rejected(host: Host, ahead_s: float) -> None:
    """It is doubtful until two answers have confirmed the time, and is never let in."""
    host.stream_ahead_s = ahead_s
    before = host.row
    host.verdicts.clear()
    host.run(50)
    decided = host.verdicts.index(Verdict.AHEAD)
    assert decided * TICK_S <= 10
    assert set(host.verdicts[decided:]) == {Verdict.AHEAD}
    assert host.row == before
    assert len(host.asked_s) <= 4
    host.stream_ahead_s = 0.0
    host.run(4)
    assert host.verdicts[-1] is Verdict.TIMELY


def test_a_connection_that_leads_costs_the_other_one_nothing(host: Host) -> None:
    """Each message is judged by itself."""
    for _ in range(100):
        host.run(TICK_S)
        assert host.clock.judge(round((host.binance_s + 600) * 1000), host.time.steady_s) is not Verdict.TIMELY
        assert host.row_age_s() <= 2 * TICK_S


def test_without_answers_a_contradicted_time_is_unknown_after_10_s(host: Host) -> None:
    """The data is let in then, with ages by arrival, until Binance answers again."""
    host.answers = lambda _true_s: None
    host.pause(60)
    host.run(14)
    assert host.clock.offset_s is None
    assert host.row_age_s() <= TICK_S
    host.answers = lambda true_s: true_s
    host.run(10)
    assert host.error_s() == pytest.approx(0, abs=0.01)


# What follows from it


def test_ages_count_from_arrival_until_the_time_is_known() -> None:
    """A row that was late then counts from when it came; none is younger than its arrival."""
    clock = ExchangeClock(SimulatedClock().clock)
    late_ms, early_ms = round((WALL_S - 40) * 1000), round((WALL_S + 5) * 1000)
    assert clock.as_of_s(late_ms, STEADY_S) == STEADY_S
    learn_time(clock, WALL_S - STEADY_S)
    assert clock.as_of_s(late_ms, STEADY_S) == STEADY_S - 40
    assert clock.as_of_s(early_ms, STEADY_S) == STEADY_S


def test_a_single_row_is_bounded_by_its_message_and_by_the_time() -> None:
    """While the time is unknown 10 s ahead of the median; once known 1 s ahead of both."""
    clock = ExchangeClock(SimulatedClock().clock)
    now_ms = round(WALL_S * 1000)
    assert clock.latest_row_ms(now_ms - 40_000, STEADY_S) == now_ms - 30_000
    assert clock.latest_record_ms(STEADY_S) == math.inf
    learn_time(clock, WALL_S - STEADY_S)
    assert clock.latest_row_ms(now_ms - 40_000, STEADY_S) == now_ms + 1000
    assert clock.latest_row_ms(now_ms + 900, STEADY_S) == now_ms + 1900
    assert clock.latest_record_ms(STEADY_S) == now_ms + 10_000


@pytest.mark.parametrize("set_by_s", [0.0, HOUR_S, -2.5])
def test_the_wall_clock_is_compared_and_nothing_depends_on_it(host: Host, set_by_s: float) -> None:
    """Setting it changes the difference that is shown, and no age."""
    host.time.set_wall_by(set_by_s)
    assert host.clock.wall_offset_s() == pytest.approx(-set_by_s, abs=0.01)
    assert worst_s(host.run(300)) <= 0.1
