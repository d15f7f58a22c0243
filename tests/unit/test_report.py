"""The report: four promises over 24 hours, and the timeline behind them."""

from pathlib import Path
from typing import Any

import pytest

from binance_funding.schema import QUARTER
from binance_funding.server.report import report
from tests.support.api_over_file import ApiOverFile
from tests.support.clock import WALL_S
from tests.support.samples import record, state, status

HOUR_S, DAY_S, QUARTER_S, STALE_S = 3600.0, 86_400.0, 900.0, 30.0
START_S = WALL_S - WALL_S % QUARTER_S
"""The beginning of a quarter hour."""


def quarter(start_s: float, **counts: float) -> dict[str, float]:
    """Return a quarter hour of the file, nothing in it unless given."""
    return {**{one.name: 0.0 for one in QUARTER}, "start": start_s, **counts}


def gap(start_s: float, seconds: float) -> dict[str, Any]:
    """Return a gap of the file."""
    return {"start": start_s, "seconds": seconds, "cause": "stream: it was cut"}


def watched(hours: float, until_s: float = START_S) -> list[dict[str, float]]:
    """Return a history in which so many hours went well."""
    starts = [until_s - QUARTER_S * number for number in range(1, round(hours * 4) + 1)]
    return [quarter(start, observed=QUARTER_S, runs=15, compared=10_000, worst=3.1) for start in reversed(starts)]


def reported(
    history: list[dict[str, float]], now_s: float = START_S, *gaps: dict[str, Any], age_s: float = 1.0
) -> dict[str, Any]:
    """Return the report at that time, with data of that age."""
    return report(list(gaps), history, now_s, oldest_age_s=age_s, market_age_s=age_s, stale_s=STALE_S)


def test_a_day_that_went_well_passes() -> None:
    """Every number, and the verdict that it takes a whole day to come to."""
    answer = reported(watched(24))
    timeline = answer.pop("timeline")
    assert answer == {
        "windowHours": 24,
        "observedHours": 24.0,
        "pass": True,
        "disconnections": {"unplanned": 0, "planned": 0, "pass": True},
        "dataAge": {"worstSeconds": 3.1, "limitSeconds": STALE_S, "pass": True},
        "comparison": {"runs": 1440, "compared": 960_000, "mismatched": 0, "pass": True},
        "gaps": {"count": 0, "longestSeconds": 0, "totalSeconds": 0, "pass": True},
        "freshness": {"within5Seconds": None, "within12Seconds": None, "withinLimit": None},
    }
    assert len(timeline) == 97
    assert {entry["observedSeconds"] for entry in timeline[:-1]} == {QUARTER_S}


@pytest.mark.parametrize("hours", [0.25, 13, 23.75])
def test_what_was_not_watched_for_a_whole_day_is_not_known_yet(hours: float) -> None:
    """All is well so far."""
    answer = reported(watched(hours))
    assert (answer["pass"], answer["observedHours"]) == (None, hours)


@pytest.mark.parametrize("hours", [1, 24])
@pytest.mark.parametrize(
    ("part", "counts"),
    [("disconnections", {"unplanned": 1}), ("dataAge", {"worst": 30.5}), ("comparison", {"mismatched": 1})],
)
def test_one_part_that_fails_fails_the_whole(hours: float, part: str, counts: dict[str, float]) -> None:
    """However long was watched."""
    history = watched(hours)
    history[1] |= counts
    answer = reported(history)
    assert (answer["pass"], answer[part]["pass"]) == (False, False)
    passes = [answer[name]["pass"] for name in ("disconnections", "dataAge", "comparison", "gaps") if name != part]
    assert passes == [True, True, True]


def test_planned_replacements_are_no_failure() -> None:
    """They cost nothing."""
    history = watched(24)
    history[5] |= {"planned": 2.0}
    answer = reported(history)
    assert (answer["pass"], answer["disconnections"]) == (True, {"unplanned": 0, "planned": 2, "pass": True})


def test_data_exactly_as_old_as_allowed_passes() -> None:
    """The limit itself is not stale."""
    answer = reported([*watched(1), quarter(START_S, worst=STALE_S)])
    assert answer["dataAge"] == {"worstSeconds": STALE_S, "limitSeconds": STALE_S, "pass": True}


def test_comparisons_that_found_nothing_to_compare_are_not_known_yet() -> None:
    """The first snapshot may have come before the stream; a whole day like that is a failure."""
    for hours, expected in ((1, None), (24, False)):
        history = [{**one, "compared": 0.0} for one in watched(hours)]
        answer = reported(history)
        assert (answer["comparison"]["pass"], answer["pass"]) == (expected, expected)


def test_incidents_leave_the_window_after_a_day() -> None:
    """A quarter of an hour later than exactly, since counts live in quarter hours."""
    history = [quarter(START_S, unplanned=1, mismatched=1, planned=1, runs=1, compared=1, observed=1, worst=500)]
    last_s = START_S + DAY_S + QUARTER_S - 1
    answer = reported(history, last_s)
    assert (answer["disconnections"]["unplanned"], answer["comparison"]["mismatched"]) == (1, 1)
    assert answer["dataAge"]["worstSeconds"] == 500
    answer = reported(history, last_s + 1)
    assert answer["disconnections"] == {"unplanned": 0, "planned": 0, "pass": True}
    assert answer["comparison"] == {"runs": 0, "compared": 0, "mismatched": 0, "pass": None}
    assert (answer["dataAge"]["worstSeconds"], answer["observedHours"]) == (1, 0)


def test_an_old_file_is_reported_within_the_window_too() -> None:
    """The daemon may be dead for long: the server cuts what it wrote then to the last 24 h."""
    answer = reported([quarter(START_S, unplanned=1)], START_S + 2 * DAY_S, gap(START_S, 60), age_s=2 * DAY_S)
    assert answer["disconnections"]["unplanned"] == 0
    assert answer["gaps"] == {"count": 1, "longestSeconds": DAY_S, "totalSeconds": DAY_S, "pass": False}
    assert answer["dataAge"] == {"worstSeconds": 2 * DAY_S, "limitSeconds": STALE_S, "pass": False}
    assert {entry["gapSeconds"] for entry in answer["timeline"][:-1]} == {QUARTER_S}


def test_more_watching_than_the_window_is_capped() -> None:
    """Two daemons in one quarter hour, or a set clock, never make more than 24 h, or 15 minutes of a quarter."""
    answer = reported([quarter(START_S - QUARTER_S, observed=100 * HOUR_S)])
    assert answer["observedHours"] == 24.0
    assert answer["timeline"][-2]["observedSeconds"] == QUARTER_S


def test_gaps_are_counted_and_measured() -> None:
    """Count, longest and total."""
    answer = reported(watched(24), START_S, gap(START_S - 5000, 12.3456), gap(START_S - 300, 100))
    assert answer["gaps"] == {"count": 2, "longestSeconds": 100, "totalSeconds": 112.346, "pass": False}


def test_a_gap_at_the_edge_of_the_window_is_clipped() -> None:
    """Only its seconds inside the last 24 h count; once it ended before them it is gone."""
    assert reported([], START_S + DAY_S + 40, gap(START_S, 100))["gaps"]["totalSeconds"] == 60
    assert reported([], START_S + DAY_S + 100, gap(START_S, 100))["gaps"]["count"] == 0


def test_a_gap_still_open_counts() -> None:
    """Ten seconds without news are none yet; beyond, it is counted with its length so far."""
    assert reported(watched(1), age_s=10.0)["gaps"]["count"] == 0
    answer = reported(watched(1), age_s=10.5)
    assert answer["gaps"] == {"count": 1, "longestSeconds": 10.5, "totalSeconds": 10.5, "pass": False}
    assert answer["dataAge"]["worstSeconds"] == 10.5


def test_the_timeline_shows_each_quarter_hour_of_the_window() -> None:
    """What happened in it, in whole numbers, and how long it was watched."""
    history = [
        quarter(START_S - 2 * QUARTER_S, observed=900, worst=3.1, unplanned=1.0, planned=2.0, mismatched=3.0, runs=9),
        quarter(START_S, observed=59.5, worst=2.5),
    ]
    timeline = reported(history, START_S + 60)["timeline"]
    nothing = {"observedSeconds": 0, "worstAgeSeconds": 0, "gapSeconds": 0}
    nothing |= {"unplanned": 0, "planned": 0, "mismatched": 0}
    starts = [START_S + number * QUARTER_S for number in range(-96, 1)]
    assert [entry["start"] for entry in timeline] == starts
    assert timeline[0] == {"start": starts[0], **nothing}
    counts = {"unplanned": 1, "planned": 2, "mismatched": 3}
    assert timeline[-3] == {**nothing, "start": starts[-3], "observedSeconds": 900, "worstAgeSeconds": 3.1, **counts}
    assert timeline[-2] == {"start": starts[-2], **nothing}
    assert timeline[-1] == {**nothing, "start": starts[-1], "observedSeconds": 59.5, "worstAgeSeconds": 2.5}
    assert all(type(entry[name]) is int for entry in timeline for name in ("start", "unplanned", "mismatched"))


def test_a_gap_is_shown_in_every_quarter_hour_that_it_touches() -> None:
    """With its seconds in each."""
    timeline = reported([], START_S + QUARTER_S, gap(START_S - 10, 915), age_s=0.0)["timeline"]
    assert [entry["gapSeconds"] for entry in timeline[-4:]] == [0, 10, 900, 5]


def test_the_age_of_the_data_now_is_part_of_the_present_quarter_hour() -> None:
    """A daemon that died can no longer note it."""
    answer = reported([quarter(START_S, worst=3.0)], START_S + 60, age_s=42.1234)
    assert answer["timeline"][-1]["worstAgeSeconds"] == answer["dataAge"]["worstSeconds"] == 42.123
    assert answer["timeline"][-1]["gapSeconds"] == 42.123


@pytest.fixture
def server(tmp_path: Path) -> ApiOverFile:
    """An API whose file does not exist yet."""
    return ApiOverFile(tmp_path)


def test_the_report_is_made_of_the_file_and_the_age_of_now(server: ApiOverFile) -> None:
    """The open gap counts although nobody has written it down; it began when the market last got new data."""
    history = [quarter(START_S - QUARTER_S, observed=900, planned=1, runs=15, compared=10_000, worst=22.5)]
    server.put(
        state(gaps=[gap(WALL_S - 600, 20)], history=history, connection_status=status(market_served_time=WALL_S - 0.5))
    )
    server.time.advance(30)
    answer = server.json("/funding/report")
    assert answer["dataAge"] == {"worstSeconds": 30, "limitSeconds": STALE_S, "pass": True}
    assert answer["gaps"] == {"count": 2, "longestSeconds": 30.5, "totalSeconds": 50.5, "pass": False}
    assert (answer["observedHours"], answer["pass"], len(answer["timeline"])) == (0.25, False, 97)


def test_the_report_speaks_of_the_market_not_of_its_luckiest_symbol(server: ApiOverFile) -> None:
    """One symbol advances, the rest has stood still for a minute: worst age and gap are those of the rest."""
    records = {"LUCKY": record(), "A": record(updatedAt=WALL_S - 60), "B": record(updatedAt=WALL_S - 60)}
    apart = {"HALTED": record(updatedAt=WALL_S - 500, halted=True), "GONE": record(updatedAt=0, unlisted=True)}
    server.put(state({**records, **apart}, connection_status=status(market_served_time=WALL_S - 58)))
    answer = server.json("/funding/report")
    assert answer["dataAge"]["worstSeconds"] == 60
    assert answer["gaps"] == {"count": 1, "longestSeconds": 58, "totalSeconds": 58, "pass": False}


def test_the_report_of_a_daemon_without_data_counts_from_its_start(server: ApiOverFile) -> None:
    """Nothing since then is a gap, and stale."""
    start_s = WALL_S - 500
    started = status(daemon_start_time=start_s, market_served_time=start_s)
    server.put(state({}, connection_status=started))
    answer = server.json("/funding/report")
    assert (answer["pass"], answer["dataAge"]["worstSeconds"], answer["gaps"]["totalSeconds"]) == (False, 500, 500)


def test_a_set_clock_opens_no_gap(server: ApiOverFile) -> None:
    """Ages are counted on the clock that nobody can set."""
    server.put(state(history=watched(1)))
    server.time.set_wall_by(HOUR_S)
    server.time.advance(3)
    answer = server.json("/funding/report")
    assert (answer["gaps"]["count"], answer["dataAge"]["worstSeconds"]) == (0, 3.1)


def test_freshness_is_the_share_of_all_symbol_seconds_and_never_rounded_up() -> None:
    """Of all quarter hours together: only a day without a single stale second shows 1."""
    shares = {"within_5s": 1500.0, "within_12s": 1999.9999, "within_limit": 2000.0}
    answer = reported([quarter(START_S - QUARTER_S, symbol_seconds=2000.0), quarter(START_S, **shares)])
    assert answer["freshness"] == {"within5Seconds": 0.75, "within12Seconds": 0.999999, "withinLimit": 1.0}
