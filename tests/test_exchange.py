"""The simulated exchange keeps its promises: what the other tests rely on, seen through another client."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Frame, Opcode
from websockets.sync.client import ClientConnection, connect

from tests.exchange import ALL, FUTURE, STREAM_1S, Exchange, Market, ticker_row

LIMIT_S = 20.0
NEVER_S = 3600.0
EVENT_TIME_MS = 1_795_500_000_000
SMALL = {"usd_m": 5, "tradfi": 2, "coin_m": 1, "fundless": 2}


@pytest.fixture
def exchange() -> Iterator[Exchange]:
    """An exchange of few symbols that does nothing unless told."""
    with Exchange(Market(**SMALL), tick_s=NEVER_S) as exchange:
        yield exchange


@contextlib.contextmanager
def client(exchange: Exchange, url: str | None = None, **options: Any) -> Iterator[ClientConnection]:
    """Connect and wait until the exchange knows the connection."""
    known = len(exchange.connections)
    options = {
        "ping_interval": None,
        "max_size": None,
        "close_timeout": 1,
        "open_timeout": LIMIT_S,
        **options,
    }
    with connect(url or exchange.ws_url, **options) as connection:
        exchange.wait(lambda: len(exchange.connections) > known)
        yield connection


def rows_of(message: str | bytes) -> list[dict[str, Any]]:
    """Return the rows of a combined-stream message."""
    rows: list[dict[str, Any]] = json.loads(message)["data"]
    return rows


def ending(connection: ClientConnection) -> ConnectionClosed:
    """Read until the connection ends and return how."""
    try:
        while True:
            connection.recv(timeout=LIMIT_S)
    except ConnectionClosed as closed:
        return closed


def nothing_comes(connection: ClientConnection) -> bool:
    """Tell whether no message arrives for a moment, during which the caller has had ticks sent."""
    try:
        connection.recv(timeout=0.2)
    except TimeoutError:
        return True
    return False


class TestMarket:
    """The numbers."""

    def test_counts(self) -> None:
        """A tick's two messages hold 745 and 217 rows, among them 30 of COIN-M and 51 fundless."""
        market = Market()
        first, second = (rows_of(message) for message in market.messages(EVENT_TIME_MS))
        assert (len(first), len(second)) == (745, 217)
        assert sum(row["st"] == 2 for row in first) == 30
        assert sum(row["T"] == 0 for row in first) == 51
        assert {row["r"] for row in first if row["T"] == 0} == {"", "0.00000000"}
        assert {row["s"] for row in first + second if row["st"] == 1 and row["T"]} == market.symbols
        assert {"BTCUSDT", "ETHUSDT", "币安人生USDT", "TSLAUSDT"} <= market.symbols
        assert len(market.symbols) == 664 + 217

    def test_rows_are_recomputable(self) -> None:
        """A sent row equals another market's `row` of symbol and event time, in numbers `expected`."""
        market, other = Market(**SMALL), Market(**SMALL)
        for message in market.messages(EVENT_TIME_MS):
            for row in rows_of(message):
                assert row == other.row(row["s"], EVENT_TIME_MS)
        row = market.row("ETHUSDT", EVENT_TIME_MS)
        expected = market.expected("ETHUSDT", EVENT_TIME_MS)
        assert expected.mark_price == float(row["p"])
        assert expected.index_price == float(row["i"])
        assert expected.funding_rate == float(row["r"])
        assert expected.next_funding_time_ms == row["T"] > EVENT_TIME_MS

    def test_prices_move_smoothly(self) -> None:
        """In 5 s prices move by less than 0.2 % and funding rates by less than 0.00002, yet move."""
        market = Market()
        for at_ms in range(EVENT_TIME_MS, EVENT_TIME_MS + 700_000, 50_000):
            for symbol in market.symbols:
                before, after = market.expected(symbol, at_ms), market.expected(symbol, at_ms + 5000)
                assert abs(after.mark_price / before.mark_price - 1) < 0.002
                assert abs(after.funding_rate - before.funding_rate) < 0.00002
        assert market.row("BTCUSDT", EVENT_TIME_MS)["p"] != market.row("BTCUSDT", EVENT_TIME_MS + 3000)["p"]

    def test_premium_index_agrees_with_stream(self) -> None:
        """REST has USD-M, TradFi and fundless rows with the stream's numbers, and no COIN-M."""
        market = Market()
        answer = {row["symbol"]: row for row in market.premium_index(EVENT_TIME_MS)}
        assert answer.keys() == market.symbols | market.fundless_symbols
        for symbol, row in answer.items():
            streamed = market.row(symbol, EVENT_TIME_MS)
            assert (row["markPrice"], row["lastFundingRate"]) == (streamed["p"], streamed["r"])
            assert (row["nextFundingTime"], row["time"]) == (streamed["T"], streamed["E"])

    def test_funding_info_lists_adjusted_symbols(self) -> None:
        """The funding info lists every symbol whose interval is not 8 h, some with 8 h, and not all."""
        market = Market()
        listed = {row["symbol"]: row["fundingIntervalHours"] for row in market.funding_info()}
        assert set(listed.values()) == {1, 2, 4, 8}
        assert all(market.funding_interval_h(symbol) == hours for symbol, hours in listed.items())
        assert all(market.funding_interval_h(symbol) == 8 for symbol in market.symbols - listed.keys())
        assert market.symbols - listed.keys()

    def test_sources_can_differ(self) -> None:
        """Symbols can be missing in either source, and differ in REST by more than a comparison tolerates."""
        market = Market(**SMALL)
        market.only_in_rest.add("BTCUSDT")
        market.only_in_stream.add("TSLAUSDT")
        market.rest_mismatch.add("ETHUSDT")
        streamed = {row["s"] for message in market.messages(EVENT_TIME_MS) for row in rows_of(message)}
        answer = {row["symbol"]: row for row in market.premium_index(EVENT_TIME_MS)}
        assert "BTCUSDT" not in streamed
        assert "BTCUSDT" in answer
        assert "TSLAUSDT" in streamed
        assert "TSLAUSDT" not in answer
        expected = market.expected("ETHUSDT", EVENT_TIME_MS)
        assert float(answer["ETHUSDT"]["markPrice"]) / expected.mark_price > 1.005
        assert float(answer["ETHUSDT"]["lastFundingRate"]) - expected.funding_rate > 0.00005


class TestStream:
    """The WebSocket on its good days."""

    def test_all_connections_get_the_same_bytes(self) -> None:
        """Two connections get identical messages, at whole multiples of the tick on the exchange's clock."""
        with (
            Exchange(Market(**SMALL), tick_s=0.2, clock_offset_s=-7200) as exchange,
            client(exchange) as one,
            client(exchange) as other,
        ):
            first = {one.recv(timeout=LIMIT_S) for _ in range(6)}
            while (message := other.recv(timeout=LIMIT_S)) not in first:
                pass
            event_time_ms = rows_of(message)[0]["E"]
            assert event_time_ms % 200 == 0
            assert event_time_ms in exchange.ticks
            assert abs(event_time_ms - (time.time() - 7200) * 1000) < LIMIT_S * 1000
            assert sorted(set(exchange.ticks)) == exchange.ticks

    def test_tick_sends_two_messages(self, exchange: Exchange) -> None:
        """A tick is two messages with one event time and an envelope, the second all TradFi."""
        with client(exchange) as connection:
            event_time_ms = exchange.tick()
            messages = [connection.recv(timeout=LIMIT_S) for _ in range(2)]
            assert tuple(messages) == exchange.market.messages(event_time_ms)
            assert {row["s"] for row in rows_of(messages[1])} == exchange.market.tradfi_symbols
            assert json.loads(messages[0])["stream"] == "!markPrice@arr"

    def test_one_second_stream(self, exchange: Exchange) -> None:
        """The path with @1s ticks every second under its own stream name."""
        with client(exchange, exchange.ws_url_1s) as connection:
            message = json.loads(connection.recv(timeout=LIMIT_S))
            assert message["stream"] == STREAM_1S
            assert message["data"][0]["E"] % 1000 == 0

    def test_retired_path_is_silent(self, exchange: Exchange) -> None:
        """The retired path accepts the handshake and sends pings, but no data."""
        with client(exchange, exchange.retired_url) as retired, client(exchange) as current:
            exchange.tick()
            exchange.ping(0)
            current.recv(timeout=LIMIT_S)
            exchange.wait(lambda: exchange.connections[0].pongs_matched == 1)
            assert nothing_comes(retired)
            assert exchange.connections[0].messages_sent == 0

    def test_other_paths_are_not_found(self, exchange: Exchange) -> None:
        """A handshake on any other path is refused with 404 and recorded."""
        with (
            pytest.raises(InvalidStatus) as raised,
            client(exchange, exchange.ws_url.replace("/market/stream", "/market/ws")),
        ):
            pass
        assert raised.value.response.status_code == 404
        assert [attempt.status for attempt in exchange.attempts] == [404]

    def test_compression_is_not_negotiated(self, exchange: Exchange) -> None:
        """A client that offers permessage-deflate does not get it."""
        with client(exchange, compression="deflate") as connection:
            assert "permessage-deflate" in exchange.connections[0].headers["Sec-WebSocket-Extensions"]
            assert connection.response is not None
            assert "Sec-WebSocket-Extensions" not in connection.response.headers

    def test_pings_are_answered_and_counted(self) -> None:
        """Pings come by themselves; matching pongs, unsolicited ones and client pings are told apart."""
        with (
            Exchange(Market(**SMALL), tick_s=NEVER_S, ping_s=0.05) as exchange,
            client(exchange) as connection,
        ):
            record = exchange.connections[0]
            exchange.wait(lambda: record.pongs_matched >= 3)
            assert record.pings_sent >= record.pongs_matched
            connection.pong(b"nobody asked")
            pong = connection.ping()
            assert pong.wait(LIMIT_S)
            exchange.wait(lambda: record.pongs_unsolicited == 1 and record.client_pings == 1)

    def test_missing_pong_closes(self) -> None:
        """A client that answers no ping is closed with 1008 after the deadline, data or not."""
        with (
            Exchange(Market(**SMALL), tick_s=0.1, ping_s=0.1, pong_deadline_s=0.5) as exchange,
            raw_client(exchange) as sock,
        ):
            record = exchange.wait_for_live()[0]
            unsolicited = Frame(Opcode.PONG, b"unsolicited").serialize(mask=True)
            sock.sendall(unsolicited)
            drain(sock)
            exchange.wait(lambda: not record.is_open)
            assert record.ended_by == "close 1008 Pong timeout"
            assert record.pongs_matched == 0
            assert record.pongs_unsolicited == 1

    def test_message_flood_closes(self, exchange: Exchange) -> None:
        """Ten client messages within a second are let pass, more are closed with 1008."""
        with client(exchange) as connection:
            for _ in range(10):
                connection.send("{}")
            record = exchange.connections[0]
            exchange.wait(lambda: record.client_messages == 10)
            assert record.ended_by is None
            with contextlib.suppress(ConnectionClosed):
                for _ in range(100):
                    connection.send("{}")
            assert ending(connection).rcvd is not None
            assert record.ended_by == "close 1008 Too many requests"

    def test_lifetime_ends(self) -> None:
        """A connection is cut when its lifetime is over."""
        with (
            Exchange(Market(**SMALL), tick_s=0.1, lifetime_s=0.5) as exchange,
            client(exchange) as connection,
        ):
            assert ending(connection).rcvd is None
            assert exchange.connections[0].ended_by == "0.5 s are over"

    def test_clients_close_code_is_recorded(self, exchange: Exchange) -> None:
        """The code with which a client closes is in the record, and the connection no longer live."""
        with client(exchange) as connection:
            connection.close(1001, "going")
        record = exchange.connections[0]
        exchange.wait(lambda: record.closed_at_s is not None)
        assert (record.close_code, record.ended_by) == (1001, None)
        assert exchange.live == []


class TestStreamFaults:
    """The WebSocket on its bad days."""

    def test_drop_with_fin(self, exchange: Exchange) -> None:
        """`drop` ends the TCP connection in order, without a close frame."""
        with raw_client(exchange) as sock:
            exchange.wait_for_live()
            exchange.drop()
            assert drain(sock) == b""

    def test_drop_with_rst(self, exchange: Exchange) -> None:
        """`reset` ends the TCP connection with an RST."""
        with raw_client(exchange) as sock:
            exchange.wait_for_live()
            exchange.reset()
            with pytest.raises(ConnectionResetError):
                drain(sock)

    def test_close_with_code(self, exchange: Exchange) -> None:
        """`close` sends a close frame with code and reason, here to the second of two connections."""
        with client(exchange) as one, client(exchange) as other:
            exchange.close(1001, "maintenance", which=1)
            received = ending(other).rcvd
            assert received is not None
            assert (received.code, received.reason) == (1001, "maintenance")
            exchange.tick()
            one.recv(timeout=LIMIT_S)

    def test_stall_and_recovery(self, exchange: Exchange) -> None:
        """A stalled connection gets neither data nor pings nor pongs, until it behaves again."""
        with client(exchange) as connection:
            record = exchange.connections[0]
            exchange.stall()
            exchange.tick()
            pong = connection.ping()
            assert nothing_comes(connection)
            assert not pong.is_set()
            assert record.messages_sent == 0
            exchange.behave()
            event_time_ms = exchange.tick()
            assert rows_of(connection.recv(timeout=LIMIT_S))[0]["E"] == event_time_ms

    def test_stall_does_not_answer_a_close(self, exchange: Exchange) -> None:
        """A stalled connection takes no note of frames, a close or a FIN, but tells that the client has left."""
        with raw_client(exchange) as sock:
            record = exchange.wait_for_live()[0]
            exchange.stall()
            sock.sendall(Frame(Opcode.PING, b"").serialize(mask=True))
            sock.sendall(Frame(Opcode.CLOSE, b"\x03\xe8").serialize(mask=True))
            sock.shutdown(socket.SHUT_WR)
            assert record.client_gone.wait(LIMIT_S)
            sock.settimeout(0.2)
            with pytest.raises(TimeoutError):
                sock.recv(1)
            assert record.client_pings == 0
            assert not record.is_open

    def test_silence_with_pings(self, exchange: Exchange) -> None:
        """A silenced connection still gets pings."""
        with client(exchange) as connection:
            exchange.silence()
            exchange.tick()
            exchange.ping()
            exchange.wait(lambda: exchange.connections[0].pongs_matched == 1)
            assert nothing_comes(connection)

    def test_future_connections(self, exchange: Exchange) -> None:
        """Misbehaviour can be set for connections to come, without touching the live ones."""
        with client(exchange) as old:
            exchange.silence(FUTURE)
            with client(exchange) as new:
                exchange.tick()
                old.recv(timeout=LIMIT_S)
                assert nothing_comes(new)
            exchange.behave(FUTURE)
            with client(exchange) as newest:
                exchange.tick()
                newest.recv(timeout=LIMIT_S)

    def test_event_time_stands_still(self, exchange: Exchange) -> None:
        """Standing still repeats the last tick's messages with every tick."""
        with client(exchange) as connection:
            event_time_ms = exchange.tick()
            exchange.stand_still()
            exchange.tick(event_time_ms + 3000)
            messages = [connection.recv(timeout=LIMIT_S) for _ in range(4)]
            assert messages[:2] == messages[2:]
            assert exchange.ticks == [event_time_ms, event_time_ms + 3000]

    @pytest.mark.parametrize("part", [0, 1])
    def test_one_of_two_messages(self, exchange: Exchange, part: int) -> None:
        """Either of a tick's two messages can be left out while the other goes on."""
        with client(exchange) as connection:
            (exchange.only_first_message, exchange.only_second_message)[part]()
            for _ in range(2):
                event_time_ms = exchange.tick()
                assert connection.recv(timeout=LIMIT_S) == exchange.market.messages(event_time_ms)[part]

    def test_trickle(self, exchange: Exchange) -> None:
        """A trickling connection sends its bytes in pieces, whole messages still, and recovers in order."""
        with client(exchange) as connection:
            exchange.trickle(piece_bytes=64, pause_s=0.01)
            started = time.monotonic()
            event_time_ms = exchange.tick()
            messages = exchange.market.messages(event_time_ms)
            assert connection.recv(timeout=LIMIT_S) == messages[0]
            assert time.monotonic() - started > (len(messages[0]) // 64) * 0.01
            exchange.behave()
            exchange.tick(event_time_ms)
            assert [connection.recv(timeout=LIMIT_S) for _ in range(3)] == [messages[1], *messages]

    def test_any_message_can_be_sent(self, exchange: Exchange) -> None:
        """Malformed JSON, binary frames, empty data and another stream's rows arrive as sent."""
        with client(exchange) as connection:
            exchange.send('{"stream":')
            exchange.send(b"\x00\xff")
            exchange.send_rows([])
            exchange.send_rows([ticker_row("BTCUSDT", EVENT_TIME_MS)], stream="!ticker@arr")
            received = [connection.recv(timeout=LIMIT_S) for _ in range(4)]
            assert received[:3] == ['{"stream":', b"\x00\xff", '{"stream":"!markPrice@arr","data":[]}']
            assert rows_of(received[3])[0]["e"] == "24hrTicker"

    def test_invalid_utf8(self, exchange: Exchange) -> None:
        """A text frame of invalid UTF-8 gets out: a strict client closes with 1007."""
        with client(exchange) as connection:
            exchange.send_invalid_utf8()
            sent = ending(connection).sent
            assert sent is not None
            assert sent.code == 1007

    def test_huge_message(self, exchange: Exchange) -> None:
        """A message of 40 MB arrives whole, as valid JSON."""
        with client(exchange) as connection:
            exchange.send_huge(40_000_000)
            message = connection.recv(timeout=LIMIT_S)
            assert len(message) == 40_000_000
            assert rows_of(message) == []

    def test_half_a_frame(self, exchange: Exchange) -> None:
        """Half a frame is followed by nothing, not even a ping."""
        with raw_client(exchange) as sock:
            exchange.wait_for_live()
            exchange.send_half_frame()
            exchange.tick()
            exchange.ping()
            received = sock.recv(65536)
            sock.settimeout(0.2)
            with contextlib.suppress(TimeoutError):
                received += sock.recv(65536)
            assert received[:2] == b"\x81\x7e"  # a whole text message, its length in the next two bytes
            size = int.from_bytes(received[2:4], "big")
            assert len(received) == 4 + size - size // 2

    def test_handshakes_can_be_refused(self, exchange: Exchange) -> None:
        """The next handshakes get a status, body and Retry-After; then the exchange accepts again."""
        exchange.refuse_handshakes(429, retry_after_s=7, count=2)
        for _ in range(2):
            with pytest.raises(InvalidStatus) as raised, client(exchange):
                pass
            assert raised.value.response.status_code == 429
            assert raised.value.response.headers["Retry-After"] == "7"
            assert b"-1003" in (raised.value.response.body or b"")
        with client(exchange):
            assert [attempt.status for attempt in exchange.attempts] == [429, 429, 101]

    def test_handshakes_can_hang(self, exchange: Exchange) -> None:
        """A hanging handshake connects and is never answered."""
        exchange.hang_handshakes()
        with pytest.raises(TimeoutError), client(exchange, open_timeout=0.3):
            pass
        exchange.accept_handshakes()
        with client(exchange):
            assert [attempt.status for attempt in exchange.attempts] == [0, 101]

    def test_down_and_up_on_the_same_port(self, exchange: Exchange) -> None:
        """Down resets what is open and refuses to connect; up serves on the same ports."""
        urls = (exchange.ws_url, exchange.rest_url)
        with client(exchange) as connection:
            exchange.down()
            assert ending(connection).rcvd is None
        with pytest.raises(ConnectionRefusedError), client(exchange):
            pass
        with pytest.raises(requests.ConnectionError):
            requests.get(exchange.rest_url, timeout=LIMIT_S)
        exchange.up()
        assert (exchange.ws_url, exchange.rest_url) == urls
        with client(exchange) as connection:
            exchange.tick()
            connection.recv(timeout=LIMIT_S)
        assert requests.get(exchange.rest_url + "/fapi/v1/fundingInfo", timeout=LIMIT_S).ok

    def test_down_takes_a_hanging_handshake_along(self, exchange: Exchange) -> None:
        """A connection that has not finished its handshake does not keep the exchange from going down."""
        exchange.hang_handshakes()
        with raw_client(exchange, answered=False) as sock:
            exchange.wait(lambda: exchange.attempts)
            exchange.down(rest=False)
            with pytest.raises(ConnectionResetError):
                drain(sock)
        assert requests.get(exchange.rest_url + "/fapi/v1/fundingInfo", timeout=LIMIT_S).ok

    def test_nobody_meant_is_an_error(self, exchange: Exchange) -> None:
        """Misbehaving on connections that are not there is told, not skipped."""
        for which in (ALL, 0, -1):
            with pytest.raises(LookupError):
                exchange.drop(which)


class TestRest:
    """The REST side."""

    def test_premium_index(self, exchange: Exchange) -> None:
        """The premium index carries the last tick's event time, its numbers and the weight used so far."""
        event_time_ms = exchange.tick()
        answer = get(exchange)
        assert answer.json() == exchange.market.premium_index(event_time_ms)
        assert answer.headers["X-MBX-USED-WEIGHT-1M"] == "10"
        one = get(exchange, "/fapi/v1/premiumIndex?symbol=BTCUSDT")
        assert one.json()["symbol"] == "BTCUSDT"
        assert get(exchange, "/fapi/v1/premiumIndex?symbol=NONE").json()["code"] == -1121
        paths = [request.path for request in exchange.rest_requests]
        assert paths[:2] == ["/fapi/v1/premiumIndex", "/fapi/v1/premiumIndex?symbol=BTCUSDT"]
        assert exchange.rest_requests[0].headers["user-agent"].startswith("python-requests")

    def test_funding_info(self, exchange: Exchange) -> None:
        """The funding info is the market's."""
        assert get(exchange, "/fapi/v1/fundingInfo").json() == exchange.market.funding_info()

    def test_gzip_where_accepted(self, exchange: Exchange) -> None:
        """The answer is compressed only for those who accept it."""
        path = "/fapi/v1/premiumIndex"
        assert get(exchange, path).headers["Content-Encoding"] == "gzip"
        plain = get(exchange, path, headers={"Accept-Encoding": "identity"})
        assert "Content-Encoding" not in plain.headers
        assert len(plain.json()) == 9

    def test_weight_limit(self) -> None:
        """Who spends more than 2400 a minute gets 429 and the seconds to the minute's end."""
        with Exchange(Market(**SMALL), tick_s=NEVER_S) as exchange, requests.Session() as session:
            exchange.clock_offset_s = 30 - time.time() % 60  # far from a minute's end
            url = exchange.rest_url + "/fapi/v1/premiumIndex"
            statuses = [session.get(url, timeout=LIMIT_S).status_code for _ in range(240)]
            refused = session.get(url, timeout=LIMIT_S)
            assert set(statuses) == {200}
            assert refused.status_code == 429
            assert 0 < int(refused.headers["Retry-After"]) <= 30

    def test_status_faults(self, exchange: Exchange) -> None:
        """A fault has status, Retry-After and body, for a path, a number of times, or until cleared."""
        exchange.rest_fault(429, retry_after_s=7, count=1, path="/fapi/v1/premiumIndex")
        assert get(exchange, "/fapi/v1/fundingInfo").status_code == 200
        refused = get(exchange)
        assert (refused.status_code, refused.headers["Retry-After"]) == (429, "7")
        assert refused.json()["code"] == -1003
        assert get(exchange).status_code == 200
        exchange.rest_ban(EVENT_TIME_MS)
        for _ in range(2):
            banned = get(exchange)
            assert banned.status_code == 418
            assert f"banned until {EVENT_TIME_MS}" in banned.json()["msg"]
        exchange.rest_ok()
        assert get(exchange).status_code == 200
        assert [request.status for request in exchange.rest_requests] == [200, 429, 200, 418, 418, 200]

    def test_bad_bodies(self, exchange: Exchange) -> None:
        """Garbage, HTML and JSON of another shape come with status 200."""
        exchange.rest_garbage()
        with pytest.raises(requests.JSONDecodeError):
            get(exchange).json()
        exchange.rest_html()
        assert get(exchange).text.startswith("<html>")
        exchange.rest_wrong_shape()
        answer = get(exchange)
        assert answer.status_code == 200
        assert isinstance(answer.json(), dict)

    def test_hang(self, exchange: Exchange) -> None:
        """A hanging request is accepted and never answered."""
        exchange.rest_hang()
        with pytest.raises(requests.ReadTimeout):
            get(exchange, timeout_s=0.3)
        assert [request.status for request in exchange.rest_requests] == [0]

    def test_trickle(self, exchange: Exchange) -> None:
        """A trickling answer arrives byte by byte: each read is quick, the whole is not."""
        exchange.rest_trickle(pause_s=0.01)
        started = time.monotonic()
        with requests.get(exchange.rest_url + "/fapi/v1/premiumIndex", stream=True, timeout=LIMIT_S) as answer:
            assert answer.raw.read(20) == b'[{"symbol":"BTCUSDT"'
        assert time.monotonic() - started > 19 * 0.01

    def test_cut_and_reset(self, exchange: Exchange) -> None:
        """An answer can end in its middle, or be an RST."""
        exchange.rest_cut()
        with pytest.raises((requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
            get(exchange)
        exchange.rest_reset()
        connection = http.client.HTTPConnection(exchange.rest_url.removeprefix("http://"), timeout=LIMIT_S)
        connection.request("GET", "/fapi/v1/premiumIndex")
        with pytest.raises(ConnectionResetError) as raised:
            connection.getresponse()
        assert not isinstance(raised.value, http.client.RemoteDisconnected)  # that would be a FIN


class TestProgram:
    """The exchange as a program."""

    def test_prints_urls_and_ends_on_sigterm(self) -> None:
        """It prints the daemon's two settings, serves, and SIGTERM ends it with exit status 0."""
        command = [sys.executable, "-m", "tests.exchange", "--tick", "0.1"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            lines = dict(process.stdout.readline().strip().split("=", 1) for _ in range(2))
            live_url, retired_url = lines["BINANCE_WS_URLS"].split(",")
            with connect(live_url, max_size=None) as connection:
                assert len(rows_of(connection.recv(timeout=LIMIT_S))) == 745
            assert "/stream?" in retired_url
            answer = requests.get(lines["BINANCE_REST_URL"] + "/fapi/v1/premiumIndex", timeout=LIMIT_S)
            assert len(answer.json()) == 664 + 217 + 51
            process.send_signal(signal.SIGTERM)
            assert process.wait(LIMIT_S) == 0

    def test_errors_of_the_thread_are_told(self) -> None:
        """What goes wrong inside the exchange's thread is raised when the exchange stops."""

        class BrokenMarket(Market):
            def messages(self, event_time_ms: int, stream: str = "") -> tuple[str, ...]:
                raise ArithmeticError("broken on purpose")

        exchange = Exchange(BrokenMarket(**SMALL), tick_s=0.05)
        exchange.start()
        with client(exchange):
            exchange.wait(lambda: exchange.ticks)
        with pytest.raises(ArithmeticError, match="broken on purpose"):
            exchange.stop()

    def test_taken_port_is_an_error(self, exchange: Exchange) -> None:
        """Starting on a port already taken raises OSError and leaves nothing open."""
        port = int(exchange.rest_url.rsplit(":", 1)[1])
        with pytest.raises(OSError, match="in use"):
            Exchange(Market(**SMALL), rest_port=port).start()


def get(
    exchange: Exchange,
    path: str = "/fapi/v1/premiumIndex",
    timeout_s: float = LIMIT_S,
    headers: dict[str, str] | None = None,
) -> requests.Response:
    """Ask the exchange's REST side."""
    return requests.get(exchange.rest_url + path, timeout=timeout_s, headers=headers)


@contextlib.contextmanager
def raw_client(exchange: Exchange, *, answered: bool = True) -> Iterator[socket.socket]:
    """Open a WebSocket by hand, so that nothing answers pings or closes by itself."""
    host, port = exchange.ws_url.removeprefix("ws://").split("/")[0].split(":")
    with socket.create_connection((host, int(port)), timeout=LIMIT_S) as sock:
        sock.sendall(
            b"GET /market/stream?streams=!markPrice@arr HTTP/1.1\r\nHost: exchange\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        head = b""
        while answered and not head.endswith(b"\r\n\r\n"):
            head += sock.recv(1)
        assert not answered or head.startswith(b"HTTP/1.1 101 ")
        yield sock


def drain(sock: socket.socket) -> bytes:
    """Read until the FIN and return what was read."""
    received = b""
    while data := sock.recv(65536):
        received += data
    return received
