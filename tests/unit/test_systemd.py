"""What systemd is told, and how often it wants to hear from a program."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from binance_funding import systemd
from tests.support.waiting import PATIENCE_S


@pytest.fixture(autouse=True)
def outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """No service manager unless a test brings one."""
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
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
    systemd.notify("READY=1")
    systemd.notify("STATUS=币安")
    assert [manager.recv(100), manager.recv(100)] == [b"READY=1", "STATUS=币安".encode()]


def test_an_abstract_socket_is_understood(manager: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name begins with @ in the variable and with NUL on the wire."""
    name = f"binance-funding-test-{os.getpid()}"
    manager.bind("\0" + name)
    monkeypatch.setenv("NOTIFY_SOCKET", "@" + name)
    systemd.notify("WATCHDOG=1")
    assert manager.recv(100) == b"WATCHDOG=1"


@pytest.mark.parametrize("address", ["/nonexistent/notify", "@nobody-listens-here", "relative", "/" + "x" * 200])
def test_a_manager_that_cannot_be_reached_is_the_callers_to_log(
    address: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It comes every second: the caller logs it once."""
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert not systemd.notify("READY=1")
    assert caplog.records == []


def test_a_manager_that_does_not_listen_does_not_block(
    manager: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its queue is full: the notification is lost, the caller knows, and the program goes on."""
    address = str(tmp_path / "notify")
    manager.bind(address)
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert not all(systemd.notify("STATUS=x") for _ in range(5000))


def test_without_a_manager_nothing_is_sent(caplog: pytest.LogCaptureFixture) -> None:
    """By hand, in a container, in a test."""
    assert systemd.notify("READY=1")
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
    assert systemd.watchdog_interval_s() == seconds
