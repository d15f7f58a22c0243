"""The stream side in this process, over real sockets to the simulated exchange."""

import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.exchange import ALL, FUTURE, ConnectionRecord, Exchange, Market, Which, envelope
from tests.support.clock import SimulatedClock
from tests.support.programs import free_port
from tests.support.running_stream import SMALL, Stream, running
from tests.support.waiting import eventually


def misses_nothing(exchange: Exchange, stream: Stream, disturb: Callable[[], None], rounds: int = 8) -> None:
    """Disturb; then every symbol of every tick sent before, during and after must have reached the book."""
    stream.wait_for_live()
    first = len(exchange.ticks)
    exchange.wait(lambda: len(exchange.ticks) >= first + 2, what="ticks before")
    disturb()
    exchange.wait(lambda: len(exchange.ticks) >= first + rounds, what="ticks after")
    ticks = exchange.ticks[first : first + rounds]
    symbols = [row["symbol"] for row in exchange.market.premium_index(ticks[0]) if row["nextFundingTime"]]
    wanted = {(symbol, tick) for tick in ticks for symbol in symbols}
    eventually(lambda: wanted <= stream.book.seen, "every update of every tick")


Disturbance = Callable[[Exchange, Which], None]


@pytest.mark.parametrize(
    "disturb",
    [
        pytest.param(lambda exchange, which: exchange.drop(which), id="FIN"),
        pytest.param(lambda exchange, which: exchange.reset(which), id="RST"),
        pytest.param(lambda exchange, which: exchange.close(1001, "going away", which), id="close 1001"),
        pytest.param(lambda exchange, which: exchange.stall(which), id="black hole"),
        pytest.param(lambda exchange, which: exchange.silence(which), id="silence with pings"),
        pytest.param(lambda exchange, which: exchange.send_half_frame(which), id="half a frame"),
        pytest.param(lambda exchange, which: exchange.trickle(which), id="trickle"),
    ],
)
@pytest.mark.parametrize("which", [0, 1])
def test_losing_either_connection_misses_no_update(disturb: Disturbance, which: int) -> None:
    """The other connection brings what this one does not."""
    with Exchange(Market(**SMALL), tick_s=0.2, ping_s=0.3) as exchange, running(exchange.ws_url) as stream:
        misses_nothing(exchange, stream, lambda: disturb(exchange, which))
        eventually(lambda: stream.pool.lost == 1, "one unplanned disconnection")
        stream.wait_for_live()


def test_24_hour_cut_of_all_connections_misses_no_update_thanks_to_planned_replacement() -> None:
    """Connections are replaced before the exchange cuts them, one after the other, successor first."""
    with (
        Exchange(Market(**SMALL), tick_s=0.1, lifetime_s=4.0) as exchange,
        running(exchange.ws_url, CONNECTION_MAX_AGE_SECONDS=2.5) as stream,
    ):
        misses_nothing(exchange, stream, lambda: None, rounds=60)
        unplanned, planned = stream.counts()
        assert unplanned == 0
        assert planned >= 2
        assert not any(record.ended_by for record in exchange.connections)


def test_silent_successor_never_costs_the_old_connection() -> None:
    """Where the successor stays silent it is given up, and the old one goes on."""
    with (
        Exchange(Market(**SMALL), tick_s=0.1) as exchange,
        running(exchange.ws_url, CONNECTION_MAX_AGE_SECONDS=1.5, SILENCE_SECONDS=1) as stream,
    ):
        stream.wait_for_live()
        old = exchange.live
        exchange.silence(FUTURE)
        exchange.wait(lambda: sum(not c.is_open for c in exchange.connections) >= 2, what="two successors given up")
        assert all(record.is_open for record in old)
        assert stream.counts() == (0, 0)
        exchange.behave(FUTURE)
        eventually(lambda: stream.pool.replaced >= 2, "planned replacements")
        assert stream.pool.lost == 0


def test_old_connection_says_goodbye_only_after_the_successor_has_brought_data() -> None:
    """The order is: successor opens, successor brings data, old one is closed with code 1000."""
    with (
        Exchange(Market(**SMALL), tick_s=0.2) as exchange,
        running(exchange.ws_url, STREAM_CONNECTIONS=1, CONNECTION_MAX_AGE_SECONDS=1) as stream,
    ):
        eventually(lambda: stream.pool.replaced >= 1, "a planned replacement")
        old: ConnectionRecord = exchange.connections[0]
        exchange.wait(lambda: old.closed_at_s is not None, what="the old connection's end")
        successor = exchange.connections[1]
        assert old.close_code == 1000
        assert old.closed_at_s is not None
        assert successor.opened_at_s < old.closed_at_s
        assert successor.messages_sent > 0


def test_old_connection_that_hangs_is_broken_after_its_replacement() -> None:
    """In the middle of a message that trickles in it cannot say goodbye: its socket and thread must go all the same."""
    with (
        Exchange(Market(**SMALL), tick_s=0.2) as exchange,
        running(exchange.ws_url, STREAM_CONNECTIONS=1, CONNECTION_MAX_AGE_SECONDS=1, SILENCE_SECONDS=20) as stream,
    ):
        stream.wait_for_live(1)
        old = exchange.live[0]
        exchange.trickle(old)
        eventually(lambda: stream.pool.replaced >= 1, "a planned replacement")
        assert old.client_gone.wait(10)


def test_successors_that_fail_are_tried_at_growing_intervals() -> None:
    """That the old connection lives on proves nothing for the new ones."""
    with (
        Exchange(Market(**SMALL), tick_s=0.1) as exchange,
        running(
            exchange.ws_url,
            proven_after_s=0.3,
            STREAM_CONNECTIONS=1,
            CONNECTION_MAX_AGE_SECONDS=1,
            RECONNECT_MAX_SECONDS=60,
        ) as stream,
    ):
        stream.wait_for_live(1)
        first = len(exchange.attempts)
        exchange.refuse_handshakes(503)
        exchange.wait(lambda: len(exchange.attempts) >= first + 7, what="seven attempts")
        times_s = [attempt.at_s for attempt in exchange.attempts[first:]]
        assert times_s[-1] - times_s[-2] > 1.4  # between half and all of 3.2 s, whatever chance says
        assert stream.counts()[0] == 0


def test_silence_counts_from_connecting_and_the_next_address_gets_its_turn() -> None:
    """A retired address opens and stays silent, with pings: the next candidate is tried."""
    with (
        Exchange(Market(**SMALL), tick_s=0.1, ping_s=0.2) as exchange,
        running(f"{exchange.retired_url},{exchange.ws_url}") as stream,
    ):
        stream.wait_for_live()
        assert all(connection.url == exchange.ws_url for connection in stream.pool.live())
        assert stream.pool.lost == 0


def test_refused_address_gives_way_to_the_next_host() -> None:
    """Nobody listens at the first candidate."""
    with (
        Exchange(Market(**SMALL), tick_s=0.1) as exchange,
        running(f"ws://127.0.0.1:{free_port()}/market,{exchange.ws_url}") as stream,
    ):
        stream.wait_for_live()


@pytest.mark.parametrize(
    "disturb",
    [
        pytest.param(lambda exchange: exchange.stand_still(), id="event time stands still"),
        pytest.param(lambda exchange: exchange.silence(), id="pings only"),
    ],
)
def test_what_brings_no_newer_mark_price_is_not_life(disturb: Callable[[Exchange], None]) -> None:
    """Messages keep coming, but no event time advances: dropped for silence, reconnected."""
    with Exchange(Market(**SMALL), tick_s=0.1, ping_s=0.2) as exchange, running(exchange.ws_url) as stream:
        stream.wait_for_live()
        disturb(exchange)
        eventually(lambda: stream.pool.lost == 2, "both connections dropped")
        stream.wait_for_live()


@pytest.mark.parametrize("rows", [[], [{"e": "24hrTicker", "E": 1, "s": "BTCUSDT", "p": "1.0"}]])
def test_empty_and_foreign_rows_are_not_life(rows: list[dict[str, Any]]) -> None:
    """A connection that brings only empty data or another stream's rows is silent."""
    with Exchange(Market(**SMALL), tick_s=0.1) as exchange:
        exchange.silence(FUTURE)
        with running(exchange.ws_url, STREAM_CONNECTIONS=1) as stream:
            exchange.wait_for_live(1)
            record = exchange.connections[0]
            while record.is_open:
                try:
                    exchange.send_rows(rows, record, stream="!ticker@arr")
                except LookupError:
                    break
                record.client_gone.wait(0.1)
            assert not stream.book.rates()
            assert stream.pool.attempts >= 0


def test_what_both_connections_bring_is_merged_once() -> None:
    """The second copy of a message is recognised, and costs no second merge."""
    with Exchange(Market(**SMALL), tick_s=0.2) as exchange, running(exchange.ws_url) as stream:
        stream.wait_for_live()
        first_tick, first_merge, first_message = len(exchange.ticks), stream.book.merges, stream.feed.messages
        exchange.wait(lambda: len(exchange.ticks) >= first_tick + 10, what="ten ticks")
        merged, received = stream.book.merges - first_merge, stream.feed.messages - first_message
        assert merged <= received / 2 + 4


def test_all_lost_at_once_recovers_when_the_exchange_is_back() -> None:
    """After an outage of several seconds data comes again without waiting for a long backoff."""
    with (
        Exchange(Market(**SMALL), tick_s=0.1) as exchange,
        running(exchange.ws_url, RECONNECT_MIN_SECONDS=0.5, RECONNECT_MAX_SECONDS=60) as stream,
    ):
        stream.wait_for_live()
        exchange.down()
        eventually(lambda: not stream.pool.live(), "both lost")
        eventually(lambda: stream.pool.attempts >= 6, "attempts in vain")
        exchange.up()
        eventually(stream.pool.live, "data again", within_s=5)
        # Nor does the outage count against the connections that ended it.
        stream.wait_for_live()
        exchange.reset()
        eventually(lambda: stream.pool.lost >= 4, "both lost again")
        eventually(stream.pool.live, "data again", within_s=5)


def test_message_of_40_mb_costs_the_connection_not_the_memory() -> None:
    """It is given up while it is being received, and the connection replaced."""
    with Exchange(Market(**SMALL), tick_s=0.2) as exchange, running(exchange.ws_url, SILENCE_SECONDS=30) as stream:
        stream.wait_for_live()
        exchange.send_huge(40_000_000, 0)
        eventually(lambda: "MiB" in (stream.pool.last_error or ""), "the message refused")
        stream.wait_for_live()


def attempts_in(stream: Stream, time: SimulatedClock, seconds: float, count: Callable[[], int]) -> int:
    """Let the pool decide for so long, every half second; return how many attempts it made."""
    before = count()
    for _ in range(int(seconds * 2)):
        time.advance(0.5)
        stream.pool.step()
        assert stream.threads.join(10.0) == []
    return count() - before


def test_refused_connections_are_retried_at_most_once_a_second_and_an_hour_costs_few_lines(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whatever the settings, the allowance over all connections holds; the log is not flooded."""
    time = SimulatedClock()
    stream = Stream(f"ws://127.0.0.1:{free_port()}/", time.clock, RECONNECT_MIN_SECONDS=0.01, STREAM_CONNECTIONS=4)
    attempts_in(stream, time, 3600, lambda: stream.pool.attempts)
    assert 1000 < stream.pool.attempts <= 3600
    assert len(caplog.records) < 10
    assert "connection refused" in caplog.text


def test_accept_and_refuse_is_met_with_patience() -> None:
    """A peer that answers with 503 is asked again after 4 to 8 s by each connection, for as long as none is live."""
    time = SimulatedClock()
    with Exchange(Market(**SMALL)) as exchange:
        exchange.refuse_handshakes(503)
        stream = Stream(exchange.ws_url, time.clock, RECONNECT_MIN_SECONDS=0.5, RECONNECT_MAX_SECONDS=60)
        attempts_in(stream, time, 60, lambda: len(exchange.attempts))
        assert 2 * 120 / 9 <= attempts_in(stream, time, 120, lambda: len(exchange.attempts)) <= 2 * 120 / 4


def test_told_to_wait_no_connection_asks_earlier() -> None:
    """Retry-After of a refused handshake holds for all connections."""
    time = SimulatedClock()
    with Exchange(Market(**SMALL)) as exchange:
        exchange.refuse_handshakes(429, retry_after_s=300)
        stream = Stream(exchange.ws_url, time.clock)
        attempts_in(stream, time, 10, lambda: len(exchange.attempts))
        assert attempts_in(stream, time, 280, lambda: len(exchange.attempts)) == 0
        assert attempts_in(stream, time, 30, lambda: len(exchange.attempts)) >= 1


def test_a_host_that_allows_no_more_threads_is_a_failed_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program goes on, with REST, and connects when threads can be started again."""

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    time = SimulatedClock()
    with Exchange(Market(**SMALL), tick_s=0.1) as exchange:
        stream = Stream(exchange.ws_url, time.clock)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            stream.pool.step()
            stream.pool.step()
        assert stream.pool.last_error == "no thread can be started"
        assert stream.threads.crashed is None
        time.advance(10)
        stream.pool.step()
        exchange.wait_for_live(2)
        stream.pool.abort()
        assert stream.threads.join(10.0) == []


def test_accept_and_drop_is_not_hammered() -> None:
    """A peer that brings data and drops at once is no proof: the waits keep growing."""
    with (
        Exchange(Market(**SMALL), tick_s=0.1, lifetime_s=0.25) as exchange,
        running(exchange.ws_url, STREAM_CONNECTIONS=1, RECONNECT_MIN_SECONDS=0.2, RECONNECT_MAX_SECONDS=60),
    ):
        exchange.wait(lambda: len(exchange.attempts) >= 4, what="four attempts")
        times_s = [attempt.at_s for attempt in exchange.attempts]
        # Each wait lies between half and all of 0.2, 0.4, 0.8 s: the third is longer than the first can be.
        assert times_s[3] - times_s[2] > 0.4


def test_rows_of_one_message_do_not_hide_those_of_the_other() -> None:
    """When one of the two messages stops, the other still counts as life."""
    with Exchange(Market(**SMALL), tick_s=0.1) as exchange, running(exchange.ws_url) as stream:
        stream.wait_for_live()
        exchange.only_second_message(ALL)
        first = len(exchange.ticks)
        exchange.wait(lambda: len(exchange.ticks) >= first + 25, what="25 ticks")
        assert stream.pool.lost == 0
        assert len(stream.pool.live()) == 2


def test_bare_rows_without_envelope_are_understood() -> None:
    """A raw stream address sends the same rows without envelope."""
    with Exchange(Market(**SMALL), tick_s=0.1) as exchange, running(exchange.ws_url, STREAM_CONNECTIONS=1) as stream:
        stream.wait_for_live(1)
        exchange.silence()
        row = exchange.market.row("BTCUSDT", exchange.now_ms())
        exchange.send(envelope([row]).split('"data":', 1)[1].removesuffix("}"))
        eventually(lambda: ("BTCUSDT", row["E"]) in stream.book.seen, "the bare row")
