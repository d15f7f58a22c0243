"""Nothing that the page shows is older than it says, whatever happens to the server, the network and the clock."""

import signal
from collections.abc import Iterator

import pytest

from tests.exchange import Exchange, Market
from tests.support.browser import Browser
from tests.support.programs import Server, running_both

pytestmark = pytest.mark.timeout(180)

DAY_MS = 86_400_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Both programs over a small exchange that ticks twice a second."""
    folder = tmp_path_factory.mktemp("host")
    market = Market(usd_m=20, tradfi=5, coin_m=2, fundless=2)
    with Exchange(market, tick_s=0.5) as exchange, running_both(exchange, folder) as both:
        yield both.server


@pytest.fixture
def page(browser: Browser, server: Server) -> Browser:
    """The page of a good day."""
    browser.open(server)
    browser.wait_for_state("healthy", "25 symbols")
    return browser


@pytest.fixture
def silence(server: Server, page: Browser) -> Iterator[None]:
    """Within the test the server's connections are open, and nothing comes over them."""
    server.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        server.process.send_signal(signal.SIGCONT)


def test_data_grows_old_and_stale_without_a_word_from_the_server(page: Browser, silence: None) -> None:
    """Each row goes stale by itself, and the page no longer calls it fresh. No question is asked in the meantime."""
    page.run("checkedAt = Infinity")
    page.wait("rows.textContent.includes('late ')", "rows that are late")
    page.wait("rows.querySelectorAll('[data-state=stale]').length === 25", "all rows stale")
    page.wait_for_state("unhealthy", "Not fresh: do not trade on this")
    assert page.run("return rows.querySelector('.ageSeconds').textContent.startsWith('stale ')")


def test_a_silent_server_is_taken_for_gone(server: Server, page: Browser, silence: None) -> None:
    """An open connection that says nothing is no sign of life; the page comes back by itself."""
    page.wait_for_state("gone", "No connection to the server")
    server.process.send_signal(signal.SIGCONT)
    page.wait_for_state("healthy", "Fresh")


def test_time_passed_asleep_counts(server: Server, page: Browser, silence: None) -> None:
    """A laptop that wakes up shows how old its numbers are before anybody answers, and then new ones."""
    page.run("const now = Date.now; Date.now = () => now() + 3600000;")
    page.wait("/newest data 60:\\d\\d min old/.test(facts.textContent)", "the hour is counted")
    server.process.send_signal(signal.SIGCONT)
    page.wait_for_state("healthy", "Fresh")
    page.wait("/newest data \\d s old/.test(facts.textContent)", "new numbers")


@pytest.mark.parametrize("wrong_ms", [-DAY_MS, DAY_MS])
def test_a_wrong_clock_changes_no_age(browser: Browser, server: Server, wrong_ms: int) -> None:
    """Ages are counted by the server's clock, whatever the browser takes for the time."""
    browser.open(server, f"const now = Date.now; Date.now = () => now() + {wrong_ms};")
    browser.wait_for_state("healthy", "25 symbols")
    browser.wait("/newest data \\d s old/.test(facts.textContent)", "an age of seconds")
    assert browser.run("return order.filter(isStale).length") == 0


def test_a_dead_stream_is_opened_anew_while_the_server_answers(browser: Browser, server: Server) -> None:
    """A connection that a box between lost without a word: health knows of newer data than what has come."""
    browser.open(
        server,
        """
        window.opened = 0;
        window.EventSource = class extends EventSource {
          addEventListener(name, listener) {
            if (name === "open") opened++;
            super.addEventListener(name, opened === 1 && name === "update" ? () => {} : listener);
          }
        };
        """,
    )
    browser.wait("records.size === 25", "the snapshot")
    browser.wait("opened === 2", "a second stream")
    browser.wait_for_state("healthy", "Fresh")


def test_a_hidden_page_gives_its_connection_back(page: Browser) -> None:
    """A browser has six for a host: the seventh tab would wait for ever. What was hidden is current when it is seen."""
    page.run("Object.defineProperty(document, 'hidden', {get: () => !window.seen});")
    page.run("document.dispatchEvent(new Event('visibilitychange'));")
    assert page.run("return source.readyState === EventSource.CLOSED")
    page.run("window.seen = true; document.dispatchEvent(new Event('visibilitychange'));")
    page.wait("source.readyState === EventSource.OPEN", "the stream is open again")
    page.wait_for_state("healthy", "Fresh")
