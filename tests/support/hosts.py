"""Hosts, each with an exchange, a daemon and a server of its own, and a crowd of clients that judges every answer."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import requests

from tests.support.bad_days import small_exchange
from tests.support.nginx import Nginx, running_nginx
from tests.support.programs import Daemon, Server
from tests.support.subscriber import Subscriber
from tests.support.waiting import PATIENCE_S, eventually

STALE_S = 4.0
_SETTINGS = {"STALE_SECONDS": STALE_S}
# For what a busy machine adds to an age between two readings of the clock. A copy kept for 2 s would still show.
_SLACK_S = 0.5
COPY_S = 1.0

PATHS = ("/funding/BTCUSDT", "/funding", "/funding/batch?symbols=BTCUSDT,ETHUSDT", "/funding/health")


class Host:
    """One host. Its programs can be ended and started again on the same folder and port."""

    def __init__(self, folder: Path, opened: contextlib.ExitStack, **settings: Any) -> None:
        folder.mkdir()
        self._folder, self._opened, self._settings = folder, opened, {**_SETTINGS, **settings}
        self.exchange = opened.enter_context(small_exchange())
        self.start_daemon()
        self.daemon.wait_for_live()
        self.server = opened.enter_context(Server(folder, **self._settings))
        self.port = self.server.port

    def start_daemon(self) -> None:
        """Start the daemon, the first one or another."""
        self.daemon = self._opened.enter_context(Daemon(self.exchange, self._folder, **self._settings))

    def kill_daemon(self) -> None:
        """End the daemon by SIGKILL."""
        self.daemon.terminate(signal.SIGKILL)

    def start_server(self) -> None:
        """Start the server again."""
        again = {**self._settings, "API_PORT": self.port}
        self.server = self._opened.enter_context(Server(self._folder, **again))
        self.server.port = self.port

    def kill_server(self) -> None:
        """End the server by SIGKILL."""
        self.server.terminate(signal.SIGKILL)

    def freeze_server(self) -> None:
        """Stop the server without ending it: connections are still accepted by the kernel."""
        self.server.process.send_signal(signal.SIGSTOP)

    def thaw_server(self) -> None:
        """Let it go on."""
        self.server.process.send_signal(signal.SIGCONT)

    def serves(self, subscriber: Subscriber) -> bool:
        """Tell whether a subscriber has been told the status of this host."""
        health = self.server.get("/funding/health")[1]
        return bool(subscriber.follower.status.get("lastConnectedTime") == health["lastConnectedTime"])


class Hosts(NamedTuple):
    """Two hosts and the nginx in front."""

    first: Host
    second: Host
    nginx: Nginx

    def ask(self, path: str, **headers: str) -> requests.Response:
        """Ask nginx, with header names whose hyphens are written as underscores."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return requests.get(f"{self.nginx.url}{path}", headers=named, timeout=PATIENCE_S)

    def wait_for_answer_of(self, host: Host, path: str = PATHS[0]) -> None:
        """Ask until the answer to a path comes from this host, after those that were there before."""
        seen = len(self.nginx.asked())

        def answered() -> bool:
            self.ask(path)
            later = [asked for asked in self.nginx.asked()[seen:] if asked.path == path]
            return any(asked.ports[-1:] == [host.port] and asked.statuses[-1] == "200" for asked in later)

        eventually(answered, f"an answer to {path} from port {host.port}")


@contextlib.contextmanager
def running_hosts(folder: Path, edit: Callable[[str], str] = lambda text: text, **settings: Any) -> Iterator[Hosts]:
    """Run two hosts and nginx."""
    with contextlib.ExitStack() as opened:
        first, second = (Host(folder / name, opened, **settings) for name in ("first", "second"))
        yield Hosts(first, second, opened.enter_context(running_nginx(folder, first.port, second.port, edit)))


class Crowd:
    """Clients that ask for all PATHS in turns, each over a connection of its own, and keep what was wrong.

    Wrong is a status other than 200, and a record that is older than STALE_S or older than its answer says, each by
    more than the age of a copy. (A list is 200 and marks the stale records as long as some are fresh.)
    """

    def __init__(self, nginx: Nginx, clients: int, pause_s: float) -> None:
        self._nginx, self._pause_s = nginx, pause_s
        self._stop = threading.Event()
        self.answers = 0
        self.wrong: list[str] = []
        self._threads = [
            threading.Thread(target=self._run, args=(number,), name=f"client-{number}") for number in range(clients)
        ]

    def __enter__(self) -> "Crowd":
        self._began_s = time.time()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)
        self.lasted_s = time.time() - self._began_s

    def _run(self, number: int) -> None:
        with requests.Session() as session:
            session.trust_env = False
            while not self._stop.wait(self._pause_s):
                number += 1
                path, start_s = PATHS[number % len(PATHS)], time.time()
                try:
                    answer = session.get(f"{self._nginx.url}{path}", timeout=PATIENCE_S)
                    problems = _problems(answer, start_s)
                except requests.RequestException as failure:
                    problems = [repr(failure)]
                self.answers += 1
                self.wrong += [f"{path} at {start_s:.3f}: {problem}" for problem in problems]

    def most_per_s(self) -> float:
        """Return how often a host was asked for one path, the most often of all, in requests a second."""
        asked = [(port, one.path) for one in self._nginx.asked() for port in one.ports if one.time_s >= self._began_s]
        return max(asked.count(each) for each in set(asked)) / self.lasted_s


def _problems(answer: requests.Response, asked_s: float) -> list[str]:
    if answer.status_code != 200:
        return [f"{answer.status_code} {answer.text[:200]}"]
    content = answer.json()
    data = content.get("data", [content] if "symbol" in content else [])
    problems = []
    for record in data.values() if isinstance(data, dict) else data:
        age_s = asked_s - record["eventTime"] / 1000
        said_s = record.get("ageSeconds", STALE_S)
        if age_s > min(said_s, STALE_S) + COPY_S + _SLACK_S:
            problems.append(f"{record['symbol']} was {age_s:.3f} s old, {said_s} s it says")
    return problems
