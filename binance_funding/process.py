"""Processor time, memory and files of this process: the values of schema.PROCESS, for both programs. Linux only.

Sources: https://prometheus.io/docs/instrumenting/writing_clientlibs/#process-metrics for the choice of values, and
man proc_pid_stat(5) for the file in /proc.
"""

import contextlib
import functools
import os
import resource
import time

from .schema import PROCESS

_PAGE_BYTES, _TICKS_PER_S = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_CLK_TCK")


def usage() -> dict[str, float | None]:
    """Return the present values. A value is None if /proc cannot be read, for example because too many files are open.

    Takes about 0.1 ms. Safe in any thread. Never raises.
    """
    values: dict[str, float | None] = dict.fromkeys(one.name for one in PROCESS)
    values["cpu_seconds"] = round(time.process_time(), 3)
    values["max_fds"], _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError):
        stat = _stat()
        values["virtual_memory_bytes"], values["resident_memory_bytes"] = stat[20], stat[21] * _PAGE_BYTES
        values["start_time_seconds"] = _started_at_s()
        values["open_fds"] = len(os.listdir("/proc/self/fd")) - 1  # without the descriptor that listdir() opens
    return values


def _stat() -> list[int]:
    """Return the fields of /proc/self/stat from the third one on. The third, a letter, becomes 0."""
    with open("/proc/self/stat", "rb") as file:
        # The second field is the program's name in parentheses. The name itself may hold spaces and parentheses.
        _, *fields = file.read().rpartition(b")")[2].split()
    return [0, *map(int, fields)]


@functools.cache  # Computed from two clocks, it would differ a little every time, which looks like a restart.
def _started_at_s() -> float:
    age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - _stat()[19] / _TICKS_PER_S
    return round(time.time() - age_s, 2)
