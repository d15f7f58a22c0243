"""Takes docs/page.png anew, over a simulated exchange and a made-up day: `python -m tests.support.page_picture`."""

import base64
import tempfile
from pathlib import Path

from tests.exchange import Exchange, Market
from tests.support.browser import chromium
from tests.support.page_files import QUARTER_S, aged, quarter, quarter_start_s, write
from tests.support.programs import ROOT, Daemon, Server

_PICTURE = ROOT / "docs" / "page.png"
_EVENTS: dict[int, dict[str, float]] = {
    70: {"unplanned": 1},
    48: {"planned": 2},
    31: {"mismatched": 2},
    12: {"worst": 9},
}


def main() -> None:
    """Run both programs, wait for a good minute, take the picture."""
    # As many as have names of their own; those of the rest say that they are simulated.
    market = Market(usd_m=40, tradfi=19, coin_m=2, fundless=2)
    start_s = quarter_start_s()
    history = [quarter(start_s - ago * QUARTER_S, **_EVENTS.get(ago, {})) for ago in range(88, -1, -1)]
    gaps = [{"start": start_s - 12 * QUARTER_S, "seconds": 14, "cause": "stream and REST: no route to host"}]
    with tempfile.TemporaryDirectory(prefix="page-") as name, Exchange(market, tick_s=1.0) as exchange:
        folder = Path(name)
        write(folder, {"BTCUSDT": aged(8)}, history=history, gaps=gaps)
        with Daemon(exchange, folder, STALE_SECONDS=180) as daemon, Server(folder, STALE_SECONDS=180) as server:
            daemon.wait_for_live()
            with chromium() as browser:
                browser.resize(1280, 800)
                browser.open(server)
                browser.wait_for_state("healthy", f"{len(market.symbols)} symbols")
                browser.wait_for_rows(len(market.symbols))
                browser.wait("strip.children.length === 97", "the strip")
                picture = browser.set("Page.captureScreenshot", format="png")["data"]
    _PICTURE.write_bytes(base64.b64decode(picture))


if __name__ == "__main__":
    main()
