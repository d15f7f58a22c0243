"""The answers to requests for several records: named, sorted, limited."""

import time
from pathlib import Path
from typing import Any

import pytest

from binance_funding.schema import SERVED
from tests.support.api_over_file import STALE_S, ApiOverFile
from tests.support.clock import WALL_S
from tests.support.samples import record, state

OLD = record(updatedAt=WALL_S - STALE_S - 20, source="rest", fundingRate=0.9)
RECORDS = {
    "BTCUSDT": record(updatedAt=WALL_S - 1),
    "OLDUSDT": OLD,
    "币安人生USDT": record(updatedAt=WALL_S - 2, fundingIntervalHours=4),
    "LOWUSDT": record(fundingRate=-0.002, markPrice=3.5),
}


@pytest.fixture
def server(tmp_path: Path) -> ApiOverFile:
    """An API over four records, one of them stale."""
    api = ApiOverFile(tmp_path)
    api.put(state(RECORDS))
    return api


def names(answer: dict[str, Any]) -> list[str]:
    """Return the symbols of an answer in its order."""
    return [one["symbol"] for one in answer["data"]]


def test_a_batch_counts_found_missing_and_stale(server: ApiOverFile) -> None:
    """In the order asked; an unknown one and a stale one each carry their error."""
    answer = server.json("/funding/batch", "symbols=btcusdt,NOUSDT,%E5%B8%81%E5%AE%89%E4%BA%BA%E7%94%9FUSDT,OLDUSDT")
    assert {name: answer[name] for name in answer if name != "data"} == {
        "found": 2,
        "missing": 1,
        "stale": 1,
        "total": 4,
    }
    assert names(answer) == ["BTCUSDT", "NOUSDT", "币安人生USDT", "OLDUSDT"]
    assert [row.get("error") for row in answer["data"]] == [None, "unknown symbol", None, "stale data"]
    stale = answer["data"][3]
    assert (stale["stale"], stale["ageSeconds"], stale["maxAgeSeconds"]) == (True, STALE_S + 20, STALE_S)
    assert answer["data"][2]["annualizedFundingRate"] == 0.219


def test_a_member_of_a_batch_is_what_is_answered_alone(server: ApiOverFile) -> None:
    """One record, wherever it is asked for."""
    answer = server.json("/funding/batch", "symbols=BTCUSDT,OLDUSDT,NOUSDT")
    statuses = {"BTCUSDT": 200, "OLDUSDT": 503, "NOUSDT": 404}
    assert answer["data"] == [server.json(f"/funding/{name}", status=status) for name, status in statuses.items()]


def test_answers_about_symbols_may_be_cached_for_a_second(server: ApiOverFile) -> None:
    """A proxy in front carries the load, of those that ask for what does not exist too; nothing stale is kept."""
    for path, query in (("/funding/BTCUSDT", ""), ("/funding/NOUSDT", ""), ("/funding/batch", "symbols=BTCUSDT")):
        assert dict(server.get(path, query).headers)["Cache-Control"] == "max-age=1"
    assert dict(server.get("/funding/OLDUSDT").headers)["Cache-Control"] == "no-store"


@pytest.mark.parametrize("query", ["symbols=OLDUSDT", "symbols=OLDUSDT,NOUSDT", "symbols=NOUSDT"])
def test_a_batch_with_nothing_fresh_is_503(server: ApiOverFile, query: str) -> None:
    """A bot that looks at the status alone must not trade on it; what was last known is in the body all the same."""
    answer = server.json("/funding/batch", query, status=503)
    assert (answer["found"], answer["missing"] + answer["stale"]) == (0, answer["total"])
    assert answer["error"] == "nothing requested is fresh"
    assert all(row["error"] for row in answer["data"])


@pytest.mark.parametrize("query", ["symbols=BTCUSDT,NOUSDT", "sort=symbol"])
def test_before_the_first_data_no_symbol_is_unknown(server: ApiOverFile, query: str) -> None:
    """A bot that starts first would drop its whole universe."""
    server.put(state({}))
    for why in ("no data yet", "no such file"):
        answer = server.json("/funding/batch", query, status=503)
        assert why in answer["error"]
        assert {row["error"] for row in answer["data"]} <= {"no data yet"}
        assert (answer["found"], answer["missing"]) == (0, len(answer["data"]))
        server.path.unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("query", "asked"),
    [
        ("symbols=A", ["A"]),
        ("symbols=a,A,%61", ["A"]),
        ("symbols=,A,,+b+,", ["A", "B"]),
        ("symbols=A&symbols=B", ["A", "B"]),
        ("symbols=A%2CB&limit=9", ["A", "B"]),
        ("symbols=%00", ["\0"]),
        ("symbols=" + ",".join(f"S{n}" for n in range(1000)), [f"S{n}" for n in range(1000)]),
    ],
)
def test_symbols_are_read_leniently(server: ApiOverFile, query: str, asked: list[str]) -> None:
    """Any case, spaces, empty and repeated names, percent-encoding: each symbol once."""
    answer = server.json("/funding/batch", query, status=503)
    assert names(answer) == asked
    assert (answer["total"], answer["missing"]) == (len(asked), len(asked))


def test_what_pays_most_comes_first(server: ApiOverFile) -> None:
    """`-` reverses; the counts are of all requested symbols, before `limit`."""
    answer = server.json("/funding/batch", "sort=-annualizedFundingRate&limit=2")
    assert names(answer) == ["币安人生USDT", "BTCUSDT"]
    assert (answer["found"], answer["stale"], answer["total"]) == (3, 1, 4)
    assert names(server.json("/funding/batch", "sort=annualizedFundingRate&limit=1")) == ["LOWUSDT"]


def test_symbols_sort_and_limit_work_together(server: ApiOverFile) -> None:
    """Those named, in the order of the field, as many as wanted."""
    answer = server.json("/funding/batch", "symbols=btcusdt,lowusdt,币安人生usdt&sort=markPrice&limit=1")
    assert names(answer) == ["LOWUSDT"]
    answer = server.json("/funding/batch", "symbols=LOWUSDT,NOUSDT,OLDUSDT,BTCUSDT&limit=1")
    assert names(answer) == ["LOWUSDT"]
    assert [answer[name] for name in ("found", "missing", "stale", "total")] == [2, 1, 1, 4]


def test_a_sorted_batch_with_a_limit_costs_little_while_the_file_stays(server: ApiOverFile) -> None:
    """A hundred requests, at different times, take less than 0.1 s: records are not sorted again for each."""
    server.put(state({f"SIM{n:03}USDT": record(fundingRate=n * 7919 % 1000 / 1e6) for n in range(881)}))
    highest = max((f"SIM{n:03}USDT" for n in range(881)), key=lambda name: int(name[3:6]) * 7919 % 1000)
    taken_s = []
    for _ in range(3):
        start_s = time.process_time()
        for _ in range(100):
            server.time.advance(0.05)
            assert names(server.json("/funding/batch", "sort=-fundingRate&limit=1")) == [highest]
        taken_s.append(time.process_time() - start_s)
    assert min(taken_s) < 0.1


@pytest.mark.parametrize("sort", ["fundingRate", "-fundingRate", "ageSeconds", "-symbol"])
def test_what_is_stale_or_missing_comes_last(server: ApiOverFile, sort: str) -> None:
    """Whatever its value, nobody who takes the first one trades on it."""
    answer = server.json("/funding/batch", f"symbols=NOUSDT,OLDUSDT,BTCUSDT,LOWUSDT&sort={sort}")
    assert set(names(answer)[:2]) == {"BTCUSDT", "LOWUSDT"}
    assert names(answer)[2:] == ["NOUSDT", "OLDUSDT"]


@pytest.mark.parametrize(
    ("sort", "order"),
    [
        ("premium", ["LOWUSDT", "MIDUSDT", "HIGHUSDT", "A", "B"]),
        ("-premium", ["HIGHUSDT", "MIDUSDT", "LOWUSDT", "A", "B"]),
        ("abs(premium)", ["MIDUSDT", "HIGHUSDT", "LOWUSDT", "A", "B"]),
        ("-abs(premium)", ["LOWUSDT", "HIGHUSDT", "MIDUSDT", "A", "B"]),
        ("-abs%28premium%29", ["LOWUSDT", "HIGHUSDT", "MIDUSDT", "A", "B"]),
    ],
)
def test_a_value_that_is_not_known_comes_last_in_both_directions(
    server: ApiOverFile, sort: str, order: list[str]
) -> None:
    """Sorted by value or by magnitude, nobody who takes the first record gets null."""
    premiums = {"A": None, "HIGHUSDT": 0.02, "LOWUSDT": -0.03, "B": None, "MIDUSDT": -0.01}
    prices = {symbol: (1 + premium, 1) if premium else (1, 0) for symbol, premium in premiums.items()}
    server.put(state({symbol: record(markPrice=mark, indexPrice=index) for symbol, (mark, index) in prices.items()}))
    answer = server.json("/funding/batch", f"sort={sort}")
    assert names(answer) == order
    assert [one["premium"] for one in answer["data"]] == [premiums[symbol] for symbol in order]


def test_the_readers_limit_decides_which_records_are_fresh(server: ApiOverFile) -> None:
    """Counts, order and status follow it."""
    answer = server.json("/funding/batch", "sort=-fundingRate&maxAge=1.5")
    assert names(answer) == ["BTCUSDT", "LOWUSDT", "OLDUSDT", "币安人生USDT"]
    assert [answer[name] for name in ("found", "missing", "stale", "total")] == [2, 0, 2, 4]
    assert [one.get("maxAgeSeconds") for one in answer["data"]] == [None, None, 1.5, 1.5]
    assert [one.get("stale") for one in answer["data"]] == [None, None, True, True]
    assert server.json("/funding/batch", "symbols=BTCUSDT&maxAge=0.5", status=503)["stale"] == 1


@pytest.mark.parametrize("field", [*(one.name for one in SERVED), "ageSeconds"])
def test_every_field_of_the_answer_can_be_sorted_by(server: ApiOverFile, field: str) -> None:
    """Up and down."""
    values = [one[field] for one in server.json("/funding/batch", f"sort={field}")["data"][:3]]
    assert values == sorted(values)
    values = [one[field] for one in server.json("/funding/batch", f"sort=-{field}")["data"][:3]]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ("", "symbols or sort is missing, for example /funding/batch?symbols=BTCUSDT,ETHUSDT"),
        ("limit=3", "symbols or sort is missing, for example /funding/batch?symbols=BTCUSDT,ETHUSDT"),
        ("symbols=", "symbols must be names separated by commas, for example BTCUSDT,ETHUSDT"),
        ("symbols=,%20,&sort=symbol", "symbols must be names separated by commas"),
        ("symbol=A", "unknown parameter 'symbol'; allowed: symbols, sort, limit, maxAge"),
        ("SYMBOLS=A", "unknown parameter 'SYMBOLS'; allowed: symbols, sort, limit, maxAge"),
        ("symbols=A&_=1", "unknown parameter '_'; allowed: symbols, sort, limit, maxAge"),
        (f"{'x' * 99}=1", f"unknown parameter '{'x' * 40}'; allowed"),
        ("symbols=%FF", "the query is not percent-encoded UTF-8"),
        (
            "sort=",
            "sort must be field or abs(field), with '-' before it for the largest first; the fields are symbol, fund",
        ),
        ("sort=rate", "sort must be field or abs(field)"),
        ("sort=--fundingRate", "sort must be field or abs(field)"),
        ("sort=error", "sort must be field or abs(field)"),
        ("sort=abs(symbol)", "sort must be field or abs(field)"),
        ("sort=abs(-premium)", "sort must be field or abs(field)"),
        ("sort=abs(premium", "sort must be field or abs(field)"),
        ("sort=symbol&sort=markPrice", "sort must be given only once"),
        ("sort=symbol&limit=0", "limit must be a whole number, 1 or more"),
        ("sort=symbol&limit=-1", "limit must be a whole number, 1 or more"),
        ("sort=symbol&limit=1e3", "limit must be a whole number, 1 or more"),
        ("sort=symbol&limit=", "limit must be a whole number, 1 or more"),
        ("sort=symbol&limit=\u0661", "limit must be a whole number, 1 or more"),
        ("sort=symbol&limit=1&limit=2", "limit must be given only once"),
    ],
)
def test_a_bad_parameter_is_400_and_names_what_is_allowed(server: ApiOverFile, query: str, error: str) -> None:
    """Never is something else answered than what was asked for."""
    assert server.json("/funding/batch", query, status=400)["error"].startswith(error)
    server.path.unlink()
    assert server.json("/funding/batch", query, status=400)["error"].startswith(error)
