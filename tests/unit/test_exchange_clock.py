"""What time it is at Binance: learned, confirmed, and kept against whatever lies about it."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from binance_funding.daemon.market.exchange_clock import ExchangeClock
from binance_funding.daemon.source.rates import REST, STREAM
from tests.support.clock import STEADY_S, WALL_S, SimulatedClock
from tests.support.samples import rate

HOUR_S, DAY_S = 3600.0, 86_400.0
TICK_S, POLL_S = 3, 60
ROUND_TRIP_S = 0.1

Course = Callable[[float], float]
"""An error in seconds, as of the seconds since the start."""


def steady(error_s: float) -> Course:
    """Be wrong by so much from the start."""
    return lambda _t: error_s


def later(error_s: float) -> Course:
    """Be right at first, and wrong by so much after five minutes."""
    return lambda t: error_s if t >= 300 else 0.0


def growing(error_per_s: float) -> Course:
    """Be more and more wrong."""
    return lambda t: error_per_s * t


def jumping(error_s: float) -> Course:
    """Be right and wrong by turns."""
    return lambda t: error_s * (t // POLL_S % 2)


RIGHT = steady(0.0)


class Host:
    """A host whose clock, stream and REST are wrong as the test says. Binance's own time never is."""

    def __init__(self) -> None:
        self.time = SimulatedClock()
        self.clock = ExchangeClock(self.time.clock)
        self.offset_s = WALL_S - STEADY_S
        """The truth: Binance's time minus the steady time."""
        self.wall_error_s = 0.0

    def binance_ms(self, error_s: float) -> int:
        """Return Binance's time as something tells it that is wrong by so much."""
        return round((self.time.steady_s + self.offset_s + error_s) * 1000)

    def set_wall(self, error_s: float) -> None:
        """Set the wall clock so that it is wrong by so much."""
        self.time.set_wall_by(error_s - self.wall_error_s)
        self.wall_error_s = error_s

    def stream(self, error_s: float = 0.0) -> None:
        """Receive a message of the stream; a lag is a negative error."""
        self.clock.note_events(STREAM, self.binance_ms(error_s), self.time.steady_s)

    def snapshot(self, error_s: float = 0.0) -> None:
        """Receive a snapshot of REST."""
        self.clock.note_events(REST, self.binance_ms(error_s), self.time.steady_s)

    def answer(self, error_s: float = 0.0, round_trip_s: float = ROUND_TRIP_S) -> None:
        """Receive an answer of /fapi/v1/time that was right half its round trip ago."""
        now_s = self.time.steady_s
        self.clock.note_answer(self.binance_ms(error_s - round_trip_s / 2) / 1000, now_s - round_trip_s, now_s)

    def error_s(self) -> float | None:
        """Return by how much what is known is wrong, None where nothing is known."""
        return None if self.clock.offset_s is None else self.clock.offset_s - self.offset_s

    def age_s(self, lag_s: float) -> float:
        """Return how old a row is found to be that comes now and was true so long ago."""
        row = rate(event_time_ms=self.binance_ms(-lag_s), received_s=self.time.steady_s)
        return self.time.steady_s - self.clock.as_of_s(row.event_time_ms, row.received_s)


@dataclass
class Story:
    """What is wrong, and by how much, over the time that a daemon runs."""

    stream: Course = RIGHT
    wall: Course = RIGHT
    snapshot: Course = RIGHT
    answer: Course = RIGHT
    rest_first: bool = False
    minutes: int = 15

    def run(self, host: Host) -> list[float | None]:
        """Let it happen; return what was known after each tick, as an error in seconds."""
        errors_s = []
        for t in range(0, self.minutes * 60, TICK_S):
            host.set_wall(self.wall(t))
            if not self.rest_first:
                host.stream(self.stream(t))
            if t % POLL_S == 0:
                host.snapshot(self.snapshot(t))
                host.answer(self.answer(t))
            if self.rest_first:
                host.stream(self.stream(t))
            errors_s.append(host.error_s())
            host.time.advance(TICK_S)
        return errors_s


LEARNED_AT_ONCE = {
    "nothing is wrong": Story(),
    "the stream lags from the start": Story(stream=steady(-300)),
    "the stream lags by an hour": Story(stream=steady(-HOUR_S)),
    "the stream lags more and more": Story(stream=growing(-0.5)),
    "the stream begins to lag": Story(stream=later(-40)),
    "the wall clock is 9 s ahead": Story(wall=steady(9)),
    "the wall clock is 9 s behind": Story(wall=steady(-9)),
    "the wall clock is a day ahead": Story(wall=steady(DAY_S)),
    "the wall clock is a day behind": Story(wall=steady(-DAY_S)),
    "the wall clock is set an hour ahead": Story(wall=later(HOUR_S)),
    "the wall clock is set an hour back": Story(wall=later(-HOUR_S)),
    "the wall clock is a day behind and the stream lags": Story(stream=steady(-300), wall=steady(-DAY_S)),
    "the wall clock is 15 s behind": Story(wall=steady(-15)),
    "the wall clock is 12 s behind and the stream 3 s": Story(stream=steady(-3), wall=steady(-12)),
    "the growing lag passes the wall clock's error": Story(stream=growing(-0.5), wall=steady(-60)),
    "the answers begin to lie": Story(answer=later(HOUR_S)),
    "the answers begin to lie by 20 s": Story(answer=later(-20)),
    "every second answer is an hour ahead": Story(answer=jumping(HOUR_S)),
    "every second answer is an hour behind": Story(answer=jumping(-HOUR_S)),
    "REST begins to lie consistently": Story(snapshot=later(HOUR_S), answer=later(HOUR_S)),
    "REST begins to repeat an old answer": Story(snapshot=later(-HOUR_S), answer=later(-HOUR_S)),
    "REST begins to lie as the stream begins to lag": Story(
        stream=later(-40), snapshot=later(HOUR_S), answer=later(HOUR_S)
    ),
    "snapshots are old": Story(snapshot=steady(-45)),
    "the answers lie and the wall clock is set": Story(answer=later(HOUR_S), wall=later(-HOUR_S)),
    "one tick is 10 minutes ahead": Story(stream=lambda t: 600.0 if t == 300 else 0.0),
    "one tick is 23 h ahead": Story(stream=lambda t: 23 * HOUR_S if t == 300 else 0.0),
}


@pytest.mark.parametrize("rest_first", [False, True], ids=["stream first", "REST first"])
@pytest.mark.parametrize("story", LEARNED_AT_ONCE.values(), ids=LEARNED_AT_ONCE.keys())
def test_the_time_is_learned_with_the_first_answer_and_stays_right(story: Story, rest_first: bool) -> None:
    """Whichever single witness is wrong, from the start or from later on, and whichever source speaks first."""
    errors_s = Story(story.stream, story.wall, story.snapshot, story.answer, rest_first).run(Host())
    assert None not in errors_s
    assert max(abs(error_s or 0.0) for error_s in errors_s) < 0.01


NEVER_BELIEVED = {
    "an hour ahead": Story(answer=steady(HOUR_S)),
    "an hour behind": Story(answer=steady(-HOUR_S)),
    "20 s behind": Story(answer=steady(-20)),
    "REST as a whole is an hour ahead": Story(snapshot=steady(HOUR_S), answer=steady(HOUR_S)),
    "REST as a whole is 30 s behind": Story(snapshot=steady(-30), answer=steady(-30)),
}


@pytest.mark.parametrize("rest_first", [False, True], ids=["stream first", "REST first"])
@pytest.mark.parametrize("story", NEVER_BELIEVED.values(), ids=NEVER_BELIEVED.keys())
def test_an_answer_that_is_wrong_from_the_start_is_not_believed(story: Story, rest_first: bool) -> None:
    """Stream and wall clock agree against it: once both have spoken ages are those of arrival."""
    host = Host()
    errors_s = Story(story.stream, story.wall, story.snapshot, story.answer, rest_first).run(host)
    assert set(errors_s) == {None}
    assert host.age_s(lag_s=5) == 0


def test_the_time_is_learned_once_the_answers_are_right() -> None:
    """With the next snapshot after the lie has ended."""
    errors_s = Story(snapshot=lambda t: HOUR_S if t < 120 else 0.0, answer=lambda t: HOUR_S if t < 120 else 0.0).run(
        Host()
    )
    ticks = 120 // TICK_S
    assert set(errors_s[:ticks]) == {None}
    assert None not in errors_s[ticks:]


@pytest.mark.parametrize("wall_error_s", [0.0, DAY_S])
@pytest.mark.parametrize("direction", [-1, 1])
def test_a_creeping_answer_leads_nowhere(direction: int, wall_error_s: float) -> None:
    """Each differs from the one before by less than what a new measurement may; the witnesses hold it."""
    errors_s = Story(answer=growing(direction * 0.01), wall=steady(wall_error_s), minutes=60).run(Host())
    assert max(abs(error_s or 0.0) for error_s in errors_s) <= 10


def test_what_is_known_is_measured_anew_with_every_answer() -> None:
    """A boot clock that nobody corrects drifts by seconds a day."""
    host = Host()
    Story(minutes=2).run(host)
    for _ in range(20):
        host.offset_s += 0.4
        Story(minutes=1).run(host)
        assert host.error_s() == pytest.approx(0, abs=0.001)
        assert host.clock.learned_s >= host.time.steady_s - POLL_S


def test_what_was_learned_while_the_others_were_wrong_is_dropped() -> None:
    """REST lies, the stream is silent, the wall clock wrong: believed, until stream and wall clock agree against it."""
    host = Host()
    Story(minutes=2).run(host)
    host.time.advance(120)
    host.set_wall(DAY_S)
    host.snapshot(HOUR_S)
    host.answer(HOUR_S)
    assert host.error_s() == pytest.approx(HOUR_S, abs=0.001)
    host.set_wall(0)
    host.stream()
    assert host.clock.offset_s is None


@pytest.mark.parametrize("round_trip_s", [0.0, 0.2, 4.0])
def test_half_the_round_trip_is_taken_off(round_trip_s: float) -> None:
    """An answer is as of the middle of its way."""
    host = Host()
    host.answer(round_trip_s=round_trip_s)
    assert host.error_s() == pytest.approx(0, abs=0.001)


def test_an_answer_that_trickles_is_ignored() -> None:
    """A round trip of more than 4 s leaves too much open."""
    host = Host()
    host.answer(round_trip_s=4.01)
    assert host.clock.offset_s is None
    assert host.clock.is_doubted()


def test_an_answer_without_any_witness_is_not_believed() -> None:
    """The wall clock is wrong, and nothing else has spoken; a snapshot makes the difference."""
    host = Host()
    host.set_wall(DAY_S)
    host.answer()
    assert host.clock.offset_s is None
    host.snapshot()
    host.answer()
    assert host.error_s() == pytest.approx(0, abs=0.001)


def test_a_witness_that_fell_silent_is_none() -> None:
    """What the stream said more than a minute ago does not hold an answer that REST confirms."""
    host = Host()
    host.set_wall(DAY_S)
    host.stream(-300)
    host.time.advance(61)
    host.snapshot()
    host.answer()
    assert host.error_s() == pytest.approx(0, abs=0.001)


def test_of_several_connections_the_one_that_lags_least_is_the_witness() -> None:
    """The other's messages change nothing, before or after: stream and wall clock still refute a lie."""
    host = Host()
    for _ in range(20):
        host.stream(-300)
        host.stream()
        host.stream(-300)
        host.time.advance(TICK_S)
    host.snapshot(HOUR_S)
    host.answer(HOUR_S)
    assert host.clock.offset_s is None


def test_a_host_that_was_suspended_knows_the_time_still() -> None:
    """The boot clock runs on; what the witnesses said before is forgotten."""
    host = Host()
    Story(minutes=2).run(host)
    host.time.advance(10 * HOUR_S)
    assert host.error_s() == pytest.approx(0, abs=0.001)
    assert host.age_s(lag_s=0) == pytest.approx(0, abs=0.001)
    assert host.age_s(lag_s=10 * HOUR_S) == pytest.approx(10 * HOUR_S, abs=0.001)
    assert None not in Story(minutes=2).run(host)


def test_a_virtual_machine_that_stood_still_learns_the_time_anew(caplog: pytest.LogCaptureFixture) -> None:
    """Its boot clock stood still as well: stream and REST agree on another time than what was known."""
    host = Host()
    Story(minutes=2).run(host)
    host.offset_s += 2 * HOUR_S
    host.stream()
    host.snapshot()
    assert host.clock.is_doubted()
    host.answer()
    assert host.error_s() == pytest.approx(0, abs=0.001)
    assert [message.split(" by_s")[0] for message in caplog.messages] == ["time of Binance corrected"]


def test_a_virtual_machine_that_stood_still_and_has_no_rest_is_helped_by_ntp() -> None:
    """Stream and a wall clock that was set agree that it is later than was known: no lag looks like that."""
    host = Host()
    Story(minutes=2).run(host)
    host.offset_s += 2 * HOUR_S
    host.time.set_wall_by(2 * HOUR_S)
    host.stream()
    assert host.clock.offset_s is None
    assert host.age_s(lag_s=0) == 0
    assert host.binance_ms(0) <= host.clock.latest_ms(host.time.steady_s)


def test_what_an_earlier_daemon_knew_is_taken_over() -> None:
    """And asked for anew with the first snapshot."""
    host = Host()
    host.clock.restore(host.offset_s)
    assert host.age_s(lag_s=7) == pytest.approx(7, abs=0.001)
    assert host.clock.learned_s == -math.inf


@pytest.mark.parametrize("error_s", [-HOUR_S, HOUR_S])
def test_what_an_earlier_daemon_had_wrong_is_dropped(error_s: float, caplog: pytest.LogCaptureFixture) -> None:
    """With the first message of the stream, where the wall clock agrees with that; told once."""
    host = Host()
    host.clock.restore(host.offset_s + error_s)
    host.stream()
    assert host.clock.offset_s is None
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.WARNING, f'time of Binance dropped off_by_s={error_s:g} next="ages by arrival"')
    ]


def test_ages_are_those_of_arrival_until_the_time_is_known() -> None:
    """A row that was late then counts from when it came."""
    host = Host()
    assert host.age_s(lag_s=40) == 0
    host.answer()
    assert host.age_s(lag_s=40) == pytest.approx(40, abs=0.001)


def test_a_record_is_never_younger_than_its_arrival() -> None:
    """An event time that is a little ahead counts from when it came."""
    host = Host()
    host.answer()
    row = rate(event_time_ms=host.binance_ms(5), received_s=host.time.steady_s)
    assert host.clock.as_of_s(row.event_time_ms, row.received_s) == host.time.steady_s


@pytest.mark.parametrize("wall_error_s", [0.0, 9.0, -9.0, DAY_S])
def test_rows_ahead_of_the_known_time_have_not_happened(wall_error_s: float) -> None:
    """Beyond 10 s, whatever the wall clock shows."""
    host = Host()
    host.set_wall(wall_error_s)
    host.snapshot()
    host.answer()
    assert host.clock.latest_ms(host.time.steady_s) == pytest.approx(host.binance_ms(10), abs=2)


def test_while_the_time_is_unknown_stream_and_wall_clock_bound_it() -> None:
    """Where they agree; where they do not, nothing can be said."""
    host = Host()
    assert host.clock.latest_ms(host.time.steady_s) == math.inf
    host.stream(-2)
    assert host.clock.latest_ms(host.time.steady_s) == pytest.approx(host.binance_ms(10), abs=2)
    host.set_wall(-HOUR_S)
    assert host.clock.latest_ms(host.time.steady_s) == math.inf


def test_events_ahead_for_a_while_do_not_lift_the_bound() -> None:
    """An exchange 10 minutes ahead for 3 s, REST never reached: the bound stays where it was."""
    host = Host()
    host.stream()
    for _ in range(2):
        host.time.advance(TICK_S)
        host.stream(600)
        assert host.clock.latest_ms(host.time.steady_s) == pytest.approx(host.binance_ms(10), abs=2)


def test_events_that_stay_ahead_lift_the_bound() -> None:
    """After a minute it is the wall clock that looks wrong, or the boot clock stood still."""
    host = Host()
    host.stream()
    for _ in range(21):
        host.time.advance(TICK_S)
        host.stream(600)
    assert host.clock.latest_ms(host.time.steady_s) == math.inf


def test_the_time_is_asked_for_while_it_is_unknown_or_doubted() -> None:
    """It is doubted where the last snapshot does not agree with it."""
    host = Host()
    assert host.clock.is_doubted()
    host.snapshot()
    host.answer()
    assert not host.clock.is_doubted()
    assert host.clock.learned_s == host.time.steady_s
    host.time.advance(POLL_S)
    host.snapshot(-20)
    assert host.clock.is_doubted()


def test_the_wall_clocks_error_is_told() -> None:
    """Binance's time minus this host's, positive where this host is behind; a lag never changes it."""
    host = Host()
    assert host.clock.wall_offset_s() is None
    host.set_wall(-2.5)
    Story(stream=growing(-0.5), wall=steady(-2.5)).run(host)
    assert host.clock.wall_offset_s() == pytest.approx(2.5, abs=0.01)
    host.time.set_wall_by(HOUR_S)
    assert host.clock.wall_offset_s() == pytest.approx(2.5 - HOUR_S, abs=0.01)


def test_a_message_without_event_says_nothing() -> None:
    """A median of 0 is that of no rows: it does not take the place of what was witnessed."""
    host = Host()
    host.stream()
    host.time.advance(30)
    host.clock.note_events(STREAM, 0, host.time.steady_s)
    assert host.clock.latest_ms(host.time.steady_s) == pytest.approx(host.binance_ms(10), abs=2)


errors = st.sampled_from([0.0, 0.4, -0.4, 3.0, -3.0, 9.0, -9.0, -40.0, 600.0, HOUR_S, -HOUR_S, DAY_S, -DAY_S])


@given(
    st.lists(st.tuples(errors, errors, errors, st.floats(0, 10)), max_size=40),
    st.sampled_from(["answer", "wall", "stream"]),
)
def test_whatever_one_of_the_witnesses_says_the_time_is_right_or_unknown(
    steps: list[tuple[float, float, float, float]], liar: str
) -> None:
    """As long as the others are right: within the 10 s in which they cannot be told from each other."""
    host = Host()
    for answer_s, wall_s, stream_s, round_trip_s in steps:
        host.set_wall(wall_s if liar == "wall" else 0.0)
        host.stream(stream_s if liar == "stream" else 0.0)
        host.snapshot()
        host.answer(answer_s if liar == "answer" else 0.0, round_trip_s)
        error_s = host.error_s()
        assert error_s is None or abs(error_s) <= 10
        assert error_s is None or liar == "answer" or abs(error_s) < 0.01
        host.time.advance(TICK_S)
