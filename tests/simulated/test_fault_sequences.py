"""Random sequences of faults against decoding, merging and the state file: what a reader sees stays true throughout."""

import contextlib
import json
import math
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from binance_funding.daemon.output.publisher import Annotations, Publisher
from binance_funding.daemon.source.rates import MalformedMessage
from binance_funding.server.state_reader import StateReader
from binance_funding.state_file import StateFile
from tests.exchange.market import Market, to_json
from tests.support.desk import Desk

SEQUENCES = 300
STEPS = 25


class Bench:
    """Feed, book and publisher over a real file, under a clock that is moved by hand; and a reader of that file."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.rng = rng
        self.market = Market(usd_m=6, tradfi=3, coin_m=2, fundless=2)
        self.desk = Desk()
        self.desk.learn_time()
        self.path = folder / "state.json"
        desk = self.desk
        self.publisher = Publisher(
            desk.settings,
            desk.clock,
            desk.exchange_clock,
            StateFile(str(self.path)),
            self.desk.book,
            lambda: Annotations({}, {}, self.desk.book.listed, self.desk.book.halted),
            lambda _wall_s: {"connection_status": {}, "comparison": {}, "gaps": [], "history": []},
        )
        self.reader = StateReader(str(self.path))
        self.seen: dict[str, int] = {}
        self.faults: list[Callable[[], None]] = [
            self.good_tick,
            self.good_tick,
            self.half_tick,
            self.old_tick,
            self.damaged_tick,
            self.damaged_rows,
            self.good_rest,
            self.damaged_rest,
            self.file_deleted,
            self.file_damaged,
        ]

    def good_tick(self) -> None:
        """Both messages of a tick, in any order, perhaps twice."""
        messages = [*self.market.messages(self.desk.event_ms())] * self.rng.choice([1, 2])
        self.rng.shuffle(messages)
        for message in messages:
            self.desk.feed.take(message.encode())

    def half_tick(self) -> None:
        """One of the two messages."""
        self.desk.feed.take(self.rng.choice(self.market.messages(self.desk.event_ms())).encode())

    def old_tick(self) -> None:
        """A tick of the past, as a connection that lags brings it."""
        for message in self.market.messages(self.desk.event_ms(self.rng.uniform(0, 60))):
            self.desk.feed.take(message.encode())

    def damaged_tick(self) -> None:
        """A message with bytes overwritten, cut off or repeated."""
        self.desk.feed.take(self._damage(self.market.messages(self.desk.event_ms())[0].encode()))

    def damaged_rows(self) -> None:
        """Good rows in which single fields hold anything."""
        junk: list[Any] = [None, "", "NaN", "1e400", -1, 1e308, True, [], {}, "\ud800", "9" * 400, 2**70, " 1", "1_0"]
        rows = [self.market.row(symbol, self.desk.event_ms()) for symbol in self.market.symbols]
        for row in rows:
            if self.rng.random() < 0.5:
                row[self.rng.choice(list(row))] = self.rng.choice(junk)
        self.desk.feed.take(json.dumps({"stream": "x", "data": rows}).encode())

    def good_rest(self) -> None:
        """A REST snapshot, a little older than the stream."""
        self._merge_rest(to_json(self.market.premium_index(self.desk.event_ms(self.rng.uniform(0, 5)))).encode())

    def damaged_rest(self) -> None:
        """A REST answer with bytes overwritten, cut off or repeated."""
        self._merge_rest(self._damage(to_json(self.market.premium_index(self.desk.event_ms())).encode()))

    def _merge_rest(self, body: bytes) -> None:
        self.desk.stream_state.keeps_rows = self.rng.random() < 0.5
        with contextlib.suppress(MalformedMessage):
            self.desk.feed.take_snapshot(body)

    def _damage(self, content: bytes) -> bytes:
        damaged = bytearray(content)
        for _ in range(self.rng.randint(1, 8)):
            damaged[self.rng.randrange(len(damaged))] = self.rng.randrange(256)
        return bytes(damaged[: self.rng.choice([len(damaged), self.rng.randrange(len(damaged))])])

    def file_deleted(self) -> None:
        """Somebody deletes the file."""
        self.path.unlink(missing_ok=True)

    def file_damaged(self) -> None:
        """Somebody overwrites the file."""
        self.path.write_bytes(os.urandom(100))

    def publish_and_check(self) -> None:
        """Write, read, and check what a reader relies on: complete, finite, true ages, no event time going back."""
        self.publisher.write()
        self.reader.refresh()
        assert self.reader.state is not None, self.reader.error
        records = self.reader.state["funding_state"]
        assert records.keys() == {rate.symbol for rate in self.desk.book.rates()}
        assert self.seen.keys() <= records.keys()
        for symbol, record in records.items():
            assert record["eventTime"] >= self.seen.get(symbol, 0)
            self.seen[symbol] = record["eventTime"]
            assert all(math.isfinite(record[name]) for name in ("fundingRate", "markPrice", "indexPrice", "updatedAt"))
            assert record["updatedAt"] <= min(self.desk.time.wall_s, record["eventTime"] / 1000) + 0.001
            assert "_PERP" not in symbol


@pytest.mark.parametrize("tenth", range(10))
def test_readers_view_is_complete_finite_and_never_goes_back(tmp_path: Path, tenth: int) -> None:
    """After every step of 300 random sequences, what the file holds is what the book holds, and all of it is sound."""
    for seed in range(tenth * SEQUENCES // 10, (tenth + 1) * SEQUENCES // 10):
        rng = random.Random(seed)
        bench = Bench(tmp_path, rng)
        for _ in range(STEPS):
            bench.desk.time.advance(rng.choice([0.1, 3.0, 20.0, 400.0]))
            rng.choice(bench.faults)()
            bench.publish_and_check()


def test_two_readers_and_two_feeds_at_once(tmp_path: Path) -> None:
    """Two connections feed in parallel while the publisher writes: nothing is lost and nothing goes back."""
    bench = Bench(tmp_path, random.Random(1))
    first_ms = bench.desk.event_ms()
    messages = [message for step in range(200) for message in bench.market.messages(first_ms + step)]
    threads = [
        threading.Thread(
            target=lambda: [bench.desk.feed.take(message.encode()) for message in messages], name=f"feed-{n}"
        )
        for n in range(2)
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        bench.publish_and_check()
    for thread in threads:
        thread.join()
    bench.publish_and_check()
    assert set(bench.seen.values()) == {first_ms + 199}
