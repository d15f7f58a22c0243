"""The simulated exchange's REST side keeps its promises, seen through `requests`."""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable, Iterator

import pytest
import requests

from tests.exchange import FUNDING_INFO, FUNDING_RATE, PREMIUM_INDEX, SERVER_TIME, Exchange
from tests.support.exchange_client import get, index_rows, small_exchange
from tests.support.waiting import PATIENCE_S

EVENT_TIME_MS = 1_795_500_000_000


@pytest.fixture
def exchange() -> Iterator[Exchange]:
    """An exchange of few symbols that does nothing unless told."""
    with small_exchange() as exchange:
        yield exchange


class TestRest:
    """The REST side."""

    def test_premium_index(self, exchange: Exchange) -> None:
        """The premium index has rows for all symbols or for one, the weight used, and errors as Binance has them."""
        answer = get(exchange)
        assert answer.json() == exchange.market.premium_index(answer.json()[0]["time"])
        assert answer.headers["X-MBX-USED-WEIGHT-1M"] == "10"
        one = get(exchange, PREMIUM_INDEX + "?symbol=BTCUSDT")
        assert one.json()["symbol"] == "BTCUSDT"
        assert one.headers["X-MBX-USED-WEIGHT-1M"] == "11"
        assert get(exchange, PREMIUM_INDEX + "?symbol=NONE").json()["code"] == -1121
        paths = [request.path for request in exchange.rest_requests]
        assert paths[:2] == [PREMIUM_INDEX, PREMIUM_INDEX + "?symbol=BTCUSDT"]
        assert exchange.rest_requests[0].headers["user-agent"].startswith("python-requests")

    @pytest.mark.parametrize("skew_s", [0, 3600, -3600])
    def test_rows_are_made_anew_each_second(self, exchange: Exchange, skew_s: float) -> None:
        """The rows' event time is the whole second on the exchange's clock, whenever the last tick was, plus a skew."""
        exchange.clock_offset_s = -7200
        exchange.rest_row_skew_s = skew_s
        exchange.tick(EVENT_TIME_MS)
        before_ms = exchange.now_ms() // 1000 * 1000
        (time_ms,) = {row["time"] for row in index_rows(exchange).values()}
        assert before_ms <= time_ms - skew_s * 1000 <= exchange.now_ms()
        assert time_ms % 1000 == 0

    def test_symbols_can_be_missing(self, exchange: Exchange) -> None:
        """Half of the symbols can be missing, and the list be empty."""
        missing = sorted(exchange.market.symbols)[::2]
        exchange.market.only_in_stream.update(missing)
        assert index_rows(exchange).keys() == (exchange.market.symbols | exchange.market.fundless_symbols).difference(
            missing
        )
        exchange.rest_empty()
        assert get(exchange).json() == []
        assert get(exchange, FUNDING_INFO).json() != []

    def test_server_time(self, exchange: Exchange) -> None:
        """The server's time is the exchange's clock; asking costs a weight of 1."""
        exchange.clock_offset_s = -7200
        before_ms = exchange.now_ms()
        answer = get(exchange, SERVER_TIME)
        assert before_ms <= answer.json()["serverTime"] <= exchange.now_ms()
        assert answer.json().keys() == {"serverTime"}
        assert answer.headers["X-MBX-USED-WEIGHT-1M"] == "1"

    def test_server_time_can_be_wrong(self, exchange: Exchange) -> None:
        """The server's time can be off, and jump to and fro with every answer, while rows and ticks are right."""

        def ahead_s() -> float:
            before_ms = exchange.now_ms()
            return float((get(exchange, SERVER_TIME).json()["serverTime"] - before_ms) / 1000)

        exchange.rest_time_skew_s = 1000.0
        exchange.rest_time_jump_s = 10_000.0
        aheads_s = [ahead_s() for _ in range(4)]
        for place, measured_s in enumerate(aheads_s):
            expected_s = 11_000 if place % 2 else 1000
            assert expected_s <= measured_s < expected_s + PATIENCE_S
        assert index_rows(exchange)["BTCUSDT"]["time"] <= exchange.now_ms()

    def test_funding_info(self, exchange: Exchange) -> None:
        """The funding info is the market's."""
        assert get(exchange, FUNDING_INFO).json() == exchange.market.funding_info()

    def test_funding_rate(self, exchange: Exchange) -> None:
        """The settlements are those of the ledger."""
        rows = get(exchange, FUNDING_RATE + "?symbol=BTCUSDT").json()
        assert (200, rows) == exchange.ledger.answer({"symbol": "BTCUSDT"}, exchange.now_ms())
        assert len(rows) == 100
        assert get(exchange, FUNDING_RATE + "?symbol=BTCUSDT&limit=2").json() == rows[-2:]
        assert get(exchange, f"{FUNDING_RATE}?symbol=BTCUSDT&startTime={rows[-3]['fundingTime']}").json() == rows[-3:]
        assert get(exchange, FUNDING_RATE + "?symbol=NONE").json()["code"] == -1121

    def test_settlements_and_funding_info_share_an_allowance(self, exchange: Exchange) -> None:
        """Beyond it both are refused, with the seconds to wait."""
        exchange.allow_settlement_requests(3)
        statuses = [
            get(exchange, path).status_code for path in (FUNDING_RATE, FUNDING_INFO, FUNDING_RATE, FUNDING_INFO)
        ]
        assert statuses == [200, 200, 200, 429]
        assert 0 < int(get(exchange, FUNDING_RATE).headers["Retry-After"]) <= 300

    def test_gzip_where_accepted(self, exchange: Exchange) -> None:
        """The answer is compressed only for those who accept it."""
        path = PREMIUM_INDEX
        assert get(exchange, path).headers["Content-Encoding"] == "gzip"
        plain = get(exchange, path, headers={"Accept-Encoding": "identity"})
        assert "Content-Encoding" not in plain.headers
        assert len(plain.json()) == 9

    def test_weight_limit(self) -> None:
        """Who spends more than 2400 a minute gets 429 and the seconds to the minute's end."""
        with small_exchange() as exchange, requests.Session() as session:
            exchange.clock_offset_s = 30 - time.time() % 60  # far from a minute's end
            url = exchange.rest_url + PREMIUM_INDEX
            statuses = [session.get(url, timeout=PATIENCE_S).status_code for _ in range(240)]
            refused = session.get(url, timeout=PATIENCE_S)
            assert set(statuses) == {200}
            assert refused.status_code == 429
            assert 0 < int(refused.headers["Retry-After"]) <= 30

    def test_status_faults(self, exchange: Exchange) -> None:
        """A fault has status, Retry-After and body, for a path, a number of times, or until cleared."""
        exchange.rest_fault(429, retry_after_s=7, count=1, path=PREMIUM_INDEX)
        assert get(exchange, FUNDING_INFO).status_code == 200
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

    @pytest.mark.parametrize(
        "fault",
        [
            pytest.param(lambda exchange, path: exchange.rest_fault(500, path=path), id="status"),
            pytest.param(lambda exchange, path: exchange.rest_ban(EVENT_TIME_MS, path=path), id="ban"),
            pytest.param(lambda exchange, path: exchange.rest_garbage(path=path), id="garbage"),
            pytest.param(lambda exchange, path: exchange.rest_html(path=path), id="HTML"),
            pytest.param(lambda exchange, path: exchange.rest_wrong_shape(path=path), id="wrong shape"),
            pytest.param(lambda exchange, path: exchange.rest_empty(path=path), id="empty"),
            pytest.param(lambda exchange, path: exchange.rest_hang(path=path), id="hang"),
            pytest.param(lambda exchange, path: exchange.rest_trickle(1.0, path=path), id="trickle"),
            pytest.param(lambda exchange, path: exchange.rest_cut(path=path), id="cut"),
            pytest.param(lambda exchange, path: exchange.rest_reset(path=path), id="reset"),
        ],
    )
    def test_one_path_can_fail(self, exchange: Exchange, fault: Callable[[Exchange, str], None]) -> None:
        """Each fault can be limited to one path; the others answer as ever, and so does this one afterwards."""
        fault(exchange, SERVER_TIME)
        assert not _tells_the_time(exchange)
        assert index_rows(exchange)
        exchange.rest_ok(path=SERVER_TIME)
        assert _tells_the_time(exchange)

    def test_several_paths_can_fail(self, exchange: Exchange) -> None:
        """Faults for several paths hold at once, the longest path counting; one for a shorter path replaces them."""

        def statuses() -> list[int]:
            return [get(exchange, path).status_code for path in (SERVER_TIME, PREMIUM_INDEX, FUNDING_INFO)]

        exchange.rest_fault(500)
        exchange.rest_fault(403, path=SERVER_TIME)
        exchange.rest_fault(429, path=PREMIUM_INDEX, count=1)
        assert statuses() == [403, 429, 500]
        assert statuses() == [403, 500, 500]
        exchange.rest_ok(path=SERVER_TIME)
        assert statuses() == [500, 500, 500]
        exchange.rest_fault(403, path=SERVER_TIME)
        exchange.rest_fault(451)
        assert statuses() == [451, 451, 451]
        exchange.rest_ok()
        assert statuses() == [200, 200, 200]

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
        with requests.get(exchange.rest_url + PREMIUM_INDEX, stream=True, timeout=PATIENCE_S) as answer:
            assert answer.raw.read(20) == b'[{"symbol":"BTCUSDT"'
        assert time.monotonic() - started > 19 * 0.01

    def test_cut_and_reset(self, exchange: Exchange) -> None:
        """An answer can end in its middle, or be an RST."""
        exchange.rest_cut()
        with pytest.raises((requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
            get(exchange)
        exchange.rest_reset()
        connection = http.client.HTTPConnection(exchange.rest_url.removeprefix("http://"), timeout=PATIENCE_S)
        connection.request("GET", PREMIUM_INDEX)
        with pytest.raises(ConnectionResetError) as raised:
            connection.getresponse()
        assert not isinstance(raised.value, http.client.RemoteDisconnected)  # that would be a FIN


def _tells_the_time(exchange: Exchange) -> bool:
    try:
        answer = get(exchange, SERVER_TIME, timeout_s=0.5)
        return answer.status_code == 200 and "serverTime" in answer.json()
    except (requests.RequestException, ValueError, TypeError):
        return False
