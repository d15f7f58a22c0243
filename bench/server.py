"""The server: requests a second and the slowest of them, beside nginx serving the same answers as files."""

import contextlib
import http.client
import json
import os
import selectors
import socket
import statistics
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bench.load import CLIENTS, File, Load, Served, running_nginx, wrk
from bench.machine import cpu_s, on_measured_core, resident_mb, user_and_kernel_s
from bench.rewriter import Rewriter
from bench.subjects import next_messages, running_daemon
from bench.table import Line, markdown
from tests.exchange import Exchange, Market
from tests.support.programs import STATE_FILE, Program, free_port

_REPEATS = 3
_IDLE_CONNECTIONS = 1024
_CHANGES = 40
_REST_S = 5.0
_PATIENCE_S = 30.0
_LONGEST_CHANGE_MS = 15
_JOURNEY = ("/funding/BTCUSDT", "/funding", "/funding/health", "/funding/report", "/metrics")


class Case(NamedTuple):
    """One kind of request."""

    what: str
    path: str
    headers: Mapping[str, str] = {}
    revalidates: bool = False
    """Ask whether the answer that is known still holds."""
    promise: str = ""
    """Whose rate is promised: a share of nginx's, or of our own for one symbol."""


_OF_NGINX, _OF_SYMBOL = "at least 0.9", "a fifth of one symbol"
_CASES = (
    Case("one symbol", "/funding/BTCUSDT", promise=_OF_NGINX),
    Case("whole list", "/funding"),
    Case("whole list, gzip", "/funding", {"Accept-Encoding": "gzip"}, promise=_OF_NGINX),
    Case("whole list, 304", "/funding", revalidates=True, promise=_OF_NGINX),
    Case("health", "/funding/health", promise=_OF_SYMBOL),
    # As Prometheus asks for them.
    Case("metrics, gzip", "/metrics", {"Accept-Encoding": "gzip"}, promise=_OF_SYMBOL),
    Case("report", "/funding/report", promise=_OF_SYMBOL),
)


class Both(NamedTuple):
    """One case's loads, taken in turns."""

    ours: list[Load]
    nginx: list[Load]


def measure(folder: Path) -> str:
    """Return the table of the server."""
    state = sample_state(Market(), folder)
    path = folder / STATE_FILE
    with running_server(path, state) as server:
        loads, split = _compare(server, Rewriter(path, state), folder)
        lines = [line for case in _CASES for line in _case_lines(case, loads)]
        lines += _change_lines(server, Rewriter(path, state))
        lines += _idle_lines(server, Rewriter(path, state), folder)
        lines.append(_rest_line(server))
    title = (
        f"Server on one core, {CLIENTS} clients, {len(state['funding_state'])} symbols, its file replaced every second"
    )
    return "\n\n".join([markdown(title, "nginx, a file", lines), split])


def sample_state(market: Market, folder: Path) -> dict[str, Any]:
    """Return what a daemon has written after two ticks of this market."""
    with (
        Exchange(market, tick_s=3600) as exchange,
        running_daemon(exchange, folder / f"sample-{len(market.symbols)}", 2) as daemon,
    ):
        for _ in range(2):
            daemon.take(next_messages(market))
        state: dict[str, Any] = json.loads(daemon.path.read_text(encoding="utf-8"))
        return state


@contextlib.contextmanager
def running_server(path: Path, state: dict[str, Any]) -> Iterator[Served]:
    """Run the server on the measured core over a file with this state."""
    Rewriter(path, state).write()
    port = free_port()
    settings = {"API_PORT": port, "STATE_FILE": path, "API_MAX_CONNECTIONS": 2 * _IDLE_CONNECTIONS}
    with on_measured_core():
        program = Program("funding_api_server.py", path.parent, settings)
    with program:
        program.wait_for_line("listening")
        yield Served(port, program.process.pid)


def get(server: Served, path: str, headers: Mapping[str, str]) -> tuple[bytes, dict[str, str]]:
    """Ask once; return body and headers, their names in lower case."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=_PATIENCE_S)
    try:
        connection.request("GET", path, headers=dict(headers))
        response = connection.getresponse()
        return response.read(), {name.lower(): value for name, value in response.getheaders()}
    finally:
        connection.close()


def _compare(server: Served, rewriter: Rewriter, folder: Path) -> tuple[dict[str, Both], str]:
    """Load both servers in turns, case by case; return the loads, and where the time for one symbol goes."""
    files = {}
    for number, case in enumerate(_CASES):
        body, headers = get(server, case.path, case.headers)
        files[f"/{number}"] = File(body, headers.get("content-encoding", ""))
    loads: dict[str, Both] = {}
    with running_nginx(folder, files) as nginx, rewriter:
        before = user_and_kernel_s(server.pid), user_and_kernel_s(nginx.pid)
        for number, case in enumerate(_CASES):
            # Data that advances has a new tag every second: to be told 304, clients need some that stands still.
            rewriter.advance = not case.revalidates
            rewriter.write()
            both = loads[case.what] = Both([], [])
            for _ in range(_REPEATS):
                both.ours.append(_load(server, case, case.path, folder))
                both.nginx.append(_load(nginx, case, f"/{number}", folder))
            if number == 0:
                split = (
                    f"CPU for one symbol: {_split('server', server, before[0])}, {_split('nginx', nginx, before[1])}."
                )
    return loads, split


def _load(server: Served, case: Case, path: str, folder: Path) -> Load:
    headers = case.headers
    if case.revalidates:
        headers = {"If-None-Match": get(server, path, headers)[1]["etag"]}
    return wrk(server, path, headers, folder)


def _case_lines(case: Case, loads: Mapping[str, Both]) -> list[Line]:
    both = loads[case.what]
    ours, nginx = (statistics.median(load.per_s for load in side) for side in both)
    symbol = statistics.median(load.per_s for load in loads[_CASES[0].what].ours)
    holds = {_OF_NGINX: ours >= 0.9 * nginx, _OF_SYMBOL: ours >= 0.2 * symbol}.get(case.promise)
    lines = [
        Line(f"{case.what}, requests a second", f"{ours:,.0f}", f"{nginx:,.0f}", ours / nginx, case.promise, holds)
    ]
    ours, nginx = (statistics.median(load.cpu_us for load in side) for side in both)
    lines.append(Line(f"{case.what}, CPU a request", f"{ours:.1f} us", f"{nginx:.1f} us", ours / nginx))
    if case is _CASES[0]:
        ours, nginx = (statistics.median(load.p99_ms for load in side) for side in both)
        holds = ours <= 2 * nginx
        lines.append(Line(f"{case.what}, p99", f"{ours:.1f} ms", f"{nginx:.1f} ms", ours / nginx, "at most 2", holds))
    return lines


def _split(name: str, server: Served, before_s: tuple[float, float]) -> str:
    """Say which part of the CPU seconds since then went to the program, and which to the kernel on its behalf."""
    program_s, kernel_s = (
        after - before for before, after in zip(before_s, user_and_kernel_s(server.pid), strict=True)
    )
    return f"{name} {program_s / (program_s + kernel_s):.0%} in the program and the rest in the kernel"


def _change_lines(server: Served, rewriter: Rewriter) -> list[Line]:
    """Replace the file, then ask at once: for one symbol, and for every kind of answer on a connection of its own."""
    requests = [f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode() for path in _JOURNEY]
    requests.append(b"GET /funding HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\n\r\n")
    one_ms, all_ms = [], []
    with contextlib.ExitStack() as opened:
        socks = [opened.enter_context(socket.create_connection(("127.0.0.1", server.port))) for _ in requests]
        for _ in range(_CHANGES):
            rewriter.write()
            one_ms.append(slowest_ms(socks[:1], requests[:1]))
            rewriter.write()
            all_ms.append(slowest_ms(socks, requests))
    return [
        _change_line("one symbol, first request after a change", one_ms),
        _change_line("slowest of all kinds asked at once after a change", all_ms),
    ]


def _change_line(what: str, waits_ms: list[float]) -> Line:
    median_ms, longest_ms = statistics.median(waits_ms), max(waits_ms)
    words = f"{median_ms:.1f} ms, longest {longest_ms:.1f} ms"
    return Line(what, words, promise=f"at most {_LONGEST_CHANGE_MS} ms", holds=longest_ms <= _LONGEST_CHANGE_MS)


def slowest_ms(socks: list[socket.socket], requests: list[bytes]) -> float:
    """Send one request on each connection and wait for all answers; return how long the last one took."""
    start_s = time.monotonic()
    received = {sock: bytearray() for sock in socks}
    with selectors.DefaultSelector() as selector:
        for sock, request in zip(socks, requests, strict=True):
            sock.sendall(request)
            selector.register(sock, selectors.EVENT_READ, sock)
        while selector.get_map():
            for key, _ in selector.select(_PATIENCE_S):
                received[key.data] += key.data.recv(1 << 20)
                if _is_complete(received[key.data]):
                    selector.unregister(key.data)
    return (time.monotonic() - start_s) * 1e3


def _is_complete(answer: bytearray) -> bool:
    head, _, body = answer.partition(b"\r\n\r\n")
    length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
    return bool(length) and len(body) >= int(length)


def _idle_lines(server: Served, rewriter: Rewriter, folder: Path) -> list[Line]:
    """Hold connections open that ask nothing, and see what they cost those that ask."""
    symbol = _CASES[0]
    with contextlib.ExitStack() as opened, rewriter:
        before_mb = resident_mb(server.pid)
        without = [_load(server, symbol, symbol.path, folder) for _ in range(_REPEATS)]
        for _ in range(_IDLE_CONNECTIONS):
            opened.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        beside = [_load(server, symbol, symbol.path, folder) for _ in range(_REPEATS)]
        grown_mb = resident_mb(server.pid) - before_mb
    p99_ms, before_ms = (statistics.median(load.p99_ms for load in loads) for loads in (beside, without))
    words = f"{_IDLE_CONNECTIONS} idle connections"
    return [
        Line(f"memory for {words}", f"{grown_mb:.1f} MB", promise="under 10 MB", holds=grown_mb < 10),
        Line(f"one symbol, p99 beside {words}", f"{p99_ms:.1f} ms", f"{before_ms:.1f} ms without", p99_ms / before_ms),
        Line("memory (RSS) after all this", f"{resident_mb(server.pid):.1f} MB"),
    ]


def _rest_line(server: Served) -> Line:
    """Ask nothing, and see what the server does."""
    time.sleep(1)
    before_s = cpu_s(server.pid)
    time.sleep(_REST_S)
    used_s = cpu_s(server.pid) - before_s
    ticks = int(used_s * os.sysconf("SC_CLK_TCK"))
    words = f"{ticks} clock ticks ({used_s * 1e3:.1f} ms)"
    return Line(f"CPU in {_REST_S:g} s without a request", words, promise="0", holds=ticks == 0)
