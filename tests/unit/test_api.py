"""The answers of the HTTP server to requests for records, whatever state the file is in."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from binance_funding.server.api import Api
from binance_funding.server.http.message import Request
from binance_funding.server.page import CONTENT
from binance_funding.server.state_reader import StateReader
from binance_funding.settings import Settings
from binance_funding.settlements import SettlementWriter, hour_of
from tests.support.api_over_file import STALE_S, ApiOverFile
from tests.support.clock import STEADY_S, WALL_S, SimulatedClock
from tests.support.memory import grown_bytes
from tests.support.samples import record, state
from tests.support.state_files import OLD_FILE, completed

TWO_AGES = {
    "BTCUSDT": record(updatedAt=WALL_S - 1),
    "OLDUSDT": record(updatedAt=WALL_S - STALE_S - 20, source="rest"),
    "币安人生USDT": record(updatedAt=WALL_S - 2, fundingIntervalHours=4),
}
PREMIUM = -0.00047943
"""Of the prices that a record has by default."""

PATHS = tuple(Api(StateReader("/nonexistent"), Settings(), SimulatedClock().clock).endpoints)


def served(records: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return records of a file as they are served."""
    return {
        symbol: {
            "symbol": symbol,
            **one,
            "annualizedFundingRate": round(one["fundingRate"] * 24 / one["fundingIntervalHours"] * 365, 12),
            "premium": round(one["markPrice"] / one["indexPrice"] - 1, 8),
        }
        for symbol, one in records.items()
    }


@pytest.fixture
def server(tmp_path: Path) -> ApiOverFile:
    """An API whose file does not exist yet."""
    return ApiOverFile(tmp_path)


@pytest.mark.parametrize("content", [None, b"", b"junk", b"{}", b'{"version":2}', json.dumps(state()).encode()[:-9]])
def test_without_a_usable_file_everything_with_data_is_unavailable(server: ApiOverFile, content: bytes | None) -> None:
    """503 with the reason, and never a crash; an unknown path is unknown all the same."""
    if content is not None:
        server.put(content)
    for path in ("/funding", "/funding/BTCUSDT", "/funding/report"):
        assert str(server.path) in server.json(path, status=503)["error"]
    assert "error" in server.json("/funding/batch", "symbols=A", status=503)
    assert server.get("/nothing").status == 404


def test_a_file_that_comes_later_is_served_at_once(server: ApiOverFile) -> None:
    """And one that goes is no longer served."""
    assert server.get("/funding/BTCUSDT").status == 503
    server.put(state())
    assert server.get("/funding/BTCUSDT").status == 200
    server.path.unlink()
    assert server.get("/funding/BTCUSDT").status == 503


def test_a_symbol_is_answered_with_its_record_and_what_follows_from_it(server: ApiOverFile) -> None:
    """The record as in the file, the symbol, its age now, and the rate per year."""
    server.put(state({"BTCUSDT": record(updatedAt=WALL_S - 1.5)}))
    server.time.advance(2.25)
    assert server.json("/funding/BTCUSDT") == {
        "symbol": "BTCUSDT",
        **record(updatedAt=WALL_S - 1.5),
        "ageSeconds": 3.75,
        "annualizedFundingRate": 0.1095,
        "premium": PREMIUM,
    }


def test_marks_of_a_record_are_answered_too(server: ApiOverFile) -> None:
    """One that stands still at the exchange is served with its age, marked."""
    server.put(state({"A": record(halted=True, updatedAt=WALL_S - 20), "B": record(fundingIntervalAssumed=True)}))
    answer = server.json("/funding/A")
    assert (answer["halted"], answer["ageSeconds"], "unlisted" in answer) == (True, 20, False)
    assert server.json("/funding/B")["fundingIntervalAssumed"] is True
    assert server.json("/funding")["data"]["A"]["halted"] is True


@pytest.mark.parametrize(
    ("hours", "rate", "annualized"),
    [(1, 0.0001, 0.876), (2, 0.0001, 0.438), (4, 0.0001, 0.219), (8, 0.0001, 0.1095), (8, -0.00750000, -8.2125)],
)
def test_the_rate_per_year_depends_on_the_interval(
    server: ApiOverFile, hours: int, rate: float, annualized: float
) -> None:
    """Rate times intervals per day times 365."""
    server.put(state({"A": record(fundingRate=rate, fundingIntervalHours=hours)}))
    assert server.json("/funding/A")["annualizedFundingRate"] == annualized


@pytest.mark.parametrize(
    ("mark", "index", "premium"),
    [
        (101, 100, 0.01),
        (91725.87823913, 91769.87543478, PREMIUM),
        (0.00012345, 0.00012346, -0.000081),
        (100, 0, None),
        (1e299, 1e-299, None),
    ],
)
def test_the_premium_is_the_mark_price_over_the_index_price(
    server: ApiOverFile, mark: float, index: float, premium: float | None
) -> None:
    """Less 1, with eight decimal places; null if a damaged file makes it no number."""
    server.put(state({"A": record(markPrice=mark, indexPrice=index)}))
    assert server.json("/funding/A")["premium"] == premium
    assert server.json("/funding")["data"]["A"]["premium"] == premium


@pytest.mark.parametrize("path", ["/funding/btcusdt", "/funding/BtcUsdt"])
def test_a_symbol_may_be_asked_in_any_case(server: ApiOverFile, path: str) -> None:
    """It is answered as it is written in the file."""
    server.put(state())
    assert server.json(path)["symbol"] == "BTCUSDT"


def test_a_symbol_need_not_be_ascii(server: ApiOverFile) -> None:
    """It is written as it is, in UTF-8; lower-case letters in it are no obstacle."""
    server.put(state({"币安人生USDT": record(), "aBcUSDT": record()}))
    assert server.json("/funding/币安人生usdt")["symbol"] == "币安人生USDT"
    assert "币安人生USDT".encode() in server.get("/funding/币安人生USDT").body
    assert server.json("/funding/ABCUSDT")["symbol"] == "aBcUSDT"


@pytest.mark.parametrize("asked", ["btcu\u017fdt", "BTCU\u017fDT", "\u212aSMUSDT", "btcußdt", "ﬁlusdt"])
def test_a_letter_that_becomes_another_in_upper_case_is_another_letter(server: ApiOverFile, asked: str) -> None:
    """The long s is no S, and the sign for kelvin no K: what is answered is what was asked for."""
    server.put(state({"BTCUSDT": record(), "KSMUSDT": record(), "BTCUSSDT": record(), "FILUSDT": record()}))
    assert server.json(f"/funding/{asked}", status=404)["error"] == "unknown symbol"
    assert server.json("/funding/batch", f"symbols={asked},BTCUSDT")["missing"] == 1


def test_an_unknown_symbol_is_404(server: ApiOverFile) -> None:
    """With the symbol as asked."""
    server.put(state())
    assert server.json("/funding/nousdt", status=404) == {"symbol": "NOUSDT", "error": "unknown symbol"}


@pytest.mark.parametrize(
    "path",
    [
        "/fundin",
        "/funding/a/b",
        "/funding/a/usdt/b",
        "/funding//usdt",
        "/funding/batch/x",
        "/Funding",
        "/favicon.ico",
        "/funding//a",
    ],
)
def test_an_unknown_path_is_404_with_an_error(server: ApiOverFile, path: str) -> None:
    """Always a small JSON object, which no cache may keep for the next client."""
    server.put(state())
    response = server.get(path)
    assert response.status == 404
    assert list(json.loads(response.body)) == ["error"]
    assert dict(response.headers)["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    "path", ["//", *(f"{path.replace('{symbol}', 'BTCUSDT')}/" for path in PATHS if path != "/"), "/funding/health//"]
)
def test_a_path_with_a_slash_at_the_end_is_unknown(server: ApiOverFile, path: str) -> None:
    """A proxy in front finds its rules by path, so each path has one spelling; the error says what is wrong."""
    server.put(state())
    assert "do not end with a slash" in server.json(path, status=404)["error"]


def test_a_stale_symbol_is_503_with_what_was_last_known(server: ApiOverFile) -> None:
    """Exactly STALE_SECONDS is fresh; beyond, the record comes with error, age and limit."""
    server.put(state({"A": record(updatedAt=WALL_S - 20), "B": record()}))
    server.time.advance(10)
    assert server.json("/funding/A")["ageSeconds"] == STALE_S
    server.time.advance(0.5)
    answer = server.json("/funding/A", status=503)
    assert answer == {
        "symbol": "A",
        **record(updatedAt=WALL_S - 20),
        "ageSeconds": 30.5,
        "annualizedFundingRate": 0.1095,
        "premium": PREMIUM,
        "stale": True,
        "error": "stale data",
        "maxAgeSeconds": STALE_S,
    }
    assert server.get("/funding/B").status == 200


@pytest.mark.parametrize(
    "asked", ["BTC", "btc-usdt", "btc_usdt", "BTC/USDT", "BTCUSD", "BTC-PERP", "BTCUSDT.P", "BTC/USDT:USDT"]
)
def test_another_spelling_of_a_symbol_is_404_with_a_suggestion(server: ApiOverFile, asked: str) -> None:
    """Alone and in a batch. It is not answered as if it were the symbol."""
    server.put(state())
    expected = {"symbol": asked.upper(), "error": "unknown symbol", "suggestion": "BTCUSDT"}
    assert server.json(f"/funding/{asked}", status=404) == expected
    assert server.json("/funding/batch", f"symbols={asked},BTCUSDT")["data"][0] == expected


def test_a_suggestion_is_spelt_as_binance_spells_the_symbol(server: ApiOverFile) -> None:
    """Names in the file may have letters in lower case."""
    server.put(state({"aBcUSDT": record()}))
    assert server.json("/funding/abc", status=404)["suggestion"] == "aBcUSDT"


def test_before_the_first_data_nothing_is_suggested(server: ApiOverFile) -> None:
    """The symbol asked for may exist."""
    server.put(state({}))
    assert server.json("/funding/BTC/USDT", status=503) == {"symbol": "BTC/USDT", "error": "no data yet"}


def test_older_than_the_reader_allows_is_stale_for_this_reader(server: ApiOverFile) -> None:
    """Exactly as old is fresh. Nobody else notices."""
    server.put(state({"A": record(updatedAt=WALL_S - 2.5), "B": record()}))
    assert server.json("/funding/A", "maxAge=2.5")["ageSeconds"] == 2.5
    answer = server.json("/funding/A", "maxAge=2.4", status=503)
    assert answer == {
        **served({"A": record(updatedAt=WALL_S - 2.5)})["A"],
        "ageSeconds": 2.5,
        "stale": True,
        "error": "stale data",
        "maxAgeSeconds": 2.4,
    }
    assert server.json("/funding/B", "maxAge=2.4")["ageSeconds"] == 0
    assert "stale" not in server.json("/funding/A")


@pytest.mark.parametrize("limit", ["30", "31", "1000000", "9" * 400])
def test_a_reader_cannot_allow_more_than_the_service_does(server: ApiOverFile, limit: str) -> None:
    """STALE_SECONDS applies, and the answer says so."""
    server.put(state({"A": record(updatedAt=WALL_S - STALE_S - 0.5)}))
    for path, query in (("/funding/A", ""), ("/funding", "")):
        assert server.json(path, f"{query}maxAge={limit}", status=503)["maxAgeSeconds"] == STALE_S
    (row,) = server.json("/funding/batch", f"symbols=A&maxAge={limit}", status=503)["data"]
    assert row["maxAgeSeconds"] == STALE_S
    assert server.health("unhealthy", f"maxAge={limit}")["symbolsStale"] == 1


@pytest.mark.parametrize("path", ["/funding/A", "/funding", "/funding/batch", "/funding/health"])
@pytest.mark.parametrize("value", ["", "0", "0.0", "-1", "1e3", "+5", "5s", "nan", "inf", ".", "\u0661", "1,5"])
def test_a_limit_that_is_no_number_of_seconds_is_400(server: ApiOverFile, path: str, value: str) -> None:
    """It says what is allowed."""
    server.put(state({"A": record()}))
    error = server.json(path, f"maxAge={value}", status=400)["error"]
    assert error == "maxAge must be a number of seconds above 0, for example 12 or 2.5"
    assert server.json(path, "maxAge=5&maxAge=6", status=400)["error"] == "maxAge must be given only once"


@pytest.mark.parametrize("value", ["5", "5.", "5.0", "05", ".5", "2.125"])
def test_a_limit_may_have_a_fraction(server: ApiOverFile, value: str) -> None:
    """As the settings may."""
    server.put(state({"A": record()}))
    assert server.get("/funding/A", f"maxAge={value}").status == 200


def test_the_list_is_marked_by_the_readers_limit(server: ApiOverFile) -> None:
    """Its tag is that of its own content: the same as everybody's only while the same records are stale."""
    records = {"A": record(updatedAt=WALL_S - 12), "B": record(updatedAt=WALL_S - 3), "C": record()}
    server.put(state(records))
    everybodys = server.get("/funding", accept_encoding="gzip")
    assert server.get("/funding", "maxAge=12", accept_encoding="gzip") == everybodys
    answer = server.get("/funding", "maxAge=11", accept_encoding="gzip")
    content = json.loads(answer.body)
    assert {symbol for symbol, row in content["data"].items() if row.pop("stale", False)} == {"A"}
    assert (content["updatedAt"], content["count"], content["data"]) == (WALL_S, 3, served(records))
    tag = dict(answer.headers)["ETag"]
    assert tag not in {dict(everybodys.headers)["ETag"], dict(server.get("/funding", "maxAge=2").headers)["ETag"]}
    assert server.get("/funding", "maxAge=10", if_none_match=tag).status == 304
    assert server.get("/funding", if_none_match=tag).status == 200
    assert "stale" not in server.json("/funding")["data"]["A"]


def test_a_list_with_nothing_fresh_for_the_reader_is_503(server: ApiOverFile) -> None:
    """With the limit that was applied."""
    server.put(state({"A": record(updatedAt=WALL_S - 12), "B": record(updatedAt=WALL_S - 11)}))
    answer = server.json("/funding", "maxAge=10", status=503)
    assert (answer["error"], answer["maxAgeSeconds"], answer["count"]) == ("stale data", 10, 2)
    assert all(row["stale"] for row in answer["data"].values())
    assert server.get("/funding", "maxAge=10", if_none_match="*").status == 503
    assert server.get("/funding").status == 200


def test_lists_for_many_limits_are_not_kept(server: ApiOverFile) -> None:
    """Three hundred limits, each with other stale records: the bodies together would take 20 MB."""
    server.put(state({f"S{n:03}USDT": record(updatedAt=WALL_S - n / 100) for n in range(300)}))
    server.get("/funding")

    def ask() -> None:
        for number in range(1, 300):
            assert server.get("/funding", f"maxAge={number / 100}", accept_encoding="gzip").status == 200

    assert grown_bytes(ask) < 1_000_000


@pytest.mark.parametrize("path", ["/health", "/healthz"])
def test_health_has_the_paths_that_others_use(server: ApiOverFile, path: str) -> None:
    """They answer as /funding/health does, also to a limit, and are counted with it."""
    assert server.json(path, status=503) == server.health("unhealthy")
    server.put(state())
    server.time.advance(2)
    assert server.json(path) == server.health("healthy")
    assert server.json(path, "maxAge=1", status=503)["status"] == "unhealthy"
    assert server.api.meter.route_of(Request("GET", path, "", {})) == "/funding/health"


def test_ages_grow_while_the_file_stays(server: ApiOverFile) -> None:
    """A dead daemon's data are served until they are stale, with their true age, and not a moment longer."""
    server.put(state())
    for _ in range(10):
        server.time.advance(3)
        expected = server.time.steady_s - STEADY_S
        assert server.json("/funding/BTCUSDT")["ageSeconds"] == expected
    server.time.advance(0.1)
    assert server.get("/funding/BTCUSDT").status == 503


def test_before_the_first_data_a_symbol_is_unavailable(server: ApiOverFile) -> None:
    """A daemon that has just started writes an empty file: not yet is not never."""
    server.put(state({}))
    assert server.json("/funding/BTCUSDT", status=503)["error"] == "no data yet"


def test_the_list_holds_every_record(server: ApiOverFile) -> None:
    """As when asked for one by one but for the age, with the number of them and the time of the newest."""
    records = {"A": record(updatedAt=WALL_S - 5), "币安人生USDT": record()}
    server.put(state(records))
    assert server.json("/funding") == {"updatedAt": WALL_S, "count": 2, "data": served(records)}
    headers = dict(server.get("/funding").headers)
    assert headers["Cache-Control"] == "max-age=1"
    assert headers["Vary"] == "Accept-Encoding"


def test_stale_records_in_the_list_are_marked(server: ApiOverFile) -> None:
    """None passes for a fresh one; one that becomes stale while the file stays is marked then, with another tag."""
    server.put(state(TWO_AGES))
    data = server.json("/funding")["data"]
    assert [symbol for symbol, row in data.items() if row.pop("stale", None) is True] == ["OLDUSDT"]
    assert data == served(TWO_AGES)
    before = dict(server.get("/funding").headers)["ETag"]
    server.time.advance(28.5)
    data = server.json("/funding")["data"]
    assert [symbol for symbol, row in data.items() if row.get("stale")] == ["OLDUSDT", "币安人生USDT"]
    assert dict(server.get("/funding").headers)["ETag"] != before
    assert server.get("/funding", if_none_match=before).status == 200


def test_a_list_without_anything_fresh_is_503(server: ApiOverFile) -> None:
    """With what was last known, marked as stale, whatever the client has cached."""
    old = record(updatedAt=WALL_S - STALE_S - 1)
    server.put(state({"A": old}))
    answer = server.json("/funding", status=503)
    assert (answer["error"], answer["maxAgeSeconds"], answer["count"]) == ("stale data", STALE_S, 1)
    assert answer["data"] == {"A": {**served({"A": old})["A"], "stale": True}}
    assert server.get("/funding", if_none_match="*").status == 503


def test_before_the_first_data_the_list_is_unavailable(server: ApiOverFile) -> None:
    """An empty list would say that there is no market."""
    server.put(state({}))
    answer = server.json("/funding", status=503)
    assert (answer["error"], answer["count"], answer["data"]) == ("no data yet", 0, {})


def test_the_tag_changes_with_the_content_only(server: ApiOverFile) -> None:
    """The same records in a newer file have the same tag: nothing to send again."""
    server.put(state())
    first = dict(server.get("/funding").headers)["ETag"]
    server.time.advance(5)
    server.put(state(updated_at=WALL_S + 5, boottime=STEADY_S + 5))
    assert dict(server.get("/funding").headers)["ETag"] == first
    server.put(state({"BTCUSDT": record(fundingRate=0.5)}))
    assert dict(server.get("/funding").headers)["ETag"] != first


@pytest.mark.parametrize("form", ["{}", "W/{}", '"x", {}', '"x",W/{} , "y"', "*"])
@pytest.mark.parametrize("encoding", ["", "gzip"])
def test_a_known_tag_is_answered_304(server: ApiOverFile, form: str, encoding: str) -> None:
    """Weakly compared, in a list or alone; without body, with the headers a cache needs."""
    server.put(state())
    full = dict(server.get("/funding", accept_encoding=encoding).headers)
    response = server.get("/funding", accept_encoding=encoding, if_none_match=form.format(full["ETag"]))
    headers = dict(response.headers)
    assert (response.status, response.body) == (304, b"")
    assert {name: headers[name] for name in ("ETag", "Cache-Control", "Vary")} == {
        name: full[name] for name in ("ETag", "Cache-Control", "Vary")
    }


@pytest.mark.parametrize("tag", ["", '"other"', "W/", '"*"', "x, *"])
def test_another_tag_is_answered_in_full(server: ApiOverFile, tag: str) -> None:
    """Nothing is left out for a tag that is not ours."""
    server.put(state())
    assert server.get("/funding", if_none_match=tag).status == 200


@pytest.mark.parametrize(
    ("accept", "is_page"),
    [
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", True),
        ("TEXT/HTML; q=0.1", True),
        ("application/json, text/html;level=1", True),
        ("", False),
        ("*/*", False),
        ("text/html;q=0", False),
        ("application/json, text/html; q=0.0", False),
        ("text/htmlx", False),
    ],
)
def test_the_page_is_for_who_accepts_html(server: ApiOverFile, accept: str, is_page: bool) -> None:
    """By that name: curl accepts anything, and gets JSON."""
    headers = dict(server.get("/", accept=accept).headers)
    assert headers["Content-Type"].startswith("text/html" if is_page else "application/json")
    assert headers["Vary"] == "Accept, Accept-Encoding"


def test_the_plain_table_of_the_page_holds_what_is_fresh(server: ApiOverFile) -> None:
    """Stale, halted and delisted symbols are left out. Without fresh data, the page says so."""
    left_out = {"HALT": record(halted=True), "LEFT": record(unlisted=True), "OLD": record(updatedAt=WALL_S - 100)}
    assert b"No fresh data." in server.get("/", accept="text/html").body
    server.put(state({"NEW": record(), **left_out}))
    shown = server.get("/", accept="text/html").body.removeprefix(CONTENT)
    assert b"1 symbols with fresh data" in shown
    assert [name in shown for name in (b"NEW", b"HALT", b"LEFT", b"OLD")] == [True, False, False, False]
    server.time.advance(Settings().stale_seconds + 1)
    assert b"No fresh data." in server.get("/", accept="text/html").body


def test_the_page_is_made_again_only_when_a_record_changes(server: ApiOverFile) -> None:
    """A newer file with the same records changes neither the page nor its tag, and a known tag is answered 304."""
    server.put(state())
    first = server.get("/", accept="text/html")
    tag = dict(first.headers)["ETag"]
    server.time.advance(5)
    server.put(state(updated_at=WALL_S + 5, boottime=STEADY_S + 5))
    assert server.get("/", accept="text/html").body is first.body
    known = server.get("/", accept="text/html", if_none_match=tag)
    assert (known.status, known.body, dict(known.headers)["ETag"]) == (304, b"", tag)
    server.put(state({"BTCUSDT": record(fundingRate=0.5)}))
    assert server.get("/", accept="text/html", if_none_match=tag).status == 200


@pytest.mark.parametrize(
    ("accept", "zipped"),
    [
        ("gzip", True),
        ("GZIP", True),
        ("x-gzip", True),
        ("deflate, gzip;q=1.0, *;q=0.5", True),
        ("gzip ; q=0.001", True),
        ("br;q=1.0,gzip;q=0.8", True),
        ("*", True),
        ("identity;q=0, *", True),
        ("", False),
        ("identity", False),
        ("br", False),
        ("gzip;q=0", False),
        ("gzip; q=0.000", False),
        ("gzip;q=0, *", False),
        ("*;q=0", False),
        ("notgzip", False),
    ],
)
def test_the_list_is_compressed_where_that_is_accepted(server: ApiOverFile, accept: str, zipped: bool) -> None:
    """Weights are read; the compressed form is the same content under a tag of its own."""
    server.put(state(TWO_AGES))
    plain = server.get("/funding")
    response = server.get("/funding", accept_encoding=accept)
    headers = dict(response.headers)
    assert headers.get("Content-Encoding") == ("gzip" if zipped else None)
    assert (gzip.decompress(response.body) if zipped else response.body) == plain.body
    assert (headers["ETag"] != dict(plain.headers)["ETag"]) == zipped
    assert server.get("/funding", accept_encoding=accept).body == response.body


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("has_file", [True, False])
def test_an_unknown_parameter_is_400(server: ApiOverFile, path: str, *, has_file: bool) -> None:
    """Anywhere, data or not: a misspelt one must not be answered with everything, nor kept by a cache."""
    if has_file:
        server.put(state())
    allowed = {
        **dict.fromkeys(("/funding", "/funding/{symbol}", "/funding/health"), "allowed: maxAge"),
        "/funding/{symbol}/history": "allowed: from, to, limit, format",
        "/funding/stream": "allowed: symbols",
        "/funding/batch": "allowed: symbols, sort, limit, maxAge",
    }
    hint = allowed.get(path, "none is allowed here")
    for query in ("symbol=BTCUSDT", "symbol", "symbol=", "&symbol"):
        assert server.json(path, query, status=400)["error"] == f"unknown parameter 'symbol'; {hint}"
        assert dict(server.get(path, query).headers)["Cache-Control"] == "no-store"


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("text", ["%zz", "%", "%4", "%FF", "%4g"])
def test_a_query_that_is_not_percent_encoded_is_400(server: ApiOverFile, path: str, text: str) -> None:
    """In a name or in a value: the server does not guess what the client meant."""
    server.put(state())
    for query in (text, f"symbols=BTCUSDT{text}"):
        assert "error" in server.json(path, query, status=400)


@pytest.mark.parametrize("set_by_s", [3600.0, -3600.0, 86_400.0])
def test_a_set_clock_changes_no_age_within_one_boot(server: ApiOverFile, set_by_s: float) -> None:
    """The file holds its time on the clock that nobody can set: neither younger nor older than it is."""
    server.put(state({"BTCUSDT": record(updatedAt=WALL_S - 1)}))
    server.time.advance(20)
    server.time.set_wall_by(set_by_s)
    assert server.json("/funding/BTCUSDT")["ageSeconds"] == 21
    server.time.advance(10)
    assert server.json("/funding/BTCUSDT", status=503)["ageSeconds"] == 31


@pytest.mark.parametrize("boot_id", ["another", ""])
def test_a_file_of_another_boot_is_as_old_as_the_wall_clock_says(tmp_path: Path, boot_id: str) -> None:
    """Steady times of two boots cannot be compared; an empty name is no match for an empty name."""
    server = ApiOverFile(tmp_path, boot_id)
    server.time.steady_s = 0.0
    server.put(state(boot_id="" if not boot_id else state()["boot_id"]))
    server.time.advance(20)
    assert server.json("/funding/BTCUSDT")["ageSeconds"] == 20
    server.time.advance(11)
    assert server.get("/funding/BTCUSDT").status == 503


def test_a_file_of_another_boot_from_the_future_is_not_fresh(tmp_path: Path) -> None:
    """Its clock was ahead: it is at least as old as this boot, and does not pass for new until its time has come."""
    server = ApiOverFile(tmp_path, boot_id="another")
    server.put(state({"A": record()}))
    server.time.set_wall_by(-3600)
    assert server.json("/funding/A", status=503)["ageSeconds"] >= STALE_S


@pytest.mark.parametrize("set_by_s", [0.0, 3600.0, -3600.0])
@pytest.mark.parametrize("ahead_s", [0.002, 3600.0, 1e299])
def test_a_record_dated_later_than_its_file_is_as_old_as_the_file(
    server: ApiOverFile, ahead_s: float, set_by_s: float
) -> None:
    """It goes stale with the file, whatever the wall clock says, and is not fresh for ever."""
    server.put(state({"A": record(updatedAt=WALL_S + ahead_s)}))
    server.time.set_wall_by(set_by_s)
    server.time.advance(STALE_S)
    answer = server.json("/funding/A")
    assert (answer["ageSeconds"], answer["updatedAt"]) == (STALE_S, WALL_S)
    server.time.advance(1)
    assert server.json("/funding/A", status=503)["stale"] is True
    assert server.get("/funding").status == 503


def test_a_file_dated_long_after_all_times_is_stale(tmp_path: Path) -> None:
    """Its times are too large to add an age to them; they count from this boot."""
    server = ApiOverFile(tmp_path, boot_id="another")
    server.put(state({"A": record(updatedAt=1e299)}, updated_at=1e299))
    assert server.json("/funding/A", status=503)["ageSeconds"] >= STALE_S


def test_times_a_little_in_the_future_are_no_negative_age(tmp_path: Path) -> None:
    """Clocks of two boots differ a little: ages are zero at least."""
    server = ApiOverFile(tmp_path, boot_id="another")
    server.time.steady_s = 0.0
    server.put(state({"A": record(updatedAt=WALL_S + 50)}))
    server.time.set_wall_by(-3)
    assert server.json("/funding/A")["ageSeconds"] == 0


def test_the_version_changes_with_the_file_and_with_time(server: ApiOverFile) -> None:
    """While it is equal, every answer may be given again: at most for a tenth of a second."""
    server.put(state())
    first = server.api.version()
    assert server.api.version() == first
    server.time.advance(0.11)
    second = server.api.version()
    assert second != first
    server.put(state({}))
    assert server.api.version() != second


def test_metrics_are_served_as_prometheus_text(server: ApiOverFile) -> None:
    """With the type that scrapers ask for; they say when the file was written, however long that was ago."""
    server.put(state())
    server.time.advance(3600)
    response = server.get("/metrics", accept_encoding="gzip")
    headers = dict(response.headers)
    assert (response.status, headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert headers["Vary"] == "Accept-Encoding"
    text = gzip.decompress(response.body)
    assert f"binance_funding_state_file_timestamp_seconds {WALL_S!r}\n" in text.decode()
    of_file = text.partition(b"# HELP binance_funding_info")[0]
    assert server.get("/metrics").body.startswith(of_file)
    server.put(state(updated_at=WALL_S + 1))
    assert f"binance_funding_state_file_timestamp_seconds {WALL_S + 1!r}\n" in server.get("/metrics").body.decode()


@pytest.mark.parametrize("content", [None, b"junk"])
def test_without_a_usable_file_there_are_the_metrics_of_the_server(server: ApiOverFile, content: bytes | None) -> None:
    """Nothing of the file, and nothing of the file before it."""
    server.put(state())
    assert b"binance_funding_state_file_timestamp_seconds" in server.get("/metrics").body
    server.path.unlink()
    if content is not None:
        server.put(content)
    response = server.get("/metrics", accept_encoding="gzip")
    text = gzip.decompress(response.body).decode()
    assert response.status == 200
    names = set(re.findall(r"(?m)^# TYPE (\S+)", text))
    assert {"binance_funding_http_connections", "binance_funding_info", "process_start_time_seconds"} <= names
    assert names.isdisjoint({"binance_funding_state_file_timestamp_seconds", "binance_funding_symbols"})


def test_metrics_of_the_server_itself_are_those_of_the_moment(server: ApiOverFile) -> None:
    """Whether the file has changed meanwhile or not."""
    server.put(state())
    for requests in range(3):
        line = f'binance_funding_http_requests_total{{route="/funding",status="200"}} {requests}\n'
        assert (line in server.get("/metrics").body.decode()) == (requests > 0)
        server.api.meter.count("/funding", 200)


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/", "/"),
        ("/funding/", "other"),
        ("/funding/btcusdt/", "other"),
        ("/funding/batch", "/funding/batch"),
        ("/funding/btcusdt", "/funding/{symbol}"),
        ("/funding/no such symbol", "/funding/{symbol}"),
        ("/funding/{symbol}", "/funding/{symbol}"),
        ("/funding/a/b", "other"),
        ("/funding/btc/usdt", "/funding/{symbol}"),
        ("/fundings", "other"),
        ("other", "other"),
        ("*", "other"),
    ],
)
def test_requests_are_counted_by_the_route_that_answers(server: ApiOverFile, path: str, route: str) -> None:
    """What a client asks for does not become a label."""
    assert server.api.meter.route_of(Request("GET", path, "", {})) == route


@given(path=st.text())
def test_routes_are_few(path: str) -> None:
    """Whatever is asked for: each is a time series for ever."""
    api = Api(StateReader("/nonexistent"), Settings(), SimulatedClock().clock)
    assert api.meter.route_of(Request("GET", path, "", {})) in {*PATHS, "other"}


def test_the_root_names_the_endpoints(server: ApiOverFile) -> None:
    """With or without data; each of them can be asked."""
    answer = server.json("/")
    assert (answer["name"], sorted(answer)) == ("binance-funding", ["endpoints", "name", "version"])
    assert {request.partition("?")[0] for request in answer["endpoints"]} == {*PATHS} - {"/"}
    server.put(state())
    SettlementWriter(str(server.history_path), 90).expect(hour_of(round(WALL_S * 1000)), {})
    for path in answer["endpoints"]:
        asked, _, query = path.replace("{symbol}", "BTCUSDT").partition("?")
        assert server.get(asked, query).status == 200


def test_the_file_of_the_release_before_is_served(tmp_path: Path) -> None:
    """An upgraded server answers everything from it, before the daemon has written a new one."""
    written: dict[str, Any] = json.loads(OLD_FILE.read_bytes())
    server = ApiOverFile(tmp_path, boot_id=written["boot_id"])
    server.put(OLD_FILE.read_bytes())
    server.time.wall_s, server.time.steady_s = written["updated_at"] + 2, written["boottime"] + 2
    answer = server.json("/funding/ethusdt")
    assert answer.items() >= completed(written["funding_state"])["ETHUSDT"].items()
    assert answer["ageSeconds"] == pytest.approx(2 + written["updated_at"] - answer["updatedAt"], abs=0.001)
    listing = server.json("/funding")
    assert (listing["count"], listing["data"]) == (18, served(completed(written["funding_state"])))
    health = server.health("healthy")
    assert (health["connections"], health["symbolsFromRest"], health["streamLagSeconds"]) == (2, 1, None)
    report = server.json("/funding/report")
    assert report["gaps"] == {"count": 1, "longestSeconds": 11.228, "totalSeconds": 11.228, "pass": False}
    assert (report["disconnections"]["pass"], report["dataAge"]["pass"], report["comparison"]["runs"]) == (
        True,
        True,
        7,
    )
    assert b'binance_funding_rest_errors_total{status="429"} 0\n' in server.get("/metrics").body
