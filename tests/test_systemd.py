"""The units and the installer under a real systemd, booted for this module. See systemd_machine.py for what it takes.

Where no machine can be booted the module is skipped, with the reason; where CI is set it fails.
"""

import contextlib
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.exchange import Exchange, Market
from tests.systemd_machine import CLONE, CannotBootError, Machine

DAEMON, SERVER = "binance-funding-ws", "binance-funding-api"
PREFIX = "/opt/binance-funding"
SETTINGS_FILE = "/etc/binance-funding.env"
STATE_DIRECTORY = "/run/binance-funding"
STATE_FILE = f"{STATE_DIRECTORY}/funding_state.json"
PYTHON = f"{PREFIX}/current/venv/bin/python"

T = TypeVar("T")


class Service:
    """Both units in the machine, as an operator sees them, and the exchange they talk to."""

    def __init__(self, machine: Machine, exchange: Exchange) -> None:
        self.machine = machine
        self.exchange = exchange
        self.run = machine.run
        self._reset_at_s = 0.0

    def reset(self) -> None:
        """Back to how it is after an installation, with settings for a quick exchange; forget the log so far."""
        self.run("systemctl", "stop", DAEMON, SERVER, check=False)
        if not self.machine.path(f"{PREFIX}/current").is_symlink():
            self.install()
        for unit in (DAEMON, SERVER):
            self.run("rm", "-rf", f"/etc/systemd/system/{unit}.service.d")
        self.run("systemctl", "daemon-reload")
        self.run("systemctl", "reset-failed", DAEMON, SERVER, check=False)
        self.run("sh", "-c", f"rm -f {STATE_DIRECTORY}/*")
        self.exchange.up()
        self.configure()
        self._reset_at_s = time.time()

    def install(self, target: str = "install", clone: str = CLONE) -> str:
        """Run `make install` as root with a strict umask and return what it said."""
        command = f"umask 077; make --no-print-directory -C {clone} {target}"
        return self.run("sh", "-c", command, host_network=True, timeout_s=120).stdout

    def releases(self) -> set[str]:
        """Return the folders of the releases that are installed."""
        return set(self.run("find", PREFIX, "-maxdepth", "1", "-name", "release.*").stdout.split())

    def configure(self, **settings: object) -> None:
        """Write the settings file."""
        values = {
            "BINANCE_WS_URLS": self.exchange.ws_url,
            "BINANCE_REST_URL": self.exchange.rest_url,
            "RECONNECT_MIN_SECONDS": 0.1,
            "RECONNECT_MAX_SECONDS": 0.5,
            "REST_POLL_SECONDS": 2,
            "REST_FALLBACK_SECONDS": 0.5,
            "HEARTBEAT_SECONDS": 0.5,
            **settings,
        }
        self.write(SETTINGS_FILE, "".join(f"{name}={value}\n" for name, value in values.items()))

    def write(self, path: str, text: str) -> None:
        """Write a file that everybody may read."""
        file = self.machine.path(path)
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        file.chmod(0o644)

    def drop_in(self, unit: str, *lines: str) -> None:
        """Add lines to the [Service] section of a unit."""
        self.write(f"/etc/systemd/system/{unit}.service.d/test.conf", "\n".join(["[Service]", *lines, ""]))
        self.run("systemctl", "daemon-reload")

    def systemctl(self, verb: str, unit: str = DAEMON) -> float:
        """Run one systemctl command, which must succeed, and return the seconds it took."""
        started_s = time.monotonic()
        self.run("systemctl", verb, unit)
        return time.monotonic() - started_s

    def show(self, unit: str, name: str) -> str:
        """One property of a unit."""
        return self.run("systemctl", "show", f"--property={name}", "--value", unit).stdout.strip()

    def pid(self, unit: str) -> int:
        """The main process, 0 if there is none."""
        return int(self.show(unit, "MainPID"))

    def signal(self, name: str) -> None:
        """Send a signal to the daemon alone."""
        self.run("kill", f"-{name}", str(self.pid(DAEMON)))

    def get(self, path: str, host: str = "127.0.0.1") -> tuple[int, dict[str, Any]]:
        """Ask the server. Raises OSError where it does not answer."""
        try:
            with (
                self.machine.network(),
                urllib.request.urlopen(f"http://{host}:8888{path}", timeout=5) as response,
            ):
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def health(self) -> tuple[int, str]:
        """HTTP status and `status` of the health answer; (0, "") where the server does not answer."""
        try:
            status, answer = self.get("/funding/health")
        except OSError:
            return 0, ""
        return status, answer["status"]

    def wait_until_healthy(self) -> None:
        """Wait for the stream to be live."""
        wait_for(lambda: self.health() == (200, "healthy"), "the service to be healthy")

    def state(self) -> dict[str, Any]:
        """The state file."""
        state: dict[str, Any] = json.loads(self.machine.path(STATE_FILE).read_bytes())
        return state

    def journal(self, unit: str = DAEMON, *options: str) -> list[str]:
        """The messages of a unit since the last reset, systemd's about it among them."""
        self.run("journalctl", "--sync")
        since = f"--since=@{self._reset_at_s:.6f}"
        return self.run("journalctl", "-q", "-u", unit, "-o", "cat", since, *options).stdout.splitlines()


def wait_for(condition: Callable[[], T], what: str, timeout_s: float = 30) -> T:
    """Return the condition's first true value."""
    deadline_s = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline_s, f"waited {timeout_s} s for {what}"
        time.sleep(0.05)
    return value


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """A booted machine on which this product was never installed."""
    with contextlib.ExitStack() as stack:
        try:
            machine = stack.enter_context(Machine(Path(__file__).parent.parent))
        except CannotBootError as error:
            if os.environ.get("CI"):
                pytest.fail(f"no systemd can be booted here: {error}")
            pytest.skip(f"NOT TESTED, no systemd can be booted here: {error}")
        machine.run("sh", "-c", f"rm -rf {PREFIX} {SETTINGS_FILE} /etc/systemd/system/binance-funding-*")
        machine.run("systemctl", "daemon-reload")
        yield machine


@pytest.fixture(scope="module")
def exchange(machine: Machine) -> Iterator[Exchange]:
    """A simulated exchange in the machine's network."""
    exchange = Exchange(Market(usd_m=50), tick_s=1)
    with machine.network():
        exchange.start()
    yield exchange
    exchange.stop()


@dataclass(frozen=True)
class Installation:
    """What the first `make install` on a machine did."""

    said: str
    settings: str
    started: bool


@pytest.fixture(scope="module")
def installation(machine: Machine, exchange: Exchange) -> Installation:
    """The product, newly installed."""
    service = Service(machine, exchange)
    said = service.install()
    return Installation(said, machine.path(SETTINGS_FILE).read_text(), bool(service.pid(DAEMON) or service.pid(SERVER)))


@pytest.fixture
def service(machine: Machine, exchange: Exchange, installation: Installation) -> Iterator[Service]:
    """The installed service, stopped, without state or drop-ins."""
    service = Service(machine, exchange)
    service.reset()
    yield service
    service.run("systemctl", "stop", DAEMON, SERVER, check=False)


def test_start_returns_once_the_daemon_is_ready_and_health_is_good_within_5_s(service: Service) -> None:
    """`systemctl start` of the one name is enough for both, and ordinary users can ask."""
    service.systemctl("start")
    assert service.show(DAEMON, "ActiveState") == "active"
    as_nobody = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups")
    wait_for(lambda: service.health()[0] == 200, "a good health", timeout_s=5)
    answer = service.run(*as_nobody, "curl", "-sf", "localhost:8888/funding/BTCUSDT").stdout
    assert json.loads(answer)["symbol"] == "BTCUSDT"
    assert "BTCUSDT" in json.loads(service.run(*as_nobody, "cat", STATE_FILE).stdout)["funding_state"]


def test_status_shows_symbols_age_and_source(service: Service) -> None:
    """The Status line of `systemctl status` tells how the daemon is, and goes on telling."""
    service.systemctl("start")
    service.wait_until_healthy()
    pattern = r"Status: \"[1-9]\d* symbols, newest \d+ s old, source stream, 2 of 2 connections"
    wait_for(lambda: re.search(pattern, service.run("systemctl", "status", DAEMON).stdout), "the status line")
    service.exchange.down()
    wait_for(lambda: "source none, 0 of 2 connections" in service.show(DAEMON, "StatusText"), "the status to follow")


def test_stop_ends_both_within_3_s(service: Service) -> None:
    """When `systemctl stop` of the one name returns, both are gone, of their own accord and with status 0."""
    for unit in (DAEMON, SERVER):
        tell = 'echo "ended: $SERVICE_RESULT, $EXIT_CODE $EXIT_STATUS"'
        service.drop_in(unit, f"ExecStopPost=sh -c '{tell}'")
    service.systemctl("start")
    service.wait_until_healthy()
    assert service.systemctl("stop") < 3
    for unit in (DAEMON, SERVER):
        assert service.pid(unit) == 0
        assert "ended: success, exited 0" in service.journal(unit)


def test_restart_restarts_both(service: Service) -> None:
    """`systemctl restart` of the one name brings up two new processes, with the settings as they are now."""
    service.systemctl("start")
    service.wait_until_healthy()
    old = service.pid(DAEMON), service.pid(SERVER)
    service.configure(LOG_LEVEL="DEBUG", STALE_SECONDS=100)
    service.systemctl("restart")
    service.wait_until_healthy()
    assert not {service.pid(DAEMON), service.pid(SERVER)} & {*old, 0}


def test_restart_keeps_records_and_gaps(service: Service) -> None:
    """What the daemon knew before a stop it knows afterwards, with the old times; the stop itself is a gap."""
    service.systemctl("start")
    service.wait_until_healthy()
    service.exchange.down()
    service.systemctl("stop")
    before = service.state()
    _shift_into_the_past(before, seconds=60)
    service.machine.path(STATE_FILE).write_text(json.dumps(before))
    service.systemctl("start")
    known = service.state()["funding_state"]
    assert known.keys() == before["funding_state"].keys()
    for symbol, record in known.items():
        assert record["updatedAt"] == pytest.approx(before["funding_state"][symbol]["updatedAt"], abs=0.5)
    service.exchange.up()
    (gap,) = wait_for(lambda: service.state()["gaps"], "the gap to end")
    assert gap["cause"].startswith("not running")
    assert gap["seconds"] > 60
    service.systemctl("restart")
    assert service.state()["gaps"] == [gap]


def _shift_into_the_past(state: dict[str, Any], seconds: float) -> None:
    """Make a state file as a daemon would have left it that long ago."""
    state["updated_at"] -= seconds
    state["boottime"] -= seconds
    for record in state["funding_state"].values():
        record["updatedAt"] -= seconds


def test_start_succeeds_without_the_exchange_and_recovers_by_itself(service: Service) -> None:
    """With the exchange unreachable the service starts all the same, says so, and is well once it is back."""
    service.exchange.down()
    service.systemctl("start")
    wait_for(lambda: service.health() == (503, "unhealthy"), "the server to tell")
    wait_for(lambda: service.show(DAEMON, "StatusText").startswith("no data yet, 0 of 2"), "the status line")
    assert "refused" in wait_for(lambda: service.show(DAEMON, "StatusText"), "the status line")
    service.exchange.up()
    service.wait_until_healthy()
    assert service.show(DAEMON, "NRestarts") == "0"


def test_killed_daemon_is_back_within_3_s_while_the_server_answers(service: Service) -> None:
    """SIGKILL of the daemon costs neither the server nor one of its answers."""
    service.systemctl("start")
    service.wait_until_healthy()
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
    service.systemctl("start")
    service.wait_until_healthy()
    daemon, server = service.pid(DAEMON), service.pid(SERVER)
    service.run("kill", "-KILL", str(server))
    wait_for(lambda: service.pid(SERVER) not in (0, server), "a new server")
    service.wait_until_healthy()
    assert service.pid(DAEMON) == daemon


def test_systemd_never_gives_up(service: Service) -> None:
    """However often the daemon dies in a short time, it is started again."""
    service.drop_in(DAEMON, "RestartSec=0.1")
    service.systemctl("start")
    for _ in range(7):  # 5 starts within 10 s are what systemd allows by default
        pid = wait_for(lambda: service.pid(DAEMON), "a daemon")
        service.run("kill", "-KILL", str(pid))
        wait_for(lambda: service.pid(DAEMON) != pid, "its end")  # noqa: B023
    service.wait_until_healthy()


@pytest.mark.parametrize("unit", [DAEMON, SERVER])
def test_frozen_process_is_replaced(service: Service, unit: str) -> None:
    """A process that SIGSTOP has frozen is noticed by the watchdog and replaced; the other one goes on."""
    service.drop_in(unit, "WatchdogSec=3", "TimeoutAbortSec=1")
    other = SERVER if unit == DAEMON else DAEMON
    service.systemctl("start")
    service.wait_until_healthy()
    frozen, bystander = service.pid(unit), service.pid(other)
    service.run("kill", "-STOP", str(frozen))
    wait_for(lambda: service.pid(unit) not in (0, frozen), "a new process")
    service.wait_until_healthy()
    assert any("Watchdog timeout" in line for line in service.journal(unit))
    assert service.pid(other) == bystander


def test_both_are_watched(service: Service) -> None:
    """As installed, either process has 20 s to report in."""
    service.systemctl("start")
    for unit in (DAEMON, SERVER):
        wait_for(lambda: service.show(unit, "WatchdogUSec") == "20s", f"the watchdog of {unit}")  # noqa: B023


def test_watchdog_leaves_working_processes_alone(service: Service) -> None:
    """Over several watchdog periods both go on, the server without a single request too."""
    for unit in (DAEMON, SERVER):
        service.drop_in(unit, "WatchdogSec=1")
    service.systemctl("start")
    wait_for(lambda: service.show(SERVER, "ActiveState") == "active", "the server")
    time.sleep(3.5)  # nothing to wait for: nothing must happen
    for unit in (DAEMON, SERVER):
        assert (service.show(unit, "NRestarts"), service.show(unit, "ActiveState")) == ("0", "active")


DEADLOCK = """
import os, runpy, threading
from binance_funding.publisher import Publisher

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
    service.systemctl("start")
    service.wait_until_healthy()
    stuck, server = service.pid(DAEMON), service.pid(SERVER)
    service.machine.path(f"{STATE_DIRECTORY}/deadlock").touch()
    wait_for(lambda: service.pid(DAEMON) not in (0, stuck), "a new daemon", timeout_s=60)
    service.wait_until_healthy()
    journal = "\n".join(service.journal())
    assert "no progress of thread publisher" in journal
    assert "Watchdog timeout" in journal
    assert "in write_or_deadlock" in journal
    assert service.pid(SERVER) == server


def test_wrong_setting_fails_at_once_and_says_why(service: Service) -> None:
    """With a wrong setting the start fails, is not tried again, and `systemctl status` shows the line."""
    service.configure(STALE_SECONDS="soon")
    assert service.run("systemctl", "start", DAEMON, check=False).returncode != 0
    assert (service.show(DAEMON, "ActiveState"), service.show(DAEMON, "ExecMainStatus")) == ("failed", "78")
    assert service.show(DAEMON, "NRestarts") == "0"
    status = service.run("systemctl", "status", DAEMON, check=False).stdout
    assert [line for line in status.splitlines() if "STALE_SECONDS" in line and "soon" in line]
    assert "Traceback" not in status
    service.configure()
    service.systemctl("start")
    service.wait_until_healthy()


def test_wrong_setting_in_a_restart_takes_both_down_until_it_is_mended(service: Service) -> None:
    """The server does not live on with other settings than the daemon would have."""
    service.systemctl("start")
    service.wait_until_healthy()
    service.configure(STALE_SECONDS="soon")
    assert service.run("systemctl", "restart", DAEMON, check=False).returncode != 0
    assert (service.pid(DAEMON), service.pid(SERVER)) == (0, 0)
    service.configure()
    service.systemctl("restart")
    service.wait_until_healthy()


def test_no_warning_in_a_quiet_run(service: Service) -> None:
    """`journalctl -p warning` is empty after start, work, restart and stop."""
    service.systemctl("start")
    service.wait_until_healthy()
    wait_for(lambda: service.state()["comparison"]["totals"]["runs"] >= 2, "two comparisons with REST")
    service.systemctl("restart")
    service.wait_until_healthy()
    service.systemctl("stop")
    assert service.journal(DAEMON, "-p", "warning") == []
    assert service.journal(SERVER, "-p", "warning") == []
    assert any(line.startswith("connected ") for line in service.journal(DAEMON, "-p", "info"))


def test_warnings_of_a_rough_run_are_its_losses(service: Service) -> None:
    """`journalctl -p warning` holds one line for each lost connection and nothing else."""
    service.systemctl("start")
    service.wait_until_healthy()

    def connected() -> int:
        return sum(line.startswith("connected ") for line in service.journal())

    wait_for(lambda: connected() == 2, "both connections")
    service.exchange.reset()
    wait_for(lambda: connected() == 4, "two new ones")
    service.systemctl("stop")
    warnings = service.journal(DAEMON, "-p", "warning")
    losses = [re.match(r'lost cause="connection reset by peer" conn=\d ', line) for line in warnings]
    assert len(losses) == 2, warnings
    assert all(losses), warnings


PROBE = """
import ctypes, json, mmap, os, socket, stat, subprocess, sys

def walk(top):
    for directory, names, files in os.walk(top):
        if directory == "/":
            names[:] = set(names) - {"proc", "sys"}
        yield directory, files

def can(action):
    try:
        action()
    except (OSError, subprocess.SubprocessError):
        return False
    return True

def creates(directory):
    path = os.path.join(directory, ".probe")
    if can(lambda: os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))):
        os.unlink(path)
        return True

def writes(path):
    return os.access(path, os.W_OK) and stat.S_ISREG(os.lstat(path).st_mode)

writable = []
for directory, files in walk("/"):
    if creates(directory):
        writable.append(directory)
    writable += [path for path in (os.path.join(directory, name) for name in files) if writes(path)]

def run_own_program():
    path = os.path.join(os.environ.get("RUNTIME_DIRECTORY", "/tmp"), "program")
    with open(path, "w") as file:
        file.write("#!/bin/sh\\n")
    os.chmod(path, 0o755)
    try:
        subprocess.run([path], check=True)
    finally:
        os.unlink(path)

def unshare_user():
    if ctypes.CDLL(None).unshare(0x10000000) != 0:
        raise OSError

def become_root():
    command = ["/usr/local/bin/rooted", "-c", "import os; assert os.geteuid() == 0"]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)

def opened(path):
    with open(path) as file:
        file.read(1)

def other_processes():
    return [pid for pid in os.listdir("/proc") if pid.isdigit() and int(pid) != os.getpid()]

status = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
print("probe", json.dumps({
    "writable": writable,
    "uid": os.getuid(),
    "capabilities": sum(int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")),
    "reads_home": can(lambda: opened("/home/probe/notes")) or can(lambda: opened("/root/notes")),
    "becomes_root": can(become_root),
    "new_namespace": can(unshare_user),
    "runs_own_program": can(run_own_program),
    "writable_code": can(lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC)),
    "packet_socket": can(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)),
    "netlink_socket": can(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)),
    "other_processes": other_processes(),
    "boot_id": open("/proc/sys/kernel/random/boot_id").read().strip(),
}), file=sys.stderr)
"""


def _probe(service: Service, unit: str) -> dict[str, Any]:
    """What a program can do from inside a unit's sandbox."""
    service.write(f"{PREFIX}/probe.py", PROBE)
    service.drop_in(unit, f"ExecStartPre={PYTHON} {PREFIX}/probe.py")
    service.run(
        "sh",
        "-c",
        # Open to everybody but for the sandbox.
        "mkdir -p /home/probe /srv/open && chmod 0755 /home/probe && chmod 0777 /srv/open && "
        "touch /srv/open/file /home/probe/notes /root/notes && chmod 0666 /srv/open/file /home/probe/notes && "
        "cp /usr/bin/python3 /usr/local/bin/rooted && chmod 4755 /usr/local/bin/rooted",
    )
    service.systemctl("start", unit)
    (line,) = [line for line in service.journal(unit) if line.startswith("probe ")]
    findings: dict[str, Any] = json.loads(line.removeprefix("probe "))
    return findings


@pytest.mark.parametrize("unit", [DAEMON, SERVER])
def test_sandbox_leaves_no_way_out(service: Service, unit: str) -> None:
    """From inside: nothing can be written but the daemon's own directory, nothing read under /home, no right gained."""
    findings = _probe(service, unit)
    assert [path for path in findings["writable"] if not path.startswith(STATE_DIRECTORY)] == []
    assert bool(findings["writable"]) == (unit == DAEMON)
    assert findings["uid"] != 0
    assert findings["capabilities"] == 0
    assert findings["other_processes"] == []
    for what in (
        *("reads_home", "becomes_root", "new_namespace", "runs_own_program"),
        *("writable_code", "packet_socket", "netlink_socket"),
    ):
        assert findings[what] is False, what
    assert findings["boot_id"] == service.state()["boot_id"] if unit == DAEMON else findings["boot_id"]


def test_server_answers_this_host_only_unless_a_drop_in_says_otherwise(service: Service) -> None:
    """Bound to every address, the server still answers other hosts only where IPAddressAllow= names them."""
    outside = "192.0.2.1"
    service.run("ip", "address", "replace", f"{outside}/32", "dev", "lo")
    service.configure(API_HOST="0.0.0.0")
    service.systemctl("start")
    service.wait_until_healthy()
    with pytest.raises(OSError, match="timed out"):
        service.get("/", host=outside)
    service.drop_in(SERVER, f"IPAddressAllow={outside}")
    service.systemctl("restart")
    service.wait_until_healthy()
    assert service.get("/", host=outside)[0] == 200


@pytest.mark.parametrize(("unit", "limit"), [(DAEMON, 1.2), (SERVER, 1.1)])
def test_exposure_level(service: Service, unit: str, limit: float) -> None:
    """`systemd-analyze security` finds next to nothing that could still be taken away."""
    answer = service.run("systemd-analyze", "security", "--no-pager", f"{unit}.service").stdout
    found = re.search(rf"Overall exposure level for {unit}.service: ([\d.]+)", answer)
    assert found, answer
    assert float(found[1]) <= limit


def test_units_are_flawless(service: Service) -> None:
    """`systemd-analyze verify` has nothing to say."""
    units = [f"/etc/systemd/system/{unit}.service" for unit in (DAEMON, SERVER)]
    assert service.run("systemd-analyze", "verify", *units).stdout == ""


def test_installation_starts_nothing_and_says_what_is_next(installation: Installation) -> None:
    """After `make install` nothing runs yet, and the operator knows what to type."""
    assert not installation.started
    assert "systemctl enable --now binance-funding-ws" in installation.said


def test_everybody_can_read_the_installation(service: Service) -> None:
    """Installed with a umask that keeps others out, it is still of use to the services' users, bytecode included."""
    assert service.run("find", PREFIX, "!", "-type", "l", "!", "-perm", "-o=r").stdout == ""
    assert service.run("find", PREFIX, "-type", "d", "!", "-perm", "-o=x").stdout == ""
    assert service.run("find", f"{PREFIX}/current/binance_funding/__pycache__", "-name", "*.pyc").stdout


def test_what_the_readme_refers_to_is_installed_too(service: Service) -> None:
    """`systemctl help` leads to it; its links lead on."""
    release = service.machine.path(f"{PREFIX}/{service.run('readlink', f'{PREFIX}/current').stdout.strip()}")
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", (release / "README.md").read_text(encoding="utf-8"))
    assert len(set(links)) >= 5
    assert [link for link in links if not (release / link).exists()] == []


def test_installed_settings_are_the_defaults(service: Service, installation: Installation) -> None:
    """All are commented out, and uncommented they are taken by systemd and by both programs."""
    assert [line for line in installation.settings.splitlines() if line and not line.startswith("#")] == []
    uncommented, count = re.subn(r"^#([A-Z_]+=)", r"\1", installation.settings, flags=re.MULTILINE)
    assert count >= 17
    service.write(SETTINGS_FILE, uncommented)
    service.systemctl("start")
    wait_for(lambda: service.health()[0] == 503, "the server to answer")
    assert service.state()["funding_state"] == {}


def test_upgrade_over_a_running_service(service: Service) -> None:
    """A second `make install` leaves processes and settings alone; the new programs run after a restart.

    The running programs keep their files until then: of releases, the one before stays, and no older one.
    """
    service.systemctl("start")
    service.wait_until_healthy()
    service.machine.path(SETTINGS_FILE).open("a").write("# mine\n")
    settings = service.machine.path(SETTINGS_FILE).read_bytes()
    old = service.pid(DAEMON), service.pid(SERVER)
    of_old = service.run("readlink", "-f", f"{PREFIX}/current").stdout.strip()
    said = service.install()
    assert "systemctl restart binance-funding-ws" in said
    assert service.machine.path(SETTINGS_FILE).read_bytes() == settings
    assert (service.pid(DAEMON), service.pid(SERVER)) == old
    assert service.get("/funding/BTCUSDT")[0] == 200
    service.systemctl("restart")
    service.wait_until_healthy()
    release = service.run("readlink", "-f", f"{PREFIX}/current").stdout.strip()
    loaded = service.run("cat", f"/proc/{service.pid(DAEMON)}/maps").stdout
    assert release in loaded
    assert service.releases() == {of_old, release}
    service.install()
    assert len(service.releases()) == 2
    assert of_old not in service.releases()


def test_failed_upgrade_changes_nothing(service: Service) -> None:
    """An installation that does not work is not put into place, and nothing of it stays behind."""
    service.run(
        "sh", "-c", f"cp -r {CLONE} /root/broken && echo 'import nothing' >>/root/broken/binance_funding/rates.py"
    )
    before = service.run("find", PREFIX, "-maxdepth", "1").stdout, service.machine.path(f"{PREFIX}/current").readlink()
    failed = service.run("make", "-C", "/root/broken", "install", check=False, host_network=True, timeout_s=120)
    assert failed.returncode != 0
    assert "binance_funding_ws_daemon.py does not run" in failed.stdout
    after = service.run("find", PREFIX, "-maxdepth", "1").stdout, service.machine.path(f"{PREFIX}/current").readlink()
    assert after == before


def test_uninstallation_leaves_the_settings_only(service: Service) -> None:
    """`make uninstall` of a running, enabled service takes all away; once more, it has nothing to do."""
    service.systemctl("enable")
    service.systemctl("start")
    service.wait_until_healthy()
    settings = service.machine.path(SETTINGS_FILE).read_bytes()
    for _ in range(2):
        service.install("uninstall")
        search = ("find", "/etc", "/opt", "/run", "/usr", "/var", "-xdev", "-name", "*binance-funding*")
        assert service.run(*search).stdout.split() == [SETTINGS_FILE]
        assert service.run("systemctl", "list-units", "--all", "--no-legend", "binance-funding-*").stdout == ""
        assert service.run("id", "binance-funding", check=False).returncode != 0
    assert service.machine.path(SETTINGS_FILE).read_bytes() == settings
