"""What a process uses of its host, compared with what the kernel says of it elsewhere."""

import contextlib
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from binance_funding import process
from binance_funding.schema import PROCESS

MIB = 1 << 20


def kernel_kib(name: str) -> int:
    """Return a figure of /proc/self/status, in KiB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (line,) = [line for line in lines if line.startswith(name + ":")]
    return int(line.split()[1])


def test_all_that_the_schema_declares_is_known() -> None:
    """Nothing more, and nothing is null on Linux."""
    usage = process.usage()
    assert list(usage) == [one.name for one in PROCESS]
    assert None not in usage.values()


def test_memory_is_what_the_kernel_says() -> None:
    """Within what a test run allocates meanwhile."""
    usage = process.usage()
    assert usage["resident_memory_bytes"] == pytest.approx(kernel_kib("VmRSS") << 10, abs=16 * MIB)
    assert usage["virtual_memory_bytes"] == pytest.approx(kernel_kib("VmSize") << 10, abs=64 * MIB)


def test_processor_time_counts_user_and_kernel() -> None:
    """The sum of both, as getrusage tells them."""
    before = process.usage()["cpu_seconds"]
    spent = resource.getrusage(resource.RUSAGE_SELF)
    after = process.usage()["cpu_seconds"]
    assert before is not None
    assert after is not None
    assert before - 0.02 <= spent.ru_utime + spent.ru_stime <= after + 0.02


def test_open_files_are_counted() -> None:
    """Those that are open before and after; that which is open for counting does not count."""

    def are_open() -> int:
        count = 0
        for fd in range(resource.getrlimit(resource.RLIMIT_NOFILE)[0]):
            with contextlib.suppress(OSError):
                os.fstat(fd)
                count += 1
        return count

    fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(3)]
    assert process.usage()["open_fds"] == are_open()
    for fd in fds:
        os.close(fd)
    assert process.usage()["open_fds"] == are_open()


def run(program: str, *command: str) -> str:
    """Run a program in an interpreter of its own; return what it prints."""
    done = subprocess.run(
        [*command, sys.executable, "-c", program],
        cwd=Path(process.__file__).parents[1],
        stdout=subprocess.PIPE,
        text=True,
        timeout=30,
        check=True,
    )
    return done.stdout


def test_the_start_is_that_of_the_process() -> None:
    """Between the moments before and after it was started, to a hundredth of a second (the tick of the kernel)."""
    before_s = time.time()
    said = run("from binance_funding import process, schema; print(process.usage()['start_time_seconds'])")
    assert before_s - 0.05 <= float(said) <= time.time()


def test_the_start_stays_the_same() -> None:
    """When this host's clock is set, too: a start that moves would look like a restart."""
    program = "from binance_funding import process; import time\n"
    program += "first = process.usage()['start_time_seconds']\n"
    program += "time.time = lambda: 5.0\n"
    program += "print(process.usage()['start_time_seconds'] == first)"
    assert run(program) == "True\n"


def test_a_name_with_spaces_and_parentheses_shifts_nothing() -> None:
    """The kernel writes it between parentheses, before the numbers."""
    program = "import pathlib; from binance_funding import process\n"
    program += "pathlib.Path('/proc/self/comm').write_text(') 1 (x) 2')\n"
    program += "print(process.usage()['resident_memory_bytes'] < 2**30)"
    assert run(program) == "True\n"


def test_without_a_file_left_to_ask_with_the_rest_is_known() -> None:
    """What needs none is there, what does is null, and nothing is raised."""
    program = "import os; from binance_funding import process\n"
    program += "try:\n    while True: os.dup(0)\nexcept OSError: print(process.usage())"
    said = eval(run(program, "prlimit", "--nofile=64"))
    assert (said["max_fds"], said["cpu_seconds"] > 0) == (64, True)
    assert said["open_fds"] is said["resident_memory_bytes"] is said["start_time_seconds"] is None
