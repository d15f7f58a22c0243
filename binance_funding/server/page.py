"""The page for browsers: one file, and after it a plain table for browsers that run no script.

A browser runs no script and applies no style on the page but the page's own.
"""

import base64
import hashlib
import html
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

CONTENT = Path(__file__).with_name("page.html").read_bytes()
"""The page without its table for browsers that run no script. It needs no closing tags: HTML makes them optional."""
_PLAIN_ROWS = 20
_MS_PER_S = 1000


def _source(tag: bytes) -> str:
    """Return the source expression that allows the one element with this tag.

    Source: https://www.w3.org/TR/CSP3/, section 2.3.1.
    """
    (text,) = re.findall(b"<%b>(.*?)</%b>" % (tag, tag), CONTENT, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'"


_POLICY = (
    f"default-src 'none'; script-src {_source(b'script')}; style-src {_source(b'style')}; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
VARY = ("Vary", "Accept, Accept-Encoding")
HEADERS = (
    VARY,
    ("Content-Type", "text/html; charset=utf-8"),
    ("Cache-Control", "no-cache"),
    ("Content-Security-Policy", _POLICY),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
)


def plain_table(fresh: Iterable[Mapping[str, Any]]) -> bytes:
    """Return the highest and lowest rates as HTML to be sent after CONTENT, for browsers that run no script.

    `fresh` are the records, as they are served, that may be shown: neither stale nor halted nor delisted. The text
    changes only when a record does.
    """
    records = sorted(fresh, key=lambda record: record["annualizedFundingRate"], reverse=True)
    if not records:
        return b"<noscript><h1>Binance USD-M funding rates</h1><p>No fresh data.</p></noscript>\n"
    as_of = _utc("%Y-%m-%d %H:%M:%S", max(record["updatedAt"] for record in records))
    tables = _table("Highest", records[:_PLAIN_ROWS]) + _table("Lowest", records[: -_PLAIN_ROWS - 1 : -1])
    text = (
        f"<noscript><h1>Binance USD-M funding rates</h1><p>As of {as_of} UTC, {len(records)} symbols with fresh data. "
        "Longs pay shorts if a rate is positive, shorts pay longs if it is negative. "
        f'Everything else needs JavaScript, or <a href="/funding">/funding</a>.</p>{tables}</noscript>\n'
    )
    return text.encode()


def _table(caption: str, records: list[Mapping[str, Any]]) -> str:
    heads = ("Symbol", "Rate", "Interval", "Annualized", "Next, UTC", "Mark price")
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    return f"<table><caption>{caption}</caption><tr>{head}</tr>{''.join(map(_row, records))}</table>"


def _row(record: Mapping[str, Any]) -> str:
    assumed = " assumed" if record.get("fundingIntervalAssumed") else ""
    cells = (
        f"{record['fundingRate']:+.4%}",
        f"{record['fundingIntervalHours']} h{assumed}",
        f"{record['annualizedFundingRate']:+.2%}",
        _utc("%H:%M", record["nextFundingTime"] / _MS_PER_S),
        f"{record['markPrice']:,.7g}",
    )
    symbol = html.escape(record["symbol"])
    return f'<tr><th scope="row">{symbol}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def _utc(form: str, time_s: float) -> str:
    return time.strftime(form, time.gmtime(time_s))
