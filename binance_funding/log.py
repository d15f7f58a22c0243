"""Log lines of both programs: one line for each event, written as key=value; a lasting problem at growing intervals.

On a terminal each line begins with its time, in the journal with its priority (man sd-daemon(3), systemd.exec(5)). A
thread of its own writes the lines, so a reader of stderr that stops reading blocks no other thread.
"""

import contextlib
import logging
import logging.handlers
import math
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
# The interval between two lines about a lasting problem stops growing here.
_LONGEST_WAIT_S = 3600.0
# A problem that keeps returning, or keeps changing its kind, gets this many extra lines before its interval counts.
_EXTRA_LINES = 8
# Lines that wait for a reader of stderr that has stopped reading. Further lines are dropped and counted.
_MAX_WAITING_LINES = 1000
_FLUSH_WITHIN_S = 0.5


def line(event: str, **facts: Any) -> str:
    """Write one event as a log line: `event key=value key="two words"`. Never more than one line."""
    return " ".join([event, *(f"{key}={_value(value)}" for key, value in facts.items())])


def printable(text: str) -> str:
    """Replace everything unprintable by its Python escape: control characters, line separators, lone surrogates.

    For every text from outside (the exchange, a proxy, a client, a file name) that the log, the state file, the
    terminal or systemd is to show.
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _value(value: object) -> str:
    text = _number(value) if isinstance(value, float) else str(value)
    if text and text.isprintable() and not set(text) & set(' "='):
        return text
    return '"' + printable(text.replace("\\", "\\\\").replace('"', '\\"')) + '"'


def _number(value: float) -> str:
    """Write three decimals, or two significant digits of a small number: a funding rate of 0.0002 is not 0."""
    text = f"{value:.3f}" if abs(value) >= 0.1 else f"{float(f'{value:.2g}'):.8f}"
    return text.rstrip("0").rstrip(".")


class EventLogger(logging.LoggerAdapter):  # type: ignore[type-arg] # it takes none at run time before 3.11
    """Logs events by name with their facts: `info("connected", conn=1)`. Safe to call from any thread.

    DEBUG helps to find a fault. INFO is normal operation, good news included. WARNING is a problem that the program
    deals with. ERROR is a problem that a person has to deal with.
    """

    def __init__(self, name: str) -> None:
        super().__init__(logging.getLogger(name), {})

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Make a line of event and facts; with exc_info, the traceback of the current exception follows it."""
        exc_info = kwargs.pop("exc_info", False)
        return line(msg, **kwargs), {"exc_info": exc_info}


@dataclass
class _Problem:
    """What the throttle remembers of one event."""

    since_s: float
    """When the problem began, or returned."""
    next_s: float
    """When the next line is due, if the problem lasts."""
    wait_s: float
    """Time between the next line and the line after it."""
    extra_lines: int = _EXTRA_LINES
    """Number of lines that may still be logged earlier than due."""
    suppressed: int = 0
    """Calls since the last line."""
    resolved_s: float = math.inf
    logged_kinds: set[str] = field(default_factory=set)
    """Kinds that were logged since the problem began or returned."""

    def is_due(self, kind: str, now_s: float) -> bool:
        """Decide whether to log a line now. If so, the caller must log it."""
        if now_s >= self.next_s:
            self.next_s = now_s + self.wait_s
            self.wait_s = min(2 * self.wait_s, _LONGEST_WAIT_S)
        elif kind not in self.logged_kinds and self.extra_lines > 0:
            self.extra_lines -= 1
        else:
            self.suppressed += 1
            return False
        self.logged_kinds.add(kind)
        return True


class LogThrottle:
    """Logs a lasting problem at once, then after 1, 2, 4 ... times `first_wait_s` (at most hourly), until resolved.

    A problem that returns, or whose kind changes, is logged at once, up to a limit. A problem that was resolved for
    longer than `first_wait_s` is a new one. Safe to call from any thread.
    """

    def __init__(self, logger: EventLogger, steady_s: Callable[[], float], first_wait_s: float = 600.0) -> None:
        self._logger = logger
        self._steady_s = steady_s
        self._first_wait_s = first_wait_s
        self._lock = threading.Lock()  # guards _problems: several threads can meet the same problem
        self._problems: dict[str, _Problem] = {}

    def warn(
        self,
        event: str,
        cause: str = "",
        level: int = logging.WARNING,
        *,
        kind: str = "",
        exc_info: bool = False,
        **facts: Any,
    ) -> None:
        """Log the event, with its cause and facts, unless a line about the same kind of it was logged recently."""
        now_s = self._steady_s()
        with self._lock:
            problem = self._problems.get(event)
            if problem is None or now_s - problem.resolved_s > self._first_wait_s:
                problem = self._problems[event] = _Problem(now_s, next_s=now_s, wait_s=self._first_wait_s)
            if problem.resolved_s < math.inf:
                problem.since_s, problem.resolved_s, problem.logged_kinds = now_s, math.inf, set()
            if not problem.is_due(kind, now_s):
                return
            suppressed, problem.suppressed = problem.suppressed, 0
        because: dict[str, Any] = {"cause": cause} if cause else {}
        repeated: dict[str, Any] = {"repeated": suppressed} if suppressed else {}
        self._logger.log(level, event, exc_info=exc_info, **because, **facts, **repeated)

    def resolve(self, *events: str, log_as: str = "", level: int = logging.INFO, **facts: Any) -> None:
        """End these problems. If one of them was logged since it began, log `log_as` with the time that it lasted."""
        now_s = self._steady_s()
        with self._lock:
            known = filter(None, map(self._problems.get, events))
            ended = [problem for problem in known if problem.resolved_s == math.inf]
            logged = [problem for problem in ended if problem.logged_kinds]
            for problem in ended:
                problem.resolved_s = now_s
            for problem in logged:
                problem.suppressed = 0
        if logged and log_as:
            self._logger.log(level, log_as, after_s=now_s - min(problem.since_s for problem in logged), **facts)


class _JournalFormatter(logging.Formatter):
    """Puts the journald priority before every line, those of a traceback too."""

    def format(self, record: logging.LogRecord) -> str:
        prefix = f"<{_PRIORITIES.get(record.levelno, 6)}>"
        return "\n".join(prefix + line for line in super().format(record).splitlines())


class _WaitingLines(logging.handlers.QueueHandler):
    """Queues each line for the thread that writes it. Never blocks: with a full queue the line is dropped."""

    def __init__(self) -> None:
        self.lines: queue.Queue[logging.LogRecord] = queue.Queue(_MAX_WAITING_LINES)
        self.dropped = 0
        super().__init__(self.lines)
        self.setFormatter(logging.Formatter("%(message)s"))  # basicConfig would set another format

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.lines.put_nowait(record)
        except queue.Full:
            self.dropped += 1

    def flush(self) -> None:
        """Wait until all lines are written, for a limited time. The logging module calls it when the program ends."""
        with self.lines.all_tasks_done:
            self.lines.all_tasks_done.wait_for(lambda: not self.lines.unfinished_tasks, _FLUSH_WITHIN_S)


class _StderrWriter(logging.handlers.QueueListener):
    """Writes the waiting lines to stderr in a thread of its own, and says how many were dropped before them.

    It is no logging.Handler: at the end of the program the logging module would wait for the lock of one that blocks.
    """

    def __init__(self, waiting: _WaitingLines, fd: int, formatter: logging.Formatter) -> None:
        super().__init__(waiting.lines)
        self._waiting = waiting
        self._fd = fd
        self._formatter = formatter
        self._reported = 0  # of the dropped lines

    def handle(self, record: logging.LogRecord) -> None:
        """Write one line. A stderr that is closed or broken is ignored: no other place is left to report it."""
        with contextlib.suppress(OSError):
            self._write(record)
            dropped = self._waiting.dropped - self._reported
            if dropped and self._waiting.lines.empty():
                text = line("log lines dropped", count=dropped, cause="stderr was not read")
                self._write(logging.makeLogRecord({"levelno": logging.WARNING, "levelname": "WARNING", "msg": text}))
                self._reported += dropped

    def _write(self, record: logging.LogRecord) -> None:
        os.write(self._fd, f"{self._formatter.format(record)}\n".encode(errors="backslashreplace"))


def set_up() -> None:
    """Log to stderr: with priorities and without time where the journal listens, with time elsewhere."""
    if sys.stderr is None:  # It was closed at the start, and its file descriptor may become that of another file.
        return
    fd = sys.stderr.fileno()
    formatter: logging.Formatter = _JournalFormatter("%(message)s")
    if not _is_journal(fd):
        formatter = logging.Formatter("%(asctime)s.%(msecs)03dZ %(levelname)-7s %(message)s", "%Y-%m-%dT%H:%M:%S")
        formatter.converter = time.gmtime
    waiting = _WaitingLines()
    _StderrWriter(waiting, fd, formatter).start()
    logging.basicConfig(level=logging.INFO, handlers=[waiting])
    # The errors of these libraries reach the programs as exceptions, and are logged once, in the programs' own words.
    for library in ("websocket", "urllib3"):
        logging.getLogger(library).setLevel(logging.CRITICAL)


def _is_journal(fd: int) -> bool:
    info = os.fstat(fd)
    return os.environ.get("JOURNAL_STREAM") == f"{info.st_dev}:{info.st_ino}"
