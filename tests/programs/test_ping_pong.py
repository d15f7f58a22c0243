"""The claims of docs/ping-pong-timeouts.md, as its experiments show them.

Each experiment runs once, ten times as fast as the real thing, all of its connections at the same time. What
is asserted is whether a connection ended and with which error, never how fast.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from random import Random

import pytest
from websocket._utils import validate_utf8

from docs.experiments import dead_connections, ping_timeouts, utf8_cost

SCALE = 10.0
LIMIT_S = 60.0

PingOutcomes = dict[tuple[str, str], ping_timeouts.Outcome]
DeathOutcomes = dict[tuple[str, str], dead_connections.Outcome]

PING_TIMEOUT = "WebSocketTimeoutException: ping/pong timed out"


@pytest.fixture(scope="module")
def running() -> tuple[Future[PingOutcomes], Future[DeathOutcomes]]:
    """Start both experiments side by side: neither keeps a processor busy."""
    pool = ThreadPoolExecutor(2)
    experiments = (
        pool.submit(ping_timeouts.run_all, ping_timeouts.Timing().divided_by(SCALE)),
        pool.submit(dead_connections.run_all, dead_connections.Timing(SCALE).divided()),
    )
    pool.shutdown(wait=False)
    return experiments


@pytest.fixture(scope="module")
def pings(running: tuple[Future[PingOutcomes], Future[DeathOutcomes]]) -> PingOutcomes:
    """Return what became of each connection of ping_timeouts.py."""
    return running[0].result(LIMIT_S)


@pytest.fixture(scope="module")
def deaths(running: tuple[Future[PingOutcomes], Future[DeathOutcomes]]) -> DeathOutcomes:
    """Return what each client of dead_connections.py noticed."""
    return running[1].result(LIMIT_S)


def test_an_unanswered_ping_ends_the_connection(pings: PingOutcomes) -> None:
    """A server that never answers pings is given up although its data flow."""
    outcome = pings["pings on", "no-pong"]
    assert outcome.error == PING_TIMEOUT
    assert outcome.pings_at_server >= 1
    assert outcome.pongs_from_server_s == []
    assert outcome.messages > 1


def test_a_backlog_before_the_pong_ends_the_connection(pings: PingOutcomes) -> None:
    """A pong that left the server in time does not count while the loop is busy with the messages before it."""
    outcome = pings["pings on", "slow-handler"]
    assert outcome.error == PING_TIMEOUT
    assert_answered_in_time_but_not_read(outcome)


def test_one_stall_of_the_handler_ends_the_connection(pings: PingOutcomes) -> None:
    """After one call that outlasts ping_timeout the check comes before the read of the waiting pong."""
    outcome = pings["pings on", "one-stall"]
    assert outcome.error == PING_TIMEOUT
    assert_answered_in_time_but_not_read(outcome)


def assert_answered_in_time_but_not_read(outcome: ping_timeouts.Outcome) -> None:
    """Assert that the server had answered every ping, the last one long before the client gave up.

    "Long" is half of ping_timeout: a ping that was answered at once was answered a whole ping_timeout before.
    """
    assert outcome.ended_after_s is not None
    assert len(outcome.pongs_from_server_s) == outcome.pings_at_server
    assert outcome.pongs_read == outcome.pings_at_server - 1
    ping_timeout_s = ping_timeouts.Timing().divided_by(SCALE).ping_timeout_s
    assert outcome.ended_after_s - outcome.pongs_from_server_s[-1] > ping_timeout_s / 2


def test_pings_do_no_harm_where_they_are_answered_and_read(pings: PingOutcomes) -> None:
    """The same settings survive a server that answers and a handler that is fast."""
    outcome = pings["pings on", "healthy"]
    assert outcome.ended_after_s is None
    assert outcome.error is None
    assert outcome.pongs_read >= 2


@pytest.mark.parametrize("case", ping_timeouts.CASES)
def test_without_client_pings_every_case_survives(pings: PingOutcomes, case: str) -> None:
    """No ping leaves the client, the connection outlives every case, and the server's own pings are answered."""
    outcome = pings["pings off", case]
    assert outcome.ended_after_s is None
    assert outcome.error is None
    assert outcome.pings_at_server == 0
    assert outcome.messages > 1
    assert outcome.server_pings_answered >= 1


def test_pings_off_does_not_make_a_slow_handler_fast(pings: PingOutcomes) -> None:
    """Where the handler is slower than the feed, data age all the same: that needs a cure of its own."""
    feed_interval_s = ping_timeouts.Timing().divided_by(SCALE).feed_interval_s
    assert pings["pings off", "slow-handler"].last_data_age_s > 2 * feed_interval_s


def test_another_library_gives_up_a_server_that_does_not_answer_too(pings: PingOutcomes) -> None:
    """The fault lies in pinging such a server, not in websocket-client."""
    outcome = pings["websockets", "no-pong"]
    assert "keepalive ping timeout" in str(outcome.error)
    assert outcome.messages > 1


@pytest.mark.parametrize("peer", ["no-handshake", "silent-address", "frozen-peer"])
def test_without_pings_run_forever_sits_by_a_connection_that_brings_nothing(deaths: DeathOutcomes, peer: str) -> None:
    """Where the peer's kernel is alive, nothing in websocket-client ends the waiting."""
    assert deaths[peer, "pings off"].error is None


@pytest.mark.parametrize("peer", ["no-handshake", "silent-address"])
def test_client_pings_do_not_notice_it_either(deaths: DeathOutcomes, peer: str) -> None:
    """Pings start only after the handshake; after it, a peer may answer them and still bring no data."""
    assert deaths[peer, "pings on"].error is None


@pytest.mark.parametrize("peer", ["frozen-peer", "dead-path"])
def test_client_pings_notice_a_peer_that_answers_nothing(deaths: DeathOutcomes, peer: str) -> None:
    """What client pings are for, and what is lost with them."""
    assert deaths[peer, "pings on"].error == PING_TIMEOUT


def test_tcp_keepalive_notices_a_dead_path_without_pings(deaths: DeathOutcomes) -> None:
    """A peer whose kernel is gone too is given up by ours, by the probes websocket-client asks it for."""
    assert deaths["dead-path", "pings off"].error == "WebSocketTimeoutException: Connection timed out"


@pytest.mark.parametrize("peer", dead_connections.PEERS)
def test_the_daemon_notices_every_death(deaths: DeathOutcomes, peer: str) -> None:
    """Silence of mark prices, counted from the start of connecting, covers all four."""
    reported = str(deaths[peer, "daemon"].error)
    if peer == "no-handshake":  # two limits meet here, that of the silence and that of the connection attempt
        assert "no handshake within" in reported or "no answer in time" in reported
    else:
        assert "no new mark prices for" in reported


def test_utf8_validation_costs_many_times_what_parsing_costs() -> None:
    """In pure Python it is the dearest part of handling a message: some 30 times the JSON parsing."""
    message = utf8_cost.market(rows=745)
    validation_ms = utf8_cost.milliseconds("validate_utf8(message)", message)
    assert 100_000 < len(message) < 200_000
    assert validation_ms > 5 * utf8_cost.milliseconds("json.loads(message)", message)
    assert validation_ms > 100 * utf8_cost.milliseconds("message.decode()", message)


def is_utf8(data: bytes) -> bool:
    """Return whether strict decoding takes the bytes."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def test_strict_decoding_rejects_whatever_the_validation_rejects() -> None:
    """Nothing is lost with skip_utf8_validation; a character cut off at the end is even noticed only by decoding."""
    random = Random(20261124)
    rejected = 0
    for _ in range(20_000):
        data = bytearray("r币é😀".encode())
        data[random.randrange(len(data))] = random.randrange(256)
        if not validate_utf8(bytes(data)):
            rejected += 1
            assert not is_utf8(bytes(data))
    assert rejected > 1_000
    cut_off = "币".encode()[:2]
    assert validate_utf8(cut_off)
    assert not is_utf8(cut_off)
