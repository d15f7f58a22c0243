"""What the user has chosen is in the address: reload, back and a link keep it."""

from pathlib import Path

import pytest
from selenium.webdriver import Keys

from tests.support.browser import Browser
from tests.support.page_files import market, write
from tests.support.programs import Server


@pytest.fixture
def page(browser: Browser, folder: Path, server: Server) -> Browser:
    """The page over a market of now, as nobody has chosen anything yet."""
    write(folder, market())
    browser.open(server)
    browser.wait_for_rows(49)
    return browser


def choose_all(page: Browser) -> None:
    """Choose an order, a filter, an interval, a sign, two favourites, a size and a row."""
    page.click_column("Premium, bp")
    page.click_column("Premium, bp")
    page.element("#filter").send_keys("sim")
    page.element("#interval").send_keys("Every 8")
    page.element("#sign").send_keys("+")
    for row in (3, 5):
        page.element(f"#rows .row:nth-child({row}) .star button").click()
    page.element("#rows .row:nth-child(4) .symbol button").click()
    page.element("#size").send_keys("0")


def shown(page: Browser) -> list[object]:
    """Return what depends on what was chosen."""
    values = "['filter', 'interval', 'sign', 'size'].map(id => document.getElementById(id).value)"
    sort = "[...columns.children].map(head => head.getAttribute('aria-sort'))"
    stars = "[...rows.children].map(row => row.querySelector('.star button').ariaPressed)"
    found: list[object] = page.run(
        f"return [{values}, {sort}, {stars}, document.querySelector('.row[data-open]').children[1].textContent,"
        "document.getElementById('detail-name').textContent]"
    )
    return [page.symbols(), *found]


def test_a_reload_keeps_what_was_chosen(page: Browser) -> None:
    """Nothing of it has gone to the server, which would refuse what it does not know."""
    choose_all(page)
    before = shown(page)
    page.driver.refresh()
    page.wait("rows.children.length > 0", "the rows")
    assert shown(page) == before


def test_back_from_another_page_keeps_it_too(page: Browser, server: Server) -> None:
    """And forward."""
    choose_all(page)
    before = shown(page)
    page.driver.get(f"http://127.0.0.1:{server.port}/funding/health")
    page.driver.back()
    page.wait("rows.children.length > 0", "the rows")
    assert shown(page) == before


def test_favourites_are_kept_for_the_next_visit(page: Browser, server: Server) -> None:
    """A link that names others is obeyed."""
    page.element("#rows .row:nth-child(3) .star button").click()
    (favourite,) = page.run("return [...favourites]")
    page.driver.get("about:blank")
    page.driver.get(f"http://127.0.0.1:{server.port}/")
    page.wait("rows.children.length > 0", "the rows")
    assert page.symbols()[0] == favourite
    page.driver.get("about:blank")
    page.driver.get(f"http://127.0.0.1:{server.port}/#favourites=BTCUSDT")
    page.wait("rows.children.length > 0", "the rows")
    assert page.symbols()[0] == "BTCUSDT"


def test_back_closes_the_row_and_keeps_the_rest(page: Browser) -> None:
    """Forward opens it again. Sorting, typing and other rows add nothing to the history."""
    entries = page.run("return history.length")
    page.element("#rows .row:nth-child(4) .symbol button").click()
    page.click_column("Symbol")
    page.element("#filter").send_keys("sim0")
    page.element("#rows .row:nth-child(2) .symbol button").click()
    opened = page.text("#detail-name")
    assert page.run("return history.length") == entries + 1
    page.driver.back()
    page.wait("!document.getElementById('detail').checkVisibility()", "the row closed")
    assert page.run("return [chosen.filter, chosen.sort]") == ["sim0", "symbol"]
    page.driver.forward()
    page.wait("document.getElementById('detail').checkVisibility()", "the row open")
    assert page.text("#detail-name") == opened


def test_closing_a_row_goes_back_in_the_history(page: Browser) -> None:
    """So that ten rows that were looked at are not ten entries."""
    entries = page.run("return history.length")
    for row in (1, 2, 3):
        page.element(f"#rows .row:nth-child({row}) .symbol button").click()
        page.press(Keys.ESCAPE)
        page.wait("!document.getElementById('detail').checkVisibility()", "the row closed")
    assert page.run("return history.length") <= entries + 1


@pytest.mark.parametrize("chosen", ["#sort=nonsense&days=x&interval=3&open=NOSUCH", "#sort=-abs(symbol)", "#&&=%"])
def test_an_address_that_says_nothing_sensible_does_no_harm(browser: Browser, server: Server, chosen: str) -> None:
    """The page is there, and can be used."""
    browser.open(server, chosen=chosen)
    browser.wait("records.size === 49", "the records")
    browser.run("choose({interval: '', open: ''})")
    assert len(browser.symbols()) == 49
    assert [one for one in browser.records("browser") if one["source"] == "javascript"] == []
