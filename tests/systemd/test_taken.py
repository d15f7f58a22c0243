"""A port or a state file that somebody else holds: waited for, without a line a second and without restarts."""

import contextlib
import socket
import time
from collections.abc import Iterator

import pytest

from tests.support.installed import DAEMON, PREFIX, PYTHON, SERVER, SETTINGS_FILE, STATE_DIRECTORY, STATE_FILE, Service
from tests.support.waiting import eventually

PORT_TAKEN = "cannot listen on 127.0.0.1:8888: address already in use"


@contextlib.contextmanager
def taken_port(service: Service) -> Iterator[None]:
    """Within the block, another socket listens on the server's port."""
    with service.machine.network():
        listener = socket.create_server(("127.0.0.1", 8888))
    with listener:
        yield


@contextlib.contextmanager
def other_daemon(service: Service) -> Iterator[int]:
    """Within the block, a daemon outside the service writes the same state file. Yields its pid."""
    service.run(
        *("systemd-run", "--quiet", "--unit=other-daemon", "--property=User=binance-funding"),
        *("--property=RuntimeDirectory=binance-funding", "--property=RuntimeDirectoryPreserve=yes"),
        # In a container, this decides which boot ID a process sees. A file of another boot would count as stale.
        "--property=ProtectKernelTunables=yes",
        *(f"--property=EnvironmentFile={SETTINGS_FILE}", f"--setenv=STATE_FILE={STATE_FILE}"),
        *(PYTHON, f"{PREFIX}/current/binance_funding_ws_daemon.py"),
    )
    try:
        eventually(lambda: service.machine.path(STATE_FILE).exists(), "the other daemon to write")
        yield service.pid("other-daemon")
    finally:
        service.run("systemctl", "stop", "other-daemon", check=False)
        service.run("systemctl", "reset-failed", "other-daemon", check=False)


def wait_until_it_waits(service: Service, unit: str, reason: str) -> None:
    """Wait until the Status line shows this reason. Then check that the unit still waits after its start timeout.

    The unit's TimeoutStartSec is to be 2 s.
    """
    eventually(lambda: reason in service.show(unit, "StatusText"), f"{unit} to wait")
    pid = service.pid(unit)
    time.sleep(4)
    assert (service.show(unit, "ActiveState"), service.pid(unit)) == ("activating", pid)


def warnings(service: Service, unit: str) -> list[str]:
    """Return what `journalctl -p warning` shows of a unit, including systemd's own lines."""
    return service.journal(unit, "-p", "warning")


def test_server_waits_for_its_port(service: Service) -> None:
    """It logs that once, is not restarted meanwhile, and serves as soon as the port is free."""
    service.drop_in(SERVER, "TimeoutStartSec=2")
    with taken_port(service):
        service.systemctl("start")
        wait_until_it_waits(service, SERVER, PORT_TAKEN)
        assert service.show(DAEMON, "ActiveState") == "active"
    service.wait_until_healthy()
    (line,) = warnings(service, SERVER)
    assert PORT_TAKEN in line
    assert "change API_PORT" in line
    assert service.show(SERVER, "NRestarts") == "0"


def test_daemon_waits_for_its_file(service: Service) -> None:
    """It logs the pid of the daemon that writes the file once, and starts when that daemon has ended."""
    service.drop_in(DAEMON, "TimeoutStartSec=2")
    with other_daemon(service) as other_pid:
        service.systemctl("start", DAEMON, "--no-block")
        wait_until_it_waits(service, DAEMON, f"already written by the daemon with pid {other_pid}")
        assert service.state()["daemon_pid"] == other_pid
    service.wait_until_healthy()
    assert service.state()["daemon_pid"] == service.pid(DAEMON)
    lines = warnings(service, DAEMON)
    assert len(lines) == 1, lines
    assert f"pid {other_pid}" in lines[0]
    assert service.show(DAEMON, "NRestarts") == "0"


def test_daemon_waits_until_its_file_can_be_written(service: Service) -> None:
    """It also waits if the directory is at fault, and then does not blame another daemon."""
    obstacle = f"{STATE_FILE}.tmp"
    service.run("install", "-d", "-o", "binance-funding", STATE_DIRECTORY, f"{obstacle}/kept")
    try:
        service.systemctl("start", DAEMON, "--no-block")
        eventually(lambda: "cannot be written" in service.show(DAEMON, "StatusText"), "the daemon to wait")
        time.sleep(2)  # it tries again every second
    finally:
        service.run("rm", "-r", obstacle)
    service.wait_until_healthy()
    (line,) = warnings(service, DAEMON)
    assert f"STATE_FILE={STATE_FILE} cannot be written" in line
    assert service.show(DAEMON, "NRestarts") == "0"


def test_server_that_waits_stops_within_3_s(service: Service) -> None:
    """The waiting server ends by itself with status 0."""
    with taken_port(service):
        service.systemctl("start")
        eventually(lambda: PORT_TAKEN in service.show(SERVER, "StatusText"), "the server to wait")
        assert service.systemctl("stop") < 3
    for unit in (DAEMON, SERVER):
        assert (service.pid(unit), service.show(unit, "Result")) == (0, "success")


def test_daemon_that_waits_stops_within_3_s(service: Service) -> None:
    """The waiting daemon ends by itself with status 0. The other daemon goes on."""
    with other_daemon(service) as other_pid:
        service.systemctl("start", DAEMON, "--no-block")
        eventually(lambda: "already written" in service.show(DAEMON, "StatusText"), "the daemon to wait")
        assert service.systemctl("stop") < 3
        assert (service.pid(DAEMON), service.show(DAEMON, "Result")) == (0, "success")
        assert service.pid("other-daemon") == other_pid


def test_restart_of_a_crashed_daemon_waits_as_well(service: Service) -> None:
    """If another daemon took the file meanwhile, the restarted daemon waits as at the first start."""
    service.drop_in(DAEMON, "RestartSec=3")
    service.start()
    service.run("kill", "-KILL", str(service.pid(DAEMON)))
    eventually(lambda: service.pid(DAEMON) == 0, "its end")
    with other_daemon(service):
        eventually(lambda: "already written" in service.show(DAEMON, "StatusText"), "the daemon to wait")
        restarts = service.show(DAEMON, "NRestarts")
    service.wait_until_healthy()
    assert service.show(DAEMON, "NRestarts") == restarts == "1"


def test_port_of_a_crashed_server_cannot_be_taken(service: Service) -> None:
    """The listening socket stays with systemd until the server is back."""
    service.drop_in(SERVER, "RestartSec=3")
    service.start()
    service.run("kill", "-KILL", str(service.pid(SERVER)))
    eventually(lambda: service.pid(SERVER) == 0, "its end")
    with pytest.raises(OSError, match="in use"), taken_port(service):
        pass
    service.wait_until_healthy()


def test_port_of_a_stopped_service_is_free(service: Service) -> None:
    """Unlike a restart, a stop closes the listening socket."""
    service.start()
    service.systemctl("stop")
    with taken_port(service):
        assert service.show(SERVER, "NFileDescriptorStore") == "0"
