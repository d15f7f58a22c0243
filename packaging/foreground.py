"""Runs daemon and server together in the foreground, as `make run` and `make demo` do; Ctrl-C ends both."""

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(_ROOT))

from binance_funding.settings import EX_CONFIG, SettingsError, load  # noqa: E402 - the project is run from its folder

_DAEMON, _SERVER = _ROOT / "binance_funding_ws_daemon.py", _ROOT / "funding_api_server.py"
_STOP_WITHIN_S = 5.0
_ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _start(command: list[str], output: int | None = None) -> subprocess.Popen[str]:
    """Start a program in a session of its own: Ctrl-C reaches it through us, in order, and once."""
    return subprocess.Popen(command, cwd=os.getcwd(), stdout=output, text=True, start_new_session=True)


def _start_exchange() -> subprocess.Popen[str]:
    """Start the simulated exchange, and point the daemon to it."""
    os.environ["PYTHONPATH"] = str(_ROOT)
    exchange = _start([sys.executable, "-m", "tests.exchange"], subprocess.PIPE)
    assert exchange.stdout is not None
    for _ in range(2):
        name, _, value = exchange.stdout.readline().strip().partition("=")
        os.environ[name] = value
    return exchange


def _stop(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        process.wait(_STOP_WITHIN_S)
    except subprocess.TimeoutExpired:
        process.kill()


def _interrupt(_signum: int, _frame: object) -> None:
    # Once is enough: a second one would leave programs behind that nobody stops.
    for signum in _ENDING_SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
    raise KeyboardInterrupt


def _listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


def _watch(processes: list[subprocess.Popen[str]], host: str, port: int, hint: str) -> int:
    """Wait for the end of any program; return its status. Give the hint as soon as somebody listens."""
    while True:
        for process in processes:
            status = process.poll()
            if status is not None:
                return status
        if hint and _listens(host, port):
            print(hint, file=sys.stderr)
            hint = ""
        time.sleep(0.2)


def main() -> int:
    """Run until Ctrl-C, SIGTERM, SIGHUP, or the end of one program; return 0, or the status of the one that ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", action="store_true", help="against a simulated exchange, state in a temporary folder")
    demo = parser.parse_args().demo
    try:
        settings = load()
    except SettingsError as error:
        print(error, file=sys.stderr)
        return EX_CONFIG
    for signum in _ENDING_SIGNALS:
        signal.signal(signum, _interrupt)
    processes: list[subprocess.Popen[str]] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            if demo:
                processes.append(_start_exchange())
                os.environ["STATE_FILE"] = f"{folder}/funding_state.json"
            processes.append(_start([sys.executable, str(_DAEMON)]))
            host, port = settings.api_host, settings.api_port
            hint = f"try: curl http://{f'[{host}]' if ':' in host else host}:{port}/funding/BTCUSDT"
            if _listens(host, port):
                hint = ""  # somebody else does, as the server is about to say
            processes.append(_start([sys.executable, str(_SERVER)]))
            return _watch(processes, host, port, hint)
        except KeyboardInterrupt:
            return 0
        finally:
            for process in reversed(processes):
                _stop(process)


if __name__ == "__main__":
    sys.exit(main())
