"""The strip of the last 24 hours, over a made-up day."""

from collections.abc import Iterator

import pytest
from selenium.webdriver import ActionChains, Keys

from tests.support.browser import Browser
from tests.support.page_files import aged, quarter, quarter_start_s, serve, write
from tests.support.programs import Server

WATCHED_SINCE = 80
"""The first quarter hour that was watched; those before it were not."""
LAST = 96
"""Place of the quarter hour that has not ended yet."""
EVENTS: dict[int, dict[str, float]] = {
    70: {"unplanned": 2},
    60: {"mismatched": 3, "worst": 12.5},
    50: {"worst": 400.0},
    40: {"observed": 300},
    20: {"planned": 1},
}
"""What happened, by quarter hours ago."""
SAID = {
    70: ("warn", "worst age 3.1 s, 2 connections lost"),
    60: ("warn", "worst age 12.5 s, 3 rates mismatched"),
    50: ("bad", "worst age 400.0 s"),
    40: ("good", "worst age 3.1 s, watched for 5:00 min"),
    30: ("bad", "worst age 3.1 s, gap of 45 s"),
    20: ("good", "worst age 3.1 s, 1 connection replaced as planned"),
    10: ("bad", "worst age 3.1 s, gap of 1:40 min"),
    9: ("bad", "worst age 3.1 s, gap of 15:00 min"),
    8: ("bad", "worst age 3.1 s, gap of 3:20 min"),
}
"""How the page judges it, and in which words. The gaps of 10 to 8 are one."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server alone, over the day's file."""
    folder = tmp_path_factory.mktemp("host")
    history = [quarter(ago, **EVENTS.get(ago, {})) for ago in range(WATCHED_SINCE, -1, -1)]
    gaps = [
        {"start": quarter_start_s(30) + 100, "seconds": 45, "cause": "stream: it was cut"},
        {"start": quarter_start_s(9) - 100, "seconds": 1200, "cause": "not running"},
    ]
    write(folder, {"BTCUSDT": aged(0.5)}, history=history, gaps=gaps)
    with serve(folder) as server:
        yield server


@pytest.fixture
def page(browser: Browser, server: Server) -> Browser:
    """The page, with its strip loaded."""
    browser.open(server)
    browser.wait(f"strip.children.length === {LAST + 1}", "the quarter hours")
    return browser


def hours_and_minutes(server: Server, place: int) -> str:
    """Return how the page names the quarter hour at a place of the report."""
    minutes = server.get("/funding/report")[1]["timeline"][place]["start"] // 60
    names = [f"{minute // 60 % 24:02d}:{minute % 60:02d}" for minute in (minutes, minutes + 15)]
    return " to ".join(names)


def test_every_quarter_hour_is_judged(page: Browser) -> None:
    """Not watched, fresh, a loss or a mismatch, a gap or stale data: at the place where it was."""
    states = page.run("return [...strip.children].map(item => item.dataset.state)")
    expected = ["none"] * (LAST - WATCHED_SINCE) + ["good"] * (WATCHED_SINCE + 1)
    for ago, (state, _) in SAID.items():
        expected[LAST - ago] = state
    assert states[:LAST] == expected[:LAST]


@pytest.mark.parametrize("ago", SAID)
def test_a_quarter_hour_is_described_by_the_pointer(page: Browser, server: Server, ago: int) -> None:
    """What is under the pointer is described in a sentence."""
    item = page.run("return strip.children[arguments[0]]", LAST - ago)
    ActionChains(page.driver).move_to_element(item).perform()
    assert page.text("#quarter") == f"{hours_and_minutes(server, LAST - ago)}, {SAID[ago][1]}"


def test_quarter_hours_are_walked_through_by_keys(page: Browser, server: Server) -> None:
    """The newest first; arrows go to its neighbours, Page keys an hour further, Home and End to the ends."""
    page.run("strip.previousElementSibling.tabIndex = -1; strip.previousElementSibling.focus()")
    page.press(Keys.TAB)
    assert page.run("return document.activeElement.id") == "strip"
    steps = [
        (Keys.ARROW_LEFT, LAST - 1),
        (Keys.PAGE_UP, LAST - 5),
        (Keys.ARROW_RIGHT, LAST - 4),
        (Keys.PAGE_DOWN, LAST),
        (Keys.ARROW_RIGHT, LAST),
        (Keys.HOME, 0),
        (Keys.ARROW_LEFT, 0),
        (Keys.END, LAST),
    ]
    for key, place in steps:
        page.press(key)
        assert page.text("#quarter").startswith(hours_and_minutes(server, place)), key
        assert page.run("return [...strip.children].findIndex(one => one.ariaSelected === 'true')") == place


def test_a_screen_reader_is_given_each_quarter_hour(page: Browser, server: Server) -> None:
    """As options of a list box that has a name, each with the same sentence, of which one is the active one."""
    strip = page.element("#strip")
    assert (strip.aria_role, strip.accessible_name) == ("listbox", "Last 24 hours, by quarter hour")
    page.run("strip.focus()")
    page.press(Keys.HOME)
    tree = page.set("Accessibility.getFullAXTree")["nodes"]
    options = [node["name"]["value"] for node in tree if node.get("role", {}).get("value") == "option"]
    assert len(options) == LAST + 1
    assert options[0] == f"{hours_and_minutes(server, 0)}, not watched"
    for ago, (_, words) in SAID.items():
        assert options[LAST - ago] == f"{hours_and_minutes(server, LAST - ago)}, {words}"
    active = page.run("return document.getElementById(strip.getAttribute('aria-activedescendant')).ariaLabel")
    assert active == options[0]


def test_the_day_is_summed_up(page: Browser) -> None:
    """How much of it was watched, and what the report counts."""
    words = page.text("#summary")
    assert " watched · worst age 6:40 min · 2 gaps of 20:45 min · 2 connections lost · 3 rates mismatched" in words
