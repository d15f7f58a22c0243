"""The answers of the HTTP server in every state that file, data and daemon can be in."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from binance_funding.answers import Answers
from binance_funding.http_server import Request, Response
from binance_funding.settings import Settings
from binance_funding.state_file import StateFile, StateReader, record_text
from tests.fakes import STEADY_S, WALL_S, FakeClock, put, record, state, status

STALE_S = 180.0
HOUR_S = 3600.0


class Server:
    """Answers over a state file, with a clock moved by hand."""

    def __init__(self, directory: Path, boot_id: str | None = None) -> None:
        self.path = directory / "state.json"
        self.time = FakeClock() if boot_id is None else FakeClock(boot_id)
        self.answers = Answers(StateReader(str(self.path)), Settings(), self.time.clock)

    def put(self, content: dict[str, Any] | bytes) -> None:
        """Replace the state file."""
        put(self.path, content)

    def get(self, path: str, query: str = "", **headers: str) -> Response:
        """Ask as the HTTP server does: it looks for changes first."""
        self.answers.epoch()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.answers(Request("GET", path, query, named))

    def json(self, path: str, query: str = "", status: int = 200) -> dict[str, Any]:
        """Return the body of an answer of this status."""
        response = self.get(path, query)
        assert (response.status, dict(response.headers)["Content-Type"]) == (status, "application/json; charset=utf-8")
        assert response.body.endswith(b"\n")
        body: dict[str, Any] = json.loads(response.body)
        check_headers(path, response)
        return body


def check_headers(path: str, response: Response) -> None:
    """Check what holds for every answer: no cache keeps a refusal, health, report or metrics."""
    headers = dict(response.headers)
    assert len(headers) == len(response.headers)
    if response.status == 503:
        assert (headers["Cache-Control"], headers["Retry-After"]) == ("no-store", "5")
    if path in ("/funding/health", "/funding/report", "/metrics"):
        assert headers["Cache-Control"] == "no-store"


@pytest.fixture
def server(tmp_path: Path) -> Server:
    """A server whose file does not exist yet."""
    return Server(tmp_path)


TWO_AGES = {
    "BTCUSDT": record(updatedAt=WALL_S - 1),
    "OLDUSDT": record(updatedAt=WALL_S - STALE_S - 20, source="rest"),
    "币安人生USDT": record(updatedAt=WALL_S - 2, fundingIntervalHours=4),
}


@pytest.mark.parametrize("content", [None, b"", b"junk", b"{}", b'{"version":2}', json.dumps(state()).encode()[:-9]])
def test_without_a_usable_file_everything_with_data_is_unavailable(server: Server, content: bytes | None) -> None:
    """503 with the reason, and never a crash; an unknown path is unknown all the same."""
    if content is not None:
        server.put(content)
    for path in ("/funding", "/funding/BTCUSDT", "/funding/report", "/metrics"):
        assert str(server.path) in server.json(path, status=503)["error"]
    assert "error" in server.json("/funding/batch", "symbols=A", status=503)
    assert server.get("/nothing").status == 404


def test_health_without_a_file_has_all_its_members(server: Server) -> None:
    """The same names as with one, so that a dashboard finds what it shows."""
    without = server.json("/funding/health", status=503)
    assert (without["status"], without["daemonAlive"], without["websocketConnected"]) == ("unhealthy", False, False)
    assert (without["connections"], without["symbolCount"]) == (0, 0)
    assert "no such file" in without["error"]
    server.put(state())
    assert server.json("/funding/health").keys() == without.keys()


def test_a_file_that_comes_later_is_served_at_once(server: Server) -> None:
    """And one that goes is no longer served."""
    assert server.get("/funding/BTCUSDT").status == 503
    server.put(state())
    assert server.get("/funding/BTCUSDT").status == 200
    server.path.unlink()
    assert server.get("/funding/BTCUSDT").status == 503


def test_a_symbol_is_answered_with_its_record_and_what_follows_from_it(server: Server) -> None:
    """The record as in the file, the symbol, its age now, and the rate per year."""
    server.put(state({"BTCUSDT": record(updatedAt=WALL_S - 1.5)}))
    server.time.advance(2.25)
    assert server.json("/funding/BTCUSDT") == {
        "symbol": "BTCUSDT",
        **record(updatedAt=WALL_S - 1.5),
        "ageSeconds": 3.75,
        "annualizedFundingRate": 0.1095,
    }


@pytest.mark.parametrize(
    ("hours", "rate", "annualized"),
    [(1, 0.0001, 0.876), (2, 0.0001, 0.438), (4, 0.0001, 0.219), (8, 0.0001, 0.1095), (8, -0.00750000, -8.2125)],
)
def test_the_rate_per_year_depends_on_the_interval(server: Server, hours: int, rate: float, annualized: float) -> None:
    """Rate times intervals per day times 365."""
    server.put(state({"A": record(fundingRate=rate, fundingIntervalHours=hours)}))
    assert server.json("/funding/A")["annualizedFundingRate"] == annualized


@pytest.mark.parametrize("path", ["/funding/btcusdt", "/funding/BtcUsdt", "/funding/BTCUSDT/"])
def test_a_symbol_may_be_asked_in_any_case(server: Server, path: str) -> None:
    """It is answered as it is written in the file."""
    server.put(state())
    assert server.json(path)["symbol"] == "BTCUSDT"


def test_a_symbol_need_not_be_ascii(server: Server) -> None:
    """It is written as it is, in UTF-8; lower-case letters in it are no obstacle."""
    server.put(state({"币安人生USDT": record(), "aBcUSDT": record()}))
    assert server.json("/funding/币安人生usdt")["symbol"] == "币安人生USDT"
    assert "币安人生USDT".encode() in server.get("/funding/币安人生USDT").body
    assert server.json("/funding/ABCUSDT")["symbol"] == "aBcUSDT"


def test_an_unknown_symbol_is_404(server: Server) -> None:
    """With the symbol as asked."""
    server.put(state())
    assert server.json("/funding/nousdt", status=404) == {"symbol": "NOUSDT", "error": "unknown symbol"}


@pytest.mark.parametrize(
    "path", ["/fundin", "/funding/a/b", "/funding/batch/x", "/Funding", "/favicon.ico", "/funding//a"]
)
def test_an_unknown_path_is_404_with_an_error(server: Server, path: str) -> None:
    """Always a small JSON object."""
    server.put(state())
    response = server.get(path)
    assert response.status == 404
    assert list(json.loads(response.body)) == ["error"]


def test_a_stale_symbol_is_503_with_what_was_last_known(server: Server) -> None:
    """Exactly STALE_SECONDS is fresh; beyond, the record comes with error, age and limit."""
    server.put(state({"A": record(updatedAt=WALL_S - 170), "B": record()}))
    server.time.advance(10)
    assert server.json("/funding/A")["ageSeconds"] == STALE_S
    server.time.advance(0.5)
    answer = server.json("/funding/A", status=503)
    assert answer == {
        "symbol": "A",
        **record(updatedAt=WALL_S - 170),
        "ageSeconds": 180.5,
        "annualizedFundingRate": 0.1095,
        "error": "stale data",
        "maxAgeSeconds": STALE_S,
    }
    assert server.get("/funding/B").status == 200


def test_ages_grow_while_the_file_stays(server: Server) -> None:
    """A dead daemon's data are served until they are stale, with their true age, and not a moment longer."""
    server.put(state())
    for _ in range(18):
        server.time.advance(10)
        expected = server.time.steady_s - STEADY_S
        assert server.json("/funding/BTCUSDT")["ageSeconds"] == expected
    server.time.advance(0.1)
    assert server.get("/funding/BTCUSDT").status == 503


def test_before_the_first_data_a_symbol_is_unavailable(server: Server) -> None:
    """A daemon that has just started writes an empty file: not yet is not never."""
    server.put(state({}))
    server.json("/funding/BTCUSDT", status=503)


def test_a_batch_tells_found_and_missing(server: Server) -> None:
    """In the order asked; an unknown one and a stale one each carry their error."""
    server.put(state(TWO_AGES))
    answer = server.json("/funding/batch", "symbols=btcusdt,NOUSDT,%E5%B8%81%E5%AE%89%E4%BA%BA%E7%94%9FUSDT,OLDUSDT")
    assert (answer["found"], answer["missing"], answer["total"]) == (2, 2, 4)
    assert [row["symbol"] for row in answer["data"]] == ["BTCUSDT", "NOUSDT", "币安人生USDT", "OLDUSDT"]
    assert [row.get("error") for row in answer["data"]] == [None, "unknown symbol", None, "stale data"]
    assert (answer["data"][3]["ageSeconds"], answer["data"][3]["maxAgeSeconds"]) == (200, STALE_S)
    assert answer["data"][2]["annualizedFundingRate"] == 0.219


@pytest.mark.parametrize(
    ("query", "asked"),
    [
        ("symbols=A", ["A"]),
        ("symbols=a,A,%61", ["A"]),
        ("symbols=,A,,+b+,", ["A", "B"]),
        ("symbols=A&symbols=B", ["A", "B"]),
        ("symbols=A%2CB&other=x", ["A", "B"]),
        ("symbols=%FF", ["\ufffd"]),
        ("symbols=%00", ["\0"]),
        ("symbols=" + ",".join(f"S{n}" for n in range(1000)), [f"S{n}" for n in range(1000)]),
    ],
)
def test_a_batch_is_read_leniently(server: Server, query: str, asked: list[str]) -> None:
    """Any case, spaces, empty and repeated names, percent-encoding: each symbol once."""
    server.put(state())
    answer = server.json("/funding/batch", query)
    assert [row["symbol"] for row in answer["data"]] == asked
    assert (answer["total"], answer["missing"]) == (len(asked), len(asked))


@pytest.mark.parametrize("query", ["", "symbols", "symbols=", "symbols=,%20,", "symbol=A", "SYMBOLS=A"])
def test_a_batch_without_symbols_is_400(server: Server, query: str) -> None:
    """The answer shows how to ask."""
    server.put(state())
    response = server.get("/funding/batch", query)
    assert response.status == 400
    assert "/funding/batch?symbols=" in json.loads(response.body)["error"]


def test_the_list_holds_every_record(server: Server) -> None:
    """As in the file, with the number of them and the time of the newest."""
    records = {"A": record(updatedAt=WALL_S - 5), "币安人生USDT": record()}
    server.put(state(records))
    assert server.json("/funding") == {"updatedAt": WALL_S, "count": 2, "data": records}
    headers = dict(server.get("/funding").headers)
    assert headers["Cache-Control"] == "max-age=1"
    assert headers["Vary"] == "Accept-Encoding"


@pytest.mark.parametrize("symbols", [(), ("A", "币安人生USDT")])
def test_the_list_is_the_same_taken_from_the_file_or_written_anew(server: Server, symbols: tuple[str, ...]) -> None:
    """A file as the daemon lays it out is answered without writing every record again."""
    records = [
        record_text(f'"{symbol}"', "0.00010000", "1.50", "1.25", 1, 2, WALL_S - 1, 8, "rest") for symbol in symbols
    ]
    rest = state()
    header = {name: rest.pop(name) for name in ("version", "updated_at")}
    del rest["funding_state"]
    StateFile(str(server.path)).write(records, header, rest)
    taken = server.get("/funding")
    assert (b'"fundingRate":0.00010000,"markPrice":1.50,' in taken.body) == bool(symbols)
    server.put(json.loads(server.path.read_bytes()))
    anew = server.get("/funding")
    assert (taken.status, json.loads(taken.body)) == (anew.status, json.loads(anew.body))
    assert taken.body[-1:] == b"\n"


def test_stale_records_in_the_list_are_marked(server: Server) -> None:
    """None passes for a fresh one; one that becomes stale while the file stays is marked then, with another tag."""
    server.put(state(TWO_AGES))
    data = server.json("/funding")["data"]
    assert [symbol for symbol, row in data.items() if row.pop("stale", None) is True] == ["OLDUSDT"]
    assert data == TWO_AGES
    before = dict(server.get("/funding").headers)["ETag"]
    server.time.advance(178.5)
    data = server.json("/funding")["data"]
    assert [symbol for symbol, row in data.items() if row.get("stale")] == ["OLDUSDT", "币安人生USDT"]
    assert dict(server.get("/funding").headers)["ETag"] != before
    assert server.get("/funding", if_none_match=before).status == 200


@pytest.mark.parametrize("records", [{}, {"A": record(updatedAt=WALL_S - STALE_S - 1)}])
def test_a_list_without_anything_fresh_is_503(server: Server, records: dict[str, Any]) -> None:
    """With what was last known, and whatever the client has cached."""
    server.put(state(records))
    answer = server.json("/funding", status=503)
    assert (answer["error"], answer["maxAgeSeconds"], answer["data"]) == (
        "stale data" if records else "no data yet",
        STALE_S,
        records,
    )
    assert server.get("/funding", if_none_match="*").status == 503


def test_the_tag_changes_with_the_content_only(server: Server) -> None:
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
def test_a_known_tag_is_answered_304(server: Server, form: str, encoding: str) -> None:
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
def test_another_tag_is_answered_in_full(server: Server, tag: str) -> None:
    """Nothing is left out for a tag that is not ours."""
    server.put(state())
    assert server.get("/funding", if_none_match=tag).status == 200


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
def test_the_list_is_compressed_where_that_is_accepted(server: Server, accept: str, zipped: bool) -> None:
    """Weights are read; the compressed form is the same content under a tag of its own."""
    server.put(state(TWO_AGES))
    plain = server.get("/funding")
    response = server.get("/funding", accept_encoding=accept)
    headers = dict(response.headers)
    assert headers.get("Content-Encoding") == ("gzip" if zipped else None)
    assert (gzip.decompress(response.body) if zipped else response.body) == plain.body
    assert (headers["ETag"] != dict(plain.headers)["ETag"]) == zipped
    assert server.get("/funding", accept_encoding=accept).body == response.body


def health(server: Server, expected: str) -> dict[str, Any]:
    """Return /funding/health, of this verdict."""
    body = server.json("/funding/health", status=503 if expected == "unhealthy" else 200)
    assert body["status"] == expected
    return body


def test_a_live_stream_is_healthy(server: Server) -> None:
    """Every member, to the digit."""
    server.put(state({"A": record(updatedAt=WALL_S - 1), "B": record(updatedAt=WALL_S - 100, source="rest")}))
    server.time.advance(2.5)
    assert health(server, "healthy") == {
        "status": "healthy",
        "websocketConnected": True,
        "connections": 2,
        "symbolCount": 2,
        "symbolsFromRest": 1,
        "symbolsStale": 0,
        "oldestDataAgeSeconds": 102.5,
        "newestDataAgeSeconds": 3.5,
        "daemonAlive": True,
        "fallbackActive": False,
        "lastConnectedTime": WALL_S - 3600,
        "messagesReceived": 1234,
        "reconnectAttempts": 5,
        "uptimeSeconds": 7202.5,
        "error": None,
    }


def test_fewer_connections_than_wanted_is_degraded(server: Server) -> None:
    """As the daemon's setting says, else the server's own."""
    server.put(state(connection_status=status(connections=1)))
    assert health(server, "degraded")["error"] == "1 of 2 stream connections"
    server.put(state(connection_status=status(connections=1, connections_wanted=1)))
    health(server, "healthy")
    server.put(state(connection_status=status(connections=1, connections_wanted=None)))
    assert health(server, "degraded")["error"] == "1 of 2 stream connections"


def test_fresh_through_rest_is_degraded(server: Server) -> None:
    """No stream, but data; what REST does not bring is not said to be fresh through it."""
    down = status(connected=False, connections=0, fallback_active=True)
    server.put(state({"A": record(source="rest"), "B": record()}, connection_status=down))
    body = health(server, "degraded")
    assert (body["error"], body["symbolsFromRest"]) == ("no stream connection, fresh through REST", 1)
    assert (body["websocketConnected"], body["connections"], body["fallbackActive"]) == (False, 0, True)
    old = record(source="rest", updatedAt=WALL_S - STALE_S - 1)
    server.put(state({"A": old, "B": record(updatedAt=WALL_S - 2)}, connection_status=down))
    body = health(server, "degraded")
    assert (body["error"], body["symbolsFromRest"]) == ("no stream connection, data 2 s old", 0)


def test_a_part_of_the_market_being_stale_is_degraded(server: Server) -> None:
    """The rest is served as fresh."""
    server.put(state(TWO_AGES))
    body = health(server, "degraded")
    assert (body["error"], body["symbolsStale"]) == (f"1 of {len(TWO_AGES)} symbols are stale", 1)


def test_a_symbol_that_left_the_market_is_told_and_degrades_nothing(server: Server) -> None:
    """Delisted symbols stay for a day, and the service is no worse for it."""
    fresh = {f"S{number}USDT": record() for number in range(200)}
    server.put(state({**fresh, "GONEUSDT": record(updatedAt=WALL_S - 1000)}))
    body = health(server, "healthy")
    assert body["symbolsStale"] == 1


def test_stale_data_are_unhealthy_although_the_daemon_lives(server: Server) -> None:
    """Its heartbeat alone helps nobody."""
    server.put(state({"A": record(updatedAt=WALL_S - STALE_S - 1)}))
    body = health(server, "unhealthy")
    assert (body["error"], body["daemonAlive"]) == ("no new data for 181 s", True)


def test_no_data_yet_is_unhealthy(server: Server) -> None:
    """Ages are unknown then, not zero."""
    server.put(state({}))
    body = health(server, "unhealthy")
    assert (body["error"], body["symbolCount"]) == ("no data yet", 0)
    assert (body["oldestDataAgeSeconds"], body["newestDataAgeSeconds"]) == (None, None)


def test_a_daemon_that_stopped_writing_is_unhealthy_while_its_data_are_fresh(server: Server) -> None:
    """Three heartbeats late is late; what it said of its connections no longer holds; symbols are served meanwhile."""
    server.put(state())
    server.time.advance(15)
    health(server, "healthy")
    server.time.advance(0.5)
    body = health(server, "unhealthy")
    assert body["error"].startswith("the daemon has not written for ")
    assert body["uptimeSeconds"] is None
    assert (body["daemonAlive"], body["websocketConnected"], body["connections"]) == (False, False, 0)
    assert server.get("/funding/BTCUSDT").status == 200


@pytest.mark.parametrize("set_by_s", [HOUR_S, -HOUR_S])
def test_a_set_clock_never_makes_data_look_younger(server: Server, set_by_s: float) -> None:
    """Set between write and read, by an hour: within one boot the age is at least the true one."""
    server.put(state({"BTCUSDT": record(updatedAt=WALL_S - 1)}))
    server.time.advance(100)
    server.time.set_wall_by(set_by_s)
    response = json.loads(server.get("/funding/BTCUSDT").body)
    assert response["ageSeconds"] >= 101
    server.time.advance(80)
    assert server.get("/funding/BTCUSDT").status == 503
    health(server, "unhealthy")


def test_a_clock_set_back_changes_no_age_within_one_boot(server: Server) -> None:
    """The file tells the time on the clock that nobody can set."""
    server.put(state())
    server.time.set_wall_by(-HOUR_S)
    server.time.advance(3)
    assert server.json("/funding/BTCUSDT")["ageSeconds"] == 3
    assert health(server, "healthy")["newestDataAgeSeconds"] == 3


def test_a_clock_set_forward_errs_on_the_safe_side_until_the_next_write(server: Server) -> None:
    """The longer of both clocks counts: data may look older than it is for a moment, never younger."""
    server.put(state())
    server.time.set_wall_by(HOUR_S)
    server.time.advance(3)
    assert server.json("/funding/BTCUSDT", status=503)["ageSeconds"] == HOUR_S + 3


def test_a_file_of_another_boot_is_as_old_as_the_wall_clock_says(tmp_path: Path) -> None:
    """Steady times of two boots cannot be compared."""
    server = Server(tmp_path, boot_id="another")
    server.time.steady_s = 5.0
    server.put(state())
    server.time.advance(60)
    assert server.json("/funding/BTCUSDT")["ageSeconds"] == 60
    server.time.advance(121)
    assert server.get("/funding/BTCUSDT").status == 503


@pytest.mark.parametrize("boot_id", ["", None])
def test_where_no_boot_is_known_the_wall_clock_counts(tmp_path: Path, boot_id: str | None) -> None:
    """An empty name is no match for an empty name."""
    server = Server(tmp_path, boot_id="")
    server.put(state(boot_id=boot_id, boottime=STEADY_S - 1_000_000))
    server.time.advance(7)
    assert server.json("/funding/BTCUSDT")["ageSeconds"] == 7


def test_a_file_of_another_boot_from_the_future_is_not_fresh(tmp_path: Path) -> None:
    """Its clock was ahead: it is at least as old as this boot, and does not pass for new until its time has come."""
    server = Server(tmp_path, boot_id="another")
    server.put(state({"A": record()}))
    server.time.set_wall_by(-HOUR_S)
    assert server.json("/funding/A", status=503)["ageSeconds"] >= STALE_S


def test_times_a_little_in_the_future_are_no_negative_age(tmp_path: Path) -> None:
    """Clocks of two boots differ a little: ages are zero at least."""
    server = Server(tmp_path, boot_id="another")
    server.put(state({"A": record(updatedAt=WALL_S + 50)}))
    server.time.set_wall_by(-3)
    assert server.json("/funding/A")["ageSeconds"] == 0


def test_fallback_is_degraded_although_a_connection_lives(server: Server) -> None:
    """A stream that brings old news is no stream."""
    server.put(state(connection_status=status(fallback_active=True)))
    assert "REST only" in health(server, "degraded")["error"]


def test_the_epoch_changes_with_the_file_and_with_time(server: Server) -> None:
    """While it is equal, every answer may be given again: at most for a tenth of a second."""
    server.put(state())
    first = server.answers.epoch()
    assert server.answers.epoch() == first
    server.time.advance(0.11)
    second = server.answers.epoch()
    assert second != first
    server.put(state({}))
    assert server.answers.epoch() != second


def test_the_report_is_made_of_the_file_and_the_age_of_now(server: Server) -> None:
    """The open gap counts although nobody has written it down."""
    start = WALL_S - WALL_S % 900 - 1800
    counts = {"observed": 900, "unplanned": 0, "planned": 1, "runs": 15, "compared": 10_000, "mismatched": 0}
    server.put(
        state(
            gaps=[{"start": WALL_S - 600, "seconds": 20, "cause": "not running"}],
            history=[{"start": start, "worst": 22.5, **counts}],
        )
    )
    server.time.advance(30)
    assert server.json("/funding/report") == {
        "windowHours": 24,
        "observedHours": 0.25,
        "pass": False,
        "disconnections": {"unplanned": 0, "planned": 1, "pass": True},
        "dataAge": {"worstSeconds": 30, "limitSeconds": STALE_S, "pass": True},
        "comparison": {"runs": 15, "compared": 10_000, "mismatched": 0, "pass": True},
        "gaps": {"count": 2, "longestSeconds": 30, "totalSeconds": 50, "pass": False},
    }


def test_the_report_of_a_daemon_without_data_counts_from_its_start(server: Server) -> None:
    """Nothing since then is a gap, and stale."""
    server.put(state({}, connection_status=status(daemon_start_time=WALL_S - 500)))
    answer = server.json("/funding/report")
    assert (answer["pass"], answer["dataAge"]["worstSeconds"], answer["gaps"]["totalSeconds"]) == (False, 500, 500)


def test_metrics_are_served_as_prometheus_text(server: Server) -> None:
    """With the type that scrapers ask for; they are stale with the data, and say when the file was written."""
    server.put(state())
    server.time.advance(HOUR_S)
    response = server.get("/metrics")
    assert (response.status, dict(response.headers)["Content-Type"]) == (
        200,
        "text/plain; version=0.0.4; charset=utf-8",
    )
    assert f"binance_funding_state_file_timestamp_seconds {WALL_S!r}\n" in response.body.decode()


def test_the_root_names_the_endpoints(server: Server) -> None:
    """With or without data."""
    answer = server.json("/")
    assert (answer["name"], sorted(answer)) == ("binance-funding", ["endpoints", "name", "version"])
    server.put(state())
    for path in answer["endpoints"]:
        asked, _, query = path.replace("{symbol}", "BTCUSDT").partition("?")
        assert server.get(asked, query).status == 200


STATISTICS_JUNK: dict[str, dict[str, Any]] = {
    "errors_by_status null": {"connection_status": status(rest={"errors_by_status": None})},
    "errors_by_status list": {"connection_status": status(rest={"errors_by_status": [1]})},
    "totals list": {"comparison": {"last": None, "totals": []}},
    "fallback text": {"connection_status": status(fallback_active="x")},
    "start time huge": {"connection_status": status(daemon_start_time=10**400)},
}


@pytest.mark.parametrize("members", STATISTICS_JUNK.values(), ids=STATISTICS_JUNK.keys())
def test_no_answer_stumbles_over_junk_among_the_statistics(server: Server, members: dict[str, Any]) -> None:
    """Either the file is refused, or what is junk in it is left out."""
    server.put(state(**members))
    for path in ("/funding/health", "/funding/report", "/metrics", "/funding", "/funding/BTCUSDT"):
        assert server.get(path).status in (200, 503)
