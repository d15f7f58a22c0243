"""The simulated exchange does what other tests rely on without noticing.

A fault that the exchange forgets to make is noticed where the daemon is tested: the expected reaction is missing.
These tests cover the rest: what the daemon must leave out, must not provoke, or must survive without any effect.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode

from tests.exchange import FUNDING_INFO, FUNDING_RATE, PREMIUM_INDEX, SERVER_TIME, Exchange, Market, ThrottlingProxy
from tests.support.exchange_client import (
    SMALL,
    client,
    drain,
    ending,
    get,
    index_rows,
    next_tick,
    nothing_comes,
    raw_client,
    rows_of,
    small_exchange,
)
from tests.support.waiting import PATIENCE_S, eventually

EVENT_TIME_MS = 1_795_500_000_000
HOUR_MS = 3_600_000


@pytest.fixture
def exchange() -> Iterator[Exchange]:
    """An exchange of few symbols that does nothing by itself."""
    with small_exchange() as exchange:
        yield exchange


def test_a_tick_has_the_rows_that_the_daemon_must_leave_out() -> None:
    """Two messages have 745 and 217 rows, 30 of COIN-M and 51 without funding; some rows have an unknown field."""
    market = Market()
    first, second = (rows_of(message) for message in market.messages(EVENT_TIME_MS))
    assert (len(first), len(second)) == (745, 217)
    assert sum(row["st"] == 2 for row in first) == 30
    assert sum(row["T"] == 0 for row in first) == 51
    assert {row["r"] for row in first if row["T"] == 0} == {"", "0.00000000"}
    assert {row["s"] for row in first + second if row["st"] == 1 and row["T"]} == market.symbols
    assert {row["s"] for row in second} == market.tradfi_symbols
    assert 0 < sum("zz" in row for row in first) < len(first)


def test_expected_numbers_are_those_of_the_rows() -> None:
    """Another market expects the numbers of the stream and of REST, which differ from one tick to the next."""
    market, other = Market(**SMALL), Market(**SMALL)
    answer = {row["symbol"]: row for row in market.premium_index(EVENT_TIME_MS)}
    streamed = {row["s"]: row for message in market.messages(EVENT_TIME_MS) for row in rows_of(message)}
    assert answer.keys() == market.symbols | market.fundless_symbols
    for symbol in market.symbols:
        expected, row, rest = other.expected(symbol, EVENT_TIME_MS), streamed[symbol], answer[symbol]
        numbers = (expected.mark_price, expected.index_price, expected.funding_rate)
        assert numbers == (float(row["p"]), float(row["i"]), float(row["r"]))
        assert numbers == tuple(float(rest[name]) for name in ("markPrice", "indexPrice", "lastFundingRate"))
        assert expected.next_funding_time_ms == row["T"] == rest["nextFundingTime"] > EVENT_TIME_MS
        assert other.expected(symbol, EVENT_TIME_MS + 3000).mark_price != expected.mark_price


def test_not_every_interval_is_listed(exchange: Exchange) -> None:
    """The funding info has every interval, and every symbol whose interval is not 8 h, but not every symbol."""
    market = Market()
    listed = {row["symbol"]: row["fundingIntervalHours"] for row in market.funding_info()}
    assert set(listed.values()) == {1, 2, 4, 8}
    assert market.symbols - listed.keys()
    assert all(market.funding_interval_h(symbol) == 8 for symbol in market.symbols - listed.keys())
    assert get(exchange, FUNDING_INFO).json() == exchange.market.funding_info()


def test_settled_rates_are_those_of_the_rows(exchange: Exchange) -> None:
    """REST has the rate that the stream had at the full hour of the settlement. The newest settlement comes last."""
    rows = get(exchange, FUNDING_RATE + "?symbol=BTCUSDT").json()
    assert len(rows) == 100
    for row in rows:
        streamed = exchange.market.row("BTCUSDT", row["fundingTime"] // HOUR_MS * HOUR_MS)
        assert (row["fundingRate"], row["markPrice"]) == (streamed["r"], streamed["p"])
    newest_ms = rows[-1]["fundingTime"]
    assert exchange.now_ms() - 8 * HOUR_MS < newest_ms <= exchange.now_ms()
    assert get(exchange, f"{FUNDING_RATE}?symbol=BTCUSDT&startTime={newest_ms}").json() == rows[-1:]


def test_all_connections_get_the_same_messages() -> None:
    """The event times of the ticks are whole multiples of the tick on the exchange's clock."""
    with (
        small_exchange(tick_s=0.2, clock_offset_s=-7200) as exchange,
        client(exchange) as one,
        client(exchange) as other,
    ):
        first = {one.recv(timeout=PATIENCE_S) for _ in range(6)}
        while (message := other.recv(timeout=PATIENCE_S)) not in first:
            pass
        event_time_ms = rows_of(message)[0]["E"]
        assert event_time_ms % 200 == 0
        assert event_time_ms in exchange.ticks
        assert abs(event_time_ms - (time.time() - 7200) * 1000) < PATIENCE_S * 1000


def test_retired_path_sends_pings_but_no_data(exchange: Exchange) -> None:
    """The handshake succeeds, too."""
    with client(exchange, exchange.retired_url) as retired, client(exchange) as current:
        exchange.tick()
        exchange.ping(0)
        current.recv(timeout=PATIENCE_S)
        exchange.wait(lambda: exchange.connections[0].pongs_matched == 1)
        assert nothing_comes(retired)


def test_pongs_and_pings_of_a_client_are_counted() -> None:
    """Only a pong with the payload of a ping matches."""
    with small_exchange(ping_s=0.05) as exchange, client(exchange) as connection:
        record = exchange.connections[0]
        exchange.wait(lambda: record.pongs_matched >= 3)
        connection.pong(b"nobody asked")
        assert connection.ping().wait(PATIENCE_S)
        exchange.wait(lambda: record.pongs_unsolicited == 1 and record.client_pings == 1)


def test_a_client_that_answers_no_ping_is_closed() -> None:
    """Neither data from the exchange nor an unsolicited pong extends the deadline."""
    with small_exchange(tick_s=0.1, ping_s=0.1, pong_deadline_s=0.5) as exchange, raw_client(exchange) as sock:
        (record,) = exchange.wait_for_live()
        sock.sendall(Frame(Opcode.PONG, b"unsolicited").serialize(mask=True))
        drain(sock)
        exchange.wait(lambda: not record.is_open)
        assert record.ended_by == "close 1008 Pong timeout"


def test_a_client_that_sends_too_much_is_closed(exchange: Exchange) -> None:
    """Ten messages within a second are accepted, more are not."""
    with client(exchange) as connection:
        record = exchange.connections[0]
        for _ in range(10):
            connection.send("{}")
        exchange.wait(lambda: record.client_messages == 10)
        assert record.ended_by is None
        with contextlib.suppress(ConnectionClosed):
            for _ in range(100):
                connection.send("{}")
        ending(connection)
        assert record.ended_by == "close 1008 Too many requests"


def test_a_connection_is_cut_at_the_end_of_its_lifetime() -> None:
    """There is no close frame."""
    with small_exchange(tick_s=0.1, lifetime_s=0.5) as exchange, client(exchange) as connection:
        assert ending(connection).rcvd is None
        assert exchange.connections[0].ended_by == "0.5 s are over"


def test_a_stalled_connection_reacts_to_nothing(exchange: Exchange) -> None:
    """It gets neither data nor an answer to a ping, a close frame or a FIN. The record shows that the client left."""
    with raw_client(exchange) as sock:
        (record,) = exchange.wait_for_live()
        exchange.stall()
        exchange.tick()
        sock.sendall(Frame(Opcode.PING, b"").serialize(mask=True))
        sock.sendall(Frame(Opcode.CLOSE, b"\x03\xe8").serialize(mask=True))
        sock.shutdown(socket.SHUT_WR)
        assert record.client_gone.wait(PATIENCE_S)
        sock.settimeout(0.2)
        with pytest.raises(TimeoutError):
            sock.recv(1)


def test_a_silenced_connection_still_gets_pings(exchange: Exchange) -> None:
    """It answers them, and no data comes."""
    with client(exchange) as connection:
        exchange.silence()
        exchange.tick()
        exchange.ping()
        exchange.wait(lambda: exchange.connections[0].pongs_matched == 1)
        assert nothing_comes(connection)


def test_a_trickling_connection_sends_pieces(exchange: Exchange) -> None:
    """The messages are whole and in order."""
    with client(exchange) as connection:
        exchange.trickle(piece_bytes=64, pause_s=0.01)
        started_s = time.monotonic()
        messages = exchange.market.messages(exchange.tick())
        assert tuple(connection.recv(timeout=PATIENCE_S) for _ in messages) == messages
        assert time.monotonic() - started_s > (len(messages[0]) // 64) * 0.01


def test_nothing_follows_half_a_frame(exchange: Exchange) -> None:
    """Not even a ping follows."""
    with raw_client(exchange) as sock:
        exchange.wait_for_live()
        exchange.send_half_frame()
        exchange.tick()
        exchange.ping()
        received = sock.recv(65536)
        sock.settimeout(0.2)
        with contextlib.suppress(TimeoutError):
            while data := sock.recv(65536):
                received += data
        assert received[:2] == b"\x81\x7e"  # a whole text message, its length in the next two bytes
        size = int.from_bytes(received[2:4], "big")
        assert len(received) == 4 + size - size // 2


def test_a_fault_for_a_connection_that_is_not_there_is_an_error(exchange: Exchange) -> None:
    """Otherwise a test would pass because nothing happened."""
    with pytest.raises(LookupError):
        exchange.drop()


def test_an_error_in_the_exchange_is_raised_when_it_stops() -> None:
    """Otherwise a broken exchange would look like a silent one."""

    class BrokenMarket(Market):
        def messages(self, event_time_ms: int, stream: str = "") -> tuple[str, ...]:
            raise ArithmeticError("broken on purpose")

    exchange = Exchange(BrokenMarket(**SMALL), tick_s=0.05)
    exchange.start()
    with client(exchange):
        exchange.wait(lambda: exchange.ticks)
    with pytest.raises(ArithmeticError, match="broken on purpose"):
        exchange.stop()


def test_a_slow_link_makes_event_times_fall_behind() -> None:
    """A connection without the link is current at the same time."""
    with small_exchange(tick_s=0.1) as exchange, contextlib.ExitStack() as stack:
        tick_bytes = sum(len(message.encode()) for message in exchange.market.messages(exchange.now_ms()))
        proxy = stack.enter_context(ThrottlingProxy(exchange.ws_port, tick_bytes / 0.1 / 2))
        slow = stack.enter_context(client(exchange, proxy.through(exchange.ws_url)))
        eventually(lambda: exchange.now_ms() - next_tick(slow)["BTCUSDT"]["E"] > 1000, "a lag of 1 s")
        direct = stack.enter_context(client(exchange))
        assert next_tick(direct)["BTCUSDT"]["E"] > next_tick(slow)["BTCUSDT"]["E"] + 500


def test_rest_counts_weight() -> None:
    """All symbols cost 10, others 1. Who spends more than 2400 a minute gets 429 and the seconds to its end."""
    with small_exchange() as exchange:
        exchange.clock_offset_s = 30 - time.time() % 60  # far from the end of a minute
        paths = (PREMIUM_INDEX, PREMIUM_INDEX + "?symbol=BTCUSDT", SERVER_TIME)
        assert [get(exchange, path).headers["X-MBX-USED-WEIGHT-1M"] for path in paths] == ["10", "11", "12"]
        assert {get(exchange).status_code for _ in range(238)} == {200}
        refused = get(exchange)
        assert refused.status_code == 429
        assert 0 < int(refused.headers["Retry-After"]) <= 30


def test_rest_answers_as_of_the_exchanges_clock(exchange: Exchange) -> None:
    """The time is exact, and the event times of the rows are whole seconds, whenever the last tick was."""
    exchange.clock_offset_s = -7200
    exchange.tick(EVENT_TIME_MS)
    before_ms = exchange.now_ms()
    assert before_ms <= get(exchange, SERVER_TIME).json()["serverTime"] <= exchange.now_ms()
    (row_ms,) = {row["time"] for row in index_rows(exchange).values()}
    assert row_ms % 1000 == 0
    assert before_ms - 1000 < row_ms <= exchange.now_ms()


def test_rest_compresses_for_clients_that_accept_it(exchange: Exchange) -> None:
    """Other clients get the same rows uncompressed."""
    assert get(exchange).headers["Content-Encoding"] == "gzip"
    plain = get(exchange, headers={"Accept-Encoding": "identity"})
    assert "Content-Encoding" not in plain.headers
    assert len(plain.json()) == 9
