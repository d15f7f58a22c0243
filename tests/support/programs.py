"""Runs the real programs as subprocesses, and watches them through their log and their files."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

from tests.exchange import Exchange
from tests.support.waiting import PATIENCE_S, eventually

ROOT = Path(__file__).resolve().parent.parent.parent

Self = TypeVar("Self", bound="Program")


def free_port() -> int:
    """Return a TCP port that is free now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


class Program:
    """One of our programs, run in a folder with these settings. A thread collects its log.

    `most_files` limits how many files it may have open, like `ulimit -n`.
    """

    def __init__(
        self,
        script: str,
        folder: Path,
        settings: Mapping[str, object],
        *arguments: str,
        most_files: int | None = None,
    ) -> None:
        limited = [] if most_files is None else ["prlimit", f"--nofile={most_files}"]
        inherited = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG", "TMPDIR")}
        self.process = subprocess.Popen(
            [*limited, *self.command(script, folder), *arguments],
            cwd=folder,
            env={**inherited, **{name: str(value) for name, value in settings.items()}},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.folder = folder
        self.reading = threading.Event()
        """Set while the log is read. If a test clears it, the pipe of the program's stderr fills up."""
        self.reading.set()
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read_log, name=f"log of {script}")
        self._reader.start()

    def command(self, script: str, folder: Path) -> list[str]:
        """Return what runs the script in a folder."""
        return [sys.executable, str(ROOT / script)]

    def _read_log(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.append(line.rstrip("\n"))
            self.reading.wait()

    @property
    def log(self) -> list[str]:
        """Every line so far."""
        return list(self._lines)

    def wait_for_line(self, pattern: str, count: int = 1, within_s: float = PATIENCE_S) -> str:
        """Return the `count`th log line that the regular expression is found in."""

        def found() -> list[str]:
            lines = [line for line in self.log if re.search(pattern, line)]
            return lines if len(lines) >= count else []

        try:
            return eventually(found, f"log line {pattern!r}", within_s)[count - 1]
        except AssertionError as error:
            raise AssertionError("\n".join([str(error), *self.log])) from None

    def wait(self, within_s: float = PATIENCE_S) -> int:
        """Wait until the program ends by itself; return its exit status."""
        status = self.process.wait(within_s)
        self._reader.join(within_s)
        return status

    def terminate(self, signum: int = signal.SIGTERM) -> float:
        """End the program by a signal; return the seconds until its end. Its status is in `process.returncode`."""
        start_s = time.monotonic()
        self.process.send_signal(signum)
        self.wait()
        return time.monotonic() - start_s

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.reading.set()
        self.wait()
        if kind is not None:
            print("\n".join(["log:", *self.log]))


STATE_FILE = ".funding_state.json"

FAST = {
    "SILENCE_SECONDS": 2,
    "STALE_SECONDS": 5,
    "RECONNECT_MIN_SECONDS": 0.1,
    "RECONNECT_MAX_SECONDS": 1,
    "REST_POLL_SECONDS": 60,
    "REST_FALLBACK_SECONDS": 1,
    "REST_TIMEOUT_SECONDS": 2,
    "HEARTBEAT_SECONDS": 0.5,
}
"""Settings with which faults are noticed and mended within seconds, slow enough for a busy machine."""


class Daemon(Program):
    """The daemon against a simulated exchange, with fast settings unless others are given."""

    def __init__(self, exchange: Exchange, folder: Path, **settings: Any) -> None:
        addresses = {"BINANCE_WS_URLS": exchange.ws_url, "BINANCE_REST_URL": exchange.rest_url}
        super().__init__("binance_funding_ws_daemon.py", folder, {**addresses, **FAST, **settings})

    def state(self) -> dict[str, Any]:
        """Return the newest content of the state file that this daemon wrote, or {} if there is none yet."""
        try:
            state: dict[str, Any] = json.loads((self.folder / STATE_FILE).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            # A test may have put junk there. Another test reads in a loop and shows that a daemon never writes any.
            return {}
        return state if state.get("daemon_pid") == self.process.pid else {}

    def records(self) -> dict[str, dict[str, Any]]:
        """Return the records by symbol."""
        records: dict[str, dict[str, Any]] = self.state().get("funding_state", {})
        return records

    def status(self) -> dict[str, Any]:
        """Return `connection_status`."""
        status: dict[str, Any] = self.state().get("connection_status", {})
        return status

    def wait_for_live(self, connections: int = 2) -> None:
        """Wait until the state file shows that this number of connections is live."""
        eventually(lambda: self.status().get("connections") == connections, f"{connections} live connections")

    def wait_for_newer_data(self) -> None:
        """Wait until each record of the state file has a later event time than now."""
        before = self.records()

        def all_newer() -> bool:
            after = self.records()
            return all(after[symbol]["eventTime"] > record["eventTime"] for symbol, record in before.items())

        eventually(all_newer, "newer data of every symbol")


class Server(Program):
    """The HTTP server over a folder's state file."""

    def __init__(self, folder: Path, *, most_files: int | None = None, **settings: Any) -> None:
        self.port = free_port()
        given = {**FAST, "API_PORT": self.port, **settings}
        super().__init__("funding_api_server.py", folder, given, most_files=most_files)
        try:
            self.wait_for_line("listening")
        except BaseException:
            self.process.kill()
            self.wait()
            raise

    def request(
        self, path: str, method: str = "GET", headers: Mapping[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Send one request; return status, headers with names in lower case, and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            connection.request(method, path, headers=dict(headers or {}))
            response = connection.getresponse()
            return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
        finally:
            connection.close()

    def get(self, path: str) -> tuple[int, dict[str, Any]]:
        """Get a path; return status and parsed JSON."""
        status, _, body = self.request(path)
        return status, json.loads(body)


class Both(NamedTuple):
    """Both programs on one state file."""

    daemon: Daemon
    server: Server


@contextlib.contextmanager
def running_both(exchange: Exchange, folder: Path, **settings: Any) -> Iterator[Both]:
    """Run both programs with the same settings against a started exchange. The block begins when the daemon is live."""
    with Daemon(exchange, folder, **settings) as daemon, Server(folder, **settings) as server:
        daemon.wait_for_live()
        yield Both(daemon, server)
