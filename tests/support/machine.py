"""A booted systemd to try the units in: a container over this machine's own root file system, thrown away after use.

What runs is the installed systemd, Python and kernel; what is written lands in memory. Needs root,
`systemd-nspawn` (Debian package systemd-container), overlayfs and a cgroup file system it may write to; works
on a host that systemd runs and on one that it does not run, such as a privileged build container.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.support.tools import find

BOOT_TIMEOUT_S = 30.0
CLONE = "/clone"
"""Where the machine sees the clone under test. Read-only, so an installation that writes to it fails."""

_CLONE_NEWNET = 0x4000_0000  # <sched.h>

# Runs in a mount and a PID namespace of its own: when it ends, however it ends, the kernel ends every process of
# the machine, and the mounts are gone with the last of them.
_BOOT_SCRIPT = """
set -eu
for cgroup in $CGROUPS; do echo $$ >"$cgroup/cgroup.procs"; done
mount -t tmpfs -o mode=0755 machine "$WORK"
mkdir "$WORK/changes" "$WORK/scratch" "$WORK/root"
mount -t overlay -o "lowerdir=/,upperdir=$WORK/changes,workdir=$WORK/scratch" machine "$WORK/root"
exec systemd-nspawn --directory="$WORK/root" "$@"
"""

_NSPAWN_OPTIONS = (
    "--quiet",
    "--boot",
    "--console=pipe",
    "--register=no",
    "--notify-ready=yes",
    "--machine=binance-funding-test",
    "--private-network",
    # IPAddressDeny= needs these.
    "--capability=CAP_BPF,CAP_NET_ADMIN",
    "--system-call-filter=bpf",
)

# Whatever else this host runs at boot stays off: only what services need is started, and no target waits for
# a network that the machine does not have.
_KERNEL_ARGUMENTS = (
    "systemd.unit=basic.target",
    "systemd.mask=timers.target",
    "systemd.mask=systemd-networkd-wait-online.service",
    "systemd.mask=NetworkManager-wait-online.service",
)


class CannotBootError(Exception):
    """No machine can be booted on this host; the text says why."""


class Machine:
    """One booted machine with a loopback network of its own. Use as a context manager.

    Not thread-safe, but for `network` and `path`.
    """

    def __init__(self, clone: Path) -> None:
        """Keep the path of the clone to show to the machine; start nothing."""
        self._clone = clone
        self._work = ""
        self._cgroups: list[Path] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._leader_pid = 0

    def __enter__(self) -> Machine:
        """Boot. Returns when the machine's systemd is ready; raises CannotBootError."""
        try:
            self._boot()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Kill the machine and remove its files."""
        self._remove()

    def run(
        self, *command: str, check: bool = True, host_network: bool = False, timeout_s: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as root inside, and return its exit status and what it wrote (stderr with stdout).

        host_network: with this host's network instead of the machine's, as pip needs it.
        Raises AssertionError with the output where check is set and the command fails.
        """
        namespaces = ["--mount", "--uts", "--ipc", "--pid"] + ([] if host_network else ["--net"])
        environment = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        environment |= {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8"}
        done = subprocess.run(
            ["nsenter", f"--target={self._leader_pid}", *namespaces, "--root", "--wd", "--", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            text=True,
            timeout=timeout_s,
        )
        assert not check or done.returncode == 0, f"{' '.join(command)}: {done.returncode}\n{done.stdout}"
        return done

    def path(self, path: str) -> Path:
        """Return a path at which this process can open a file of the machine. It must contain no symbolic link."""
        return Path(f"/proc/{self._leader_pid}/root{path}")

    @contextlib.contextmanager
    def network(self) -> Iterator[None]:
        """Within the block, sockets opened and threads started by this thread belong to the machine's network."""
        libc = ctypes.CDLL(None, use_errno=True)
        with open("/proc/thread-self/ns/net") as own, open(f"/proc/{self._leader_pid}/ns/net") as inside:
            _setns(libc, inside.fileno())
            try:
                yield
            finally:
                _setns(libc, own.fileno())

    def _boot(self) -> None:
        find("systemd-nspawn", "systemd-container")
        if os.geteuid() != 0:
            raise CannotBootError("needs root")
        self._work = tempfile.mkdtemp(prefix="systemd-machine-")
        options = [*_NSPAWN_OPTIONS, f"--bind-ro={self._clone}:{CLONE}"]
        if not os.path.isdir("/run/systemd/system"):
            # No systemd of the host can make a cgroup, so make one in each hierarchy that systemd would use.
            options.append("--keep-unit")
            self._cgroups = _make_cgroups(f"systemd-machine-{os.getpid()}")
        with _notify_socket() as (notify, address), tempfile.TemporaryFile() as log:
            self._process = subprocess.Popen(
                [
                    *("setpriv", "--pdeathsig=SIGKILL"),  # the machine must not outlive killed tests
                    *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
                    *("sh", "-c", _BOOT_SCRIPT, "sh", *options, *_KERNEL_ARGUMENTS),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ
                | {
                    "CGROUPS": " ".join(map(str, self._cgroups)),
                    "WORK": self._work,
                    "NOTIFY_SOCKET": address,
                    "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1",
                },
                start_new_session=True,
            )
            if not self._becomes_ready(notify):
                log.seek(0)
                raise CannotBootError(log.read().decode(errors="replace").strip() or "it did not get ready")
        (nspawn_pid,) = _children(self._process.pid)  # self._process is unshare
        (self._leader_pid,) = _children(nspawn_pid)

    def _becomes_ready(self, notify: socket.socket) -> bool:
        """Wait until the machine's systemd reports that it is ready; return whether it did."""
        assert self._process
        deadline = time.monotonic() + BOOT_TIMEOUT_S
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(TimeoutError):
                if b"READY=1" in notify.recv(4096).splitlines():
                    return True
        return False

    def _remove(self) -> None:
        if self._process and self._process.poll() is None:
            # Kill the child of unshare if there is one: unshare itself must live to reap it.
            for pid in _children(self._process.pid) or [self._process.pid]:
                os.kill(pid, signal.SIGKILL)
            self._process.wait()
        for cgroup in self._cgroups:
            _remove_cgroup(cgroup)
        if self._work:
            os.rmdir(self._work)


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _setns(libc: ctypes.CDLL, fd: int) -> None:
    if libc.setns(fd, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


@contextlib.contextmanager
def _notify_socket() -> Iterator[tuple[socket.socket, str]]:
    """Yield a socket that receives sd_notify messages, and its address in the abstract namespace."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind("")
        receiver.settimeout(0.5)
        yield receiver, receiver.getsockname().decode().replace("\0", "@")


def _make_cgroups(name: str) -> list[Path]:
    """Make a cgroup of that name in the unified hierarchy, and in systemd's own hierarchy if the host has it."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    roots = [
        Path(fields[1])
        for fields in mounts
        if fields[2] == "cgroup2" or (fields[2] == "cgroup" and "name=systemd" in fields[3].split(","))
    ]
    if not roots:
        raise CannotBootError("no cgroup file system is mounted")
    try:
        for root in roots:
            (root / name).mkdir(exist_ok=True)
    except OSError as error:
        raise CannotBootError(f"cannot make a cgroup: {error}") from error
    return [root / name for root in roots]


def _remove_cgroup(cgroup: Path) -> None:
    """Remove a cgroup and all below it, after its last process has ended."""
    deadline = time.monotonic() + 10
    while _holds_processes(cgroup) and time.monotonic() < deadline:
        time.sleep(0.02)
    for directory, _, _ in os.walk(cgroup, topdown=False):
        os.rmdir(directory)


def _holds_processes(cgroup: Path) -> bool:
    return any(Path(directory, "cgroup.procs").read_text() for directory, _, _ in os.walk(cgroup))
