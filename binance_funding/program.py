"""What both programs have in common: command line, exit statuses, signals, retries at the start, and threads.

If a thread dies, the program ends. So no program stays alive that does only a part of its work.
"""

import argparse
import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import TypeVar

from . import __version__, log, systemd
from .clock import Deadline
from .log import EventLogger, LogThrottle
from .settings import EX_CONFIG, Settings, SettingsError, help_text, load, warnings

EX_OK, EX_UNAVAILABLE, EX_SOFTWARE, EX_OSERR, EX_CANTCREAT, EX_TEMPFAIL = 0, 69, 70, 71, 73, 75

_log = EventLogger(__name__)
T = TypeVar("T")
Explain = Callable[[OSError], tuple[str, int]]
"""Turns an error into a sentence and an exit status."""


def start_program(
    kind: str,
    description: str,
    check: Callable[[Settings], None] = lambda _: None,
    check_host: Callable[[Settings], int] | None = None,
) -> Settings:
    """Parse the command line (--help, --version), set up logging, load the settings and check them further.

    Logs a line for each setting that harms the service or has no effect. Exits with status 78 and one line on stderr if
    the settings are wrong. If `check_host` is given, the option --check calls it and exits with the status it returns.
    """
    parser = argparse.ArgumentParser(
        description=description, epilog=help_text(kind), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=__version__)
    if check_host:
        parser.add_argument("--check", action="store_true", help="tell why it does or does not work on this host")
    arguments = parser.parse_args()
    try:
        log.set_up()
    except RuntimeError as error:  # the thread that writes the log cannot be started
        print(f"{parser.prog}: {error}", file=sys.stderr)
        raise SystemExit(EX_OSERR) from None
    try:
        settings = load()
        logging.getLogger().setLevel(settings.log_level)
        if check_host and arguments.check:
            raise SystemExit(check_host(settings))
        for sentence in warnings(settings):
            _log.warning("settings", warning=sentence)
        check(settings)
    except SettingsError as error:
        if check_host and arguments.check:
            print(f"FAIL settings: {error}; correct it in the environment or in .env")
            raise SystemExit(1) from None
        _log.error(str(error))
        raise SystemExit(EX_CONFIG) from None
    return settings


class StopRequest:
    """A request to stop. A signal handler or any thread makes it, and the main thread waits for it.

    A threading.Event does not work here. Its `set` needs a lock. If the signal interrupts `wait` while that holds the
    lock, the handler waits for ever. SimpleQueue.put is reentrant. Source: docs.python.org, module queue.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[None] = queue.SimpleQueue()

    def make(self) -> None:
        """Make the request. Returns at once."""
        self._queue.put(None)

    def wait(self, timeout_s: float) -> bool:
        """Wait for a request, but no longer than the timeout. Return whether there is one."""
        try:
            self._queue.get(timeout=timeout_s)
        except queue.Empty:
            return False
        self._queue.put(None)
        return True


def on_signals(stop: Callable[[], None]) -> None:
    """Call `stop` at SIGTERM, SIGINT or SIGHUP; it must be reentrant. A second signal ends the process.

    A signal that is ignored when the program starts stays ignored: `nohup` ignores SIGHUP for the programs it runs.
    """
    numbers = signal.SIGTERM, signal.SIGINT, signal.SIGHUP
    heeded = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]

    def first(_number: int, _frame: FrameType | None) -> None:
        for number in heeded:
            signal.signal(number, signal.SIG_DFL)
        stop()

    for number in heeded:
        signal.signal(number, first)


def acquire(attempt: Callable[[], T], explain: Explain, stop: StopRequest, retry_s: float = 1.0) -> T:
    """Call `attempt` and return its result. For the start of the program, in the main thread.

    If it raises OSError, the program logs the sentence of `explain` and exits with its status. Under systemd, which
    would restart the program every second, it does not exit. It tries again every second, until the attempt succeeds
    or a stop is requested, and logs the sentence less and less often.
    """
    throttle = LogThrottle(_log, time.monotonic)
    while True:
        try:
            return attempt()
        except OSError as error:
            sentence, status = explain(error)
        if not os.environ.get("NOTIFY_SOCKET"):
            _log.error(sentence)
            raise SystemExit(status)
        throttle.warn("waiting", sentence, logging.ERROR, next="tried every second")
        # The start may take 10 s more from now. Source: man sd_notify(3).
        systemd.notify(f"EXTEND_TIMEOUT_USEC=10000000\nSTATUS=waiting: {sentence}")
        if stop.wait(retry_s):
            raise SystemExit(EX_OK)


class Threads:
    """Starts and joins the threads of the program. Requests a stop if a thread dies or cannot be started."""

    def __init__(self, stop_request: StopRequest | None = None) -> None:
        self.stop_request = stop_request or StopRequest()
        self.crashed: str | None = None
        """Name of the first thread that died of an unexpected error or could not be started; None if there is none."""
        self._exit_status = EX_OK
        self._lock = threading.Lock()  # guards _threads: connections start threads while others are joined
        self._threads: list[threading.Thread] = []

    def start(self, name: str, work: Callable[[], None], *, is_needed: bool = True) -> bool:
        """Start a daemon thread of this name. Return whether it was started.

        If the host allows no more threads and the thread is needed, request a stop.
        """
        thread = threading.Thread(target=self.guard, args=(name, work), name=name, daemon=True)
        try:
            with self._lock:
                thread.start()
                self._threads = [*filter(threading.Thread.is_alive, self._threads), thread]
        except RuntimeError as error:  # the limit of threads is reached, or there is no memory for the stack
            if is_needed:
                _log.log(logging.CRITICAL, "thread not started", thread=name, cause=error, next="the program ends")
                self._end(name, EX_OSERR)
            return False
        return True

    def guard(self, name: str, work: Callable[[], None]) -> None:
        """Run the work of a thread, in this thread. If the work raises, log the error and request a stop."""
        try:
            work()
        except Exception:  # noqa: BLE001 - without this, the program would run on without the thread
            _log.log(logging.CRITICAL, "thread died", exc_info=True, thread=name, next="the program ends")
            self._end(name, EX_SOFTWARE)

    def _end(self, name: str, exit_status: int) -> None:
        if self.crashed is None:
            self.crashed, self._exit_status = name, exit_status
        self.stop_request.make()

    def join(self, within_s: float) -> list[str]:
        """Wait until all threads have ended, for `within_s` in all. Return the names of the threads that still run."""
        deadline = Deadline(within_s)
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            thread.join(deadline.remaining_s())
        return [thread.name for thread in threads if thread.is_alive()]

    def exit_status(self) -> int:
        """Return the exit status of the program."""
        return self._exit_status
