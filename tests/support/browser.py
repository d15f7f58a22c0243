"""A headless Chromium that shows the page, for tests: what it shows, how it is used, what it did on the side."""

import contextlib
import json
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import websocket
from selenium.webdriver import ActionChains, Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from tests.support.programs import Server
from tests.support.tools import find
from tests.support.waiting import PATIENCE_S, eventually

# It talks to nobody but the page's server, and needs neither a display nor the right to make a sandbox.
_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation", event => violations.push(event.violatedDirective));
"""


class Browser:
    """One window. `driver` is Selenium's; what is asked often has a method here."""

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver
        self._before: list[str] = []
        self.resize(1500, 1400)
        self.set("Emulation.setTimezoneOverride", timezoneId="UTC")

    def set(self, command: str, **parameters: Any) -> Any:
        """Send a command of the Chrome DevTools Protocol: https://chromedevtools.github.io/devtools-protocol/."""
        return self.driver.execute_cdp_cmd(command, parameters)

    def resize(self, width: int, height: int) -> None:
        """Give the page a size in CSS pixels."""
        self.set(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def prefer(self, scheme: str) -> None:
        """Prefer "light" or "dark"."""
        self.set("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def open(self, server: Server, before: str = "", chosen: str = "") -> None:
        """Open the page anew, without the favourites of another test. `before` is run ahead of its own script.

        `chosen` is put behind # in the address.
        """
        while self._before:
            self.set("Page.removeScriptToEvaluateOnNewDocument", identifier=self._before.pop())
        for source in (_WATCH, before):
            answer = self.set("Page.addScriptToEvaluateOnNewDocument", source=source)
            self._before.append(answer["identifier"])
        self.driver.get("about:blank")  # only what stands behind # may differ, which would load nothing
        self.set("Storage.clearDataForOrigin", origin=f"http://127.0.0.1:{server.port}", storageTypes="local_storage")
        self.driver.get(f"http://127.0.0.1:{server.port}/{chosen}")

    def run(self, script: str, *arguments: Any) -> Any:
        """Run a script in the page; its arguments are in `arguments`, and it may `return` something."""
        return self.driver.execute_script(script, *arguments)

    def run_until_done(self, script: str, *arguments: Any) -> Any:
        """Run a script that calls `done(value)` sooner or later; return the value. Asks nothing in the meantime."""
        self.driver.set_script_timeout(PATIENCE_S)
        return self.driver.execute_async_script(f"const done = [...arguments].pop(); {script}", *arguments)

    def records(self, log: str) -> list[dict[str, Any]]:
        """Return what has come into one of Selenium's logs since the last time."""
        entries: list[dict[str, Any]] = self.driver.get_log(log)  # type: ignore[no-untyped-call]
        return entries

    def wait(self, expression: str, what: str, within_s: float = PATIENCE_S) -> Any:
        """Return the first true value of an expression of the page."""
        try:
            return eventually(lambda: self.run(f"return {expression}"), what, within_s)
        except AssertionError as error:
            raise AssertionError(f"{error}; the page says {self.text('#headline')!r}") from None

    def text(self, selector: str) -> str:
        """Return the whole text of one element, as a screen reader finds it."""
        text: str = self.run("return document.querySelector(arguments[0]).textContent", selector)
        return " ".join(text.split())

    def element(self, selector: str) -> WebElement:
        """Return the first element."""
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def wait_for_state(self, state: str, words: str, within_s: float = PATIENCE_S) -> None:
        """Wait until status line and alert show this state, in these words among others."""
        told = "headline.textContent + ' ' + document.getElementById('alert').textContent"
        shown = f"headline.dataset.state === {json.dumps(state)} && ({told}).includes({json.dumps(words)})"
        self.wait(shown, f"the page says that it is {state}: {words}", within_s)

    def wait_for_rows(self, count: int) -> None:
        """Wait until the table holds so many symbols, in sight or not."""
        self.wait(f"document.getElementById('table').ariaRowCount === '{count + 1}'", f"{count} rows")

    def row(self, symbol: str) -> dict[str, str]:
        """Return the texts of a symbol's row that can be read, by the names of the columns."""
        cells: dict[str, str] = self.run(
            "const heads = [...columns.children].map(head => head.textContent);"
            "const row = [...rows.children].find(row => row.children[1].textContent === arguments[0]);"
            "return Object.fromEntries([...row.children].map((cell, i) => [heads[i], cell])"
            ".filter(([, cell]) => cell.checkVisibility()).map(([head, cell]) => [head, cell.textContent]))",
            symbol,
        )
        return cells

    def symbols(self) -> list[str]:
        """Return the symbols of the rows that are drawn, from the top."""
        found: list[str] = self.run("return [...rows.children].map(row => row.children[1].textContent)")
        return found

    def click_column(self, name: str) -> None:
        """Click on the head of a column."""
        self.driver.find_element("xpath", f"//*[@id='columns']//button[text()='{name}']").click()

    def press(self, *keys: str) -> None:
        """Press keys one after the other, wherever the focus is."""
        ActionChains(self.driver).send_keys(*keys).perform()

    @contextmanager
    def traced(self) -> Iterator[list[float]]:
        """Yield a list that, after the block, holds the milliseconds of each task of the page's main thread.

        Of the processor, not of the clock: on a busy machine that shows what else is running there.
        """
        address = self.driver.capabilities["goog:chromeOptions"]["debuggerAddress"]
        with urllib.request.urlopen(f"http://{address}/json/version", timeout=PATIENCE_S) as answer:
            url = json.load(answer)["webSocketDebuggerUrl"]
        devtools = websocket.create_connection(url, suppress_origin=True, timeout=PATIENCE_S)
        tasks_ms: list[float] = []
        with contextlib.closing(devtools):
            categories = {"includedCategories": ["disabled-by-default-devtools.timeline"], "excludedCategories": ["*"]}
            devtools.send(json.dumps({"id": 1, "method": "Tracing.start", "params": {"traceConfig": categories}}))
            assert json.loads(devtools.recv()) == {"id": 1, "result": {}}
            yield tasks_ms
            devtools.send(json.dumps({"id": 2, "method": "Tracing.end"}))
            events: list[dict[str, Any]] = []
            while (message := json.loads(devtools.recv())).get("method") != "Tracing.tracingComplete":
                events += message.get("params", {}).get("value", [])
        threads = {(one["pid"], one["tid"]): one["args"]["name"] for one in events if one["name"] == "thread_name"}
        # One that was under way when the trace began or ended has no duration.
        tasks = [one for one in events if one["name"] == "RunTask" and "tdur" in one]
        tasks_ms += [one["tdur"] / 1000 for one in tasks if threads[one["pid"], one["tid"]] == "CrRendererMain"]

    def violations(self) -> list[str]:
        """Return which directives of its policy the page has violated."""
        found: list[str] = self.run("return violations")
        return found


@contextmanager
def chromium(**logging: str) -> Iterator[Browser]:
    """A browser with a profile of its own. `logging` is Selenium's, such as performance="ALL".

    Skips the test where Chromium is missing.
    """
    options = ChromeOptions()
    options.binary_location = find("chromium", "chromium")
    driver_path = find("chromedriver", "chromium-driver")
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        for flag in (*_FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", **logging})
        driver = Chrome(options=options, service=Service(driver_path))
        try:
            yield Browser(driver)
        finally:
            driver.quit()
