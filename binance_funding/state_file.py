"""Writes the state file atomically, reads and checks it, and tells its age.

The daemon writes the new file beside the old file, and renames it over the old file. So a reader sees the old file or
the new file, never a part of one. The file is not forced to disk (fsync), because that would cost more than everything
else that the daemon does. After a power failure the data is stale anyway, and the daemon drops an unreadable file.
"""

import contextlib
import fcntl
import itertools
import json
import os
import stat
import time
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from . import schema
from .clock import Moment

# Thirty times the size of today's file. To read such a file takes 0.3 s and 60 MB, to read the worst junk 1.5 s and
# 420 MB.
_LARGEST_BYTES = 8 * 1024 * 1024
_MODE = 0o644  # every local user may read the file; the umask does not change this
_LOCK_MODE = 0o600  # a user who can open the lock file could hold the lock, and so keep the daemon from starting
_LOCK_ATTEMPTS, _LOCK_RETRY_S = 10, 0.03
_CLOCK_SLACK_S = 5.0
_HEARTBEATS_MISSED, _HEARTBEAT_SLACK_S = 3, 2.0


class AlreadyRunning(OSError):
    """Another daemon writes the state file. The text names its pid."""


class UnusableState(Exception):
    """The state file is missing, cannot be read, or has the wrong content. The text says which."""


def why_not(path: str) -> str:
    """Return why this path cannot be that of a state file; "" if it can."""
    path = os.path.realpath(path)
    if os.path.exists(path) and not os.path.isfile(path):
        return "it is there, and not a regular file"
    return "" if os.path.isdir(os.path.dirname(path)) else "no such directory"


class StateFile:
    """The state file for the daemon, its only writer. For one thread."""

    def __init__(self, path: str) -> None:
        # If the path is a symbolic link, the link stays, and the file to which it points is replaced.
        self.path = os.path.realpath(path)
        self._temporary = self.path + ".tmp"

    def lock(self) -> None:
        """Become the only writer. The kernel releases the lock when the process ends, even after a crash.

        Raises AlreadyRunning if another daemon holds the lock, OSError if the directory cannot be written.
        """
        path = self.path + ".lock"
        # A file open for writing would prevent a remount of the file system as read-only.
        fd = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, _LOCK_MODE)
        try:
            _lock_exclusively(fd)
        except BlockingIOError:
            pid = _pid_in(fd)
            os.close(fd)
            raise AlreadyRunning(f"{self.path} is already written by the daemon with pid {pid}") from None
        try:
            Path(path).write_text(f"{os.getpid()}\n", encoding="ascii")
        except OSError:
            os.close(fd)  # releases the lock, so that the next attempt can take it
            raise

    def write(self, records: Iterable[bytes], header: Mapping[str, Any], rest: Mapping[str, Any]) -> None:
        """Replace the file by `header`, `funding_state` with these records, and `rest`. Raises OSError."""
        # The records are bytes: in a str, one symbol that is not ASCII makes every character take two bytes or more.
        # Each record is on a line of its own, so that grep can find it.
        content = b'{%b,"funding_state":{\n%b\n},%b}\n' % (_members(header), b",\n".join(records), _members(rest))
        # The name is fixed, because the lock admits only one writer. A killed daemon may have left a file of this name.
        # It is removed, because it may also be a link, which would be followed, or a FIFO, which would block.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._temporary)
        try:
            with open(self._temporary, "xb", opener=partial(os.open, mode=_MODE)) as file:
                os.fchmod(file.fileno(), _MODE)
                file.write(content)
            os.replace(self._temporary, self.path)
        except OSError:
            # On a full disk, the incomplete file would take space that other programs need.
            with contextlib.suppress(OSError):
                os.unlink(self._temporary)
            raise


def _lock_exclusively(fd: int) -> None:
    """Take the lock; it is held until `fd` is closed. Raises BlockingIOError if another daemon holds it."""
    for _ in range(_LOCK_ATTEMPTS - 1):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(_LOCK_RETRY_S)  # `--check` holds the lock for a moment to see whether it is free
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def writer_pid(path: str) -> str | None:
    """Return the pid of the daemon that writes the file, None if no daemon does.

    Creates no lock file, and holds the lock only for a moment. Raises OSError if the lock file cannot be opened.
    """
    try:
        fd = os.open(os.path.realpath(path) + ".lock", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _pid_in(fd)
    finally:
        os.close(fd)
    return None


def _pid_in(fd: int) -> str:
    return os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"


def _members(values: Mapping[str, Any]) -> bytes:
    text = json.dumps(values, ensure_ascii=False, allow_nan=False, separators=(",", ":"))[1:-1]
    return text.encode(errors="replace")  # a text from outside may hold half a surrogate pair, which UTF-8 cannot


def read(path: str) -> dict[str, Any]:
    """Read and check the file; return its declared fields. Absent fields get their defaults.

    Raises UnusableState. Its __cause__ is an OSError if the file could not be read at all.
    """
    try:
        parsed = _parse(_read_bytes(path))
    except OSError as error:
        raise UnusableState(f"{path}: {(error.strerror or str(error)).lower()}") from error
    except (ValueError, RecursionError) as error:
        raise UnusableState(f"{path}: not valid JSON ({error})") from error
    try:
        return _complete(parsed)
    except (TypeError, AttributeError, ValueError) as error:
        raise UnusableState(f"{path}: not a state file ({error})") from error


def _read_bytes(path: str) -> bytes:
    # O_NONBLOCK: if the path is a FIFO or a device, opening it must not block.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode) or info.st_size > _LARGEST_BYTES:
            raise UnusableState(f"{path}: not a file of at most {_LARGEST_BYTES >> 20} MiB")
        with open(fd, "rb", closefd=False) as file:
            return file.read(_LARGEST_BYTES)
    finally:
        os.close(fd)


def _parse(content: bytes) -> Any:
    state = json.loads(content.decode("utf-8"), parse_constant=schema.refuse_constant)
    if b"\\ud" in content.lower():
        # The escape may be half of a surrogate pair. Encoding it raises ValueError here, and not when it is written.
        json.dumps(state, ensure_ascii=False).encode()
    return state


def _complete(parsed: Any) -> dict[str, Any]:
    """Return the declared fields of the file, checked, so that later code can rely on their types."""
    (header,) = schema.complete(schema.HEADER, [parsed])
    status, comparison = parsed.get("connection_status", {}), parsed.get("comparison", {})
    last = comparison.get("last")
    return {
        **header,
        "funding_state": _records(parsed.get("funding_state")),
        "connection_status": {**_only(schema.STATUS, status), "rest": _only(schema.REST, status.get("rest", {}))},
        "comparison": {
            "last": None if last is None else _only(schema.LAST, last),
            "totals": _only(schema.TOTALS, comparison.get("totals", {})),
        },
        "process": _only(schema.PROCESS, parsed.get("process", {})),
        "gaps": schema.complete(schema.GAP, parsed.get("gaps", [])),
        "history": schema.complete(schema.QUARTER, parsed.get("history", [])),
    }


def _only(section: schema.Section, member: dict[str, Any]) -> dict[str, Any]:
    return schema.complete(section, [member])[0]


def _records(parsed: dict[str, Any]) -> dict[str, dict[str, Any]]:
    records = dict(zip(parsed, schema.complete(schema.RECORD, list(parsed.values())), strict=True))
    for mark in schema.MARKS:
        is_set = mark.read(list(parsed.values()))
        for record in itertools.compress(records.values(), is_set):
            record[mark.name] = True
    return records


EMPTY = _complete({"version": schema.VERSION, "updated_at": 0.0, "funding_state": {}})
"""What `read` returns for a file with nothing but the required fields."""


def written_age_s(state: Mapping[str, Any], now: Moment, boot_id: str) -> float:
    """Return the seconds since the file was written.

    If the host has not booted since, the boot clock gives the exact age, because nobody can set that clock. Otherwise
    the wall clock gives it, but the age is at least the time since the boot. A file whose time lies in the future is
    taken to be as old as the boot.
    """
    if boot_id and state["boot_id"] == boot_id:
        age_s: float = now.steady_s - state["boottime"]
    else:
        age_s = now.wall_s - state["updated_at"]
        if boot_id and state["boot_id"]:
            age_s = max(age_s, now.steady_s)
    return max(0.0, age_s) if age_s > -_CLOCK_SLACK_S else now.steady_s


def is_heartbeat_late(age_s: float, heartbeat_s: float) -> bool:
    """Tell whether the daemon has stopped, by the age of its file: it has if three heartbeats in a row are missing."""
    return age_s > max(_HEARTBEATS_MISSED * heartbeat_s, heartbeat_s + _HEARTBEAT_SLACK_S)
