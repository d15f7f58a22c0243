"""The simulated exchange as a program, and its life in a test."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import requests
from websockets.sync.client import connect

from tests.exchange import PREMIUM_INDEX, SERVER_TIME, Exchange, Market
from tests.support.exchange_client import SMALL, client, rows_of, small_exchange
from tests.support.waiting import PATIENCE_S


class TestProgram:
    """The exchange as a program."""

    def test_prints_urls_and_ends_on_sigterm(self) -> None:
        """It prints the daemon's two settings, serves, and SIGTERM ends it with exit status 0."""
        with _running("--tick", "0.1") as settings:
            live_url, retired_url = settings["BINANCE_WS_URLS"].split(",")
            with connect(live_url, max_size=None) as connection:
                assert len(rows_of(connection.recv(timeout=PATIENCE_S))) == 745
            assert "/stream?" in retired_url
            answer = requests.get(settings["BINANCE_REST_URL"] + PREMIUM_INDEX, timeout=PATIENCE_S)
            assert len(answer.json()) == 664 + 217 + 51

    def test_options_for_wrong_times(self) -> None:
        """With --lag the stream's event times are behind, with --time-skew the server's time is ahead."""
        with _running("--tick", "0.1", "--usd-m", "5", "--lag", "1000", "--time-skew", "2000") as settings:
            with connect(settings["BINANCE_WS_URLS"].split(",")[0], max_size=None) as connection:
                event_time_ms = rows_of(connection.recv(timeout=PATIENCE_S))[0]["E"]
            assert 1000 <= time.time() - event_time_ms / 1000 < 1000 + PATIENCE_S
            answer = requests.get(settings["BINANCE_REST_URL"] + SERVER_TIME, timeout=PATIENCE_S)
            assert 2000 - PATIENCE_S < answer.json()["serverTime"] / 1000 - time.time() <= 2000

    def test_errors_of_the_thread_are_told(self) -> None:
        """What goes wrong inside the exchange's thread is raised when the exchange stops."""

        class BrokenMarket(Market):
            def messages(self, event_time_ms: int, stream: str = "") -> tuple[str, ...]:
                raise ArithmeticError("broken on purpose")

        exchange = Exchange(BrokenMarket(**SMALL), tick_s=0.05)
        exchange.start()
        with client(exchange):
            exchange.wait(lambda: exchange.ticks)
        with pytest.raises(ArithmeticError, match="broken on purpose"):
            exchange.stop()

    def test_taken_port_is_an_error(self) -> None:
        """Starting on a port already taken raises OSError and leaves the other port free."""
        with small_exchange() as exchange:
            with _bound(0) as sock:
                port = sock.getsockname()[1]
            failing = small_exchange(ws_port=port, rest_port=exchange.rest_port)
            with pytest.raises(OSError, match="in use"):
                failing.start()
            _bound(port).close()

    @pytest.mark.parametrize("down", [False, True], ids=["up", "down"])
    def test_stop_frees_the_ports(self, down: bool) -> None:
        """After `stop` both ports are free, also where the exchange was down."""
        exchange = small_exchange()
        with exchange:
            if down:
                exchange.down()
        for port in (exchange.ws_port, exchange.rest_port):
            _bound(port).close()


def _bound(port: int) -> socket.socket:
    """Return a socket on a port that nobody else holds. Raises OSError otherwise."""
    sock = socket.socket()
    try:
        sock.bind(("127.0.0.1", port))
    except OSError:
        sock.close()
        raise
    return sock


@contextlib.contextmanager
def _running(*options: str) -> Iterator[dict[str, str]]:
    """Run the program and yield the settings it prints; SIGTERM has to end it with exit status 0."""
    command = [sys.executable, "-m", "tests.exchange", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield dict(process.stdout.readline().strip().split("=", 1) for _ in range(2))
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_S) == 0
        finally:
            process.kill()
