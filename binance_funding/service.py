"""What a program needs to live under systemd: notification, journald priorities, and threads that cannot die unseen."""

import argparse
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

from . import __version__
from .settings import EX_CONFIG, Settings, SettingsError, help_text, load

_log = logging.getLogger(__name__)

_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


def notify(state: str) -> bool:
    """Tell systemd, e.g. "READY=1"; does nothing where no service manager listens. Never blocks, never raises OSError.

    False where one should listen and could not be told; the next state may reach it.

    Source: man sd_notify(3), $NOTIFY_SOCKET.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return True
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.setblocking(False)
            sock.connect("\0" + address[1:] if address.startswith("@") else address)
            sock.sendall(state.encode())
    except OSError as error:
        _log.debug("systemd was not told %r: %s", state, error)
        return False
    return True


def watchdog_interval_s() -> float | None:
    """Return how often systemd wants to hear WATCHDOG=1 (half of WatchdogSec), None where it does not.

    Source: man sd_watchdog_enabled(3).
    """
    microseconds, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID")
    if not microseconds.isdigit() or int(microseconds) == 0 or pid not in (None, str(os.getpid())):
        return None
    return int(microseconds) / 2_000_000


class _JournalFormatter(logging.Formatter):
    """Puts the journald priority before every line, those of a traceback too. Source: man sd-daemon(3)."""

    def format(self, record: logging.LogRecord) -> str:
        prefix = f"<{_PRIORITIES.get(record.levelno, 6)}>"
        return "\n".join(prefix + line for line in super().format(record).splitlines())


def set_up_logging(level: str) -> None:
    """Log to stderr: with priorities and without time where the journal listens, with time on a terminal."""
    handler = logging.StreamHandler(sys.stderr)
    if _stderr_is_journal():
        handler.setFormatter(_JournalFormatter("%(message)s"))
    else:
        formatter = logging.Formatter("%(asctime)s.%(msecs)03dZ %(levelname)-7s %(message)s", "%Y-%m-%dT%H:%M:%S")
        formatter.converter = time.gmtime
        handler.setFormatter(formatter)
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for library in ("websocket", "urllib3", "charset_normalizer"):
        # What they have to say reaches us as exceptions, and is told once, in our words.
        logging.getLogger(library).setLevel(logging.CRITICAL)


def _stderr_is_journal() -> bool:
    """Source: man systemd.exec(5), $JOURNAL_STREAM."""
    try:
        info = os.fstat(sys.stderr.fileno())
    except (AttributeError, OSError, ValueError):  # closed, or none at all
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{info.st_dev}:{info.st_ino}"


def start_program(kind: str, description: str) -> Settings:
    """Parse the command line (--help, --version), load the settings, set up logging.

    Exits with status 78 and one line on stderr if a setting is wrong.
    """
    parser = argparse.ArgumentParser(
        description=description, epilog=help_text(kind), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.parse_args()
    set_up_logging("INFO")
    try:
        settings = load()
    except SettingsError as error:
        _log.error("%s", error)
        raise SystemExit(EX_CONFIG) from None
    set_up_logging(settings.log_level)
    return settings


def on_signals(stop: Callable[[], None]) -> None:
    """Call `stop` at SIGTERM or SIGINT; it must only take a note. A second signal ends the process at once."""

    def first(_signum: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        stop()

    signal.signal(signal.SIGTERM, first)
    signal.signal(signal.SIGINT, first)


def ends_well(name: str, work: Callable[[], None]) -> bool:
    """Do a thread's work; False if a bug ended it, which is logged with its traceback."""
    try:
        work()
    except Exception:  # noqa: BLE001 - whatever it was, it must not leave a program that looks alive
        _log.critical("thread %s died of an unexpected error: the program ends", name, exc_info=True)
        return False
    return True


class Threads:
    """Starts every thread of the program and joins them. A thread that dies of a bug ends the program."""

    def __init__(self, on_crash: Callable[[], None]) -> None:
        self._on_crash = on_crash
        self._lock = threading.Lock()  # guards _threads: connections start threads while others are joined
        self._threads: list[threading.Thread] = []
        self.crashed: str | None = None
        """Name of the first thread that died of an unexpected error."""

    def start(self, name: str, target: Callable[[], None]) -> threading.Thread:
        """Start a named thread. It does not keep the process alive: a blocked one must not delay the end."""
        thread = threading.Thread(target=self._guard, args=(name, target), name=name, daemon=True)
        with self._lock:
            self._threads = [known for known in self._threads if known.is_alive()]
            self._threads.append(thread)
            thread.start()
        return thread

    def _guard(self, name: str, target: Callable[[], None]) -> None:
        if not ends_well(name, target):
            self.crashed = self.crashed or name
            self._on_crash()

    def join(self, within_s: float) -> list[str]:
        """Wait for all threads to end, for so long in all; return the names of those that did not."""
        deadline_s = time.monotonic() + within_s
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        return [thread.name for thread in threads if thread.is_alive()]
