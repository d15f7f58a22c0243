"""The state file between processes: writers that are killed, disks that are full, files that no daemon wrote."""

import contextlib
import errno
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from binance_funding.state_file import AlreadyRunning, StateFile, read
from tests.support.programs import ROOT, Program
from tests.support.samples import record, state
from tests.support.state_files import record_of, write
from tests.support.waiting import PATIENCE_S, eventually

WRITER = """
import sys, time
from tests.support.state_files import record_text
from binance_funding.state_file import StateFile
file = StateFile(sys.argv[1])
file.lock()
print("writing", flush=True)
while True:
    now_s = time.clock_gettime(time.CLOCK_MONOTONIC)
    records = [record_text(f'"S{n}"', now_s) for n in range(700)]
    file.write(records, {"version": 1, "updated_at": now_s}, {"end": now_s})
"""

# Reads without the help of the module under test, as any other program does.
READER = """
import json, signal, sys
going, reads, seen, newest = [True], 0, set(), 0.0
signal.signal(signal.SIGTERM, lambda *_: going.clear())
print("reading", flush=True)
while going:
    with open(sys.argv[1], "rb") as file:
        content = json.load(file)
    assert len(content["funding_state"]) == 700, len(content["funding_state"])
    assert content["updated_at"] == content["end"]
    assert abs(content["end"] - content["funding_state"]["S699"]["updatedAt"]) < 0.001
    assert content["updated_at"] >= newest, "older content came back"
    newest = content["updated_at"]
    reads += 1
    seen.add(newest)
print(reads, len(seen))
"""

HOLDER = """
import sys, time
from binance_funding.state_file import StateFile
file = StateFile(sys.argv[1])
file.lock()
print("holding", flush=True)
time.sleep(60)
"""

WRITER_WITH_LITTLE_ROOM = """
import resource, sys
from tests.support.state_files import record_of, write
from pathlib import Path
path = Path(sys.argv[1])
write(path)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
try:
    write(path, *(record_of(f"B{n}") for n in range(100)))
except OSError as error:
    print(error.errno)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the state file is to be."""
    return tmp_path / "state.json"


@contextlib.contextmanager
def running(program: str, path: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a Python program on the path and wait for its first line; kill it at the end."""
    arguments = [sys.executable, "-c", program, str(path)]
    with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline()
            yield process
        finally:
            process.kill()


def test_a_reader_never_sees_anything_broken_while_writers_are_killed(path: Path) -> None:
    """Fifty writers in a row are killed at random moments of their work; every single read finds a whole file."""
    moments = random.Random(20261124)
    with running(WRITER, path):
        eventually(path.exists, "the first file")
    with running(READER, path) as reader:
        for _ in range(50):
            with running(WRITER, path) as writer:
                time.sleep(moments.uniform(0.0, 0.06))
                writer.send_signal(signal.SIGKILL)
                writer.wait(PATIENCE_S)
            assert reader.poll() is None, "the reader found a broken file"
        reader.terminate()
        output, _ = reader.communicate(timeout=PATIENCE_S)
    assert reader.returncode == 0
    reads, distinct = map(int, output.split())
    assert reads >= distinct >= 50
    write(path)
    assert sorted(os.listdir(path.parent)) == ["state.json", "state.json.lock"]


def test_a_second_writer_is_refused_with_the_pid_of_the_first(path: Path) -> None:
    """And leaves the lock as it is."""
    with running(HOLDER, path) as holder:
        for _ in range(2):
            with pytest.raises(AlreadyRunning, match=f"{path} is already written by the daemon with pid {holder.pid}$"):
                StateFile(str(path)).lock()


def test_a_killed_writer_releases_the_lock(path: Path) -> None:
    """Nothing has to be cleaned up by hand, and the new pid replaces a longer one."""
    with running(HOLDER, path) as holder:
        holder.kill()
        holder.wait(PATIENCE_S)
    lock = Path(f"{path}.lock")
    lock.write_text("99999999999\n")
    StateFile(str(path)).lock()
    assert lock.read_text() == f"{os.getpid()}\n"


def test_a_full_disk_leaves_the_old_file_and_no_half_one(path: Path) -> None:
    """The writer runs into its file size limit, as into a full disk: an error, and room again means work."""
    done = subprocess.run(
        [sys.executable, "-c", WRITER_WITH_LITTLE_ROOM, path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert (done.stdout, done.stderr) == (f"{errno.EFBIG}\n", "")
    assert os.listdir(path.parent) == ["state.json"]
    assert list(read(str(path))["funding_state"]) == ["A"]
    write(path)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB; only root can have one."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", directory], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("mounting needs root; test_a_full_disk_leaves_the_old_file_and_no_half_one shows the same")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", directory], check=True)


def test_a_full_disk_and_a_read_only_one_are_survived(tiny_disk: Path) -> None:
    """ENOSPC and EROFS come out as OSError; the old file stays whole; once mended, the next write works."""
    path = tiny_disk / "state.json"
    write(path)
    ballast = tiny_disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
    with pytest.raises(OSError, match="No space left"):
        write(path, *(record_of(f"B{n}") for n in range(100)))
    assert sorted(os.listdir(tiny_disk)) == ["ballast", "state.json"]
    assert list(read(str(path))["funding_state"]) == ["A"]
    subprocess.run(["mount", "-o", "remount,ro", tiny_disk], check=True)
    with pytest.raises(OSError, match="Read-only file system"):
        write(path)
    subprocess.run(["mount", "-o", "remount,rw", tiny_disk], check=True)
    ballast.unlink()
    write(path, record_of("C"))
    assert list(read(str(path))["funding_state"]) == ["C"]


def totals(runs: object) -> dict[str, Any]:
    """Return a comparison without a last run."""
    return {"last": None, "totals": {"runs": runs, "compared": 1, "matched": 1, "mismatched": 0, "identical": 1}}


def nested(depth: int) -> str:
    """Return JSON of lists in lists."""
    return "[" * depth + "]" * depth


POISONED = {
    "surrogate in a symbol": json.dumps(state({"A\ud800": record()})),
    "infinite total": json.dumps(state(comparison=totals("X"))).replace('"X"', "1e400"),
    "infinite number": json.dumps(state(comparison={**totals(1), "last": {"compared": "X"}})).replace('"X"', "1e400"),
    "pause that is no time": json.dumps(state(connection_status={"rest": {"paused_until": "soon"}})),
}
NESTED = json.dumps(state(gaps=[{"start": 1, "seconds": 1, "cause": "", "more": "X"}])).replace('"X"', nested(900))
USABLE = {"as it should be": json.dumps(state()), "nested deep where nobody looks": NESTED}


@pytest.mark.parametrize(
    ("content", "line"),
    [
        *(pytest.param(text, "old state dropped", id=name) for name, text in POISONED.items()),
        *(pytest.param(text, "took over symbols=1 ", id=name) for name, text in USABLE.items()),
        pytest.param("", "old state dropped", id="empty"),
        pytest.param("junk", "old state dropped", id="junk"),
        pytest.param(json.dumps(state())[:-50], "old state dropped", id="truncated"),
    ],
)
def test_the_daemon_starts_whatever_the_old_file_holds(path: Path, content: str, line: str) -> None:
    """It takes over what it can use and drops the rest; a file that kills it would do so at every restart."""
    path.write_text(content, encoding="utf-8")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path.parent / "notify"))
        manager.settimeout(PATIENCE_S)
        settings = {
            "STATE_FILE": path,
            "NOTIFY_SOCKET": path.parent / "notify",
            "BINANCE_WS_URLS": "ws://127.0.0.1:9",
            "BINANCE_REST_URL": "http://127.0.0.1:9",
        }
        with Program("binance_funding_ws_daemon.py", path.parent, settings) as daemon:
            while "READY=1" not in manager.recv(1000).decode():
                pass
            daemon.terminate()
    assert daemon.process.returncode == 0
    log = "\n".join(daemon.log)
    assert "Traceback" not in log
    assert line in log
    read(str(path))
