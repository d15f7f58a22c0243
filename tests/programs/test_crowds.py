"""The real server beside crowds that take all the time it gives them: a polite client does not notice them.

On two idle cores a polite client waits 1 to 200 ms. The limits here are far above this, for machines that are busy.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from binance_funding.clock import Clock
from tests.support.crowds import CROWDS, crowd, polite_waits
from tests.support.http_client import GET, Client
from tests.support.programs import STATE_FILE, Server
from tests.support.samples import put, record, state
from tests.support.waiting import eventually

pytestmark = pytest.mark.alone

MEDIAN_S, WORST_S = 1.5, 4.0
FOR_S = 2.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """The server over a whole market; it must have nothing to log but its start and its end, and end in time."""
    now = Clock().now()
    records = {f"SIM{number:03}USDT": record(fundingRate=number / 1e6, updatedAt=now.wall_s) for number in range(880)}
    records["BTCUSDT"] = record(updatedAt=now.wall_s)
    content = state(records, updated_at=now.wall_s, boottime=now.steady_s, boot_id=Clock().boot_id)
    put(tmp_path / STATE_FILE, content)
    with Server(tmp_path, STALE_SECONDS=3600) as server:
        yield server


def is_served(server: Server) -> bool:
    """Tell whether a newcomer is answered. A client that never reads may keep its place for 2 s."""
    with Client(("127.0.0.1", server.port)) as client:
        client.send(GET)
        return client.reply().status == 200


@pytest.mark.parametrize("keeps_alive", [True, False], ids=["keep-alive", "close"])
@pytest.mark.parametrize("kind", CROWDS)
def test_a_polite_client_beside_a_crowd_is_answered_soon(server: Server, kind: str, keeps_alive: bool) -> None:
    """Every answer is 200. SIGTERM ends the server within 3 s meanwhile."""
    with crowd(kind, server.port):
        eventually(lambda: is_served(server), "a newcomer gets a place", within_s=10)
        waits = polite_waits(server.port, FOR_S, keeps_alive=keeps_alive)
        ended_in_s = server.terminate()
    assert waits.median_s < MEDIAN_S
    assert waits.worst_s < WORST_S
    assert ended_in_s < 3
    assert server.process.returncode == 0
    events = [" ".join(line.split()[2:4]) for line in server.log]
    assert all(
        event.startswith(("settings", "listening", "stopped", "full", "subscribers full")) for event in events
    ), events
