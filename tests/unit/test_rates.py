"""Decoding: what becomes a funding rate, what is left out, and what is refused."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from binance_funding.daemon.record import REST, STREAM, FundingRate, Terms
from binance_funding.daemon.source.rates import (
    Decoded,
    MalformedMessage,
    decode_funding_info,
    decode_premium_index,
    decode_server_time,
    decode_stream,
)
from tests.support.clock import STEADY_S
from tests.support.samples import EVENT_MS, NEXT_FUNDING_MS, index_row, stream_row

RECORDED = Path(__file__).parents[1] / "data" / "premium_index_2024-11-27.json"

STREAM_NUMBERS = {"funding_rate": "r", "mark_price": "p", "index_price": "i"}
INDEX_NUMBERS = {"funding_rate": "lastFundingRate", "mark_price": "markPrice", "index_price": "indexPrice"}
"""Where each number of a record stands in a row."""

NOTHING = Decoded([], 0, 0, 0, "")

# Integers too large for a float have a test of their own.
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**300), 10**300)
    | st.floats()
    | st.text(st.characters(), max_size=20)
    | st.floats().map(repr)
    | st.integers(-(10**30), 10**30).map(str)
    | st.decimals(allow_nan=False, places=8).map(str)
    | st.sampled_from(
        ["", "0", "-0", "1e400", "-1e400", "1E5", " 1", "1_0", "\u0661", "0x1", "+1", ".5", "5.", "00", "1 2"]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def stream(*rows: Any) -> Decoded:
    """Decode rows as one message of the combined stream."""
    return decode_stream(json.dumps({"stream": "!markPrice@arr", "data": list(rows)}).encode(), STEADY_S)


def index(*rows: Any) -> Decoded:
    """Decode rows as one answer of premiumIndex."""
    return decode_premium_index(json.dumps(list(rows)).encode(), STEADY_S)


def symbols(decoded: Decoded) -> list[str]:
    """Return the symbols kept."""
    return [rate.symbol for rate in decoded.rates]


def test_a_real_rest_answer_keeps_every_perpetual_and_no_delivery_contract() -> None:
    """Of 379 recorded rows, 375 perpetuals are kept with the numbers as sent; 4 contracts are left out, silently."""
    body = RECORDED.read_bytes()
    sent = {row["symbol"]: row for row in json.loads(body)}
    decoded = decode_premium_index(body, STEADY_S)
    assert (len(sent), len(decoded.rates), decoded.rejected, decoded.first_fault) == (379, 375, 0, "")
    assert sorted(sent.keys() - set(symbols(decoded))) == [
        "BTCUSDT_241227",
        "BTCUSDT_250328",
        "ETHUSDT_241227",
        "ETHUSDT_250328",
    ]
    for rate in decoded.rates:
        row = sent[rate.symbol]
        numbers = float(row["lastFundingRate"]), float(row["markPrice"]), float(row["indexPrice"])
        more = float(row["estimatedSettlePrice"]), float(row["interestRate"])
        assert rate == FundingRate(rate.symbol, *numbers, row["nextFundingTime"], row["time"], REST, STEADY_S, *more)
    uxlink = next(rate for rate in decoded.rates if rate.symbol == "UXLINKUSDT")
    assert (uxlink.funding_rate, uxlink.mark_price, uxlink.index_price) == (0.00005, 0.5563, 0.55594286)


def test_a_stream_row_becomes_a_rate_with_the_numbers_as_sent() -> None:
    """Unknown fields do not matter; times are the exchange's, receipt is this host's steady clock."""
    numbers = 0.0001, 91725.87823913, 91769.87543478
    expected = FundingRate("BTCUSDT", *numbers, NEXT_FUNDING_MS, EVENT_MS, STREAM, STEADY_S, 91731.1)
    assert stream(stream_row(st=1, new={"x": [1]})) == ([expected], EVENT_MS, EVENT_MS, 0, "")


@pytest.mark.parametrize(
    "message",
    [
        {"stream": "!markPrice@arr", "data": [stream_row()]},
        {"stream": "btcusdt@markPrice", "data": stream_row()},
        {"stream": "!markPrice@arr", "e": "markPriceUpdate", "E": EVENT_MS, "data": [stream_row()]},
        {"e": "anything", "data": [stream_row()]},
        [stream_row()],
        stream_row(),
    ],
    ids=["combined", "combined single", "envelope like a row", "envelope with e", "raw array", "raw single"],
)
def test_mark_prices_are_read_from_every_envelope(message: Any) -> None:
    """A candidate address may be of the combined or the raw kind, of all symbols or of one."""
    assert symbols(decode_stream(json.dumps(message).encode(), STEADY_S)) == ["BTCUSDT"]


@pytest.mark.parametrize("filling", [b'{"":{}},', b"[],", b"{},"])
def test_megabytes_of_brackets_are_not_even_parsed(filling: bytes) -> None:
    """They would take forty times their size; the largest market there could be is still decoded."""
    body = b"[" + filling * 250_000 + b"0]"
    for decode in (decode_stream, decode_premium_index):
        with pytest.raises(MalformedMessage, match="more than 200000 objects"):
            decode(body, STEADY_S)
    rows = [stream_row(f"S{n}USDT") for n in range(60_000)]
    assert len(decode_stream(json.dumps(rows).encode(), STEADY_S).rates) == 60_000


@pytest.mark.parametrize(
    "row",
    [
        stream_row("BTCUSD_PERP", st=2),
        stream_row(st=3),
        stream_row("BTCUSDT_261225", T=0, r=""),
        stream_row("SETTLINGUSDT", T=0, r="0.00000000"),
        stream_row("SETTLINGUSDT", r=""),
        {"e": "24hrTicker", "E": EVENT_MS, "s": "BTCUSDT", "p": "-1234.5", "P": "-1.3"},
        {"e": "forceOrder", "E": EVENT_MS, "o": {"s": "BTCUSDT"}},
    ],
    ids=["COIN-M", "unknown market", "delivery", "settling", "no rate", "ticker", "liquidation"],
)
def test_rows_of_other_markets_and_streams_are_left_out_silently(row: dict[str, Any]) -> None:
    """They are normal traffic: not kept, not counted as rejected, no fault told."""
    assert symbols(stream(row, stream_row("ETHUSDT"))) == ["ETHUSDT"]
    assert stream(row) == NOTHING


@pytest.mark.parametrize(
    "row",
    [
        index_row("BTCUSDT_261225", nextFundingTime=0, lastFundingRate=""),
        index_row(nextFundingTime=0),
        index_row(lastFundingRate=""),
        index_row(st=2),
    ],
)
def test_rest_rows_without_funding_are_left_out_silently(row: dict[str, Any]) -> None:
    """As on the stream."""
    assert symbols(index(row, index_row("ETHUSDT"))) == ["ETHUSDT"]
    assert index(row, index_row("ETHUSDT")).rejected == 0


def test_symbols_need_not_be_ascii() -> None:
    """A real one is 币安人生USDT."""
    assert symbols(stream(stream_row("币安人生USDT"))) == symbols(index(index_row("币安人生USDT"))) == ["币安人生USDT"]


BAD_NUMBERS: list[Any] = [
    None,
    True,
    [],
    {},
    "x",
    "NaN",
    "Infinity",
    "-inf",
    "1e400",
    "1e18",
    "-1e300",
    10**18,
    1e18,
    "1_000",
    "0x10",
    "--1",
    "1,5",
    "1 2",
]

BAD_FIELDS: list[tuple[str, Any]] = [
    ("E", None),
    ("E", str(EVENT_MS)),
    ("E", float(EVENT_MS)),
    ("E", True),
    ("E", 0),
    ("E", -1),
    ("E", 2**53),
    ("T", None),
    ("T", ""),
    ("T", -1),
    ("T", 2**53),
    ("T", 1.5e12),
    ("s", None),
    ("s", ""),
    ("s", 5),
    ("s", "A" * 65),
    ("s", "BTC\nUSDT"),
    ("s", "BTC\ud800"),
    ("s", "BTC\0"),
    ("s", ["BTCUSDT"]),
    *((name, value) for name in ("r", "p", "i") for value in BAD_NUMBERS),
    ("p", ""),
    ("i", ""),
    ("p", "0"),
    ("p", "0.00000000"),
    ("p", "-1"),
    ("p", -1),
    ("i", "0"),
    ("i", "-0.00000000"),
    ("i", "-5"),
    *((name, "\u0661\u0662") for name in ("r", "p", "i")),
    ("st", "1"),
    ("st", None),
    ("st", 2.0),
    ("st", []),
]


@pytest.mark.parametrize(("name", "value"), BAD_FIELDS)
def test_a_malformed_row_costs_only_itself(name: str, value: Any) -> None:
    """It is rejected, counted and described; the good rows before and after it count."""
    decoded = stream(stream_row("AUSDT"), stream_row(**{name: value}), stream_row("BUSDT"))
    assert symbols(decoded) == ["AUSDT", "BUSDT"]
    assert decoded.rejected == 1
    assert decoded.first_fault


@pytest.mark.parametrize("name", ["e", "E", "s", "p", "i", "r", "T"])
def test_a_row_that_lacks_a_field_is_rejected(name: str) -> None:
    """The fault names the field."""
    row = stream_row()
    del row[name]
    decoded = stream(row, stream_row("ETHUSDT"))
    assert (symbols(decoded), decoded.rejected) == (["ETHUSDT"], 1)
    assert f"KeyError '{name}'" in decoded.first_fault


@pytest.mark.parametrize("name", sorted(index_row().keys() - {"estimatedSettlePrice", "interestRate"}))
def test_a_rest_row_that_lacks_a_field_is_rejected(name: str) -> None:
    """The fault names the field; fields that are not used may be absent."""
    row = index_row()
    del row[name], row["estimatedSettlePrice"], row["interestRate"]
    decoded = index(row, index_row("ETHUSDT"))
    assert (symbols(decoded), decoded.rejected) == (["ETHUSDT"], 1)
    assert f"KeyError '{name}'" in decoded.first_fault


@pytest.mark.parametrize("row", [None, 5, 1.5, True, "row", [], [stream_row()], {}])
def test_a_row_that_is_no_object_is_rejected(row: Any) -> None:
    """Neither format stumbles over one."""
    for decoded in (stream(row, stream_row("ETHUSDT")), index(row, index_row("ETHUSDT"))):
        assert (symbols(decoded), decoded.rejected) == (["ETHUSDT"], 1)


@pytest.mark.parametrize("digits", [309, 400, 4000])
def test_an_integer_too_large_for_a_float_costs_only_its_row(digits: int) -> None:
    """It must not end the reading thread, and with it the daemon."""
    decoded = stream(stream_row(r=10**digits), stream_row("ETHUSDT"))
    assert (symbols(decoded), decoded.rejected) == (["ETHUSDT"], 1)


@pytest.mark.parametrize("value", ["A" * 1_000_000, ["A" * 1_000_000]])
def test_the_fault_told_is_short(value: Any) -> None:
    """A row of a megabyte does not become a log line of a megabyte."""
    assert len(stream(stream_row(r=value)).first_fault) < 1000


@pytest.mark.parametrize(
    "row", ["\ud800", "a\nb\u2028", {"e": "\ud800"}, ["\ud800"], {"e": "markPriceUpdate", "\ud800": 1}]
)
def test_the_fault_told_is_printable(row: Any) -> None:
    """It goes into the log, the state file and systemd's status: half a surrogate pair cannot be written there."""
    fault = stream(row).first_fault
    assert fault.isprintable() or not fault
    with pytest.raises(MalformedMessage) as caught:
        index(row)
    assert str(caught.value).isprintable()


def test_only_the_first_fault_is_described() -> None:
    """All are counted."""
    decoded = stream(stream_row(E=0), stream_row(s=""), stream_row(p="x"))
    assert decoded.rejected == 3
    assert "event time" in decoded.first_fault
    assert "symbol" not in decoded.first_fault.split(" in row ")[0]


@pytest.mark.parametrize(
    ("sent", "number"),
    [
        ("0.00010000", 0.0001),
        ("-0.00250000", -0.0025),
        ("0", 0),
        ("1e-5", 1e-5),
        ("1E5", 1e5),
        ("+5", 5),
        ("007.5", 7.5),
        (".5", 0.5),
        ("99999999999999999", 1e17),
    ],
)
def test_every_text_of_a_finite_number_is_understood(sent: Any, number: float) -> None:
    """In both formats."""
    assert stream(stream_row(r=sent)).rates[0].funding_rate == number
    assert index(index_row(lastFundingRate=sent)).rates[0].funding_rate == number


BAD_PAYLOADS = {
    "empty": b"",
    "spaces": b"  ",
    "not UTF-8": b'[{"s":"\xff"}]',
    "UTF-16": json.dumps([stream_row()]).encode("utf-16"),
    "BOM": b"\xef\xbb\xbf" + json.dumps([stream_row()]).encode(),
    "encoded surrogate": b'[{"s":"\xed\xa0\x80"}]',
    "cut off": json.dumps([stream_row()]).encode()[:-5],
    "two values": b"[] []",
    "NaN": b'[{"r":NaN}]',
    "Infinity": b'[{"r":-Infinity}]',
    "too deep": b"[" * 100_000,
    "deep object": b'{"data":' * 100_000,
    "integer of 5000 digits": b"[" + b"9" * 5000 + b"]",
    "number": b"5",
    "null": b"null",
    "text": b'"rows"',
    "HTML": b"<html>502 Bad Gateway</html>",
}


@pytest.mark.parametrize("payload", BAD_PAYLOADS.values(), ids=BAD_PAYLOADS.keys())
def test_what_is_no_message_at_all_is_refused(payload: bytes) -> None:
    """The error is always the same kind, short, and one line long when shown with repr."""
    for decode in (decode_stream, decode_premium_index):
        with pytest.raises(MalformedMessage) as caught:
            decode(payload, STEADY_S)
        assert len(str(caught.value)) < 1500
    for decode_body in (decode_funding_info, decode_server_time):
        with pytest.raises(MalformedMessage):
            decode_body(payload)


@pytest.mark.parametrize("message", [{}, {"result": None, "id": 1}, {"data": None}, {"data": "x"}, {"data": 5}])
def test_an_object_without_rows_is_refused(message: Any) -> None:
    """An answer to a subscription, or an error, holds no mark prices."""
    with pytest.raises(MalformedMessage, match="no rows in "):
        decode_stream(json.dumps(message).encode(), STEADY_S)


def test_an_error_object_of_rest_is_refused() -> None:
    """Whatever its HTTP status was, it is not a snapshot."""
    with pytest.raises(MalformedMessage, match="no list in "):
        decode_premium_index(b'{"code":-1003,"msg":"Too many requests"}', STEADY_S)


def test_a_refusal_quotes_at_most_200_characters() -> None:
    """A payload of megabytes is not repeated in the log."""
    with pytest.raises(MalformedMessage) as caught:
        decode_premium_index(b"x" * 1_000_000, STEADY_S)
    assert "x" * 200 in str(caught.value)
    assert "x" * 201 not in str(caught.value)


def test_no_rows_is_a_valid_message() -> None:
    """It holds nothing, and nothing is wrong with it."""
    assert stream() == NOTHING


@pytest.mark.parametrize("rows", [[], [index_row(nextFundingTime=0)], [index_row(symbol="")], [7]])
def test_a_snapshot_without_a_usable_row_is_refused(rows: list[Any]) -> None:
    """A market without a single perpetual is a fault, and must not count as a success."""
    with pytest.raises(MalformedMessage):
        index(*rows)


def test_the_last_of_duplicate_keys_counts() -> None:
    """As everywhere in JSON; the record stays consistent."""
    text = json.dumps([stream_row()]).replace('"r": "0.00010000"', '"r": "x", "r": "0.00020000"')
    assert decode_stream(text.encode(), STEADY_S).rates[0].funding_rate == 0.0002


def test_deep_nesting_inside_a_row_never_escapes() -> None:
    """At every depth the message is refused or the row rejected; describing the fault does not fail either."""
    for depth in range(1, 1100, 7):
        nested = json.dumps([stream_row(r="X")]).replace('"X"', "[" * depth + "]" * depth)
        try:
            assert decode_stream(nested.encode(), STEADY_S).rejected == 1
        except MalformedMessage as fault:
            assert "not valid JSON" in str(fault)  # noqa: PT017 - either outcome is right, by the depth


def assert_sound(rate: FundingRate, row: dict[str, Any], numbers: dict[str, str]) -> None:
    """Check that a kept rate may go to the file and says what was sent."""
    assert 0 < len(rate.symbol) <= 64
    rate.symbol.encode()
    assert type(rate.event_time_ms) is int
    assert type(rate.next_funding_time_ms) is int
    assert rate.mark_price > 0
    assert rate.index_price > 0
    for name, field in numbers.items():
        number = getattr(rate, name)
        assert type(number) is float
        assert abs(number) <= 1e18
        assert number == float(row[field])


@given(st.dictionaries(st.sampled_from(sorted(stream_row())), json_values, min_size=1, max_size=3))
def test_whatever_a_stream_row_holds_nothing_but_malformed_message_is_raised(fields: dict[str, Any]) -> None:
    """Any JSON value in any field: the row is kept whole and finite, left out, or rejected."""
    text = json.dumps([stream_row(**fields)])
    try:
        decoded = decode_stream(text.encode(), STEADY_S)
    except MalformedMessage:
        return
    assert len(decoded.rates) + decoded.rejected <= 1
    for rate in decoded.rates:
        assert_sound(rate, json.loads(text)[0], STREAM_NUMBERS)


@given(st.dictionaries(st.sampled_from(sorted(index_row())), json_values, min_size=1, max_size=3))
def test_whatever_a_rest_row_holds_nothing_but_malformed_message_is_raised(fields: dict[str, Any]) -> None:
    """As for the stream."""
    text = json.dumps([index_row(**fields)])
    try:
        decoded = decode_premium_index(text.encode(), STEADY_S)
    except MalformedMessage:
        return
    assert len(decoded.rates) + decoded.rejected <= 1
    for rate in decoded.rates:
        assert_sound(rate, json.loads(text)[0], INDEX_NUMBERS)


@given(st.binary(max_size=60) | json_values.map(lambda value: json.dumps(value).encode()))
def test_whatever_is_sent_nothing_but_malformed_message_is_raised(payload: bytes) -> None:
    """Any bytes and any JSON, at the top."""
    for decode in (decode_stream, decode_premium_index):
        with contextlib.suppress(MalformedMessage):
            decode(payload, STEADY_S)
    for decode_body in (decode_funding_info, decode_server_time):
        with contextlib.suppress(MalformedMessage):
            decode_body(payload)


def test_funding_intervals_are_told_by_symbol() -> None:
    """Only whole hours from 1 to 24 count; a symbol with anything else keeps the usual interval."""
    rows = [
        {"symbol": name, "fundingIntervalHours": hours, "adjustedFundingRateCap": "0.02"}
        for name, hours in {"A": 4, "B": 1, "C": 8, "D": 0, "E": 25, "F": "4", "G": True, "H": 4.0, "I": None}.items()
    ]
    named = {symbol: Terms(hours, 0.02, None) for symbol, hours in {"A": 4, "B": 1, "C": 8}.items()}
    assert decode_funding_info(json.dumps(rows).encode()) == named


def test_a_malformed_row_of_funding_intervals_costs_itself_only() -> None:
    """The good rows of the same answer count."""
    body = b'[{"symbol":"A","fundingIntervalHours":4},{"symbol":"B"},7,null,{"fundingIntervalHours":1}]'
    assert decode_funding_info(body) == {"A": Terms(4, None, None)}


@pytest.mark.parametrize(
    "body",
    [
        b'{"code":-1}',
        b"[]",
        b"{}",
        b'""',
        b"[5]",
        b'[{"symbol":"A"}]',
        b'[{"symbol":"A","fundingIntervalHours":"4"}]',
        b'[{"symbol":[],"fundingIntervalHours":4}]',
    ],
)
def test_funding_intervals_of_another_shape_are_refused(body: bytes) -> None:
    """No usable row must not pass for "all back to 8 h": the last known ones stay in force."""
    with pytest.raises(MalformedMessage, match=r"no (funding intervals|list) in "):
        decode_funding_info(body)


def test_the_median_event_time_speaks_for_a_message() -> None:
    """Of the usable rows: neither one absurd row nor the rejected ones change it."""
    rows = [stream_row(f"S{n}", E=EVENT_MS + n) for n in range(5)]
    assert stream(*rows).median_event_time_ms == EVENT_MS + 2
    decoded = stream(rows[0], stream_row("AHEAD", E=EVENT_MS + 82_800_000), stream_row("", E=1))
    assert (decoded.median_event_time_ms, decoded.latest_event_time_ms) == (EVENT_MS, EVENT_MS + 82_800_000)


def test_rows_ahead_of_their_time_are_rejected() -> None:
    """Exactly the bound has happened; what lies beyond is counted, and the first of them described."""
    decoded = stream(stream_row("A"), stream_row("B", E=EVENT_MS + 1), stream_row("C", E=EVENT_MS + 9), stream_row(""))
    assert decoded.up_to(EVENT_MS + 9) is decoded
    assert symbols(decoded.up_to(EVENT_MS + 1)) == ["A", "B"]
    assert decoded.up_to(EVENT_MS + 1).rejected == 2
    assert "symbol" in decoded.up_to(EVENT_MS + 1).first_fault
    only_ahead = stream(stream_row("A"), stream_row("C", E=EVENT_MS + 9)).up_to(EVENT_MS)
    assert only_ahead.first_fault == f"event time {EVENT_MS + 9} is ahead of Binance's time"


def test_a_message_wholly_ahead_of_its_time_holds_no_event() -> None:
    """Its median must not keep a connection alive."""
    decoded = stream(stream_row("A"), stream_row("B")).up_to(EVENT_MS - 1)
    assert (decoded.rates, decoded.median_event_time_ms, decoded.rejected) == ([], 0, 2)


def test_the_time_of_binance_is_read_in_seconds() -> None:
    """Sent in milliseconds."""
    assert decode_server_time(b'{"serverTime":1795500000123}') == 1_795_500_000.123


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b"[1795500000123]",
        b'{"serverTime":null}',
        b'{"serverTime":"1795500000123"}',
        b'{"serverTime":1795500000.5}',
        b'{"serverTime":true}',
        b'{"serverTime":0}',
        b'{"serverTime":-1}',
        b'{"serverTime":9007199254740992}',
        b"<html>Sign in to the network</html>",
    ],
)
def test_what_is_no_time_is_refused(body: bytes) -> None:
    """Only a positive whole number of milliseconds is one."""
    with pytest.raises(MalformedMessage):
        decode_server_time(body)
