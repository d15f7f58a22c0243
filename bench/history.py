"""Settlement history: size of the file, time to write it, and time of the answers, for one day and for 90."""

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from bench.table import Line, markdown
from binance_funding.settlements import DAY_MS, E8, HOUR_MS, Settlement, SettlementWriter, read
from tests.exchange import Ledger, Market

_NOW_MS = 1_795_507_200_000
_LONGEST_DAYS = 90
_REPEATS = 9


def measure(folder: Path) -> str:
    """Return the table: the short history beside the long one."""
    day, long = (_figures(str(folder / f"{days}.sqlite3"), days) for days in (1, _LONGEST_DAYS))
    lines = [Line(what, long[what], day[what]) for what in long]
    return markdown(f"Settlement history, {_LONGEST_DAYS} days of 881 symbols", "one day", lines)


def _figures(path: str, days: int) -> dict[str, str]:
    ledger, writer = Ledger(Market()), SettlementWriter(path, days)
    rows, writing_s = 0, []
    for hour_ms in range(_NOW_MS, _NOW_MS - days * DAY_MS, -HOUR_MS):
        batch = [_settlement(row) for row in ledger.rows(hour_ms, hour_ms + HOUR_MS - 1)]
        began_s = time.perf_counter()
        writer.expect(hour_ms, {row.symbol: row.rate_e8 / E8 for row in batch})
        writer.add(batch, [hour_ms], _NOW_MS)
        writing_s.append(time.perf_counter() - began_s)
        rows += len(batch)
    summaries_ms = _median_ms(lambda: writer.summaries(_NOW_MS))
    next_hour_ms = _median_ms(lambda: writer.next_hour(_NOW_MS))
    awaited_ms = _median_ms(lambda: writer.is_awaiting(_NOW_MS))
    since_ms = _NOW_MS - days * DAY_MS
    read_ms = _median_ms(lambda: read(path, "ETHUSDT", since_ms, _NOW_MS))
    return {
        "rows": f"{rows:,}",
        "file": f"{os.path.getsize(path) / 1e6:.1f} MB",
        "writing everything": f"{sum(writing_s):.1f} s",
        "longest transaction": f"{max(writing_s) * 1000:.0f} ms",
        "sums of all symbols": f"{summaries_ms:.0f} ms",
        "looking for an unknown hour": f"{next_hour_ms:.1f} ms",
        "looking for awaited settlements": f"{awaited_ms:.1f} ms",
        "reading a symbol with 4 h, all days": f"{read_ms:.1f} ms",
    }


def _settlement(row: dict[str, str]) -> Settlement:
    rate_e8, price_e8 = (int(row[name].replace(".", "")) for name in ("fundingRate", "markPrice"))
    return Settlement(row["symbol"], int(row["fundingTime"]), row["rateType"], rate_e8, price_e8)


def _median_ms(action: Callable[[], object]) -> float:
    taken_s = []
    for _ in range(_REPEATS):
        began_s = time.perf_counter()
        action()
        taken_s.append(time.perf_counter() - began_s)
    return statistics.median(taken_s) * 1000
