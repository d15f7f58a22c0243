"""How the page is laid out, read and used: widths, both colour schemes, the keyboard, and what axe-core finds."""

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Keys

from tests.support.browser import Browser
from tests.support.page_files import market, quarter, quarter_start_s, served, write
from tests.support.programs import Server

NARROW, WIDE = (360, 740), (1600, 1000)
AXE = files("axe_core_python").joinpath("axe.min.js").read_text(encoding="utf-8")
FOCUSED = "const at = document.activeElement; return at.id || at.textContent;"


@pytest.fixture
def page(browser: Browser, folder: Path, server: Server) -> Iterator[Browser]:
    """The page over a market in which something of every kind is wrong."""
    now_s = quarter_start_s()
    history = [quarter(now_s - 1800, worst=400), quarter(now_s - 900, unplanned=1), quarter(now_s)]
    short = served(connections=1, last_error="connection reset")
    write(folder, market(), history=history, connection_status=short)
    browser.open(server)
    browser.wait_for_rows(48)
    browser.wait("strip.children.length === 97", "the strip")
    yield browser
    browser.resize(*WIDE)
    browser.prefer("light")


def findings(page: Browser) -> list[tuple[str, str, str]]:
    """Return the serious and critical findings of axe-core, with where they are."""
    page.run(AXE)
    results: dict[str, Any] = page.run_until_done("axe.run().then(done, error => done({error: String(error)}));")
    assert results["passes"], results
    bad = [rule for rule in results["violations"] if rule["impact"] in ("serious", "critical")]
    return [(rule["id"], node["html"], node["failureSummary"]) for rule in bad for node in rule["nodes"]]


@pytest.mark.parametrize("size", [NARROW, WIDE], ids=["narrow", "wide"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(page: Browser, scheme: str, size: tuple[int, int]) -> None:
    """Contrast AA, names, roles and the rest, of a page on which every state is to be seen."""
    page.resize(*size)
    page.prefer(scheme)
    page.wait(f"matchMedia('(prefers-color-scheme: {scheme})').matches", scheme)
    page.element("#filter").send_keys("O")  # rows of each kind, few enough for axe
    assert {"OLDUSDT"} <= set(page.column())
    assert findings(page) == []


def test_axe_would_find_something(page: Browser) -> None:
    """A pale text is a finding: the rules do run."""
    page.run("const css = new CSSStyleSheet(); css.replaceSync('h1 { color: #ccc; background: #fff }');"
             "document.adoptedStyleSheets = [css];")  # fmt: skip
    assert "color-contrast" in {rule for rule, _, _ in findings(page)}


def test_the_schemes_differ(page: Browser) -> None:
    """A dark page is dark."""
    grounds = []
    for scheme in ("light", "dark"):
        page.prefer(scheme)
        grounds.append(page.run("return getComputedStyle(document.body).backgroundColor"))
    brightness = [sum(map(int, ground.strip("rgb()").split(","))) for ground in grounds]
    assert brightness[0] > 600
    assert brightness[1] < 150


@pytest.mark.parametrize("size", [NARROW, WIDE], ids=["narrow", "wide"])
def test_nothing_sticks_out_of_the_page(page: Browser, size: tuple[int, int]) -> None:
    """The document does not scroll sideways, and everything but the table's own columns lies within the window."""
    page.resize(*size)
    page.wait(f"innerWidth === {size[0]}", "the new width")
    assert page.run("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    outside = page.run(
        "return [...document.querySelectorAll('main *, footer *')].filter(one => !table.contains(one))"
        ".filter(one => one.getBoundingClientRect().right > innerWidth + 1).map(one => one.outerHTML)"
    )
    assert outside == []


def test_a_narrow_table_scrolls_within_its_frame(page: Browser) -> None:
    """Its last column can be reached, the symbol stays in sight, and symbol, rate and annualized rate fit at once."""
    page.resize(*NARROW)
    page.wait("innerWidth === 360", "the new width")
    right = "document.querySelector('tbody tr').cells[{}].getBoundingClientRect().right"
    assert page.run(f"return {right.format(2)}") <= 360
    assert page.run(f"return {right.format(8)}") > 360
    page.run("table.scrollLeft = 10000")
    page.wait(f"{right.format(8)} <= 360", "the last column in sight")
    assert page.run("return document.querySelector('tbody th').getBoundingClientRect().left") >= 0


@pytest.mark.parametrize("size", [(1024, 900), (1100, 900), WIDE], ids=["1024", "1100", "wide"])
def test_on_a_wide_screen_all_columns_are_in_sight(page: Browser, size: tuple[int, int]) -> None:
    """Nothing in them is cut off, and their head stays below the banner when the rest is scrolled."""
    page.resize(*size)
    page.wait(f"innerWidth === {size[0]}", "the new width")
    assert page.run("return table.scrollWidth <= table.clientWidth")
    cut = page.run(
        "return [...table.querySelectorAll('th, td')].filter(one => one.scrollWidth > one.clientWidth)"
        ".map(one => one.textContent)"
    )
    assert [text for text in cut if not text.startswith("<img")] == []  # no symbol that there is
    page.run("scrollTo(0, document.body.scrollHeight)")
    edges = "[banner.getBoundingClientRect().bottom, columns.getBoundingClientRect().top]"
    page.wait(f"scrollY > 0 && Math.abs({edges}[0] - {edges}[1]) < 2", "the head stands below the banner")


def test_the_keyboard_is_enough(page: Browser) -> None:
    """From the top: the strip, the filter, the table, each column; Enter sorts, and what has the focus shows it."""
    page.press(Keys.TAB)
    assert page.run(FOCUSED) == "strip"
    page.press(Keys.TAB, "sim03")
    assert page.run(FOCUSED) == "filter"
    assert len(page.column()) == 10
    page.press(Keys.TAB)
    assert page.run(FOCUSED) == "table"
    page.press(Keys.TAB)
    assert page.run(FOCUSED) == "Symbol"
    assert page.run("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.press(Keys.ENTER)
    page.wait("document.querySelector('tbody tr:not([hidden]) th').textContent === 'SIM030USDT'", "sorted by symbol")
    page.press(Keys.SPACE)
    page.wait("document.querySelector('tbody tr:not([hidden]) th').textContent === 'SIM039USDT'", "the other way round")


def test_a_screen_reader_finds_a_table(page: Browser) -> None:
    """With its name, its sorted column, and a symbol at the head of each row."""
    tree = page.set("Accessibility.getFullAXTree")["nodes"]
    roles = [node.get("role", {}).get("value") for node in tree]
    assert roles.count("columnheader") == 9
    assert roles.count("rowheader") == 48
    assert roles.count("row") == 49
    table = page.element("table")
    assert (table.aria_role, table.accessible_name) == ("table", "All symbols")
    assert page.run("return document.querySelectorAll('[aria-sort]').length") == 1
