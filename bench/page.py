"""The page: what it costs the browser while it is in sight and nobody touches it."""

import time
from collections.abc import Iterator
from pathlib import Path

from bench.machine import cpu_s
from bench.table import Line, markdown
from tests.exchange import Exchange, Market
from tests.support.browser import Browser, chromium
from tests.support.programs import Daemon, Server

_TICK_S = 3.0
_MEASURED_S = 30.0
_SETTLED_S = 5.0
_SIZE = (1280, 800)
_MOST = 0.03


def measure(folder: Path) -> str:
    """Return the table of the page: an empty page in the same browser is the yardstick."""
    market = Market()
    with (
        Exchange(market, tick_s=_TICK_S) as exchange,
        Daemon(exchange, folder, SILENCE_SECONDS=15, STALE_SECONDS=30) as daemon,
        Server(folder, STALE_SECONDS=30) as server,
        chromium() as browser,
    ):
        daemon.wait_for_live()
        browser.resize(*_SIZE)
        browser.driver.get("about:blank")
        empty = _share_of_a_core(browser)
        browser.open(server)
        browser.wait_for_rows(len(market.symbols))
        idle = _share_of_a_core(browser)
        browser.run("openRow(order[0].symbol)")
        opened = _share_of_a_core(browser)
    lines = [
        Line("visible and idle", f"{idle:.1%}", f"{empty:.1%}", None, f"at most {_MOST:.0%}", idle <= _MOST),
        Line("the same with a row open", f"{opened:.1%}", f"{empty:.1%}"),
    ]
    title = f"Page, {len(market.symbols)} symbols, a tick every {_TICK_S:g} s: share of a core that Chromium uses"
    return markdown(title, "empty page", lines)


def _share_of_a_core(browser: Browser) -> float:
    """Return the CPU time of all the browser's processes for each second, once it has settled."""
    time.sleep(_SETTLED_S)
    before_s = {pid: cpu_s(pid) for pid in _family(browser.driver.service.process.pid)}
    start_s = time.monotonic()
    time.sleep(_MEASURED_S)
    passed_s = time.monotonic() - start_s
    used_s = sum(cpu_s(pid) - before_s.get(pid, 0.0) for pid in _family(browser.driver.service.process.pid))
    return used_s / passed_s


def _family(pid: int) -> Iterator[int]:
    """Yield the processes that descend from a process. Source: man proc_pid_task(5), "children"."""
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in path.read_text(encoding="ascii").split():
            yield int(child)
            yield from _family(int(child))
