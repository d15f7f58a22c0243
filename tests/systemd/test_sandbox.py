"""What the units allow the programs to do, seen from inside and from outside."""

import json
import re
from typing import Any

import pytest

from binance_funding.schema import PROCESS
from tests.support.installed import DAEMON, PREFIX, PYTHON, SERVER, STATE_DIRECTORY, Service
from tests.support.programs import ROOT
from tests.support.tools import find

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
    """Return what a program can do inside a unit's sandbox."""
    service.write(f"{PREFIX}/probe.py", PROBE)
    service.drop_in(unit, f"ExecStartPre={PYTHON} {PREFIX}/probe.py")
    service.run(
        "sh",
        "-c",
        # Only the sandbox restricts access to these.
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
    """A program can write only the daemon's directory, cannot read /home, and cannot gain rights."""
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


def test_both_programs_know_what_they_use(service: Service) -> None:
    """The sandbox hides other processes and most of /proc, but not a program's own figures."""
    service.start()
    answer = service.run(find("curl", "curl"), "-sS", "http://127.0.0.1:8888/metrics").stdout
    for prefix in ("", "binance_funding_daemon_"):
        told = re.findall(rf"^{prefix}process_(\w+) \d", answer, re.MULTILINE)
        assert len(told) == len(set(told)) == len(PROCESS), told


def test_server_answers_this_host_only_until_the_documented_commands_let_others_in(service: Service) -> None:
    """The server listens on every address, but answers only hosts that IPAddressAllow= named when the service started.

    Restarts and crashes of the server do not change that, because the listening socket outlives them.
    """
    outside = "192.0.2.1"
    service.run(find("ip", "iproute2"), "address", "replace", f"{outside}/32", "dev", "lo")
    service.configure(API_HOST="0.0.0.0")

    def assert_silent() -> None:
        service.wait_until_healthy()
        with pytest.raises(OSError, match="timed out"):
            service.get("/", outside, within_s=1)

    service.systemctl("start")
    assert_silent()
    service.systemctl("restart")
    assert_silent()
    service.run("kill", "-KILL", str(service.pid(SERVER)))
    assert_silent()
    service.configure(API_HOST="127.0.0.1")
    _, _, section = (ROOT / "docs/operations.md").read_text(encoding="utf-8").partition("## Access from other hosts\n")
    commands = 'sudo() { "$@"; }\n' + section.split("```")[1]
    # With another network first: a restart that keeps the address keeps the socket and the network that it admits.
    service.run("sh", "-ec", commands.replace("192.0.2.0/24", "198.51.100.0/24"))
    assert_silent()
    service.run("sh", "-ec", commands)
    service.wait_until_healthy()
    assert service.get("/", outside)[0] == 200


@pytest.mark.parametrize(("unit", "limit"), [(DAEMON, 1.1), (SERVER, 1.0)])
def test_exposure_level(service: Service, unit: str, limit: float) -> None:
    """`systemd-analyze security` finds almost no right that the unit could still give up."""
    answer = service.run("systemd-analyze", "security", "--no-pager", f"{unit}.service").stdout
    found = re.search(rf"Overall exposure level for {unit}.service: ([\d.]+)", answer)
    assert found, answer
    assert float(found[1]) <= limit


def test_units_are_flawless(service: Service) -> None:
    """`systemd-analyze verify` prints nothing."""
    units = [f"/etc/systemd/system/{unit}.service" for unit in (DAEMON, SERVER)]
    assert service.run("systemd-analyze", "verify", *units).stdout == ""
