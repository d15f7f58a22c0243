"""What the page may do: talk to its own server, and run its own script."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.browser import Browser, chromium
from tests.support.page_files import HOSTILE, market, settlements, write, write_history
from tests.support.programs import Server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser that keeps a record of every request."""
    with chromium(performance="ALL") as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, folder: Path, server: Server) -> Browser:
    """The page, with all that it loads."""
    write(folder, market())
    write_history(folder, {symbol: settlements(8) for symbol in market()})
    browser.open(server)
    browser.wait_for_rows(49)
    browser.wait("strip.children.length === 97", "the strip")
    return browser


def test_no_request_leaves_the_host(page: Browser, server: Server) -> None:
    """The page itself, the stream, health and the report are all that is ever asked for."""
    page.wait(
        "performance.getEntriesByName(location.origin + '/funding/health').length >= 2", "a second look at health"
    )
    messages = [json.loads(entry["message"])["message"] for entry in page.records("performance")]
    urls = {one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"}
    origin = f"http://127.0.0.1:{server.port}"
    expected = {f"{origin}/", *(f"{origin}/funding/{name}" for name in ("stream", "health", "report"))}
    assert {url for url in urls if not url.startswith(("data:", "chrome:"))} == expected


def test_the_page_obeys_its_own_policy(page: Browser) -> None:
    """It violates no directive, and nothing is written to the console."""
    page.element("#filter").send_keys("btc")
    page.click_column("Age")
    page.element("#rows .symbol button").click()
    page.wait("past.rows.length > 0 && chart !== null", "the chart")
    assert page.violations() == []
    assert page.records("browser") == []


@pytest.mark.parametrize(
    ("directive", "attempt"),
    [
        ("script-src-elem", "document.body.append(Object.assign(document.createElement('script'), {text: 'a = 1'}))"),
        ("script-src-attr", "document.body.insertAdjacentHTML('beforeend', '<p onclick=\"a = 1\">')"),
        (
            "style-src-elem",
            "document.head.append(Object.assign(document.createElement('style'), {textContent: 'p {}'}))",
        ),
        ("img-src", f"document.body.insertAdjacentHTML('beforeend', {json.dumps(HOSTILE)})"),
        ("connect-src", "fetch('http://localhost:1/').catch(() => {})"),
    ],
)
def test_what_does_not_belong_to_the_page_may_not_run(page: Browser, directive: str, attempt: str) -> None:
    """Where a name got past it, the browser would still refuse."""
    page.run(attempt)
    page.wait(f"violations.includes({json.dumps(directive)})", f"{directive} holds")
