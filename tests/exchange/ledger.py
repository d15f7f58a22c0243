"""What the exchange has settled, and its answers to `GET /fapi/v1/fundingRate`.

Every settlement follows from the market, the symbol and the time, so a test can recompute each row. A ledger has no
clock: whoever asks says what time it is.
"""

from __future__ import annotations

import bisect
import zlib
from collections import deque
from collections.abc import Mapping
from typing import Any

from tests.exchange.market import HOUR_MS, Market

SETTLED_LATE_MS = 48
"""A settlement is dated 0 to 47 ms after the moment at which it was due."""
MARK_PRICES_SINCE_MS = 1_698_739_200_000
"""2023-10-31T08:00Z. Older rows have no mark price."""
DEFAULT_LIMIT, MAX_LIMIT, MAX_NEWEST_OF_SYMBOL = 100, 1000, 500
MAX_REQUESTS, REQUESTS_WINDOW_S = 500, 300.0
EARLIEST_MS = 1_567_296_000_000
"""2019-09-01. The exchange has settled nothing before."""
DIVIDEND_IN = 500
"""One of so many settlements of an equity perpetual is followed by a dividend."""

Row = dict[str, Any]


class Ledger:
    """The settlements of one market. A test may change everything public at any time, before it asks for it."""

    def __init__(self, market: Market, *, published_after_s: float = 0.0) -> None:
        self.published_after_s = published_after_s
        """Time from a settlement until it can be asked for."""
        self.published_late_s: dict[str, float] = {}
        """More of this time, by symbol."""
        self.late_of_ms: dict[int, int] = {}
        """By due time in ms: how late all its settlements are dated. Others are 0 to 47 ms late, by symbol and time."""
        self.dividends: dict[tuple[str, int], int] = {}
        """By symbol and due time in ms: a dividend is dated so many ms after the ordinary settlement."""
        self.cancelled: set[tuple[str, int]] = set()
        """By symbol and due time in ms: settlements that did not take place."""
        self.listed_since_ms: dict[str, int] = {}
        """A symbol that is named here is settled after this moment only."""
        self.listed_until_ms: dict[str, int] = {}
        """A symbol that is named here is settled before this moment only."""
        self._market = market
        self._symbols: dict[str, None] = {}  # every symbol ever seen, in a fixed order
        self._changes: dict[str, list[tuple[int, int]]] = {}  # by symbol: from which ms on it has which interval
        self._by_due_time: dict[int, list[Row]] = {}

    def change_interval(self, symbol: str, at_ms: int, hours: int) -> None:
        """Let a symbol have another funding interval from this moment on. Changes are given in ascending order."""
        self._changes.setdefault(symbol, []).append((at_ms, hours))

    def interval_h(self, symbol: str, at_ms: int) -> int:
        """Return the hours between two settlements of a symbol that are in force at a moment."""
        changes = self._changes.get(symbol, [])
        place = bisect.bisect_right(changes, (at_ms, 99))
        return changes[place - 1][1] if place else self._market.funding_interval_h(symbol)

    def next_funding_time_ms(self, symbol: str, at_ms: int) -> int:
        """Return the time of the next settlement of a symbol, as rows of that moment show it."""
        interval_ms = self.interval_h(symbol, at_ms) * HOUR_MS
        return (at_ms // interval_ms + 1) * interval_ms

    def is_due(self, symbol: str, at_ms: int) -> bool:
        """Whether a symbol is settled at a moment. The interval in force just before decides."""
        is_whole = at_ms % (self.interval_h(symbol, at_ms - 1) * HOUR_MS) == 0
        is_listed = self.listed_since_ms.get(symbol, 0) < at_ms < self.listed_until_ms.get(symbol, at_ms + 1)
        return is_whole and is_listed and (symbol, at_ms) not in self.cancelled

    def rows(self, start_ms: int, end_ms: int, symbol: str | None = None) -> list[Row]:
        """Return everything settled within a time, both ends included, published or not, in ascending order."""
        found = []
        for due_ms in range(start_ms // HOUR_MS * HOUR_MS, end_ms + 1, HOUR_MS):
            if symbol is None:
                settled = self._settled_at(due_ms)
            else:
                settled = self._settled(symbol, due_ms) if self.is_due(symbol, due_ms) else []
            found += [row for row in settled if start_ms <= row["fundingTime"] <= end_ms]
        return found

    def published(self, start_ms: int, end_ms: int, now_ms: int, symbol: str | None = None) -> list[Row]:
        """Return what can be asked for of it by now."""
        return [row for row in self.rows(start_ms, min(end_ms, now_ms), symbol) if self._is_published(row, now_ms)]

    def answer(self, query: Mapping[str, str], now_ms: int) -> tuple[int, Any]:
        """Answer `GET /fapi/v1/fundingRate` with these parameters: HTTP status and JSON body.

        In a window with more rows than `limit` the oldest come; without a start the newest. A start of 0 counts as
        not sent.
        """
        symbol = query.get("symbol")
        limit = int(query.get("limit", DEFAULT_LIMIT))
        if limit > MAX_LIMIT:
            data = {"field": "limit", "message": f"must be less than or equal to {MAX_LIMIT}"}
            return 400, {"status": "ERROR", "type": "VALID", "code": "000002", "errorData": data}
        if symbol is not None and not self._market.has(symbol):
            return 400, {"code": -1121, "msg": "Invalid symbol."}
        start_ms, end_ms = int(query.get("startTime", 0)), int(query.get("endTime", now_ms))
        if start_ms:
            return 200, self.published(start_ms, end_ms, now_ms, symbol)[:limit]
        if symbol is not None and "endTime" not in query:
            limit = min(limit, MAX_NEWEST_OF_SYMBOL)
        return 200, self._newest(end_ms, now_ms, symbol, limit)

    def _newest(self, end_ms: int, now_ms: int, symbol: str | None, limit: int) -> list[Row]:
        found: list[Row] = []
        hour_ms = min(end_ms, now_ms) // HOUR_MS * HOUR_MS
        while len(found) < limit and hour_ms >= EARLIEST_MS:
            found = self.published(hour_ms, min(end_ms, hour_ms + HOUR_MS - 1), now_ms, symbol) + found
            hour_ms -= HOUR_MS
        return found[-limit:]

    def _is_published(self, row: Row, now_ms: int) -> bool:
        after_s = self.published_after_s + self.published_late_s.get(row["symbol"], 0.0)
        return bool(row["fundingTime"] + after_s * 1000 <= now_ms)

    def _settled_at(self, due_ms: int) -> list[Row]:
        if due_ms not in self._by_due_time:
            self._symbols.update(dict.fromkeys(sorted(self._market.symbols)))
            rows = [
                row for symbol in self._symbols if self.is_due(symbol, due_ms) for row in self._settled(symbol, due_ms)
            ]
            self._by_due_time[due_ms] = sorted(rows, key=lambda row: int(row["fundingTime"]))
        return self._by_due_time[due_ms]

    def _settled(self, symbol: str, due_ms: int) -> list[Row]:
        streamed, seed = self._market.row(symbol, due_ms), _seed(symbol, due_ms)
        late_ms = self.late_of_ms.get(due_ms, seed % SETTLED_LATE_MS)
        mark_price = streamed["p"] if due_ms >= MARK_PRICES_SINCE_MS else ""
        row = {
            "symbol": symbol,
            "fundingTime": due_ms + late_ms,
            "fundingRate": streamed["r"],
            "markPrice": mark_price,
            "rateType": "Regular",
        }
        after_ms = self.dividends.get((symbol, due_ms))
        if after_ms is None and symbol in self._market.tradfi_symbols and seed % DIVIDEND_IN == 0:
            after_ms = 8 + seed % 945
        if after_ms is None:
            return [row]
        rate = f"{-(1 + seed % 124) / 10_000:.8f}"
        return [
            row,
            {**row, "fundingTime": row["fundingTime"] + after_ms, "fundingRate": rate, "rateType": "Special"},
        ]


class SharedAllowance:
    """The requests for `fundingRate` and `fundingInfo` that one IP may send in 5 minutes."""

    def __init__(self, most: int = MAX_REQUESTS) -> None:
        self.most = most
        self._asked_s: deque[float] = deque()

    def take(self, now_s: float) -> float:
        """Count a request; return 0, or the seconds until the next one is answered."""
        while self._asked_s and self._asked_s[0] <= now_s - REQUESTS_WINDOW_S:
            self._asked_s.popleft()
        self._asked_s.append(now_s)
        over = len(self._asked_s) - self.most
        return self._asked_s[over - 1] + REQUESTS_WINDOW_S - now_s if over > 0 else 0.0


def _seed(symbol: str, due_ms: int) -> int:
    return zlib.crc32(f"{symbol}{due_ms}".encode())
