"""Takes docs/page.png anew, over a simulated exchange and a made-up past: `python -m tests.support.page_picture`."""

import base64
import tempfile
from pathlib import Path
from typing import Any

from tests.exchange import Exchange, Market
from tests.support.browser import chromium
from tests.support.page_files import (
    QUARTER_S,
    quarter,
    quarter_start_s,
    serve,
    settled,
    settlements,
    write,
    write_history,
)
from tests.support.programs import ROOT, Daemon

_PICTURE = ROOT / "docs" / "page.png"
_EVENTS: dict[int, dict[str, float]] = {70: {"unplanned": 1}, 48: {"planned": 2}, 31: {"mismatched": 2}}
_OPEN = "ETHUSDT"


def main() -> None:
    """Let the daemon write the file, add a past to it, and take the picture."""
    # The market has as many symbols as have names of their own; the others have made-up names.
    market = Market(usd_m=40, tradfi=19, coin_m=2, fundless=2)
    start_s = quarter_start_s()
    history = [quarter(start_s - ago * QUARTER_S, **_EVENTS.get(ago, {})) for ago in range(88, -1, -1)]
    with tempfile.TemporaryDirectory(prefix="page-") as name:
        folder = Path(name)
        write_history(folder, {_OPEN: settlements(8)})
        with Exchange(market, tick_s=1.0) as exchange, Daemon(exchange, folder) as daemon:
            daemon.wait_for_live()
            # Not every machine has a font for symbols that are not ASCII.
            named = {symbol: record for symbol, record in daemon.records().items() if symbol.isascii()}
            records = {symbol: _with_past(record) for symbol, record in named.items()}
        with serve(folder) as server, chromium() as browser:
            browser.resize(1280, 800)
            write(folder, records, history=history)
            browser.open(server, chosen=f"#open={_OPEN}&favourites=BTCUSDT,{_OPEN}")
            browser.wait_for_rows(len(records))
            browser.wait("past.rows.length && strip.children.length === 97", "the chart and the strip")
            picture = browser.set("Page.captureScreenshot", format="png")["data"]
    _PICTURE.write_bytes(base64.b64decode(picture))


def _with_past(record: dict[str, Any]) -> dict[str, Any]:
    rate, per_day = record["fundingRate"], 24 / record["fundingIntervalHours"]
    sums = {"fundingRateSum24h": rate * per_day * 0.8, "fundingRateSum30d": rate * per_day * 24}
    return {
        **record,
        **settled(rate * 0.9, rate * per_day * 6),
        **sums,
        "fundingRateCap": 0.003,
        "fundingRateFloor": -0.003,
    }


if __name__ == "__main__":
    main()
