"""What a subscriber is sent: followed through everything that can happen to the file and to the programs."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from tests.support.api_over_file import STALE_S, ApiOverFile
from tests.support.clock import WALL_S
from tests.support.follower import Follower
from tests.support.memory import grown_bytes
from tests.support.samples import record, state, status

SYMBOLS = ("BTCUSDT", "ETHUSDT", "币安人生USDT", "aBcUSDT", "SOLUSDT")
SOME = st.sets(st.sampled_from(SYMBOLS), min_size=1)
SUBSCRIPTIONS = (None, ("BTCUSDT",), ("SOLUSDT", "ABCUSDT", "NOUSDT"), ("币安人生USDT", "ETHUSDT"))


class Subscriber:
    """One connection, and what came over it."""

    def __init__(self, server: ApiOverFile, symbols: tuple[str, ...] | None) -> None:
        self.symbols = symbols
        self.connect(server)

    def connect(self, server: ApiOverFile) -> None:
        """Connect, or connect again: the snapshot begins anew."""
        response = server.get("/funding/stream", "" if self.symbols is None else f"symbols={','.join(self.symbols)}")
        assert response.status == 200
        assert response.events is not None
        self._server, self._events = server, response.events
        self.follower = Follower()
        self.look()

    def look(self) -> bytes:
        """Receive what there is; return it."""
        self._server.api.version()
        received = b"".join(next(self._events))
        self.follower.receive(received)
        return received

    def asks_for(self, symbol: str) -> bool:
        """Tell whether a symbol is among those subscribed."""
        return self.symbols is None or symbol.translate({ord("a"): "A", ord("c"): "C"}) in self.symbols


@pytest.fixture
def server(tmp_path: Path) -> ApiOverFile:
    """An API over two records."""
    api = ApiOverFile(tmp_path)
    api.put(state({"BTCUSDT": record(), "ETHUSDT": record()}))
    return api


class Following(RuleBasedStateMachine):
    """Records change, symbols come and leave, time passes, programs restart; some subscribers read seldom."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.server = ApiOverFile(self.folder)
        self.records: dict[str, dict[str, Any]] = {}
        self.subscribers = [Subscriber(self.server, symbols) for symbols in SUBSCRIPTIONS]

    def teardown(self) -> None:
        """Everybody who reads to the end holds what the list holds."""
        for subscriber in self.subscribers:
            self.check(subscriber)
        shutil.rmtree(self.folder)

    def check(self, subscriber: Subscriber) -> None:
        """Let one subscriber read, and compare what it holds with /funding and /funding/health."""
        subscriber.look()
        response = self.server.get("/funding")
        data = json.loads(response.body).get("data", {})
        held = {symbol: one for symbol, one in data.items() if subscriber.asks_for(symbol)}
        assert subscriber.follower.data == held
        health = json.loads(self.server.get("/funding/health").body)
        assert subscriber.follower.status["status"] == health["status"]
        assert (subscriber.follower.status["error"] is None) == (health["error"] is None)
        assert subscriber.look() == b""

    def write(self) -> None:
        """Put the file there as the daemon would."""
        wall_s, steady_s = self.server.time.wall_s, self.server.time.steady_s
        self.server.put(state(self.records, updated_at=wall_s, boottime=steady_s))

    @rule(symbols=SOME, rate=st.sampled_from([0.0001, -0.0002, 0.5]))
    def change(self, symbols: set[str], rate: float) -> None:
        """New data for some symbols, which may be new."""
        for symbol in symbols:
            self.records[symbol] = record(fundingRate=rate, updatedAt=self.server.time.wall_s)
        self.write()

    @rule(symbols=SOME)
    def leave(self, symbols: set[str]) -> None:
        """Some symbols leave the market."""
        for symbol in symbols & self.records.keys():
            del self.records[symbol]
        self.write()

    @rule()
    def heartbeat(self) -> None:
        """The file is written again, with nothing new."""
        self.write()

    @rule(seconds=st.sampled_from([0.2, 4.0, 30.0, STALE_S]))
    def wait(self, seconds: float) -> None:
        """Time passes, and data may become stale."""
        self.server.time.advance(seconds)

    @rule()
    def lose_the_file(self) -> None:
        """It is deleted."""
        self.server.path.unlink(missing_ok=True)

    @rule(number=st.integers(0, len(SUBSCRIPTIONS) - 1))
    def read(self, number: int) -> None:
        """One of them reads."""
        self.check(self.subscribers[number])

    @rule()
    def restart(self) -> None:
        """A server after this one; everybody connects again."""
        server = ApiOverFile(self.folder)
        server.time.wall_s, server.time.steady_s = self.server.time.wall_s, self.server.time.steady_s
        self.server = server
        for subscriber in self.subscribers:
            subscriber.connect(server)


TestFollowing = Following.TestCase
TestFollowing.settings = settings(max_examples=60, stateful_step_count=30)


def test_the_beginning_tells_everything(server: ApiOverFile) -> None:
    """When to come back, all records, how the service is, and of which file that is."""
    subscriber = Subscriber(server, None)
    follower = subscriber.follower
    assert (follower.retry_ms, follower.events) == (2000, ["snapshot", "status"])
    assert follower.data == server.json("/funding")["data"]
    assert follower.status == server.health("healthy")
    assert float(follower.last_event_id) == state()["updated_at"]


def test_an_update_holds_what_changed_and_no_more(server: ApiOverFile) -> None:
    """A symbol that did not change is not sent again."""
    subscriber = Subscriber(server, None)
    server.put(state({"BTCUSDT": record(), "ETHUSDT": record(fundingRate=0.5)}, updated_at=WALL_S + 1))
    received = subscriber.look()
    assert b"ETHUSDT" in received
    assert b"BTCUSDT" not in received
    assert subscriber.follower.last_event_id == str(WALL_S + 1)


def test_nothing_is_sent_where_nothing_changed(server: ApiOverFile) -> None:
    """A heartbeat of the daemon is no news, nor is a change of another symbol than those asked for."""
    subscriber = Subscriber(server, ("BTCUSDT",))
    server.put(state({"BTCUSDT": record(), "ETHUSDT": record(fundingRate=0.5)}, updated_at=WALL_S + 1))
    assert subscriber.look() == b""


def market(rate: float, prefix: str = "SIM") -> dict[str, dict[str, Any]]:
    """Return 300 records, 70 KB as they are sent."""
    return {f"{prefix}{number:03}USDT": record(fundingRate=rate) for number in range(300)}


def events_of(server: ApiOverFile, query: str) -> Iterator[list[bytes]]:
    """Subscribe; return what the HTTP server asks for events."""
    events = server.get("/funding/stream", query).events
    assert events is not None
    return events


@pytest.mark.parametrize("has_names", [True, False])
def test_what_many_subscribers_do_not_read_is_kept_once(server: ApiOverFile, *, has_names: bool) -> None:
    """Forty of them, each with other symbols or all with all, hold the same bytes: copies would take 3 MB."""

    def subscribe() -> object:
        unread = []
        for left_out in range(40):
            names = [name for name in market(0) if name != f"SIM{left_out:03}USDT"]
            events = events_of(server, f"symbols={','.join(names)}" if has_names else "")
            unread.append((events, next(events)))
        return unread

    server.put(state(market(0.0001)))
    server.get("/funding")
    assert grown_bytes(subscribe) < 1_000_000


def test_subscribers_that_came_and_went_leave_nothing_behind(server: ApiOverFile) -> None:
    """Two hundred of them, one after the other, each with other symbols."""

    def subscribe() -> None:
        for left_out in range(200):
            names = [name for name in market(0) if name != f"SIM{left_out:03}USDT"]
            next(events_of(server, f"symbols={','.join(names)}"))

    server.put(state(market(0.0001)))
    next(events_of(server, ""))
    assert grown_bytes(subscribe) < 500_000


def test_names_that_nobody_knows_cost_a_subscriber_what_they_take_in_its_query(server: ApiOverFile) -> None:
    """Each of twenty subscribers invents 3,000 names in 16 KB. The snapshot names them, and is sent and forgotten."""
    names = ",".join(f"{number:04}" for number in range(3000))

    def subscribe() -> object:
        subscribers = [events_of(server, f"symbols={names}") for _ in range(20)]
        for events in subscribers:
            assert sum(map(len, next(events))) < 24_000
            assert next(events) == []
        return subscribers

    assert grown_bytes(subscribe) < 20 * 24_000


def test_symbols_that_have_left_are_forgotten(server: ApiOverFile) -> None:
    """Forty markets of other names, one after the other: a reader drops each, and memory stays where it was."""
    subscriber = Subscriber(server, None)

    def change(numbers: range) -> None:
        for number in numbers:
            server.put(state(market(0.0001, f"M{number:02}X"), updated_at=WALL_S + number))
            subscriber.look()
            assert len(subscriber.follower.data) == 300

    change(range(3))
    assert grown_bytes(lambda: change(range(3, 40))) < 1_500_000


def test_a_symbol_that_left_and_came_back_between_two_reads_is_there(server: ApiOverFile) -> None:
    """A slow reader holds it with its new record, and no longer holds a symbol that left for good."""
    subscriber = Subscriber(server, ("BTCUSDT", "ETHUSDT", "SOLUSDT"))
    for number, records in enumerate(({}, {"BTCUSDT": record(fundingRate=0.5), "SOLUSDT": record()}), start=1):
        server.put(state(records, updated_at=WALL_S + number))
        server.get("/funding")
    subscriber.look()
    assert {name: one["fundingRate"] for name, one in subscriber.follower.data.items()} == {
        "BTCUSDT": 0.5,
        "SOLUSDT": 0.0001,
    }


def test_a_comment_comes_every_15_seconds(server: ApiOverFile) -> None:
    """News or not: a client can tell silence from a dead connection."""
    subscriber = Subscriber(server, ("NOUSDT",))
    for _ in range(60):
        server.time.advance(1)
        server.put(state(updated_at=server.time.wall_s, boottime=server.time.steady_s))
        subscriber.look()
    assert subscriber.follower.comments == 4


def test_a_status_comes_when_it_changes_and_not_while_it_lasts(server: ApiOverFile) -> None:
    """The seconds and counts in it grow without an event of their own."""
    subscriber = Subscriber(server, None)
    seen = []
    for _ in range(250):
        server.time.advance(1)
        subscriber.look()
        seen.append(subscriber.follower.events.count("status"))
    assert seen[-1] <= 3
    assert subscriber.follower.status["status"] == "unhealthy"
    server.put(
        state(
            {"BTCUSDT": record(updatedAt=server.time.wall_s)},
            updated_at=server.time.wall_s,
            boottime=server.time.steady_s,
        )
    )
    subscriber.look()
    assert subscriber.follower.status["status"] == "healthy"


def test_a_status_comes_when_another_number_in_it_says_that_something_else_is_wrong(server: ApiOverFile) -> None:
    """HTTP 403 is not HTTP 451, nor is one connection of three two of them."""
    subscriber = Subscriber(server, None)
    for number, code, live in ((1, 403, 0), (2, 451, 0), (3, 451, 1), (4, 451, 2)):
        trouble = status(connections=live, connections_wanted=3, last_error=f"refused (HTTP {code})")
        server.put(state(connection_status=trouble, updated_at=WALL_S + number))
        subscriber.look()
        assert subscriber.follower.status["error"] == server.health("degraded")["error"]


def test_a_symbol_may_be_asked_for_before_it_is_listed(server: ApiOverFile) -> None:
    """In any case and percent-encoded; it is in an update when it comes."""
    response = server.get("/funding/stream", "symbols=%E5%B8%81%E5%AE%89%E4%BA%BA%E7%94%9Fusdt,btcUSDT")
    assert response.events is not None
    follower = Follower()
    follower.receive(b"".join(next(response.events)))
    assert list(follower.data) == ["BTCUSDT"]
    server.put(state({"BTCUSDT": record(), "币安人生USDT": record()}))
    server.api.version()
    follower.receive(b"".join(next(response.events)))
    assert set(follower.data) == {"BTCUSDT", "币安人生USDT"}


def snapshot_of(server: ApiOverFile, query: str) -> dict[str, Any]:
    """Return the content of the first event of a subscription."""
    first = b"".join(next(events_of(server, query)))
    snapshot: dict[str, Any] = json.loads(first.partition(b"data: ")[2].partition(b"\n")[0])
    return snapshot


def test_a_snapshot_lists_the_names_that_are_not_known(server: ApiOverFile) -> None:
    """In upper case, in the order asked. Who asks for everything names nothing."""
    server.api.version()
    snapshot = snapshot_of(server, "symbols=sol-usdt,btcusdt,BTC")
    assert (snapshot["unknown"], snapshot["count"], list(snapshot["data"])) == (["SOL-USDT", "BTC"], 1, ["BTCUSDT"])
    assert snapshot_of(server, "symbols=BTCUSDT")["unknown"] == []
    assert "unknown" not in snapshot_of(server, "")


def test_only_a_snapshot_lists_unknown_names(server: ApiOverFile) -> None:
    """A name that becomes known arrives in an update."""
    subscriber = Subscriber(server, ("BTCUSDT", "SOLUSDT"))
    server.put(state({"BTCUSDT": record(), "SOLUSDT": record()}, updated_at=WALL_S + 1))
    assert b'"unknown"' not in subscriber.look()
    assert set(subscriber.follower.data) == {"BTCUSDT", "SOLUSDT"}


def test_before_the_first_data_no_name_is_unknown(tmp_path: Path) -> None:
    """A subscriber that comes first would drop its whole universe."""
    server = ApiOverFile(tmp_path)
    server.put(state({}))
    server.api.version()
    assert snapshot_of(server, "symbols=BTCUSDT")["unknown"] == []


def test_without_a_file_there_is_an_empty_snapshot(tmp_path: Path) -> None:
    """And the reason; what comes later is sent when it comes."""
    server = ApiOverFile(tmp_path)
    subscriber = Subscriber(server, None)
    assert (subscriber.follower.data, subscriber.follower.status["status"]) == ({}, "unhealthy")
    assert str(server.path) in subscriber.follower.status["error"]
    server.put(state())
    subscriber.look()
    assert list(subscriber.follower.data) == ["BTCUSDT"]
    assert subscriber.follower.status["status"] == "healthy"


def test_an_outage_told_is_told_when_it_is_over(server: ApiOverFile) -> None:
    """Degraded and back."""
    subscriber = Subscriber(server, None)
    server.put(state(connection_status=status(connections=1)))
    subscriber.look()
    assert subscriber.follower.status["status"] == "degraded"
    server.put(state(updated_at=WALL_S + 1))
    subscriber.look()
    assert subscriber.follower.status["status"] == "healthy"


def test_the_headers_say_what_it_is(server: ApiOverFile) -> None:
    """To browsers, caches and nginx."""
    headers = dict(server.get("/funding/stream").headers)
    assert headers["Content-Type"].startswith("text/event-stream")
    assert (headers["Cache-Control"], headers["X-Accel-Buffering"]) == ("no-store", "no")
