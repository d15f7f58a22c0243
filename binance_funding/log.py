"""Log lines of both programs: one for each event, key=value, and what repeats at growing intervals.

On a terminal a line begins with its time; for the journal, with its priority (man sd-daemon(3), systemd.exec(5)).
A thread of its own writes them, so that a reader of stderr that stands still blocks nothing else.
"""

import logging
import math
import os
import queue
import re
import sys
import threading
import time
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
# What a cause quotes or counts may be something else each time; it is the same cause all the same.
_QUOTATION, _NUMBER = re.compile("['\"{]"), re.compile("[0-9.]+")
_LONGEST_WAIT_S = 3600.0
# So often may a trouble be logged ahead of its time, because it came back or has another cause.
_LINES_AHEAD = 8
# What waits to be written while the reader of stderr stands still; the rest is counted.
_MOST_WAITING = 1000
_FLUSH_WITHIN_S = 0.5


def line(event: str, **facts: Any) -> str:
    """Write one event as a log line: `event key=value key="two words"`. Never more than one line."""
    return " ".join([event, *(f"{key}={_value(value)}" for key, value in facts.items())])


def _value(value: object) -> str:
    text = f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
    if text and text.isprintable() and not set(text) & set(' "='):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else repr(c)[1:-1] for c in escaped) + '"'


class EventLogger(logging.LoggerAdapter):  # type: ignore[type-arg] # it takes none at run time before 3.11
    """Logs events by name with their facts: `info("connected", conn=1)`. Safe to call from any thread.

    DEBUG is what only a search for a fault needs; INFO what happens in the normal course of things, good news included;
    WARNING what went wrong and is dealt with; ERROR what needs somebody.
    """

    def __init__(self, name: str) -> None:
        super().__init__(logging.getLogger(name), {})

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Make a line of event and facts; with exc_info the traceback of the exception being handled follows it."""
        exc_info = kwargs.pop("exc_info", False)
        return line(msg, **kwargs), {"exc_info": exc_info}


@dataclass
class _Trouble:
    since_s: float
    """When it came, or came back."""
    next_s: float
    """When it is due to be logged again."""
    wait_s: float
    lines_ahead: int = _LINES_AHEAD
    suppressed: int = 0
    resolved_s: float = math.inf
    logged: set[str] = field(default_factory=set)
    """The causes that were logged since it came, or came back."""

    def is_due(self, kind: str, now_s: float) -> bool:
        """Tell whether it is to be logged now, and count on that."""
        if now_s >= self.next_s:
            self.next_s = now_s + self.wait_s
            self.wait_s = min(2 * self.wait_s, _LONGEST_WAIT_S)
        elif kind not in self.logged and self.lines_ahead > 0:
            self.lines_ahead -= 1
        else:
            self.suppressed += 1
            return False
        self.logged.add(kind)
        return True


class LogThrottle:
    """Logs a lasting trouble once, then after 1, 2, 4 ... times `first_wait_s` (at most hourly), until it is resolved.

    A trouble that comes back, and a cause not yet logged, are logged at once, up to a limit: what comes and goes is one
    trouble too, until it has stayed away for `first_wait_s`. Safe to call from any thread.
    """

    def __init__(self, logger: EventLogger, steady_s: Callable[[], float], first_wait_s: float = 600.0) -> None:
        self._logger = logger
        self._steady_s = steady_s
        self._first_wait_s = first_wait_s
        self._lock = threading.Lock()  # guards _troubles, shared by the threads that meet the same trouble
        self._troubles: dict[str, _Trouble] = {}

    def warn(
        self, event: str, cause: str = "", level: int = logging.WARNING, *, exc_info: bool = False, **facts: Any
    ) -> None:
        """Log the event with its cause, if it has one, unless it was logged lately."""
        now_s, kind = self._steady_s(), _NUMBER.sub("", _QUOTATION.split(cause, maxsplit=1)[0])
        with self._lock:
            trouble = self._troubles.get(event)
            if trouble is None or now_s - trouble.resolved_s > self._first_wait_s:
                trouble = self._troubles[event] = _Trouble(now_s, next_s=now_s, wait_s=self._first_wait_s)
            if trouble.resolved_s < math.inf:
                trouble.since_s, trouble.resolved_s, trouble.logged = now_s, math.inf, set()
            if not trouble.is_due(kind, now_s):
                return
            suppressed, trouble.suppressed = trouble.suppressed, 0
        because: dict[str, Any] = {"cause": cause} if cause else {}
        repeated: dict[str, Any] = {"repeated": suppressed} if suppressed else {}
        self._logger.log(level, event, exc_info=exc_info, **because, **facts, **repeated)

    def resolve(self, *events: str, log_as: str = "", level: int = logging.INFO, **facts: Any) -> None:
        """End these troubles; where one of them had been logged, log that it is over (`log_as`)."""
        now_s = self._steady_s()
        with self._lock:
            known = filter(None, map(self._troubles.get, events))
            over = [trouble for trouble in known if trouble.resolved_s == math.inf]
            logged = [trouble for trouble in over if trouble.logged]
            for trouble in over:
                trouble.resolved_s = now_s
            for trouble in logged:
                trouble.suppressed = 0
        if logged and log_as:
            self._logger.log(level, log_as, after_s=now_s - min(trouble.since_s for trouble in logged), **facts)


class _JournalFormatter(logging.Formatter):
    """Puts the journald priority before every line, those of a traceback too."""

    def format(self, record: logging.LogRecord) -> str:
        prefix = f"<{_PRIORITIES.get(record.levelno, 6)}>"
        return "\n".join(prefix + line for line in super().format(record).splitlines())


class _Writer(logging.Handler):
    """Writes to a file descriptor in a thread of its own: however long that blocks, logging never does.

    What finds no room among the waiting lines, or cannot be written, is counted and logged as soon as that is possible.
    """

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd
        self._waiting: queue.SimpleQueue[str | threading.Event] = queue.SimpleQueue()
        self._without_room = 0
        threading.Thread(target=self._run, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        if self._waiting.qsize() < _MOST_WAITING:
            self._waiting.put(self.format(record))
        else:
            self._without_room += 1

    def flush(self) -> None:
        """Wait for all lines so far, within a limit; module logging calls it at the end of the program."""
        is_written = threading.Event()
        self._waiting.put(is_written)
        is_written.wait(_FLUSH_WITHIN_S)

    def _run(self) -> None:
        failed = logged = 0
        while True:
            waiting = self._waiting.get()
            if isinstance(waiting, str):
                failed += not self._write(waiting)
            missing = self._without_room + failed - logged
            if missing and self._waiting.empty() and self._write(self._note(missing)):
                logged += missing
            if isinstance(waiting, threading.Event):
                waiting.set()

    def _note(self, missing: int) -> str:
        text = line("log lines left out", count=missing, cause="stderr took no more")
        return self.format(logging.makeLogRecord({"levelno": logging.WARNING, "levelname": "WARNING", "msg": text}))

    def _write(self, text: str) -> bool:
        unwritten = f"{text}\n".encode(errors="backslashreplace")
        try:
            while unwritten:
                unwritten = unwritten[os.write(self._fd, unwritten) :]
        except OSError:  # closed, or its reader is gone: there is nobody to tell
            return False
        return True


def set_up() -> None:
    """Log to stderr: with priorities and without time where the journal listens, with time on a terminal."""
    if sys.stderr is None:  # closed at the start; its number may soon be that of another file
        return
    fd = sys.stderr.fileno()
    handler = _Writer(fd)
    if _is_journal(fd):
        handler.setFormatter(_JournalFormatter("%(message)s"))
    else:
        formatter = logging.Formatter("%(asctime)s.%(msecs)03dZ %(levelname)-7s %(message)s", "%Y-%m-%dT%H:%M:%S")
        formatter.converter = time.gmtime
        handler.setFormatter(formatter)
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    # The libraries also raise what they log. It is logged once, in our words.
    for library in ("websocket", "urllib3"):
        logging.getLogger(library).setLevel(logging.CRITICAL)


def _is_journal(fd: int) -> bool:
    info = os.fstat(fd)
    return os.environ.get("JOURNAL_STREAM") == f"{info.st_dev}:{info.st_ino}"
