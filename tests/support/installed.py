"""The product installed on a machine that systemd runs, as an operator sees it."""

import json
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

from tests.exchange import Exchange
from tests.support.machine import CLONE, Machine
from tests.support.waiting import eventually

DAEMON, SERVER = "binance-funding-ws", "binance-funding-api"
PREFIX = "/opt/binance-funding"
SETTINGS_FILE = "/etc/binance-funding.env"
STATE_DIRECTORY = "/run/binance-funding"
STATE_FILE = f"{STATE_DIRECTORY}/funding_state.json"
PYTHON = f"{PREFIX}/current/venv/bin/python"


@dataclass(frozen=True)
class Installation:
    """The result of the first `make install` on a machine."""

    said: str
    settings: str
    started: bool


class Service:
    """Both units in the machine, as an operator sees them, and the exchange they talk to."""

    def __init__(self, machine: Machine, exchange: Exchange) -> None:
        self.machine = machine
        self.exchange = exchange
        self.run = machine.run
        self._reset_at_s = 0.0

    def reset(self) -> None:
        """Return to the state after an installation, with settings for a fast exchange. `journal` begins anew."""
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
        """Run `make install` as root with a strict umask and return its output."""
        command = f"umask 077; make --no-print-directory -C {clone} {target}"
        return self.run("sh", "-c", command, host_network=True, timeout_s=120).stdout

    def changed_clone(self, command: str) -> str:
        """Return the path, inside the machine, of a new copy of the clone in which this shell command was run."""
        copy = "/root/copy"
        leave_out = "--exclude=./.venv* --exclude=./.git --exclude=./.*_cache"
        self.run("sh", "-c", f"rm -rf {copy} && mkdir {copy} && tar -c -C {CLONE} {leave_out} . | tar -x -C {copy}")
        self.run("sh", "-c", f"cd {copy} && {command}")
        return copy

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
            "REST_FALLBACK_SECONDS": 2,
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

    def systemctl(self, verb: str, unit: str = DAEMON, *options: str) -> float:
        """Run one systemctl command, which must succeed, and return the seconds it took."""
        started_s = time.monotonic()
        self.run("systemctl", verb, *options, unit)
        return time.monotonic() - started_s

    def start(self) -> None:
        """Start the service and wait until it is healthy."""
        self.systemctl("start")
        self.wait_until_healthy()

    def show(self, unit: str, name: str) -> str:
        """Return a property of a unit."""
        return self.run("systemctl", "show", f"--property={name}", "--value", unit).stdout.strip()

    def pid(self, unit: str) -> int:
        """Return the pid of a unit's main process, 0 if there is none."""
        return int(self.show(unit, "MainPID"))

    def signal(self, name: str) -> None:
        """Send a signal to the daemon alone."""
        self.run("kill", f"-{name}", str(self.pid(DAEMON)))

    def get(self, path: str, host: str = "127.0.0.1", within_s: float = 5) -> tuple[int, dict[str, Any]]:
        """Ask the server. Raises OSError if it does not answer in time."""
        try:
            with (
                self.machine.network(),
                urllib.request.urlopen(f"http://{host}:8888{path}", timeout=within_s) as response,
            ):
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def health(self) -> tuple[int, str]:
        """Return the HTTP status and `status` of the health answer, or (0, "") if the server does not answer."""
        try:
            status, answer = self.get("/funding/health")
        except OSError:
            return 0, ""
        return status, answer["status"]

    def wait_until_healthy(self) -> None:
        """Wait until health says healthy."""
        eventually(lambda: self.health() == (200, "healthy"), "the service to be healthy")

    def state(self) -> dict[str, Any]:
        """Return the content of the state file."""
        state: dict[str, Any] = json.loads(self.machine.path(STATE_FILE).read_bytes())
        return state

    def journal(self, unit: str = DAEMON, *options: str) -> list[str]:
        """Return the messages of a unit since the last reset, including systemd's messages about it."""
        self.run("journalctl", "--sync")
        since = f"--since=@{self._reset_at_s:.6f}"
        return self.run("journalctl", "-q", "-u", unit, "-o", "cat", since, *options).stdout.splitlines()
