"""Clients that go on asking whatever is done to the server, none of them trying a failed request again."""

import contextlib
import http.client
import json
import select
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from tests.support.waiting import PATIENCE_S, eventually

ASKING, SUBSCRIBED = 10, 5
_INTERVAL_S = 0.02
_ASKED: tuple[tuple[str, Callable[[Any], float]], ...] = (
    ("/funding/BTCUSDT", lambda answer: time.time() - answer["updatedAt"]),
    ("/funding/batch?symbols=BTCUSDT,ETHUSDT", lambda answer: time.time() - answer["data"][0]["updatedAt"]),
    ("/funding", lambda answer: time.time() - answer["data"]["BTCUSDT"]["updatedAt"]),
    ("/funding/health", lambda answer: answer["newestDataAgeSeconds"]),
)
"""What is asked, and how old the data in its answer are."""


@dataclass(frozen=True)
class Asked:
    """One request and what came of it."""

    started_s: float
    took_s: float
    status: int
    """0 where there was no whole answer."""
    failure: str
    age_s: float
    """Of the data in the answer."""


@dataclass
class Subscriber:
    """What one subscriber of /funding/stream has met so far; times are monotonic."""

    retry_s: float | None = None
    connected_s: float = 0.0
    """When the newest snapshot came."""
    lost_s: float | None = None
    """When the newest stream ended."""
    longest_away_s: float = 0.0
    """From the end of a stream to the snapshot of the next."""
    failure: str = ""
    """The last answer that was no stream."""


class SteadyClients:
    """Ten clients that ask 50 times a second each, half of them on new connections, and five subscribers."""

    def __init__(self, port: int) -> None:
        self.asked: list[Asked] = []
        self.subscribers = [Subscriber() for _ in range(SUBSCRIBED)]
        self._port = port
        self._stop = threading.Event()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Within the block they ask, in threads started by this one. When it begins, all get what they want."""
        work = [partial(self._ask, number) for number in range(ASKING)]
        work += [partial(self._subscribe, subscriber) for subscriber in self.subscribers]
        threads = [threading.Thread(target=do, name=f"client-{number}") for number, do in enumerate(work)]
        for thread in threads:
            thread.start()
        try:
            self.wait_for_answers()
            self.wait_for_subscribers(0.0)
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(PATIENCE_S)

    def wait_for_answers(self) -> None:
        """Wait for as many answers as a second brings."""
        wanted = len(self.asked) + round(ASKING / _INTERVAL_S)
        eventually(lambda: len(self.asked) >= wanted, "the clients to get answers")

    def wait_for_subscribers(self, since_s: float) -> None:
        """Wait until every subscriber has a snapshot that came later than that."""
        eventually(lambda: all(each.connected_s > since_s for each in self.subscribers), "subscribers to be back")

    def worst_age_s(self, since_s: float = 0.0) -> float:
        """How old the oldest record was in the answers to what was asked since then."""
        return max(asked.age_s for asked in self.asked if asked.started_s >= since_s)

    def failed(self) -> list[Asked]:
        """Return every request that was not answered with 200."""
        return [asked for asked in self.asked if asked.status != 200]

    def _ask(self, number: int) -> None:
        headers = {"Connection": "close"} if number % 2 else {}
        path, age_of = _ASKED[number // 2 % len(_ASKED)]
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE_S)
        while not self._stop.wait(_INTERVAL_S):
            if connection.sock and select.select([connection.sock], [], [], 0)[0]:
                connection.close()  # the server has: every pool of connections looks before it asks
            started_s, status, failure, age_s = time.monotonic(), 0, "", 0.0
            try:
                connection.request("GET", path, headers=headers)
                with connection.getresponse() as response:
                    body = response.read()
                status = response.status
                if status == 200:
                    age_s = age_of(json.loads(body))
            except (OSError, http.client.HTTPException) as error:
                failure = repr(error)
                connection.close()
            self.asked.append(Asked(started_s, time.monotonic() - started_s, status, failure, age_s))
        connection.close()

    def _subscribe(self, subscriber: Subscriber) -> None:
        while not self._stop.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE_S)
            try:
                connection.request("GET", "/funding/stream?symbols=BTCUSDT")
                with connection.getresponse() as response:
                    if response.status != 200:
                        subscriber.failure = str(response.status)
                    self._follow(response, subscriber)
            except ConnectionResetError:  # by a server that was killed
                pass
            except (OSError, http.client.HTTPException) as error:
                subscriber.failure = repr(error)
            connection.close()
            subscriber.lost_s = time.monotonic()
            self._stop.wait(subscriber.retry_s or 0.0)

    def _follow(self, response: http.client.HTTPResponse, subscriber: Subscriber) -> None:
        for line in response:
            name, _, value = line.decode().strip().partition(": ")
            if name == "retry":
                subscriber.retry_s = int(value) / 1000
            elif (name, value) == ("event", "snapshot"):
                subscriber.connected_s = time.monotonic()
                if subscriber.lost_s is not None:
                    away_s = subscriber.connected_s - subscriber.lost_s
                    subscriber.longest_away_s = max(subscriber.longest_away_s, away_s)
            if self._stop.is_set():
                return
