"""The daemon's main thread in simulated time: what it tells systemd and the log, through good hours and bad ones."""

import heapq
import logging
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import binance_funding_ws_daemon as program
from binance_funding import service
from binance_funding import stream as stream_module
from binance_funding.rest import RestError
from binance_funding.settings import load
from tests.fakes import EVENT_MS, WALL_S, FakeClock, index_row, rate
from tests.test_rest import Binance
from tests.test_stream_decisions import Line, nobody_there, opens_and_stays_silent, refuses

HOUR_S = 3600.0
WATCHDOG_S = 15.0


class ScriptedStop(threading.Event):
    """The daemon's stop event: waiting for it lets simulated time pass, until the test's time is over."""

    def __init__(self, house: "House") -> None:
        super().__init__()
        self.house = house
        self.until_s = 0.0

    def wait(self, timeout: float | None = None) -> bool:
        """Let everything else happen meanwhile."""
        assert timeout is not None
        if self.house.now_s >= self.until_s:
            return True
        self.house.live(timeout)
        return False


class House:
    """A daemon in simulated time. `answer` is what the exchange does with every new connection."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, **settings: Any) -> None:
        random.seed(1)  # the pool's waits are scattered by chance
        self.time = FakeClock()
        self.binance = Binance(self.time)
        self.answer: Callable[[Line], None] = Line.brings
        self.symbols = ["BTCUSDT", "ETHUSDT"]
        """What the stream brings."""
        self.offset_s = 0.0
        """The exchange's clock minus this host's."""
        self.lines: list[Line] = []
        """The connections that have not ended."""
        self.told: list[str] = []
        """What systemd was told, line by line, as it reads it."""
        self.frozen: set[str] = set()
        """Threads that make no progress."""
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._written_s = 0.0
        self._due_s = dict.fromkeys(("stream", "rest", "publisher"), 0.0)
        monkeypatch.setenv("WATCHDOG_USEC", str(int(WATCHDOG_S * 1_000_000)))
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
        monkeypatch.setattr(service, "notify", self._notified)
        monkeypatch.setattr(service.Threads, "start", lambda _threads, _name, _target: self._spawn())
        monkeypatch.setattr(stream_module, "Connection", self._open)
        monkeypatch.setattr(program, "RestClient", lambda *_arguments: self.binance)
        given = {"STATE_FILE": str(folder / "state.json"), **{name: str(value) for name, value in settings.items()}}
        self.daemon = program.Daemon(load(given, env_file="/nonexistent"), self.time.clock)
        self.daemon._stop = self.stop = ScriptedStop(self)
        self._steps = {"stream": self._step_stream, "rest": self.daemon._rest.step, "publisher": self._publish}

    @property
    def now_s(self) -> float:
        """The simulated steady time."""
        return self.time.steady_s

    @property
    def statuses(self) -> list[str]:
        """Every status line so far."""
        return [told.removeprefix("STATUS=") for told in self.told if told.startswith("STATUS=")]

    def in_(self, seconds: float, action: Callable[[], None]) -> None:
        """Let something happen in so many seconds."""
        self._count += 1
        heapq.heappush(self._events, (self.now_s + seconds, self._count, action))

    def advance(self, seconds: float) -> None:
        """Let the daemon run for so long."""
        self.stop.until_s = self.now_s + seconds
        self.daemon._watch()

    def live(self, seconds: float) -> None:
        """Let time pass for all but the main thread."""
        until_s = self.now_s + seconds
        while self.now_s < until_s:
            next_s = min([until_s, *(due_s for name, due_s in self._due_s.items() if name not in self.frozen)])
            if self._events:
                next_s = min(next_s, self._events[0][0])
            self.time.advance(max(0.0, next_s - self.now_s))
            self._happen()

    def _happen(self) -> None:
        while self._events and self._events[0][0] <= self.now_s:
            heapq.heappop(self._events)[2]()
        for name, step in self._steps.items():
            if name not in self.frozen and self.now_s >= self._due_s[name]:
                self._due_s[name] = self.now_s + max(0.01, step())

    def _step_stream(self) -> float:
        self._stream_brings()
        self.daemon._stream.step()
        return 1.0

    def _publish(self) -> float:
        # Thousands of real files would make the test slow; most of the time it is enough that the thread moves.
        if self.now_s >= self._written_s + 100:
            self._written_s = self.now_s
            self.daemon._publisher.write_or_tell()
        self.daemon._publisher.progress_s = self.now_s
        return 5.0

    def _stream_brings(self) -> None:
        self.lines = [line for line in self.lines if line.ending is None]
        if any(line.brings_data for line in self.lines):
            at_ms = EVENT_MS + int((self.time.wall_s - WALL_S + self.offset_s) * 1000)
            price = index_row()["markPrice"]
            self.daemon._book.merge(
                [rate(symbol, mark_price=price, event_time_ms=at_ms, received_s=self.now_s) for symbol in self.symbols]
            )

    def _notified(self, state: str) -> bool:
        self.told += state.split("\n")
        return True

    def _open(self, *args: Any, **kwargs: Any) -> Line:
        line = Line(self, *args, **kwargs)  # type: ignore[arg-type]
        self.lines.append(line)
        return line

    def _spawn(self) -> threading.Thread:
        line = self.lines[-1]
        self.in_(0.01, lambda: None if line.ending else self._begin(line))
        return threading.Thread()

    def _begin(self, line: Line) -> None:
        self.answer(line)
        self._stream_brings()


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> House:
    """A daemon with default settings, against an exchange that is well."""
    return House(monkeypatch, tmp_path)


def lines_of(caplog: pytest.LogCaptureFixture, event: str) -> list[str]:
    """Return the log lines that begin with the event."""
    return [record.getMessage() for record in caplog.records if record.getMessage().startswith(event)]


# What systemd is told


def test_status_tells_symbols_age_source_and_connections(house: House) -> None:
    """`systemctl status` answers the operator's first question, in every situation."""
    house.answer = refuses("handshake refused: the firewall of Binance refuses this IP (HTTP 403)")
    house.binance.fails = lambda path: RestError("no connection: connection refused", "connection")
    house.advance(3)
    assert house.statuses[-1] == (
        "no data yet, 0 of 2 connections: stream: handshake refused: the firewall of Binance refuses this IP "
        "(HTTP 403); REST: no connection: connection refused"
    )
    house.binance.fails = lambda path: None
    house.advance(70)
    assert ", source REST, 0 of 2 connections, 2 symbols from REST, 0 stale" in house.statuses[-1]
    house.answer = Line.brings
    house.advance(70)
    assert house.statuses[-1] == (
        "2 symbols, newest 0 s old, source stream, 2 of 2 connections, 0 symbols from REST, 0 stale"
    )
    house.answer = refuses("handshake refused")
    house.binance.fails = lambda path: RestError("no connection", "connection")
    for line in house.lines:
        line.ends()
    house.advance(190)
    assert house.statuses[-1].startswith("2 symbols, newest 190 s old, source none, 0 of 2 connections")
    assert house.statuses[-1].endswith(", 2 stale")


def test_status_is_sent_when_it_changes_only(house: House) -> None:
    """Not every second for years."""
    house.advance(600)
    assert len(house.statuses) < 20
    assert all(one != following for one, following in zip(house.statuses, house.statuses[1:], strict=False))


def test_what_the_exchange_says_is_no_order_to_systemd(house: House) -> None:
    """A close reason may hold line ends; a line of its own in a notification would be a command."""
    house.answer = refuses("closed by the exchange with code 1008 (bye\nWATCHDOG=trigger\r\nREADY=0)")
    house.binance.fails = lambda path: RestError("no connection", "connection")
    house.advance(3)
    assert "WATCHDOG=trigger" in house.statuses[-1]
    assert "WATCHDOG=trigger" not in house.told
    assert all(told.isprintable() for told in house.told)


def fed(house: House, seconds: float) -> int:
    """Return how often the watchdog is fed in so many seconds."""
    before = house.told.count("WATCHDOG=1")
    house.advance(seconds)
    return house.told.count("WATCHDOG=1") - before


def test_watchdog_is_fed_while_everything_moves_whatever_binance_does(house: House) -> None:
    """A restart would not mend Binance."""
    assert fed(house, 60) >= 60
    house.answer = opens_and_stays_silent
    house.binance.fails = lambda path: RestError("no answer in time", "timeout")
    for line in house.lines:
        line.ends()
    assert fed(house, 600) >= 500


@pytest.mark.parametrize(("thread", "allowed_s"), [("stream", 10), ("publisher", 15), ("rest", 190)])
def test_watchdog_is_not_fed_while_a_thread_is_stuck(
    house: House, caplog: pytest.LogCaptureFixture, thread: str, allowed_s: float
) -> None:
    """Neither too early nor never; the log names the thread, for whoever reads it after the restart."""
    caplog.set_level(logging.INFO)
    house.advance(60)
    house.frozen = {thread}
    assert fed(house, allowed_s - 5) >= allowed_s - 6
    house.advance(10)
    assert fed(house, 60) == 0
    assert lines_of(caplog, "stuck")[0].startswith(f'stuck cause="no progress of thread {thread}"')
    assert {record.levelno for record in caplog.records if "stuck" in record.getMessage()} == {logging.ERROR}
    house.frozen = set()
    house.advance(1)
    assert fed(house, 10) >= 9
    assert len(lines_of(caplog, "moving again after_s=")) == 1


def test_without_a_watchdog_none_is_fed(monkeypatch: pytest.MonkeyPatch, house: House) -> None:
    """A unit without WatchdogSec= gets no feeding."""
    monkeypatch.delenv("WATCHDOG_USEC")
    assert fed(house, 60) == 0
    assert house.statuses


def test_a_short_watchdog_makes_short_rounds(monkeypatch: pytest.MonkeyPatch, house: House) -> None:
    """It is fed at half of its time, however short that is."""
    monkeypatch.setenv("WATCHDOG_USEC", "500000")
    assert fed(house, 10) >= 39


# What the log is told


def test_a_wrong_clock_is_told_until_it_is_right(house: House, caplog: pytest.LogCaptureFixture) -> None:
    """Above 5 s in either direction, once and then seldom; a clock that goes wrong again is told again."""
    caplog.set_level(logging.INFO)
    house.offset_s = 4.0
    house.advance(20)
    assert not lines_of(caplog, "clock")
    house.offset_s = 7.0
    house.advance(20)
    told = lines_of(caplog, "clock cause")
    assert len(told) == 1
    assert "offset_s=7" in told[0]
    assert 'next="check NTP"' in told[0]
    house.offset_s = 0.0
    house.time.advance(10)  # the exchange's event times went back: its next ones must be newer
    house.advance(20)
    assert len(lines_of(caplog, "clock right again after_s=")) == 1
    house.offset_s = -8.0
    house.time.advance(10)
    house.advance(20)
    assert len(lines_of(caplog, "clock cause")) == 2


def test_a_gap_is_told_with_the_trouble_of_its_time_only(house: House, caplog: pytest.LogCaptureFixture) -> None:
    """Not with a loss or a refusal that was over before it began."""
    house.advance(60)
    house.binance.fails = lambda path: RestError("an old trouble", "500")
    house.lines[0].ends("an old loss")
    house.advance(120)
    house.binance.fails = lambda path: None
    house.advance(120)
    house.symbols = []
    house.advance(12)
    house.symbols = ["BTCUSDT", "ETHUSDT"]
    house.advance(5)
    house.answer = refuses("a new refusal")
    for line in house.lines:
        line.ends("a new loss")
    house.advance(25)
    house.answer = Line.brings
    house.advance(5)
    assert [line.partition(" seconds=")[0] for line in lines_of(caplog, "gap ended")] == [
        'gap ended cause="stream: nothing came"',
        'gap ended cause="stream: a new refusal"',
    ]


def test_what_comes_and_goes_costs_few_lines(house: House, caplog: pytest.LogCaptureFixture) -> None:
    """REST that fails every other time, handshakes that are refused every other time: an hour of it is no flood."""
    caplog.set_level(logging.INFO)
    house.advance(120)
    caplog.clear()
    turns = iter(range(1_000_000))
    house.binance.fails = lambda path: RestError("HTTP 500", "500") if next(turns) % 2 else None

    def answer(line: Line) -> None:
        if next(turns) % 2:
            refuses("HTTP 503")(line)
            return
        line.brings()
        house.in_(5, line.ends)

    house.answer = answer
    for line in house.lines:
        line.ends()
    house.advance(HOUR_S)
    assert len(caplog.records) < 50
    assert {"REST refused", "REST recovered", "lost", "connect failed"} <= {
        event for event in ("REST refused", "REST recovered", "lost", "connect failed") if lines_of(caplog, event)
    }


def test_a_part_of_the_market_that_lives_on_rest_is_told_when_it_changes(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    """Once when it begins and once when it ends; not while the whole stream is down, which has its own lines."""
    caplog.set_level(logging.INFO)
    house.advance(120)
    house.symbols = ["BTCUSDT"]
    house.advance(HOUR_S)
    assert lines_of(caplog, "symbols from REST") == ["symbols from REST count=1 of=2"]
    house.symbols = ["BTCUSDT", "ETHUSDT"]
    house.advance(60)
    assert lines_of(caplog, "symbols from REST")[1:] == ["symbols from REST count=0 of=2"]
    house.answer = nobody_there
    for line in house.lines:
        line.ends()
    house.advance(600)
    assert len(lines_of(caplog, "symbols from REST")) == 2


def test_symbols_that_left_the_market_are_forgotten(house: House) -> None:
    """A day after their last news, without a restart."""
    gone = rate("LUNAUSDT", received_s=house.now_s - 86_400 + 100, event_time_ms=EVENT_MS - 86_300_000)
    house.daemon._book.take_over([gone], 0)
    house.advance(90)
    assert "LUNAUSDT" in {known.symbol for known in house.daemon._book.rates()}
    house.advance(80)
    assert {known.symbol for known in house.daemon._book.rates()} == {"BTCUSDT", "ETHUSDT"}


def test_time_watched_is_counted_to_the_second(house: House) -> None:
    """The report's 24 h are those that the daemon has seen."""
    started_s = house.now_s
    house.advance(2 * HOUR_S)
    _, buckets = house.daemon._history.to_json(house.time.wall_s)
    assert sum(bucket["observed"] for bucket in buckets) == pytest.approx(house.now_s - started_s, abs=0.01)


def stands_still(line: Line) -> None:
    """Bring the one event time that all messages have, and nothing newer."""
    line.brings()
    line.brings_data = False


OUTAGES: dict[str, Callable[[Line], None]] = {
    "connection refused": nobody_there,
    "DNS: the host name": lambda line: line.ends("DNS: the host name cannot be resolved", nobody_there=True),
    "TLS: certificate": refuses("TLS: certificate has expired"),
    "HTTP 403": refuses("handshake refused: the firewall of Binance refuses this IP (HTTP 403)"),
    "HTTP 418": refuses("handshake refused: Binance has banned this IP (HTTP 418)", wait_s=120.0),
    "HTTP 429": refuses("handshake refused: too many requests (HTTP 429)", wait_s=30.0),
    "HTTP 503": refuses("handshake refused: Binance has trouble of its own (HTTP 503)"),
    "no handshake within 15 s": lambda line: None,
    "no new mark prices for 15 s": opens_and_stays_silent,
    "silent again": stands_still,
}


def hour_without(house: House, answer: Callable[[Line], None], rest_error: RestError) -> None:
    """Let a good minute be followed by an outage of stream and REST for an hour."""
    house.advance(60)
    house.answer = answer
    house.binance.fails = lambda path: rest_error
    for line in house.lines:
        line.ends()
    house.advance(HOUR_S)


@pytest.mark.parametrize("cause", OUTAGES)
def test_an_hour_without_exchange_costs_few_lines(house: House, caplog: pytest.LogCaptureFixture, cause: str) -> None:
    """Fewer than 20 lines of all parts together, from the loss to the recovery, the cause among them."""
    caplog.set_level(logging.INFO)
    hour_without(house, OUTAGES[cause], RestError("no connection: connection refused", "connection"))
    house.answer = Line.brings
    house.binance.fails = lambda path: None
    house.advance(300)
    assert len(house.daemon._stream.live()) == 2
    lines = [record.getMessage() for record in caplog.records]
    outage = lines[next(place for place, line in enumerate(lines) if line.startswith("lost")) :]
    assert len(outage) < 20, "\n".join(outage)
    assert any(cause in line for line in outage)
    for event in ("fallback on", "fallback off", "REST failed", "REST recovered", "gap ended"):
        assert len(lines_of(caplog, event)) >= 1, event
    assert lines_of(caplog, "stream recovered") or lines_of(caplog, "stream steady")
    assert all(record.exc_info is None for record in caplog.records)


@pytest.mark.parametrize("status", [403, 418, 500])
def test_an_hour_of_refused_rest_costs_few_lines(house: House, caplog: pytest.LogCaptureFixture, status: int) -> None:
    """The same where REST is refused, whatever the reason."""
    caplog.set_level(logging.INFO)
    told_s = {418: 120.0, 429: 60.0}.get(status, 0.0)
    hour_without(house, nobody_there, RestError(f"refused (HTTP {status})", str(status), told_s))
    assert len(caplog.records) < 20
    assert len(lines_of(caplog, f'REST refused cause="refused (HTTP {status})"')) in range(1, 7)


# The end


def test_exit_status_tells_a_signal_from_a_dead_thread(house: House) -> None:
    """0 and 70: systemd restarts after the one, and an operator searches after the other."""
    house.advance(10)
    assert house.daemon._end() == 0
    assert house.told[-1] == "STOPPING=1"
    house.daemon._threads.crashed = "rest"
    assert house.daemon._end() == 70


def test_a_bug_in_the_main_thread_is_told_like_any_other(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It ends the program with the same status, and the other threads in order."""

    def buggy() -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(house.daemon, "_watch", buggy)
    monkeypatch.setattr(house.daemon, "_start_threads", lambda: None)
    monkeypatch.setattr(service, "on_signals", lambda stop: None)
    assert house.daemon.run() == 70
    assert "thread main died of an unexpected error: the program ends" in caplog.messages
    assert house.told[-1] == "STOPPING=1"


def test_a_connection_that_hangs_at_the_end_is_broken(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """First everybody may end by themselves; who does not is broken, and does not keep the program."""
    house.advance(10)
    hanging = house.lines[0]
    hanging.ends_when_told = False
    left = iter([["stream-1"], []])
    monkeypatch.setattr(house.daemon._threads, "join", lambda _within_s: next(left))
    assert house.daemon._end() == 0
    assert hanging.aborts == 1


def test_the_last_state_is_written_at_the_end(house: House) -> None:
    """What was counted since the last writing is not lost."""
    house.advance(10)
    house.daemon._stream.lost += 5
    before = house.daemon._file.path
    house.daemon._end()
    assert f'"disconnects":{house.daemon._stream.lost}' in Path(before).read_text(encoding="utf-8").replace(" ", "")
