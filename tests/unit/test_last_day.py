"""The last 24 hours as the daemon records them for the report."""

import json

import pytest

from binance_funding.daemon.market.last_day import LastDay
from binance_funding.schema import GAP, QUARTER, complete
from tests.support.clock import WALL_S

HOUR_S, DAY_S, QUARTER_S = 3600.0, 86_400.0, 900.0
START_S = WALL_S - WALL_S % QUARTER_S


def test_counts_live_in_quarter_hours() -> None:
    """What happens at the last moment of one and at the first of the next is told apart."""
    last_day = LastDay()
    last_day.count(START_S + QUARTER_S - 0.001, unplanned=1, observed=0.25)
    last_day.count(START_S + QUARTER_S - 0.001, unplanned=1, observed=0.5)
    last_day.count(START_S + QUARTER_S, planned=1, runs=1, compared=700, mismatched=3)
    nothing = dict.fromkeys((one.name for one in QUARTER), 0)
    assert last_day.to_json(START_S + QUARTER_S)["history"] == [
        {**nothing, "start": START_S, "unplanned": 2, "observed": 0.75},
        {**nothing, "start": START_S + QUARTER_S, "planned": 1, "runs": 1, "compared": 700, "mismatched": 3},
    ]


def test_the_greatest_age_of_a_quarter_hour_is_kept() -> None:
    """To the millisecond; a lower one later changes nothing, and the next quarter hour starts anew."""
    last_day = LastDay()
    for age_s in (3.0, 7.51234, 5.0):
        last_day.data_age(START_S, age_s)
    last_day.data_age(START_S + QUARTER_S, 1.0)
    assert [quarter["worst"] for quarter in last_day.to_json(START_S + QUARTER_S)["history"]] == [7.512, 1.0]


def test_gaps_are_kept_in_the_order_they_ended() -> None:
    """With start, length and cause."""
    last_day = LastDay()
    last_day.gap(START_S - 5000, 12.3456, "stream: it was cut")
    last_day.gap(START_S - 300, 100, "not running")
    assert last_day.to_json(START_S)["gaps"] == [
        {"start": START_S - 5000, "seconds": 12.346, "cause": "stream: it was cut"},
        {"start": START_S - 300, "seconds": 100, "cause": "not running"},
    ]


def test_a_quarter_hour_is_forgotten_when_it_is_wholly_over_a_day_old() -> None:
    """At the first moment at which its end lies 24 h back."""
    last_day = LastDay()
    last_day.count(START_S, unplanned=1)
    last_s = START_S + DAY_S + QUARTER_S - 1
    assert len(last_day.to_json(last_s)["history"]) == 1
    assert last_day.to_json(last_s + 1)["history"] == []


def test_a_gap_is_forgotten_when_it_ended_a_day_ago() -> None:
    """Not when it began then."""
    last_day = LastDay()
    last_day.gap(START_S, 100, "x")
    assert len(last_day.to_json(START_S + DAY_S + 99)["gaps"]) == 1
    assert last_day.to_json(START_S + DAY_S + 100)["gaps"] == []


def test_a_restart_keeps_the_record() -> None:
    """What went through the state file counts as before, and counting goes on in the same quarter hour."""
    before = LastDay()
    before.count(START_S - QUARTER_S, unplanned=1, observed=900)
    before.count(START_S + 60, observed=60.5, runs=1)
    before.data_age(START_S + 60, 7.5)
    before.gap(START_S - 50, 20, "not running")
    kept = json.loads(json.dumps(before.to_json(START_S + 120)))
    complete(QUARTER, kept["history"])
    complete(GAP, kept["gaps"])
    after = LastDay()
    after.restore(kept)
    assert after.to_json(START_S + 120) == before.to_json(START_S + 120)
    after.count(START_S + 130, observed=10)
    after.data_age(START_S + 130, 3)
    quarter = after.to_json(START_S + 130)["history"][-1]
    assert (quarter["start"], quarter["observed"], quarter["runs"], quarter["worst"]) == (START_S, 70.5, 1, 7.5)


def test_what_is_written_does_not_change_afterwards() -> None:
    """It is handed to the thread that writes the file while others go on counting."""
    last_day = LastDay()
    last_day.count(START_S, unplanned=1)
    last_day.gap(START_S, 20, "x")
    written = last_day.to_json(START_S + 60)
    last_day.count(START_S, unplanned=1)
    last_day.gap(START_S + 30, 20, "x")
    assert written["history"][0]["unplanned"] == len(written["gaps"]) == 1


def test_a_day_of_events_stays_small_in_the_file() -> None:
    """Counts take at most 97 quarter hours, however many events there were."""
    last_day = LastDay()
    for second in range(0, int(3 * DAY_S), 30):
        last_day.count(START_S + second, unplanned=1, planned=1, runs=1, compared=700, mismatched=3, observed=30)
        last_day.data_age(START_S + second, 3.123)
    written = last_day.to_json(START_S + 3 * DAY_S - 30)
    assert len(written["history"]) <= 97
    assert len(json.dumps(written)) < 25_000


@pytest.mark.parametrize("days", [1.02, 365])
def test_what_a_clock_far_ahead_noted_is_forgotten(days: float) -> None:
    """Else an incident would be reported for as long as the clock had been ahead."""
    last_day = LastDay()
    last_day.count(START_S + days * DAY_S, unplanned=1)
    last_day.gap(START_S + days * DAY_S, 60, "x")
    assert last_day.to_json(START_S) == {"gaps": [], "history": []}


def test_a_clock_set_back_a_little_loses_nothing() -> None:
    """What was noted an hour ahead of the corrected clock still counts."""
    last_day = LastDay()
    last_day.count(START_S + HOUR_S, unplanned=1)
    last_day.gap(START_S + HOUR_S, 60, "x")
    written = last_day.to_json(START_S)
    assert len(written["gaps"]) == len(written["history"]) == 1
