"""How old what is served and written is, as of the exchange, sampled while something happens to it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

from tests.exchange import Exchange
from tests.support.programs import Daemon, Server
from tests.support.waiting import PATIENCE_S

_EVERY_S = 0.1

T = TypeVar("T")


class Sampler(Generic[T]):
    """Takes samples ten times a second in a thread of its own while entered; raises in the end what one of them did."""

    def __init__(self, take: Callable[[], T]) -> None:
        self.samples: list[T] = []
        self._take = take
        self._failure: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def _run(self) -> None:
        try:
            while not self._stop.wait(_EVERY_S):
                self.samples.append(self._take())
        except BaseException as failure:  # noqa: BLE001 - whatever it was, it is raised in the test's own thread
            self._failure = failure

    def __enter__(self) -> Sampler[T]:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join(PATIENCE_S)
        if self._failure is not None:
            raise self._failure


class Answer(NamedTuple):
    """One answer of the server for one symbol."""

    status: int
    age_s: float
    """As the server says."""
    true_age_s: float
    """As of the exchange when the answer had come."""


def answer(exchange: Exchange, server: Server, symbol: str) -> Answer:
    """Ask for one symbol."""
    status, body = server.get(f"/funding/{symbol}")
    return Answer(status, body["ageSeconds"], exchange.now_ms() / 1000 - body["eventTime"] / 1000)


def oldest_age_s(exchange: Exchange, daemon: Daemon) -> float:
    """Return how old the oldest record of the file is as of the exchange."""
    oldest_ms: int = min(record["eventTime"] for record in daemon.records().values())
    return (exchange.now_ms() - oldest_ms) / 1000
