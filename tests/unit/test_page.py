"""The plain table of the page, for browsers that run no script."""

import re
from typing import Any

from binance_funding.server.page import CONTENT, HEADERS, plain_table
from binance_funding.settings import Settings
from tests.support.samples import record


def served(symbol: str, annualized: float, **fields: Any) -> dict[str, Any]:
    """Return a record as it is served."""
    return record(symbol=symbol, annualizedFundingRate=annualized, **fields)


def symbols(table: bytes) -> list[list[str]]:
    """Return the symbols of each table, from the top."""
    return [re.findall('<th scope="row">(.*?)</th>', part) for part in table.decode().split("<caption>")[1:]]


def test_the_twenty_highest_and_lowest_are_shown() -> None:
    """The most extreme rate of each is at the top."""
    names = [f"S{n}USDT" for n in range(100)]
    table = plain_table(served(name, n / 100) for n, name in enumerate(names))
    assert symbols(table) == [names[:-21:-1], names[:20]]


def test_a_small_market_is_shown_in_both_tables() -> None:
    """However few symbols there are."""
    assert symbols(plain_table([served("AUSDT", 0.1), served("BUSDT", 0.2)])) == [
        ["BUSDT", "AUSDT"],
        ["AUSDT", "BUSDT"],
    ]


def test_a_row_says_what_the_record_holds() -> None:
    """Markup in a symbol is text; an interval that is assumed is called so."""
    given = {"fundingRate": -0.00025, "fundingIntervalHours": 4, "fundingIntervalAssumed": True, "markPrice": 3250.5}
    table = plain_table([served("<b>&USDT", -0.5475, **given)]).decode()
    assert '<th scope="row">&lt;b&gt;&amp;USDT</th><td>-0.0250%</td><td>4 h assumed</td><td>-54.75%</td>' in table
    assert "<td>3,250.5</td>" in table
    assert "As of 2026-11-24 06:00:00 UTC" in table


def test_without_fresh_data_it_says_so() -> None:
    """Rather than show an empty table."""
    assert b"No fresh data." in plain_table([])


def test_the_table_needs_no_other_policy() -> None:
    """It brings no script and no style, so the hashes of the page stay right."""
    table = plain_table([served("AUSDT", 0.1)])
    assert not re.search(b"<script|<style|style=| on[a-z]+=", table)
    assert CONTENT.count(b"<script>") == CONTENT.count(b"<style>") == 1
    assert "'unsafe" not in dict(HEADERS)["Content-Security-Policy"]


def test_until_the_report_has_come_data_is_stale_at_the_default_limit() -> None:
    """The page takes the limit of the server from the report. Its default is that of STALE_SECONDS."""
    assert b"let staleS = %a;" % int(Settings().stale_seconds) in CONTENT
