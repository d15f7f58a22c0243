"""The file both programs share: always whole, whoever dies, and never trusted blindly."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from binance_funding.state_file import AlreadyRunning, StateFile, StateReader, UnusableState, read, record_text
from tests.fakes import EVENT_MS, NEXT_FUNDING_MS, WALL_S, put, record, state, status

PROJECT = Path(__file__).parent.parent
LIMIT_S = 60.0
RECORD = record_text('"A"', "0.0001", "1.5", "1.25", NEXT_FUNDING_MS, EVENT_MS, WALL_S, 8, "rest")
HEADER = {"version": 1, "updated_at": WALL_S, "daemon_pid": 1, "boot_id": "", "boottime": 1.0}
REST = {"connection_status": {"rest": {}}, "comparison": {}, "gaps": [], "history": []}
NOBODY = 65534

WRITER = """
import sys, time
from binance_funding.state_file import StateFile, record_text
file = StateFile(sys.argv[1])
file.lock()
print("writing", flush=True)
while True:
    now_s = time.clock_gettime(time.CLOCK_MONOTONIC)
    records = [record_text(f'"S{n}"', "0.0001", "1.5", "1.5", 1, 1, now_s, 8, "rest") for n in range(700)]
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
    assert content["updated_at"] == content["end"] == content["funding_state"]["S699"]["updatedAt"] or \\
        abs(content["end"] - content["funding_state"]["S699"]["updatedAt"]) < 0.001
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


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the state file is to be."""
    return tmp_path / "state.json"


def write(path: Path, *records: bytes, **members: Any) -> None:
    """Write the file as a daemon does."""
    StateFile(str(path)).write(records or [RECORD], {**HEADER, **members}, REST)


@contextlib.contextmanager
def running(program: str, path: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a Python program on the path and wait for its first line; kill it at the end."""
    arguments = [sys.executable, "-c", program, str(path)]
    with subprocess.Popen(arguments, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline()
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """Give up root's rights within the block: root may write anywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def unusable(path: Path | str) -> str:
    """Return the text with which the file is refused."""
    with pytest.raises(UnusableState) as caught:
        read(str(path))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_written_is_read(path: Path) -> None:
    """All members, in one JSON object that ends with a line."""
    write(path)
    expected = {
        "fundingRate": 0.0001,
        "markPrice": 1.5,
        "indexPrice": 1.25,
        "nextFundingTime": NEXT_FUNDING_MS,
        "eventTime": EVENT_MS,
        "updatedAt": WALL_S,
        "fundingIntervalHours": 8,
        "source": "rest",
    }
    content = path.read_bytes()
    assert json.loads(content) == {**HEADER, "funding_state": {"A": expected}, **REST}
    assert content.endswith(b"}\n")
    assert read(str(path))["funding_state"] == {"A": expected}


def test_no_records_is_a_valid_file(path: Path) -> None:
    """A daemon that has no data yet says so."""
    StateFile(str(path)).write([], HEADER, REST)
    assert read(str(path))["funding_state"] == {}


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=30), unique=True, max_size=5), st.text(max_size=30))
def test_the_records_can_be_taken_from_the_file_as_they_are(symbols: list[str], word: str) -> None:
    """Whatever stands in names and errors: a record is a line, and no text can look like the layout."""
    word = word.encode("utf-8", "replace").decode()
    texts = [word, '"funding_state":{\n', "\n}", '"funding_state":{']
    records = [RECORD.replace(b'"A"', json.dumps(symbol, ensure_ascii=False).encode(), 1) for symbol in symbols]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "state.json")
        StateFile(str(path)).write(records, {**HEADER, "boot_id": texts}, {**REST, "texts": texts})
        reader = StateReader(str(path))
        reader.refresh()
        assert path.read_bytes().splitlines()[1:-1] == [line + b"," for line in records[:-1]] + (records[-1:] or [b""])
    taken = reader.records_json()
    assert reader.state is not None
    assert taken is not None
    assert json.loads(taken) == reader.state["funding_state"]
    assert list(reader.state["funding_state"]) == symbols


def test_from_a_file_of_another_layout_no_records_are_taken(path: Path) -> None:
    """It is as valid, and may be what another program has put there."""
    reader, two = StateReader(str(path)), state({"A": record(), "B": record()})
    write(path, RECORD, RECORD.replace(b'"A"', b'"B"'))
    laid_out = path.read_text()
    for content in (
        json.dumps(two),
        json.dumps(two, indent=1),
        json.dumps(two, indent=0, separators=(",", ":")),
        laid_out.replace('"rest"}', '"rest"\n}'),
        laid_out.replace('"rest"},', '"rest"},\n'),
        laid_out.replace('{"version"', '{"x":{"funding_state":{\n"evil":{},\n"more":{}\n}},"version"'),
        laid_out.replace('"B"', '"A"'),
        laid_out.replace("{", '{"funding_state":{\n"evil":{}\n},', 1),
        "junk",
    ):
        put(path, content.encode())
        reader.refresh()
        assert reader.records_json() is None, content
        assert content == "junk" or reader.state is not None
    write(path, RECORD)
    reader.refresh()
    assert reader.records_json() == b"{%b}" % RECORD


def test_a_reader_never_sees_anything_broken_while_writers_are_killed(path: Path) -> None:
    """Fifty writers in a row are killed at random moments of their work; every single read finds a whole file."""
    moments = random.Random(20261124)
    with running(WRITER, path):
        deadline_s = time.monotonic() + LIMIT_S
        while not path.exists():
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
    with running(READER, path) as reader:
        for _ in range(50):
            with running(WRITER, path) as writer:
                time.sleep(moments.uniform(0.0, 0.06))
                writer.send_signal(signal.SIGKILL)
                writer.wait(LIMIT_S)
            assert reader.poll() is None, "the reader found a broken file"
        reader.terminate()
        output, _ = reader.communicate(timeout=LIMIT_S)
    assert reader.returncode == 0
    reads, distinct = map(int, output.split())
    assert reads >= distinct >= 50
    write(path)
    assert sorted(os.listdir(path.parent)) == ["state.json", "state.json.lock"]


def test_a_second_writer_is_told_the_pid_of_the_first(path: Path) -> None:
    """And leaves the lock as it is."""
    with running(HOLDER, path) as holder:
        for _ in range(2):
            with pytest.raises(AlreadyRunning, match=f"{path} is already written by the daemon with pid {holder.pid}$"):
                StateFile(str(path)).lock()


def test_a_killed_writer_releases_the_lock(path: Path) -> None:
    """Nothing has to be cleaned up by hand, and the new pid replaces a longer one."""
    with running(HOLDER, path) as holder:
        holder.kill()
        holder.wait(LIMIT_S)
    lock = Path(f"{path}.lock")
    lock.write_text("99999999999\n")
    StateFile(str(path)).lock()
    assert lock.read_text() == f"{os.getpid()}\n"


def test_the_same_file_by_another_name_is_locked_too(path: Path) -> None:
    """A link to it, or a detour."""
    StateFile(str(path)).lock()
    link = path.parent / "link.json"
    link.symlink_to(path)
    for name in (link, path.parent / "x" / ".." / path.name):
        with pytest.raises(AlreadyRunning):
            StateFile(str(name)).lock()


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
def test_everybody_may_read_the_file_whatever_the_umask(path: Path, umask: int) -> None:
    """Mode 0644, also where another one was there before."""
    path.write_bytes(b"old")
    path.chmod(0o600)
    before = os.umask(umask)
    try:
        write(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_link_stays_a_link(path: Path) -> None:
    """What it points to is replaced, in the directory where that is."""
    target = path.parent / "elsewhere"
    target.mkdir()
    path.symlink_to(target / "real.json")
    write(path)
    assert path.is_symlink()
    assert os.listdir(target) == ["real.json"]
    assert "A" in read(str(path))["funding_state"]


def test_a_temporary_file_left_behind_is_overwritten(path: Path) -> None:
    """What a killed daemon left neither stays nor shows."""
    Path(f"{path}.tmp").write_bytes(b"x" * 1_000_000)
    write(path)
    read(str(path))
    assert os.listdir(path.parent) == ["state.json"]


def test_a_temporary_file_that_is_a_link_is_not_followed(path: Path) -> None:
    """Nobody can make the daemon overwrite another file, or keep it from writing its own."""
    victim = path.parent / "victim"
    victim.write_text("precious")
    Path(f"{path}.tmp").symlink_to(victim)
    write(path)
    assert victim.read_text() == "precious"
    assert read(str(path))


def test_a_fifo_in_the_place_of_the_temporary_file_does_not_block(path: Path) -> None:
    """It is removed, like whatever else lies there."""
    os.mkfifo(f"{path}.tmp")
    write(path)
    assert read(str(path))


def test_a_deleted_lock_admits_no_second_writer(path: Path) -> None:
    """The first takes the lock anew with its next write; where another was faster, it leaves the file to that one."""
    first, second = StateFile(str(path)), StateFile(str(path))
    first.lock()
    os.unlink(f"{path}.lock")
    first.write([RECORD], HEADER, REST)
    with pytest.raises(AlreadyRunning):
        second.lock()
    os.unlink(f"{path}.lock")
    second.lock()
    with pytest.raises(AlreadyRunning, match=f"pid {os.getpid()}"):
        first.write([RECORD], HEADER, REST)
    second.write([RECORD], HEADER, REST)


def test_nobody_else_can_hold_the_lock(path: Path) -> None:
    """Whoever may open it may lock it, and keep the daemon from starting."""
    StateFile(str(path)).lock()
    assert stat.S_IMODE(os.stat(f"{path}.lock").st_mode) == 0o600


def test_a_lock_that_is_a_link_is_not_followed(path: Path) -> None:
    """The pid is not written over another file."""
    victim = path.parent / "victim"
    victim.write_text("precious")
    Path(f"{path}.lock").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        StateFile(str(path)).lock()
    assert victim.read_text() == "precious"


def test_a_full_disk_leaves_the_old_file_and_no_half_one(path: Path) -> None:
    """The writer runs into its file size limit, as into a full disk: the error is told, and room again means work."""
    program = """
import resource, sys
from tests.test_state_file import HEADER, RECORD, REST
from binance_funding.state_file import StateFile
file = StateFile(sys.argv[1])
file.write([RECORD], HEADER, REST)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
try:
    file.write([RECORD.replace(b'"A"', b'"B%d"' % n) for n in range(100)], HEADER, REST)
except OSError as error:
    print(error.errno)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, path], cwd=PROJECT, capture_output=True, text=True, timeout=LIMIT_S
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
        write(path, *(RECORD.replace(b'"A"', b'"B%d"' % n) for n in range(100)))
    assert sorted(os.listdir(tiny_disk)) == ["ballast", "state.json"]
    assert list(read(str(path))["funding_state"]) == ["A"]
    subprocess.run(["mount", "-o", "remount,ro", tiny_disk], check=True)
    with pytest.raises(OSError, match="Read-only file system"):
        write(path)
    subprocess.run(["mount", "-o", "remount,rw", tiny_disk], check=True)
    ballast.unlink()
    write(path, RECORD.replace(b'"A"', b'"C"'))
    assert list(read(str(path))["funding_state"]) == ["C"]


def test_a_directory_that_must_not_be_written_is_told(path: Path) -> None:
    """Neither lock nor write hides it."""
    file = StateFile(str(path))
    path.parent.chmod(0o555)
    with unprivileged():
        with pytest.raises(PermissionError):
            file.lock()
        with pytest.raises(PermissionError):
            file.write([RECORD], HEADER, REST)
    path.parent.chmod(0o755)


def test_whatever_is_in_the_place_of_the_file_is_replaced(path: Path) -> None:
    """A FIFO, a socket or junk gives way to the file; a directory is an error."""
    os.mkfifo(path)
    write(path)
    read(str(path))
    path.unlink()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        write(path)
    path.write_bytes(b"\xff\0junk")
    write(path)
    read(str(path))
    path.unlink()
    path.mkdir()
    with pytest.raises(IsADirectoryError):
        write(path)


def test_no_number_that_json_lacks_is_ever_written(path: Path) -> None:
    """The old file stays."""
    write(path)
    with pytest.raises(ValueError, match="JSON"):
        write(path, boottime=float("nan"))
    assert read(str(path))["boottime"] == 1.0


def test_a_missing_file_is_told(path: Path) -> None:
    """By its path and in words."""
    assert unusable(path) == f"{path}: no such file or directory"
    assert unusable(path / "below") == f"{path / 'below'}: no such file or directory"


def test_a_fifo_does_not_block_the_reader(path: Path) -> None:
    """With or without somebody at its other end."""
    os.mkfifo(path)
    assert unusable(path) == f"{path}: not a file of reasonable size"


def test_a_socket_or_a_device_is_told(path: Path) -> None:
    """Neither is read without end."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        unusable(path)
    assert unusable("/dev/zero") == "/dev/zero: not a file of reasonable size"


def test_a_directory_is_told(path: Path) -> None:
    """It must not end the server, whose every request looks at the file."""
    path.mkdir()
    unusable(path)


def test_a_file_without_right_to_read_is_told(path: Path) -> None:
    """In words."""
    write(path)
    path.chmod(0o000)
    path.parent.chmod(0o755)
    with unprivileged():
        assert "permission denied" in unusable(path)


def test_a_file_of_gigabytes_is_not_read(path: Path) -> None:
    """Before it fills the memory."""
    with path.open("wb") as file:
        file.truncate(1 << 40)
    assert unusable(path) == f"{path}: not a file of reasonable size"


WHOLE = json.dumps(state()).encode()


@pytest.mark.parametrize("length", [0, 1, 20, len(WHOLE) // 2, len(WHOLE) - 1])
def test_a_truncated_file_is_told(path: Path, length: int) -> None:
    """Wherever it was cut."""
    path.write_bytes(WHOLE[:length])
    assert "not valid JSON" in unusable(path)


JUNK: dict[str, Any] = {
    "null": None,
    "number": 5,
    "list": [],
    "text": "state",
    "empty": {},
    "version 2": state(version=2),
    "no version": {name: value for name, value in state().items() if name != "version"},
    "updated_at text": state(updated_at="now"),
    "updated_at true": state(updated_at=True),
    "updated_at null": state(updated_at=None),
    "updated_at too large": state(updated_at=10**400),
    "boottime text": state(boottime="x"),
    "records list": state([]),  # type: ignore[arg-type]
    "records null": {**state(), "funding_state": None},
    "record null": state({"A": None}),
    "record empty": state({"A": {}}),
    "rate true": state({"A": record(fundingRate=True)}),
    "rate text": state({"A": record(fundingRate="0.1")}),
    "rate null": state({"A": record(fundingRate=None)}),
    "price list": state({"A": record(markPrice=[1])}),
    "index price huge": state({"A": record(indexPrice=10**301)}),
    "source unknown": state({"A": record(source="hearsay")}),
    "source list": state({"A": record(source=[])}),
    "interval zero": state({"A": record(fundingIntervalHours=0)}),
    "interval 25": state({"A": record(fundingIntervalHours=25)}),
    "interval text": state({"A": record(fundingIntervalHours="8")}),
    "interval list": state({"A": record(fundingIntervalHours=[])}),
    "interval true": state({"A": record(fundingIntervalHours=True)}),
    "interval with fraction": state({"A": record(fundingIntervalHours=8.0)}),
    "record nested": state({"A": record(more={"x": [1]})}),
    "status list": state(connection_status=[]),
    "status nested": state(connection_status=status(last_error=[[]])),
    "polls true": state(connection_status={"rest": {"polls": True}}),
    "polls text": state(connection_status={"rest": {"polls": "1\n2"}}),
    "REST nested": state(connection_status={"rest": {"trouble": {}}}),
    "comparison list": state(comparison={"last": [1]}),
    "comparison nested": state(comparison={"last": {"only_in_rest_symbols": [["A"]]}}),
    "comparison nested deeper": state(comparison={"last": {"only_in_rest_symbols": {"A": 1}}}),
    "rest list": state(connection_status={"rest": []}),
    "comparison null": state(comparison=None),
    "gaps null": state(gaps=None),
    "gaps number": state(gaps=5),
    "gap empty": state(gaps=[{}]),
    "gap text": state(gaps=[{"start": "x", "seconds": 1, "cause": ""}]),
    "history list of lists": state(history=[[1]]),
    "history text": state(history=[{"start": "x"}]),
}


@pytest.mark.parametrize("content", JUNK.values(), ids=JUNK.keys())
def test_json_that_no_daemon_wrote_is_told(path: Path, content: Any) -> None:
    """Every member that readers rely on is checked, booleans in the place of numbers included."""
    put(path, json.dumps(content).encode())
    assert unusable(path).startswith(f"{path}: ")


@pytest.mark.parametrize("member", ["updatedAt", "fundingRate", "nextFundingTime"])
@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400", "-1e400", "9" * 5000])
def test_numbers_that_are_not_finite_are_told(path: Path, member: str, number: str) -> None:
    """However they are spelt."""
    put(path, json.dumps(state({"A": record(**{member: "X"})})).replace('"X"', number).encode())
    unusable(path)


@pytest.mark.parametrize(
    "content", [b"\xff", b"\xef\xbb\xbf{}", "{}".encode("utf-16"), b"[" * 200_000, b"{}{}", b"\0" * 50]
)
def test_bytes_that_are_no_json_are_told(path: Path, content: bytes) -> None:
    """Encodings, nesting and blocks of zeros that a power failure leaves."""
    put(path, content)
    assert "not valid JSON" in unusable(path)


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(state({"A\ud800": record()})),
        json.dumps(state(comparison={"last": {"mismatched_symbols": ["\udfff"]}, "totals": {}})),
        json.dumps(state(gaps=[{"start": 1, "seconds": 1, "cause": "\ud800"}])),
    ],
    ids=["symbol", "comparison", "gap"],
)
def test_text_that_cannot_be_encoded_is_told(path: Path, content: str) -> None:
    """A daemon that takes it over could never write again, and would die at every start."""
    put(path, content.encode())
    unusable(path)


@pytest.mark.parametrize(
    "content",
    [
        state(comparison={"last": {"compared": "X"}, "totals": {}}),
        state(comparison={"last": None, "totals": {"runs": "X"}}),
        state(connection_status={"connections": "X", "rest": {}}),
    ],
    ids=["comparison", "totals", "status"],
)
def test_infinite_statistics_are_told(path: Path, content: dict[str, Any]) -> None:
    """All numbers of the file are finite; the daemon refuses to write what is not, and would die at every start."""
    put(path, json.dumps(content).replace('"X"', "1e400").encode())
    unusable(path)


@pytest.mark.parametrize("text", ["a \\ud800 in the text", "\\\\ud800", "\U0001f600", "\\n"])
def test_text_that_only_looks_like_an_escape_is_read(path: Path, text: str) -> None:
    """An error quoted from a malformed message may hold any characters, backslashes included."""
    content = state(connection_status={"last_error": text, "rest": {}})
    put(path, content)
    assert read(str(path))["connection_status"]["last_error"] == text


def test_optional_members_may_be_absent(path: Path) -> None:
    """Readers find empty ones in their place."""
    needed = {name: state()[name] for name in ("version", "updated_at", "funding_state")}
    put(path, needed)
    content = read(str(path))
    assert {name: content[name] for name in needed} == needed
    assert (content["boottime"], content["gaps"], content["history"]) == (0, [], [])
    assert isinstance(content["connection_status"]["rest"], dict)
    assert isinstance(content["comparison"], dict)


class Opens:
    """Counts how often a path is opened."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        really = os.open

        def counting(opened: Any, *args: Any, **options: Any) -> int:
            self.count += str(opened) == str(path)
            return really(opened, *args, **options)

        monkeypatch.setattr(os, "open", counting)


def test_the_file_is_read_again_only_when_it_has_changed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred looks open it once; a replaced one is opened once more, and the generation tells."""
    put(path, state())
    opens, reader = Opens(path, monkeypatch), StateReader(str(path))
    assert (reader.state, reader.generation) == (None, 0)
    for _ in range(100):
        reader.refresh()
    assert (opens.count, reader.generation, reader.error) == (1, 1, "")
    put(path, state({"NEW": record()}))
    for _ in range(100):
        reader.refresh()
    assert (opens.count, reader.generation) == (2, 2)
    assert reader.state is not None
    assert list(reader.state["funding_state"]) == ["NEW"]


def test_a_file_replaced_by_one_of_the_same_size_and_time_is_noticed(path: Path) -> None:
    """It is another file nevertheless."""
    put(path, state({"A": record()}))
    before, reader = path.stat(), StateReader(str(path))
    reader.refresh()
    put(path, state({"B": record()}))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    reader.refresh()
    assert reader.state is not None
    assert list(reader.state["funding_state"]) == ["B"]


def test_a_missing_file_is_looked_for_but_not_opened(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its coming and its going are both noticed."""
    opens, reader = Opens(path, monkeypatch), StateReader(str(path))
    for _ in range(10):
        reader.refresh()
    assert (opens.count, reader.generation, reader.state) == (1, 1, None)
    assert "no such file" in reader.error
    put(path, state())
    reader.refresh()
    assert (reader.generation, reader.error, reader.state is None) == (2, "", False)
    path.unlink()
    reader.refresh()
    assert (reader.generation, reader.state) == (3, None)
    assert "no such file" in reader.error


def test_junk_takes_the_place_of_good_content_and_is_read_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is unusable is not served from memory; it is not parsed again at every request either."""
    put(path, state())
    opens, reader = Opens(path, monkeypatch), StateReader(str(path))
    reader.refresh()
    put(path, b"junk")
    for _ in range(10):
        reader.refresh()
    assert (reader.state, reader.generation, opens.count) == (None, 2, 2)
    assert "not valid JSON" in reader.error


def test_a_read_that_failed_for_a_moment_is_tried_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of file descriptors is no property of the file: the next look finds it, changed or not."""
    put(path, state())
    reader = StateReader(str(path))

    def failing(*_args: Any, **_options: Any) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", failing)
        reader.refresh()
    assert "too many open files" in reader.error
    reader.refresh()
    assert reader.state is not None


def totals(runs: object) -> dict[str, Any]:
    """Return a comparison without a last run."""
    return {"last": None, "totals": {"runs": runs, "compared": 1, "matched": 1, "mismatched": 0, "identical": 1}}


POISONED = [
    pytest.param(json.dumps(content).replace('"1e400"', "1e400"), id=name)
    for name, content in {
        "surrogate in a symbol": state({"A\ud800": record()}),
        "infinite total": state(comparison=totals("1e400")),
        "infinite number in the last comparison": state(comparison={**totals(1), "last": {"compared": "1e400"}}),
        "pause that is no time": state(connection_status={"rest": {"paused_until": "soon"}}),
    }.items()
]


@pytest.mark.parametrize("content", ["", "junk", json.dumps(state())[:-50], json.dumps(state()), *POISONED])
def test_the_daemon_starts_whatever_the_old_file_holds(path: Path, content: str) -> None:
    """It takes over what it can use and drops the rest; a file that kills it would do so at every restart."""
    path.write_text(content, encoding="utf-8")
    environment = {
        **os.environ,
        "STATE_FILE": str(path),
        "NOTIFY_SOCKET": str(path.parent / "notify"),
        "BINANCE_WS_URLS": "ws://127.0.0.1:9",
        "BINANCE_REST_URL": "http://127.0.0.1:9",
    }
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(environment["NOTIFY_SOCKET"])
        manager.settimeout(0.1)
        with subprocess.Popen(
            [sys.executable, PROJECT / "binance_funding_ws_daemon.py"],
            cwd=path.parent,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        ) as daemon:
            try:
                told = ""
                while "READY=1" not in told and daemon.poll() is None:
                    with contextlib.suppress(TimeoutError):
                        told = manager.recv(1000).decode()
                daemon.terminate()
                _, log = daemon.communicate(timeout=LIMIT_S)
            finally:
                daemon.kill()
    assert daemon.returncode == 0, log
    assert "Traceback" not in log
    assert ("old state dropped" in log) != ("took over symbols=1" in log)
    read(str(path))
