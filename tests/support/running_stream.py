"""A real stream pool in this process, over real sockets to the simulated exchange."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from binance_funding.clock import Clock
from binance_funding.daemon.market.book import Book
from binance_funding.daemon.record import FundingRate
from binance_funding.daemon.source.connection import Connection
from binance_funding.program import Threads
from tests.support.parts import Parts
from tests.support.waiting import eventually

SMALL = {"usd_m": 5, "tradfi": 3, "coin_m": 1, "fundless": 1}
"""A market that a test can look through."""


class RecordingBook(Book):
    """A book that remembers which event times of which symbol it was advanced to."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.seen: set[tuple[str, int]] = set()
        self.merges = 0

    def merge(self, rates: Sequence[FundingRate]) -> int:
        """Merge, and remember."""
        merged = super().merge(rates)
        self.merges += 1
        self.seen.update((rate.symbol, rate.event_time_ms) for rate in rates)
        return merged


class Stream(Parts):
    """A stream pool with all that it needs; fast unless other settings are given."""

    book: RecordingBook

    def __init__(
        self,
        urls: str,
        clock: Clock | None = None,
        proven_after_s: float = 60.0,
        open_connection: Callable[..., Connection] = Connection,
        **settings: Any,
    ) -> None:
        given = {
            "BINANCE_WS_URLS": urls,
            "SILENCE_SECONDS": "1.5",
            "RECONNECT_MIN_SECONDS": "0.1",
            "RECONNECT_MAX_SECONDS": "1",
            **settings,
        }
        super().__init__(clock or Clock(), RecordingBook, **given)
        self.stop = threading.Event()
        self.threads = Threads()
        self.pool = self.new_pool(
            self.threads.start,
            open_connection=open_connection,
            proven_after_s=proven_after_s,
        )

    def wait_for_live(self, count: int = 2) -> None:
        """Wait until so many connections bring data."""
        eventually(lambda: len(self.pool.live()) == count, f"{count} live connections")

    def counts(self) -> tuple[int, int]:
        """Return unplanned and planned disconnections."""
        return self.pool.lost, self.pool.replaced


@contextmanager
def running(urls: str, **options: Any) -> Iterator[Stream]:
    """Run a stream pool; check at the end that it stops, and that no thread died."""
    stream = Stream(urls, **options)
    stream.threads.start("stream", lambda: stream.pool.run(stream.stop))
    try:
        yield stream
    finally:
        stream.stop.set()
        stream.pool.wake()
        left = stream.threads.join(2.0)
        stream.pool.abort()
        assert stream.threads.join(10.0) == [], f"threads left: {left}"
        assert stream.threads.crashed is None
