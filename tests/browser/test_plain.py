"""The page for browsers that run no script: a table of the highest and lowest rates."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.browser import Browser
from tests.support.page_files import HOSTILE, aged, market, write
from tests.support.programs import Server


@pytest.fixture
def page(browser: Browser) -> Iterator[Browser]:
    """A browser that runs no script of a page."""
    browser.set("Emulation.setScriptExecutionDisabled", value=True)
    yield browser
    browser.set("Emulation.setScriptExecutionDisabled", value=False)


def text(page: Browser) -> str:
    """Return what is to be seen."""
    return page.element("body").text


def test_the_highest_and_lowest_rates_are_a_table(page: Browser, folder: Path, server: Server) -> None:
    """Twenty each, of what is fresh, listed and not halted, and nothing else of the page is to be seen."""
    write(folder, market())
    page.driver.get(f"http://127.0.0.1:{server.port}/")
    seen = text(page)
    assert seen.startswith("Binance USD-M funding rates\nAs of 20")
    assert "46 symbols with fresh data. Longs pay shorts if a rate is positive" in seen
    assert [seen.count(name) for name in ("OLDUSDT", "HALTUSDT", "LEFTUSDT", "Connecting", "Filter")] == [0] * 5
    assert "BTCUSDT +0.0100% 8 h +10.95%" in seen
    assert HOSTILE not in seen or seen.count(HOSTILE) == 1
    assert len(page.driver.find_elements("css selector", "noscript tr")) == 42


def test_it_fits_a_narrow_screen(page: Browser, folder: Path, server: Server) -> None:
    """With its heading, and without sideways scrolling, however long a symbol is."""
    page.resize(360, 740)
    write(folder, {**market(), "1000000MOGUSDT": aged(0.5, fundingIntervalAssumed=True)})
    page.driver.get(f"http://127.0.0.1:{server.port}/")
    assert text(page).startswith("Binance USD-M funding rates\nAs of")
    width: int = page.run("return document.documentElement.scrollWidth")
    page.resize(1500, 1400)
    assert width == 360


def test_it_is_renewed(page: Browser, folder: Path, server: Server) -> None:
    """With what the file holds now; the table of a market without fresh data is empty, and says so."""
    write(folder, {"NEWUSDT": aged(0.5)})
    page.driver.get(f"http://127.0.0.1:{server.port}/")
    assert "NEWUSDT +0.0100%" in text(page)
    write(folder, {"NEWUSDT": aged(1000)})
    page.driver.refresh()
    assert text(page) == "Binance USD-M funding rates\nNo fresh data."
