"""Status line and alert, with both programs and the simulated exchange: what they say of a bad day and of its end."""

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.exchange import FUTURE, Exchange, Market
from tests.support.browser import Browser
from tests.support.http_client import Client
from tests.support.programs import Daemon, Server

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of the state file."""
    return tmp_path


@pytest.fixture(scope="module")
def exchange() -> Iterator[Exchange]:
    """An exchange of the size of Binance's, which ticks every second."""
    with Exchange(Market(), tick_s=1.0) as exchange:
        yield exchange


@pytest.fixture
def daemon(exchange: Exchange, folder: Path) -> Iterator[Daemon]:
    """The daemon, live."""
    with Daemon(exchange, folder) as daemon:
        daemon.wait_for_live()
        yield daemon


@pytest.fixture
def server(daemon: Daemon, folder: Path) -> Iterator[Server]:
    """The server."""
    with Server(folder) as server:
        yield server


@pytest.fixture
def page(browser: Browser, server: Server) -> Browser:
    """The page of a good day."""
    browser.open(server)
    browser.wait_for_state("healthy", "Fresh")
    return browser


def test_on_a_good_day_every_symbol_is_there_and_current(page: Browser, exchange: Exchange) -> None:
    """All 881, none stale, with where they come from."""
    page.wait_for_rows(881)
    assert set(page.run("return order.map(record => record.symbol)")) == exchange.market.symbols
    page.wait_for_state("healthy", "881 symbols")
    assert "2 stream connections" in page.text("#facts")
    assert page.run("return order.filter(isStale).length") == 0
    assert not page.element("#alert").is_displayed()
    assert page.driver.title == "Binance funding rates"


def test_a_lost_connection_degrades(page: Browser, exchange: Exchange) -> None:
    """It is said what is wrong, and taken back when it is over."""
    exchange.refuse_handshakes(503)
    exchange.drop(0)
    page.wait_for_state("degraded", "1 of 2 stream connections")
    assert page.element("#alert").is_displayed()
    assert "1 stream connection" in page.text("#facts")
    assert page.driver.title.startswith("Degraded")
    exchange.accept_handshakes()
    page.wait_for_state("healthy", "2 stream connections")


def test_a_dead_daemon_is_announced(page: Browser, exchange: Exchange, daemon: Daemon, folder: Path) -> None:
    """Its data is not fresh from the moment it no longer writes, and each row is stale when its time has come."""
    daemon.process.kill()
    page.wait_for_state("unhealthy", "the daemon has not written")
    assert page.text("#announcement").startswith("Not fresh: do not trade on this")
    page.wait("[...rows.children].every(row => row.dataset.state === 'stale')", "all rows stale")
    assert page.text("#facts").endswith("881 symbols, 881 stale")
    page.wait("highest.children.length === 0", "nothing is ranked any more")
    with Daemon(exchange, folder):
        page.wait_for_state("healthy", "Fresh")
        page.wait("![...rows.children].some(row => row.dataset.state === 'stale')", "no row stale")


def test_a_server_that_went_away_is_announced_and_comes_back(page: Browser, server: Server, folder: Path) -> None:
    """The page finds it again without being told to."""
    server.terminate()
    page.wait_for_state("gone", "No connection to the server")
    page.wait("/for ([2-9]|[1-9][0-9]) s/.test(facts.textContent)", "it is counted for how long")
    with Server(folder, API_PORT=server.port):
        page.wait_for_state("healthy", "Fresh")
        assert page.violations() == []


def test_a_server_that_refuses_the_stream_is_told_from_one_that_is_gone(
    browser: Browser, daemon: Daemon, folder: Path
) -> None:
    """Where as many follow as may, the health answer still comes; as soon as one of them leaves, the page follows."""
    with Server(folder, API_MAX_CONNECTIONS=12) as server:
        with contextlib.ExitStack() as followers:
            for _ in range(6):
                follower = followers.enter_context(Client(("127.0.0.1", server.port)))
                follower.send(b"GET /funding/stream?symbols=BTCUSDT HTTP/1.1\r\nHost: x\r\n\r\n")
                assert b" 200 " in follower.sock.recv(1000)
            browser.open(server)
            browser.wait_for_state("refused", "It answers, but has no stream left")
        browser.wait_for_state("healthy", "Fresh")


def test_without_a_file_there_is_nothing_to_show(page: Browser, daemon: Daemon, folder: Path) -> None:
    """The table is emptied, and filled again by the next file."""
    daemon.process.send_signal(signal.SIGSTOP)
    try:
        (folder / ".funding_state.json").unlink()
        page.wait_for_state("unhealthy", "no such file")
        page.wait_for_rows(0)
        assert page.text("#empty") == "No data."
    finally:
        daemon.process.send_signal(signal.SIGCONT)
    page.wait_for_rows(881)
    page.wait_for_state("healthy", "Fresh")


def test_an_outage_of_the_stream_is_bridged_by_rest(page: Browser, exchange: Exchange) -> None:
    """Rows say that they come from REST, and the status line says how many."""
    exchange.refuse_handshakes(503)
    exchange.drop()
    try:
        page.wait_for_state("degraded", "symbols from REST")
        page.wait("rows.textContent.includes('REST ')", "rows from REST")
    finally:
        exchange.accept_handshakes()
        exchange.behave(FUTURE)
