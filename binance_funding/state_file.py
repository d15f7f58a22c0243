"""The JSON file that both programs share, and other programs read: atomic writing, reading and checking, its age.

A reader sees one complete file or the next, never half of one: it is written beside the old one and renamed over it.
It is not forced to disk (fsync), which would cost more than everything else: after a power failure the data would be
stale anyway, and a file that cannot be read is dropped at the next start.
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

# Thirty times today's market. A market of this size takes 0.3 s and 60 MB to read, the worst junk 1.5 s and 420 MB.
_LARGEST_BYTES = 8 * 1024 * 1024
_MODE = 0o644  # every local program may read it, whoever it runs as and whatever the umask
_LOCK_MODE = 0o600  # whoever may open the lock may hold it, and keep the daemon from starting
_LOCK_ATTEMPTS, _LOCK_RETRY_S = 10, 0.03
_CLOCK_SLACK_S = 5.0
_HEARTBEATS_MISSED, _HEARTBEAT_SLACK_S = 3, 2.0


class AlreadyRunning(OSError):
    """Another daemon holds the state file; the text names its pid."""


class UnusableState(Exception):
    """The state file is missing, cannot be read, or is not what a daemon writes; the text says which."""


def why_not(path: str) -> str:
    """Return why this cannot be the path of a state file, "" where it can."""
    path = os.path.realpath(path)
    if os.path.exists(path) and not os.path.isfile(path):
        return "it is there, and not a regular file"
    return "" if os.path.isdir(os.path.dirname(path)) else "no such directory"


class StateFile:
    """The daemon's side: one writer, which holds a lock for as long as it lives. For one thread."""

    def __init__(self, path: str) -> None:
        # A link stays a link: what it points to is replaced.
        self.path = os.path.realpath(path)
        self._temporary = self.path + ".tmp"

    def lock(self) -> None:
        """Become the only writer until the process ends, however it ends.

        Raises AlreadyRunning if another daemon is, OSError if the directory cannot be written.
        """
        path = self.path + ".lock"
        # Held open for reading only: a file open for writing would keep the file system from being remounted.
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
            os.close(fd)  # let go, so that it can be taken again
            raise

    def write(self, records: Iterable[bytes], header: Mapping[str, Any], rest: Mapping[str, Any]) -> None:
        """Replace the file by `header`, `funding_state` (of `record.render`) and `rest`. Raises OSError."""
        # Joined as bytes: one symbol of other letters than ASCII would widen the text of all of them.
        # A record a line, for grep.
        content = b'{%b,"funding_state":{\n%b\n},%b}\n' % (_members(header), b",\n".join(records), _members(rest))
        # The name is fixed, since the lock admits one writer. Whatever has it is removed rather than reused: what a
        # killed daemon left, a link, or a FIFO, which would block.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._temporary)
        try:
            with open(self._temporary, "xb", opener=partial(os.open, mode=_MODE)) as file:
                os.fchmod(file.fileno(), _MODE)
                file.write(content)
            os.replace(self._temporary, self.path)
        except OSError:
            # On a full disk the half-written copy takes the space that others need.
            with contextlib.suppress(OSError):
                os.unlink(self._temporary)
            raise


def _lock_exclusively(fd: int) -> None:
    """Take the lock and keep it while the file is open. Raises BlockingIOError if another daemon holds it."""
    for _ in range(_LOCK_ATTEMPTS - 1):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(_LOCK_RETRY_S)  # `--check` holds the lock for a moment to see whether it is free
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def writer_pid(path: str) -> str | None:
    """Return the pid of the daemon that writes the file, None where none does. Raises OSError where that is not known.

    The lock is neither made nor kept: it is held for the moment of the question.
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
    return text.encode(errors="replace")  # whatever is quoted from outside, the file can be written


def read(path: str) -> dict[str, Any]:
    """Read and check the file; return its content, completed as the schema says.

    Raises UnusableState; its __cause__ is an OSError where the file itself could not be read.
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
    # A FIFO or device in its place must not block whoever reads it.
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
        # Perhaps half a surrogate pair: let in, it could not be written again.
        json.dumps(state, ensure_ascii=False).encode()
    return state


def _complete(parsed: Any) -> dict[str, Any]:
    """Return what is declared of a file's content, checked, so that no answer can stumble over junk."""
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
"""The content of a file that says nothing, as it is read."""


def written_age_s(state: Mapping[str, Any], now: Moment, boot_id: str) -> float:
    """Return the seconds since the file was written: exact within one boot, else by the wall clocks.

    Nobody can set the clock that counts within one boot. A file of another boot was written before this boot began,
    whatever the wall clocks say, and so was a file that claims to be of the future.
    """
    if boot_id and state["boot_id"] == boot_id:
        age_s: float = now.steady_s - state["boottime"]
    else:
        age_s = now.wall_s - state["updated_at"]
        if boot_id and state["boot_id"]:
            age_s = max(age_s, now.steady_s)
    return max(0.0, age_s) if age_s > -_CLOCK_SLACK_S else now.steady_s


def is_heartbeat_late(age_s: float, heartbeat_s: float) -> bool:
    """Tell whether whoever wrote the file so long ago has stopped: a heartbeat may be late, three in a row are not."""
    return age_s > max(_HEARTBEATS_MISSED * heartbeat_s, heartbeat_s + _HEARTBEAT_SLACK_S)
