"""Samples the age of served and written data, by the exchange's clock, while a test disturbs something."""

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
    """Takes samples ten times a second in its own thread while entered. On exit it raises the error of a failed one."""

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
        except BaseException as failure:  # noqa: BLE001 - raised again in the test's thread
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
    """The age in the answer."""
    true_age_s: float
    """The age by the exchange's clock when the answer arrived."""


def answer(exchange: Exchange, server: Server, symbol: str) -> Answer:
    """Ask for one symbol."""
    status, body = server.get(f"/funding/{symbol}")
    return Answer(status, body["ageSeconds"], exchange.now_ms() / 1000 - body["eventTime"] / 1000)


def oldest_age_s(exchange: Exchange, daemon: Daemon) -> float:
    """Return the age of the oldest record of the state file, by the exchange's clock."""
    oldest_ms: int = min(record["eventTime"] for record in daemon.records().values())
    return (exchange.now_ms() - oldest_ms) / 1000
