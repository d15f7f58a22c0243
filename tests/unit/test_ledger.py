"""The simulated exchange's settlements and its answers to `GET /fapi/v1/fundingRate`."""

from itertools import pairwise

import pytest

from tests.exchange.ledger import MARK_PRICES_SINCE_MS, MAX_LIMIT, Ledger, SharedAllowance
from tests.exchange.market import HOUR_MS, Market

AT_MS = 1_795_507_200_000
"""A whole number of 8 hours."""
SMALL = {"usd_m": 20, "tradfi": 4, "coin_m": 2, "fundless": 2}


def ask(ledger: Ledger, now_ms: int, **query: object) -> list[dict[str, object]]:
    """Return the rows of an answer."""
    status, rows = ledger.answer({name: str(value) for name, value in query.items()}, now_ms)
    assert status == 200
    return list(rows)


def test_a_settlement_is_the_row_of_that_moment_a_few_ms_late() -> None:
    """Rate and mark price are those of the stream at the due time."""
    market = Market(**SMALL)
    rows = ask(Ledger(market), AT_MS + 100, startTime=AT_MS)
    assert {row["symbol"] for row in rows} == market.symbols
    for row in rows:
        streamed = market.row(str(row["symbol"]), AT_MS)
        assert (row["fundingRate"], row["markPrice"]) == (streamed["r"], streamed["p"])
        assert 0 <= int(str(row["fundingTime"])) - AT_MS < 48
    times = [int(str(row["fundingTime"])) for row in rows]
    assert times == sorted(times)


def test_both_ends_of_a_window_are_part_of_it() -> None:
    """So the same millisecond at both ends finds the row."""
    ledger = Ledger(Market(**SMALL))
    (row,) = ask(ledger, AT_MS + 100, symbol="BTCUSDT", startTime=AT_MS, endTime=AT_MS + 60_000)
    at = row["fundingTime"]
    assert ask(ledger, AT_MS + 100, symbol="BTCUSDT", startTime=at, endTime=at) == [row]


def test_a_full_window_has_its_oldest_rows() -> None:
    """And without a start the newest. A start of 0 counts as not sent."""
    ledger = Ledger(Market(**SMALL))
    everything = ledger.rows(AT_MS - 48 * HOUR_MS, AT_MS)
    window = {"startTime": AT_MS - 48 * HOUR_MS, "endTime": AT_MS}
    assert ask(ledger, AT_MS, **window, limit=7) == everything[:7]
    assert ask(ledger, AT_MS, limit=7) == ask(ledger, AT_MS, limit=7, startTime=0) == everything[-7:]
    assert len(ask(ledger, AT_MS, **window)) == 100


def test_the_newest_of_one_symbol_are_at_most_500() -> None:
    """Whatever the limit says; with a start it holds."""
    ledger = Ledger(Market(**SMALL))
    assert len(ask(ledger, AT_MS, symbol="BTCUSDT", limit=1000)) == 500
    assert len(ask(ledger, AT_MS, symbol="BTCUSDT", limit=1000, startTime=AT_MS - 9000 * HOUR_MS)) == 1000


def test_a_limit_above_1000_is_an_error_of_another_kind() -> None:
    """Its body has other members than the usual errors."""
    status, body = Ledger(Market(**SMALL)).answer({"limit": "1001"}, AT_MS)
    assert (status, body["code"], body["type"]) == (400, "000002", "VALID")
    assert Ledger(Market(**SMALL)).answer({"symbol": "NONE"}, AT_MS)[1]["code"] == -1121


def test_there_is_no_mark_price_before_november_2023() -> None:
    """The text is empty."""
    ledger = Ledger(Market(**SMALL))
    before, after = ledger.rows(MARK_PRICES_SINCE_MS - 8 * HOUR_MS, MARK_PRICES_SINCE_MS + HOUR_MS, "BTCUSDT")
    assert before["markPrice"] == ""
    assert float(after["markPrice"]) > 0


def test_publication_can_be_late() -> None:
    """For all symbols, and more so for one."""
    ledger = Ledger(Market(**SMALL), published_after_s=20)
    ledger.published_late_s["ETHUSDT"] = 40.0
    ledger.late_of_ms[AT_MS] = 0
    seen = [{row["symbol"] for row in ask(ledger, AT_MS + s * 1000, startTime=AT_MS)} for s in (19, 20, 59, 60)]
    assert (len(seen[0]), len(seen[1]), len(seen[2]), len(seen[3])) == (0, 23, 23, 24)


def test_a_dividend_is_a_second_row_with_a_time_of_its_own() -> None:
    """Derived ones follow some equity settlements; a test can add one where it wants it."""
    market = Market(**SMALL)
    ledger = Ledger(market)
    ledger.dividends["BTCUSDT", AT_MS] = 8
    regular, special = ledger.rows(AT_MS, AT_MS + 2000, "BTCUSDT")
    assert (regular["rateType"], special["rateType"]) == ("Regular", "Special")
    assert special["fundingTime"] - regular["fundingTime"] == 8
    assert float(special["fundingRate"]) < 0
    year = ledger.rows(AT_MS - 8760 * HOUR_MS, AT_MS - HOUR_MS, "TSLAUSDT")
    apart_ms = [b["fundingTime"] - a["fundingTime"] for a, b in pairwise(year) if b["rateType"] == "Special"]
    assert apart_ms
    assert all(8 <= one <= 1000 for one in apart_ms)


def test_an_interval_change_moves_the_settlements() -> None:
    """The interval in force just before a moment decides whether it is one."""
    ledger = Ledger(Market(**SMALL))
    ledger.change_interval("BTCUSDT", AT_MS + 3 * HOUR_MS + 1, 1)
    ledger.change_interval("BTCUSDT", AT_MS + 6 * HOUR_MS + 1, 4)
    due_h = [h for h in range(17) if ledger.is_due("BTCUSDT", AT_MS + h * HOUR_MS)]
    assert due_h == [0, 4, 5, 6, 8, 12, 16]
    assert ledger.next_funding_time_ms("BTCUSDT", AT_MS + 3 * HOUR_MS) == AT_MS + 8 * HOUR_MS
    assert ledger.next_funding_time_ms("BTCUSDT", AT_MS + 3 * HOUR_MS + 1) == AT_MS + 4 * HOUR_MS


def test_a_window_can_hold_more_than_1000_rows() -> None:
    """An 8 h boundary of a large market does."""
    ledger = Ledger(Market(usd_m=1000, tradfi=200))
    assert len(ledger.rows(AT_MS, AT_MS + 60_000)) >= 1200
    assert len(ask(ledger, AT_MS + 60_000, startTime=AT_MS, limit=1000)) == MAX_LIMIT


def test_the_shared_allowance_refuses_beyond_its_count() -> None:
    """Refused requests count as well; the wait ends when the window has moved on."""
    allowance = SharedAllowance(most=3)
    assert [allowance.take(at_s) for at_s in (0.0, 1.0, 2.0)] == [0.0, 0.0, 0.0]
    assert allowance.take(10.0) == pytest.approx(290.0)
    assert allowance.take(500.0) == 0.0
