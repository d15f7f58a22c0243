"""The machine: which core is measured and which drive the load, what a process costs, what to tell a reader."""

import contextlib
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

_ALLOWED = sorted(os.sched_getaffinity(0))
MEASURED_CORE = _ALLOWED[-1]
DRIVING_CORES = set(_ALLOWED[:-1]) or {MEASURED_CORE}

_SETTLED_S = 0.015


def drive() -> None:
    """Keep this thread, and what it starts from now on, off the measured core."""
    os.sched_setaffinity(0, DRIVING_CORES)


@contextlib.contextmanager
def on_measured_core() -> Iterator[None]:
    """Run this thread, and bind for good what it starts meanwhile, on the measured core."""
    os.sched_setaffinity(0, {MEASURED_CORE})
    try:
        yield
    finally:
        drive()


def cpu_s(pid: int) -> float:
    """Return the CPU seconds of all threads of a process so far, to the nanosecond.

    Source of the clock's number: man clock_getcpuclockid(3), and CPUCLOCK_SCHED in Linux's posix-timers_types.h.
    """
    return time.clock_gettime(~pid << 3 | 2)


def user_and_kernel_s(pid: int) -> tuple[float, float]:
    """Return the CPU seconds in the program and in the kernel, to the clock tick. Source: man proc_pid_stat(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    ticks_per_s = os.sysconf("SC_CLK_TCK")
    return int(fields[11]) / ticks_per_s, int(fields[12]) / ticks_per_s


def settled_cpu_s(pid: int) -> float:
    """Wait until a process rests, and return its CPU seconds."""
    used_s = cpu_s(pid)
    while True:
        time.sleep(_SETTLED_S)
        before_s, used_s = used_s, cpu_s(pid)
        if used_s == before_s:
            return used_s


def resident_mb(pid: int, kind: str = "VmRSS") -> float:
    """Return the resident memory of a process now ("VmRSS") or at its highest ("VmHWM"), in 10^6 bytes."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{kind}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise LookupError(f"no {kind} of process {pid}")


def child_of(pid: int) -> int:
    """Return the only child of a process. Raises ValueError while it has none."""
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    return int(child)


def percentile(values: list[float], percent: int) -> float:
    """Return the smallest value that so many percent of all do not exceed."""
    return sorted(values)[max(0, -(-len(values) * percent // 100) - 1)]


def description() -> list[str]:
    """Say when and on what was measured."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ]
    tools = [_first_line("nginx", "-v"), _first_line("wrk", "-v")]
    return [
        f"Date: {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}",
        f"CPU: {models[0] if models else platform.machine()}, {len(_ALLOWED)} cores usable; Linux {platform.release()}",
        f"Python {platform.python_version()}, websocket-client {version('websocket-client')}, {', '.join(tools)}",
        f"Load of the machine before the run: {os.getloadavg()[0]:.2f}",
    ]


def _first_line(program: str, option: str) -> str:
    try:
        ran = subprocess.run([program, option], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return f"{program} not installed"
    return (ran.stdout + ran.stderr).splitlines()[0].partition("[")[0].removeprefix("nginx version: ").strip()
