"""Living under systemd: its socket, its watchdog, its journal; and threads that cannot die unseen."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from binance_funding import service

PROJECT = Path(__file__).parent.parent
LIMIT_S = 30.0


@pytest.fixture(autouse=True)
def outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """No service manager unless a test brings one."""
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "JOURNAL_STREAM"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def manager() -> Iterator[socket.socket]:
    """A socket such as systemd's, not bound yet."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(LIMIT_S)
        yield sock


def test_systemd_is_told_over_its_socket(
    manager: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One datagram for each notification, as given."""
    address = str(tmp_path / "notify")
    manager.bind(address)
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    service.notify("READY=1")
    service.notify("STATUS=币安")
    assert [manager.recv(100), manager.recv(100)] == [b"READY=1", "STATUS=币安".encode()]


def test_an_abstract_socket_is_understood(manager: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name begins with @ in the variable and with NUL on the wire."""
    name = f"binance-funding-test-{os.getpid()}"
    manager.bind("\0" + name)
    monkeypatch.setenv("NOTIFY_SOCKET", "@" + name)
    service.notify("WATCHDOG=1")
    assert manager.recv(100) == b"WATCHDOG=1"


@pytest.mark.parametrize("address", ["/nonexistent/notify", "@nobody-listens-here", "relative", "/" + "x" * 200])
def test_a_manager_that_cannot_be_reached_is_the_callers_to_tell(
    address: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It comes every second: the caller tells it once."""
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert not service.notify("READY=1")
    assert caplog.records == []


def test_a_manager_that_does_not_listen_does_not_block(
    manager: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its queue is full: the notification is lost, the caller knows, and the program goes on."""
    address = str(tmp_path / "notify")
    manager.bind(address)
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert not all(service.notify("STATUS=x") for _ in range(5000))


def test_without_a_manager_nothing_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """By hand, in a container, in a test."""
    assert service.notify("READY=1")
    assert caplog.records == []


@pytest.mark.parametrize(
    ("microseconds", "pid", "seconds"),
    [
        (None, None, None),
        ("30000000", None, 15.0),
        pytest.param("30000000", str(os.getpid()), 15.0, id="this process"),
        ("500000", None, 0.25),
        ("30000000", "1", None),
        ("30000000", "", None),
        ("0", None, None),
        ("", None, None),
        ("-1", None, None),
        ("soon", None, None),
    ],
)
def test_the_watchdog_is_fed_at_half_its_time(
    microseconds: str | None, pid: str | None, seconds: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only where it is meant for this process."""
    for name, value in (("WATCHDOG_USEC", microseconds), ("WATCHDOG_PID", pid)):
        if value is not None:
            monkeypatch.setenv(name, value)
    assert service.watchdog_interval_s() == seconds


LOGGING_PROGRAM = """
import logging, sys
from binance_funding import service
service.set_up_logging(sys.argv[1])
log = logging.getLogger("x")
log.debug("fine")
log.info("two\\nlines")
log.warning("careful")
log.error("wrong")
try:
    raise ValueError("first\\nsecond")
except ValueError:
    log.critical("thread x died", exc_info=True)
logging.getLogger("urllib3.connectionpool").warning("retrying")
logging.getLogger("websocket").error("lost")
"""


def logged(level: str, journal: bool) -> list[str]:
    """Run a program that logs; return its lines on stderr, which the journal listens to or not."""
    reading, writing = os.pipe()
    info = os.fstat(writing)
    stream = f"{info.st_dev}:{info.st_ino}" if journal else f"{info.st_dev}:{info.st_ino + 1}"
    with os.fdopen(reading, "rb") as output:
        try:
            subprocess.run(
                [sys.executable, "-c", LOGGING_PROGRAM, level],
                cwd=PROJECT,
                env={**os.environ, "JOURNAL_STREAM": stream, "TZ": "EAST-9"},
                stderr=writing,
                check=True,
                timeout=LIMIT_S,
            )
        finally:
            os.close(writing)
        return output.read().decode().splitlines()


def test_every_line_in_the_journal_carries_its_priority() -> None:
    """Those of a traceback too; no time, which the journal has itself; libraries are not repeated."""
    lines = logged("DEBUG", journal=True)
    assert lines[:5] == ["<7>fine", "<6>two", "<6>lines", "<4>careful", "<3>wrong"]
    assert lines[5:7] == ["<2>thread x died", "<2>Traceback (most recent call last):"]
    assert lines[-2:] == ["<2>ValueError: first", "<2>second"]
    assert all(line.startswith("<2>") for line in lines[5:])


def test_elsewhere_every_event_carries_time_and_level() -> None:
    """In UTC, with milliseconds; a stderr that is not the journal's gets no priorities."""
    lines = logged("INFO", journal=False)
    assert lines[0].endswith("Z INFO    two")
    assert lines[2].split("Z ")[1] == "WARNING careful"
    told = datetime.fromisoformat(lines[2].split("Z ")[0]).replace(tzinfo=timezone.utc)
    assert abs(datetime.now(timezone.utc) - told) < timedelta(hours=1)
    assert not any(line.startswith("<") for line in lines)


def test_the_level_decides_what_is_logged() -> None:
    """Less than it is left out."""
    assert logged("WARNING", journal=True)[:2] == ["<4>careful", "<3>wrong"]


def test_a_thread_that_dies_ends_the_program(caplog: pytest.LogCaptureFixture) -> None:
    """It is named, its traceback is logged at CRITICAL, and whoever waits is told; the first one counts."""
    told = threading.Semaphore(0)
    threads = service.Threads(on_crash=told.release)

    def fail() -> None:
        raise RuntimeError("a bug")

    threads.start("first", fail)
    assert told.acquire(timeout=LIMIT_S)
    threads.start("second", fail)
    assert told.acquire(timeout=LIMIT_S)
    assert threads.join(LIMIT_S) == []
    assert threads.crashed == "first"
    assert [record.levelno for record in caplog.records] == [logging.CRITICAL] * 2
    assert "thread first died of an unexpected error" in caplog.text
    assert "RuntimeError: a bug" in caplog.text


def test_a_thread_that_ends_by_itself_is_no_crash() -> None:
    """It has its name while it runs, and does not keep the process alive."""
    names: list[tuple[str, bool]] = []

    def note() -> None:
        current = threading.current_thread()
        names.append((current.name, current.daemon))

    threads = service.Threads(on_crash=lambda: names.append(("crash", True)))
    threads.start("stream-1", note)
    assert threads.join(LIMIT_S) == []
    assert names == [("stream-1", True)]
    assert threads.crashed is None


def test_joining_names_the_threads_that_did_not_end() -> None:
    """After one deadline for all of them together."""
    release = threading.Event()

    def wait() -> None:
        release.wait(LIMIT_S)

    threads = service.Threads(on_crash=lambda: None)
    for name in ("a", "b"):
        threads.start(name, wait)
    threads.start("c", lambda: None).join(LIMIT_S)
    assert threads.join(0.05) == ["a", "b"]
    release.set()
    assert threads.join(LIMIT_S) == []


SIGNAL_PROGRAM = """
import threading, time
from binance_funding import service
stop = threading.Event()
service.on_signals(stop.set)
print("ready", flush=True)
stop.wait()
print("stopping", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks_and_the_second_ends(number: signal.Signals) -> None:
    """A stop that hangs can always be cut short."""
    with subprocess.Popen(
        [sys.executable, "-c", SIGNAL_PROGRAM], cwd=PROJECT, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            process.send_signal(number)
            assert process.stdout.readline() == "stopping\n"
            process.send_signal(number)
            assert process.wait(LIMIT_S) == -number
        finally:
            process.kill()
