"""Push over real sockets: what subscribers get from the real server, and what they may not cost the others."""

import contextlib
import json
import signal
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from binance_funding.clock import Clock
from tests.support.http_client import Client
from tests.support.programs import Server
from tests.support.samples import put, record, state
from tests.support.subscriber import Subscriber
from tests.support.waiting import eventually

CLOCK = Clock()
NAMES = [f"SIM{number:03}USDT" for number in range(880)] + ["币安人生USDT"]


def write(folder: Path, records: dict[str, dict[str, Any]], **members: Any) -> None:
    """Put a state file there as a daemon would that has just got these records."""
    now = CLOCK.now()
    fresh = {symbol: {**one, "updatedAt": now.wall_s} for symbol, one in records.items()}
    times = {"updated_at": now.wall_s, "boottime": now.steady_s, "boot_id": CLOCK.boot_id}
    put(folder / "state.json", state(fresh, **{**times, **members}))


def market(rate: float = 0.0001) -> dict[str, dict[str, Any]]:
    """Return records of the whole market."""
    return {name: record(fundingRate=rate) for name in NAMES}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server over the whole market. Nobody writes its file but the test."""
    write(tmp_path, market())
    with Server(tmp_path, STATE_FILE="state.json", HEARTBEAT_SECONDS=30, STALE_SECONDS=60) as server:
        yield server


def has_rate(subscriber: Subscriber, rate: float) -> bool:
    """Tell whether a subscriber holds this funding rate of the first symbol."""
    return bool(subscriber.follower.data.get(NAMES[0], {}).get("fundingRate") == rate)


def has_data(subscriber: Subscriber) -> bool:
    """Tell whether a subscriber holds anything."""
    return bool(subscriber.follower.data)


def test_more_symbols_than_the_kernel_takes_pieces_at_once(server: Server, tmp_path: Path) -> None:
    """The snapshot of 1,200 named symbols comes whole, although one system call takes 1,024 pieces."""
    names = [f"S{number:04}USDT" for number in range(1201)]
    write(tmp_path, {name: record() for name in names})
    with Subscriber(server.port, f"?symbols={','.join(names[1:])}") as subscriber:
        subscriber.wait(lambda: len(subscriber.follower.data) == 1200, "all records")


def test_every_name_fits_into_one_request(server: Server) -> None:
    """881 of them, percent-encoded, commas too, in lower case, with one that nobody knows."""
    with Subscriber(server.port, "?symbols=" + quote(",".join([*NAMES, "nope"]).lower(), safe="")) as subscriber:
        subscriber.wait(lambda: len(subscriber.follower.data) == 881, "all records")
        assert subscriber.follower.data == server.get("/funding")[1]["data"]


def test_what_changes_is_pushed_to_all(server: Server, tmp_path: Path) -> None:
    """Whoever follows holds what the list holds: of the whole market or of some symbols."""
    with Subscriber(server.port) as everything, Subscriber(server.port, f"?symbols={NAMES[0]}") as one:
        for rate in (0.0002, 0.0003):
            write(tmp_path, market(rate))
            everything.wait(partial(has_rate, everything, rate), "the new rate")
            one.wait(partial(has_rate, one, rate), "the new rate")
        assert everything.follower.data == server.get("/funding")[1]["data"]
        assert list(one.follower.data) == [NAMES[0]]


def test_a_reader_that_slept_gets_the_newest_state_complete_and_once(server: Server, tmp_path: Path) -> None:
    """What it missed is not queued: after what its socket still held comes one update."""
    with Subscriber(server.port, receive_buffer=4096) as sleeper, Subscriber(server.port) as reader:
        for number in range(1, 41):
            write(tmp_path, market(number / 10_000))
            reader.wait(partial(has_rate, reader, number / 10_000), "each change")
        sleeper.wait(partial(has_rate, sleeper, 40 / 10_000), "the newest rate")
        assert sleeper.follower.data == server.get("/funding")[1]["data"]
        assert sleeper.follower.events.count("update") <= 3


def test_status_comes_by_itself_when_the_file_goes_and_when_it_is_back(server: Server, tmp_path: Path) -> None:
    """With the body of health; the records of a file that is gone are gone."""
    with Subscriber(server.port) as subscriber:
        subscriber.wait(lambda: subscriber.follower.status.get("status") == "healthy", "the first status")
        (tmp_path / "state.json").unlink()
        subscriber.wait(lambda: subscriber.follower.status["status"] == "unhealthy", "the file is missed")
        assert "no such file" in subscriber.follower.status["error"]
        assert subscriber.follower.data == {}
        write(tmp_path, market())
        subscriber.wait(lambda: subscriber.follower.status["status"] == "healthy", "the file is back")
        assert len(subscriber.follower.data) == 881


def test_status_comes_by_itself_when_the_daemon_dies_and_the_data_go_stale(tmp_path: Path) -> None:
    """Nobody writes any more: first that is told, and then each record is marked."""
    write(tmp_path, {"BTCUSDT": record()})
    with (
        Server(tmp_path, STATE_FILE="state.json", HEARTBEAT_SECONDS=0.1, STALE_SECONDS=4) as server,
        Subscriber(server.port) as subscriber,
    ):
        subscriber.wait(lambda: subscriber.follower.status.get("status") == "unhealthy", "the dead daemon")
        assert "has not written" in subscriber.follower.status["error"]
        subscriber.wait(lambda: subscriber.follower.data["BTCUSDT"].get("stale") is True, "the stale record")
        assert server.get("/funding")[1]["data"] == subscriber.follower.data
        write(tmp_path, {"BTCUSDT": record()})
        subscriber.wait(lambda: "stale" not in subscriber.follower.data["BTCUSDT"], "the fresh record")


def test_half_of_the_connections_may_subscribe(tmp_path: Path) -> None:
    """The next gets 503, while others are answered, whoever is idle; one that leaves makes room."""
    write(tmp_path, market())
    with Server(tmp_path, STATE_FILE="state.json", API_MAX_CONNECTIONS=8, HEARTBEAT_SECONDS=30) as server:
        subscribers = [Subscriber(server.port, f"?symbols={NAMES[0]}") for _ in range(4)]
        for subscriber in subscribers:
            subscriber.wait(partial(has_data, subscriber), "the snapshot")
        status, headers, body = server.request("/funding/stream")
        assert (status, headers["retry-after"], json.loads(body)) == (503, "1", {"error": "too many subscribers"})
        server.wait_for_line("subscribers full")
        idle = [Client(("127.0.0.1", server.port)) for _ in range(20)]
        assert server.get(f"/funding/{NAMES[0]}")[0] == 200
        write(tmp_path, market(0.0005))
        for subscriber in subscribers:
            subscriber.wait(partial(has_rate, subscriber, 0.0005), "an update in spite of the crowd")
        subscribers.pop().close()
        eventually(lambda: Subscriber.is_served(server.port), "room for another subscriber")
        for sock in [one.sock for one in idle] + [one.sock for one in subscribers]:
            sock.close()


@pytest.mark.parametrize("connections", [1, 2, 3])
def test_where_few_may_connect_no_more_than_half_subscribe(tmp_path: Path, connections: int) -> None:
    """Where it is one, a subscriber would keep everybody from asking even for health, for as long as it likes."""
    write(tmp_path, market())
    with (
        Server(tmp_path, STATE_FILE="state.json", API_MAX_CONNECTIONS=connections, HEARTBEAT_SECONDS=30) as server,
        contextlib.ExitStack() as stack,
    ):
        for _ in range(connections // 2):
            subscriber = stack.enter_context(Subscriber(server.port))
            subscriber.wait(partial(has_data, subscriber), "the snapshot")
        assert not Subscriber.is_served(server.port)
        assert server.get("/funding/health")[0] == 200


def test_sigterm_ends_subscribers_at_once(server: Server) -> None:
    """They are not waited for, and the program ends as it should."""
    with Subscriber(server.port) as subscriber, Subscriber(server.port, receive_buffer=4096):
        subscriber.wait(partial(has_data, subscriber), "the snapshot")
        assert server.terminate(signal.SIGTERM) < 2
        assert subscriber.is_ended()


def test_a_head_request_subscribes_to_nothing(server: Server) -> None:
    """Its answer is complete, and the connection goes on."""
    with Client(("127.0.0.1", server.port)) as client:
        reply = client.get("/funding/stream", method="HEAD")
        assert (reply.status, reply.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        assert client.get("/").status == 200


def test_what_a_subscriber_sends_is_dropped(server: Server, tmp_path: Path) -> None:
    """Further requests on its connection have no answer; it goes on being served."""
    with Subscriber(server.port, f"?symbols={NAMES[0]}") as subscriber:
        subscriber.wait(partial(has_data, subscriber), "the snapshot")
        subscriber.sock.sendall(b"GET /funding/BTCUSDT HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
        write(tmp_path, market(0.0007))
        subscriber.wait(partial(has_rate, subscriber, 0.0007), "the update")


def test_a_subscriber_that_has_gone_frees_its_place(server: Server, tmp_path: Path) -> None:
    """Closed, half closed or reset, its connection is closed at once."""
    with Subscriber(server.port) as half_closed:
        half_closed.wait(partial(has_data, half_closed), "the snapshot")
        half_closed.sock.shutdown(socket.SHUT_WR)
        assert half_closed.is_ended()


def test_an_old_client_is_served_without_chunks(server: Server) -> None:
    """HTTP/1.0 knows none: the body is what comes."""
    with Client(("127.0.0.1", server.port)) as client:
        client.send(f"GET /funding/stream?symbols={NAMES[0]} HTTP/1.0\r\n\r\n".encode())
        received = b""
        while b"event: status" not in received:
            received += client.sock.recv(65536)
        assert b"\r\n\r\nretry: 2000\n\nevent: snapshot\n" in received
