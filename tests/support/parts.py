"""The market parts of a daemon, connected as the supervisor connects them, for tests of single parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from binance_funding.clock import Clock
from binance_funding.daemon.market.book import Book
from binance_funding.daemon.market.comparison import Comparison
from binance_funding.daemon.market.exchange_clock import ExchangeClock
from binance_funding.daemon.market.freshness import FreshnessWatch
from binance_funding.daemon.market.intervals import Intervals
from binance_funding.daemon.market.last_day import LastDay
from binance_funding.daemon.market.stream_state import StreamState
from binance_funding.daemon.source.connection import Connection
from binance_funding.daemon.source.feed import Feed
from binance_funding.daemon.source.pool import StreamPool
from binance_funding.daemon.source.rest_client import RestClient
from binance_funding.daemon.source.rest_poller import RestPoller
from binance_funding.settings import Settings, load


def settings_of(**given: Any) -> Settings:
    """Return the default settings with some replaced, whatever the environment says."""
    return load({name.upper(): str(value) for name, value in given.items()}, env_file="/nonexistent")


class Parts:
    """Everything between the sources and the state file. It has no threads, no sockets and no files."""

    def __init__(self, clock: Clock, book: type[Book] = Book, **settings: Any) -> None:
        self.settings = settings_of(**settings)
        self.clock = clock
        self.exchange_clock = ExchangeClock(clock)
        self.last_day = LastDay()
        self.comparison = Comparison(clock, self.last_day)
        self.stream_state = StreamState(self.settings, clock)
        self.trouble = ""
        """What is wrong with the sources, for the cause of a gap."""
        self.intervals = Intervals(clock)
        self.book = book(self.settings, self.exchange_clock, self.intervals, self.stream_state)
        self._clocks = clock, self.exchange_clock
        self.freshness = FreshnessWatch(self.settings, *self._clocks, self.book, self.last_day, lambda: self.trouble)
        market = self.book, self.freshness
        self.feed = Feed(self.settings, *self._clocks, *market, self.comparison)

    def new_pool(self, spawn: Callable[..., bool], **options: Any) -> StreamPool:
        """Return a stream pool that feeds these parts."""
        return StreamPool(self.settings, *self._clocks, self.last_day, self.feed.take, spawn, **options)

    def new_poller(self, client: RestClient, live_connections: Callable[[], int]) -> RestPoller:
        """Return a poller that feeds these parts."""
        market = self.book, self.freshness, self.intervals, self.stream_state
        return RestPoller(self.settings, self.clock, self.exchange_clock, *market, client, self.feed, live_connections)


def connection_to(
    url: str, take: Callable[[bytes], int] = lambda _payload: 0, clock: Clock | None = None, **settings: Any
) -> Connection:
    """Return a connection by itself; it connects when it is run."""
    clock = clock or Clock()
    return Connection(settings_of(**settings), clock, ExchangeClock(clock), 1, url, take, lambda: None)
