"""The server's side of the state file: read again only when it has changed, and kept when it cannot be opened."""

import contextlib
import os
import resource
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from binance_funding.server.state_reader import StateReader
from tests.support.samples import put, record, state

FEW_DESCRIPTORS = 64


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the state file is to be."""
    return tmp_path / "state.json"


@pytest.fixture
def reader(path: Path) -> StateReader:
    """A reader that has not looked yet."""
    return StateReader(str(path))


@contextlib.contextmanager
def out_of_descriptors() -> Iterator[None]:
    """Leave this process without a file descriptor to open anything with."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (FEW_DESCRIPTORS, hard))
    held = [os.dup(0)]
    try:
        with contextlib.suppress(OSError):  # EMFILE, in the end
            while True:
                held.append(os.dup(0))
        yield
    finally:
        for fd in held:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def symbols(reader: StateReader) -> list[str] | None:
    """Return the symbols that the reader knows, None where it has no state."""
    return None if reader.state is None else list(reader.state["funding_state"])


def test_the_file_is_read_again_only_when_it_has_changed(path: Path, reader: StateReader) -> None:
    """A hundred looks read it once; a replaced one is read once more, and the version says so."""
    put(path, state())
    assert (reader.state, reader.version) == (None, 0)
    reader.refresh()
    read_once = reader.state
    for _ in range(100):
        reader.refresh()
    assert reader.state is read_once
    assert (reader.version, reader.error) == (1, "")
    put(path, state({"NEW": record()}))
    for _ in range(100):
        reader.refresh()
    assert (reader.version, symbols(reader)) == (2, ["NEW"])


def test_a_file_replaced_by_one_of_the_same_size_and_time_is_noticed(path: Path, reader: StateReader) -> None:
    """It is another file nevertheless."""
    put(path, state({"A": record()}))
    before = path.stat()
    reader.refresh()
    put(path, state({"B": record()}))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    reader.refresh()
    assert symbols(reader) == ["B"]


def test_a_missing_file_is_looked_for_at_every_refresh(path: Path, reader: StateReader) -> None:
    """Its coming and its going are both noticed; while it stays away nothing changes."""
    for _ in range(10):
        reader.refresh()
    assert (reader.version, reader.state) == (1, None)
    assert "no such file" in reader.error
    put(path, state())
    reader.refresh()
    assert (reader.version, reader.error, symbols(reader)) == (2, "", ["BTCUSDT"])
    path.unlink()
    reader.refresh()
    assert (reader.version, reader.state) == (3, None)
    assert "no such file" in reader.error


def test_junk_takes_the_place_of_good_content_and_is_read_once(path: Path, reader: StateReader) -> None:
    """What is unusable is not served from memory; it is not parsed again at every request either."""
    put(path, state())
    reader.refresh()
    put(path, b"junk")
    for _ in range(10):
        reader.refresh()
    assert (reader.state, reader.version) == (None, 2)
    assert "not valid JSON" in reader.error


def test_a_directory_in_the_place_of_the_file_is_no_file(path: Path, reader: StateReader) -> None:
    """What was read before is not served for it."""
    put(path, state())
    reader.refresh()
    path.unlink()
    path.mkdir()
    reader.refresh()
    assert reader.state is None


def test_105_mb_of_junk_cost_neither_time_nor_memory(path: Path, reader: StateReader) -> None:
    """Nothing over 8 MiB is read, however often it is replaced; the file after it is."""
    put(path, state())
    reader.refresh()
    tracemalloc.start()
    try:
        start_s = time.monotonic()
        for size in range(105_000_000, 105_000_010):
            with path.open("wb") as file:
                file.truncate(size)
            reader.refresh()
            assert "not a file of at most 8 MiB" in reader.error
        assert time.monotonic() - start_s < 2
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    put(path, state())
    reader.refresh()
    assert symbols(reader) == ["BTCUSDT"]


def test_out_of_descriptors_what_was_read_is_kept(path: Path, reader: StateReader) -> None:
    """That is no property of the file: the version stays, and the next look with a descriptor reads what is new."""
    put(path, state({"OLD": record()}))
    reader.refresh()
    put(path, state({"NEW": record()}))
    with out_of_descriptors():
        for _ in range(3):
            reader.refresh()
        assert (symbols(reader), reader.version, reader.error) == (["OLD"], 1, "")
    reader.refresh()
    assert (symbols(reader), reader.version) == (["NEW"], 2)


def test_out_of_descriptors_from_the_start_the_cause_is_named(path: Path, reader: StateReader) -> None:
    """And the file is read as soon as it can be."""
    put(path, state())
    with out_of_descriptors():
        reader.refresh()
        assert (reader.state, "too many open files" in reader.error) == (None, True)
    reader.refresh()
    assert (symbols(reader), reader.error) == (["BTCUSDT"], "")
