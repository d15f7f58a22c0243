"""Every bad day ends in one clear line that names the cause, and in correct behaviour afterwards."""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.exchange import FUTURE, STREAM, Exchange, Market, envelope
from tests.programs import STATE_FILE, Daemon, Program, Server, eventually, free_port

TICK_S = 0.25


def small_market() -> Market:
    """Return a market of few symbols: these tests are about what happens, not about how much of it."""
    return Market(usd_m=20, tradfi=5, coin_m=2, fundless=2)


@pytest.fixture
def exchange() -> Iterator[Exchange]:
    """A small exchange that ticks four times a second."""
    with Exchange(small_market(), tick_s=TICK_S) as exchange:
        yield exchange


def tells_calmly(daemon: Daemon, most_lines: int = 20) -> None:
    """Check the log: no traceback, no flood, every line a whole one."""
    assert not any("Traceback" in line for line in daemon.log), "\n".join(daemon.log)
    assert len(daemon.log) <= most_lines, "\n".join(daemon.log)
    assert all(re.match(r"\d{4}-\d\d-\d\dT[\d:.]+Z (INFO|WARNING|ERROR) ", line) for line in daemon.log)


def recovers(daemon: Daemon, connections: int = 2) -> None:
    """Check that all is well again: both connections live, every record advancing."""
    daemon.wait_for_live(connections)
    daemon.wait_for_newer_data()


# Connecting


@pytest.mark.parametrize(
    ("arrange", "line"),
    [
        pytest.param(lambda e: e.down(rest=False), "connection refused", id="refused"),
        pytest.param(lambda e: e.refuse_handshakes(403), "firewall .*HTTP 403", id="403"),
        pytest.param(lambda e: e.refuse_handshakes(418, retry_after_s=1), "banned this IP.*HTTP 418", id="418"),
        pytest.param(lambda e: e.refuse_handshakes(429, retry_after_s=1), "too many requests.*HTTP 429", id="429"),
        pytest.param(lambda e: e.refuse_handshakes(451), "does not serve this country.*HTTP 451", id="451"),
        pytest.param(lambda e: e.refuse_handshakes(503), "trouble of its own.*HTTP 503", id="503"),
        pytest.param(lambda e: e.hang_handshakes(), "no handshake within|no answer in time", id="hanging handshake"),
        pytest.param(lambda e: e.stall(FUTURE), "no new mark prices", id="black hole from the start"),
    ],
)
def test_connecting_fails_then_heals(
    exchange: Exchange, tmp_path: Path, arrange: Callable[[Exchange], None], line: str
) -> None:
    """The cause is named once, REST serves meanwhile, and the stream comes by itself."""
    arrange(exchange)
    with Daemon(exchange, tmp_path) as daemon:
        daemon.wait_for_line(f"WARNING connect failed cause=.*({line})")
        eventually(daemon.records, "data from REST")
        exchange.up(rest=False)
        exchange.accept_handshakes()
        exchange.behave(FUTURE)
        recovers(daemon)
        daemon.wait_for_line("INFO +stream recovered")
        tells_calmly(daemon)


def test_name_that_cannot_be_resolved_gives_way_to_the_next(exchange: Exchange, tmp_path: Path) -> None:
    """DNS failure is told as such, and the next candidate is used."""
    urls = f"ws://exchange.invalid/market,{exchange.ws_url}"
    with Daemon(exchange, tmp_path, BINANCE_WS_URLS=urls) as daemon:
        daemon.wait_for_line("connect failed cause=.*DNS")
        recovers(daemon)
        tells_calmly(daemon)


class TlsFront:
    """Takes TLS connections and passes their bytes on to a port of the exchange."""

    def __init__(self, context: ssl.SSLContext, target_port: int) -> None:
        self._context = context
        self._target_port = target_port
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self.port = 0
        self._thread = threading.Thread(target=self._run, name="tls-front")

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._server = self._loop.run_until_complete(
            asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._context)
        )
        self.port = self._server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0.1))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        await asyncio.gather(self._pass(reader, inner_writer), self._pass(inner_reader, writer), return_exceptions=True)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while chunk := await reader.read(65536):
                writer.write(chunk)
                await writer.drain()
        finally:
            writer.close()

    def __enter__(self) -> "TlsFront":
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)


@contextmanager
def tls_front(exchange: Exchange) -> Iterator[tuple[str, trustme.CA]]:
    """Put TLS before the exchange; yield the wss:// address and the authority that vouches for it."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    port = int(exchange.ws_url.split(":")[2].split("/")[0])
    with TlsFront(context, port) as front:
        yield f"wss://127.0.0.1:{front.port}/market/stream?streams=!markPrice@arr", authority


def test_certificate_nobody_vouches_for_is_refused(exchange: Exchange, tmp_path: Path) -> None:
    """TLS failures are told as such; not one byte of data is believed."""
    with tls_front(exchange) as (url, _), Daemon(exchange, tmp_path, BINANCE_WS_URLS=url) as daemon:
        daemon.wait_for_line("connect failed cause=.*TLS: .*certificate verify failed")
        assert daemon.status()["messages_received"] == 0
        assert exchange.connections == []
        tells_calmly(daemon)


@pytest.mark.parametrize("disturb", ["drop", "reset", "stall"])
def test_over_tls_losses_are_noticed_and_mended(exchange: Exchange, tmp_path: Path, disturb: str) -> None:
    """As Binance serves it: wss. FIN, RST and black hole end a connection, and the next one works."""
    with tls_front(exchange) as (url, authority):
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        with Daemon(exchange, tmp_path, BINANCE_WS_URLS=url, SSL_CERT_FILE=tmp_path / "ca.pem") as daemon:
            daemon.wait_for_live()
            getattr(exchange, disturb)()
            daemon.wait_for_line("WARNING (lost|silent)", count=2)
            recovers(daemon)
            assert daemon.terminate() < 3
            assert daemon.process.returncode == 0
            tells_calmly(daemon)


# Losing


@pytest.mark.parametrize(
    ("disturb", "line"),
    [
        pytest.param(lambda e: e.close(1000), "lost cause=.*code 1000", id="close 1000"),
        pytest.param(lambda e: e.close(1001), "lost cause=.*code 1001 .going away", id="close 1001"),
        pytest.param(lambda e: e.close(1008), "lost cause=.*code 1008 .policy", id="close 1008"),
        pytest.param(lambda e: e.drop(), "lost cause=.*without close frame .1006", id="FIN, which is 1006"),
        pytest.param(lambda e: e.reset(), "lost cause=.*reset", id="RST"),
        pytest.param(lambda e: e.stall(), "silent cause=.*no new mark prices", id="black hole"),
        pytest.param(lambda e: e.silence(), "silent cause=.*no new mark prices", id="silence with pings"),
        pytest.param(lambda e: e.stand_still(), "silent cause=.*no new mark prices", id="event time stands still"),
        pytest.param(lambda e: e.trickle(), "silent cause=.*no new mark prices", id="trickle"),
        pytest.param(lambda e: e.send_half_frame(), "silent cause=.*no new mark prices", id="half a frame"),
        pytest.param(lambda e: e.send_huge(), "lost cause=.*message of more than 16 MiB", id="40 MB"),
        pytest.param(lambda e: e.write(b"\x83\x00"), "lost cause=.*protocol error", id="reserved opcode"),
    ],
)
def test_all_connections_lost_at_once(
    exchange: Exchange, tmp_path: Path, disturb: Callable[[Exchange], None], line: str
) -> None:
    """Each loss is one warning with cause, age and what happens next; both connections come back by themselves."""
    with Daemon(exchange, tmp_path) as daemon:
        daemon.wait_for_live()
        disturb(exchange)
        told = daemon.wait_for_line(f"WARNING {line}", count=2)
        assert "age_s=" in told
        assert "retry_in_s=" in told
        recovers(daemon)
        assert daemon.status()["disconnects"] == 2
        tells_calmly(daemon)


# What is said on the stream


def _row(exchange: Exchange, **changes: Any) -> dict[str, Any]:
    row = exchange.market.row("BTCUSDT", exchange.now_ms())
    row.update(changes)
    return {key: value for key, value in row.items() if value != "left out"}


BAD_ROWS: dict[str, dict[str, Any]] = {
    "no mark price": {"p": "left out"},
    "no symbol": {"s": "left out"},
    "no event time": {"E": "left out"},
    "not a number": {"r": "NaN"},
    "infinite": {"p": "Infinity"},
    "overflow": {"i": "1e999"},
    "text": {"p": "abc"},
    "null": {"r": None},
    "list": {"i": []},
    "event time of text": {"E": "yesterday"},
    "event time in the year 3000": {"E": 32_503_680_000_000},
    "symbol with a line end": {"s": "BTC\nUSDT"},
    "lone surrogate": {"s": "\ud800"},
    "empty symbol": {"s": ""},
}


def test_malformed_rows_cost_themselves_only(exchange: Exchange, tmp_path: Path) -> None:
    """The good rows of the same message count; the bad ones are counted and told once."""
    exchange.silence(FUTURE)
    with Daemon(exchange, tmp_path, SILENCE_SECONDS=60, REST_POLL_SECONDS=60, STREAM_CONNECTIONS=1) as daemon:
        exchange.wait_for_live(1)
        eventually(daemon.records, "data from REST")
        bad = [_row(exchange, **changes) for changes in BAD_ROWS.values()]
        good = exchange.market.row("ETHUSDT", exchange.now_ms())
        exchange.send(json.dumps({"stream": STREAM, "data": [*bad, 5, None, "row", good]}))
        eventually(lambda: daemon.records()["ETHUSDT"]["eventTime"] == good["E"], "the good row")
        assert daemon.status()["rejected_rows"] == len(bad) + 3
        assert all(symbol.isprintable() and symbol for symbol in daemon.records())
        daemon.wait_for_line("WARNING rejected rows cause=")
        tells_calmly(daemon)


@pytest.mark.parametrize(
    ("send", "line"),
    [
        pytest.param(lambda e: e.send("{"), "invalid JSON", id="malformed JSON"),
        pytest.param(lambda e: e.send('{"data":5}'), "no rows", id="no rows"),
        pytest.param(lambda e: e.send('{"data":[NaN]}'), "NaN is not JSON", id="NaN"),
        pytest.param(lambda e: e.send("[" * 100_000), "nesting too deep", id="nesting"),
        pytest.param(lambda e: e.send_invalid_utf8(), "invalid UTF-8", id="invalid UTF-8"),
        pytest.param(lambda e: e.send(b"\x00\x01\x02"), "invalid JSON", id="binary frame"),
    ],
)
def test_malformed_message_costs_itself_only(
    exchange: Exchange, tmp_path: Path, send: Callable[[Exchange], None], line: str
) -> None:
    """The connection stays, the next message counts."""
    with Daemon(exchange, tmp_path) as daemon:
        daemon.wait_for_live()
        for _ in range(5):
            send(exchange)
        daemon.wait_for_line(f"WARNING malformed message cause=.*{line}")
        recovers(daemon)
        assert daemon.status()["disconnects"] == 0
        tells_calmly(daemon)


def test_rows_of_other_streams_and_empty_data_change_nothing(exchange: Exchange, tmp_path: Path) -> None:
    """A ticker's `p` is a price change: it must never become a mark price. Nothing is told: it is not a fault."""
    with Daemon(exchange, tmp_path) as daemon:
        daemon.wait_for_live()
        ticker = {
            "e": "24hrTicker",
            "E": exchange.now_ms() + 5000,
            "s": "BTCUSDT",
            "p": "-1.0",
            "i": "1",
            "r": "1",
            "T": 1,
        }
        exchange.send_rows([ticker], stream="!ticker@arr")
        exchange.send_rows([])
        recovers(daemon)
        assert daemon.records()["BTCUSDT"]["markPrice"] > 1000
        assert daemon.status()["rejected_rows"] == 0
        tells_calmly(daemon)


def test_older_and_equal_event_times_change_nothing(exchange: Exchange, tmp_path: Path) -> None:
    """A newer row never gives way to an older one, whichever connection brings it."""
    exchange.silence(FUTURE)
    with Daemon(exchange, tmp_path, SILENCE_SECONDS=60) as daemon:
        exchange.wait_for_live(2)
        now_ms = exchange.now_ms() + 1000
        newest = exchange.market.row("BTCUSDT", now_ms)
        exchange.send(envelope([newest]), 0)
        eventually(lambda: daemon.records().get("BTCUSDT", {}).get("eventTime") == now_ms, "the newest row")
        exchange.send(envelope([{**newest, "p": "1.0"}]), 1)
        exchange.send(envelope([exchange.market.row("BTCUSDT", now_ms - 500)]), 1)
        exchange.send(envelope([exchange.market.row("ETHUSDT", now_ms)]), 1)
        eventually(lambda: daemon.records().get("ETHUSDT", {}).get("eventTime") == now_ms, "the rows sent after")
        record = daemon.records()["BTCUSDT"]
        assert record["eventTime"] == now_ms
        assert record["markPrice"] == float(newest["p"])


# REST


@pytest.mark.parametrize(
    ("fail", "line"),
    [
        pytest.param(lambda e: e.rest_fault(403), "firewall .*HTTP 403", id="403"),
        pytest.param(lambda e: e.rest_fault(418, retry_after_s=1), "banned this IP.*HTTP 418", id="418"),
        pytest.param(lambda e: e.rest_fault(429, retry_after_s=1), "too many requests.*HTTP 429", id="429"),
        pytest.param(lambda e: e.rest_fault(451), "does not serve this country.*HTTP 451", id="451"),
        pytest.param(lambda e: e.rest_fault(500), "trouble of its own.*HTTP 500", id="500"),
        pytest.param(lambda e: e.rest_fault(302, headers={"Location": "/"}), "HTTP 302", id="redirect"),
        pytest.param(lambda e: e.rest_html(), "invalid JSON", id="HTML"),
        pytest.param(lambda e: e.rest_garbage(), "invalid UTF-8", id="garbage"),
        pytest.param(lambda e: e.rest_wrong_shape(), "no list", id="wrong shape"),
        pytest.param(lambda e: e.rest_hang(), "no answer in time", id="hanging"),
        pytest.param(lambda e: e.rest_trickle(), "not complete within", id="trickle"),
        pytest.param(lambda e: e.rest_cut(), "no connection", id="cut in the middle"),
        pytest.param(lambda e: e.rest_reset(), "no connection: connection reset", id="RST"),
        pytest.param(lambda e: e.down(ws=False), "no connection: connection refused", id="refused"),
    ],
)
def test_rest_fails_then_heals(exchange: Exchange, tmp_path: Path, fail: Callable[[Exchange], None], line: str) -> None:
    """It is told once in words, never disturbs the stream, and heals by itself."""
    fail(exchange)
    with Daemon(exchange, tmp_path, REST_POLL_SECONDS=0.5, REST_TIMEOUT_SECONDS=0.5) as daemon:
        daemon.wait_for_line(f"WARNING REST (refused|failed) cause=.*{line}")
        recovers(daemon)
        assert daemon.status()["rest"]["errors"] >= 1
        assert daemon.status()["rest"]["last_error"]
        exchange.rest_ok()
        exchange.up(ws=False)
        daemon.wait_for_line("INFO +REST recovered")
        eventually(lambda: daemon.status()["rest"]["last_success_time"], "a success in the file")
        assert daemon.status()["disconnects"] == 0
        tells_calmly(daemon)


def test_ban_is_waited_out_also_over_a_restart(exchange: Exchange, tmp_path: Path) -> None:
    """The end of the ban named in the body holds for the next daemon too: asking too early lengthens a ban."""
    until_ms = exchange.now_ms() + 600_000
    exchange.rest_ban(until_ms)
    for _ in range(2):
        with Daemon(exchange, tmp_path, REST_POLL_SECONDS=0.2, REST_FALLBACK_SECONDS=0.2) as daemon:
            recovers(daemon)
            paused_until = eventually(lambda: daemon.status()["rest"]["paused_until"], "the pause in the file")
            assert paused_until == pytest.approx(until_ms / 1000, abs=2)
            daemon.terminate()
    assert len(exchange.rest_requests) == 1


def test_fallback_polls_rest_while_the_stream_is_stale(exchange: Exchange, tmp_path: Path) -> None:
    """Told on and off, with the age; in between the data is no older than the polling interval and a request."""
    with Daemon(exchange, tmp_path, STALE_SECONDS=3, REST_FALLBACK_SECONDS=1) as daemon:
        daemon.wait_for_live()
        exchange.down(rest=False)
        daemon.wait_for_line("WARNING fallback on stream_age_s=")
        eventually(lambda: daemon.status()["fallback_active"], "fallback in the file")
        eventually(lambda: {r["source"] for r in daemon.records().values()} == {"rest"}, "data from REST")
        first = len(exchange.rest_requests)
        exchange.wait(lambda: len(exchange.rest_requests) >= first + 5, what="five polls")
        times_s = [request.at_s for request in exchange.rest_requests[first:] if "premiumIndex" in request.path]
        assert all(later - earlier > 0.7 for earlier, later in pairwise(times_s))
        exchange.up(rest=False)
        daemon.wait_for_line("WARNING fallback off")
        recovers(daemon)
        assert daemon.status()["fallback_active"] is False
        tells_calmly(daemon)


def test_part_of_the_market_going_silent_lives_on_rest(exchange: Exchange, tmp_path: Path) -> None:
    """When one of the two messages stops, REST fills its symbols; log and health say how many, and it heals."""
    with Daemon(exchange, tmp_path, REST_POLL_SECONDS=0.5) as daemon, Server(tmp_path) as server:
        daemon.wait_for_live()
        exchange.only_first_message()
        daemon.wait_for_line("symbols from REST count=5 of=25")
        assert server.get("/funding/health")[1]["symbolsFromRest"] == 5
        recovers(daemon)
        exchange.behave()
        daemon.wait_for_line("symbols from REST count=0 of=25")
        assert server.get("/funding/health")[1]["symbolsFromRest"] == 0
        assert daemon.status()["disconnects"] == 0


# The host


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(path: Path) -> None:
    """Write a file until the disk is full."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)


def test_full_disk_keeps_the_last_file_and_is_mended(exchange: Exchange, small_disk: Path) -> None:
    """The old file stays whole, the trouble is told once, and writing goes on when there is room."""
    with Daemon(exchange, small_disk) as daemon:
        daemon.wait_for_live()
        fill(small_disk / "ballast")
        daemon.wait_for_line("ERROR +state file not written cause=.*no space left")
        assert len(daemon.records()) == 25
        (small_disk / "ballast").unlink()
        daemon.wait_for_line("state file written again")
        recovers(daemon)
        tells_calmly(daemon)


def test_read_only_folder_is_told_and_mended(exchange: Exchange, small_disk: Path) -> None:
    """Remounted read-only and back: told once, mended by itself."""
    with Daemon(exchange, small_disk) as daemon:
        daemon.wait_for_live()
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
        daemon.wait_for_line("ERROR +state file not written cause=.*read-only file system")
        subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
        daemon.wait_for_line("state file written again")
        recovers(daemon)
        tells_calmly(daemon)


@pytest.mark.parametrize("damage", ["deleted", "truncated", "junk", "link to nowhere"])
def test_damaged_state_file_is_replaced_by_the_next_write(exchange: Exchange, tmp_path: Path, damage: str) -> None:
    """Whatever is done to the file, the next write makes it whole."""
    path = tmp_path / STATE_FILE
    with Daemon(exchange, tmp_path) as daemon:
        daemon.wait_for_live()
        if damage == "deleted":
            path.unlink()
        elif damage == "truncated":
            os.truncate(path, 100)
        elif damage == "junk":
            path.write_bytes(b"\xff\x00junk")
        else:
            path.unlink()
            path.symlink_to("/nowhere")
        recovers(daemon)
        tells_calmly(daemon)


CLOCK_THAT_CAN_BE_SET = """
import os, time
real_time = time.time
def shifted_time():
    try:
        with open(os.environ["SHIFT_FILE"]) as file:
            return real_time() + float(file.read() or 0)
    except FileNotFoundError:
        return real_time()
time.time = shifted_time
"""


@pytest.mark.parametrize("jump_s", [3600, -3600])
def test_clock_that_jumps_an_hour_disturbs_nothing(exchange: Exchange, tmp_path: Path, jump_s: int) -> None:
    """No connection is dropped, no fallback, no gap; the times in the file follow, and the offset is told."""
    (tmp_path / "sitecustomize.py").write_text(CLOCK_THAT_CAN_BE_SET)
    shift = tmp_path / "shift"
    settings = {"PYTHONPATH": tmp_path, "SHIFT_FILE": shift}
    with Daemon(exchange, tmp_path, **settings) as daemon, Server(tmp_path, **settings) as server:
        daemon.wait_for_live()
        assert server.get("/funding/health")[1]["status"] == "healthy"
        before = daemon.state()["updated_at"]
        (tmp_path / "new").write_text(str(jump_s))
        (tmp_path / "new").rename(shift)
        eventually(lambda: abs(daemon.state()["updated_at"] - before - jump_s) < 60, "the new time in the file")
        daemon.wait_for_line("WARNING clock cause=.*differs.*next=.check NTP")
        recovers(daemon)
        state = daemon.state()
        ages_s = [state["updated_at"] - record["updatedAt"] for record in state["funding_state"].values()]
        assert all(-1 < age_s < 30 for age_s in ages_s)
        assert state["connection_status"]["disconnects"] == 0
        assert state["connection_status"]["clock_offset_seconds"] == pytest.approx(-jump_s, abs=5)
        assert state["gaps"] == []
        eventually(lambda: server.get("/funding/health")[1]["status"] == "healthy", "health")
        assert server.get("/funding/BTCUSDT")[1]["ageSeconds"] < 30
        tells_calmly(daemon)


def test_port_already_taken_is_one_line(tmp_path: Path) -> None:
    """The server says which address, and ends with a status that is not 78: the port may be free later."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with Program("funding_api_server.py", tmp_path, {"API_PORT": port}) as server:
            assert server.wait() == 69
            assert len(server.log) == 1
            assert f"API_PORT={port} cannot be listened on: address already in use" in server.log[0]


def test_thread_that_dies_of_a_bug_ends_the_process(exchange: Exchange, tmp_path: Path) -> None:
    """A bug must not leave a daemon that looks alive: non-zero status, and the traceback once."""
    (tmp_path / "sitecustomize.py").write_text(
        "import binance_funding.publisher as p\n"
        "def write(self):\n"
        "    if self._book.rates():\n"
        "        raise RuntimeError('a bug')\n"
        "    return original(self)\n"
        "original, p.Publisher.write = p.Publisher.write, write\n"
    )
    path = f"{tmp_path}:{Path(__file__).resolve().parent.parent}"
    with Daemon(exchange, tmp_path, PYTHONPATH=path) as daemon:
        assert daemon.wait() == 70
        assert any("thread publisher died" in line for line in daemon.log)
        assert sum("Traceback" in line for line in daemon.log) == 1


def test_proxy_variables_do_not_concern_this_host(exchange: Exchange, tmp_path: Path) -> None:
    """websocket-client and requests would send even localhost through a proxy."""
    proxy = f"http://127.0.0.1:{free_port()}"
    variables = {"http_proxy": proxy, "HTTP_PROXY": proxy, "https_proxy": proxy, "ALL_PROXY": proxy}
    with Daemon(exchange, tmp_path, **variables) as daemon:
        recovers(daemon)
        assert daemon.status()["rest"]["errors"] == 0


class RawPeer:
    """Accepts connections and says the same to each of them, in pieces with pauses; then waits for its end."""

    def __init__(self, *pieces: bytes, pause_s: float = 0.0) -> None:
        self._pieces = pieces
        self._pause_s = pause_s
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self.accepted = 0
        self._threads = [threading.Thread(target=self._accept, name="raw-peer", daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._socket.accept()
                self.accepted += 1
                threading.Thread(target=self._talk, args=(sock,), name="raw-peer-talks", daemon=True).start()

    def _talk(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            sock.recv(65536)
            for piece in self._pieces:
                sock.sendall(piece)
                time.sleep(self._pause_s)

    def __enter__(self) -> "RawPeer":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._socket.close()


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        pytest.param(b"\r\n\r\n", "protocol error", id="empty"),
        pytest.param(b"nonsense\r\n\r\n", "protocol error", id="one word"),
        pytest.param(b"HTTP/1.1 abc\r\n\r\n", "protocol error", id="status of letters"),
        pytest.param(
            b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSet-Cookie: a/b=1\r\n\r\n",
            "protocol error",
            id="cookie that is none",
        ),
        pytest.param(b"HTTP/1.1 302 x\r\nLocation: ws://127.0.0.1:1/\r\n\r\n", "edirect", id="redirect"),
    ],
)
def test_handshake_that_is_no_handshake_is_one_line(
    exchange: Exchange, tmp_path: Path, answer: bytes, line: str
) -> None:
    """Whatever the library makes of it, the daemon goes on, and to the next candidate."""
    with RawPeer(answer) as peer:
        urls = f"ws://127.0.0.1:{peer.port}/,{exchange.ws_url}"
        with Daemon(exchange, tmp_path, BINANCE_WS_URLS=urls) as daemon:
            daemon.wait_for_line(f"WARNING connect failed cause=.*({line})")
            recovers(daemon)
            tells_calmly(daemon)


def test_rest_headers_that_trickle_in_for_ever_are_given_up(exchange: Exchange, tmp_path: Path) -> None:
    """The library's timeout is for one byte: the whole request has an end all the same, and the next one comes."""
    with RawPeer(b"HTTP/1.1 200 OK\r\n", *[b"X: y\r\n"] * 1000, pause_s=0.1) as peer:
        address = f"http://127.0.0.1:{peer.port}"
        with Daemon(
            exchange, tmp_path, BINANCE_REST_URL=address, REST_TIMEOUT_SECONDS=0.5, REST_POLL_SECONDS=1
        ) as daemon:
            daemon.wait_for_line("WARNING REST failed cause=.*no answer in time")
            eventually(lambda: peer.accepted >= 2, "the next request")
            recovers(daemon)
            tells_calmly(daemon)


def test_one_row_from_the_future_does_not_make_the_connection_silent(exchange: Exchange, tmp_path: Path) -> None:
    """What counts as life is the usual event time of a message, not its latest."""
    with Daemon(exchange, tmp_path) as daemon:
        daemon.wait_for_live()
        row = exchange.market.row("BTCUSDT", exchange.now_ms() + 3_600_000)
        others = [exchange.market.row(symbol, exchange.now_ms()) for symbol in ("ETHUSDT", "SOLUSDT", "XRPUSDT")]
        exchange.send_rows([row, *others])
        eventually(lambda: daemon.records()["BTCUSDT"]["eventTime"] == row["E"], "the row from the future")
        first = len(exchange.ticks)
        exchange.wait(lambda: len(exchange.ticks) > first + 3 / TICK_S, what="ticks for longer than the silence")
        assert daemon.status()["disconnects"] == 0
        assert abs(daemon.status()["clock_offset_seconds"]) < 5


def test_pause_of_the_whole_process_loses_no_connection(exchange: Exchange, tmp_path: Path) -> None:
    """Stopped and continued, it reads what has come meanwhile before it judges anybody silent."""
    with Daemon(exchange, tmp_path) as daemon:
        daemon.wait_for_live()
        daemon.process.send_signal(signal.SIGSTOP)
        time.sleep(6)
        daemon.process.send_signal(signal.SIGCONT)
        recovers(daemon)
        assert daemon.status()["disconnects"] == 0


def test_state_file_that_is_no_regular_file_is_a_wrong_setting(exchange: Exchange, tmp_path: Path) -> None:
    """A device or a directory must not be replaced."""
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    for name in ("folder", "fifo"):
        with Daemon(exchange, tmp_path, STATE_FILE=name) as daemon:
            assert daemon.wait() == 78
            assert f"STATE_FILE={name} is not allowed" in daemon.log[-1]
    assert sorted(os.listdir(tmp_path)) == ["fifo", "folder"]
