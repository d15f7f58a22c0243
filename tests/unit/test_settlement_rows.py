"""The decoding of Binance's settlements."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from binance_funding.daemon.source.rates import MalformedMessage
from binance_funding.daemon.source.settlement_rows import decode
from binance_funding.settlements import Settlement
from tests.support.settlement_world import to_row

AT_MS = 1_791_331_200_002


def row(**fields: Any) -> dict[str, Any]:
    """Return a row as Binance sends it; the fields given replace those of a good one."""
    good = {
        "symbol": "BTCUSDT",
        "fundingTime": AT_MS,
        "fundingRate": "-0.00000743",
        "markPrice": "85516.50151449",
        "rateType": "Regular",
    }
    return {**good, **fields}


def decode_rows(*rows: Any) -> Any:
    """Decode an answer with these rows."""
    return decode(json.dumps(rows).encode(), AT_MS - 1000, AT_MS + 1000)


def test_a_row_is_kept_to_the_last_digit() -> None:
    """A mark price may be missing; symbols are not only ASCII."""
    decoded = decode_rows(row(), row(symbol="币安人生USDT", markPrice="", rateType="Special"))
    assert decoded.rows == [
        Settlement("BTCUSDT", AT_MS, "Regular", -743, 8_551_650_151_449),
        Settlement("币安人生USDT", AT_MS, "Special", -743, None),
    ]
    assert decoded.rejected == 0


@pytest.mark.parametrize(
    "bad",
    [
        row(fundingRate="NaN"),
        row(fundingRate="1e-5"),
        row(fundingRate=0.1),
        row(fundingRate="1.00000000"),
        row(fundingRate="0.000000001"),
        row(fundingRate="\u0660.1"),
        row(markPrice="-1"),
        row(markPrice="0"),
        row(markPrice=None),
        row(symbol=""),
        row(symbol="A\nB"),
        row(symbol="\ud800"),
        row(symbol=7),
        row(fundingTime=str(AT_MS)),
        row(fundingTime=True),
        row(rateType="no such\ntype"),
        row(rateType=None),
        {},
        [],
        None,
        "BTCUSDT",
    ],
    ids=str,
)
def test_a_malformed_row_is_left_out_and_counted(bad: object) -> None:
    """The good rows of the same answer count. The fault can be printed."""
    decoded = decode_rows(bad, row())
    assert (len(decoded.rows), decoded.length, decoded.rejected) == (1, 2, 1)
    assert decoded.first_fault.isprintable()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html></html>",
        b"\xff",
        b'{"code":-1003,"msg":"x"}',
        b"[NaN]",
        b"[" * 100_000,
        json.dumps([row(fundingTime=AT_MS + 1001)]).encode(),
        json.dumps([row(), row(fundingTime=AT_MS - 1001)]).encode(),
    ],
    ids=["empty", "HTML", "not UTF-8", "error", "NaN", "deep", "after", "before"],
)
def test_what_is_no_answer_to_the_question_is_malformed(body: bytes) -> None:
    """A cache or a captive portal may answer something else."""
    with pytest.raises(MalformedMessage) as caught:
        decode(body, AT_MS - 1000, AT_MS + 1000)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


@given(st.integers(-(10**8) + 1, 10**8 - 1), st.integers(1, 10**17))
def test_any_number_of_eight_places_comes_back_unchanged(rate_e8: int, price_e8: int) -> None:
    """Between Binance's text and ours nothing is rounded."""
    settlement = Settlement("BTCUSDT", AT_MS, "Regular", rate_e8, price_e8)
    assert decode_rows(to_row(settlement)).rows == [settlement]
