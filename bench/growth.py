"""Growth: what ten and fifty times the rows cost the daemon for each tick, and the server for one symbol."""

import contextlib
import json
import socket
import statistics
from pathlib import Path
from typing import NamedTuple

from bench.load import Load, wrk
from bench.machine import resident_mb
from bench.rewriter import Rewriter
from bench.server import running_server, slowest_ms
from bench.subjects import Subject, market_of, next_messages, running_daemon
from bench.table import Line, markdown
from tests.exchange import Exchange, Market
from tests.support.programs import STATE_FILE

_ROWS = (1_000, 10_000, 50_000)
_WARM_UP_TICKS, _TICKS = 2, 7
_REPEATS = 5
_CHANGES = 5
# Ten times the rows may cost eleven times as much.
_ALLOWANCE = 1.1
_REQUEST = b"GET /funding/BTCUSDT HTTP/1.1\r\nHost: x\r\n\r\n"


class Cost(NamedTuple):
    """What a market of one size costs."""

    tick_s: float
    daemon_mb: float
    load: Load
    after_change_ms: float


def measure(folder: Path) -> str:
    """Return the table of growth: the smallest market is the yardstick of the others."""
    markets = {rows: market_of(rows) for rows in _ROWS}
    tick_s, daemon_mb = _daemons(markets, folder)
    served = _servers(folder)
    costs = {rows: Cost(tick_s[rows], daemon_mb[rows], *served[rows]) for rows in _ROWS}
    smallest = costs[_ROWS[0]]
    lines = [line for rows in _ROWS for line in _lines(rows, costs[rows], smallest)]
    return markdown("Growth, two connections", f"{_ROWS[0]:,} rows", lines)


def _daemons(markets: dict[int, Market], folder: Path) -> tuple[dict[int, float], dict[int, float]]:
    """Feed a daemon for each size in turns; return CPU seconds for a tick, and the highest memory."""
    taken_s: dict[int, list[float]] = {rows: [] for rows in markets}
    with contextlib.ExitStack() as running:
        subjects: dict[int, Subject] = {}
        for rows, market in markets.items():
            exchange = running.enter_context(Exchange(market, tick_s=3600))
            subjects[rows] = running.enter_context(
                running_daemon(exchange, folder / str(rows), 2, REST_POLL_SECONDS=3600, SILENCE_SECONDS=60)
            )
        for turn in range(_WARM_UP_TICKS + _TICKS):
            for rows, market in markets.items():
                cost_s = subjects[rows].take(next_messages(market)).cpu_s
                if turn >= _WARM_UP_TICKS:
                    taken_s[rows].append(cost_s)
        memory_mb = {rows: resident_mb(subject.pid, "VmHWM") for rows, subject in subjects.items()}
    return {rows: statistics.median(costs_s) for rows, costs_s in taken_s.items()}, memory_mb


def _servers(folder: Path) -> dict[int, tuple[Load, float]]:
    """Serve what the daemons have left; return for each size the load for one symbol, and the wait after a change.

    The sizes take turns, so that noise meets all alike.
    """
    loads: dict[int, list[Load]] = {rows: [] for rows in _ROWS}
    waits_ms: dict[int, list[float]] = {rows: [] for rows in _ROWS}
    with contextlib.ExitStack() as running:
        servers = {}
        for rows in _ROWS:
            path = folder / str(rows) / STATE_FILE
            state = json.loads(path.read_text(encoding="utf-8"))
            servers[rows] = running.enter_context(running_server(path, state)), Rewriter(path, state)
        for _ in range(_REPEATS):
            for rows, (server, _rewriter) in servers.items():
                loads[rows].append(wrk(server, "/funding/BTCUSDT", {}, folder))
        for _ in range(_CHANGES):
            for rows, (server, rewriter) in servers.items():
                rewriter.write()
                with socket.create_connection(("127.0.0.1", server.port)) as sock:
                    waits_ms[rows].append(slowest_ms([sock], [_REQUEST]))
    medians = {rows: Load(*map(statistics.median, zip(*taken, strict=True))) for rows, taken in loads.items()}
    return {rows: (medians[rows], statistics.median(waits_ms[rows])) for rows in _ROWS}


def _lines(rows: int, cost: Cost, smallest: Cost) -> list[Line]:
    if cost is smallest:
        return []
    times = rows / _ROWS[0]
    most = times * _ALLOWANCE
    tick_ratio, cpu_ratio = cost.tick_s / smallest.tick_s, cost.load.cpu_us / smallest.load.cpu_us
    return [
        Line(
            f"daemon, CPU for a tick of {rows:,} rows",
            f"{cost.tick_s * 1e3:.1f} ms",
            f"{smallest.tick_s * 1e3:.1f} ms",
            tick_ratio,
            f"at most {most:g}",
            tick_ratio <= most,
        ),
        Line(
            f"daemon, highest memory at {rows:,} rows",
            f"{cost.daemon_mb:.0f} MB",
            f"{smallest.daemon_mb:.0f} MB",
            cost.daemon_mb / smallest.daemon_mb,
        ),
        Line(
            f"server, CPU a request for one symbol of {rows:,}",
            f"{cost.load.cpu_us:.1f} us",
            f"{smallest.load.cpu_us:.1f} us",
            cpu_ratio,
            f"at most {_ALLOWANCE}",
            cpu_ratio <= _ALLOWANCE,
        ),
        Line(
            f"server, first request after a change of {rows:,} rows",
            f"{cost.after_change_ms:.0f} ms",
            f"{smallest.after_change_ms:.0f} ms",
            cost.after_change_ms / smallest.after_change_ms,
        ),
    ]
