"""How the stream pool replaces connections, ends them, and what it says of them, in simulated time."""

import logging
import math
from collections.abc import Callable
from itertools import pairwise

import pytest

from tests.support.simulated_stream import Line, World, by_url, opens_and_stays_silent, refuses

FIRST, SECOND = "ws://one.example/market", "ws://two.example/market"
AGE_S = 2300.0
"""A fraction of the usual age: what holds for the parts of an hour holds for those of a day."""


@pytest.mark.parametrize("connections", [1, 2, 8])
def test_replacements_are_spread_over_the_age(connections: int) -> None:
    """No connection grows older than it should, and no two are replaced close to each other."""
    world = World(STREAM_CONNECTIONS=connections, CONNECTION_MAX_AGE_SECONDS=AGE_S)
    world.advance(2.5 * AGE_S)
    replaced_s = sorted(line.told_to_close_s for line in world.lines.all if line.told_to_close_s is not None)
    assert len(replaced_s) == world.pool.replaced >= 2 * connections
    assert all(later - earlier >= AGE_S / (2 * connections) - 10 for earlier, later in pairwise(replaced_s))
    assert max((line.told_to_close_s or world.now_s) - line.started_s for line in world.lines.all) < AGE_S + 10
    assert world.pool.lost == 0


def test_losses_do_not_put_off_the_replacement_of_the_other_connection() -> None:
    """The second connection is lost again and again: the first is replaced before its greatest age all the same."""
    world = World(CONNECTION_MAX_AGE_SECONDS=AGE_S)
    for _ in range(9):
        world.advance(AGE_S / 8)
        if len(world.lines.open) > 1:
            world.lines.open[1].ends()
    assert world.pool.replaced == 1
    assert (world.lines.all[0].told_to_close_s or math.inf) - world.lines.all[0].started_s < AGE_S + 10


def test_one_successor_at_a_time() -> None:
    """While one successor is waited for, no other is opened: the exchange sees one connection more, not two."""
    world = World(CONNECTION_MAX_AGE_SECONDS=20)
    world.advance(5)
    world.lines.answer = opens_and_stays_silent
    for _ in range(600):
        world.advance(0.5)
        assert len(world.lines.open) <= 3
    assert len(world.lines.all) > 6
    assert world.pool.lost == 0


def test_a_loss_amid_a_replacement_that_fails_is_mended_like_any_other(caplog: pytest.LogCaptureFixture) -> None:
    """The old connection goes while its successor is silent: the next one is live at once, and for a whole age."""
    caplog.set_level(logging.INFO)
    world = World(STREAM_CONNECTIONS=1, CONNECTION_MAX_AGE_SECONDS=AGE_S)
    world.advance(AGE_S - 5)
    world.lines.answer = opens_and_stays_silent
    world.advance(10)
    old, successor = world.lines.open
    old.ends()
    world.advance(6)
    world.lines.answer = lambda line: world.exchange.in_(3, line.brings)
    world.advance(20)
    assert successor.ending is not None
    assert len(world.pool.live()) == 1
    assert caplog.messages[-1].startswith("stream recovered") or caplog.messages[-1].startswith("connected")
    world.advance(AGE_S - 100)
    assert (len(world.lines.all), world.pool.replaced) == (3, 0)


def test_a_lost_connection_starts_a_new_age(caplog: pytest.LogCaptureFixture) -> None:
    """Its successor is told as connected and lives for its whole time."""
    caplog.set_level(logging.INFO)
    world = World(STREAM_CONNECTIONS=1, CONNECTION_MAX_AGE_SECONDS=AGE_S)
    world.advance(0.9 * AGE_S)
    world.lines.open[0].ends()
    world.advance(10)
    assert caplog.text.count("connected conn=1") == 2
    world.advance(0.9 * AGE_S)
    assert world.pool.replaced == 0
    world.advance(0.2 * AGE_S)
    assert world.pool.replaced == 1


def test_a_silent_connection_that_hangs_is_broken_until_it_ends() -> None:
    """One attempt to break it may come too early: before its socket was there."""
    world = World(STREAM_CONNECTIONS=1)
    world.lines.answer = lambda line: setattr(line, "ends_when_told", False)
    world.advance(15.5)
    hanging = world.lines.all[0]
    world.advance(5)
    assert hanging.aborts > 3
    assert len(world.lines.all) > 1  # it keeps nobody waiting
    hanging.ends()
    world.advance(1)
    aborts = hanging.aborts
    world.advance(10)
    assert hanging.aborts == aborts


def test_at_the_end_the_leaving_are_broken_too() -> None:
    """Whoever hangs in its goodbye does not keep the program."""
    world = World(STREAM_CONNECTIONS=1, CONNECTION_MAX_AGE_SECONDS=100)
    world.advance(50)
    old = world.lines.open[0]
    old.ends_when_told = False
    while old.told_to_close_s is None:
        world.advance(0.1)
    assert old.aborts == 0
    world.pool.abort()
    assert old.aborts == 1


def test_nobody_is_broken_before_it_could_say_goodbye() -> None:
    """A replaced connection has a second for its close frame."""
    world = World(STREAM_CONNECTIONS=1, CONNECTION_MAX_AGE_SECONDS=100)
    world.advance(50)
    old = world.lines.open[0]
    old.ends_when_told = False
    while not old.aborts:
        world.advance(0.1)
    assert old.told_to_close_s is not None
    assert world.now_s - old.told_to_close_s == pytest.approx(1, abs=0.3)


def test_status_tells_what_is() -> None:
    """Every field through start, loss, silence and return."""
    world = World(FIRST, SECOND)
    world.lines.answer = by_url(one=Line.brings, two=opens_and_stays_silent)
    nothing = world.pool.status()
    assert (nothing["connected"], nothing["connections"], nothing["connections_wanted"]) == (False, 0, 2)
    assert (nothing["url"], nothing["last_connected_time"], nothing["last_error"]) == (None, None, None)

    world.advance(10)
    well = world.pool.status()
    assert (well["connected"], well["connections"], well["url"]) == (True, 2, FIRST)
    assert well["last_connected_time"] == pytest.approx(world.exchange.time.wall_s - 10, abs=0.5)
    assert (well["reconnect_attempts"], well["disconnects"], well["last_error"]) == (0, 0, None)

    world.lines.answer = refuses("HTTP 503")
    world.lines.open[0].ends("connection reset by peer")
    assert world.pool.status()["connections"] == 1
    world.lines.open[0].brings_data = False
    world.advance(14)
    assert world.pool.status()["connected"] is True
    world.advance(3)
    down = world.pool.status()
    assert (down["connected"], down["connections"], down["url"]) == (False, 0, None)
    assert (down["disconnects"], down["planned_disconnects"]) == (2, 0)
    assert down["reconnect_attempts"] == len(world.lines.all) - 2 > 0
    assert down["last_connected_time"] == well["last_connected_time"]


def test_status_is_true_even_where_nobody_looks_after_the_connections() -> None:
    """What has been silent for too long is not called live, though the supervising thread has not noticed yet."""
    world = World()
    world.advance(10)
    assert world.pool.status()["connections"] == 2
    world.exchange.time.advance(16)
    assert world.pool.status()["connected"] is False


def test_every_loss_and_replacement_is_counted_for_the_report() -> None:
    """Unplanned and planned ones apart; attempts that never brought data are neither."""
    world = World(STREAM_CONNECTIONS=1, CONNECTION_MAX_AGE_SECONDS=600)
    world.lines.answer = refuses()
    world.advance(30)
    world.lines.answer = Line.brings
    world.advance(700)
    world.lines.open[0].ends()
    world.advance(120)
    buckets = world.last_day.to_json(world.exchange.time.wall_s)["history"]
    assert sum(bucket["unplanned"] for bucket in buckets) == world.pool.lost == 1
    assert sum(bucket["planned"] for bucket in buckets) == world.pool.replaced == 1


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        pytest.param(opens_and_stays_silent, "no new mark prices for 15 s", id="black hole"),
        pytest.param(lambda line: None, "no handshake within 15 s", id="hanging handshake"),
    ],
)
def test_silence_is_told_by_how_far_the_connection_came(answer: Callable[[Line], None], cause: str) -> None:
    """An operator looks for a firewall in the one case, at the address in the other."""
    world = World()
    world.lines.answer = answer
    world.advance(16)
    assert world.pool.last_error == cause
