"""REST: the client against the simulated exchange, and the poller's manners in simulated time."""

import gzip
import json
import logging
import threading
from collections.abc import Callable, Iterator
from itertools import cycle, pairwise
from typing import Any

import pytest

from binance_funding import events, rest
from binance_funding.book import Book
from binance_funding.clock import Clock
from binance_funding.comparison import Comparison
from binance_funding.history import History
from binance_funding.rates import REST
from binance_funding.refusals import LONGEST_BAN_S
from binance_funding.rest import RestClient, RestError, RestPoller
from binance_funding.settings import load
from tests.exchange import Exchange, Market
from tests.fakes import EVENT_MS, NEXT_FUNDING_MS, WALL_S, FakeClock, index_row, rate

INDEX, INFO = "/fapi/v1/premiumIndex", "/fapi/v1/fundingInfo"
HOUR_S = 3600.0


# The client, over real sockets


@pytest.fixture(scope="module")
def exchange() -> Iterator[Exchange]:
    """A small exchange; every test leaves its REST side as it should be."""
    with Exchange(Market(usd_m=5, tradfi=0, coin_m=0, fundless=0)) as exchange:
        yield exchange


@pytest.fixture
def client(exchange: Exchange) -> Iterator[RestClient]:
    """A client with a short timeout."""
    client = RestClient(exchange.rest_url, 0.5, Clock())
    yield client
    client.close()
    exchange.rest_ok()


def error_of(client: RestClient, path: str = INDEX) -> RestError:
    """Return the error that the request ends in."""
    with pytest.raises(RestError) as caught:
        client.get(path)
    return caught.value


def test_an_answer_is_its_body(exchange: Exchange, client: RestClient) -> None:
    """Compressed or not, and over one connection however often it is asked."""
    assert {row["symbol"] for row in json.loads(client.get(INDEX))} >= exchange.market.symbols
    assert isinstance(json.loads(client.get(INFO)), list)


@pytest.mark.parametrize(
    ("status", "headers", "body", "wait_s"),
    [
        pytest.param(429, {"Retry-After": "7"}, "", 7, id="seconds"),
        pytest.param(
            418,
            {"Retry-After": "Wed, 24 Nov 2027 00:01:30 GMT", "Date": "Wed, 24 Nov 2027 00:00:00 GMT"},
            "",
            90,
            id="date",
        ),
        pytest.param(
            418,
            {"Date": "Wed, 24 Nov 2027 00:00:00 GMT"},
            '{"code":-1003,"msg":"Way too many requests; IP banned until 1827014460000. Use the websocket."}',
            60,
            id="end of the ban in the body",
        ),
        pytest.param(418, {}, "", 120, id="ban without an end"),
        pytest.param(429, {"Date": "Wed, 24 Nov 2027 00:00:15 GMT"}, "", 45, id="end of the minute"),
        pytest.param(503, {"Retry-After": "30"}, "", 30, id="maintenance"),
        pytest.param(403, {}, "", 0, id="firewall"),
        pytest.param(500, {}, "", 0, id="server error"),
    ],
)
def test_a_refusal_tells_how_long_to_wait(
    exchange: Exchange, client: RestClient, status: int, headers: dict[str, str], body: str, wait_s: float
) -> None:
    """Wherever Binance says it, by Binance's clock where its answer carries one."""
    exchange.rest_fault(status, headers=headers, body=body)
    error = error_of(client)
    assert (error.status, error.wait_s) == (str(status), wait_s)
    assert f"HTTP {status}" in str(error)


@pytest.mark.parametrize(
    ("fail", "status", "words"),
    [
        pytest.param(lambda e: e.rest_hang(), "timeout", "no answer in time", id="hanging"),
        pytest.param(lambda e: e.rest_trickle(), "timeout", "not complete within 0.5 s", id="trickling"),
        pytest.param(lambda e: e.rest_cut(), "connection", "no connection", id="cut in the middle"),
        pytest.param(lambda e: e.rest_reset(), "connection", "connection reset", id="RST"),
        pytest.param(
            lambda e: e.rest_fault(200, body=b"junk", headers={"Content-Encoding": "gzip"}),
            "connection",
            "no connection",
            id="not what it says it is",
        ),
        pytest.param(
            lambda e: e.rest_fault(302, headers={"Location": e.rest_url + INFO}, body=""), "302", "HTTP 302", id="302"
        ),
    ],
)
def test_whatever_goes_wrong_is_one_error_in_words(
    exchange: Exchange, client: RestClient, fail: Callable[[Exchange], None], status: str, words: str
) -> None:
    """No error of a library, no traceback; and the next request is as good as any."""
    fail(exchange)
    error = error_of(client)
    assert error.status == status
    assert words in str(error)
    assert "\n" not in str(error)
    exchange.rest_ok()
    assert client.get(INDEX).startswith(b"[")


def test_an_answer_without_end_is_given_up(
    exchange: Exchange, client: RestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred times the size of today's market would take the memory of the host."""
    monkeypatch.setattr(rest, "_LARGEST_ANSWER_BYTES", 1 << 20)
    exchange.rest_fault(200, body=b"[" + b" " * (2 << 20) + b"]")
    error = error_of(client)
    assert (error.status, str(error)) == ("malformed", "answer of more than 1 MiB")


def test_what_expands_without_end_is_given_up_too(
    exchange: Exchange, client: RestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is that of the memory it takes, not of the bytes on the wire."""
    monkeypatch.setattr(rest, "_LARGEST_ANSWER_BYTES", 1 << 20)
    exchange.rest_fault(200, body=gzip.compress(b" " * (64 << 20)), headers={"Content-Encoding": "gzip"})
    assert error_of(client).status == "malformed"


# The poller, in simulated time


class Binance:
    """Stands in for the client: answers in simulated time, and remembers when it was asked for what."""

    def __init__(self, time: FakeClock) -> None:
        self.time = time
        self.takes_s: Callable[[], float] = lambda: 0.2
        self.fails: Callable[[str], RestError | None] = lambda path: None
        self.asked: list[tuple[float, str]] = []
        self.intervals = {"ETHUSDT": 4}
        self.closed = False
        self.body: bytes | None = None

    def get(self, path: str) -> bytes:
        """Answer as Binance would at this moment, after a while."""
        self.asked.append((self.time.steady_s, path))
        self.time.advance(self.takes_s())
        error = self.fails(path)
        if error is not None:
            raise error
        if path == INFO:
            rows = [{"symbol": symbol, "fundingIntervalHours": hours} for symbol, hours in self.intervals.items()]
            return json.dumps(rows).encode()
        if self.body is not None:
            return self.body
        at_ms = EVENT_MS + int((self.time.wall_s - WALL_S) * 1000)
        rows = [index_row(symbol, time=at_ms, nextFundingTime=NEXT_FUNDING_MS) for symbol in ("BTCUSDT", "ETHUSDT")]
        return json.dumps(rows).encode()

    def close(self) -> None:
        """Note it."""
        self.closed = True

    def times_s(self, path: str = INDEX) -> list[float]:
        """Return the times at which the path was asked for."""
        return [at_s for at_s, asked in self.asked if asked == path]


class Office:
    """A poller with all that it needs; the stream is well until `stream_is_well` is taken away."""

    def __init__(self, time: FakeClock | None = None, **settings: Any) -> None:
        self.time = time or FakeClock()
        self.binance = Binance(self.time)
        self.history = History()
        self.book = Book(self.time.clock, self.history, silence_s=15, stale_s=180, trouble=lambda: "x")
        self.comparison = Comparison()
        self.stream_is_well = True
        self.oldest_s = 0.0
        """Greatest age of the newest data at any time."""
        self.poller = RestPoller(
            load({name: str(value) for name, value in settings.items()}, env_file="/nonexistent"),
            self.binance,  # type: ignore[arg-type]
            self.book,
            self.comparison,
            self.history,
            clock=self.time.clock,
            repeats=events.Repeats(logging.getLogger("binance_funding"), self.time.clock.steady_s),
        )

    def advance(self, seconds: float) -> None:
        """Let the poller live for so long, waiting as it says."""
        until_s = self.time.steady_s + seconds
        while self.time.steady_s < until_s:
            if self.stream_is_well:
                at_ms = EVENT_MS + int((self.time.wall_s - WALL_S) * 1000)
                mark_price = index_row()["markPrice"]
                self.book.merge([rate(mark_price=mark_price, event_time_ms=at_ms, received_s=self.time.steady_s)])
            before_s = self.time.steady_s
            age_s = self.book.age_s()
            wait_s = self.poller.step()
            self.oldest_s = max(self.oldest_s, age_s + self.time.steady_s - before_s)
            self.time.advance(min(wait_s, max(0.0, until_s - self.time.steady_s)))


def refused(status: int, wait_s: float = 0.0) -> Callable[[str], RestError]:
    """Let every request be refused."""
    return lambda path: RestError(f"refused (HTTP {status})", str(status), wait_s)


def intervals_s(times_s: list[float]) -> list[float]:
    """Return the times between requests."""
    return [later - earlier for earlier, later in pairwise(times_s)]


def test_while_the_stream_is_well_a_snapshot_comes_every_minute() -> None:
    """The first one at once; each is compared and counted for the report."""
    office = Office()
    office.advance(HOUR_S)
    assert office.binance.times_s()[0] == pytest.approx(office.time.steady_s - HOUR_S, abs=1)
    assert len(office.binance.times_s()) == 60
    assert intervals_s(office.binance.times_s()) == pytest.approx([60] * 59, abs=0.1)
    _, buckets = office.history.to_json(office.time.wall_s)
    assert sum(bucket["runs"] for bucket in buckets) == office.poller.polls == 60
    assert sum(bucket["compared"] for bucket in buckets) == office.comparison.to_json()["totals"]["compared"] == 60


@pytest.mark.parametrize("takes_s", [0.05, 0.5, 2.0])
def test_in_fallback_data_is_no_older_than_the_interval_and_a_request(takes_s: float) -> None:
    """Asked for every 10 s on the dot it would come late by its own duration, and each time be a gap."""
    office = Office()
    office.binance.takes_s = lambda: takes_s
    office.advance(10)
    office.stream_is_well = False
    office.advance(200)
    assert office.poller.fallback_active
    office.oldest_s = 0.0
    asked = len(office.binance.times_s())
    office.advance(HOUR_S)
    assert office.oldest_s <= 10 + takes_s
    ages_s = intervals_s([at_s + takes_s for at_s in office.binance.times_s()[asked:]])
    assert max(ages_s) <= 10
    assert len(ages_s) <= HOUR_S / 7.5 + 1


def test_in_fallback_an_answer_that_takes_a_little_longer_than_the_last_makes_no_gap() -> None:
    """With both at 10 s, an outage of the stream would else be told as hundreds of gaps."""
    office = Office()
    durations_s = cycle([0.3, 0.6])
    office.binance.takes_s = lambda: next(durations_s)
    office.stream_is_well = False
    office.advance(200)
    gaps = office.book.gaps_ended
    office.advance(HOUR_S)
    assert office.book.gaps_ended == gaps


def test_an_answer_slower_than_the_interval_does_not_make_the_poller_ask_without_a_pause() -> None:
    """A request that takes 9 s is no reason to start the next one at once: at least three quarters of the interval."""
    office = Office(STALE_SECONDS=5)
    office.stream_is_well = False
    office.binance.takes_s = lambda: 9.0
    office.advance(HOUR_S)
    assert min(intervals_s(office.binance.times_s())[2:]) >= 7.5
    office = Office(STALE_SECONDS=5)
    office.stream_is_well = False
    office.binance.takes_s = lambda: 4.0
    office.advance(HOUR_S)
    assert min(intervals_s(office.binance.times_s())[2:]) >= 7.5


def test_the_fallback_begins_when_the_stream_is_stale_not_a_poll_later(caplog: pytest.LogCaptureFixture) -> None:
    """At STALE_SECONDS to within a moment; it is told, with the age, and so is its end, once each."""
    office = Office(REST_POLL_SECONDS=600, STALE_SECONDS=20.3)
    office.advance(10)
    office.stream_is_well = False
    stale_s = office.time.steady_s - office.book.stream_age_s() + 20.3
    before = len(office.binance.times_s())
    office.advance(25)
    assert office.binance.times_s()[before] == pytest.approx(stale_s, abs=0.1)
    office.stream_is_well = True
    office.advance(100)
    told = [record.getMessage() for record in caplog.records if "fallback" in record.getMessage()]
    assert [line.split()[1] for line in told] == ["on", "off"]
    assert "stream_age_s=20.3" in told[0]


def test_after_a_restart_with_old_data_rest_is_asked_often_at_once() -> None:
    """The stream has not had its time yet, but what was taken over is stale: a failed poll is repeated soon."""
    office = Office()
    office.stream_is_well = False
    old = rate(received_s=office.time.steady_s - 1000)
    office.book.take_over([old], 1000)
    office.binance.fails = lambda path: RestError("no connection", "connection")
    office.advance(30)
    assert len(office.binance.times_s()) >= 3


def test_told_to_wait_nothing_is_asked() -> None:
    """Neither snapshots nor funding intervals, in fallback or not; and the file tells until when."""
    office = Office()
    office.advance(5)
    office.binance.fails = refused(418, wait_s=5000)
    office.advance(60)
    refused_s, asked = office.binance.times_s()[-1], len(office.binance.asked)
    paused_until = office.poller.status()["paused_until"]
    assert paused_until == pytest.approx(office.time.wall_s + refused_s + 5000.2 - office.time.steady_s, abs=0.1)
    office.stream_is_well = False
    office.advance(refused_s + 5000 - office.time.steady_s)
    assert len(office.binance.asked) == asked
    office.binance.fails = lambda path: None
    office.advance(5)
    assert len(office.binance.asked) > asked
    assert office.poller.status()["paused_until"] is None


def test_refused_at_the_start_the_funding_intervals_are_not_asked_for_either() -> None:
    """The ban was told by the answer before."""
    office = Office()
    office.binance.fails = refused(418, wait_s=600.0)
    office.advance(590)
    assert office.binance.asked == [(office.binance.times_s()[0], INDEX)]


def test_a_refusal_of_the_funding_intervals_holds_for_the_snapshots() -> None:
    """Binance counts by IP, not by path."""
    office = Office()
    office.binance.fails = lambda path: RestError("too many", "429", 500.0) if path == INFO else None
    office.advance(490)
    assert len(office.binance.times_s()) == 1


def test_a_pause_outlives_the_daemon() -> None:
    """The next one asks when the ban is over, and not at its start."""
    office = Office()
    office.poller.restore(office.time.wall_s + 600, {})
    office.advance(590)
    assert office.binance.asked == []
    office.advance(20)
    assert office.binance.times_s()[0] == pytest.approx(office.time.steady_s - 10, abs=1.5)


def test_a_pause_from_a_clock_that_was_ahead_ends_all_the_same() -> None:
    """No ban is longer than three days, whatever the old file says."""
    office = Office()
    office.poller.restore(office.time.wall_s + 10 * 365 * 86_400, {})
    assert office.poller.status()["paused_until"] == pytest.approx(office.time.wall_s + LONGEST_BAN_S)


def test_a_pause_that_is_over_is_no_pause() -> None:
    """The old file may be of last week."""
    office = Office()
    office.poller.restore(office.time.wall_s - 600, {})
    assert office.poller.status()["paused_until"] is None
    office.advance(2)
    assert len(office.binance.times_s()) == 1


@pytest.mark.parametrize("status", [403, 451])
def test_refusals_without_a_time_are_answered_by_doubling_waits(status: int) -> None:
    """10, 20, 40 ... seconds at most 300: asking a firewall on and on makes it no friendlier."""
    office = Office()
    office.stream_is_well = False
    office.advance(200)
    office.binance.fails = refused(status)
    first = len(office.binance.times_s())
    office.advance(2000)
    waits_s = intervals_s(office.binance.times_s()[first:])
    assert waits_s[:7] == pytest.approx([10, 20, 40, 80, 160, 300, 300], abs=1.5)
    office.binance.fails = lambda path: None
    office.advance(400)
    office.binance.fails = refused(status)
    first = len(office.binance.times_s())
    office.advance(40)
    assert intervals_s(office.binance.times_s()[first:])[0] == pytest.approx(10, abs=1.5)


def test_trouble_of_binances_own_is_met_by_asking_as_usual() -> None:
    """A 500 asks for no patience: data may be back with the next request."""
    office = Office()
    office.stream_is_well = False
    office.advance(200)
    office.binance.fails = refused(500)
    first = len(office.binance.times_s())
    office.advance(100)
    assert max(intervals_s(office.binance.times_s()[first:])) < 11


def test_funding_intervals_are_asked_for_hourly() -> None:
    """What changes on the exchange is known within the hour."""
    office = Office()
    office.advance(60)
    assert office.poller.interval_hours == {"ETHUSDT": 4}
    office.binance.intervals = {"ETHUSDT": 1}
    office.advance(24 * HOUR_S)
    assert office.poller.interval_hours == {"ETHUSDT": 1}
    assert all(HOUR_S <= apart_s <= HOUR_S + 61 for apart_s in intervals_s(office.binance.times_s(INFO)))
    assert len(office.binance.times_s(INFO)) >= 23


def test_funding_intervals_that_cannot_be_had_are_asked_for_every_5_minutes(caplog: pytest.LogCaptureFixture) -> None:
    """The last known ones stay in force; the log says so once and then at growing intervals."""
    office = Office()
    office.poller.restore(None, {"BTCUSDT": 2})
    office.binance.fails = lambda path: RestError("server error (HTTP 500)", "500") if path == INFO else None
    office.advance(HOUR_S)
    # Only ever after a snapshot, which comes once a minute.
    assert all(300 <= apart_s <= 361 for apart_s in intervals_s(office.binance.times_s(INFO)))
    assert office.poller.interval_hours == {"BTCUSDT": 2}
    assert 1 <= len(caplog.records) <= 6
    assert all("funding intervals unknown" in record.getMessage() for record in caplog.records)
    office.binance.fails = lambda path: None
    office.advance(301)
    assert office.poller.interval_hours == {"ETHUSDT": 4}


def test_failures_are_counted_by_kind_and_the_last_one_is_told() -> None:
    """The usual kinds are there from the start, so that a rate over them is right from the first one on."""
    office = Office()
    assert office.poller.status()["errors_by_status"] == dict.fromkeys(
        ("403", "418", "429", "451", "connection", "malformed", "timeout"), 0
    )
    for error in (RestError("no answer in time", "timeout"), RestError("HTTP 500", "500")):
        office.binance.fails = lambda path, error=error: error if path == INDEX else None  # type: ignore[misc]
        office.advance(60)
    office.binance.fails = lambda path: None
    office.binance.body = b"<html>"
    office.advance(60)
    status = office.poller.status()
    assert (status["polls"], status["errors"], status["last_success_time"]) == (3, 3, None)
    assert {name: count for name, count in status["errors_by_status"].items() if count} == {
        "timeout": 1,
        "500": 1,
        "malformed": 1,
    }
    assert "JSON" in status["last_error"]


def test_bad_rows_are_counted_and_the_good_ones_merged() -> None:
    """As on the stream."""
    office = Office()
    office.stream_is_well = False
    office.binance.body = json.dumps([index_row("BTCUSDT"), index_row("ETHUSDT", markPrice="NaN"), 5]).encode()
    office.advance(5)
    assert office.poller.rejected_rows == 2
    assert [(known.symbol, known.source) for known in office.book.rates()] == [("BTCUSDT", REST)]


def test_an_hour_without_rest_costs_few_lines(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever the way it fails, one trouble is one line and then a few; its end is told with how long it lasted."""
    caplog.set_level(logging.INFO)
    office = Office()
    office.advance(60)
    ways = [RestError("no connection", "connection"), RestError("no answer in time", "timeout"), refused(500)(INDEX)]
    office.binance.fails = lambda path: ways[len(office.binance.asked) % 3]
    office.stream_is_well = False
    office.advance(HOUR_S)
    office.binance.fails = lambda path: None
    office.stream_is_well = True
    office.advance(60)
    assert 3 <= len(caplog.records) < 20
    assert "REST recovered after_s=" in caplog.text


def test_progress_stands_still_while_a_request_hangs() -> None:
    """By it the watchdog tells a slow REST side from a stuck one."""
    office = Office()
    started_s = office.time.steady_s
    seen_s: list[float] = []

    def hang() -> float:
        seen_s.append(office.poller.progress_s)
        return 100.0

    office.binance.takes_s = hang
    office.advance(1)
    assert seen_s[0] == started_s
    assert office.time.steady_s - office.poller.progress_s >= 100


def test_the_thread_ends_when_it_is_told_and_closes_its_connection() -> None:
    """Asked to stop in the middle of a wait, it does not sit that out."""
    office = Office()
    stop = threading.Event()
    thread = threading.Thread(target=office.poller.run, args=(stop,))
    thread.start()
    stop.set()
    thread.join(10)
    assert not thread.is_alive()
    assert office.binance.closed
