"""Log lines: one for each event; what repeats comes at growing intervals; and writing them blocks nobody."""

from __future__ import annotations

import logging
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from typing import IO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from binance_funding.log import EventLogger, LogThrottle, line
from tests.support.clock import SimulatedClock
from tests.support.programs import ROOT
from tests.support.waiting import PATIENCE_S

LOGGER = "tests.log"


class Meeter:
    """Meets problems as time is moved by hand."""

    def __init__(self) -> None:
        self.time = SimulatedClock()
        self.throttle = LogThrottle(EventLogger(LOGGER), self.time.clock.steady_s)

    def meet_every_second(self, seconds: int, cause: str = "cut") -> None:
        """Meet the same problem every second."""
        for _ in range(seconds):
            self.throttle.warn("lost", cause)
            self.time.advance(1)


@pytest.fixture
def meeter(caplog: pytest.LogCaptureFixture) -> Meeter:
    """A meeter whose lines are caught."""
    caplog.set_level(logging.DEBUG, LOGGER)
    return Meeter()


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
        (0.0001, "0.0001"),
        (-0.00000743, "-0.0000074"),
        (0.0, "0"),
        (0.03456, "0.035"),
        (7, "7"),
        (None, "None"),
    ],
)
def test_a_value_is_quoted_where_it_must_be(value: object, text: str) -> None:
    """Numbers have three decimals, small ones two digits; nothing unprintable reaches the terminal."""
    assert line("lost", cause=value) == f"lost cause={text}"


@given(st.dictionaries(st.from_regex("[a-z_]{1,8}", fullmatch=True), st.text(st.characters()), max_size=4))
def test_an_event_is_always_one_line(facts: dict[str, str]) -> None:
    """Printable, encodable, and a shell splits it into exactly its facts."""
    facts.pop("event", None)
    text = line("event", **facts)
    assert text.isprintable()
    text.encode()
    if not any(set(value) & set("\\'\"#`$") for value in facts.values()):
        assert [word.partition("=")[0] for word in shlex.split(text)] == ["event", *facts]


def test_the_same_problem_every_second_makes_few_lines(meeter: Meeter, caplog: pytest.LogCaptureFixture) -> None:
    """At once, then 10, 20, 40 ... minutes apart: an hour makes 3 lines, each with how many it stands for."""
    meeter.meet_every_second(3600)
    assert caplog.messages == ["lost cause=cut", "lost cause=cut repeated=599", "lost cause=cut repeated=1199"]


def test_in_the_long_run_a_problem_is_logged_hourly(meeter: Meeter, caplog: pytest.LogCaptureFixture) -> None:
    """The interval stops growing at an hour: no day of problem is without a line."""
    for _ in range(2 * 24 * 60):
        meeter.throttle.warn("lost", "cut")
        meeter.time.advance(60)
    assert 48 <= len(caplog.messages) <= 55


def test_a_new_kind_is_logged_at_once_up_to_a_limit(meeter: Meeter, caplog: pytest.LogCaptureFixture) -> None:
    """The first and eight more; an hour of ever new kinds makes two lines besides."""
    for number in range(3600):
        meeter.throttle.warn("lost", f"cause {number}", kind=str(number))
        meeter.time.advance(1)
    assert all(f"cause {number}" in caplog.messages[number] for number in range(9))
    assert len(caplog.messages) == 11


def test_a_cause_in_other_words_is_the_same_problem(meeter: Meeter, caplog: pytest.LogCaptureFixture) -> None:
    """The kind decides, not the sentence: an age or a quoted row differs every time."""
    for second in range(100):
        meeter.throttle.warn("rejected rows", f"row {second}", kind="event time")
        meeter.time.advance(1)
    assert len(caplog.messages) == 1


def test_a_kind_already_logged_is_not_logged_again(meeter: Meeter, caplog: pytest.LogCaptureFixture) -> None:
    """Refused, reset, refused: two lines."""
    for word in ("refused", "reset", "refused"):
        meeter.throttle.warn("connect failed", word, kind=word)
    assert caplog.messages == ["connect failed cause=refused", "connect failed cause=reset"]


def test_a_problem_without_cause_is_logged_without_one(meeter: Meeter, caplog: pytest.LogCaptureFixture) -> None:
    """Its facts say it all."""
    meeter.throttle.warn("fallback on", stream_age_s=8.2)
    assert caplog.messages == ["fallback on stream_age_s=8.2"]


def test_problems_are_told_apart_by_their_event(meeter: Meeter, caplog: pytest.LogCaptureFixture) -> None:
    """One does not silence another."""
    meeter.throttle.warn("lost", "cut")
    meeter.throttle.warn("REST refused", "cut", logging.ERROR, status=429)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "lost cause=cut"),
        ("ERROR", "REST refused cause=cut status=429"),
    ]


def test_the_end_of_a_problem_is_logged_once_with_its_length(meeter: Meeter, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing ends that was not there; what comes again afterwards is logged again."""
    meeter.throttle.resolve("lost", log_as="found")
    meeter.meet_every_second(30)
    for _ in range(2):
        meeter.throttle.resolve("lost", log_as="found", live=2)
    meeter.meet_every_second(1)
    assert caplog.messages == ["lost cause=cut", "found after_s=30 live=2", "lost cause=cut"]


def test_an_end_without_name_is_not_logged(meeter: Meeter, caplog: pytest.LogCaptureFixture) -> None:
    """Where something else says it."""
    meeter.meet_every_second(1)
    meeter.throttle.resolve("lost")
    assert caplog.messages == ["lost cause=cut"]


def test_what_comes_and_goes_all_the_time_is_one_problem(meeter: Meeter, caplog: pytest.LogCaptureFixture) -> None:
    """Eight returns are logged, each with its end; then both keep quiet, but for a line now and then."""
    for _ in range(60):
        meeter.throttle.warn("lost", "cut")
        meeter.time.advance(30)
        meeter.throttle.resolve("lost", log_as="found")
        meeter.time.advance(30)
    assert caplog.messages == [
        *["lost cause=cut", "found after_s=30"] * 9,
        *["lost cause=cut repeated=1", "found after_s=30"],
        *["lost cause=cut repeated=19", "found after_s=30"],
    ]


def test_a_problem_that_was_away_for_long_is_a_new_one(meeter: Meeter, caplog: pytest.LogCaptureFixture) -> None:
    """Ten minutes after its end all counts anew."""
    for _ in range(30):
        meeter.throttle.warn("lost", "cut")
        meeter.throttle.resolve("lost")
        meeter.time.advance(601)
    assert caplog.messages == ["lost cause=cut"] * 30


def test_several_problems_can_end_at_once(meeter: Meeter, caplog: pytest.LogCaptureFixture) -> None:
    """The longest counts."""
    meeter.throttle.warn("REST refused", "a")
    meeter.time.advance(5)
    meeter.throttle.warn("REST failed", "b")
    meeter.time.advance(1)
    for _ in range(2):
        meeter.throttle.resolve("REST failed", "REST refused", "lost", log_as="REST recovered")
    assert caplog.messages[2:] == ["REST recovered after_s=6"]


def test_threads_that_meet_the_same_problem_make_one_line(meeter: Meeter, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever comes first logs it."""
    start = threading.Barrier(8)

    def meet() -> None:
        start.wait()
        meeter.throttle.warn("lost", "cut")

    threads = [threading.Thread(target=meet) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert caplog.messages == ["lost cause=cut"]


LOGGING_PROGRAM = """
import logging, sys
from binance_funding import log
log.set_up()
logging.getLogger().setLevel(sys.argv[1])
logger = logging.getLogger("x")
logger.debug("fine")
logger.info("two\\nlines")
logger.warning("careful")
logger.error("wrong")
try:
    raise ValueError("first\\nsecond")
except ValueError:
    log.EventLogger("x").log(logging.CRITICAL, "thread died", exc_info=True)
logging.getLogger("websocket").error("lost")
"""


def logged(level: str, journal: bool) -> list[str]:
    """Run a program that logs; return its lines on stderr, which the journal listens to or not."""
    reading, writing = os.pipe()
    info = os.fstat(writing)
    stream = f"{info.st_dev}:{info.st_ino}" if journal else f"{info.st_dev}:{info.st_ino + 1}"
    with os.fdopen(reading, "rb") as output:
        try:
            subprocess.run(
                [sys.executable, "-c", LOGGING_PROGRAM, level],
                cwd=ROOT,
                env={**os.environ, "JOURNAL_STREAM": stream, "TZ": "EAST-9"},
                stderr=writing,
                check=True,
                timeout=PATIENCE_S,
            )
        finally:
            os.close(writing)
        return output.read().decode().splitlines()


def test_every_line_in_the_journal_carries_its_priority() -> None:
    """Those of a traceback too; no time, which the journal has itself; the library is not repeated."""
    lines = logged("DEBUG", journal=True)
    assert lines[:5] == ["<7>fine", "<6>two", "<6>lines", "<4>careful", "<3>wrong"]
    assert lines[5:7] == ["<2>thread died", "<2>Traceback (most recent call last):"]
    assert lines[-2:] == ["<2>ValueError: first", "<2>second"]
    assert all(line.startswith("<2>") for line in lines[5:])


def test_elsewhere_every_event_carries_time_and_level() -> None:
    """In UTC, with milliseconds; a stderr that is not the journal's gets no priorities."""
    lines = logged("INFO", journal=False)
    assert lines[0].endswith("Z INFO    two")
    assert lines[2].split("Z ")[1] == "WARNING careful"
    at = datetime.fromisoformat(lines[2].split("Z ")[0]).replace(tzinfo=timezone.utc)
    assert abs(datetime.now(timezone.utc) - at) < timedelta(hours=1)
    assert not any(line.startswith("<") for line in lines)


def test_the_level_decides_what_is_logged() -> None:
    """Less than it is left out."""
    assert logged("WARNING", journal=True)[:2] == ["<4>careful", "<3>wrong"]


FLOODING_PROGRAM = """
import logging
from binance_funding import log
log.set_up()
logger = log.EventLogger("x")
def flood(event):
    for number in range(2000):
        logger.info(event, number=number, filler="x" * 200)
"""


@contextmanager
def flooding(then: str, stderr: int = subprocess.PIPE) -> Iterator[subprocess.Popen[str]]:
    """Run a program that can log far more than a pipe holds, and does `then`."""
    process = subprocess.Popen(
        [sys.executable, "-c", FLOODING_PROGRAM + then],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def output_of(process: subprocess.Popen[str]) -> IO[str]:
    """Return the stdout of a process."""
    assert process.stdout is not None
    return process.stdout


def test_a_reader_that_stands_still_blocks_neither_the_work_nor_the_end() -> None:
    """The pipe is full, 2000 lines are logged, and the program goes on and ends by itself."""
    with flooding("flood('flood'); print('done', flush=True)") as process:
        assert output_of(process).readline() == "done\n"
        assert process.wait(PATIENCE_S) == 0


def test_what_could_not_be_written_is_counted_and_logged_when_it_can() -> None:
    """Every line is either there or counted, the one that is logged when the reader goes on included."""
    reading, writing = os.pipe()
    then = "flood('flood'); print('done', flush=True); input(); logger.info('after')"
    with os.fdopen(reading) as log, flooding(then, stderr=writing) as process:
        os.close(writing)
        assert output_of(process).readline() == "done\n"
        lines = [next(log) for _ in range(100)]
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        lines += log
        assert process.wait(PATIENCE_S) == 0
    written = [line for line in lines if " INFO " in line]
    left_out = [int(line.split("count=")[1].split()[0]) for line in lines if "WARNING log lines dropped count=" in line]
    assert len(written) + sum(left_out) == 2001
    assert sum(left_out) > 100


def test_the_last_lines_are_written_at_the_end() -> None:
    """All that waits when the program ends, while stderr takes it."""
    with flooding("[logger.info('last', number=number) for number in range(900)]") as process:
        assert process.stderr is not None
        lines = process.stderr.read().splitlines()
    assert [line.split("number=")[1] for line in lines] == [str(number) for number in range(900)]


def test_an_unexpected_end_still_writes_its_lines() -> None:
    """What was logged comes before the traceback or after it, but it comes."""
    with flooding("logger.error('before'); raise RuntimeError('a bug')") as process:
        assert process.stderr is not None
        text = process.stderr.read()
        assert process.wait(PATIENCE_S) == 1
    assert "ERROR   before" in text
    assert "RuntimeError: a bug" in text


def test_a_stderr_whose_reader_is_gone_is_no_fault_of_the_program() -> None:
    """It works on and ends well."""
    reading, writing = os.pipe()
    os.close(reading)
    with flooding("flood('flood'); print('done', flush=True)", stderr=writing) as process:
        os.close(writing)
        assert output_of(process).readline() == "done\n"
        assert process.wait(PATIENCE_S) == 0


def test_without_any_stderr_nothing_is_written_into_another_file() -> None:
    """Where descriptor 2 was closed from the start, the next file opened gets it."""
    program = f"import sys; sys.argv = ['x', 'DEBUG']\n{LOGGING_PROGRAM}print('done')"
    ran = subprocess.run(
        ["sh", "-c", 'exec "$@" 2>&-', "sh", sys.executable, "-c", program],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        timeout=PATIENCE_S,
    )
    assert (ran.returncode, ran.stdout) == (0, "done\n")
