"""What is answered from the settlement history. Pure but for reading the file.

Facts of the exchange, as of November 2026 [1]: `fundingRate` has the parameters `symbol`, `startTime`, `endTime` (both
included) and `limit` (100; at most 1,000). Of a window with more rows the oldest come, without `startTime` the newest,
and with a symbol and no times at most 500 of them. `startTime=0` counts as not sent.
[1] https://developers.binance.com/docs/derivatives/usds-margined-futures/market-data/rest-api/Get-Funding-Rate-History
"""

import csv
import io
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ..settlements import DAY_MS, E8, REGULAR, HistoryFault, Settlement, SettlementReader, Window, to_decimal

HISTORY_PARAMETERS = ("from", "to", "limit", "format")
_DEFAULT_DAYS = 30
_HOURS_PER_YEAR = 24 * 365
_DIGITS = re.compile("[0-9]{1,15}", re.ASCII)
_FORMATS = ("json", "csv")

_JSON = ("Content-Type", "application/json; charset=utf-8")
_CSV = ("Content-Type", "text/csv; charset=utf-8; header=present")
_NO_STORE = ("Cache-Control", "no-store")
_HISTORY_CACHE = (("Cache-Control", "max-age=60"), ("Vary", "Accept"))
_BINANCE_CACHE = ("Cache-Control", "max-age=1")
# A commit of the daemon locks the file for a moment.
_RETRY_AFTER = ("Retry-After", "1")

_BINANCE_DEFAULT_LIMIT, _BINANCE_MAX_LIMIT, _BINANCE_MAX_NEWEST = 100, 1000, 500


class Answer(NamedTuple):
    """An HTTP answer. `content` is to be sent as JSON, or as it is if it is a text (CSV)."""

    status: int
    content: Any
    headers: tuple[tuple[str, str], ...]


class _BadParameter(ValueError):
    """A parameter has a value that is not allowed."""


def symbol_history(
    reader: SettlementReader,
    symbol: str,
    query: Mapping[str, str],
    now_ms: int,
    *,
    is_listed: bool,
    accepts_csv: bool,
) -> Answer:
    """Answer `GET /funding/{symbol}/history`.

    query: the parameters, of which HISTORY_PARAMETERS are allowed.
    now_ms: Binance's time. is_listed: whether the state file has the symbol; a delisted one may have a history.
    """
    try:
        to_ms = min(_whole(query, "to", now_ms), now_ms)
        from_ms = _whole(query, "from", max(0, to_ms - _DEFAULT_DAYS * DAY_MS))
        limit = _whole(query, "limit", None, least=1)
        wants_csv = _format(query, "csv" if accepts_csv else "json") == "csv"
        window = reader.history(symbol, from_ms, to_ms, limit)
    except _BadParameter as error:
        return Answer(400, {"error": str(error)}, (_JSON, _NO_STORE))
    except HistoryFault as fault:
        return Answer(503, {"error": str(fault)}, (_JSON, _NO_STORE, _RETRY_AFTER))
    if not window.rows and not is_listed:
        return Answer(404, {"symbol": symbol, "error": "unknown symbol"}, (_JSON, *_HISTORY_CACHE))
    if wants_csv:
        return Answer(200, _to_csv(window.rows), (_CSV, *_HISTORY_CACHE))
    content = {"symbol": symbol, "from": window.from_ms, "to": to_ms, **_statistics(window)}
    return Answer(200, {**content, "data": [_row(row) for row in window.rows]}, (_JSON, *_HISTORY_CACHE))


def binance_funding_rate(
    reader: SettlementReader, query: Mapping[str, str], now_ms: int, *, is_listed: Callable[[str], bool]
) -> Answer:
    """Answer `GET /fapi/v1/fundingRate` as Binance does, as far back as the history reaches. Other parameters than
    Binance's are ignored, as Binance does.

    503 if an hour of that time is not known: a script would take what is there for everything.
    """
    try:
        limit = _whole(query, "limit", _BINANCE_DEFAULT_LIMIT, least=1)
        start_ms, end_ms = _whole(query, "startTime", 0), _whole(query, "endTime", now_ms)
    except _BadParameter as error:
        return Answer(400, {"code": -1100, "msg": str(error)}, (_JSON, _NO_STORE))
    if limit > _BINANCE_MAX_LIMIT:
        data = {"field": "limit", "message": f"must be less than or equal to {_BINANCE_MAX_LIMIT}"}
        content = {"status": "ERROR", "type": "VALID", "code": "000002", "errorData": data}
        return Answer(400, content, (_JSON, _NO_STORE))
    symbol = query.get("symbol")
    if symbol is not None and not start_ms and "endTime" not in query:
        limit = min(limit, _BINANCE_MAX_NEWEST)
    try:
        window = reader.window(start_ms, min(end_ms, now_ms), limit, symbol=symbol, newest=not start_ms)
    except HistoryFault as fault:
        return Answer(503, {"code": -1001, "msg": str(fault)}, (_JSON, _NO_STORE, _RETRY_AFTER))
    if symbol is not None and not window.rows and not is_listed(symbol):
        return Answer(400, {"code": -1121, "msg": "Invalid symbol."}, (_JSON, _NO_STORE))
    if not window.is_complete:
        message = "settlements of this time are still being collected"
        return Answer(503, {"code": -1001, "msg": message}, (_JSON, _NO_STORE))
    return Answer(200, [_binance_row(row) for row in window.rows], (_JSON, _BINANCE_CACHE))


def _whole(query: Mapping[str, str], name: str, default: Any, least: int = 0) -> Any:
    text = query.get(name)
    if text is None:
        return default
    if not _DIGITS.fullmatch(text) or int(text) < least:
        raise _BadParameter(f"{name} must be a whole number, {least} or more")
    return int(text)


def _format(query: Mapping[str, str], default: str) -> str:
    for name in query:
        if name not in HISTORY_PARAMETERS:
            raise _BadParameter(f"unknown parameter; allowed: {', '.join(HISTORY_PARAMETERS)}")
    if query.get("format", default) not in _FORMATS:
        raise _BadParameter(f"format must be one of {', '.join(_FORMATS)}")
    return query.get("format", default)


def _statistics(window: Window) -> dict[str, Any]:
    """Return what the rows amount to.

    The sum is what a long position paid, dividends included; null if a settlement is missing. The average is weighted
    by time: the sum of the ordinary rates by the hours that they were paid for. So it holds whatever intervals there
    were. Rows whose interval is not known are left out of it.
    """
    timed = [row for row in window.rows if row.interval_hours]
    hours = sum(row.interval_hours or 0 for row in timed)
    rate_per_hour = sum(row.rate_e8 for row in timed) / E8 / hours if hours else None
    return {
        "count": len(window.rows),
        "complete": window.is_complete,
        "fundingRateSum": sum(row.rate_e8 for row in window.rows) / E8 if window.is_complete else None,
        "averageAnnualizedFundingRate": None if rate_per_hour is None else rate_per_hour * _HOURS_PER_YEAR,
    }


def _row(row: Settlement) -> dict[str, Any]:
    return {
        "fundingTime": row.funding_time_ms,
        "fundingRate": row.rate_e8 / E8,
        "markPrice": None if row.mark_price_e8 is None else row.mark_price_e8 / E8,
        "fundingIntervalHours": row.interval_hours,
        "rateType": row.rate_type,
        "lastEstimate": None if row.last_estimate_e8 is None else row.last_estimate_e8 / E8,
    }


def _to_csv(rows: list[Settlement]) -> str:
    """Write the members of the JSON rows under their names. Numbers have eight places, unknown values are empty."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(_row(Settlement("", 0, REGULAR, 0)))
    for row in rows:
        numbers = row.rate_e8, row.mark_price_e8, row.last_estimate_e8
        rate, mark_price, estimate = ("" if value is None else to_decimal(value) for value in numbers)
        writer.writerow((row.funding_time_ms, rate, mark_price, row.interval_hours, row.rate_type, estimate))
    return text.getvalue()


def _binance_row(row: Settlement) -> dict[str, Any]:
    return {
        "symbol": row.symbol,
        "fundingTime": row.funding_time_ms,
        "fundingRate": to_decimal(row.rate_e8),
        "markPrice": "" if row.mark_price_e8 is None else to_decimal(row.mark_price_e8),
        "rateType": row.rate_type,
    }
