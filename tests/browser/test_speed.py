"""881 rows updated every second, and nothing that a hand would feel."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from selenium.webdriver import Keys

from tests.exchange import Exchange, Market
from tests.support.browser import Browser
from tests.support.programs import Server, running_both

pytestmark = pytest.mark.alone

UPDATES = 10
LONG_MS = 50
"""From here on a browser calls a task long."""
TRIES = 5


def assert_never_long(measure: Callable[[], list[float]]) -> None:
    """Once in so many tries no task may be long: Chromium has other work, and the processor other programs."""
    longest_ms: list[float] = []
    while not longest_ms or longest_ms[-1] >= LONG_MS:
        assert len(longest_ms) < TRIES, longest_ms
        longest_ms.append(max(measure()))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Both programs over an exchange of Binance's size, at its faster rate."""
    with Exchange(Market(), tick_s=1.0) as exchange, running_both(exchange, tmp_path) as both:
        yield both.server


def test_no_update_blocks_the_page(browser: Browser, server: Server) -> None:
    """No task is long: what is due is done in slices."""
    browser.open(server)
    browser.wait_for_rows(881)
    browser.wait_for_banner("healthy", "881 symbols")

    def updates() -> list[float]:
        with browser.traced() as tasks_ms:
            browser.run_until_done(
                f"let updates = 0; source.addEventListener('update', () => {{ if (++updates === {UPDATES}) done(); }});"
            )
        assert len(tasks_ms) > UPDATES
        return tasks_ms

    assert_never_long(updates)


@pytest.mark.parametrize("column", ["Symbol", "Age"])
def test_sorting_and_filtering_do_not_block_it_either(browser: Browser, server: Server, column: str) -> None:
    """Nor do the rows that move, or come and go, as one clicks and types."""
    browser.open(server)
    browser.wait_for_rows(881)

    def clicks() -> list[float]:
        with browser.traced() as tasks_ms:
            browser.driver.find_element("xpath", f"//th/button[text()='{column}']").click()
            for key in ("S", "I", Keys.BACKSPACE, Keys.BACKSPACE):
                browser.element("#filter").send_keys(key)
            browser.wait("count.textContent === '881 symbols'", "all symbols again")
        return tasks_ms

    assert_never_long(clicks)


def test_opening_the_page_does_not_block_it(browser: Browser, server: Server) -> None:
    """881 rows are put in place fifty at a time."""

    def opening() -> list[float]:
        with browser.traced() as tasks_ms:
            browser.open(server)
            browser.wait_for_rows(881)
        return tasks_ms

    assert_never_long(opening)
