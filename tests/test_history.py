"""The last 24 hours and the report made of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from binance_funding.history import History, report
from tests.fakes import WALL_S

HOUR_S, DAY_S, QUARTER_S = 3600.0, 86_400.0, 900.0
START_S = WALL_S - WALL_S % QUARTER_S
STALE_S = 180.0


def told(history: History, wall_s: float, data_age_s: float = 1.0) -> dict[str, Any]:
    """Return the report a server would make of this history after a journey through the file."""
    gaps, buckets = json.loads(json.dumps(history.to_json(wall_s)))
    return report(gaps, buckets, wall_s, data_age_s, STALE_S)


def watched(from_s: float, to_s: float, history: History | None = None) -> History:
    """Return a history of watching without incident, with a comparison each minute."""
    history = history or History()
    for second in range(int(from_s), int(to_s), 60):
        history.count(second, observed=60, runs=1, compared=700)
    return history


def test_a_day_without_incident_passes() -> None:
    """All 24 hours watched and all parts hold."""
    history = watched(START_S - DAY_S - QUARTER_S, START_S)
    history.count(START_S - 5, planned=2)
    history.data_age(START_S - 5, 4.1234)
    assert told(history, START_S, data_age_s=2.0) == {
        "windowHours": 24,
        "observedHours": 24.0,
        "pass": True,
        "disconnections": {"unplanned": 0, "planned": 2, "pass": True},
        "dataAge": {"worstSeconds": 4.123, "limitSeconds": 180.0, "pass": True},
        "comparison": {"runs": 24 * 60, "compared": 24 * 60 * 700, "mismatched": 0, "pass": True},
        "gaps": {"count": 0, "longestSeconds": 0, "totalSeconds": 0, "pass": True},
    }


def test_a_part_of_a_day_without_incident_is_not_known_yet() -> None:
    """Nothing failed, but nobody watched the rest."""
    answer = told(watched(START_S - 13 * HOUR_S, START_S), START_S)
    assert (answer["observedHours"], answer["pass"]) == (13.0, None)
    assert [answer[part]["pass"] for part in ("disconnections", "dataAge", "comparison", "gaps")] == [True] * 4


def test_a_comparison_of_nothing_proves_nothing() -> None:
    """The first snapshot may come before the stream: that part is open still."""
    history = History()
    history.count(START_S - HOUR_S, observed=HOUR_S, runs=1)
    assert told(history, START_S)["comparison"] == {"runs": 1, "compared": 0, "mismatched": 0, "pass": None}


def test_a_daemon_just_started_knows_nothing_yet() -> None:
    """No comparison has run: that part is open, not passed and not failed."""
    answer = told(History(), START_S)
    assert (answer["observedHours"], answer["pass"], answer["comparison"]["pass"]) == (0, None, None)


@pytest.mark.parametrize("hours", [1, 25])
@pytest.mark.parametrize(
    ("part", "incident"),
    [
        ("disconnections", lambda history: history.count(START_S - 30, unplanned=1)),
        ("dataAge", lambda history: history.data_age(START_S - 30, STALE_S + 0.01)),
        ("comparison", lambda history: history.count(START_S - 30, mismatched=1)),
        ("gaps", lambda history: history.gap(START_S - 60, 10.5, "x")),
    ],
)
def test_one_failure_fails_the_report_at_once(part: str, incident: Any, hours: int) -> None:
    """However little of the day was watched; the other parts still pass."""
    history = watched(START_S - hours * HOUR_S, START_S)
    incident(history)
    answer = told(history, START_S)
    assert answer["pass"] is False
    failed = [name for name, value in answer.items() if isinstance(value, dict) and value["pass"] is False]
    assert failed == [part]


@pytest.mark.parametrize("runs", [0, 5])
def test_a_whole_day_without_comparison_fails(runs: int) -> None:
    """Runs must be more than none, and have had something to compare."""
    history = History()
    history.count(START_S - HOUR_S, observed=DAY_S, runs=runs)
    answer = told(history, START_S)
    assert (answer["comparison"]["pass"], answer["pass"]) == (False, False)


def test_data_exactly_as_old_as_allowed_passes() -> None:
    """The limit itself is not stale."""
    history = watched(START_S - HOUR_S, START_S)
    history.data_age(START_S - 30, STALE_S)
    assert told(history, START_S)["dataAge"] == {"worstSeconds": STALE_S, "limitSeconds": STALE_S, "pass": True}


def test_incidents_leave_the_window_after_a_day() -> None:
    """A quarter of an hour later than exactly, since counts live in quarter hours."""
    history = History()
    history.count(START_S, unplanned=1, mismatched=1, planned=1, runs=1, compared=1, observed=1)
    history.data_age(START_S, 500)
    last_s = START_S + DAY_S + QUARTER_S - 1
    answer = told(history, last_s)
    assert (answer["disconnections"]["unplanned"], answer["comparison"]["mismatched"]) == (1, 1)
    assert answer["dataAge"]["worstSeconds"] == 500
    answer = told(history, last_s + 1)
    assert answer["disconnections"] == {"unplanned": 0, "planned": 0, "pass": True}
    assert answer["comparison"] == {"runs": 0, "compared": 0, "mismatched": 0, "pass": None}
    assert (answer["dataAge"]["worstSeconds"], answer["observedHours"]) == (1, 0)
    assert history.to_json(last_s + 1) == ([], [])


def test_an_old_file_is_reported_within_the_window_too() -> None:
    """The daemon may be dead for long: what it wrote then is cut to the last 24 h by the server."""
    history = History()
    history.count(START_S, unplanned=1)
    history.gap(START_S, 60, "x")
    gaps, buckets = history.to_json(START_S + 60)
    answer = report(gaps, buckets, START_S + 2 * DAY_S, 2 * DAY_S, STALE_S)
    assert answer["disconnections"]["unplanned"] == 0
    assert answer["gaps"] == {"count": 1, "longestSeconds": DAY_S, "totalSeconds": DAY_S, "pass": False}
    assert answer["dataAge"] == {"worstSeconds": 2 * DAY_S, "limitSeconds": STALE_S, "pass": False}


def test_more_watching_than_the_window_is_capped() -> None:
    """Two daemons in one quarter hour, or a set clock, never make more than 24 h."""
    history = History()
    history.count(START_S - 1, observed=100 * HOUR_S)
    assert told(history, START_S)["observedHours"] == 24.0


def test_gaps_are_counted_and_measured() -> None:
    """Count, longest and total, in the order they ended in the file."""
    history = History()
    history.gap(START_S - 5000, 12.3456, "stream: it was cut")
    history.gap(START_S - 300, 100, "not running")
    assert history.to_json(START_S)[0] == [
        {"start": START_S - 5000, "seconds": 12.346, "cause": "stream: it was cut"},
        {"start": START_S - 300, "seconds": 100, "cause": "not running"},
    ]
    assert told(history, START_S)["gaps"] == {
        "count": 2,
        "longestSeconds": 100,
        "totalSeconds": 112.346,
        "pass": False,
    }


def test_a_gap_at_the_edge_of_the_window_is_clipped() -> None:
    """Only its seconds inside the last 24 h count; once it ended before them it is gone."""
    history = History()
    history.gap(START_S, 100, "x")
    assert told(history, START_S + DAY_S + 40)["gaps"]["totalSeconds"] == 60
    assert told(history, START_S + DAY_S + 100)["gaps"]["count"] == 0
    assert history.to_json(START_S + DAY_S + 100)[0] == []


def test_a_gap_still_open_counts() -> None:
    """Ten seconds without news are none yet; beyond, it is counted with its length so far."""
    history = watched(START_S - HOUR_S, START_S)
    assert told(history, START_S, data_age_s=10.0)["gaps"]["count"] == 0
    answer = told(history, START_S, data_age_s=10.5)
    assert answer["gaps"] == {"count": 1, "longestSeconds": 10.5, "totalSeconds": 10.5, "pass": False}
    assert answer["dataAge"]["worstSeconds"] == 10.5


def test_a_restart_keeps_the_record() -> None:
    """What went through the state file counts as before, and counting goes on in the same quarter hour."""
    before = watched(START_S - HOUR_S, START_S + 120)
    before.count(START_S + 1, unplanned=1)
    before.data_age(START_S + 1, 7.5)
    before.gap(START_S - 50, 20, "not running")
    gaps, buckets = json.loads(json.dumps(before.to_json(START_S + 120)))
    after = History()
    after.restore({"gaps": gaps, "history": buckets})
    assert after.to_json(START_S + 120) == before.to_json(START_S + 120)
    after.count(START_S + 130, unplanned=1, observed=60)
    after.data_age(START_S + 130, 3)
    answer = told(after, START_S + 180)
    assert answer["disconnections"]["unplanned"] == 2
    assert answer["dataAge"]["worstSeconds"] == 7.5
    assert answer["observedHours"] == round((HOUR_S + 180) / HOUR_S, 2)


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"gaps": [], "history": [{}]},
        {"gaps": [{}], "history": []},
        {"gaps": None, "history": []},
        {"gaps": [], "history": 5},
        {"gaps": [[1]], "history": []},
        {"gaps": [{"start": "x", "seconds": 1, "cause": ""}], "history": []},
        {"gaps": [], "history": [{"start": 0, "observed": {}}]},
    ],
)
def test_junk_is_refused_and_leaves_the_record_alone(state: dict[str, Any]) -> None:
    """One of three errors, and nothing half taken over."""
    history = History()
    history.count(START_S, unplanned=1)
    with pytest.raises((KeyError, TypeError, ValueError)):
        history.restore(state)
    assert told(history, START_S)["disconnections"]["unplanned"] == 1


def test_a_day_of_events_stays_small_in_the_file() -> None:
    """Counts take at most 97 quarter hours, however many events there were."""
    history = History()
    for second in range(0, int(3 * DAY_S), 30):
        history.count(START_S + second, unplanned=1, planned=1, runs=1, compared=700, mismatched=3, observed=30)
        history.data_age(START_S + second, 3.123)
    gaps, buckets = history.to_json(START_S + 3 * DAY_S - 30)
    assert len(buckets) <= 97
    assert len(json.dumps([gaps, buckets])) < 20_000


@pytest.mark.parametrize("incident", ["count", "gap"])
def test_a_clock_that_was_far_ahead_does_not_spoil_the_report_for_years(incident: str) -> None:
    """An incident noted while the clock stood a year ahead is forgotten when a day has passed by the mended clock."""
    history = History()
    wrong_s = START_S + 365 * DAY_S
    if incident == "count":
        history.count(wrong_s, unplanned=1)
    else:
        history.gap(wrong_s, 60, "x")
    watched(START_S, START_S + DAY_S + QUARTER_S, history)
    assert told(history, START_S + DAY_S + QUARTER_S)["pass"] is True
