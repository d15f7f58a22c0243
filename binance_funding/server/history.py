"""The answer to `GET /funding/{symbol}/history`, from the settlement history. Pure but for reading its file."""

import csv
import io
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from .. import settlements
from ..settlements import DAY_MS, E8, HistoryFault, Settlement, Window
from .http.message import Request, Response
from .listing import dump
from .parameters import Given, InvalidParameter
from .representation import accepts

PARAMETERS = ("from", "to", "limit", "format")
_FORMATS = ("json", "csv")
_DEFAULT_DAYS = 30
_HOURS_PER_YEAR = 24 * 365

_JSON = ("Content-Type", "application/json; charset=utf-8")
_CSV = ("Content-Type", "text/csv; charset=utf-8; header=present")
_CACHEABLE = (("Cache-Control", "max-age=60"), ("Vary", "Accept"))
# The daemon locks the file for a moment when it writes.
_UNAVAILABLE = (_JSON, ("Cache-Control", "no-store"), ("Retry-After", "1"))
_COLUMNS = ("fundingTime", "fundingRate", "markPrice", "fundingIntervalHours", "rateType", "lastEstimate")


class Question(NamedTuple):
    """A request for the history of a symbol, with its decoded parameters."""

    symbol: str
    request: Request
    given: Given
    now_ms: int
    """Binance's time."""


def answer(path: str, question: Question, unknown: Response | None) -> Response:
    """Answer from the history in the file `path`.

    unknown: the answer if there is no settlement; None if the symbol is listed. A delisted one may have a history.
    """
    symbol, request, given, now_ms = question
    to_ms = min(_whole(given, "to", now_ms), now_ms)
    from_ms = _whole(given, "from", max(0, to_ms - _DEFAULT_DAYS * DAY_MS))
    limit = _whole(given, "limit", 0, least=1)
    is_csv_wanted = _is_csv_wanted(request, given)
    if from_ms > to_ms:
        raise InvalidParameter("'from' must not be later than 'to' or now")
    try:
        window = settlements.read(path, symbol, from_ms, to_ms, limit or None)
    except HistoryFault as fault:
        return Response(503, dump({"symbol": symbol, "error": str(fault)}), _UNAVAILABLE)
    if not window.rows and unknown is not None:
        return unknown
    if is_csv_wanted:
        return Response(200, _to_csv(window.rows), (_CSV, *_CACHEABLE))
    body = {"symbol": symbol, "from": window.from_ms, "to": to_ms, **_statistics(window)}
    return Response(200, dump({**body, "data": [_row(row) for row in window.rows]}), (_JSON, *_CACHEABLE))


def _whole(given: Given, name: str, default: int, least: int = 0) -> int:
    texts = given.get(name, ())
    if len(texts) > 1 or not all(re.fullmatch("[0-9]{1,15}", text) and int(text) >= least for text in texts):
        raise InvalidParameter(f"'{name}' must be one whole number, {least} or more")
    return int(texts[0]) if texts else default


def _is_csv_wanted(request: Request, given: Given) -> bool:
    formats = given.get("format", ())
    if len(formats) > 1 or not {*formats} <= {*_FORMATS}:
        raise InvalidParameter(f"'format' must be one of {', '.join(_FORMATS)}")
    return formats[0] == "csv" if formats else accepts(request.headers.get("accept", ""), "text/csv")


def _statistics(window: Window) -> dict[str, Any]:
    """Return sum and average of the rows.

    The sum is what a long position paid, dividends included; null if a settlement is missing. The average is weighted
    by time: the sum of the ordinary rates, by the hours for which they were paid. So it holds whatever intervals there
    were. Rows whose interval is not known are left out of it.
    """
    timed = [(row.rate_e8, row.interval_hours) for row in window.rows if row.interval_hours]
    rate, hours = sum(rate_e8 for rate_e8, _ in timed) / E8, sum(hours for _, hours in timed)
    return {
        "count": len(window.rows),
        "complete": window.is_complete,
        "fundingRateSum": sum(row.rate_e8 for row in window.rows) / E8 if window.is_complete else None,
        "averageAnnualizedFundingRate": round(rate / hours * _HOURS_PER_YEAR, 12) if hours else None,
    }


def _row(row: Settlement) -> dict[str, Any]:
    rate, mark_price, estimate = (None if value is None else value / E8 for value in _numbers(row))
    values = row.funding_time_ms, rate, mark_price, row.interval_hours, row.rate_type, estimate
    return dict(zip(_COLUMNS, values, strict=True))


def _to_csv(rows: list[Settlement]) -> bytes:
    """Write the members of the JSON rows under their names. Numbers have eight places; unknown values are empty."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(_COLUMNS)
    for row in rows:
        rate, mark_price, estimate = ("" if value is None else _to_decimal(value) for value in _numbers(row))
        writer.writerow((row.funding_time_ms, rate, mark_price, row.interval_hours, row.rate_type, estimate))
    return text.getvalue().encode()


def _numbers(row: Settlement) -> Iterator[int | None]:
    return iter((row.rate_e8, row.mark_price_e8, row.last_estimate_e8))


def _to_decimal(value_e8: int) -> str:
    whole, places = divmod(abs(value_e8), E8)
    return f"{'-' if value_e8 < 0 else ''}{whole}.{places:08d}"
