"""Log lines: one each, and what repeats at growing intervals."""

from __future__ import annotations

import logging
import shlex
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from binance_funding import events
from tests.fakes import FakeClock

LOGGER = logging.getLogger("tests.events")


class Teller:
    """Repeats with a clock moved by hand."""

    def __init__(self) -> None:
        self.time = FakeClock()
        self.repeats = events.Repeats(LOGGER, self.time.clock.steady_s)

    def every_second(self, seconds: int, cause: str = "cut") -> None:
        """Meet the same trouble every second."""
        for _ in range(seconds):
            self.repeats.tell("lost", cause)
            self.time.advance(1)


@pytest.fixture
def teller(caplog: pytest.LogCaptureFixture) -> Teller:
    """A teller whose lines are caught."""
    caplog.set_level(logging.DEBUG, LOGGER.name)
    return Teller()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain", "plain"),
        ("two words", '"two words"'),
        ("", '""'),
        ('say "x"', '"say \\"x\\""'),
        ("a=b", '"a=b"'),
        ("a\nb", '"a\\nb"'),
        ("a\u2028b", '"a\\u2028b"'),
        ("\x1b[31m", '"\\x1b[31m"'),
        ("\ud800", '"\\ud800"'),
        ("币安", "币安"),
        (1.5, "1.5"),
        (100.0, "100"),
        (1.23456, "1.235"),
        (0.0001, "0"),
        (7, "7"),
        (None, "None"),
    ],
)
def test_a_value_is_quoted_where_it_must_be(value: object, text: str) -> None:
    """Numbers have at most three decimals; nothing unprintable reaches the terminal."""
    assert events.line("lost", cause=value) == f"lost cause={text}"


@given(st.dictionaries(st.from_regex("[a-z_]{1,8}", fullmatch=True), st.text(st.characters()), max_size=4))
def test_an_event_is_always_one_line(facts: dict[str, str]) -> None:
    """Printable, encodable, and a shell splits it into exactly its facts."""
    line = events.line("event", **facts)
    assert line.isprintable()
    line.encode()
    if not any(set(value) & set("\\'\"#`$") for value in facts.values()):
        assert [word.partition("=")[0] for word in shlex.split(line)] == ["event", *facts]


def test_the_same_trouble_every_second_makes_few_lines(teller: Teller, caplog: pytest.LogCaptureFixture) -> None:
    """At once, then 10, 20, 40 ... minutes apart: an hour makes 3 lines, each saying what it stands for."""
    teller.every_second(3600)
    assert caplog.messages == [
        "lost cause=cut",
        "lost cause=cut repeated=599 for_s=600",
        "lost cause=cut repeated=1199 for_s=1800",
    ]


def test_in_the_long_run_a_trouble_is_told_about_hourly(teller: Teller, caplog: pytest.LogCaptureFixture) -> None:
    """The interval stops growing at an hour: a day after is never silent."""
    for _ in range(2 * 24 * 60):
        teller.repeats.tell("lost", "cut")
        teller.time.advance(60)
    assert 48 <= len(caplog.messages) <= 55


def test_a_new_cause_is_told_at_once_up_to_a_limit(teller: Teller, caplog: pytest.LogCaptureFixture) -> None:
    """Eight; an hour of ever new causes makes two lines more."""
    for second in range(3600):
        teller.repeats.tell("lost", f"cause{second}")
        teller.time.advance(1)
    assert [message.split()[1] for message in caplog.messages[:8]] == [f"cause=cause{n}" for n in range(8)]
    assert len(caplog.messages) == 10


def test_causes_that_only_quote_something_else_are_one(teller: Teller, caplog: pytest.LogCaptureFixture) -> None:
    """A malformed row is another one in every message."""
    for second in range(100):
        teller.repeats.tell("rejected rows", f"ValueError event time in row {{'e': 'markPriceUpdate', 'E': {second}}}")
        teller.time.advance(1)
    assert len(caplog.messages) == 1


def test_causes_that_differ_in_their_last_word_are_two(teller: Teller, caplog: pytest.LogCaptureFixture) -> None:
    """Another status is another cause."""
    for status in (500, 503, 500):
        teller.repeats.tell("connect failed", f"handshake refused: Binance has trouble of its own (HTTP {status})")
    assert len(caplog.messages) == 2


def test_troubles_are_told_apart_by_their_event(teller: Teller, caplog: pytest.LogCaptureFixture) -> None:
    """One does not silence another."""
    teller.repeats.tell("lost", "cut")
    teller.repeats.tell("REST refused", "cut", logging.ERROR, status=429)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "lost cause=cut"),
        ("ERROR", "REST refused cause=cut status=429"),
    ]


def test_a_trouble_that_is_over_is_told_anew(teller: Teller, caplog: pytest.LogCaptureFixture) -> None:
    """Its length is returned once; nothing is over that was not there."""
    assert teller.repeats.over("lost") is None
    teller.every_second(30)
    assert teller.repeats.over("lost") == 30
    assert teller.repeats.over("lost") is None
    teller.every_second(1)
    assert caplog.messages == ["lost cause=cut", "lost cause=cut"]


def test_what_comes_and_goes_all_the_time_is_one_trouble(teller: Teller, caplog: pytest.LogCaptureFixture) -> None:
    """Three returns are told; then it and its end keep quiet, but for a line now and then."""
    ends = []
    for _ in range(60):
        teller.repeats.tell("lost", "cut")
        teller.time.advance(30)
        ends.append(teller.repeats.over("lost"))
        teller.time.advance(30)
    assert caplog.messages == [
        *["lost cause=cut"] * 4,
        "lost cause=cut repeated=6 for_s=600",
        "lost cause=cut repeated=19 for_s=1800",
    ]
    assert [minute for minute, lasted_s in enumerate(ends) if lasted_s == 30] == [0, 1, 2, 3, 10, 30]
    assert set(ends) == {30, None}


def test_a_trouble_that_was_away_for_long_is_a_new_one(teller: Teller, caplog: pytest.LogCaptureFixture) -> None:
    """10 minutes after its end; or, where nobody says that it is over, an hour after it was met last."""
    for _ in range(5):
        teller.repeats.tell("lost", "cut")
        teller.repeats.tell("rejected rows", "price")
        teller.repeats.over("lost")
        teller.repeats.tell("lost", "cut")
        teller.repeats.over("lost")
        teller.time.advance(601)
    assert caplog.messages.count("lost cause=cut") == 10
    teller.repeats.tell("rejected rows", "price")
    teller.time.advance(3601)
    teller.repeats.tell("rejected rows", "price")
    assert caplog.messages[-1] == "rejected rows cause=price"


def test_several_troubles_can_be_over_at_once(teller: Teller) -> None:
    """The longest counts."""
    teller.repeats.tell("REST refused", "a")
    teller.time.advance(5)
    teller.repeats.tell("REST failed", "b")
    teller.time.advance(1)
    assert teller.repeats.over("REST failed", "REST refused", "lost") == 6
    assert teller.repeats.over("REST failed", "REST refused", "lost") is None


def test_threads_that_meet_the_same_trouble_make_one_line(teller: Teller, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever comes first tells it."""
    start = threading.Barrier(8)

    def meet() -> None:
        start.wait()
        teller.repeats.tell("lost", "cut")

    threads = [threading.Thread(target=meet) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert caplog.messages == ["lost cause=cut"]
