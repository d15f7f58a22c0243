"""How often, how soon and where the stream pool connects, in simulated time: the test writes each connection's fate."""

import logging
import random
from collections.abc import Callable
from itertools import pairwise
from typing import cast

import pytest

from binance_funding.daemon.source.libraries import Lookup
from tests.support.simulated_stream import Line, World, by_url, opens_and_stays_silent, refuses, unreachable

FIRST, SECOND = "ws://one.example/market", "ws://two.example/market"
SAME_HOST = "ws://one.example/retired"
HOUR_S = 3600.0
AGE_S = 2300.0
"""A fraction of the usual age: what holds for the parts of an hour holds for those of a day."""


@pytest.mark.parametrize("connections", [1, 2, 8])
def test_after_a_quiet_day_attempts_are_still_rationed(connections: int) -> None:
    """What was not used while all was well does not add up: never more than one per second in the long run."""
    world = World(STREAM_CONNECTIONS=connections, RECONNECT_MIN_SECONDS=0.01, RECONNECT_MAX_SECONDS=0.01)
    world.advance(HOUR_S)
    world.lines.answer = refuses()
    before = len(world.lines.all)
    for line in world.lines.open:
        line.ends()
    for minutes in range(1, 11):
        world.advance(60)
        assert len(world.lines.all) - before <= 8 + 60 * minutes / 1.25 + 1


def test_supervision_is_calm_and_prompt() -> None:
    """While all is well it looks around four times a second. Silence and the time of a retry are noticed that soon."""
    world = World()
    world.advance(HOUR_S)
    assert HOUR_S < world.rounds < 4.2 * HOUR_S
    silent = world.lines.open[0]
    silent.brings_data = False
    assert silent.last_advance_s is not None
    due_s = silent.last_advance_s + 15 - world.now_s
    world.advance(due_s - 0.1)
    assert silent.ending is None
    world.advance(0.7)
    assert silent.ending is not None
    ended_s = world.now_s
    world.advance(2)
    assert world.lines.all[-1].started_s - ended_s <= 0.5 + 0.1


def one_live_the_other(answer: Callable[[Line], None]) -> World:
    """Return a world whose first connection is live, while all others get this answer."""
    world = World()
    world.lines.answer = lambda line: line.brings() if line is world.lines.all[0] else answer(line)
    world.advance(0.1)
    return world


def waits_s(world: World, count: int) -> list[float]:
    """Return the waits before the next so many attempts, where only one connection makes any."""
    first = len(world.lines.all) - 1
    while len(world.lines.all) - 1 < first + count:
        world.advance(0.5)
    return [later.started_s - earlier.started_s for earlier, later in pairwise(world.lines.all[first:])]


def test_waits_double_up_to_the_longest() -> None:
    """0.5, 1, 2 ... 60 s while another connection is live, as the settings say."""
    world = one_live_the_other(refuses())
    assert waits_s(world, 9) == pytest.approx([0.5, 1, 2, 4, 8, 16, 32, 60, 60], abs=0.6)


@pytest.mark.parametrize(
    ("answer", "least_s"),
    [(refuses("handshake refused"), 0.0), (lambda line: line.brings(20.0), 0.0), (opens_and_stays_silent, 15.0)],
    ids=["refused", "lagging", "silent"],
)
def test_while_none_is_live_no_wait_is_longer_than_8_s(answer: Callable[[Line], None], least_s: float) -> None:
    """With handshake and first message that makes the 12 s within which data are back on the stream."""
    world = World(STREAM_CONNECTIONS=1)
    world.lines.answer = answer
    world.advance(0.1)
    waits = waits_s(world, 12)
    assert max(waits) <= least_s + 8 + 0.6
    assert min(waits[5:]) >= least_s  # nor is Binance hammered


def test_a_longer_wait_planned_while_another_was_live_ends_with_that_one() -> None:
    """The second connection had backed off to a minute; the first is lost: neither waits longer than 8 s."""
    world = one_live_the_other(refuses())
    waits_s(world, 8)
    world.lines.answer = refuses()
    world.lines.all[0].ends()
    lost_s = world.now_s
    world.advance(9)
    assert {line.number for line in world.lines.all if line.started_s >= lost_s} == {1, 2}


def test_a_longer_wait_ends_when_the_other_connection_brings_nothing_current_any_more() -> None:
    """Not only when it is dropped, 7 s later."""
    world = one_live_the_other(refuses())
    waits_s(world, 8)
    world.lines.answer = Line.brings
    world.lines.all[0].brings_data = False
    world.advance(3 + 8 + 1)
    assert world.lines.all[0].ending is None
    assert len(world.pool.live()) == 2


def test_waits_are_scattered_between_half_and_all() -> None:
    """Not all hosts that lost Binance at the same moment come back at the same moment."""
    asked: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        asked.append((low, high))
        return low

    world = World(uniform=uniform, STREAM_CONNECTIONS=1)
    world.lines.answer = refuses()
    world.advance(0.1)
    assert waits_s(world, 3) == pytest.approx([0.25, 0.5, 1], abs=0.3)
    assert all(low == high / 2 for low, high in asked)


@pytest.mark.parametrize(
    ("lived_s", "least_s", "most_s"),
    [
        pytest.param(30, 25, 60.6, id="not proven"),
        pytest.param(90, 0.4, 1.1, id="proven"),
    ],
)
def test_only_a_minute_of_data_proves_a_connection(lived_s: float, least_s: float, most_s: float) -> None:
    """After many refusals the next wait is short only where the connection in between has proved itself."""
    refuse = refuses()
    world = one_live_the_other(lambda line: line.brings() if len(line.lines.all) > 10 else refuse(line))
    while len(world.lines.all) < 11:
        world.advance(0.5)
    world.advance(lived_s)
    world.lines.open[1].ends()
    lost_s = world.now_s
    world.advance(65)
    assert least_s < world.lines.all[-1].started_s - lost_s < most_s


def test_a_living_connection_proves_nothing_for_its_successors() -> None:
    """The old one has brought data for hours; refused successors are tried at growing intervals all the same."""
    world = World(STREAM_CONNECTIONS=1, CONNECTION_MAX_AGE_SECONDS=600)
    world.advance(590)
    world.lines.answer = refuses()
    world.advance(HOUR_S)
    assert len(world.lines.all) <= 1 + 7 + HOUR_S / 60
    assert world.lines.all[0].ending is None


@pytest.mark.parametrize(("least_s", "wait_s"), [(0.5, 1.0), (5.0, 5.0)])
def test_where_nobody_is_there_the_wait_stays_short(least_s: float, wait_s: float) -> None:
    """Asking burdens nobody; but the user's own least wait holds."""
    world = World(STREAM_CONNECTIONS=1, RECONNECT_MIN_SECONDS=least_s)
    world.lines.answer = unreachable
    world.advance(60)
    # The allowance that all connections share makes it one in 1.25 s at least.
    assert max(waits_s(world, 3)) == pytest.approx(max(wait_s, 1.25), abs=0.4)


@pytest.mark.parametrize("seed", range(8))
def test_all_lost_for_an_hour_data_comes_within_3_s_of_the_return(seed: int) -> None:
    """No backoff has grown in the meantime, and a retired address, which opens and stays silent, holds nothing up."""
    rng = random.Random(seed)
    world = World(FIRST, SAME_HOST, uniform=rng.uniform)
    world.advance(60)
    world.lines.answer = unreachable
    for line in world.lines.open:
        line.ends()
    world.advance(HOUR_S + rng.uniform(0, 60))
    world.lines.answer = lambda line: line.brings() if line.url == FIRST else opens_and_stays_silent(line)
    world.advance(3)
    assert len(world.pool.live()) >= 1
    assert world.pool.live()[0].url == FIRST


@pytest.mark.parametrize("back_after_s", [7, 93, 600, 601, 605, 611])
def test_after_an_outage_all_connections_follow_the_address_that_works(back_after_s: float) -> None:
    """The others neither finish their attempts at silent addresses nor wait for their backoff."""
    world = World(FIRST, SECOND, "ws://three.example/market")
    world.advance(120)
    world.lines.answer = opens_and_stays_silent
    for line in world.lines.open:
        line.ends()
    world.advance(back_after_s)
    world.lines.answer = by_url(one=opens_and_stays_silent, two=Line.brings, three=opens_and_stays_silent)
    while not world.pool.live():
        world.advance(0.5)
    world.advance(5)
    assert [connection.url for connection in world.pool.live()] == [SECOND, SECOND]


def test_attempts_that_hang_are_bounded() -> None:
    """While a name server hangs, each attempt is given up after its time and leaves a thread behind."""

    class Hanging:
        ended_s = None

    def hangs(line: Line) -> None:
        line.lookup, line.ends_when_told = cast("Lookup", Hanging()), False

    world = World()
    world.lines.answer = hangs
    world.advance(HOUR_S)
    assert len(world.lines.open) <= 10
    assert "name server" in (world.pool.last_error or "")
    for line in world.lines.all:
        line.ends_when_told = True
    world.lines.answer = Line.brings
    world.advance(10)
    assert len(world.pool.live()) == 2


def test_a_pause_outlives_the_daemon() -> None:
    """Told 300 s before a restart, no handshake is attempted before they are over, and the file says until when."""
    world = World()
    world.pool.restore(300.0)
    assert world.pool.status()["paused_until"] == pytest.approx(world.exchange.time.wall_s + 300)
    world.advance(299)
    assert world.lines.all == []
    world.advance(2)
    assert len(world.pool.live()) == 2
    assert world.pool.status()["paused_until"] is None


def test_told_to_wait_all_connections_wait(caplog: pytest.LogCaptureFixture) -> None:
    """One handshake was refused with 300 s: the other connection, lost meanwhile, does not ask earlier either."""
    world = World()
    world.advance(120)
    world.lines.answer = refuses("banned", wait_s=300.0)
    first, second = world.lines.open
    first.ends()
    world.advance(2)
    assert "retry_in_s=300 " in caplog.text
    refused_s, count = world.now_s, len(world.lines.all)
    second.ends()
    world.advance(290)
    assert len(world.lines.all) == count
    world.lines.answer = Line.brings
    world.advance(20)
    assert world.lines.all[count].started_s - refused_s > 297
    assert len(world.pool.live()) == 2


def told_of_connections(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the log lines that the pool has written, without the facts."""
    messages = [message for message in caplog.messages if not message.startswith("gap ended")]
    return [message.split(" conn")[0].split(" age_s")[0] for message in messages]


def test_losses_are_told_one_by_one_until_they_are_one_trouble(caplog: pytest.LogCaptureFixture) -> None:
    """The first four and their ends each; then at growing intervals, until a minute of data ends the problem.

    Attempts that failed before a connection are no losses, and hide nothing of it.
    """
    caplog.set_level(logging.INFO)
    world = World(STREAM_CONNECTIONS=1)
    world.lines.answer = refuses()
    world.advance(20)
    world.lines.answer = Line.brings
    world.advance(60)
    told = told_of_connections(caplog)
    assert told == [
        'connect failed cause="handshake refused"',
        "connected",
        next(line for line in told if line.startswith("stream recovered")),
    ]
    world.advance(60)
    caplog.clear()
    for _ in range(6):
        world.lines.open[-1].ends()
        world.advance(40)
    world.advance(60)
    told = told_of_connections(caplog)
    loss = 'cause="connection reset by peer"'
    assert told[:8] == [f"lost {loss}", "connected"] * 4
    assert len(told) == 9
    assert told[-1].startswith("stream steady after_s=")


def test_of_two_refusals_the_longer_wait_holds() -> None:
    """Both handshakes were under way when the first was refused for 300 s: the second's 5 s do not end that."""
    world = World()
    waits_s = iter([300.0, 5.0])
    world.lines.answer = lambda line: line.ends("too many requests", wait_s=next(waits_s))
    world.advance(290)
    assert len(world.lines.all) == 2


def test_an_address_that_brought_data_is_tried_again() -> None:
    """That a connection was lost says nothing against its address."""
    world = World(FIRST, SECOND, STREAM_CONNECTIONS=1)
    world.advance(60)
    for _ in range(3):
        world.lines.open[0].ends()
        world.advance(30)
    assert {line.url for line in world.lines.all} == {FIRST}


def test_a_silent_address_gives_way() -> None:
    """The retired address opens and stays silent; the next one gets its turn after SILENCE_SECONDS."""
    world = World(FIRST, SECOND)
    world.lines.answer = by_url(one=opens_and_stays_silent, two=Line.brings)
    world.advance(15 + 2)
    assert {connection.url for connection in world.pool.live()} == {SECOND}
    assert world.pool.lost == 0


def test_only_one_connection_at_a_time_looks_elsewhere() -> None:
    """While one waits at a silent address, the others stay where data last came from, and notice its return."""
    world = World(FIRST, SECOND)
    world.advance(120)
    world.lines.answer = by_url(one=refuses("HTTP 503"), two=opens_and_stays_silent)
    for line in world.lines.open:
        line.ends()
    for _ in range(600):
        world.advance(0.5)
        assert sum(line.url == SECOND for line in world.lines.open) <= 1
    assert any(line.url == SECOND for line in world.lines.all)


def test_each_address_gets_its_turn() -> None:
    """A refusing, a silent and another refusing address follow each other; none is left out."""
    third = "ws://three.example/market"
    world = World(FIRST, SECOND, third)
    world.advance(120)
    world.lines.answer = by_url(one=refuses("HTTP 503"), two=opens_and_stays_silent, three=refuses("HTTP 503"))
    before = len(world.lines.all)
    for line in world.lines.open:
        line.ends()
    world.advance(120)
    elsewhere = [line.url for line in world.lines.all[before:] if line.url != FIRST]
    assert len(elsewhere) >= 4
    assert all(earlier != later for earlier, later in pairwise(elsewhere))


def test_a_planned_replacement_goes_back_to_the_first_address() -> None:
    """The user named it first: where it is back, it is used again."""
    world = World(FIRST, SECOND, STREAM_CONNECTIONS=1, CONNECTION_MAX_AGE_SECONDS=AGE_S)
    world.lines.answer = by_url(one=opens_and_stays_silent, two=Line.brings)
    world.advance(AGE_S / 2)
    assert world.pool.live()[0].url == SECOND
    world.lines.answer = Line.brings
    world.advance(AGE_S)
    assert world.pool.live()[0].url == FIRST
    assert (world.pool.lost, world.pool.replaced) == (0, 1)


def test_a_first_address_that_stays_silent_costs_no_replacement() -> None:
    """The successor that tried it is given up, and the next one opens where data comes from, well before the cut."""
    world = World(FIRST, SECOND, CONNECTION_MAX_AGE_SECONDS=AGE_S)
    world.lines.answer = by_url(one=opens_and_stays_silent, two=Line.brings)
    for _ in range(10):
        world.advance(AGE_S / 2)
        assert len(world.pool.live()) == 2
        assert all(world.now_s - line.started_s < AGE_S * 24 / 23 for line in world.lines.open)
    assert world.pool.lost == 0
    assert world.pool.replaced >= 8
