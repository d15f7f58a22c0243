"""What the two programs say about themselves is true: report, comparison, metrics, health and log agree."""

from __future__ import annotations

import json
import re
import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.exchange import ALL, FUTURE, Exchange, Market, RestRequest
from tests.support.programs import STATE_FILE, Daemon, Server
from tests.support.waiting import eventually

TICK_S = 0.5
POLL_S = 2.0
GAP_S = 12.0
STALE_S = 60
SLACK_S = 2.0
"""How late a busy machine may send or receive a tick."""

ONLY_IN_REST = ["ADAUSDT", "TSLAUSDT", "币安人生USDT"]
ONLY_IN_STREAM = ["AAPLUSDT", "DOGEUSDT"]
MISMATCHING = "SOLUSDT"
SYMBOLS, IN_BOTH = 25, 20
PREMIUM_INDEX, FUNDING_INFO = "/fapi/v1/premiumIndex", "/fapi/v1/fundingInfo"
COMPARED = ("compared", "matched", "mismatched", "identical")


# Reading what they say


def facts(line: str) -> dict[str, str]:
    """Return the key=value pairs of a log line."""
    return dict(word.split("=", 1) for word in shlex.split(line) if "=" in word)


def found(log: list[str], pattern: str) -> list[str]:
    """Return the log lines in which the regular expression is found."""
    return [line for line in log if re.search(pattern, line)]


@dataclass
class Outputs:
    """Everything said at one moment: all answers are made of the same version of the state file."""

    state: dict[str, Any]
    report: dict[str, Any]
    health: dict[str, Any]
    metrics: str

    @property
    def totals(self) -> dict[str, int]:
        """The totals of the comparison."""
        totals: dict[str, int] = self.state["comparison"]["totals"]
        return totals

    def metric(self, name: str) -> float | None:
        """Return the sample of a name, with its labels if it has any; None where there is none."""
        return sample(self.metrics, name)


def sample(metrics: str, name: str) -> float | None:
    """Return one sample of a page of metrics, None where there is none."""
    prefix = f"binance_funding_{name} "
    return next((float(line.removeprefix(prefix)) for line in metrics.splitlines() if line.startswith(prefix)), None)


def all_outputs(daemon: Daemon, server: Server) -> Outputs:
    """Ask for everything until all of it is of one version of the file, written between two polls of REST."""

    def metrics() -> str:
        return server.request("/metrics")[2].decode()

    def ask() -> Outputs | None:
        state, before = daemon.state(), metrics()
        report, health, after = server.get("/funding/report")[1], server.get("/funding/health")[1], metrics()
        versions = {sample(text, "state_file_timestamp_seconds") for text in (before, after)}
        if not state or versions != {state["updated_at"]}:
            return None
        since_run_s = state["updated_at"] - state["comparison"]["last"]["compared_at"]
        return Outputs(state, report, health, before) if POLL_S / 4 < since_run_s < POLL_S * 3 / 4 else None

    outputs = eventually(ask, "answers of one version of the file")
    assert outputs is not None
    return outputs


# A day with one of everything


@dataclass
class Day:
    """What was said in the course of an eventful day; each test looks at one side of it."""

    well: Outputs
    """Before anything happened."""
    eventful: Outputs
    """After the gap and the replacement."""
    log: list[str]
    """Of the first daemon, until then."""
    gap_s: float
    """From the last tick before the gap to the first one after it, by the exchange's count."""
    snapshots: list[RestRequest]
    """What the exchange was asked for until then."""
    mismatching_snapshots: int
    """How many of its answers held the mismatch."""
    answered_after: int
    """How many snapshots the next daemon got until it was asked."""
    closed_with: list[int | None]
    """Close codes of the connections that had ended until then."""
    final: dict[str, Any]
    """The state file that the first daemon left behind."""
    restarted: Outputs
    """By the next daemon."""
    restarted_log: list[str]


def wait_for_comparisons(daemon: Daemon, count: int = 1) -> None:
    """Wait for so many more comparisons, the last one of all that both sources have."""

    def runs() -> int:
        comparison = daemon.state().get("comparison", {"last": None})
        whole = comparison["last"] is not None and comparison["last"]["compared"] == IN_BOTH
        return int(comparison["totals"]["runs"]) if whole else 0

    before = runs()
    eventually(lambda: runs() >= before + count, "a comparison of all that both have")


def live_through_a_gap(exchange: Exchange, daemon: Daemon) -> float:
    """Let neither stream nor REST bring anything for 12 s, without losing a connection; return the gap's length."""
    kept = exchange.live[:2]
    exchange.rest_fault(500, path=PREMIUM_INDEX)
    exchange.silence(ALL)
    last_ms = exchange.ticks[-1]
    exchange.wait(lambda: exchange.ticks[-1] >= last_ms + (GAP_S - TICK_S) * 1000, what="the gap's last silent tick")
    for connection in kept:
        exchange.behave(connection)
    silent_until_ms = exchange.ticks[-1]
    daemon.wait_for_line(" gap ended ")
    exchange.rest_ok()
    return (silent_until_ms - last_ms) / 1000 + TICK_S


def live_through_one_replacement(exchange: Exchange, daemon: Daemon) -> None:
    """Let the waiting successor bring data; the next one stays silent, so that one replacement it is."""
    exchange.behave(exchange.wait_for_live(3)[2])
    daemon.wait_for_line(" rotated ")
    exchange.wait(lambda: any(not one.is_open for one in exchange.connections), what="the old connection's end")


def snapshots(exchange: Exchange, until_s: float) -> list[RestRequest]:
    """Return the requests for snapshots until a time of this host's clock."""
    return [one for one in exchange.rest_requests if one.path == PREMIUM_INDEX and one.at_s <= until_s]


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> Day:
    """One mismatching symbol, three only in REST, two only in the stream, a gap of 12 s, a replacement, a restart."""
    folder = tmp_path_factory.mktemp("day")
    # Neither the gap nor a successor that stays silent may end a connection.
    settings = {
        "LOG_LEVEL": "DEBUG",
        "SILENCE_SECONDS": 50,
        "STALE_SECONDS": STALE_S,
        "REST_POLL_SECONDS": POLL_S,
        "REST_TIMEOUT_SECONDS": 10,
    }
    market = Market(usd_m=20, tradfi=5, coin_m=2, fundless=2)
    market.only_in_rest.update(ONLY_IN_REST)
    market.only_in_stream.update(ONLY_IN_STREAM)
    with Exchange(market, tick_s=TICK_S) as exchange, Server(folder, STALE_SECONDS=STALE_S) as server:
        with Daemon(exchange, folder, CONNECTION_MAX_AGE_SECONDS=10, **settings) as daemon:
            daemon.wait_for_live()
            exchange.silence(FUTURE)
            wait_for_comparisons(daemon)
            well = all_outputs(daemon, server)

            without_mismatch = len(snapshots(exchange, time.time()))
            market.rest_mismatch.add(MISMATCHING)
            wait_for_comparisons(daemon, 2)
            gap_s = live_through_a_gap(exchange, daemon)
            live_through_one_replacement(exchange, daemon)
            wait_for_comparisons(daemon)

            eventful = all_outputs(daemon, server)
            log = daemon.log
            asked = snapshots(exchange, eventful.state["updated_at"])
            closed_with = [one.close_code for one in exchange.connections if not one.is_open]
            daemon.terminate()
            final = daemon.state()
            asked_before = snapshots(exchange, time.time())
        exchange.behave(FUTURE)
        with Daemon(exchange, folder, **settings) as daemon:
            daemon.wait_for_live()
            wait_for_comparisons(daemon)
            restarted = all_outputs(daemon, server)
            after = snapshots(exchange, restarted.state["updated_at"])[len(asked_before) :]
            return Day(
                well=well,
                eventful=eventful,
                log=log,
                gap_s=gap_s,
                snapshots=asked,
                mismatching_snapshots=sum(one.status == 200 for one in asked[without_mismatch:]),
                answered_after=len(after),
                closed_with=closed_with,
                final=final,
                restarted=restarted,
                restarted_log=daemon.log,
            )


def test_report_is_open_while_nothing_failed_and_the_day_is_not_over(day: Day) -> None:
    """All parts pass, and yet it is null: most of the 24 hours nobody has watched."""
    report, timeline = without_timeline(day.well.report)
    runs, compared = day.well.totals["runs"], day.well.totals["compared"]
    worst_s, hours = report["dataAge"]["worstSeconds"], report["observedHours"]
    assert report == {
        "windowHours": 24,
        "observedHours": hours,
        "pass": None,
        "disconnections": {"unplanned": 0, "planned": 0, "pass": True},
        "dataAge": {"worstSeconds": worst_s, "limitSeconds": STALE_S, "pass": True},
        "comparison": {"runs": runs, "compared": compared, "mismatched": 0, "pass": True},
        "gaps": {"count": 0, "longestSeconds": 0, "totalSeconds": 0, "pass": True},
    }
    assert 0 <= hours < 0.1
    assert TICK_S / 2 < worst_s < 10
    assert runs > 0
    assert compared >= IN_BOTH
    assert len(timeline) == 97
    assert all(quarter["worstAgeSeconds"] <= worst_s for quarter in timeline)


def without_timeline(report: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Return the judged parts of a report, and its timeline. Shares of symbol-seconds have tests of their own."""
    parts = {name: part for name, part in report.items() if name not in ("timeline", "freshness")}
    return parts, report["timeline"]


def test_report_shows_all_that_happened(day: Day) -> None:
    """Gap, mismatches and replacement, by the exchange's count; one part that fails decides."""
    report, _ = without_timeline(day.eventful.report)
    totals, worst_s = day.eventful.totals, report["dataAge"]["worstSeconds"]
    (gap,) = day.eventful.state["gaps"]
    # The oldest symbol is one of those that only REST has, and was polled some time before the gap.
    assert gap["seconds"] <= worst_s <= gap["seconds"] + POLL_S + SLACK_S
    assert gap["seconds"] == pytest.approx(day.gap_s, abs=SLACK_S)
    assert report == {
        "windowHours": 24,
        "observedHours": report["observedHours"],
        "pass": False,
        "disconnections": {"unplanned": 0, "planned": 1, "pass": True},
        "dataAge": {"worstSeconds": worst_s, "limitSeconds": STALE_S, "pass": True},
        "comparison": {
            "runs": sum(one.status == 200 for one in day.snapshots),
            "compared": totals["compared"],
            "mismatched": day.mismatching_snapshots,
            "pass": False,
        },
        "gaps": {"count": 1, "longestSeconds": gap["seconds"], "totalSeconds": gap["seconds"], "pass": False},
    }


def test_timeline_shows_the_same_quarter_by_quarter(day: Day) -> None:
    """Its sums and its worst are those of the report."""
    report, timeline = without_timeline(day.eventful.report)
    assert max(quarter["worstAgeSeconds"] for quarter in timeline) == report["dataAge"]["worstSeconds"]
    sums = {name: sum(quarter[name] for quarter in timeline) for name in ("planned", "unplanned", "mismatched")}
    assert sums == {"planned": 1, "unplanned": 0, "mismatched": day.mismatching_snapshots}
    assert sum(quarter["gapSeconds"] for quarter in timeline) == pytest.approx(report["gaps"]["totalSeconds"], abs=0.01)
    watched_s = sum(quarter["observedSeconds"] for quarter in timeline)
    assert watched_s == pytest.approx(observed_s(day.eventful.state), abs=0.01)
    assert [quarter["start"] % 900 for quarter in timeline] == [0] * len(timeline)


def test_comparison_names_what_differs(day: Day) -> None:
    """The symbols, how many and by how much."""
    last = day.eventful.state["comparison"]["last"]
    assert (last["compared"], last["matched"], last["mismatched"]) == (IN_BOTH, IN_BOTH - 1, 1)
    assert last["mismatched_symbols"] == [MISMATCHING]
    assert (last["only_in_rest"], last["only_in_rest_symbols"]) == (3, ONLY_IN_REST)
    assert (last["only_in_stream"], last["only_in_stream_symbols"]) == (2, ONLY_IN_STREAM)
    # What the exchange added to the REST row, and what the market may move in the seconds between the two.
    assert last["max_funding_rate_difference"] == pytest.approx(0.0005, abs=0.00003)
    assert last["max_mark_price_difference_ratio"] == pytest.approx(0.01 / 1.01, abs=0.002)


def test_totals_of_the_comparison_are_those_of_the_snapshots(day: Day) -> None:
    """Every snapshot that came is one run, every one with the mismatch has it."""
    totals = day.eventful.totals
    assert totals["runs"] == sum(one.status == 200 for one in day.snapshots)
    assert totals["mismatched"] == day.mismatching_snapshots >= 3
    assert totals["compared"] == totals["matched"] + totals["mismatched"] <= IN_BOTH * totals["runs"]
    assert totals["identical"] <= totals["matched"]


def test_a_mismatch_that_lasts_is_logged_once_with_its_symbol(day: Day) -> None:
    """Not at every poll; runs without any are for DEBUG."""
    (line,) = found(day.log, "WARNING comparison ")
    assert facts(line)["symbols"] == MISMATCHING
    assert all(facts(line)["mismatched"] == "0" for line in found(day.log, "DEBUG +comparison "))


def test_metrics_agree_with_everything_else(day: Day) -> None:
    """Every counter and gauge that this day changes."""
    outputs, state = day.eventful, day.eventful.state
    (gap,) = state["gaps"]
    status = state["connection_status"]
    refused = sum(one.status == 500 for one in day.snapshots)
    assert refused > 0
    expected = {
        "symbols": SYMBOLS,
        "stream_connections": 2,
        "stream_messages_total": status["messages_received"],
        'stream_disconnects_total{kind="planned"}': 1,
        'stream_disconnects_total{kind="unplanned"}': 0,
        "last_message_timestamp_seconds": status["last_message_time"],
        "rejected_rows_total": 0,
        "fallback_active": 0,
        "rest_polls_total": len(day.snapshots),
        'rest_errors_total{status="500"}': refused,
        "comparison_rows_total": outputs.totals["compared"],
        "comparison_mismatches_total": day.mismatching_snapshots,
        "gaps_total": 1,
        "gap_seconds_total": gap["seconds"],
        "clock_offset_seconds": status["clock_offset_seconds"],
        "daemon_start_time_seconds": status["daemon_start_time"],
    }
    assert {name: outputs.metric(name) for name in expected} == expected
    for symbol, record in state["funding_state"].items():
        assert outputs.metric(f'rate{{symbol="{symbol}"}}') == record["fundingRate"]
        assert outputs.metric(f'mark_price{{symbol="{symbol}"}}') == record["markPrice"]
        assert outputs.metric(f'updated_timestamp_seconds{{symbol="{symbol}"}}') == record["updatedAt"]


def test_health_agrees_with_everything_else(day: Day) -> None:
    """Three symbols live on REST, two connections are live, the age is that of the newest record."""
    state, health = day.eventful.state, day.eventful.health
    expected = {
        "status": "healthy",
        "error": None,
        "websocketConnected": True,
        "connections": 2,
        "symbolCount": SYMBOLS,
        "symbolsFromRest": len(ONLY_IN_REST),
        "symbolsStale": 0,
        "daemonAlive": True,
        "fallbackActive": False,
        "messagesReceived": state["connection_status"]["messages_received"],
        "reconnectAttempts": 0,
        "lastConnectedTime": state["connection_status"]["last_connected_time"],
    }
    assert {name: health[name] for name in expected} == expected
    from_rest = [symbol for symbol, record in state["funding_state"].items() if record["source"] == "rest"]
    assert sorted(from_rest) == ONLY_IN_REST
    times = [record["updatedAt"] for record in state["funding_state"].values()]
    spread_s = health["oldestDataAgeSeconds"] - health["newestDataAgeSeconds"]
    assert spread_s == pytest.approx(max(times) - min(times), abs=0.002)
    assert health["uptimeSeconds"] > GAP_S


def test_log_has_the_gap_and_the_replacement_once(day: Day) -> None:
    """The same length and cause as in the file; no connection was lost, and REST took over in between."""
    (gap,) = day.eventful.state["gaps"]
    (line,) = found(day.log, " WARNING gap ended ")
    assert float(facts(line)["seconds"]) == gap["seconds"]
    assert facts(line)["cause"] == gap["cause"]
    assert "REST: Binance server error (HTTP 500)" in gap["cause"]
    assert len(found(day.log, " INFO +rotated ")) == 1
    # With its goodbye, or (on a host too busy to say it within a second) without.
    assert day.closed_with in ([1000], [1006])
    assert len(found(day.log, " fallback on ")) == len(found(day.log, " fallback off ")) == 1
    assert not found(day.log, " (lost|silent|lagging|connect failed) ")


def test_a_clock_that_is_right_is_shown_and_no_trouble(day: Day) -> None:
    """An offset near zero, no warning."""
    assert day.eventful.state["connection_status"]["clock_offset_seconds"] == pytest.approx(0, abs=SLACK_S)
    assert not found(day.log, "NTP")


def test_after_a_restart_the_window_still_holds_what_happened_before(day: Day) -> None:
    """Gap, replacement and worst age as before; comparisons are counted on; the short stop is no gap."""
    before, after = day.eventful, day.restarted
    assert after.state["gaps"] == before.state["gaps"]
    for part in ("disconnections", "gaps", "dataAge"):
        assert after.report[part] == before.report[part]
    final = day.final["comparison"]["totals"]
    assert after.totals["runs"] == final["runs"] + day.answered_after
    assert 0 < after.totals["mismatched"] - final["mismatched"] <= day.answered_after
    assert 0 < after.totals["compared"] - final["compared"] <= IN_BOTH * day.answered_after
    assert after.report["comparison"] == {
        **{name: after.totals[name] for name in ("runs", "compared", "mismatched")},
        "pass": False,
    }
    assert after.report["pass"] is False
    assert observed_s(after.state) >= observed_s(day.final) > GAP_S


def observed_s(state: dict[str, Any]) -> float:
    """Return the seconds that the file says were watched."""
    return float(sum(bucket["observed"] for bucket in state["history"]))


# A whole day, without waiting for it


def day_watched_by_another(folder: Path, incident_hours_ago: float) -> None:
    """Leave the file of a daemon that has just ended after more than a day, with one unplanned disconnection."""
    now_s = time.time()
    nothing = dict.fromkeys(("unplanned", "planned", "runs", "compared", "mismatched", "worst"), 0)
    starts = [now_s // 900 * 900 - 900 * quarter for quarter in range(110)]
    history = [{"start": start, **nothing, "observed": 900, "runs": 15, "compared": 300} for start in starts]
    history[int(incident_hours_ago * 4)]["unplanned"] = 1
    totals = dict.fromkeys(("runs", *COMPARED), 0)
    state = {
        "version": 1,
        "updated_at": now_s,
        "daemon_pid": 1,
        "funding_state": {},
        "connection_status": {},
        "comparison": {"last": None, "totals": totals},
        "gaps": [],
        "history": history,
    }
    (folder / STATE_FILE).write_text(json.dumps(state), encoding="utf-8")


@pytest.mark.parametrize(
    ("incident_hours_ago", "unplanned", "verdict"),
    [pytest.param(25, 0, True, id="25 h ago is over"), pytest.param(23, 1, False, id="23 h ago counts")],
)
def test_report_judges_the_last_24_hours(
    tmp_path: Path, incident_hours_ago: float, unplanned: int, verdict: bool
) -> None:
    """All of them watched, over a restart: true where nothing failed in them, whatever was before."""
    day_watched_by_another(tmp_path, incident_hours_ago)
    with (
        Exchange(Market(usd_m=20, tradfi=5, coin_m=2, fundless=2), tick_s=TICK_S) as exchange,
        Daemon(exchange, tmp_path) as daemon,
        Server(tmp_path) as server,
    ):
        daemon.wait_for_live()
        report = server.get("/funding/report")[1]
        assert (report["observedHours"], report["pass"]) == (24.0, verdict)
        assert report["disconnections"] == {"unplanned": unplanned, "planned": 0, "pass": verdict}
        assert {name for name, part in report.items() if isinstance(part, dict) and part.get("pass") is False} == (
            set() if verdict else {"disconnections"}
        )


# An absence, a wrong clock, funding intervals

OFFSET_S = 7.0


@dataclass
class Absence:
    """A daemon that stops for more than 10 s, and its successor for which fundingInfo fails."""

    market: Market
    before: dict[str, Any]
    """The last state of the first daemon."""
    records: list[dict[str, Any]]
    """All symbols over HTTP, by the first daemon."""
    log: list[str]
    began_s: float
    after: dict[str, Any]
    """A state of the second daemon, all records of which are its own."""
    report_after: dict[str, Any]
    metrics_after: str
    log_after: list[str]
    ended_s: float


@pytest.fixture(scope="module")
def absence(tmp_path_factory: pytest.TempPathFactory) -> Absence:
    """The exchange's clock is 7 s ahead; the daemon is away for 11 s; then fundingInfo fails."""
    folder = tmp_path_factory.mktemp("absence")
    market = Market(usd_m=40, tradfi=5, coin_m=2, fundless=2)
    began_s = time.time()
    with Exchange(market, tick_s=TICK_S, clock_offset_s=OFFSET_S) as exchange, Server(folder) as server:
        with Daemon(exchange, folder) as daemon:
            daemon.wait_for_live()
            daemon.wait_for_line("NTP")
            eventually(lambda: intervals(daemon.state()) == expected_intervals(market), "the intervals")
            symbols = quote(",".join(market.symbols))
            records = server.get(f"/funding/batch?symbols={symbols}")[1]["data"]
            daemon.terminate()
            before, log = daemon.state(), daemon.log
        exchange.rest_fault(500, path=FUNDING_INFO)
        # What is measured is an absence, so it has to be waited for.
        eventually(lambda: time.time() > newest_update_s(before) + 11, "11 s without daemon")
        with Daemon(exchange, folder) as daemon:
            daemon.wait_for_live()
            daemon.wait_for_line("funding intervals unknown")
            eventually(lambda: all_newer(daemon.records(), before), "records of its own")
            after = daemon.state()
            report, metrics = server.get("/funding/report")[1], server.request("/metrics")[2].decode()
            return Absence(market, before, records, log, began_s, after, report, metrics, daemon.log, time.time())


def all_newer(records: dict[str, dict[str, Any]], before: dict[str, Any]) -> bool:
    """Tell whether every record there was has advanced."""
    old = before["funding_state"]
    return records.keys() == old.keys() and all(records[s]["eventTime"] > old[s]["eventTime"] for s in old)


def intervals(state: dict[str, Any]) -> dict[str, int]:
    """Return the funding intervals of a state file in hours, by symbol."""
    return {symbol: record["fundingIntervalHours"] for symbol, record in state.get("funding_state", {}).items()}


def expected_intervals(market: Market) -> dict[str, int]:
    """Return those of the exchange."""
    return {symbol: market.funding_interval_h(symbol) for symbol in market.symbols}


def newest_update_s(state: dict[str, Any]) -> float:
    """Return when the state's data last advanced."""
    return float(max(record["updatedAt"] for record in state["funding_state"].values()))


def test_a_clock_that_is_wrong_is_logged_with_what_to_do(absence: Absence) -> None:
    """The offset in the file, and one warning that says NTP."""
    assert absence.before["connection_status"]["clock_offset_seconds"] == pytest.approx(OFFSET_S, abs=SLACK_S)
    (line,) = found(absence.log, "WARNING clock ")
    assert float(facts(line)["offset_s"]) == pytest.approx(OFFSET_S, abs=SLACK_S)
    assert facts(line)["next"] == "check NTP"


def test_funding_intervals_of_every_length_are_shown(absence: Absence) -> None:
    """1, 2, 4 and 8 hours, each symbol with the exchange's."""
    assert set(expected_intervals(absence.market).values()) == {1, 2, 4, 8}
    assert intervals(absence.before) == expected_intervals(absence.market)


def test_rate_per_year_is_that_of_the_symbols_own_interval(absence: Absence) -> None:
    """Rate times fundings per day times 365, from the rate the exchange sent."""
    assert {record["symbol"] for record in absence.records} == absence.market.symbols
    for record in absence.records:
        sent = absence.market.expected(record["symbol"], record["eventTime"])
        assert record["fundingIntervalHours"] == sent.funding_interval_h
        per_year = sent.funding_rate * 24 / sent.funding_interval_h * 365
        assert record["annualizedFundingRate"] == pytest.approx(per_year, rel=1e-9, abs=1e-12)


def test_funding_intervals_survive_a_restart_while_they_cannot_be_asked_for(absence: Absence) -> None:
    """New records carry the last known intervals, and the log says that they are."""
    assert intervals(absence.after) == expected_intervals(absence.market)
    (line,) = found(absence.log_after, "funding intervals unknown")
    assert "HTTP 500" in facts(line)["cause"]


def test_an_absence_of_more_than_10_s_is_a_gap(absence: Absence) -> None:
    """From the last data of the old daemon to the first of the new one; file, report, metrics and log agree."""
    (gap,) = absence.after["gaps"]
    assert gap["cause"] == "not running"
    updates_s = [record["updatedAt"] for record in absence.before["funding_state"].values()]
    assert min(updates_s) - 0.1 <= gap["start"] <= max(updates_s) + 0.1
    assert 11 <= gap["seconds"] <= absence.ended_s - gap["start"]
    (line,) = found(absence.log_after, " WARNING gap ended ")
    assert (float(facts(line)["seconds"]), facts(line)["cause"]) == (gap["seconds"], "not running")
    expected = {"count": 1, "longestSeconds": gap["seconds"], "totalSeconds": gap["seconds"], "pass": False}
    assert absence.report_after["gaps"] == expected
    assert sample(absence.metrics_after, "gaps_total") == 1
    assert sample(absence.metrics_after, "gap_seconds_total") == gap["seconds"]


def test_an_absence_is_not_time_watched(absence: Absence) -> None:
    """The hours observed hold neither the gap nor more than both daemons' lives."""
    assert 0 < observed_s(absence.after) <= absence.ended_s - absence.began_s - 10
