"""/funding/health: one word, what is wrong in one sentence, and ages of the market, not of its luckiest symbol."""

import json
from pathlib import Path
from typing import Any

import pytest

from binance_funding.schema import STATUS
from tests.support.api_over_file import STALE_S, ApiOverFile
from tests.support.clock import WALL_S
from tests.support.samples import record, state, status

DOWN = {"connected": False, "connections": 0, "fallback_active": True}


@pytest.fixture
def server(tmp_path: Path) -> ApiOverFile:
    """An API whose file does not exist yet."""
    return ApiOverFile(tmp_path)


def market(fresh: int, **others: dict[str, Any]) -> dict[str, Any]:
    """Return so many fresh records, and others by name."""
    return {**{f"S{number}USDT": record() for number in range(fresh)}, **others}


def stale(**fields: Any) -> dict[str, Any]:
    """Return a record that is a second too old."""
    return record(updatedAt=WALL_S - STALE_S - 1, **fields)


def test_a_live_stream_is_healthy(server: ApiOverFile) -> None:
    """Every member, to the digit."""
    records = {"A": record(updatedAt=WALL_S - 1), "B": record(updatedAt=WALL_S - 20, source="rest")}
    server.put(state(records, connection_status=status(symbols_from_rest=1)))
    server.time.advance(2.5)
    assert server.health("healthy") == {
        "status": "healthy",
        "websocketConnected": True,
        "connections": 2,
        "symbolCount": 2,
        "symbolsFromRest": 1,
        "symbolsStale": 0,
        "symbolsBehind": 0,
        "symbolsHalted": 0,
        "oldestDataAgeSeconds": 22.5,
        "newestDataAgeSeconds": 3.5,
        "daemonAlive": True,
        "fallbackActive": False,
        "streamLagSeconds": 0.25,
        "ageUncertaintySeconds": 0.0312,
        "lastConnectedTime": WALL_S - 3600,
        "messagesReceived": 1234,
        "reconnectAttempts": 5,
        "uptimeSeconds": 7202.5,
        "error": None,
    }


def test_without_a_file_all_members_are_there(server: ApiOverFile) -> None:
    """The same names as with one, so that a dashboard finds what it shows; what is not known is null."""
    without = server.health("unhealthy")
    assert (without["daemonAlive"], without["websocketConnected"]) == (False, False)
    assert (without["connections"], without["symbolCount"], without["symbolsStale"]) == (0, 0, 0)
    assert "no such file" in without["error"]
    unknown = {name for name, value in without.items() if value is None}
    assert unknown >= {"fallbackActive", "oldestDataAgeSeconds", "newestDataAgeSeconds", "uptimeSeconds"}
    server.put(state())
    assert server.health("healthy").keys() == without.keys()


def test_junk_in_place_of_the_file_is_unhealthy(server: ApiOverFile) -> None:
    """With what is wrong with it; what was read before no longer counts."""
    server.put(state())
    server.health("healthy")
    server.put(b"junk")
    body = server.health("unhealthy")
    assert "not valid JSON" in body["error"]
    assert body["symbolCount"] == 0


def test_every_field_of_the_status_that_is_marked_is_shown(server: ApiOverFile) -> None:
    """Declared in the schema, in camel case here."""
    server.put(state())
    body = server.health("healthy")
    for one in STATUS:
        first, *others = one.name.split("_")
        shown = first + "".join(part.capitalize() for part in others)
        if one.in_health:
            assert body[shown] == status()[one.name]


def test_fewer_connections_than_wanted_are_degraded(server: ApiOverFile) -> None:
    """As the daemon's setting says, else the server's own; with what keeps the other from coming."""
    lost = status(connections=1, last_error="connection reset")
    server.put(state(connection_status=lost))
    assert server.health("degraded")["error"] == "1 of 2 stream connections; stream: connection reset"
    server.put(state(connection_status={**lost, "connections_wanted": 1}))
    assert server.health("healthy")["error"] is None
    server.put(state(connection_status={**lost, "connections_wanted": None, "last_error": None}))
    assert server.health("degraded")["error"] == "1 of 2 stream connections"


def test_without_a_stream_data_from_rest_is_degraded(server: ApiOverFile) -> None:
    """It names both the source and what became of the stream."""
    down = status(**DOWN, symbols_from_rest=2, last_error="refused with 503")
    server.put(state({"A": record(source="rest"), "B": record()}, connection_status=down))
    body = server.health("degraded")
    assert body["error"] == "no stream connection: fresh through REST; stream: refused with 503"
    assert (body["websocketConnected"], body["connections"], body["fallbackActive"]) == (False, 0, True)


@pytest.mark.parametrize(("from_rest", "trouble"), [(0, None), (0, "HTTP 418"), (1, "HTTP 418")])
def test_what_rest_does_not_bring_is_not_called_fresh_through_it(
    server: ApiOverFile, from_rest: int, trouble: str | None
) -> None:
    """With REST refused, or before its first answer, the age of the data is said instead."""
    down = status(**DOWN, symbols_from_rest=from_rest)
    down["rest"]["trouble"] = trouble
    server.put(state({"A": record(updatedAt=WALL_S - 12)}, connection_status=down))
    expected = "no stream connection: newest data 12 s old"
    assert server.health("degraded")["error"] == (expected if trouble is None else f"{expected}; REST: {trouble}")


def test_a_stream_that_lags_is_degraded_and_says_how_far_it_is_behind(server: ApiOverFile) -> None:
    """Its connections are open, and REST stands in for them."""
    lagging = status(fallback_active=True, stream_lag_seconds=12.4, symbols_behind=2, symbols_from_rest=2)
    server.put(state(market(2), connection_status=lagging))
    body = server.health("degraded")
    assert body["error"] == (
        "2 of 2 symbols have nothing current from the stream, the stream lags 12 s behind Binance's clock: "
        "fresh through REST"
    )
    assert (body["streamLagSeconds"], body["symbolsBehind"]) == (12.4, 2)
    server.put(state(market(2), connection_status={**lagging, **DOWN, "stream_lag_seconds": 40.0}))
    assert "no stream connection, the stream lags 40 s behind" in server.health("degraded")["error"]


def test_half_the_market_missing_from_the_stream_is_degraded(server: ApiOverFile) -> None:
    """How many of how many, although both connections are live and do not lag; an old loss is no cause of it."""
    half = status(fallback_active=True, symbols_behind=440, symbols_from_rest=440, last_error="reset, hours ago")
    server.put(state(market(881), connection_status=half))
    assert server.health("degraded")["error"] == (
        "440 of 881 symbols have nothing current from the stream: fresh through REST"
    )


def test_while_binances_time_is_unknown_health_says_that_ages_are_by_arrival(server: ApiOverFile) -> None:
    """That alone is no trouble; beside one it is said too."""
    by_arrival = "ages are by arrival: Binance's time is not known"
    server.put(state(connection_status=status(clock_offset_seconds=None)))
    assert server.health("healthy")["error"] == by_arrival
    server.put(state(connection_status=status(clock_offset_seconds=None, connections=1)))
    assert server.health("degraded")["error"] == f"1 of 2 stream connections; {by_arrival}"


def test_a_part_of_the_market_being_stale_is_degraded(server: ApiOverFile) -> None:
    """More than 1 % of it: the rest is served as fresh."""
    server.put(state(market(98, OLDUSDT=stale(), OLD2USDT=stale())))
    body = server.health("degraded")
    assert (body["error"], body["symbolsStale"]) == ("2 of 100 symbols are stale", 2)
    server.put(state(market(99, OLDUSDT=stale())))
    assert server.health("healthy")["symbolsStale"] == 1


def test_a_reader_with_a_stricter_limit_gets_the_health_for_it(server: ApiOverFile) -> None:
    """Degraded while some data is fresh enough for it, unhealthy if none is."""
    server.put(state(market(98, OLDUSDT=record(updatedAt=WALL_S - 9), OLD2USDT=record(updatedAt=WALL_S - 9))))
    server.time.advance(3)
    assert server.health("healthy", "maxAge=12")["symbolsStale"] == 0
    assert server.health("degraded", "maxAge=11")["error"] == "2 of 100 symbols are stale"
    body = server.health("unhealthy", "maxAge=2.5")
    assert (body["error"], body["symbolsStale"]) == ("no new data for 3 s", 100)
    server.health("healthy")


@pytest.mark.parametrize("down", [{}, DOWN])
def test_data_that_nobody_is_served_is_never_called_fresh(server: ApiOverFile, down: dict[str, Any]) -> None:
    """Both sources are lost, and the daemon lives: degraded until STALE_SECONDS, unhealthy from there."""
    for second in range(60):
        wall_s, steady_s = server.time.wall_s, server.time.steady_s
        lost = status(**down, symbols_from_rest=1)
        server.put(state({"A": record()}, updated_at=wall_s, boottime=steady_s, connection_status=lost))
        body = json.loads(server.get("/funding/health").body)
        assert (body["status"] == "unhealthy") == (second > STALE_S) == (server.get("/funding/A").status == 503)
        server.time.advance(1)


def test_one_lucky_symbol_does_not_make_the_market_fresh(server: ApiOverFile) -> None:
    """All but 1 % stale is unhealthy, whoever still advances."""
    old = {f"OLD{number}USDT": stale() for number in range(880)}
    server.put(state(market(1, **old)))
    body = server.health("unhealthy")
    assert (body["error"], body["symbolsStale"]) == ("880 of 881 symbols are stale", 880)
    assert body["newestDataAgeSeconds"] == 0
    assert body["oldestDataAgeSeconds"] == STALE_S + 1


def test_halted_and_unlisted_symbols_make_nothing_worse(server: ApiOverFile) -> None:
    """They are shown with their age, and counted apart: nobody's fault."""
    apart = {"HALTUSDT": stale(halted=True), "GONEUSDT": stale(unlisted=True)}
    server.put(state(market(2, **apart), connection_status=status(symbols_halted=1)))
    server.time.advance(1)
    body = server.health("healthy")
    assert (body["symbolCount"], body["symbolsStale"], body["symbolsHalted"]) == (4, 0, 1)
    assert (body["oldestDataAgeSeconds"], body["newestDataAgeSeconds"]) == (1, 1)
    assert server.json("/funding/HALTUSDT", status=503)["halted"] is True


def test_stale_data_are_unhealthy_although_the_daemon_lives(server: ApiOverFile) -> None:
    """Its heartbeat alone helps nobody; the causes are named."""
    down = status(**DOWN, last_error="refused with 503")
    down["rest"]["trouble"] = "HTTP 418"
    server.put(state({"A": stale()}, connection_status=down))
    body = server.health("unhealthy")
    assert body["error"] == "no new data for 31 s; stream: refused with 503; REST: HTTP 418"
    assert body["daemonAlive"] is True


def test_no_data_yet_is_unhealthy(server: ApiOverFile) -> None:
    """Ages are unknown then, not zero."""
    server.put(state({}, connection_status=status(clock_offset_seconds=None)))
    body = server.health("unhealthy")
    assert (body["error"], body["symbolCount"]) == ("no data yet", 0)
    assert (body["oldestDataAgeSeconds"], body["newestDataAgeSeconds"]) == (None, None)


def test_a_daemon_that_stopped_writing_is_unhealthy_while_its_data_are_fresh(server: ApiOverFile) -> None:
    """Three heartbeats late is late; what it said of its connections no longer holds; symbols are served meanwhile."""
    server.put(state())
    server.time.advance(15)
    server.health("healthy")
    server.time.advance(0.5)
    body = server.health("unhealthy")
    assert body["error"] == "the daemon has not written for 16 s"
    assert body["uptimeSeconds"] is None
    assert (body["daemonAlive"], body["websocketConnected"], body["connections"]) == (False, False, 0)
    assert server.get("/funding/BTCUSDT").status == 200


@pytest.mark.parametrize("set_by_s", [9.0, 3600.0, -3600.0, 86_400.0])
def test_a_set_clock_is_no_trouble_of_the_daemon(server: ApiOverFile, set_by_s: float) -> None:
    """The heartbeat, ages and the time it has run are counted on the clock that nobody can set."""
    server.put(state())
    server.time.set_wall_by(set_by_s)
    server.time.advance(3)
    body = server.health("healthy")
    assert (body["newestDataAgeSeconds"], body["uptimeSeconds"], body["daemonAlive"]) == (3, 7203, True)
