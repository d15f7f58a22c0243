"""The simulated market: what it sends can be recomputed, and differs where a test wants it to."""

from __future__ import annotations

from typing import Any

import pytest

from tests.exchange import Market
from tests.support.exchange_client import SMALL, rows_of

EVENT_TIME_MS = 1_795_500_000_000


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

    def test_symbols_can_lag_in_the_stream(self) -> None:
        """A lagging symbol has an older event time than the others in the stream, numbers of that time, not in REST."""
        market = Market(**SMALL)
        market.lag(["ETHUSDT", "TSLAUSDT"], 30_000)
        assert _streamed(market)["ETHUSDT"] == market.row("ETHUSDT", EVENT_TIME_MS - 30_000)
        assert _streamed(market)["TSLAUSDT"] == market.row("TSLAUSDT", EVENT_TIME_MS - 30_000)
        assert _streamed(market)["BTCUSDT"] == market.row("BTCUSDT", EVENT_TIME_MS)
        assert {row["time"] for row in market.premium_index(EVENT_TIME_MS)} == {EVENT_TIME_MS}
        market.lag(["ETHUSDT"], 0)
        assert _streamed(market)["ETHUSDT"]["E"] == EVENT_TIME_MS
        assert _streamed(market)["TSLAUSDT"]["E"] == EVENT_TIME_MS - 30_000

    def test_symbols_can_halt(self) -> None:
        """A halted symbol's newest row stays in both sources, others advance; older times remain older."""
        market = Market(**SMALL)
        market.halt(["ETHUSDT"], EVENT_TIME_MS)
        later_ms = EVENT_TIME_MS + 60_000
        answer = {row["symbol"]: row for row in market.premium_index(later_ms)}
        assert _streamed(market, later_ms)["ETHUSDT"] == market.row("ETHUSDT", EVENT_TIME_MS)
        assert answer["ETHUSDT"]["time"] == EVENT_TIME_MS
        assert answer["ETHUSDT"]["markPrice"] == market.row("ETHUSDT", EVENT_TIME_MS)["p"]
        assert _streamed(market, later_ms)["BTCUSDT"]["E"] == answer["BTCUSDT"]["time"] == later_ms
        assert _streamed(market, EVENT_TIME_MS - 3000)["ETHUSDT"]["E"] == EVENT_TIME_MS - 3000
        market.resume(["ETHUSDT"])
        assert _streamed(market, later_ms)["ETHUSDT"]["E"] == later_ms

    def test_symbols_can_be_listed_later(self) -> None:
        """A symbol listed later is in the stream, in REST and in the funding info; listing it twice is an error."""
        market = Market(**SMALL)
        market.list_later(["NEWUSDT"], interval_h=1)
        assert "NEWUSDT" in market.symbols
        assert "NEWUSDT" in _streamed(market)
        assert "NEWUSDT" in {row["symbol"] for row in market.premium_index(EVENT_TIME_MS)}
        assert {"NEWUSDT": 1}.items() <= _intervals(market).items()
        assert market.expected("NEWUSDT", EVENT_TIME_MS).funding_interval_h == 1
        with pytest.raises(ValueError, match="NEWUSDT"):
            market.list_later(["NEWUSDT"])

    def test_symbols_can_be_unlisted(self) -> None:
        """An unlisted symbol, TradFi or not, leaves all three; its numbers are still known, and it can come back."""
        market = Market()
        gone = {next(iter(_intervals(market))), "TSLAUSDT"}
        before = {symbol: market.row(symbol, EVENT_TIME_MS) for symbol in gone}
        market.unlist(gone)
        assert not gone & market.symbols
        assert not gone & _streamed(market).keys()
        assert not gone & {row["symbol"] for row in market.premium_index(EVENT_TIME_MS)}
        assert not gone & _intervals(market).keys()
        assert {symbol: market.row(symbol, EVENT_TIME_MS) for symbol in gone} == before
        with pytest.raises(KeyError):
            market.unlist(gone)
        market.list_later(gone)
        assert gone < _streamed(market).keys()


def _streamed(market: Market, event_time_ms: int = EVENT_TIME_MS) -> dict[str, dict[str, Any]]:
    return {row["s"]: row for message in market.messages(event_time_ms) for row in rows_of(message)}


def _intervals(market: Market) -> dict[str, int]:
    return {row["symbol"]: row["fundingIntervalHours"] for row in market.funding_info()}
