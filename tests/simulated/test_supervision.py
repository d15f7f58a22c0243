"""The daemon's main thread in simulated time: what it tells systemd, what it counts, and how it ends."""

import logging
import os
from pathlib import Path

import pytest

from binance_funding.daemon.source.faults import NO_ANSWER_IN_TIME
from binance_funding.daemon.source.rest_client import RestError
from binance_funding.server.content import Content
from binance_funding.server.health import judge
from binance_funding.state_file import AlreadyRunning, StateFile, read, written_age_s
from tests.support.clock import BOOT_ID
from tests.support.house import HOUR_S, House, lines_of
from tests.support.samples import EVENT_MS, rate
from tests.support.simulated_rest import INDEX, lost
from tests.support.simulated_stream import Line, opens_and_stays_silent, refuses

WATCHDOG_S = 15.0


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> House:
    """A daemon under a systemd that watches it."""
    monkeypatch.setenv("WATCHDOG_USEC", str(int(WATCHDOG_S * 1_000_000)))
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    return House(tmp_path)


def test_status_tells_symbols_age_source_and_connections(house: House) -> None:
    """`systemctl status` answers the operator's first question, in every situation."""
    house.lines.answer = refuses("handshake refused: the firewall of Binance refuses this IP (HTTP 403)")
    house.binance.fails = lambda path: lost("no connection: connection refused")
    house.advance(3)
    assert house.statuses[-1] == (
        "no data yet, 0 of 2 connections: stream: handshake refused: the firewall of Binance refuses this IP "
        "(HTTP 403); REST: no connection: connection refused"
    )
    house.binance.fails = lambda path: None
    house.advance(70)
    assert ", source REST, 0 of 2 connections, 2 symbols from REST, 0 stale" in house.statuses[-1]
    house.lines.answer = Line.brings
    house.advance(70)
    assert house.statuses[-1] == (
        "2 symbols, newest 0 s old, source stream, 2 of 2 connections, 0 symbols from REST, 0 stale"
    )
    house.lines.answer = refuses("handshake refused")
    house.binance.fails = lambda path: lost("no connection")
    house.lose_all()
    house.advance(190)
    assert house.statuses[-1].startswith("2 symbols, newest 190 s old, source none, 0 of 2 connections")
    assert house.statuses[-1].endswith(", 2 stale")


MARKET = [f"S{number}USDT" for number in range(80)]


def health(house: House) -> tuple[str, str | None]:
    """Return what the server makes of the state file as it is now."""
    house.write()
    state, settings = read(house.daemon._file.path), house.daemon.settings
    age_s = written_age_s(state, house.time.clock.now(), BOOT_ID)
    verdict = judge(Content(state, settings.stale_seconds), age_s, settings.stale_seconds, "", settings)
    return verdict.status, verdict.error


@pytest.mark.parametrize("after_s", [0.0, 20.0, 40.0, 55.0])
def test_three_halted_symbols_of_eighty_are_no_gap(tmp_path: Path, after_s: float) -> None:
    """They are more than 1 % of the market, but the exchange itself has nothing newer."""
    house = House(tmp_path)
    house.exchange.symbols = house.exchange.listed = MARKET
    house.exchange.rest_behind_s = 2.5
    house.advance(120 + after_s)
    house.exchange.halted_at_ms = dict.fromkeys(MARKET[:3], house.exchange.now_ms())
    house.advance(600)
    state = house.write()
    assert state["gaps"] == []
    assert max(quarter["worst"] for quarter in state["history"]) < 30
    assert state["connection_status"]["symbols_halted"] == 3
    assert not state["connection_status"]["fallback_active"]
    assert health(house) == ("healthy", None)


def test_a_rest_answer_that_is_repeated_excuses_nobody(tmp_path: Path) -> None:
    """Symbols that only REST delivers go stale and are not halted; the trouble is named."""
    house = House(tmp_path)
    house.exchange.symbols, house.exchange.listed = MARKET[8:], MARKET
    house.advance(120)
    house.binance.bodies[INDEX] = house.exchange.premium_index()
    house.advance(300)
    verdict, problem = health(house)
    assert verdict == "degraded"
    assert "8 of 80 symbols are stale" in (problem or "")
    assert "rows of the snapshot are" in (problem or "")
    assert house.read()["connection_status"]["symbols_halted"] == 0


def test_status_is_sent_when_it_changes_only(house: House) -> None:
    """Not every second for years."""
    house.advance(600)
    assert len(house.statuses) < 20
    assert all(one != following for one, following in zip(house.statuses, house.statuses[1:], strict=False))


def test_what_the_exchange_says_is_no_order_to_systemd(house: House) -> None:
    """A close reason may hold line ends; a line of its own in a notification would be a command."""
    house.lines.answer = refuses("closed by the exchange with code 1008 (bye\nWATCHDOG=trigger\r\nREADY=0)")
    house.binance.fails = lambda path: lost("no connection")
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
    house.lines.answer = opens_and_stays_silent
    house.binance.fails = lambda path: RestError(NO_ANSWER_IN_TIME)
    house.lose_all()
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


def test_symbols_that_left_the_market_are_pruned(house: House) -> None:
    """A day after their last news, without a restart."""
    gone = rate("LUNAUSDT", received_s=house.now_s - 86_400 + 100, event_time_ms=EVENT_MS - 86_300_000)
    house.daemon._book.restore([gone])
    house.advance(90)
    assert "LUNAUSDT" in {known.symbol for known in house.daemon._book.rates()}
    house.advance(80)
    assert {known.symbol for known in house.daemon._book.rates()} == {"BTCUSDT", "ETHUSDT"}


def test_time_watched_is_counted_to_the_second(house: House) -> None:
    """The report's 24 h are those that the daemon has seen."""
    started_s = house.now_s
    house.advance(2 * HOUR_S)
    quarters = house.write()["history"]
    assert sum(quarter["observed"] for quarter in quarters) == pytest.approx(house.now_s - started_s, abs=0.01)


@pytest.mark.parametrize("set_by_s", [0, 57 * 365 * 86_400.0, -86_400.0])
def test_the_time_since_the_start_is_that_of_the_boot_clock(house: House, set_by_s: float) -> None:
    """A host without a clock of its own starts in 1970, and is set right while the daemon runs."""
    started_s = house.now_s
    house.advance(600)
    house.time.set_wall_by(set_by_s)
    house.advance(600)
    state = house.write()
    ran_s = state["updated_at"] - state["connection_status"]["daemon_start_time"]
    assert ran_s == pytest.approx(house.now_s - started_s, abs=0.01)


@pytest.mark.parametrize("pause_s", [22, 600, 86_400])
def test_a_host_that_was_paused_has_no_stuck_thread(
    house: House, caplog: pytest.LogCaptureFixture, pause_s: float
) -> None:
    """SIGSTOP or suspend: threads go on where they were, each with its whole time; then the watch is as before."""
    house.advance(60)
    house.time.advance(pause_s)
    house.frozen = {"stream", "rest", "publisher"}  # the main thread happens to be the first that runs again
    assert fed(house, 5) >= 4
    assert not lines_of(caplog, "stuck")
    house.frozen = {"publisher"}
    house.advance(60)
    assert len(lines_of(caplog, "stuck")) == 1


def test_a_pause_of_the_host_was_not_watched(house: House) -> None:
    """Like time in which the daemon did not run."""
    house.advance(60)
    house.time.advance(1800)
    house.advance(60)
    assert sum(quarter["observed"] for quarter in house.write()["history"]) == pytest.approx(120, abs=2)


def _die() -> None:
    raise RuntimeError("a bug")


def test_exit_status_tells_a_signal_from_a_dead_thread(house: House) -> None:
    """0 and 70: systemd restarts after the one, and an operator searches after the other."""
    house.advance(10)
    assert house.daemon._end() == 0
    assert house.told[-1] == "STOPPING=1"
    house.threads.guard("rest", _die)
    assert house.daemon._end() == 70


def test_a_bug_in_the_main_thread_is_logged_like_any_other(house: House, caplog: pytest.LogCaptureFixture) -> None:
    """It ends the program with the same status, and the other threads in order."""
    caplog.set_level(logging.INFO)

    def buggy() -> int:
        raise RuntimeError("a bug")

    house.daemon._freshness.observe = buggy  # type: ignore[method-assign, assignment]
    house.until(house.now_s + 10)
    assert house.daemon.run() == 70
    assert 'thread died thread=main next="the program ends"' in caplog.messages
    assert 'stopping cause="a thread died"' in caplog.messages
    assert house.told[-1] == "STOPPING=1"


def test_a_connection_that_hangs_at_the_end_is_broken(house: House) -> None:
    """First everybody may end by themselves; who does not is broken, and does not keep the program."""
    house.advance(10)
    hanging = house.lines.open[0]
    hanging.ends_when_told = False
    house.threads.unfinished = [["stream-1"]]
    assert house.daemon._end() == 0
    assert hanging.aborts == 1


def test_a_request_under_way_at_the_end_is_aborted(house: House) -> None:
    """A REST answer that takes its time does not keep the program."""
    house.advance(10)
    house.daemon._end()
    assert house.binance.aborted == 1


def test_the_last_state_is_written_at_the_end(house: House) -> None:
    """What was counted since the last writing is not lost."""
    house.advance(10)
    house.daemon._stream.lost += 5
    house.daemon._end()
    assert house.read()["connection_status"]["disconnects"] == 5


def test_a_file_that_cannot_be_written_at_first_is_taken_over_once(tmp_path: Path) -> None:
    """The daemon tries again, as it does under systemd: it meets neither its own lock nor counts anything twice."""
    earlier = House(tmp_path)
    earlier.advance(600)
    watched_s = sum(quarter["observed"] for quarter in earlier.write()["history"])
    house = House(tmp_path)
    house.time.advance(600)
    in_the_way = tmp_path / "state.json.tmp"
    in_the_way.mkdir()
    for _ in range(2):
        with pytest.raises(IsADirectoryError):
            house.daemon._take_file()
    in_the_way.rmdir()
    house.daemon._take_file()
    assert sum(quarter["observed"] for quarter in house.read()["history"]) == pytest.approx(watched_s, abs=1)
    with pytest.raises(AlreadyRunning):
        StateFile(str(tmp_path / "state.json")).lock()
