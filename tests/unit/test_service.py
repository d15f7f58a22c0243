"""Living under systemd: its socket and its watchdog; stopping at a signal; threads that cannot die unseen."""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from binance_funding import service
from binance_funding.service import EX_OK, EX_OSERR, EX_SOFTWARE, EX_UNAVAILABLE, StopRequest, Threads
from tests.support.programs import ROOT
from tests.support.waiting import PATIENCE_S


@pytest.fixture(autouse=True)
def outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """No service manager unless a test brings one."""
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "JOURNAL_STREAM"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def manager() -> Iterator[socket.socket]:
    """A socket such as systemd's, not bound yet."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(PATIENCE_S)
        yield sock


def test_systemd_is_notified_over_its_socket(
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
def test_a_manager_that_cannot_be_reached_is_the_callers_to_log(
    address: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It comes every second: the caller logs it once."""
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


def test_without_a_manager_nothing_is_sent(caplog: pytest.LogCaptureFixture) -> None:
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


@pytest.fixture
def told(manager: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    """What systemd is told, one datagram after the other: the program runs under it."""
    address = str(tmp_path / "notify")
    manager.bind(address)
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    return manager


def taken(_error: OSError) -> tuple[str, int]:
    """Explain every failure of an attempt."""
    return "cannot listen: address already in use", EX_UNAVAILABLE


def failing(times: int, and_then: Callable[[], None] = lambda: None) -> Callable[[], str]:
    """Return an attempt that fails so many times; `and_then` is called each time."""
    left = [None] * times

    def attempt() -> str:
        if not left:
            return "a listener"
        left.pop()
        and_then()
        raise OSError(errno.EADDRINUSE, "Address already in use")

    return attempt


def test_what_is_taken_at_the_start_ends_the_program_with_its_line_and_status(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whoever started it by hand is told at once."""
    with pytest.raises(SystemExit) as end:
        service.acquire(failing(1), taken, StopRequest())
    assert end.value.code == EX_UNAVAILABLE
    assert caplog.messages == ["cannot listen: address already in use"]


def test_under_systemd_what_is_taken_is_waited_for_and_logged_once(
    told: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    """A restart each second would fill the journal; the start's own limit is put off meanwhile."""
    assert service.acquire(failing(3), taken, StopRequest(), retry_s=0.0) == "a listener"
    assert caplog.messages == ['waiting cause="cannot listen: address already in use" next="tried every second"']
    extended = b"EXTEND_TIMEOUT_USEC=10000000\nSTATUS=waiting: cannot listen: address already in use"
    assert [told.recv(1000) for _ in range(3)] == [extended] * 3


def test_waiting_for_what_is_taken_ends_at_a_request_to_stop(told: socket.socket) -> None:
    """With status 0, as a service that was stopped."""
    stop = StopRequest()
    with pytest.raises(SystemExit) as end:
        service.acquire(failing(1, and_then=stop.make), taken, stop)
    assert end.value.code == EX_OK


def test_a_thread_that_dies_ends_the_program(caplog: pytest.LogCaptureFixture) -> None:
    """It is named, its traceback is logged at CRITICAL, and the main thread is asked to stop; the first one counts."""
    threads = Threads()

    def fail() -> None:
        raise RuntimeError("a bug")

    for name in ("first", "second"):
        threads.start(name, fail)
        assert threads.stop_request.wait(PATIENCE_S)
        assert threads.join(PATIENCE_S) == []
    assert (threads.crashed, threads.exit_status()) == ("first", EX_SOFTWARE)
    assert [record.levelno for record in caplog.records] == [logging.CRITICAL] * 2
    assert caplog.messages[0] == 'thread died thread=first next="the program ends"'
    assert "RuntimeError: a bug" in caplog.text


def test_a_thread_that_cannot_be_started_ends_the_program(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one line, without a traceback, and with the status for a fault of the system."""

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    threads = Threads()
    monkeypatch.setattr(threading.Thread, "start", refuse)
    threads.start("rest", lambda: None)
    assert threads.stop_request.wait(0)
    assert (threads.crashed, threads.exit_status(), threads.join(0)) == ("rest", EX_OSERR, [])
    assert len(caplog.messages) == 1
    assert "Traceback" not in caplog.text


def test_a_thread_that_ends_by_itself_is_no_crash() -> None:
    """It has its name while it runs, and does not keep the process alive."""
    names: list[tuple[str, bool]] = []

    def note() -> None:
        current = threading.current_thread()
        names.append((current.name, current.daemon))

    threads = Threads()
    threads.start("stream-1", note)
    assert threads.join(PATIENCE_S) == []
    assert names == [("stream-1", True)]
    assert not threads.stop_request.wait(0)
    assert (threads.crashed, threads.exit_status()) == (None, EX_OK)


def test_joining_names_the_threads_that_did_not_end() -> None:
    """After one deadline for all of them together."""
    release = threading.Event()

    def wait() -> None:
        release.wait(PATIENCE_S)

    threads = Threads()
    for name in ("a", "b"):
        threads.start(name, wait)
    threads.start("c", lambda: None)
    assert threads.join(0.05) == ["a", "b"]
    release.set()
    assert threads.join(PATIENCE_S) == []


def test_a_stop_request_is_waited_for_and_stays() -> None:
    """Made before the waiting or by another thread meanwhile, once or often, every later wait ends at once."""
    stop = StopRequest()
    assert not stop.wait(0)
    assert not stop.wait(0.01)
    threading.Timer(0.05, stop.make).start()
    assert stop.wait(PATIENCE_S)
    stop.make()
    assert all(stop.wait(PATIENCE_S) for _ in range(10))


def test_a_stop_request_may_be_made_amid_its_own_wait() -> None:
    """A signal handler interrupts the waiting thread anywhere: whatever lock `wait` holds then, `make` needs none.

    A trace function stands in for the handler, as it runs in the same thread between any two steps of `wait`.
    """
    ended = threading.Event()

    def wait_interrupted_everywhere() -> None:
        stop = StopRequest()

        def interrupt(_frame: FrameType, _event: str, _argument: Any) -> Any:
            stop.make()
            return interrupt

        sys.settrace(interrupt)
        stop.wait(0)
        stop.wait(0.01)
        sys.settrace(None)
        ended.set()

    threading.Thread(target=wait_interrupted_everywhere, name="waits", daemon=True).start()
    assert ended.wait(PATIENCE_S)


STOPPED_AMID_ROUNDS = """
import os, signal, sys, time
from binance_funding import service

def run(ready):
    stop = service.StopRequest()
    service.on_signals(stop.make)
    os.write(ready, b".")
    while not stop.wait(0):
        pass
    os._exit(0)

ended = 0
for _ in range(8):
    reading, writing = os.pipe()
    pids = [pid for pid in (os.fork() for _ in range(5)) if pid or run(writing)]
    for _ in pids:
        os.read(reading, 1)
    time.sleep(0.02)
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
    until_s = time.monotonic() + 5
    while pids and time.monotonic() < until_s:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            pids.remove(pid)
            ended += status == 0
        else:
            time.sleep(0.001)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
print(ended)
"""


def test_sigterm_ends_every_process_whatever_its_wait_is_doing() -> None:
    """Of 40 processes whose rounds take 0 s, all end: the signal meets `wait` at any instant."""
    ran = subprocess.run(
        [sys.executable, "-c", STOPPED_AMID_ROUNDS],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        timeout=2 * PATIENCE_S,
    )
    assert ran.stdout == "40\n"


SIGNAL_PROGRAM = """
import time
from binance_funding import service
stop = service.StopRequest()
service.on_signals(stop.make)
print("ready", flush=True)
while not stop.wait(60):
    pass
print("stopping", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_first_signal_asks_and_the_second_ends(number: signal.Signals) -> None:
    """A stop that hangs can always be cut short."""
    with subprocess.Popen(
        [sys.executable, "-c", SIGNAL_PROGRAM], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            process.send_signal(number)
            assert process.stdout.readline() == "stopping\n"
            process.send_signal(number)
            assert process.wait(PATIENCE_S) == -number
        finally:
            process.kill()
