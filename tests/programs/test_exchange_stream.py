"""The simulated exchange's stream keeps its promises: what the other tests rely on, seen through another client."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator

import pytest
import requests
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Frame, Opcode

from tests.exchange import ALL, FUNDING_INFO, FUTURE, STREAM_1S, Exchange, ticker_row
from tests.support.exchange_client import (
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


@pytest.fixture
def exchange() -> Iterator[Exchange]:
    """An exchange of few symbols that does nothing unless told."""
    with small_exchange() as exchange:
        yield exchange


class TestStream:
    """The WebSocket on its good days."""

    def test_all_connections_get_the_same_bytes(self) -> None:
        """Two connections get identical messages, at whole multiples of the tick on the exchange's clock."""
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
            assert sorted(set(exchange.ticks)) == exchange.ticks

    def test_tick_sends_two_messages(self, exchange: Exchange) -> None:
        """A tick is two messages with one event time and an envelope, the second all TradFi."""
        with client(exchange) as connection:
            event_time_ms = exchange.tick()
            messages = [connection.recv(timeout=PATIENCE_S) for _ in range(2)]
            assert tuple(messages) == exchange.market.messages(event_time_ms)
            assert {row["s"] for row in rows_of(messages[1])} == exchange.market.tradfi_symbols
            assert json.loads(messages[0])["stream"] == "!markPrice@arr"

    def test_one_second_stream(self, exchange: Exchange) -> None:
        """The path with @1s ticks every second under its own stream name."""
        with client(exchange, exchange.ws_url_1s) as connection:
            message = json.loads(connection.recv(timeout=PATIENCE_S))
            assert message["stream"] == STREAM_1S
            assert message["data"][0]["E"] % 1000 == 0

    def test_retired_path_is_silent(self, exchange: Exchange) -> None:
        """The retired path accepts the handshake and sends pings, but no data."""
        with client(exchange, exchange.retired_url) as retired, client(exchange) as current:
            exchange.tick()
            exchange.ping(0)
            current.recv(timeout=PATIENCE_S)
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
            assert connection.protocol.extensions == []

    def test_pings_are_answered_and_counted(self) -> None:
        """Pings come by themselves; matching pongs, unsolicited ones and client pings are told apart."""
        with (
            small_exchange(ping_s=0.05) as exchange,
            client(exchange) as connection,
        ):
            record = exchange.connections[0]
            exchange.wait(lambda: record.pongs_matched >= 3)
            assert record.pings_sent >= record.pongs_matched
            connection.pong(b"nobody asked")
            pong = connection.ping()
            assert pong.wait(PATIENCE_S)
            exchange.wait(lambda: record.pongs_unsolicited == 1 and record.client_pings == 1)

    def test_missing_pong_closes(self) -> None:
        """A client that answers no ping is closed with 1008 after the deadline, data or not."""
        with (
            small_exchange(tick_s=0.1, ping_s=0.1, pong_deadline_s=0.5) as exchange,
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
            small_exchange(tick_s=0.1, lifetime_s=0.5) as exchange,
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
            one.recv(timeout=PATIENCE_S)

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
            assert rows_of(connection.recv(timeout=PATIENCE_S))[0]["E"] == event_time_ms

    def test_stall_does_not_answer_a_close(self, exchange: Exchange) -> None:
        """A stalled connection takes no note of frames, a close or a FIN, but tells that the client has left."""
        with raw_client(exchange) as sock:
            record = exchange.wait_for_live()[0]
            exchange.stall()
            sock.sendall(Frame(Opcode.PING, b"").serialize(mask=True))
            sock.sendall(Frame(Opcode.CLOSE, b"\x03\xe8").serialize(mask=True))
            sock.shutdown(socket.SHUT_WR)
            assert record.client_gone.wait(PATIENCE_S)
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
                old.recv(timeout=PATIENCE_S)
                assert nothing_comes(new)
            exchange.behave(FUTURE)
            with client(exchange) as newest:
                exchange.tick()
                newest.recv(timeout=PATIENCE_S)

    def test_event_time_stands_still(self, exchange: Exchange) -> None:
        """Standing still repeats the last tick's messages with every tick."""
        with client(exchange) as connection:
            event_time_ms = exchange.tick()
            exchange.stand_still()
            exchange.tick(event_time_ms + 3000)
            messages = [connection.recv(timeout=PATIENCE_S) for _ in range(4)]
            assert messages[:2] == messages[2:]
            assert exchange.ticks == [event_time_ms, event_time_ms + 3000]

    @pytest.mark.parametrize("part", [0, 1])
    def test_one_of_two_messages(self, exchange: Exchange, part: int) -> None:
        """Either of a tick's two messages can be left out while the other goes on."""
        with client(exchange) as connection:
            (exchange.only_first_message, exchange.only_second_message)[part]()
            for _ in range(2):
                event_time_ms = exchange.tick()
                assert connection.recv(timeout=PATIENCE_S) == exchange.market.messages(event_time_ms)[part]

    def test_trickle(self, exchange: Exchange) -> None:
        """A trickling connection sends its bytes in pieces, whole messages still, and recovers in order."""
        with client(exchange) as connection:
            exchange.trickle(piece_bytes=64, pause_s=0.01)
            started = time.monotonic()
            event_time_ms = exchange.tick()
            messages = exchange.market.messages(event_time_ms)
            assert connection.recv(timeout=PATIENCE_S) == messages[0]
            assert time.monotonic() - started > (len(messages[0]) // 64) * 0.01
            exchange.behave()
            exchange.tick(event_time_ms)
            assert [connection.recv(timeout=PATIENCE_S) for _ in range(3)] == [messages[1], *messages]

    def test_any_message_can_be_sent(self, exchange: Exchange) -> None:
        """Malformed JSON, binary frames, empty data and another stream's rows arrive as sent."""
        with client(exchange) as connection:
            exchange.send('{"stream":')
            exchange.send(b"\x00\xff")
            exchange.send_rows([])
            exchange.send_rows([ticker_row("BTCUSDT", EVENT_TIME_MS)], stream="!ticker@arr")
            received = [connection.recv(timeout=PATIENCE_S) for _ in range(4)]
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
            message = connection.recv(timeout=PATIENCE_S)
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
            requests.get(exchange.rest_url, timeout=PATIENCE_S)
        exchange.up()
        assert (exchange.ws_url, exchange.rest_url) == urls
        with client(exchange) as connection:
            exchange.tick()
            connection.recv(timeout=PATIENCE_S)
        assert requests.get(exchange.rest_url + "/fapi/v1/fundingInfo", timeout=PATIENCE_S).ok

    def test_down_takes_a_hanging_handshake_along(self, exchange: Exchange) -> None:
        """A connection that has not finished its handshake does not keep the exchange from going down."""
        exchange.hang_handshakes()
        with raw_client(exchange, answered=False) as sock:
            exchange.wait(lambda: exchange.attempts)
            exchange.down(rest=False)
            with pytest.raises(ConnectionResetError):
                drain(sock)
        assert requests.get(exchange.rest_url + "/fapi/v1/fundingInfo", timeout=PATIENCE_S).ok

    def test_nobody_meant_is_an_error(self, exchange: Exchange) -> None:
        """Misbehaving on connections that are not there is told, not skipped."""
        for which in (ALL, 0, -1):
            with pytest.raises(LookupError):
                exchange.drop(which)


class TestEventTimes:
    """The stream's event times where they are not the exchange's time."""

    def test_lag(self, exchange: Exchange) -> None:
        """A lagging connection gets rows, numbers included, of an earlier time, until it behaves again."""
        with client(exchange) as connection:
            exchange.lag(behind_s=30)
            event_time_ms = exchange.tick()
            messages = tuple(connection.recv(timeout=PATIENCE_S) for _ in range(2))
            assert messages == exchange.market.messages(event_time_ms - 30_000)
            exchange.behave()
            event_time_ms = exchange.tick()
            assert next_tick(connection)["BTCUSDT"]["E"] == event_time_ms

    def test_lag_of_one_connection(self, exchange: Exchange) -> None:
        """Of two connections one can lag while the other is current."""
        with client(exchange) as one, client(exchange) as other:
            exchange.lag(1, 30)
            event_time_ms = exchange.tick()
            assert next_tick(one)["BTCUSDT"]["E"] == event_time_ms
            assert next_tick(other)["BTCUSDT"]["E"] == event_time_ms - 30_000

    def test_lag_grows(self, exchange: Exchange) -> None:
        """A growing lag begins with what is given and grows as fast as was asked for."""
        with client(exchange) as connection:
            began_s = time.monotonic()
            exchange.lag(behind_s=10, growing_s_per_s=100)

            def behind_s() -> float:
                return (exchange.tick() - int(next_tick(connection)["BTCUSDT"]["E"])) / 1000

            first_s = behind_s()
            assert first_s >= 10
            last_s = eventually(lambda: now_s if (now_s := behind_s()) > first_s + 10 else None, "10 s more lag")
            assert last_s < 10 + 100 * (time.monotonic() - began_s) + 0.01

    def test_lag_of_future_connections(self, exchange: Exchange) -> None:
        """Connections to come can lag from their start, growing from then on; those that live do not."""
        with client(exchange) as old:
            exchange.lag(FUTURE, behind_s=20, growing_s_per_s=1000)
            called_s = time.monotonic()
            eventually(lambda: time.monotonic() > called_s + 0.1, "0.1 s")
            began_s = time.monotonic()
            with client(exchange) as new:
                event_time_ms = exchange.tick()
                behind_s = (event_time_ms - next_tick(new)["BTCUSDT"]["E"]) / 1000
                assert 20 <= behind_s < 20 + 1000 * (time.monotonic() - began_s) + 0.01
                assert next_tick(old)["BTCUSDT"]["E"] == event_time_ms
            exchange.behave(FUTURE)
            with client(exchange) as newest:
                event_time_ms = exchange.tick()
                assert next_tick(newest)["BTCUSDT"]["E"] == event_time_ms

    def test_lead(self, exchange: Exchange) -> None:
        """Event times can be ahead of the exchange's clock, which is a negative lag."""
        with client(exchange) as connection:
            exchange.lead(ahead_s=60)
            event_time_ms = exchange.tick()
            assert next_tick(connection)["BTCUSDT"]["E"] == event_time_ms + 60_000
            exchange.lag(behind_s=-5)
            event_time_ms = exchange.tick()
            assert next_tick(connection)["BTCUSDT"]["E"] == event_time_ms + 5000

    def test_some_symbols_lag(self, exchange: Exchange) -> None:
        """Some symbols can lag on every connection, on top of its own lag, while the others are current."""
        with client(exchange) as one, client(exchange) as other:
            exchange.lag_symbols(["ETHUSDT"], 30)
            exchange.lag(1, 7)
            event_time_ms = exchange.tick()
            current, lagging = next_tick(one), next_tick(other)
            assert current["ETHUSDT"] == exchange.market.row("ETHUSDT", event_time_ms - 30_000)
            assert (current["BTCUSDT"]["E"], lagging["BTCUSDT"]["E"]) == (event_time_ms, event_time_ms - 7000)
            assert lagging["ETHUSDT"]["E"] == event_time_ms - 37_000
            exchange.lag_symbols(["ETHUSDT"], 0)
            event_time_ms = exchange.tick()
            assert next_tick(one)["ETHUSDT"]["E"] == event_time_ms

    def test_halted_symbols(self, exchange: Exchange) -> None:
        """A halted symbol's event time stays in stream and REST, as the others' go on, until it resumes."""
        with client(exchange) as connection:
            exchange.tick()
            next_tick(connection)
            halted_at_ms = exchange.halt(["ETHUSDT"])
            exchange.clock_offset_s += 60
            event_time_ms = exchange.tick()
            streamed, answer = next_tick(connection), index_rows(exchange)
            assert streamed["ETHUSDT"]["E"] == answer["ETHUSDT"]["time"] == halted_at_ms
            assert streamed["ETHUSDT"]["p"] == answer["ETHUSDT"]["markPrice"]
            assert streamed["BTCUSDT"]["E"] == event_time_ms
            assert answer["BTCUSDT"]["time"] > halted_at_ms
            exchange.resume(["ETHUSDT"])
            event_time_ms = exchange.tick()
            assert next_tick(connection)["ETHUSDT"]["E"] == event_time_ms
            assert index_rows(exchange)["ETHUSDT"]["time"] > halted_at_ms

    def test_halt_goes_by_the_newest_row_sent(self, exchange: Exchange) -> None:
        """The event time of a halt is the newest that either source has brought: none goes back."""
        with client(exchange) as connection:
            ahead_ms = exchange.tick(exchange.now_ms() + 5000)
            next_tick(connection)
            assert exchange.halt(["ETHUSDT"]) == ahead_ms
            exchange.clock_offset_s += 60
            newest_ms = index_rows(exchange)["BTCUSDT"]["time"]
            assert newest_ms > ahead_ms
            assert exchange.halt(["BTCUSDT"]) >= newest_ms

    def test_listing_and_unlisting(self, exchange: Exchange) -> None:
        """Symbols listed and unlisted while connections live come and go in stream, REST and funding info."""
        with client(exchange) as connection:
            exchange.market.list_later(["NEWUSDT"])
            exchange.market.unlist(["ETHUSDT"])
            exchange.tick()
            for symbols in (
                next_tick(connection).keys(),
                index_rows(exchange).keys(),
                {row["symbol"] for row in get(exchange, FUNDING_INFO).json()},
            ):
                assert "NEWUSDT" in symbols
                assert "ETHUSDT" not in symbols
