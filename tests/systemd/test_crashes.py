"""Programs that are killed, frozen or stuck: noticed, replaced, and of no harm to the other one."""

import re
import time

import pytest

from tests.support.installed import DAEMON, PREFIX, SERVER, STATE_DIRECTORY, Service
from tests.support.waiting import eventually


def test_killed_daemon_is_back_within_3_s_while_the_server_answers(service: Service) -> None:
    """SIGKILL of the daemon ends neither the server nor any of its answers."""
    service.start()
    daemon, server = service.pid(DAEMON), service.pid(SERVER)
    killed_s = time.monotonic()
    service.signal("KILL")
    while service.pid(DAEMON) in (0, daemon) or service.show(DAEMON, "ActiveState") != "active":
        assert service.get("/funding/BTCUSDT")[1]["symbol"] == "BTCUSDT"
        assert time.monotonic() - killed_s < 3
    service.wait_until_healthy()
    assert service.pid(SERVER) == server
    assert service.show(SERVER, "NRestarts") == "0"


def test_killed_server_is_back_while_the_daemon_goes_on(service: Service) -> None:
    """SIGKILL of the server does not touch the daemon."""
    service.start()
    daemon, server = service.pid(DAEMON), service.pid(SERVER)
    service.run("kill", "-KILL", str(server))
    eventually(lambda: service.pid(SERVER) not in (0, server), "a new server")
    service.wait_until_healthy()
    assert service.pid(DAEMON) == daemon


def test_systemd_never_gives_up(service: Service) -> None:
    """However often the daemon dies in a short time, it is started again."""
    service.systemctl("start")
    for _ in range(7):  # 5 starts within 10 s are what systemd allows by default
        pid = eventually(lambda: service.pid(DAEMON), "a daemon")
        service.run("kill", "-KILL", str(pid))
        eventually(lambda: service.pid(DAEMON) != pid, "its end")  # noqa: B023
    service.wait_until_healthy()


@pytest.mark.parametrize("verb", ["stop", "restart"])
def test_one_name_controls_both_while_a_crashed_daemon_waits(service: Service, verb: str) -> None:
    """The server is stopped or restarted with the daemon, even in the second between a crash and the next start."""
    service.start()
    server = service.pid(SERVER)
    service.signal("KILL")
    eventually(lambda: service.pid(DAEMON) == 0, "its end")
    time.sleep(0.3)  # in the middle of that second; both must follow at any other time, too
    service.systemctl(verb)
    if verb == "stop":
        assert (service.pid(DAEMON), service.pid(SERVER)) == (0, 0)
    else:
        eventually(lambda: service.pid(SERVER) not in (0, server), "another server")
        service.wait_until_healthy()


@pytest.mark.parametrize("unit", [DAEMON, SERVER])
def test_frozen_process_is_replaced(service: Service, unit: str) -> None:
    """The watchdog replaces a process that SIGSTOP has frozen. The other program goes on."""
    service.drop_in(unit, "WatchdogSec=3", "TimeoutAbortSec=1")
    other = SERVER if unit == DAEMON else DAEMON
    service.start()
    frozen, bystander = service.pid(unit), service.pid(other)
    service.run("kill", "-STOP", str(frozen))
    eventually(lambda: service.pid(unit) not in (0, frozen), "a new process")
    service.wait_until_healthy()
    assert any("Watchdog timeout" in line for line in service.journal(unit))
    assert service.pid(other) == bystander


def test_both_are_watched(service: Service) -> None:
    """The installed units give each process 20 s to report."""
    service.systemctl("start")
    for unit in (DAEMON, SERVER):
        eventually(lambda: service.show(unit, "WatchdogUSec") == "20s", f"the watchdog of {unit}")  # noqa: B023


def test_watchdog_leaves_working_processes_alone(service: Service) -> None:
    """Both run for several watchdog periods. The server needs no requests for that."""
    for unit in (DAEMON, SERVER):
        service.drop_in(unit, "WatchdogSec=1")
    service.systemctl("start")
    eventually(lambda: service.show(SERVER, "ActiveState") == "active", "the server")
    time.sleep(3.5)  # nothing to wait for: nothing must happen
    for unit in (DAEMON, SERVER):
        assert (service.show(unit, "NRestarts"), service.show(unit, "ActiveState")) == ("0", "active")


DEADLOCK = """
import os, runpy, threading
from binance_funding.daemon.output.publisher import Publisher

write = Publisher.write

def write_or_deadlock(self):
    write(self)
    if os.path.exists("%(directory)s/deadlock"):
        os.unlink("%(directory)s/deadlock")  # the next process is to work
        lock = threading.Lock()
        lock.acquire()
        lock.acquire()

Publisher.write = write_or_deadlock
runpy.run_path("%(prefix)s/current/binance_funding_ws_daemon.py", run_name="__main__")
"""


def test_deadlock_in_the_writer_thread_ends_in_a_restart(service: Service) -> None:
    """A daemon whose writer thread hangs stops feeding the watchdog; the journal shows where each thread stood."""
    program = f"{PREFIX}/deadlock.py"
    service.write(program, DEADLOCK % {"directory": STATE_DIRECTORY, "prefix": PREFIX})
    unit = service.machine.path(f"/etc/systemd/system/{DAEMON}.service").read_text()
    (command,) = re.findall(r"^(ExecStart=.* )\S+$", unit, re.MULTILINE)
    service.drop_in(
        DAEMON, "WatchdogSec=2", f"Environment=PYTHONPATH={PREFIX}/current", "ExecStart=", command + program
    )
    service.start()
    stuck, server = service.pid(DAEMON), service.pid(SERVER)
    service.machine.path(f"{STATE_DIRECTORY}/deadlock").touch()
    eventually(lambda: service.pid(DAEMON) not in (0, stuck), "a new daemon", within_s=60)
    service.wait_until_healthy()
    journal = "\n".join(service.journal())
    assert "no progress of thread publisher" in journal
    assert "Watchdog timeout" in journal
    assert "in write_or_deadlock" in journal
    assert service.pid(SERVER) == server
