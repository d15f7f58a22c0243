"""881 rows updated every second, and nothing that a hand would feel."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver import Keys

from tests.exchange import Exchange, Market
from tests.support.browser import Browser
from tests.support.programs import Daemon, Server

pytestmark = pytest.mark.alone

UPDATES = 10


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Both programs over an exchange of Binance's size, at its faster rate."""
    with Exchange(Market(), tick_s=1.0) as exchange, Daemon(exchange, tmp_path) as daemon, Server(tmp_path) as server:
        daemon.wait_for_live()
        yield server


def test_no_update_blocks_the_page(browser: Browser, server: Server) -> None:
    """No task takes more than 50 ms, which is where a browser calls it long: what is due is done in slices."""
    browser.open(server)
    browser.wait_for_rows(881)
    browser.wait_for_banner("healthy", "881 symbols")
    with browser.traced() as tasks_ms:
        browser.run_until_done(
            f"let updates = 0; source.addEventListener('update', () => {{ if (++updates === {UPDATES}) done(); }});"
        )
    assert len(tasks_ms) > UPDATES
    assert max(tasks_ms) < 50, sorted(tasks_ms)[-10:]


@pytest.mark.parametrize("column", ["Symbol", "Age"])
def test_sorting_and_filtering_do_not_block_it_either(browser: Browser, server: Server, column: str) -> None:
    """Nor do the rows that move, or come and go, as one clicks and types. Of three measurements the best counts."""
    browser.open(server)
    browser.wait_for_rows(881)
    longest_ms = []
    for _ in range(3):
        with browser.traced() as tasks_ms:
            browser.driver.find_element("xpath", f"//th/button[text()='{column}']").click()
            for key in ("S", "I", Keys.BACKSPACE, Keys.BACKSPACE):
                browser.element("#filter").send_keys(key)
            browser.wait("count.textContent === '881 symbols'", "all symbols again")
        longest_ms.append(max(tasks_ms))
    assert min(longest_ms) < 50, longest_ms


def test_opening_the_page_does_not_block_it(browser: Browser, server: Server) -> None:
    """881 rows are put in place fifty at a time. Of three measurements the best counts: Chromium has other work."""
    longest_ms = []
    for _ in range(3):
        with browser.traced() as tasks_ms:
            browser.open(server)
            browser.wait_for_rows(881)
        longest_ms.append(max(tasks_ms))
    assert min(longest_ms) < 50, longest_ms
