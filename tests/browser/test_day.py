"""The strip of the last 24 hours, over a made-up day."""

from pathlib import Path

import pytest
from selenium.webdriver import ActionChains, Keys

from tests.support.browser import Browser
from tests.support.page_files import QUARTER_S, aged, quarter, quarter_start_s, write
from tests.support.programs import Server

WATCHED_SINCE = 80
"""How many quarter hours ago it was first watched."""
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


START_S = quarter_start_s()
"""When the quarter hour began in which the file is written; the next may have begun when a test looks."""


def start_s(ago: int) -> int:
    """Return when the quarter hour began that was so many before."""
    return START_S - ago * QUARTER_S


def hours(start_s: int) -> str:
    """Return how the page names a quarter hour."""
    names = [f"{at // 3600 % 24:02d}:{at // 60 % 60:02d}" for at in (start_s, start_s + QUARTER_S)]
    return " to ".join(names)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the day's file."""
    folder: Path = tmp_path_factory.mktemp("host")
    history = [quarter(start_s(ago), **EVENTS.get(ago, {})) for ago in range(WATCHED_SINCE, -1, -1)]
    gaps = [
        {"start": start_s(30) + 100, "seconds": 45, "cause": "stream: it was cut"},
        {"start": start_s(9) - 100, "seconds": 1200, "cause": "not running"},
    ]
    write(folder, {"BTCUSDT": aged(0.5)}, history=history, gaps=gaps)
    return folder


@pytest.fixture
def page(browser: Browser, server: Server) -> Browser:
    """The page, with its strip loaded."""
    browser.open(server)
    browser.wait("strip.children.length === 97", "the quarter hours")
    return browser


def test_every_quarter_hour_is_judged(page: Browser) -> None:
    """Not watched, fresh, a loss or a mismatch, a gap or stale data: at the place where it was."""
    states = page.run("return Object.fromEntries([...strip.children].map(item => [item.id, item.dataset.state]))")
    watched = {f"q{start_s(ago)}": SAID.get(ago, ("good", ""))[0] for ago in range(WATCHED_SINCE, 0, -1)}
    assert watched.items() <= states.items()
    assert {state for name, state in states.items() if name < f"q{start_s(WATCHED_SINCE)}"} == {"none"}


@pytest.mark.parametrize("ago", SAID)
def test_a_quarter_hour_is_described_by_the_pointer(page: Browser, ago: int) -> None:
    """What is under the pointer is described in a sentence."""
    ActionChains(page.driver).move_to_element(page.element(f"#q{start_s(ago)}")).perform()
    assert page.text("#quarter") == f"{hours(start_s(ago))}, {SAID[ago][1]}"


def test_quarter_hours_are_walked_through_by_keys(page: Browser) -> None:
    """The newest first; arrows go to its neighbours, Page keys an hour further, Home and End to the ends."""
    starts_s = page.run("return [...strip.children].map(item => Number(item.id.slice(1)))")
    page.run("strip.focus()")
    steps = [
        (Keys.ARROW_LEFT, -2),
        (Keys.PAGE_UP, -6),
        (Keys.ARROW_RIGHT, -5),
        (Keys.PAGE_DOWN, -1),
        (Keys.ARROW_RIGHT, -1),
        (Keys.HOME, 0),
        (Keys.ARROW_LEFT, 0),
        (Keys.END, -1),
    ]
    for key, place in steps:
        page.press(key)
        assert page.text("#quarter").startswith(hours(starts_s[place])), key
        selected = page.run("return [...strip.children].filter(one => one.ariaSelected === 'true').map(one => one.id)")
        assert selected == [f"q{starts_s[place]}"]


def test_a_screen_reader_is_given_each_quarter_hour(page: Browser) -> None:
    """As options of a list box that has a name, each with the same sentence, of which one is the active one."""
    strip = page.element("#strip")
    assert (strip.aria_role, strip.accessible_name) == ("listbox", "Last 24 hours, by quarter hour")
    page.run("strip.focus()")
    page.press(Keys.HOME)
    tree = page.set("Accessibility.getFullAXTree")["nodes"]
    options = [node["name"]["value"] for node in tree if node.get("role", {}).get("value") == "option"]
    options = [name for name in options if ":" in name]
    assert len(options) == 97
    assert options[0].endswith(", not watched")
    assert {f"{hours(start_s(ago))}, {words}" for ago, (_, words) in SAID.items()} <= set(options)
    active = page.run("return document.getElementById(strip.getAttribute('aria-activedescendant')).ariaLabel")
    assert active == options[0]


def test_the_day_is_summed_up(page: Browser) -> None:
    """How much of it was watched, and what the report counts."""
    words = page.text("#summary")
    assert page.text("#freshness") == (
        "Of all symbol-seconds 99.998% were within 5 s, 99.999% within 12 s, 100% within the limit of 3:00 min. "
        "Ages are exact to 0.12 s."
    )
    assert " watched · worst age 6:40 min · 2 gaps of 20:45 min · 2 connections lost · 3 rates mismatched" in words


def test_shares_that_are_not_known_are_left_out(page: Browser) -> None:
    """As on the first second of a new host: a share of nothing is not 0 %."""
    names = ("within5Seconds", "within12Seconds", "withinLimit")
    said = page.run("return describeFreshness({freshness: arguments[0]})", dict.fromkeys(names))
    assert said == "Ages are exact to 0.12 s."
