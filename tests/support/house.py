"""A whole daemon in simulated time: its real parts, on simulated connections and a simulated REST."""

import gc
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from binance_funding.daemon.supervisor import Daemon
from binance_funding.program import StopRequest, Threads
from binance_funding.settings import load
from tests.support.simulated_exchange import SimulatedExchange
from tests.support.simulated_rest import Binance
from tests.support.simulated_stream import Lines

HOUR_S = 3600.0
# Real files would make hours of simulated time slow; most of the time it is enough that the thread moves.
_WRITTEN_EVERY_S = 100.0
_LEAST_STEP_S = 0.01


class ScriptedStop(StopRequest):
    """Waiting for it lets simulated time pass for everything else, until the test's time is over."""

    def __init__(self, live: Callable[[float], bool]) -> None:
        super().__init__()
        self._live = live

    def wait(self, timeout_s: float) -> bool:
        """Let everything else happen meanwhile."""
        return not self._live(timeout_s)


class ScriptedThreads(Threads):
    """Starts nothing: a House does what the threads would do."""

    unfinished: list[list[str]]
    """What the next calls of `join` return, none where there are no more."""

    def start(self, name: str, work: Callable[[], None], *, is_needed: bool = True) -> bool:
        """Let a simulated connection plan its life; leave the others alone."""
        if name.startswith("stream-"):
            work()
        return True

    def join(self, within_s: float) -> list[str]:
        """Return who would not have ended."""
        return self.unfinished.pop(0) if self.unfinished else []


class House:
    """A daemon with default settings in simulated time, and an exchange that is well."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        random.seed(1)  # the pool's waits are scattered by chance
        gc.freeze()  # a daemon looks for garbage every minute, and not among what the tests hold
        self.exchange = SimulatedExchange()
        self.time = self.exchange.time
        self.lines = Lines(self.exchange)
        self.binance = Binance(self.exchange)
        self.told: list[str] = []
        """What systemd was told, line by line, as it reads it."""
        self.frozen: set[str] = set()
        """Threads that make no progress."""
        self._until_s = self._written_s = 0.0
        self.threads = ScriptedThreads(ScriptedStop(self._live))
        self.threads.unfinished = []
        given = {"STATE_FILE": folder / "state.json", **settings}
        self.daemon = Daemon(
            load({name: str(value) for name, value in given.items()}, env_file="/nonexistent"),
            self.time.clock,
            threads=self.threads,
            open_connection=self.lines.open_connection,
            rest_client=self.binance,  # type: ignore[arg-type]
            notify=self._notified,
        )
        self._due_s = {"stream": self.now_s, "rest": self.now_s, "publisher": self.now_s}
        self._steps = {"stream": self.daemon._stream.step, "rest": self.daemon._rest.step, "publisher": self._publish}

    @property
    def now_s(self) -> float:
        """The simulated steady time."""
        return self.time.steady_s

    @property
    def statuses(self) -> list[str]:
        """Every status line so far."""
        return [told.removeprefix("STATUS=") for told in self.told if told.startswith("STATUS=")]

    def advance(self, seconds: float) -> None:
        """Let the daemon run for so long."""
        self.until(self.now_s + seconds)
        self.daemon._watch()

    def until(self, steady_s: float) -> None:
        """Let the daemon's waiting for a stop end at that time."""
        self._until_s = steady_s

    def lose_all(self, cause: str = "connection reset by peer") -> None:
        """Let every connection end."""
        for line in self.lines.open:
            line.ends(cause)

    def write(self) -> dict[str, Any]:
        """Write the state file now and return what it holds."""
        self.daemon._publisher.write()
        return self.read()

    def read(self) -> dict[str, Any]:
        """Return what the state file holds."""
        state: dict[str, Any] = json.loads(Path(self.daemon._file.path).read_text(encoding="utf-8"))
        return state

    def _live(self, seconds: float) -> bool:
        """Let time pass for all but the main thread; False when the test's time is over."""
        if self.now_s >= self._until_s:
            return False
        round_ends_s = self.now_s + seconds
        while self.now_s < round_ends_s:
            dues_s = [due_s for name, due_s in self._due_s.items() if name not in self.frozen]
            next_s = min(round_ends_s, self.exchange.next_event_s(), *dues_s)
            self.time.advance(max(0.0, next_s - self.now_s))
            self._happen()
        return True

    def _happen(self) -> None:
        while self.exchange.next_event_s() <= self.now_s:
            self.exchange.run_next_event()
        if self.lines.pool_is_woken:
            self.lines.pool_is_woken, self._due_s["stream"] = False, self.now_s
        for name, step in self._steps.items():
            if name not in self.frozen and self.now_s >= self._due_s[name]:
                wait_s = step()
                self._due_s[name] = self.now_s + max(_LEAST_STEP_S, wait_s)

    def _publish(self) -> float:
        if self.now_s >= self._written_s + _WRITTEN_EVERY_S:
            self._written_s = self.now_s
            self.daemon._publisher.write_or_log()
        self.daemon._publisher.progress_s = self.now_s
        return 5.0

    def _notified(self, state: str) -> bool:
        self.told += state.split("\n")
        return True


def lines_of(caplog: pytest.LogCaptureFixture, event: str) -> list[str]:
    """Return the log lines that begin with the event."""
    return [message for message in caplog.messages if message.startswith(event)]
