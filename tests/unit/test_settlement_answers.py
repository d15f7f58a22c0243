"""What the server answers from the settlement history."""

import csv
import io
from collections.abc import Iterator
from typing import Any

import pytest

from binance_funding.server.history import Answer, binance_funding_rate, symbol_history
from binance_funding.settlements import DAY_MS, HOUR_MS, CheckedHour, Settlement, SettlementReader, SettlementWriter
from tests.exchange.ledger import Ledger, Row
from tests.exchange.market import Market
from tests.support.settlement_world import SMALL, fast_folder

HOUR = 1_795_507_200_000
NOW_MS = HOUR + 15 * 60_000
LEDGER = Ledger(Market(**SMALL))
LEDGER.dividends["TSLAUSDT", HOUR] = 8
DAYS = 4


def from_row(row: Row) -> Settlement:
    """Return a row of the ledger as the history keeps it."""
    rate, price = (int(str(row[name]).replace(".", "")) for name in ("fundingRate", "markPrice"))
    return Settlement(row["symbol"], row["fundingTime"], row["rateType"], rate, price)


@pytest.fixture(scope="module")
def reader() -> Iterator[SettlementReader]:
    """A history with all settlements of four days, but for one hour three days ago."""
    with fast_folder() as folder:
        path = str(folder / "h")
        writer = SettlementWriter(path, 90)
        for hour_ms in range(HOUR - DAYS * DAY_MS, HOUR + 1, HOUR_MS):
            if hour_ms != HOUR - 3 * DAY_MS:
                rows = [from_row(row) for row in LEDGER.rows(hour_ms, hour_ms + HOUR_MS - 1)]
                writer.add(rows, CheckedHour(hour_ms, NOW_MS))
        writer.close()
        one = SettlementReader(path)
        yield one
        one.close()


def ask(reader: SettlementReader, symbol: str = "BTCUSDT", *, accepts_csv: bool = False, **query: object) -> Answer:
    """Ask for the history of a symbol; `since` stands for `from`."""
    texts = {"from" if name == "since" else name: str(value) for name, value in query.items()}
    return symbol_history(reader, symbol, texts, NOW_MS, is_listed=symbol == "NEWUSDT", accepts_csv=accepts_csv)


def ask_binance(reader: SettlementReader, **query: object) -> Answer:
    """Ask as a script written for Binance does."""
    texts = {name: str(value) for name, value in query.items()}
    return binance_funding_rate(reader, texts, NOW_MS, is_listed=lambda symbol: symbol == "NEWUSDT")


def test_the_history_of_a_symbol(reader: SettlementReader) -> None:
    """Ascending, with sum and average, to be kept by caches for a minute."""
    answer = ask(reader, since=HOUR - 2 * DAY_MS)
    rows = LEDGER.rows(HOUR - 2 * DAY_MS, NOW_MS, "BTCUSDT")
    content = answer.content
    assert (answer.status, ("Cache-Control", "max-age=60") in answer.headers) == (200, True)
    assert (content["symbol"], content["from"], content["to"]) == ("BTCUSDT", HOUR - 2 * DAY_MS, NOW_MS)
    assert (content["count"], content["complete"]) == (len(rows), True)
    total = sum(float(row["fundingRate"]) for row in rows)
    assert content["fundingRateSum"] == pytest.approx(total)
    assert content["averageAnnualizedFundingRate"] == pytest.approx(total / len(rows) * 3 * 365)
    assert content["data"][0] == {
        "fundingTime": rows[0]["fundingTime"],
        "fundingRate": float(rows[0]["fundingRate"]),
        "markPrice": float(rows[0]["markPrice"]),
        "fundingIntervalHours": 8,
        "rateType": "Regular",
        "lastEstimate": None,
    }


def test_an_incomplete_time_has_no_sum(reader: SettlementReader) -> None:
    """An hour of it is unknown. The default is the last 30 days."""
    for content in (ask(reader, since=HOUR - 3 * DAY_MS).content, ask(reader).content):
        assert (content["complete"], content["fundingRateSum"]) == (False, None)
        assert content["averageAnnualizedFundingRate"] is not None
    assert ask(reader).content["from"] == NOW_MS - 30 * DAY_MS


def test_a_limit_keeps_the_newest(reader: SettlementReader) -> None:
    """All of the answer is then about the time from the first of these on."""
    content = ask(reader, limit=3).content
    assert (content["count"], content["complete"]) == (3, True)
    assert content["from"] == content["data"][0]["fundingTime"]


def test_a_dividend_is_part_of_the_sum_and_not_of_the_average(reader: SettlementReader) -> None:
    """It was paid, but no rate of a year follows from it."""
    content = ask(reader, "TSLAUSDT", since=HOUR - DAY_MS + HOUR_MS).content
    regular = [one for one in content["data"] if one["rateType"] == "Regular"]
    special = [one for one in content["data"] if one["rateType"] == "Special"]
    assert special[-1]["fundingTime"] - regular[-1]["fundingTime"] == 8
    assert special[-1]["fundingIntervalHours"] is None
    assert content["fundingRateSum"] == pytest.approx(sum(one["fundingRate"] for one in regular + special))
    hours = sum(one["fundingIntervalHours"] for one in regular)
    average = sum(one["fundingRate"] for one in regular) / hours * 8760
    assert content["averageAnnualizedFundingRate"] == pytest.approx(average)


@pytest.mark.parametrize(("query", "accepts_csv"), [({"format": "csv"}, False), ({}, True)])
def test_csv_has_the_same_rows(reader: SettlementReader, query: dict[str, Any], accepts_csv: bool) -> None:
    """By parameter or by Accept; a parameter wins."""
    answer = ask(reader, since=HOUR - DAY_MS, accepts_csv=accepts_csv, **query)
    rows = list(csv.DictReader(io.StringIO(answer.content)))
    data = ask(reader, since=HOUR - DAY_MS).content["data"]
    assert [set(row) for row in rows] == [set(one) for one in data]
    assert [float(row["fundingRate"]) for row in rows] == [one["fundingRate"] for one in data]
    assert ask(reader, accepts_csv=True, format="json").content["count"] == len(
        ask(reader).content["data"],
    )


def test_an_unknown_symbol_is_404_and_a_new_one_is_empty(reader: SettlementReader) -> None:
    """A listed symbol that was never settled has a history without rows."""
    assert ask(reader, "NONE").status == 404
    answer = ask(reader, "NEWUSDT", since=HOUR - DAY_MS)
    assert (answer.status, answer.content["count"], answer.content["fundingRateSum"]) == (200, 0, 0.0)
    assert answer.content["averageAnnualizedFundingRate"] is None


@pytest.mark.parametrize(
    "query", [{"limit": 0}, {"limit": "x"}, {"since": -1}, {"to": "1e3"}, {"format": "xml"}, {"days": 3}]
)
def test_a_bad_parameter_is_400(reader: SettlementReader, query: dict[str, Any]) -> None:
    """And no cache keeps it."""
    answer = ask(reader, **query)
    assert (answer.status, ("Cache-Control", "no-store") in answer.headers) == (400, True)


def test_a_history_that_cannot_be_read_is_503() -> None:
    """For both endpoints, in the words of each."""
    with fast_folder() as folder:
        missing = SettlementReader(str(folder / "h"))
        assert (ask(missing).status, "error" in ask(missing).content) == (503, True)
        assert (ask_binance(missing).status, ask_binance(missing).content["code"]) == (503, -1001)
        assert ("Cache-Control", "no-store") in ask(missing).headers


# As Binance answers


@pytest.mark.parametrize(
    "query",
    [
        {},
        {"limit": 1000},
        {"limit": 5, "startTime": 0},
        {"symbol": "BTCUSDT", "limit": 4},
        {"startTime": HOUR, "endTime": HOUR + 60_000},
        {"symbol": "TSLAUSDT", "startTime": HOUR, "endTime": NOW_MS},
        {"startTime": HOUR - 2 * DAY_MS, "limit": 7},
        {"startTime": HOUR - 2 * DAY_MS, "endTime": HOUR - DAY_MS, "limit": 9},
        {"endTime": HOUR - DAY_MS, "limit": 9},
        {"startTime": NOW_MS, "endTime": HOUR},
        {"limit": 1001},
        {"symbol": "NONE"},
    ],
    ids=str,
)
def test_the_answer_is_binances(query: dict[str, Any]) -> None:
    """Row by row, in windows, of one symbol or all, with errors."""
    with fast_folder() as folder:
        path = str(folder / "h")
        writer = SettlementWriter(path, 90)
        for hour_ms in range(HOUR - DAYS * DAY_MS, HOUR + 1, HOUR_MS):
            rows = [from_row(row) for row in LEDGER.rows(hour_ms, hour_ms + HOUR_MS - 1)]
            writer.add(rows, CheckedHour(hour_ms, NOW_MS))
        writer.close()
        answer = ask_binance(SettlementReader(path), **query)
    status, content = LEDGER.answer({name: str(value) for name, value in query.items()}, NOW_MS)
    assert answer.status == status
    if isinstance(content, list):
        kept = [row for row in content if row["fundingTime"] >= HOUR - DAYS * DAY_MS]
        in_order = lambda row: (row["fundingTime"], row["symbol"])  # noqa: E731
        assert sorted(answer.content, key=in_order) == sorted(kept, key=in_order)
        times = [row["fundingTime"] for row in answer.content]
        assert times == sorted(times)
    else:
        assert answer.content == content


def test_a_time_with_an_unknown_hour_is_503(reader: SettlementReader) -> None:
    """A script would take what is there for everything. What is older than the history is left out silently."""
    assert ask_binance(reader, startTime=HOUR - 4 * DAY_MS, limit=1000).status == 503
    assert ask_binance(reader, startTime=HOUR - 4 * DAY_MS, limit=10).status == 200
    assert ask_binance(reader, limit=10).status == 200
    assert ask_binance(reader, startTime=HOUR - 2 * DAY_MS, limit=1000).status == 200
    assert ask_binance(reader, startTime=1, limit=1000).status == 503
    assert ask_binance(reader, startTime=1, endTime=HOUR - 3 * DAY_MS - 1).status == 200


@pytest.mark.parametrize("query", [{"limit": "x"}, {"limit": 0}, {"startTime": "-1"}, {"endTime": "now"}])
def test_a_parameter_that_is_no_number_is_binances_error(reader: SettlementReader, query: dict[str, Any]) -> None:
    """With its code. Parameters that Binance does not know either are ignored."""
    assert (ask_binance(reader, **query).status, ask_binance(reader, **query).content["code"]) == (400, -1100)
    assert ask_binance(reader, symbol="BTCUSDT", limit=1, recvWindow=5000).status == 200
