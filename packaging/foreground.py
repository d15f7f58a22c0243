"""Runs daemon and server together in the foreground, as `make run` and `make demo` do; Ctrl-C ends both.

Only the standard library: `make run` installs nothing else but the run-time packages.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
_DAEMON, _SERVER = _ROOT / "binance_funding_ws_daemon.py", _ROOT / "funding_api_server.py"
_STOP_WITHIN_S = 5.0


def _start_exchange(environment: dict[str, str]) -> subprocess.Popen[str]:
    """Start the simulated exchange, and point the daemon to it."""
    exchange = _start([sys.executable, "-m", "tests.exchange"], environment, subprocess.PIPE)
    assert exchange.stdout is not None
    for _ in range(2):
        name, _, value = exchange.stdout.readline().strip().partition("=")
        environment[name] = value
    return exchange


def _start(command: list[str], environment: dict[str, str], output: int | None = None) -> subprocess.Popen[str]:
    """Start a program in a session of its own: Ctrl-C reaches it through us, in order, and once."""
    return subprocess.Popen(command, cwd=_ROOT, env=environment, stdout=output, text=True, start_new_session=True)


def _stop(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_WITHIN_S)
    except subprocess.TimeoutExpired:
        process.kill()


def _interrupt(_signum: int, _frame: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """Run until Ctrl-C, SIGTERM, or the end of one program; return 0, or the status of the one that ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", action="store_true", help="against a simulated exchange, state in a temporary folder")
    demo = parser.parse_args().demo
    signal.signal(signal.SIGTERM, _interrupt)
    environment = dict(os.environ)
    processes: list[subprocess.Popen[str]] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            if demo:
                processes.append(_start_exchange(environment))
                environment.setdefault("STATE_FILE", f"{folder}/funding_state.json")
            processes.append(_start([sys.executable, str(_DAEMON)], environment))
            processes.append(_start([sys.executable, str(_SERVER)], environment))
            port = environment.get("API_PORT", "8888")
            print(f"try: curl http://127.0.0.1:{port}/funding/BTCUSDT", file=sys.stderr)
            while all(process.poll() is None for process in processes):
                time.sleep(0.2)
            return next(code for code in (process.poll() for process in processes) if code is not None)
        except KeyboardInterrupt:
            return 0
        finally:
            for process in reversed(processes):
                _stop(process)


if __name__ == "__main__":
    sys.exit(main())
