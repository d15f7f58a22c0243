"""Clients of the simulated exchange that share no code with the daemon, and an exchange that is small."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from typing import Any

import requests
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.sync.connection import Connection

from tests.exchange import PREMIUM_INDEX, Exchange, Market
from tests.support.waiting import PATIENCE_S

NEVER_S = 3600.0
SMALL = {"usd_m": 5, "tradfi": 2, "coin_m": 1, "fundless": 2}
"""The sizes of a small Market."""


def small_exchange(**options: Any) -> Exchange:
    """Return an exchange of few symbols that does nothing unless told; the options replace those of Exchange."""
    return Exchange(Market(**SMALL), **{"tick_s": NEVER_S, **options})


@contextlib.contextmanager
def client(exchange: Exchange, url: str = "") -> Iterator[Connection]:
    """Connect and wait until the exchange knows the connection."""
    known = len(exchange.connections)
    with connect(
        url or exchange.ws_url, ping_interval=None, max_size=None, close_timeout=1, open_timeout=PATIENCE_S
    ) as connection:
        exchange.wait(lambda: len(exchange.connections) > known)
        yield connection


@contextlib.contextmanager
def raw_client(exchange: Exchange) -> Iterator[socket.socket]:
    """Open a WebSocket by hand, so that nothing answers pings or closes by itself."""
    with socket.create_connection(("127.0.0.1", exchange.ws_port), timeout=PATIENCE_S) as sock:
        sock.sendall(
            b"GET /market/stream?streams=!markPrice@arr HTTP/1.1\r\nHost: exchange\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += sock.recv(1)
        assert head.startswith(b"HTTP/1.1 101 ")
        yield sock


def drain(sock: socket.socket) -> bytes:
    """Read until the FIN and return what was read."""
    received = b""
    while data := sock.recv(65536):
        received += data
    return received


def rows_of(message: str | bytes) -> list[dict[str, Any]]:
    """Return the rows of a combined-stream message."""
    rows: list[dict[str, Any]] = json.loads(message)["data"]
    return rows


def next_tick(connection: Connection) -> dict[str, dict[str, Any]]:
    """Read the two messages of one tick and return their rows by symbol."""
    messages = [connection.recv(timeout=PATIENCE_S) for _ in range(2)]
    return {row["s"]: row for message in messages for row in rows_of(message)}


def ending(connection: Connection) -> ConnectionClosed:
    """Read until the connection ends and return how."""
    try:
        while True:
            connection.recv(timeout=PATIENCE_S)
    except ConnectionClosed as closed:
        return closed


def nothing_comes(connection: Connection) -> bool:
    """Tell whether no message arrives for a moment, during which the caller has had ticks sent."""
    try:
        connection.recv(timeout=0.2)
    except TimeoutError:
        return True
    return False


def get(exchange: Exchange, path: str = PREMIUM_INDEX, headers: dict[str, str] | None = None) -> requests.Response:
    """Ask the exchange's REST side."""
    return requests.get(exchange.rest_url + path, timeout=PATIENCE_S, headers=headers)


def index_rows(exchange: Exchange) -> dict[str, dict[str, Any]]:
    """Ask for the premium index and return its rows by symbol."""
    return {row["symbol"]: row for row in get(exchange).json()}
