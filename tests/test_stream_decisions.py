"""What the stream pool decides, in simulated time: the test writes the fate of each connection."""

import heapq
import json
import logging
import random
import socket
import threading
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import websocket

from binance_funding import connection as connection_module
from binance_funding import events
from binance_funding import feed as feed_module
from binance_funding import stream as stream_module
from binance_funding.book import Book
from binance_funding.clock import Clock, Moment
from binance_funding.connection import Connection, Ending
from binance_funding.feed import Feed
from binance_funding.history import History
from binance_funding.rates import Decoded, decode_stream
from binance_funding.settings import load
from binance_funding.stream import StreamPool
from tests.exchange import Exchange, Market
from tests.fakes import EVENT_MS, FakeClock, stream_row
from tests.programs import eventually
from tests.test_stream import running

FIRST, SECOND = "ws://one.example/market", "ws://two.example/market"
SAME_HOST = "ws://one.example/retired"
TICK_S = 3.0
HOUR_S = 3600.0
AGE_S = 2300.0
"""A fraction of the usual age: what holds for the parts of an hour holds for those of a day."""


class Line(Connection):
    """A connection without a socket: what it brings, and how it ends, is told by its world."""

    def __init__(self, world: "World", *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.world = world
        self.told_to_close_s: float | None = None
        self.aborts = 0
        self.ends_when_told = True
        self.brings_data = False

    def brings(self) -> None:
        """Bring mark prices from now on, every 3 s until the end."""
        self.brings_data = True
        self._tick()

    def _tick(self) -> None:
        if self.ending is not None or not self.brings_data:
            return
        self.opened_s = self.opened_s or self.world.now_s
        self.fresh_s = self.world.now_s
        if self.proven_s is None:
            self.proven_s = self.fresh_s
            self._on_change()
        self.world.in_(TICK_S, self._tick)

    def ends(self, cause: str = "connection reset by peer", **facts: Any) -> None:
        """End as it would by itself."""
        self.ending = self.ending or Ending(cause, **facts)
        self._on_change()

    def close(self) -> None:
        """Note that it was told; say goodbye unless it hangs."""
        self.told_to_close_s = self.world.now_s
        if self.ends_when_told:
            self.ends("closed by us")

    def abort(self) -> None:
        """Note that it was broken; end unless it hangs."""
        self.aborts += 1
        if self.ends_when_told:
            self.ends("closed by us")


class World:
    """A stream pool in simulated time; `answer` is what the exchange does with every new connection."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        urls: str = FIRST,
        uniform: Callable[[float, float], float] = lambda _low, high: high,
        **settings: Any,
    ) -> None:
        given = {"BINANCE_WS_URLS": urls, **{name: str(value) for name, value in settings.items()}}
        self.settings = load(given, env_file="/nonexistent")
        self.time = FakeClock()
        self.history = History()
        self.lines: list[Line] = []
        self.answer: Callable[[Line], None] = Line.brings
        self.rounds = 0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._told = 0
        monkeypatch.setattr(stream_module, "Connection", self._open)
        book = Book(self.time.clock, self.history, silence_s=15, stale_s=180, trouble=lambda: "")
        repeats = events.Repeats(logging.getLogger("binance_funding"), self.time.clock.steady_s)
        self.pool = StreamPool(
            self.settings,
            Feed(book, self.time.clock, repeats),
            self.history,
            clock=self.time.clock,
            spawn=self._spawn,
            repeats=repeats,
            uniform=uniform,
        )

    @property
    def now_s(self) -> float:
        """The simulated steady time."""
        return self.time.steady_s

    @property
    def open(self) -> list[Line]:
        """The connections that have not ended, oldest first."""
        return [line for line in self.lines if line.ending is None]

    def in_(self, seconds: float, action: Callable[[], None]) -> None:
        """Let something happen in so many seconds."""
        self._told += 1
        heapq.heappush(self._events, (self.now_s + seconds, self._told, action))

    def advance(self, seconds: float) -> None:
        """Let the pool live for so long: look after its connections, wait as it says or until it is woken."""
        until_s = self.now_s + seconds
        while self.now_s < until_s:
            self.rounds += 1
            self.pool._wake.clear()
            self.pool.step()
            self._wait(min(self.now_s + self.pool._time_to_next_step_s(), until_s))

    def _wait(self, until_s: float) -> None:
        while not self.pool._wake.is_set() and self._events and self._events[0][0] <= until_s:
            at_s, _, action = heapq.heappop(self._events)
            self.time.advance(max(0.0, at_s - self.now_s))
            action()
        if not self.pool._wake.is_set():
            self.time.advance(until_s - self.now_s)

    def _open(self, *args: Any, **kwargs: Any) -> Line:
        line = Line(self, *args, **kwargs)
        self.lines.append(line)
        return line

    def _spawn(self, name: str, target: Callable[[], None]) -> threading.Thread:
        # What a thread would do after its start, a moment later.
        line = self.lines[-1]
        self.in_(0.01, lambda: None if line.ending else self.answer(line))
        return threading.Thread(target=target, name=name)


def refuses(cause: str = "handshake refused", **facts: Any) -> Callable[[Line], None]:
    """Let every new connection end at once."""
    return lambda line: line.ends(cause, **facts)


def opens_and_stays_silent(line: Line) -> None:
    """As a retired address does."""
    line.opened_s = line.world.now_s


def nobody_there(line: Line) -> None:
    """Nothing listens at the address."""
    line.ends("connection refused", nobody_there=True)


def by_url(**answers: Callable[[Line], None]) -> Callable[[Line], None]:
    """Let the address decide: `one`, `two` for the hosts."""
    return lambda line: answers[line.url.split("//")[1].split(".")[0]](line)


# How often


@pytest.mark.parametrize("connections", [1, 2, 8])
def test_after_a_quiet_day_attempts_are_still_rationed(monkeypatch: pytest.MonkeyPatch, connections: int) -> None:
    """What was not used while all was well does not add up: never more than one per second in the long run."""
    world = World(monkeypatch, STREAM_CONNECTIONS=connections, RECONNECT_MIN_SECONDS=0.01, RECONNECT_MAX_SECONDS=0.01)
    world.advance(HOUR_S)
    world.answer = refuses()
    before = len(world.lines)
    for line in world.open:
        line.ends()
    for minutes in range(1, 11):
        world.advance(60)
        assert len(world.lines) - before <= 8 + 60 * minutes / 1.25 + 1


def test_supervision_is_calm_and_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """While all is well it looks around about once a second; silence and retries are met within a tenth of one."""
    world = World(monkeypatch)
    world.advance(HOUR_S)
    assert HOUR_S / 2 < world.rounds < 1.2 * HOUR_S
    silent = world.open[0]
    silent.brings_data = False
    assert silent.fresh_s is not None
    due_s = silent.fresh_s + 15 - world.now_s
    world.advance(due_s - 0.1)
    assert silent.ending is None
    world.advance(0.2)
    assert silent.ending is not None
    ended_s = world.now_s
    world.advance(2)
    assert world.lines[-1].started_s - ended_s <= 0.5 + 0.1


# How long


def waits_s(world: World, count: int) -> list[float]:
    """Return the waits before the next so many attempts of the only connection."""
    first = len(world.lines) - 1
    while len(world.lines) - 1 < first + count:
        world.advance(0.5)
    return [later.started_s - earlier.started_s for earlier, later in pairwise(world.lines[first:])]


def test_waits_double_up_to_the_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    """0.5, 1, 2 ... 60 s while an address refuses, as the settings say."""
    world = World(monkeypatch, STREAM_CONNECTIONS=1)
    world.answer = refuses()
    world.advance(0.1)
    assert waits_s(world, 9) == pytest.approx([0.5, 1, 2, 4, 8, 16, 32, 60, 60], abs=0.2)


def test_waits_are_scattered_between_half_and_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not all hosts that lost Binance at the same moment come back at the same moment."""
    asked: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        asked.append((low, high))
        return low

    world = World(monkeypatch, uniform=uniform, STREAM_CONNECTIONS=1)
    world.answer = refuses()
    world.advance(0.1)
    assert waits_s(world, 3) == pytest.approx([0.25, 0.5, 1], abs=0.2)
    assert {(0.25, 0.5), (0.5, 1.0), (1.0, 2.0)} <= set(asked)
    assert all(low == high / 2 for low, high in asked)


@pytest.mark.parametrize(
    ("lived_s", "least_s", "most_s"),
    [
        pytest.param(30, 25, 60.2, id="not proven"),
        pytest.param(90, 0.4, 0.7, id="proven"),
    ],
)
def test_only_a_minute_of_data_proves_a_connection(
    monkeypatch: pytest.MonkeyPatch, lived_s: float, least_s: float, most_s: float
) -> None:
    """After many refusals the next wait is short only where the connection in between has proved itself."""
    world = World(monkeypatch, STREAM_CONNECTIONS=1)
    world.answer = lambda line: line.brings() if len(world.lines) > 9 else line.ends("handshake refused")
    while len(world.lines) < 10:
        world.advance(0.5)
    world.advance(lived_s)
    world.open[0].ends()
    lost_s = world.now_s
    world.advance(65)
    assert least_s < world.lines[-1].started_s - lost_s < most_s


def test_a_living_connection_proves_nothing_for_its_successors(monkeypatch: pytest.MonkeyPatch) -> None:
    """The old one has brought data for hours; refused successors are tried at growing intervals all the same."""
    world = World(monkeypatch, STREAM_CONNECTIONS=1, CONNECTION_MAX_AGE_SECONDS=600)
    world.advance(590)
    world.answer = refuses()
    world.advance(HOUR_S)
    assert len(world.lines) <= 1 + 7 + HOUR_S / 60
    assert world.lines[0].ending is None


@pytest.mark.parametrize(("least_s", "wait_s"), [(0.5, 1.0), (5.0, 5.0)])
def test_where_nobody_is_there_the_wait_stays_short(
    monkeypatch: pytest.MonkeyPatch, least_s: float, wait_s: float
) -> None:
    """Asking burdens nobody; but the user's own least wait holds."""
    world = World(monkeypatch, STREAM_CONNECTIONS=1, RECONNECT_MIN_SECONDS=least_s)
    world.answer = nobody_there
    world.advance(60)
    # The allowance that all connections share makes it one in 1.25 s at least.
    assert max(waits_s(world, 3)) == pytest.approx(max(wait_s, 1.25), abs=0.4)


@pytest.mark.parametrize("seed", range(8))
def test_all_lost_for_an_hour_data_comes_within_2_s_of_the_return(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Whatever the moment at which the exchange is back: no backoff has grown in the meantime."""
    rng = random.Random(seed)
    world = World(monkeypatch, f"{FIRST},{SAME_HOST}", uniform=rng.uniform)
    world.advance(60)
    world.answer = nobody_there
    for line in world.open:
        line.ends()
    world.advance(HOUR_S + rng.uniform(0, 60))
    world.answer = Line.brings
    world.advance(2)
    assert len(world.pool.live()) >= 1
    assert world.pool.live()[0].url == FIRST


def test_told_to_wait_all_connections_wait(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """One handshake was refused with 300 s: the other connection, lost meanwhile, does not ask earlier either."""
    world = World(monkeypatch)
    world.advance(120)
    world.answer = refuses("banned", wait_s=300.0)
    first, second = world.open
    first.ends()
    world.advance(2)
    assert "retry_in_s=300 " in caplog.text
    refused_s, count = world.now_s, len(world.lines)
    second.ends()
    world.advance(290)
    assert len(world.lines) == count
    world.answer = Line.brings
    world.advance(20)
    assert world.lines[count].started_s - refused_s > 297
    assert len(world.pool.live()) == 2


def test_losses_are_told_one_by_one_until_they_are_one_trouble(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The first two and their ends each; then at growing intervals, until a minute of data ends the trouble.

    Attempts that failed before a connection are no losses, and hide nothing of it.
    """
    caplog.set_level(logging.INFO)
    world = World(monkeypatch, STREAM_CONNECTIONS=1)
    world.answer = refuses()
    world.advance(20)
    world.answer = Line.brings
    world.advance(60)
    told = [record.getMessage().split(" conn")[0] for record in caplog.records]
    assert told == [
        'connect failed cause="handshake refused"',
        "connected",
        next(line for line in told if line.startswith("stream recovered")),
    ]
    world.advance(60)
    caplog.clear()
    for _ in range(6):
        world.open[-1].ends()
        world.advance(40)
    world.advance(60)
    told = [record.getMessage().split(" conn")[0] for record in caplog.records]
    loss = 'cause="connection reset by peer"'
    assert told[:5] == [f"lost {loss}", "connected"] * 2 + [f"lost again {loss}"]
    assert len(told) == 6
    assert told[-1].startswith("stream steady after_s=")


def test_of_two_refusals_the_longer_wait_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both handshakes were under way when the first was refused for 300 s: the second's 5 s do not end that."""
    world = World(monkeypatch)
    waits_s = iter([300.0, 5.0])
    world.answer = lambda line: line.ends("too many requests", wait_s=next(waits_s))
    world.advance(290)
    assert len(world.lines) == 2


# Where


def test_an_address_that_brought_data_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """That a connection was lost says nothing against its address."""
    world = World(monkeypatch, f"{FIRST},{SECOND}", STREAM_CONNECTIONS=1)
    world.advance(60)
    for _ in range(3):
        world.open[0].ends()
        world.advance(30)
    assert {line.url for line in world.lines} == {FIRST}


def test_a_silent_address_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """The retired address opens and stays silent; the next one gets its turn after SILENCE_SECONDS."""
    world = World(monkeypatch, f"{FIRST},{SECOND}")
    world.answer = by_url(one=opens_and_stays_silent, two=Line.brings)
    world.advance(15 + 2)
    assert {connection.url for connection in world.pool.live()} == {SECOND}
    assert world.pool.lost == 0


def test_where_nobody_is_there_another_host_is_tried_not_another_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The retired path on the same host would open and hold the connection for SILENCE_SECONDS on its return."""
    world = World(monkeypatch, f"{FIRST},{SAME_HOST},{SECOND}", STREAM_CONNECTIONS=1)
    world.answer = by_url(one=nobody_there, two=nobody_there)
    world.advance(30)
    assert {line.url for line in world.lines} == {FIRST, SECOND}


def test_only_one_connection_at_a_time_looks_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """While one waits at a silent address, the others stay where data last came from, and notice its return."""
    world = World(monkeypatch, f"{FIRST},{SECOND}")
    world.advance(120)
    world.answer = by_url(one=refuses("HTTP 503"), two=opens_and_stays_silent)
    for line in world.open:
        line.ends()
    for _ in range(600):
        world.advance(0.5)
        assert sum(line.url == SECOND for line in world.open) <= 1
    assert any(line.url == SECOND for line in world.lines)


def test_a_planned_replacement_goes_back_to_the_first_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user named it first: where it is back, it is used again."""
    world = World(monkeypatch, f"{FIRST},{SECOND}", STREAM_CONNECTIONS=1, CONNECTION_MAX_AGE_SECONDS=AGE_S)
    world.answer = by_url(one=opens_and_stays_silent, two=Line.brings)
    world.advance(AGE_S / 2)
    assert world.pool.live()[0].url == SECOND
    world.answer = Line.brings
    world.advance(AGE_S)
    assert world.pool.live()[0].url == FIRST
    assert (world.pool.lost, world.pool.replaced) == (0, 1)


def test_a_first_address_that_stays_silent_costs_no_replacement(monkeypatch: pytest.MonkeyPatch) -> None:
    """The successor that tried it is given up, and the next one opens where data comes from, well before the cut."""
    world = World(monkeypatch, f"{FIRST},{SECOND}", CONNECTION_MAX_AGE_SECONDS=AGE_S)
    world.answer = by_url(one=opens_and_stays_silent, two=Line.brings)
    for _ in range(10):
        world.advance(AGE_S / 2)
        assert len(world.pool.live()) == 2
        assert all(world.now_s - line.started_s < AGE_S * 24 / 23 for line in world.open)
    assert world.pool.lost == 0
    assert world.pool.replaced >= 8


# Replacing


@pytest.mark.parametrize("connections", [1, 2, 3, 8])
def test_replacements_are_spread_over_the_age(monkeypatch: pytest.MonkeyPatch, connections: int) -> None:
    """No connection grows older than it should, and no two are replaced close to each other."""
    world = World(monkeypatch, STREAM_CONNECTIONS=connections, CONNECTION_MAX_AGE_SECONDS=AGE_S)
    world.advance(5 * AGE_S)
    replaced_s = sorted(line.told_to_close_s for line in world.lines if line.told_to_close_s is not None)
    assert len(replaced_s) == world.pool.replaced >= 4 * connections
    assert all(later - earlier >= AGE_S / (2 * connections) - 10 for earlier, later in pairwise(replaced_s))
    assert max((line.told_to_close_s or world.now_s) - line.started_s for line in world.lines) < AGE_S + 10
    assert world.pool.lost == 0


def test_one_successor_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """While one successor is waited for, no other is opened: the exchange sees one connection more, not two."""
    world = World(monkeypatch, CONNECTION_MAX_AGE_SECONDS=20)
    world.advance(5)
    world.answer = opens_and_stays_silent
    for _ in range(600):
        world.advance(0.5)
        assert len(world.open) <= 3
    assert len(world.lines) > 6
    assert world.pool.lost == 0


def test_a_loss_amid_a_replacement_that_fails_is_mended_like_any_other(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The old connection goes while its successor is silent: the next one is live at once, and for a whole age."""
    caplog.set_level(logging.INFO)
    world = World(monkeypatch, STREAM_CONNECTIONS=1, CONNECTION_MAX_AGE_SECONDS=AGE_S)
    world.advance(AGE_S - 5)
    world.answer = opens_and_stays_silent
    world.advance(10)
    old, successor = world.open
    old.ends()
    world.advance(6)
    world.answer = lambda line: world.in_(3, line.brings)
    world.advance(20)
    assert successor.ending is not None
    assert len(world.pool.live()) == 1
    assert caplog.messages[-1].startswith("stream recovered") or caplog.messages[-1].startswith("connected")
    world.advance(AGE_S - 100)
    assert (len(world.lines), world.pool.replaced) == (3, 0)


def test_a_lost_connection_starts_a_new_age(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Its successor is told as connected and lives for its whole time."""
    caplog.set_level(logging.INFO)
    world = World(monkeypatch, STREAM_CONNECTIONS=1, CONNECTION_MAX_AGE_SECONDS=AGE_S)
    world.advance(0.9 * AGE_S)
    world.open[0].ends()
    world.advance(10)
    assert caplog.text.count("connected conn=1") == 2
    world.advance(0.9 * AGE_S)
    assert world.pool.replaced == 0
    world.advance(0.2 * AGE_S)
    assert world.pool.replaced == 1


# Seeing off


def test_a_silent_connection_that_hangs_is_broken_until_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """One attempt to break it may come too early: before its socket was there."""
    world = World(monkeypatch, STREAM_CONNECTIONS=1)
    world.answer = lambda line: setattr(line, "ends_when_told", False)
    world.advance(15.5)
    hanging = world.lines[0]
    world.advance(5)
    assert hanging.aborts > 3
    assert len(world.lines) > 1  # it keeps nobody waiting
    hanging.ends()
    world.advance(1)
    aborts = hanging.aborts
    world.advance(10)
    assert hanging.aborts == aborts


def test_at_the_end_the_leaving_are_broken_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever hangs in its goodbye does not keep the program."""
    world = World(monkeypatch, STREAM_CONNECTIONS=1, CONNECTION_MAX_AGE_SECONDS=100)
    world.advance(50)
    old = world.open[0]
    old.ends_when_told = False
    while old.told_to_close_s is None:
        world.advance(0.1)
    assert old.aborts == 0
    world.pool.abort()
    assert old.aborts == 1


def test_nobody_is_broken_before_it_could_say_goodbye(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replaced connection has a second for its close frame."""
    world = World(monkeypatch, STREAM_CONNECTIONS=1, CONNECTION_MAX_AGE_SECONDS=100)
    world.advance(50)
    old = world.open[0]
    old.ends_when_told = False
    while not old.aborts:
        world.advance(0.1)
    assert old.told_to_close_s is not None
    assert world.now_s - old.told_to_close_s == pytest.approx(1, abs=0.3)


# Telling


def test_status_tells_what_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every field through start, loss, silence and return."""
    world = World(monkeypatch, f"{FIRST},{SECOND}")
    world.answer = by_url(one=Line.brings, two=opens_and_stays_silent)
    nothing = world.pool.status()
    assert (nothing["connected"], nothing["connections"], nothing["connections_wanted"]) == (False, 0, 2)
    assert (nothing["url"], nothing["last_connected_time"], nothing["last_error"]) == (None, None, None)

    world.advance(10)
    well = world.pool.status()
    assert (well["connected"], well["connections"], well["url"]) == (True, 2, FIRST)
    assert well["last_connected_time"] == pytest.approx(world.time.wall_s - 10, abs=0.5)
    assert (well["reconnect_attempts"], well["disconnects"], well["last_error"]) == (0, 0, None)

    world.answer = refuses("HTTP 503")
    world.open[0].ends("connection reset by peer")
    assert world.pool.status()["connections"] == 1
    world.open[0].brings_data = False
    world.advance(14)
    assert world.pool.status()["connected"] is True
    world.advance(3)
    down = world.pool.status()
    assert (down["connected"], down["connections"], down["url"]) == (False, 0, None)
    assert (down["disconnects"], down["planned_disconnects"]) == (2, 0)
    assert down["reconnect_attempts"] == len(world.lines) - 2 > 0
    assert down["last_connected_time"] == well["last_connected_time"]


def test_status_is_true_even_where_nobody_looks_after_the_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has been silent for too long is not called live, though the supervising thread has not noticed yet."""
    world = World(monkeypatch)
    world.advance(10)
    assert world.pool.status()["connections"] == 2
    world.time.advance(16)
    assert world.pool.status()["connected"] is False


def test_every_loss_and_replacement_is_counted_for_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unplanned and planned ones apart; attempts that never brought data are neither."""
    world = World(monkeypatch, STREAM_CONNECTIONS=1, CONNECTION_MAX_AGE_SECONDS=600)
    world.answer = refuses()
    world.advance(30)
    world.answer = Line.brings
    world.advance(700)
    world.open[0].ends()
    world.advance(120)
    _, buckets = world.history.to_json(world.time.wall_s)
    assert sum(bucket["unplanned"] for bucket in buckets) == world.pool.lost == 1
    assert sum(bucket["planned"] for bucket in buckets) == world.pool.replaced == 1


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        pytest.param(opens_and_stays_silent, "no new mark prices for 15 s", id="black hole"),
        pytest.param(lambda line: None, "no handshake within 15 s", id="hanging handshake"),
    ],
)
def test_silence_is_told_by_how_far_the_connection_came(
    monkeypatch: pytest.MonkeyPatch, answer: Callable[[Line], None], cause: str
) -> None:
    """An operator looks for a firewall in the one case, at the address in the other."""
    world = World(monkeypatch)
    world.answer = answer
    world.advance(16)
    assert world.pool.last_error == cause


def test_connecting_may_take_as_long_as_silence_but_no_more_than_10_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread in connect() cannot be broken from outside: its own limit must free it."""
    for silence_s, limit_s in ((15, 10), (4, 4)):
        world = World(monkeypatch, SILENCE_SECONDS=silence_s)
        world.advance(1)
        assert world.lines[0]._connect_timeout_s == limit_s


# Feeding


def test_the_same_message_at_the_same_moment_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two connections bring every message within a millisecond: the second waits for the first, then knows it."""
    time = FakeClock()
    book = Book(time.clock, History(), silence_s=15, stale_s=180, trouble=lambda: "")
    feed = Feed(book, time.clock, events.Repeats(logging.getLogger("tests.feed"), time.clock.steady_s))
    payload = json.dumps({"stream": "x", "data": [stream_row()]}).encode()
    second = threading.Thread(target=lambda: taken.append(feed.take(payload)), name="second connection")
    decodings, taken = [], list[int]()
    twice = threading.Event()

    def decode(message: bytes, received: Moment) -> Decoded:
        decodings.append(message)
        if len(decodings) > 1:
            twice.set()
        else:
            second.start()
            twice.wait(0.3)  # as long as a second decoding may need to begin, if it is going to
        return decode_stream(message, received)

    monkeypatch.setattr(feed_module, "decode_stream", decode)
    taken.append(feed.take(payload))
    second.join(10)
    assert len(decodings) == 1
    assert taken == [EVENT_MS, EVENT_MS]
    assert feed.messages == 2


def test_the_limit_of_a_message_is_not_one_of_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """In an hour a connection brings more than the largest message may have; that is no reason to drop it."""
    monkeypatch.setattr(connection_module, "_LARGEST_MESSAGE_BYTES", 1 << 20)
    with Exchange(Market(usd_m=5, tradfi=3, coin_m=1, fundless=1), tick_s=0.2) as exchange:  # noqa: SIM117
        with running(exchange.ws_url, STREAM_CONNECTIONS=1) as stream:
            stream.wait_for_live(1)
            before = stream.feed.messages
            for _ in range(5):
                exchange.send_huge(500_000)
            eventually(lambda: stream.feed.messages >= before + 15, "those messages, and more after them")
            assert stream.counts() == (0, 0)
            assert stream.pool.attempts == 0


def test_a_replaced_connection_says_goodbye_without_waiting_for_its_next_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It looks up twice a second, while messages may be seconds apart or have ceased."""
    monkeypatch.setattr(stream_module, "_GOODBYE_S", 8.0)
    with Exchange(Market(usd_m=5, tradfi=3, coin_m=1, fundless=1), tick_s=3600) as exchange:  # noqa: SIM117
        with running(
            exchange.ws_url, STREAM_CONNECTIONS=1, CONNECTION_MAX_AGE_SECONDS=0.5, SILENCE_SECONDS=60
        ) as stream:
            old = exchange.wait_for_live(1)[0]
            exchange.tick()
            successor = exchange.wait_for_live(2)[1]
            exchange.tick()
            eventually(lambda: stream.pool.replaced == 1, "the planned replacement")
            exchange.silence(successor)
            exchange.wait(lambda: old.closed_at_s is not None, what="the old connection's end")
            assert old.close_code == 1000


def test_at_the_end_every_connection_says_goodbye() -> None:
    """Binance sees a close frame with code 1000, not a connection that breaks."""
    with Exchange(Market(usd_m=5, tradfi=3, coin_m=1, fundless=1), tick_s=0.2) as exchange:
        with running(exchange.ws_url) as stream:
            stream.wait_for_live()
        exchange.wait(lambda: not exchange.live, what="the end of both connections")
        assert [record.close_code for record in exchange.connections] == [1000, 1000]


# One connection


def test_a_name_that_cannot_be_resolved_means_that_nobody_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking a name server every second burdens no exchange, and its return is noticed at once."""

    def unresolved(*_arguments: object) -> None:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", unresolved)
    connection = Connection(
        1, "ws://x.example/", take=lambda payload: 0, clock=Clock(), connect_timeout_s=1, on_change=lambda: None
    )
    connection.run()
    assert connection.ending is not None
    assert connection.ending.nobody_there
    assert "DNS" in connection.ending.cause


@pytest.mark.parametrize("reached", [False, True])
def test_only_where_no_connection_came_about_does_a_timeout_mean_that_nobody_is_there(
    monkeypatch: pytest.MonkeyPatch, reached: bool
) -> None:
    """Packets that are dropped burden no exchange; a handshake that hangs may be one that is overloaded."""

    def connect(self: Any, *_arguments: object, **_options: object) -> None:
        self.sock = socket.socket() if reached else None
        raise websocket.WebSocketTimeoutException("timed out")

    monkeypatch.setattr(websocket.WebSocket, "connect", connect)
    connection = Connection(
        1, "ws://x.example/", take=lambda payload: 0, clock=Clock(), connect_timeout_s=1, on_change=lambda: None
    )
    connection.run()
    assert connection.ending == Ending("no answer in time while connecting", nobody_there=not reached)


def test_a_connection_is_proven_by_its_first_mark_prices_and_fresh_by_its_last() -> None:
    """A minute after the first ones it has proved itself: that moment must not move with every message."""
    with Exchange(Market(usd_m=5, tradfi=3, coin_m=1, fundless=1), tick_s=0.1) as exchange:  # noqa: SIM117
        with running(exchange.ws_url, STREAM_CONNECTIONS=1) as stream:
            stream.wait_for_live(1)
            connection = stream.pool.live()[0]
            proven_s = connection.proven_s
            assert proven_s is not None
            eventually(lambda: (connection.fresh_s or 0) > proven_s + 0.5, "fresher mark prices")
            assert connection.proven_s == proven_s


class Peer:
    """Something that listens at the address, answers every request with the same bytes, and hangs up."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, name="peer")

    @property
    def url(self) -> str:
        """Its address."""
        return f"ws://127.0.0.1:{self._listener.getsockname()[1]}/"

    def _serve(self) -> None:
        with self._listener, self._listener.accept()[0] as sock:
            sock.recv(4096)
            sock.sendall(self._answer)

    def __enter__(self) -> "Peer":
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._thread.join(10)


def run_against(answer: bytes) -> Ending:
    """Let one connection meet the peer; return how it ended."""
    with Peer(answer) as peer:
        connection = Connection(
            1, peer.url, take=lambda payload: 0, clock=Clock(), connect_timeout_s=10, on_change=lambda: None
        )
        connection.run()
    assert connection.ending is not None
    return connection.ending


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"SSH-2.0-OpenSSH_9.6\r\n\r\n", id="another protocol"),
        pytest.param(b"HTTP/1.1\r\n\r\n", id="no status"),
        pytest.param(b"HTTP/1.1 OK\r\n\r\n", id="no number"),
        pytest.param(b"HTTP/1.1 200 OK\r\nwithout colon\r\n\r\n", id="no header"),
        pytest.param(b"HTTP/1.1 503 Busy\r\nContent-Length: many\r\n\r\n", id="no length"),
        pytest.param(b"HTTP/1.1 101 \xff\r\nUpgrade: \xff\r\n\r\n", id="no text"),
        pytest.param(b"HTTP/1.1 101 Switching\r\n\r\n", id="no upgrade"),
        pytest.param(b"\x15\x03\x01\x00\x02\x02\x46", id="a TLS alert"),
        pytest.param(b"\r\n", id="an empty line"),
        pytest.param(b"\nHTTP/1.1 302 Found\r\nLocation: /\r\n\r\n", id="an empty line first"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_whatever_answers_the_handshake_is_told_and_survived(answer: bytes) -> None:
    """The library trusts the status line and headers; its stumbling must not end the daemon."""
    ending = run_against(answer)
    assert ending.cause
    assert not ending.nobody_there
    assert not ending.silent


def test_breaking_a_connection_leaves_the_session_of_tls_to_its_reader() -> None:
    """A TLS socket's own shutdown takes the session away under the thread that is reading from it."""

    class TlsSocket(socket.socket):
        def shutdown(self, how: int) -> None:
            raise AssertionError("the session is gone")

    ours, theirs = socket.socketpair()
    with theirs, TlsSocket(fileno=ours.detach()) as sock:
        connection = Connection(
            1, "wss://x.example/", take=lambda payload: 0, clock=Clock(), connect_timeout_s=1, on_change=lambda: None
        )
        connection._websocket.sock = sock
        connection.abort()
        theirs.settimeout(10)
        assert theirs.recv(1) == b""
        connection.abort()
