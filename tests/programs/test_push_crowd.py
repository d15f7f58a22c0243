"""Many subscribers that do not read: what they cost, what they get in the end, and that nobody else notices them."""

import contextlib
import os
from functools import partial
from pathlib import Path

import pytest

from binance_funding.clock import Clock
from binance_funding.server.api import Api
from binance_funding.server.http.server import Limits
from binance_funding.server.listener import raise_file_limit
from binance_funding.server.state_reader import StateReader
from binance_funding.settings import Settings
from tests.support.crowds import polite_waits
from tests.support.http_client import running
from tests.support.programs import STATE_FILE, Server
from tests.support.samples import put, record, state
from tests.support.subscriber import Subscriber

pytestmark = pytest.mark.alone

SLEEPERS = 200
TICKS = 200  # ten minutes of them
CLOCK = Clock()
SYMBOLS = ("BTCUSDT", *(f"SIM{number:03}USDT" for number in range(880)))
DIFFERENT = 500
LARGEST_MB = 160
LONGEST_WAIT_S = 3.0  # 0.1 s on two idle cores


def write(path: Path, rate: float) -> None:
    """Put a whole market there that has just changed."""
    now = CLOCK.now()
    records = {symbol: record(fundingRate=rate, updatedAt=now.wall_s) for symbol in SYMBOLS}
    put(path, state(records, updated_at=now.wall_s, boottime=now.steady_s, boot_id=CLOCK.boot_id))


def has_rate(subscriber: Subscriber, rate: float) -> bool:
    """Tell whether a subscriber holds this rate for every symbol."""
    data = subscriber.follower.data
    return len(data) == 881 and all(one["fundingRate"] == rate for one in data.values())


def memory_mb(process: int | str = "self") -> float:
    """Return the resident memory of a process, by default of this one."""
    pages = int(Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def test_readers_that_do_not_read_cost_nothing_and_miss_nothing(tmp_path: Path) -> None:
    """After ten minutes of ticks memory is where it was, and each gets the newest state, complete, when it reads."""
    path = tmp_path / "state.json"
    write(path, 0)
    raise_file_limit(1000)
    api = Api(StateReader(str(path)), Settings(), CLOCK)
    with (
        running(api, cache_version=api.version, limits=Limits(write_s=1000)) as server,
        Subscriber(server.address[1]) as reader,
    ):
        sleepers = [Subscriber(server.address[1], receive_buffer=4096) for _ in range(SLEEPERS)]
        memory_after: dict[int, float] = {}
        for tick in range(1, TICKS + 1):
            write(path, tick / 10_000)
            reader.wait(partial(has_rate, reader, tick / 10_000), "each tick")
            memory_after[tick] = memory_mb()
        assert memory_after[TICKS] - memory_after[TICKS // 10] < 10
        for sleeper in sleepers:
            sleeper.wait(partial(has_rate, sleeper, TICKS / 10_000), "the newest state")
            assert sleeper.follower.events.count("update") <= 3
            sleeper.close()


def test_five_hundred_different_subscribers_that_do_not_read(tmp_path: Path) -> None:
    """Each wants all symbols but one, and an invented one. Memory is bounded, and a polite client does not notice."""
    path = tmp_path / STATE_FILE
    write(path, 0)
    raise_file_limit(1000)
    with Server(tmp_path, STALE_SECONDS=3600) as server, contextlib.ExitStack() as stack:
        for number in range(DIFFERENT):
            wanted = ",".join((f"NONE{number}", *SYMBOLS[:number], *SYMBOLS[number + 1 :]))
            stack.enter_context(Subscriber(server.port, f"?symbols={wanted}", receive_buffer=4096))
        waits = []
        for tick in range(1, 6):
            write(path, tick / 10_000)
            waits.append(polite_waits(server.port, 1.0, keeps_alive=True))
        assert memory_mb(server.process.pid) < LARGEST_MB
        assert max(wait.worst_s for wait in waits) < LONGEST_WAIT_S
        assert server.get("/funding/health")[1]["symbolCount"] == len(SYMBOLS)
