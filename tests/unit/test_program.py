"""The frame of both programs: retries at the start, stopping at a signal, and threads that cannot die unseen."""

from __future__ import annotations

import errno
import logging
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

from binance_funding import program
from binance_funding.program import EX_OK, EX_OSERR, EX_SOFTWARE, EX_UNAVAILABLE, StopRequest, Threads
from tests.support.programs import ROOT
from tests.support.waiting import PATIENCE_S


@pytest.fixture(autouse=True)
def by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program was started by hand, unless a test brings a service manager."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)


@pytest.fixture
def told(by_hand: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """What systemd is told, one datagram after the other: the program runs under it."""
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(PATIENCE_S)
        manager.bind(address)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        yield manager


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
        program.acquire(failing(1), taken, StopRequest())
    assert end.value.code == EX_UNAVAILABLE
    assert caplog.messages == ["cannot listen: address already in use"]


def test_under_systemd_what_is_taken_is_waited_for_and_logged_once(
    told: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    """A restart each second would fill the journal; the start's own limit is put off meanwhile."""
    assert program.acquire(failing(3), taken, StopRequest(), retry_s=0.0) == "a listener"
    assert caplog.messages == ['waiting cause="cannot listen: address already in use" next="tried every second"']
    extended = b"EXTEND_TIMEOUT_USEC=10000000\nSTATUS=waiting: cannot listen: address already in use"
    assert [told.recv(1000) for _ in range(3)] == [extended] * 3


def test_waiting_for_what_is_taken_ends_at_a_request_to_stop(told: socket.socket) -> None:
    """With status 0, as a service that was stopped."""
    stop = StopRequest()
    with pytest.raises(SystemExit) as end:
        program.acquire(failing(1, and_then=stop.make), taken, stop)
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
from binance_funding import program

def run(ready):
    stop = program.StopRequest()
    program.on_signals(stop.make)
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
from binance_funding import program
stop = program.StopRequest()
program.on_signals(stop.make)
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
