"""Push: how soon a record reaches many subscribers, what that costs, and what it costs those who ask."""

import contextlib
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from bench.load import Served, wrk
from bench.machine import cpu_s, resident_mb
from bench.rewriter import Rewriter
from bench.server import running_server, sample_state
from bench.table import Line, markdown
from tests.exchange import Market
from tests.support.programs import STATE_FILE

_SUBSCRIBERS = 500
_TICK_S = 3.0
_TICKS = 10
_LOADS = 3
_LOAD_S = 6


def measure(folder: Path) -> str:
    """Return the table of push."""
    state = sample_state(Market(), folder)
    path = folder / STATE_FILE
    with running_server(path, state) as server:
        rewriter = Rewriter(path, state)
        before_mb = resident_mb(server.pid)
        with _subscribers(server) as times:
            idle_mb = resident_mb(server.pid) - before_mb
            before_s = cpu_s(server.pid)
            for _ in range(_TICKS):
                time.sleep(_TICK_S)
                rewriter.write()
            time.sleep(_TICK_S)
            cpu_us = (cpu_s(server.pid) - before_s) / _TICKS / _SUBSCRIBERS * 1e6
            beside_ms = _p99_ms(server, rewriter, folder)
        without_ms = _p99_ms(server, rewriter, folder)
    delays_ms = [
        (time_s - float(written_at)) * 1e3 for written_at in list(times)[:_TICKS] for time_s in times[written_at]
    ]
    last_ms = [(max(times[written_at]) - float(written_at)) * 1e3 for written_at in list(times)[:_TICKS]]
    median_ms = statistics.median(delays_ms)
    lines = [
        Line(
            "file written to update complete, median", f"{median_ms:.0f} ms", promise="250 ms", holds=median_ms <= 250
        ),
        Line("the last of them, median over ticks", f"{statistics.median(last_ms):.0f} ms"),
        Line("CPU for each subscriber and tick", f"{cpu_us:.0f} us"),
        Line("memory for all of them", f"{idle_mb:.1f} MB", promise="under 10 MB", holds=idle_mb < 10),
        Line(
            "one symbol, p99 beside them",
            f"{beside_ms:.1f} ms",
            f"{without_ms:.1f} ms without",
            beside_ms / without_ms,
            "at most 3",
            beside_ms <= 3 * without_ms,
        ),
    ]
    symbols = len(state["funding_state"])
    title = f"Push on one core, {_SUBSCRIBERS} subscribers of all {symbols} symbols, a new state every {_TICK_S:g} s"
    return markdown(title, "", lines)


@contextlib.contextmanager
def _subscribers(server: Served) -> Iterator[dict[str, list[float]]]:
    """Run the subscribers; when they have ended, what is yielded says when each had which state of the file."""
    times: dict[str, list[float]] = {}
    command = [sys.executable, "-m", "bench.subscribers", str(server.port), str(_SUBSCRIBERS)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        if process.stdout.readline() != "ready\n":
            raise RuntimeError("the subscribers did not get their snapshots")
        yield times
        process.stdin.close()
        times |= json.loads(process.stdout.read())


def _p99_ms(server: Served, rewriter: Rewriter, folder: Path) -> float:
    """Load the server with requests for one symbol while its file changes as often as it does in use."""
    done = threading.Event()

    def write() -> None:
        while not done.wait(_TICK_S):
            rewriter.write()

    thread = threading.Thread(target=write, name="ticks")
    thread.start()
    try:
        return statistics.median(wrk(server, "/funding/BTCUSDT", {}, folder, _LOAD_S).p99_ms for _ in range(_LOADS))
    finally:
        done.set()
        thread.join()
