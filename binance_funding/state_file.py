"""The JSON file that both programs share, and other programs read: its schema, atomic writing, cached reading.

A reader sees one complete file or the next, never half of one: it is written beside the old one and renamed over it.
It is not forced to disk (fsync), which would cost more than everything else: after a power failure the data would be
stale anyway, and a file that cannot be read is dropped at the next start.
"""

import contextlib
import fcntl
import json
import math
import os
import stat
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any, NoReturn

VERSION = 1

_LARGEST_BYTES = 256 * 1024 * 1024
# No JSON string holds a line break: what looks like these two in a file is the beginning and the end of its records.
_RECORDS_BEGIN, _RECORDS_JOINT, _RECORDS_END = b'"funding_state":{\n', b",\n", b"\n}"
_MODE = 0o644  # every local program may read it, whoever it runs as and whatever the umask
_LOCK_MODE = 0o600  # whoever may open the lock may hold it, and keep the daemon from starting


class AlreadyRunning(OSError):
    """Another daemon holds the state file; the text names its pid."""


class UnusableState(Exception):
    """The state file is missing, cannot be read, or is not what a daemon writes; the text says which."""


def record_text(
    symbol_text: str,
    funding_rate: str,
    mark_price: str,
    index_price: str,
    next_funding_time_ms: int,
    event_time_ms: int,
    updated_at_s: float,
    interval_hours: int,
    source: str,
) -> bytes:
    """Write one member of `funding_state`. The symbol comes as JSON text, rate and prices as JSON numbers."""
    text = (
        f'{symbol_text}:{{"fundingRate":{funding_rate},"markPrice":{mark_price},"indexPrice":{index_price},'
        f'"nextFundingTime":{next_funding_time_ms},"eventTime":{event_time_ms},"updatedAt":{updated_at_s:.3f},'
        f'"fundingIntervalHours":{interval_hours},"source":"{source}"}}'
    )
    return text.encode()


class StateFile:
    """The daemon's side: one writer, which holds a lock for as long as it lives. For one thread."""

    def __init__(self, path: str) -> None:
        # A link stays a link: what it points to is replaced.
        self.path = os.path.realpath(path)
        self._temporary = self.path + ".tmp"
        self._lock_fd: int | None = None

    def lock(self) -> None:
        """Become the only writer until the process ends, however it ends.

        Raises AlreadyRunning if another daemon is, OSError if the directory cannot be written.
        """
        path = self.path + ".lock"
        # Held open for reading only: a file open for writing would keep the file system from being remounted.
        fd = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, _LOCK_MODE)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(fd)
            raise AlreadyRunning(f"{self.path} is already written by the daemon with pid {pid}") from None
        self._lock_fd = fd
        with open(path, "w", encoding="ascii") as file:
            file.write(f"{os.getpid()}\n")

    def _keep_lock(self) -> None:
        """Take the lock anew if somebody deleted it: it must not admit a second writer."""
        if self._lock_fd is None:
            return
        with contextlib.suppress(FileNotFoundError):
            found = os.stat(self.path + ".lock", follow_symlinks=False)
            if os.path.samestat(found, os.fstat(self._lock_fd)):
                return
        lost_fd = self._lock_fd
        self.lock()
        os.close(lost_fd)

    def write(self, records: Iterable[bytes], header: Mapping[str, Any], rest: Mapping[str, Any]) -> None:
        """Replace the file by one of `header`, `funding_state` (texts of `record_text`) and `rest`. Raises OSError."""
        self._keep_lock()
        # Joined as bytes: one symbol of other letters than ASCII would widen the text of all of them.
        # A record a line: for grep, and for `records_json`.
        content = b"{%b,%b%b%b,%b}\n" % (
            _members(header),
            _RECORDS_BEGIN,
            _RECORDS_JOINT.join(records),
            _RECORDS_END,
            _members(rest),
        )
        # The name is fixed, since the lock admits one writer. Whatever has it is removed rather than reused: what a
        # killed daemon left, a link, or a FIFO, which would block.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._temporary)
        fd = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
        try:
            try:
                os.fchmod(fd, _MODE)
                _write_all(fd, content)
            finally:
                os.close(fd)
            os.replace(self._temporary, self.path)
        except OSError:
            # On a full disk the half-written copy takes the space that others need.
            with contextlib.suppress(OSError):
                os.unlink(self._temporary)
            raise


def _members(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, ensure_ascii=False, allow_nan=False, separators=(",", ":"))[1:-1].encode()


def _write_all(fd: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]


def read(path: str) -> dict[str, Any]:
    """Read and check the file. Raises UnusableState."""
    return _read(path)[0]


def _read(path: str) -> tuple[dict[str, Any], bytes]:
    try:
        content = _content(path)
        state = _parse(content)
    except OSError as error:
        raise UnusableState(f"{path}: {(error.strerror or str(error)).lower()}") from error
    except (ValueError, RecursionError) as error:
        raise UnusableState(f"{path}: not valid JSON ({error})") from error
    _check(state, path)
    return state, content


def _content(path: str) -> bytes:
    # A FIFO or device in its place must not block whoever reads it.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode) or info.st_size > _LARGEST_BYTES:
            raise UnusableState(f"{path}: not a file of reasonable size")
        with open(fd, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(fd)


def _parse(content: bytes) -> Any:
    state = json.loads(content.decode("utf-8"), parse_constant=_refuse_constant, parse_float=_finite)
    if b"\\ud" in content.lower():
        # Perhaps half a surrogate pair: let in, it could not be written again.
        json.dumps(state, ensure_ascii=False).encode()
    return state


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is too large")
    return number


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_STATUS_NUMBERS = (
    "connections",
    "connections_wanted",
    "last_connected_time",
    "last_message_time",
    "messages_received",
    "disconnects",
    "planned_disconnects",
    "reconnect_attempts",
    "rejected_rows",
    "clock_offset_seconds",
    "daemon_start_time",
    "gaps_ended",
    "gap_seconds",
)
_REST_NUMBERS = ("polls", "errors", "last_success_time", "paused_until")
_CLOCK_SLACK_S = 5.0
_INTERVAL_HOURS = range(1, 25)
_RECORD_NUMBERS = ("fundingRate", "markPrice", "indexPrice", "nextFundingTime", "eventTime", "updatedAt")


def _check(state: Any, path: str) -> None:
    """Check all that readers rely on, so that no answer can stumble over junk; fill in what older files lack."""
    try:
        if state["version"] != VERSION:
            raise UnusableState(f"{path}: version {state['version']!r} instead of {VERSION}")
        _require_numbers([state["updated_at"], state.setdefault("boottime", 0.0)])
        records = list(state["funding_state"].values())
        for name in _RECORD_NUMBERS:
            _require_numbers([record[name] for record in records])
        for record in records:
            if record["source"] not in ("websocket", "rest"):
                raise ValueError("source")
            hours = record.get("fundingIntervalHours")
            if type(hours) is not int or hours not in _INTERVAL_HOURS:
                raise ValueError("fundingIntervalHours")
        _require_scalars(chain.from_iterable([record.values() for record in records]))
        _check_statistics(state)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UnusableState(f"{path}: not a state file ({type(error).__name__}: {error})") from error


def _check_statistics(state: dict[str, Any]) -> None:
    for name in ("connection_status", "comparison"):
        if not isinstance(state.setdefault(name, {}), dict):
            raise TypeError(name)
    status, rest = state["connection_status"], state["connection_status"].setdefault("rest", {})
    totals, errors = state["comparison"].setdefault("totals", {}), rest.setdefault("errors_by_status", {})
    for name in ("fallback_active", "connected"):
        if type(status.setdefault(name, False)) is not bool:
            raise TypeError(name)
    numbers = [status[name] for name in _STATUS_NUMBERS if status.get(name) is not None]
    numbers += [rest[name] for name in _REST_NUMBERS if rest.get(name) is not None]
    _require_numbers([*totals.values(), *errors.values(), *numbers])
    last = state["comparison"].setdefault("last", None) or {}
    _require_scalars([name for names in last.values() if type(names) is list for name in names])
    _require_scalars([value for value in last.values() if type(value) is not list])
    _require_scalars([value for name, value in status.items() if name != "rest"])
    _require_scalars([value for name, value in rest.items() if name != "errors_by_status"])
    _require_numbers([gap[name] for gap in state.setdefault("gaps", []) for name in ("start", "seconds")])
    _require_numbers([amount for bucket in state.setdefault("history", []) for amount in bucket.values()])


def _require_numbers(values: list[Any]) -> None:
    # Not bool, which is an int, and no integer too large for a float. Looked at together, since there are thousands.
    if not set(map(type, values)) <= {int, float}:
        raise ValueError("what should be a number is none")
    if values and not -1e300 < min(values) <= max(values) < 1e300:
        raise ValueError("a number is too large")


def _require_scalars(values: Iterable[Any]) -> None:
    # What is nested deep enough to be parsed may still be too deep to be written by somebody further down the stack.
    if not set(map(type, values)) <= {str, int, float, bool, type(None)}:
        raise TypeError("a nested value")


def written_age_s(state: Mapping[str, Any], wall_s: float, steady_s: float, boot_id: str) -> float:
    """Return the seconds since the file was written: exact within one boot, else as the wall clocks say.

    Written before this boot by a clock that was ahead, it is at least as old as the boot.
    """
    if boot_id and state.get("boot_id") == boot_id:
        return max(0.0, float(steady_s - state["boottime"]))
    age_s = float(wall_s - state["updated_at"])
    return max(0.0, age_s) if age_s > -_CLOCK_SLACK_S else steady_s


class StateReader:
    """The server's side: reads the file again only when it has changed. For one thread."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._seen: tuple[int, ...] | None = None
        self.state: dict[str, Any] | None = None
        """What the file holds, None where there is no usable file."""
        self.error = "not read yet"
        """Why there is none."""
        self.generation = 0
        """Grows whenever `state` changed."""
        self._content = b""

    def refresh(self) -> None:
        """Bring `state` up to date; costs one stat where nothing has changed. Never raises for a bad file."""
        seen = self._look()
        if seen == self._seen and self.generation:
            return
        self._seen = seen
        self.generation += 1
        try:
            self.state, self._content = _read(self.path)
            self.error = ""
        except UnusableState as error:
            self.state, self._content, self.error = None, b"", str(error)
            if isinstance(error.__cause__, OSError) and seen is not None:
                self._seen = ()  # no property of the file, such as too many open files: look again next time

    def records_json(self) -> bytes | None:
        """Return the member `funding_state` as it stands in the file, None where that is not laid out by a daemon.

        To write a thousand records anew costs more than all else that follows a change of the file.
        """
        if self.state is None or self._content.count(b'"funding_state"') != 1:
            return None
        _, begin, rest = self._content.partition(_RECORDS_BEGIN)
        members, end, _ = rest.partition(_RECORDS_END)
        lines = members.split(_RECORDS_JOINT) if members else []
        as_laid_out = begin and end and len(lines) == len(self.state["funding_state"])
        return b"{%b}" % members if as_laid_out and all(line[:1] + line[-1:] == b'"}' for line in lines) else None

    def _look(self) -> tuple[int, ...] | None:
        try:
            info = os.stat(self.path)
        except OSError:
            return None
        return info.st_ino, info.st_mtime_ns, info.st_size, info.st_dev
