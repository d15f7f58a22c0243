"""More than one host: requests a second through the nginx in front, as shipped, beside asking a server directly."""

import http.client
import statistics
import time
from pathlib import Path
from typing import NamedTuple

from bench.load import CLIENTS, Load, Served, wrk
from bench.machine import on_measured_core
from bench.rewriter import Rewriter
from bench.server import Case, get, running_server, sample_state
from bench.table import Line, markdown
from tests.exchange import Market
from tests.support.nginx import Nginx, running_nginx
from tests.support.programs import STATE_FILE, free_port

_REPEATS = 3
_GZIP = {"Accept-Encoding": "gzip"}
_CASES = (
    Case("one symbol", "/funding/BTCUSDT"),
    Case("whole list, gzip", "/funding", _GZIP),
    Case("whole list, gzip, 304", "/funding", _GZIP, revalidates=True),
)


class _Sides(NamedTuple):
    """One case's loads, taken in turns."""

    proxied: list[Load]
    direct: list[Load]


def measure(folder: Path) -> str:
    """Return the table of what nginx adds and takes."""
    state = sample_state(Market(), folder)
    rewriter = Rewriter(folder / STATE_FILE, state)
    folder.chmod(0o755)
    with running_server(folder / STATE_FILE, state) as server, rewriter:
        with on_measured_core():
            running = running_nginx(folder, server.port, free_port(), workers=1)
        with running as nginx:
            lines = [line for case in _CASES for line in _case_lines(case, nginx, server, rewriter, folder)]
    title = f"Through nginx, one worker on one core, {CLIENTS} clients, {len(state['funding_state'])} symbols"
    return markdown(title, "server, directly", lines)


def _case_lines(case: Case, nginx: Nginx, server: Served, rewriter: Rewriter, folder: Path) -> list[Line]:
    # Data that advances has a new tag every second: to be told 304, clients need some that stands still.
    rewriter.advance = not case.revalidates
    rewriter.write()
    headers = dict(case.headers)
    if case.revalidates:
        headers["If-None-Match"] = get(server, case.path, headers)[1]["etag"]
    sides, began_s = _Sides([], []), time.time()
    for _ in range(_REPEATS):
        sides.proxied.append(wrk(Served(nginx.port, nginx.worker_pid()), case.path, headers, folder))
        sides.direct.append(wrk(server, case.path, headers, folder))
    asked_s = [asked.time_s for asked in nginx.asked() if asked.ports and asked.time_s >= began_s]
    reached = len(asked_s) / len(set(map(int, asked_s)))
    proxied, direct = (statistics.median(load.per_s for load in side) for side in sides)
    slowest = [statistics.median(load.p99_ms for load in side) for side in sides]
    return [
        Line(f"{case.what}, requests a second", f"{proxied:,.0f}", f"{direct:,.0f}", proxied / direct),
        Line(f"{case.what}, p99", f"{slowest[0]:.1f} ms", f"{slowest[1]:.1f} ms", slowest[0] / slowest[1]),
        Line(f"{case.what}, of these reach the host", f"{reached:.2f}", promise="under 2", holds=reached < 2),
        Line(f"{case.what}, bytes", f"{_wire_bytes(nginx.port, case.path, headers):,}"),
    ]


def _wire_bytes(port: int, path: str, headers: dict[str, str]) -> int:
    """Return how long an answer is, head included."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    try:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        head = sum(len(f"{name}: {value}\r\n") for name, value in response.getheaders())
        return len(f"HTTP/1.1 {response.status} {response.reason}\r\n\r\n") + head + len(response.read())
    finally:
        connection.close()
