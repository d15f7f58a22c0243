"""A REST snapshot held against the stream."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from binance_funding.daemon.market.comparison import Comparison, compare
from binance_funding.daemon.market.last_day import LastDay
from binance_funding.daemon.record import REST, FundingRate
from tests.support.clock import WALL_S, SimulatedClock
from tests.support.samples import EVENT_MS, rate


def comparison_at(time: SimulatedClock) -> Comparison:
    """Return a comparison that has not run yet."""
    return Comparison(time.clock, LastDay())


def by_symbol(*rates: FundingRate) -> dict[str, FundingRate]:
    """Return the stream's side."""
    return {rate.symbol: rate for rate in rates}


def pair(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Compare one symbol."""
    return compare(by_symbol(rate("A", **ours)), [rate("A", source=REST, **theirs)], WALL_S)


def test_an_example_to_the_digit() -> None:
    """One symbol mismatches, three are only in REST, two only in the stream; every number is exact."""
    stream = by_symbol(
        rate("BTCUSDT", funding_rate=0.00010000, mark_price=91725.87823913),
        rate("ETHUSDT", funding_rate=0.00020000, mark_price=3000.00000000),
        rate("SOLUSDT", funding_rate=-0.00030000, mark_price=200.00000000, event_time_ms=EVENT_MS - 3000),
        rate("OURSUSDT"),
        rate("OWNUSDT"),
    )
    rest = [
        rate("BTCUSDT", funding_rate=0.00010000, mark_price=91725.87823913, source=REST),
        rate("ETHUSDT", funding_rate=0.00026000, mark_price=3000.30000000, source=REST),
        rate("SOLUSDT", funding_rate=-0.00030001, mark_price=200.20000000, source=REST),
        *(rate(symbol, source=REST) for symbol in ("ZUSDT", "XUSDT", "YUSDT")),
    ]
    assert compare(stream, rest, WALL_S + 0.12345) == {
        "compared_at": WALL_S + 0.123,
        "compared": 3,
        "matched": 2,
        "mismatched": 1,
        "identical": 1,
        "max_funding_rate_difference": 0.00006,
        "max_mark_price_difference_ratio": 0.000999000999,
        "only_in_stream": 2,
        "only_in_rest": 3,
        "mismatched_symbols": ["ETHUSDT"],
        "only_in_stream_symbols": ["OURSUSDT", "OWNUSDT"],
        "only_in_rest_symbols": ["XUSDT", "YUSDT", "ZUSDT"],
    }


@pytest.mark.parametrize(
    ("ours", "theirs", "mismatched"),
    [
        (0.00010000, 0.00015001, 1),
        (0.00015001, 0.00010000, 1),
        (-0.00003000, 0.00002001, 1),
        (0.00010000, 0.00014999, 0),
        (0.00000000, 0.00005000, 0),
    ],
)
def test_funding_rates_may_differ_by_five_hundred_thousandths(ours: float, theirs: float, mismatched: int) -> None:
    """More is a mismatch, in either direction."""
    result = pair({"funding_rate": ours}, {"funding_rate": theirs})
    assert (result["compared"], result["mismatched"], result["matched"]) == (1, mismatched, 1 - mismatched)


@pytest.mark.parametrize(
    ("field", "ours", "theirs"),
    [
        ("funding_rate", -0.00300000, -0.00295000),
        ("funding_rate", -0.00299993, -0.00294993),
        ("mark_price", 0.00000001005, 0.00000001),
    ],
)
def test_a_difference_of_exactly_the_tolerance_matches(field: str, ours: float, theirs: float) -> None:
    """Rates have eight digits, so exactly 0.00005 happens, and is not more than 0.00005."""
    assert pair({field: ours}, {field: theirs})["mismatched"] == 0


@pytest.mark.parametrize(
    ("ours", "theirs", "mismatched"),
    [
        (1005.0, 1000.0, 0),
        (1005.01, 1000.0, 1),
        (994.99, 1000.0, 1),
        (995.01, 1000.0, 0),
        (0, 0.1, 1),
        (0.00000001004, 0.00000001, 0),
        (0.00000001006, 0.00000001, 1),
    ],
)
def test_mark_prices_may_differ_by_half_a_percent_of_rest(ours: float, theirs: float, mismatched: int) -> None:
    """More is a mismatch, in either direction, at any size."""
    assert pair({"mark_price": ours}, {"mark_price": theirs})["mismatched"] == mismatched


@pytest.mark.parametrize(("apart_ms", "compared"), [(0, 1), (5000, 1), (-5000, 1), (5001, 0), (-5001, 0)])
def test_only_rows_at_most_five_seconds_apart_are_compared(apart_ms: int, compared: int) -> None:
    """Others are neither matched nor mismatched nor missing, however different they are."""
    result = pair({"mark_price": 1}, {"mark_price": 2, "event_time_ms": EVENT_MS + apart_ms})
    assert (result["compared"], result["mismatched"]) == (compared, compared)
    assert (result["only_in_stream"], result["only_in_rest"]) == (0, 0)


@pytest.mark.parametrize(
    ("theirs", "identical"),
    [
        ({"funding_rate": 0.00010000, "mark_price": 100.50}, 1),
        ({"event_time_ms": EVENT_MS + 1}, 0),
        ({"funding_rate": 0.00010001}, 0),
        ({"mark_price": 100.50000001}, 0),
        ({"index_price": 100.25000001}, 0),
    ],
)
def test_identical_is_the_same_event_with_the_same_numbers(theirs: dict[str, Any], identical: int) -> None:
    """However they are spelt; the next funding time is not a number of the market."""
    assert pair({}, theirs)["identical"] == identical


def test_at_most_twenty_names_of_a_kind_are_listed() -> None:
    """The counts are of all; the names are the first in the alphabet."""
    names = [f"S{n:02}" for n in range(30)]
    stream = by_symbol(*(rate(name) for name in names), *(rate(f"O{name}") for name in names))
    rest = [rate(name, mark_price=1, source=REST) for name in reversed(names)]
    rest += [rate(f"R{name}", source=REST) for name in names]
    result = compare(stream, rest, WALL_S)
    for kind, prefix in (("mismatched", ""), ("only_in_stream", "O"), ("only_in_rest", "R")):
        assert result[kind] == 30
        assert result[f"{kind}_symbols"] == [prefix + name for name in names[:20]]


def test_nothing_to_compare_is_a_valid_result() -> None:
    """Finite numbers and empty lists."""
    result = compare({}, [], WALL_S)
    assert sum(value for name, value in result.items() if name != "compared_at" and not isinstance(value, list)) == 0


def test_totals_add_up_over_runs_and_restarts() -> None:
    """`last` is the last run; totals go on from what the state file held."""
    comparison = comparison_at(SimulatedClock())
    comparison.run(by_symbol(rate("A"), rate("B")), [rate("A"), rate("B", mark_price=1)], WALL_S)
    comparison.run(by_symbol(rate("A")), [rate("A")], WALL_S + 60)
    kept = json.loads(json.dumps(comparison.state))
    assert kept["totals"] == {"runs": 2, "compared": 3, "matched": 2, "mismatched": 1, "identical": 2}
    assert kept["last"]["compared_at"] == WALL_S + 60
    after = comparison_at(SimulatedClock())
    assert after.state == {"last": None, "totals": dict.fromkeys(kept["totals"], 0)}
    after.state = kept
    after.run({}, [], WALL_S + 120)
    assert after.state["totals"] == {"runs": 3, "compared": 3, "matched": 2, "mismatched": 1, "identical": 2}


def test_a_mismatch_is_logged_with_the_names(caplog: pytest.LogCaptureFixture) -> None:
    """At WARNING; while all match, one line a run at DEBUG."""
    caplog.set_level(logging.DEBUG)
    comparison = comparison_at(SimulatedClock())
    comparison.run(by_symbol(rate("A")), [rate("A")], WALL_S)
    comparison.run(by_symbol(rate("A"), rate("B")), [rate("A", mark_price=1), rate("B", mark_price=2)], WALL_S)
    assert [record.levelno for record in caplog.records] == [logging.DEBUG, logging.WARNING]
    assert "compared=1 matched=1 mismatched=0" in caplog.messages[0]
    assert caplog.messages[1].endswith("symbols=A,B")


def test_a_mismatch_that_lasts_is_logged_seldom(caplog: pytest.LogCaptureFixture) -> None:
    """An hour of it, a snapshot each minute: when it begins, at growing intervals, and when it is over."""
    caplog.set_level(logging.INFO)
    time = SimulatedClock()
    comparison = comparison_at(time)
    for _ in range(60):
        comparison.run(by_symbol(rate("A")), [rate("A", mark_price=1)], time.wall_s)
        time.advance(60)
    comparison.run(by_symbol(rate("A")), [rate("A")], time.wall_s)
    assert [message.split()[0] for message in caplog.messages] == ["comparison"] * len(caplog.messages)
    assert 3 <= len(caplog.messages) <= 5
    assert caplog.messages[-1] == "comparison equal again after_s=3600"
