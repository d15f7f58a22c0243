"""When the poller asks REST for what, and what it makes of the answers, in simulated time."""

import json
import logging
import threading
from collections.abc import Callable
from itertools import pairwise

import pytest

from binance_funding.daemon.record import REST
from binance_funding.daemon.source.faults import NO_ANSWER_IN_TIME
from binance_funding.daemon.source.rest_client import Aborted, RestError
from tests.support.samples import index_row
from tests.support.simulated_rest import INDEX, INFO, TIME, RestWorld, http_error, lost, refused

HOUR_S = 3600.0


def intervals_s(times_s: list[float]) -> list[float]:
    """Return the times between requests."""
    return [later - earlier for earlier, later in pairwise(times_s)]


def only_for(path: str, error: RestError) -> Callable[[str], RestError | None]:
    """Let requests for one path fail."""
    return lambda asked: error if asked == path else None


def test_while_the_stream_is_well_a_snapshot_comes_every_minute() -> None:
    """The first one at once; each is compared and counted for the report."""
    world = RestWorld()
    world.advance(HOUR_S)
    times_s = world.binance.times_s()
    assert times_s[0] == pytest.approx(world.exchange.now_s - HOUR_S, abs=1)
    assert len(times_s) == 60
    assert intervals_s(times_s) == pytest.approx([60] * 59, abs=0.1)
    quarters = world.last_day.to_json(world.exchange.time.wall_s)["history"]
    assert sum(quarter["runs"] for quarter in quarters) == world.poller.polls == 60
    compared = world.comparison.state["totals"]["compared"]
    assert sum(quarter["compared"] for quarter in quarters) == compared == 120
    assert not world.stream_state.fallback_active


def test_told_to_wait_nothing_is_asked() -> None:
    """Neither snapshots nor anything else, in fallback or not; and the file says until when."""
    world = RestWorld()
    world.advance(5)
    world.binance.fails = refused(418, wait_s=5000)
    world.advance(60)
    refused_s, asked = world.binance.times_s()[-1], len(world.binance.asked)
    ends_s = world.exchange.time.wall_s + refused_s + 5000.2 - world.exchange.now_s
    assert world.poller.status()["paused_until"] == pytest.approx(ends_s, abs=0.1)
    world.stream_is_well = False
    world.advance(refused_s + 5000 - world.exchange.now_s)
    assert len(world.binance.asked) == asked
    world.binance.fails = lambda path: None
    world.advance(5)
    assert len(world.binance.asked) > asked
    assert world.poller.status()["paused_until"] is None


def test_refused_at_the_start_nothing_else_is_asked_for_either() -> None:
    """The ban was told by the answer before."""
    world = RestWorld()
    world.binance.fails = refused(418, wait_s=600.0)
    world.advance(590)
    assert world.binance.asked == [(world.binance.times_s()[0], INDEX)]


@pytest.mark.parametrize("path", [INFO, TIME])
def test_a_refusal_of_anything_holds_for_the_snapshots(path: str) -> None:
    """Binance counts by IP, not by path."""
    world = RestWorld()
    world.binance.fails = only_for(path, http_error(429, 500.0))
    world.advance(490)
    assert len(world.binance.times_s()) == 1


def test_a_pause_outlives_the_daemon() -> None:
    """The next one asks when the ban is over, and not at its start."""
    world = RestWorld()
    world.poller.restore(600)
    world.advance(590)
    assert world.binance.asked == []
    world.advance(20)
    assert world.binance.times_s()[0] == pytest.approx(world.exchange.now_s - 10, abs=1.5)


@pytest.mark.parametrize("status", [403, 451])
def test_refusals_without_a_time_are_answered_by_doubling_waits(status: int) -> None:
    """10, 20, 40 ... seconds at most 300: asking a firewall on and on makes it no friendlier."""
    world = RestWorld()
    world.stream_is_well = False
    world.advance(200)
    world.binance.fails = refused(status)
    first = len(world.binance.times_s())
    world.advance(2000)
    waits_s = intervals_s(world.binance.times_s()[first:])
    assert waits_s[:7] == pytest.approx([10, 20, 40, 80, 160, 300, 300], abs=1.5)
    world.binance.fails = lambda path: None
    world.advance(400)
    world.binance.fails = refused(status)
    first = len(world.binance.times_s())
    world.advance(40)
    assert intervals_s(world.binance.times_s()[first:])[0] == pytest.approx(10, abs=1.5)


def test_trouble_of_binances_own_is_met_by_asking_as_usual() -> None:
    """A 500 asks for no patience: data may be back with the next request."""
    world = RestWorld()
    world.stream_is_well = False
    world.advance(200)
    world.binance.fails = refused(500)
    first = len(world.binance.times_s())
    world.advance(100)
    assert max(intervals_s(world.binance.times_s()[first:])) < 10


def test_failures_are_counted_by_kind_and_the_last_one_is_named() -> None:
    """The usual kinds are there from the start, so that a rate over them is right from the first one on."""
    world = RestWorld()
    usual = ("403", "418", "429", "451", "connection", "malformed", "old", "timeout")
    assert world.poller.status()["errors_by_status"] == dict.fromkeys(usual, 0)
    for error in (RestError(NO_ANSWER_IN_TIME), http_error(500)):
        world.binance.fails = only_for(INDEX, error)
        world.advance(60)
    world.binance.fails = lambda path: None
    world.binance.bodies[INDEX] = b"<html>"
    world.advance(60)
    status = world.poller.status()
    assert (status["polls"], status["errors"], status["last_success_time"]) == (3, 3, None)
    counted = {name: count for name, count in status["errors_by_status"].items() if count}
    assert counted == {"timeout": 1, "500": 1, "malformed": 1}
    assert "JSON" in status["last_error"]
    assert status["trouble"] == status["last_error"]


@pytest.mark.parametrize("body", [b"[]", b"{}", b'[{"symbol":"BTCUSDT_261225","nextFundingTime":0}]', b"<html>"])
def test_a_snapshot_without_a_usable_row_is_a_failure(body: bytes) -> None:
    """It is no news that there is no market: nothing of it is taken over, and the next success is named as recovery."""
    world = RestWorld()
    world.advance(30)
    world.binance.bodies[INDEX] = body
    world.advance(60)
    assert world.poller.status()["errors_by_status"]["malformed"] == 1
    assert world.poller.trouble
    assert world.book.listed == frozenset({"BTCUSDT", "ETHUSDT"})
    del world.binance.bodies[INDEX]
    world.advance(60)
    assert world.poller.trouble is None


def test_a_snapshot_from_the_future_is_a_failure() -> None:
    """Event times an hour ahead of Binance's time have not happened; the book keeps what it has."""
    world = RestWorld()
    world.advance(30)
    rows = [index_row(symbol, time=world.exchange.now_ms(-HOUR_S)) for symbol in world.exchange.listed]
    world.binance.bodies[INDEX] = json.dumps(rows).encode()
    world.advance(60)
    assert world.poller.status()["errors_by_status"]["malformed"] == 1
    assert "ahead of Binance's time" in (world.poller.trouble or "")
    assert all(rate.event_time_ms <= world.exchange.now_ms() for rate in world.book.rates())


def test_bad_rows_are_counted_and_the_good_ones_merged() -> None:
    """As on the stream."""
    world = RestWorld()
    world.stream_is_well = False
    rows = [index_row("BTCUSDT"), index_row("ETHUSDT", markPrice="NaN"), index_row("SOLUSDT", markPrice="-1"), 5]
    world.binance.bodies[INDEX] = json.dumps(rows).encode()
    world.advance(5)
    assert world.feed.rejected_rows == 3
    assert [(known.symbol, known.source) for known in world.book.rates()] == [("BTCUSDT", REST)]


def test_an_hour_without_rest_costs_few_lines(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever the way it fails, one trouble is one line and then a few; its end is logged with how long it lasted."""
    caplog.set_level(logging.INFO)
    world = RestWorld()
    world.advance(60)
    ways = [lost(), RestError(NO_ANSWER_IN_TIME), http_error(500)]
    world.binance.fails = lambda path: ways[len(world.binance.asked) % 3]
    world.stream_is_well = False
    world.advance(HOUR_S)
    world.binance.fails = lambda path: None
    world.stream_is_well = True
    world.advance(60)
    assert 3 <= len(caplog.records) < 20
    assert "REST recovered after_s=" in caplog.text


def test_progress_stands_still_while_a_request_hangs() -> None:
    """By it the watchdog tells a slow REST side from a stuck one."""
    world = RestWorld()
    started_s = world.exchange.now_s
    seen_s: list[float] = []

    def hang(_path: str) -> float:
        seen_s.append(world.poller.progress_s)
        return 9.0

    world.binance.takes_s = hang
    world.advance(1)
    assert seen_s[0] == started_s
    assert world.exchange.now_s - world.poller.progress_s >= 9


def test_the_thread_ends_when_it_is_told_and_closes_its_connection() -> None:
    """Asked to stop in the middle of a wait, it does not sit that out."""
    world = RestWorld()
    stop = threading.Event()
    thread = threading.Thread(target=world.poller.run, args=(stop,))
    thread.start()
    stop.set()
    thread.join(10)
    assert not thread.is_alive()
    assert world.binance.closed


def test_the_request_under_way_is_broken_off_at_the_end() -> None:
    """The client can do it from another thread; the poller passes it on."""
    world = RestWorld()
    world.poller.abort()
    assert world.binance.aborted == 1


def test_a_request_that_was_broken_off_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    """The thread ends with it: neither counted nor logged as trouble of REST."""
    world = RestWorld()

    def broken_off(_path: str) -> float:
        raise Aborted

    world.binance.takes_s = broken_off
    world.poller.run(threading.Event())
    assert world.binance.closed
    assert not caplog.records
    assert world.poller.status()["errors"] == 0
