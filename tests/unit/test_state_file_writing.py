"""Writing the state file: replaced at once, readable by all, by one daemon only."""

import fcntl
import os
import resource
import socket
import stat
import threading
from pathlib import Path

import pytest

from binance_funding.state_file import AlreadyRunning, StateFile, read
from tests.support.state_files import HEADER, RECORD, REST, record_of, unprivileged, write


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the state file is to be."""
    return tmp_path / "state.json"


def test_every_record_is_a_line_whatever_its_symbol(path: Path) -> None:
    """So grep finds it; other letters than ASCII are written as they are."""
    records = [record_of(symbol) for symbol in ("BTCUSDT", "币安人生USDT", 'A"\n}B', "")]
    write(path, *records)
    first, *lines, last = path.read_bytes().splitlines()
    assert first.endswith(b'"funding_state":{')
    assert lines == [*(line + b"," for line in records[:-1]), records[-1]]
    assert last.startswith(b'},"connection_status":{')
    assert list(read(str(path))["funding_state"]) == ["BTCUSDT", "币安人生USDT", 'A"\n}B', ""]


def test_whoever_has_the_file_open_goes_on_reading_the_old_one(path: Path) -> None:
    """It is replaced, never written over."""
    write(path)
    with path.open("rb") as file:
        write(path, record_of("B"))
        assert b'"A":{' in file.read()
    assert list(read(str(path))["funding_state"]) == ["B"]
    assert os.listdir(path.parent) == ["state.json"]


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


def test_a_check_that_holds_the_lock_for_a_moment_does_not_refuse_the_daemon(path: Path) -> None:
    """`--check` takes it to see whether it is free."""
    lock = Path(f"{path}.lock")
    lock.touch()
    fd = os.open(lock, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_SH)
    timer = threading.Timer(0.05, os.close, [fd])
    timer.start()
    StateFile(str(path)).lock()
    timer.join()


def test_text_that_cannot_be_encoded_does_not_keep_the_file_from_being_written(path: Path) -> None:
    """Half a surrogate pair in a text from outside becomes a question mark, and the file can be read."""
    StateFile(str(path)).write([RECORD], HEADER, {**REST, "connection_status": {"last_error": "a\ud800b", "rest": {}}})
    assert read(str(path))["connection_status"]["last_error"] == "a?b"


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


def test_a_lock_that_was_refused_leaves_no_file_open(path: Path) -> None:
    """A daemon that waits for another to end tries every second."""
    StateFile(str(path)).lock()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(AlreadyRunning):
            StateFile(str(path)).lock()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_lock_whose_pid_could_not_be_written_is_let_go(path: Path) -> None:
    """On a full disk: it can be taken as soon as there is room, by the same process too."""
    file, limits = StateFile(str(path)), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            file.lock()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    file.lock()


def test_a_directory_that_must_not_be_written_is_an_error(path: Path) -> None:
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
    assert os.listdir(path.parent) == ["state.json"], "the half-written copy takes space that others need"


def test_no_number_that_json_lacks_is_ever_written(path: Path) -> None:
    """The old file stays."""
    write(path)
    with pytest.raises(ValueError, match="JSON"):
        write(path, boottime=float("nan"))
    assert read(str(path))["boottime"] == 1.0
