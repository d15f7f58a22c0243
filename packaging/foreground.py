"""Runs daemon and server together in the foreground, for `make run` and `make demo`. Ctrl-C ends both."""

import argparse
import contextlib
import http.client
import ipaddress
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(_ROOT))

# The project is run from its folder, not installed.
from binance_funding.program import EX_UNAVAILABLE  # noqa: E402
from binance_funding.settings import EX_CONFIG, SettingsError, load  # noqa: E402

_STOP_WITHIN_S = 5.0
_FIRST_DATA_WITHIN_S = 5.0
_ROUND_S = 0.2


def _point_to(exchange: subprocess.Popen[str]) -> bool:
    """Wait for the addresses that the simulated exchange prints, and make them settings of the daemon.

    Returns False if the exchange ends before it prints them. It has written the cause to stderr itself.
    """
    assert exchange.stdout is not None
    for _ in range(2):
        name, _, value = exchange.stdout.readline().strip().partition("=")
        if not value:
            return False
        os.environ[name] = value
    return True


def _stop(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        process.wait(_STOP_WITHIN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _reachable(host: str) -> str:
    """Return an address of this machine at which a server that listens on `host` answers."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if address.is_unspecified:
        return "127.0.0.1" if address.version == 4 else "::1"
    return host


def _symbol_count(host: str, port: int) -> int | None:
    """Ask the server how many symbols it knows. None: no server of ours answers."""
    connection = http.client.HTTPConnection(host, port, timeout=1)
    try:
        connection.request("GET", "/funding/health")
        count = json.load(connection.getresponse()).get("symbolCount")
    except (OSError, http.client.HTTPException, ValueError, AttributeError):  # also for the answer of another server
        return None
    finally:
        connection.close()
    return count if isinstance(count, int) else 0


class _Hint:
    """Prints how to ask the server, once: when there is data, or when the server has had none for 5 s."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = _reachable(host), port
        self._answers_since_s: float | None = None
        """When the server first answered, on the steady clock."""
        # Our server is not started yet. If one answers, it is another, and nobody must be sent to it.
        self._is_given = self._count() is not None

    def _count(self) -> int | None:
        return _symbol_count(self._host, self._port)

    def give_when_due(self) -> None:
        """Ask the server, and print the line if it is due."""
        count = None if self._is_given else self._count()
        if count is None:
            return
        now_s = time.monotonic()
        self._answers_since_s = self._answers_since_s or now_s
        if count or now_s - self._answers_since_s >= _FIRST_DATA_WITHIN_S:
            name = f"[{self._host}]" if ":" in self._host else self._host
            path = "/funding/BTCUSDT" if count else "/funding/health"
            print(f"try: curl http://{name}:{self._port}{path}", file=sys.stderr)
            self._is_given = True


def _watch(processes: list[subprocess.Popen[str]], hint: _Hint, signals: list[int]) -> int:
    """Wait for a signal or the end of any program, and give the hint. Returns 0, or the status of the ended program."""
    while not signals:
        for process in processes:
            status = process.poll()
            if status is not None:
                return status
        hint.give_when_due()
        time.sleep(_ROUND_S)
    return 0


def _run(hint: _Hint, signals: list[int], *, demo: bool) -> int:
    """Start the programs, watch them, and stop them in reverse order. Returns the exit status."""
    processes: list[subprocess.Popen[str]] = []
    with contextlib.ExitStack() as stack:

        def start(arguments: list[str], output: int | None = None) -> subprocess.Popen[str]:
            # In a session of its own, a program does not get the terminal's Ctrl-C. This program stops it instead.
            command = [sys.executable, *arguments]
            processes.append(subprocess.Popen(command, stdout=output, text=True, start_new_session=True))
            stack.callback(_stop, processes[-1])
            return processes[-1]

        if demo:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            # A proxy of this host does not reach the simulated exchange. Of no_proxy and NO_PROXY the first is read.
            os.environ.update(no_proxy="127.0.0.1", PYTHONPATH=str(_ROOT), STATE_FILE=f"{folder}/funding_state.json")
            if not _point_to(start(["-m", "tests.exchange"], subprocess.PIPE)):
                return EX_UNAVAILABLE
        start([str(_ROOT / "binance_funding_ws_daemon.py")])
        start([str(_ROOT / "funding_api_server.py")])
        return _watch(processes, hint, signals)


def main() -> int:
    """Run until Ctrl-C, SIGTERM, SIGHUP or the end of a program. Returns 0, or the status of the ended program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", action="store_true", help="against a simulated exchange, state in a temporary folder")
    demo = parser.parse_args().demo
    try:
        settings = load()
    except SettingsError as error:
        print(error, file=sys.stderr)
        return EX_CONFIG
    signals: list[int] = []
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # The handler only notes the signal: an exception could come between the start of a program and its noting.
        # A signal that is ignored at the start, as SIGHUP under nohup, stays ignored.
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, lambda signum, _frame: signals.append(signum))
    return _run(_Hint(settings.api_host, settings.api_port), signals, demo=demo)


if __name__ == "__main__":
    sys.exit(main())
