"""How the page is laid out, read and used: widths, both colour schemes, the keyboard, and what axe-core finds."""

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Keys

from tests.support.browser import Browser
from tests.support.page_files import (
    market,
    quarter,
    quarter_start_s,
    served,
    settlements,
    wave,
    write,
    write_history,
)
from tests.support.programs import Server

NARROW, TABLET, LAPTOP, WIDE = (360, 740), (768, 1024), (1280, 800), (1920, 1080)
SIZES = {"narrow": NARROW, "tablet": TABLET, "laptop": LAPTOP, "wide": WIDE}
AXE = files("axe_core_python").joinpath("axe.min.js").read_text(encoding="utf-8")
LONG = "1000000MOGUSDT"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the state file and the history."""
    folder = tmp_path_factory.mktemp("host")
    write_history(folder, {LONG: settlements(1)})
    return folder


@pytest.fixture
def page(browser: Browser, folder: Path, server: Server) -> Iterator[Browser]:
    """The page over a market in which something of every kind is wrong; the numbers of one symbol are long."""
    now_s = quarter_start_s()
    history = [quarter(now_s - 1800, worst=400), quarter(now_s - 900, unplanned=1), quarter(now_s)]
    short = served(connections=1, last_error="connection reset")
    long = wave(LONG, 1, fundingRate=-0.02, fundingIntervalHours=1, fundingRateSum7d=-0.45678, source="rest")
    long |= {"settledFundingRate": -0.02, "markPrice": 91725.878, "indexPrice": 94725.878}
    many = {f"MORE{n}USDT": wave(f"MORE{n}USDT", 1) for n in range(60)}
    write(folder, {**market(), **many, LONG: long}, history=history, connection_status=short)
    browser.open(server)
    browser.wait_for_rows(110)
    browser.wait("strip.children.length === 97", "the strip")
    yield browser
    browser.resize(1500, 1400)
    browser.prefer("light")


def show(page: Browser, size: tuple[int, int]) -> None:
    """Give the page a size, and wait until it has taken it."""
    page.resize(*size)
    page.wait(f"innerWidth === {size[0]} && innerHeight === {size[1]}", "the new size")
    page.run("measure()")


def findings(page: Browser) -> list[tuple[str, str, str]]:
    """Return what axe-core finds, with where it is."""
    page.run(AXE)
    results: dict[str, Any] = page.run_until_done("axe.run().then(done, error => done({error: String(error)}));")
    assert results["passes"], results
    return [
        (rule["id"], node["html"], node["failureSummary"]) for rule in results["violations"] for node in rule["nodes"]
    ]


@pytest.mark.parametrize("size", [NARROW, WIDE], ids=["narrow", "wide"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(page: Browser, scheme: str, size: tuple[int, int]) -> None:
    """Contrast AA, names, roles and the rest, of a page on which every state is to be seen; then with a row open."""
    show(page, size)
    page.prefer(scheme)
    page.wait(f"matchMedia('(prefers-color-scheme: {scheme})').matches", scheme)
    page.element("#filter").send_keys("O")
    page.run("toggleFavourite('OLDUSDT')")
    assert {"OLDUSDT"} <= set(page.symbols())
    assert findings(page) == []
    page.run("openRow(arguments[0]); document.getElementById('figures').open = true", LONG)
    page.wait("document.getElementById('chart').checkVisibility()", "the chart")
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


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_nothing_is_cut_off(page: Browser, size: tuple[int, int]) -> None:
    """No number of the table is, nothing sticks out of the window, and the window is the only thing that scrolls."""
    show(page, size)
    page.run("choose({sort: '-abs(annualizedFundingRate)'})")
    assert page.run("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    cut = page.run(
        "return [...document.querySelectorAll('#table :is(.cell, button)')].filter(one => one.checkVisibility() &&"
        "one.scrollWidth > one.clientWidth).map(one => one.textContent)"
    )
    assert [text for text in cut if text != LONG] == [], size
    outside = page.run(
        "return [...document.querySelectorAll('main *, footer *')].filter(one => one.checkVisibility())"
        ".filter(one => one.getBoundingClientRect().right > innerWidth + 1).map(one => one.outerHTML)"
    )
    assert outside == []
    scrollers = page.run(
        "return [...document.querySelectorAll('body *')].filter(one => one.scrollHeight > one.clientHeight + 1 &&"
        "['auto', 'scroll'].includes(getComputedStyle(one).overflowY)).map(one => one.id)"
    )
    assert scrollers == []


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_a_rate_stands_beside_its_interval(page: Browser, size: tuple[int, int]) -> None:
    """Wherever it is shown: a rate without an interval means nothing. With it, what else matters most is in sight."""
    show(page, size)
    shown = page.row(page.symbols()[0])
    assert {"Symbol", "Rate", "Interval", "Annualized", "Next in", "Settled", "7 days", "Age"} <= shown.keys()
    rate, interval = page.run(
        "return [...rows.firstChild.children].slice(2, 4).map(one => one.getBoundingClientRect().toJSON())"
    )
    assert interval["top"] == rate["top"]
    assert 0 <= interval["left"] - rate["right"] < 2
    edges = "[...row.children].map(one => Math.round(one.getBoundingClientRect().right))"
    heads, cells = page.run(f"return [columns, rows.firstChild].map(row => {edges})")
    assert heads == cells


def test_most_of_a_laptop_screen_is_the_table(page: Browser) -> None:
    """The first thing below one line that says how fresh the data is."""
    show(page, LAPTOP)
    edges = "[document.getElementById('headline').getBoundingClientRect().height, rows.getBoundingClientRect().top]"
    line, top = page.run(f"return {edges}")
    assert line <= 40
    assert 800 - top > 0.8 * 800


def test_the_head_stays_in_sight(page: Browser) -> None:
    """Status line and column names stay, however far one scrolls."""
    show(page, LAPTOP)
    page.run("scrollTo(0, 1500)")
    edges = "[document.getElementById('headline').getBoundingClientRect(), head.getBoundingClientRect()]"
    page.wait(f"scrollY > 500 && {edges}[0].top === 0 && Math.abs({edges}[1].top - {edges}[0].bottom) < 2", "the head")


def test_the_keyboard_is_enough(page: Browser) -> None:
    """To filter, to choose a row, to open it, to make it a favourite, to read its chart, to close it and to sort."""
    page.press("/")
    page.press("more")
    assert page.run("return document.activeElement.id") == "filter"
    page.press(*[Keys.TAB] * 5)
    assert page.run("return document.activeElement.id") == "table"
    page.press(Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.END, Keys.ARROW_UP)
    symbol = page.run("return order.at(-2).symbol")
    active = page.element("#rows .row[data-active]")
    assert active.find_element("css selector", ".symbol").text == symbol
    assert page.run("return table.getAttribute('aria-activedescendant')") == active.get_attribute("id")
    assert page.run("return getComputedStyle(arguments[0]).outlineStyle", active) == "solid"
    assert page.run(
        "const at = arguments[0].getBoundingClientRect(); return at.top > 0 && at.bottom < innerHeight", active
    )
    page.press("f")
    assert page.symbols()[0] == symbol
    page.press(Keys.ENTER)
    assert page.run("return document.activeElement.id") == "detail-name"
    assert page.text("#detail-name") == symbol
    page.press(Keys.ESCAPE)
    page.wait("document.activeElement.id === 'table'", "the focus is back")
    page.press(*[Keys.TAB], Keys.ENTER)
    assert page.run("return sortOrder().column.name") == "Symbol"


def test_a_screen_reader_finds_a_table(page: Browser) -> None:
    """With its name, how many rows it has and which of them these are, its sorted column, and a symbol in each row."""
    tree = page.set("Accessibility.getFullAXTree")["nodes"]
    roles = [node.get("role", {}).get("value") for node in tree]
    drawn = len(page.symbols())
    assert roles.count("columnheader") == 11
    assert roles.count("rowheader") == drawn
    assert roles.count("row") == drawn + 1
    grid = page.element("#table")
    assert (grid.aria_role, grid.accessible_name) == ("grid", "All symbols")
    assert grid.get_attribute("aria-rowcount") == "111"
    assert page.run("return [...rows.children].slice(0, 2).map(row => row.ariaRowIndex)") == ["2", "3"]
    assert page.run("return document.querySelectorAll('[aria-sort]').length") == 1
