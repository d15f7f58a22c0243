"""What the server answers from the settlement history."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import pytest

from binance_funding.server import history, parameters
from binance_funding.server.http.message import Request, error_response
from binance_funding.server.parameters import InvalidParameter
from binance_funding.settlements import DAY_MS, HOUR_MS, Settlement, SettlementWriter
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
def path() -> Iterator[str]:
    """A history with all settlements of four days, but for one hour three days ago."""
    with fast_folder() as folder:
        writer = SettlementWriter(str(folder / "h"), 90)
        for hour_ms in range(HOUR - DAYS * DAY_MS, HOUR + 1, HOUR_MS):
            if hour_ms != HOUR - 3 * DAY_MS:
                rows = [from_row(row) for row in LEDGER.rows(hour_ms, hour_ms + HOUR_MS - 1)]
                writer.add(rows, [hour_ms], NOW_MS)
        yield str(folder / "h")


class Answer(NamedTuple):
    """An answer, its body read."""

    status: int
    content: Any
    headers: dict[str, str]


def ask(path: str, symbol: str = "BTCUSDT", *, accept: str = "", **query: object) -> Answer:
    """Ask for the history of a symbol; `since` stands for `from`."""
    named = {"from" if name == "since" else name: value for name, value in query.items()}
    given = parameters.parse(urlencode(named), history.PARAMETERS)
    request = Request("GET", f"/funding/{symbol}/history", "", {"accept": accept})
    unknown = None if symbol == "NEWUSDT" else error_response(404, "unknown symbol")
    response = history.answer(path, history.Question(symbol, request, given, NOW_MS), unknown)
    headers = dict(response.headers)
    is_json = headers["Content-Type"].startswith("application/json")
    return Answer(response.status, json.loads(response.body) if is_json else response.body.decode(), headers)


def test_the_history_of_a_symbol(path: str) -> None:
    """Ascending, with sum and average, to be kept by caches for a minute."""
    answer = ask(path, since=HOUR - 2 * DAY_MS)
    rows = LEDGER.rows(HOUR - 2 * DAY_MS, NOW_MS, "BTCUSDT")
    content = answer.content
    assert (answer.status, answer.headers["Cache-Control"] == "max-age=60") == (200, True)
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


def test_an_incomplete_time_has_no_sum(path: str) -> None:
    """An hour of it is unknown. The default is the last 30 days."""
    for content in (ask(path, since=HOUR - 3 * DAY_MS).content, ask(path).content):
        assert (content["complete"], content["fundingRateSum"]) == (False, None)
        assert content["averageAnnualizedFundingRate"] is not None
    assert ask(path).content["from"] == NOW_MS - 30 * DAY_MS


def test_a_limit_keeps_the_newest(path: str) -> None:
    """All of the answer is then about the time from the first of these on."""
    content = ask(path, limit=3).content
    assert (content["count"], content["complete"]) == (3, True)
    assert content["from"] == content["data"][0]["fundingTime"]


def test_a_dividend_is_part_of_the_sum_and_not_of_the_average(path: str) -> None:
    """It was paid, but no rate of a year follows from it."""
    content = ask(path, "TSLAUSDT", since=HOUR - DAY_MS + HOUR_MS).content
    regular = [one for one in content["data"] if one["rateType"] == "Regular"]
    special = [one for one in content["data"] if one["rateType"] == "Special"]
    assert special[-1]["fundingTime"] - regular[-1]["fundingTime"] == 8
    assert special[-1]["fundingIntervalHours"] is None
    assert content["fundingRateSum"] == pytest.approx(sum(one["fundingRate"] for one in regular + special))
    hours = sum(one["fundingIntervalHours"] for one in regular)
    average = sum(one["fundingRate"] for one in regular) / hours * 8760
    assert content["averageAnnualizedFundingRate"] == pytest.approx(average)


@pytest.mark.parametrize(("query", "accept"), [({"format": "csv"}, ""), ({}, "text/csv")])
def test_csv_has_the_same_rows(path: str, query: dict[str, Any], accept: str) -> None:
    """By parameter or by Accept; a parameter wins. Numbers have eight places."""
    answer = ask(path, since=HOUR - DAY_MS, accept=accept, **query)
    rows = list(csv.DictReader(io.StringIO(answer.content)))
    data = ask(path, since=HOUR - DAY_MS).content["data"]
    assert [list(row) for row in rows] == [list(one) for one in data]
    assert [float(row["fundingRate"]) for row in rows] == [one["fundingRate"] for one in data]
    ledger = LEDGER.rows(HOUR - DAY_MS, NOW_MS, "BTCUSDT")
    assert [row["fundingRate"] for row in rows] == [row["fundingRate"] for row in ledger]
    assert ask(path, accept="text/csv", format="json").content["count"] > 0


def test_an_unknown_symbol_is_404_and_a_new_one_is_empty(path: str) -> None:
    """A listed symbol that was never settled has a history without rows."""
    assert ask(path, "NONE").status == 404
    answer = ask(path, "NEWUSDT", since=HOUR - DAY_MS)
    assert (answer.status, answer.content["count"], answer.content["fundingRateSum"]) == (200, 0, 0.0)
    assert answer.content["averageAnnualizedFundingRate"] is None


@pytest.mark.parametrize(
    "query",
    [{"limit": 0}, {"limit": "x"}, {"since": -1}, {"to": "1e3"}, {"format": "xml"}, {"days": 3}, {"since": NOW_MS + 1}],
    ids=str,
)
def test_a_bad_parameter_is_refused(path: str, query: dict[str, Any]) -> None:
    """An unknown one, too."""
    with pytest.raises(InvalidParameter):
        ask(path, **query)


def test_a_history_that_cannot_be_read_is_503(tmp_path: Path) -> None:
    """No cache keeps that."""
    answer = ask(str(tmp_path / "h"))
    assert (answer.status, "error" in answer.content) == (503, True)
    assert answer.headers["Cache-Control"] == "no-store"
