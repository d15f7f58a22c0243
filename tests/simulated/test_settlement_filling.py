"""The settlement history is filled from a simulated exchange's ledger, in simulated time."""

import json
import math
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from binance_funding.settlements import DAY_MS, E8, HOUR_MS, MINUTE_MS, read
from tests.exchange.market import Market
from tests.support.settlement_world import SMALL, SettlementWorld, failure, fast_folder, in_order

DAY_S, HOUR_S = 86_400.0, 3600.0
SUM_DAYS = (1, 7, 30)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder for the history."""
    with fast_folder() as path:
        yield path


def most_in_a_minute(world: SettlementWorld) -> int:
    """Return the greatest number of requests within any 60 s."""
    times_s = [asked.at_s for asked in world.client.asked]
    return max(sum(0 <= at_s - from_s < 60 for at_s in times_s) for from_s in times_s)


def assert_equals_ledger(world: SettlementWorld) -> None:
    """The history holds every settlement of the time that is kept, and nothing else."""
    kept_ms = world.oldest_kept_ms()
    assert in_order(world.stored(kept_ms)) == in_order(world.settled(kept_ms))


def to_next_settlement_s(world: SettlementWorld, hours: int = 8) -> float:
    """Return the seconds to the next full hour that is a multiple of these hours."""
    return (hours * HOUR_MS - world.now_ms() % (hours * HOUR_MS)) / 1000


def check_sums(world: SettlementWorld, seen: Counter[str]) -> None:
    """No sum that is shown is wrong; count the known and the unknown ones of 24 h."""
    hour_ms = world.now_ms() // HOUR_MS * HOUR_MS
    of_symbol: dict[str, list[tuple[int, int]]] = {}
    for row in world.settled(hour_ms - 30 * DAY_MS):
        rate_e8 = round(float(row["fundingRate"]) * E8)
        of_symbol.setdefault(row["symbol"], []).append((row["fundingTime"], rate_e8))
    for symbol, summary in world.filler.summaries.items():
        shown = (summary.sum_24h_e8, summary.sum_7d_e8, summary.sum_30d_e8)
        for days, sum_e8 in zip(SUM_DAYS, shown, strict=True):
            since_ms = hour_ms - days * DAY_MS + HOUR_MS
            if sum_e8 is None:
                seen[f"unknown {days}"] += 1
                continue
            seen[f"known {days}"] += 1
            right = sum(rate_e8 for at_ms, rate_e8 in of_symbol[symbol] if at_ms >= since_ms)
            assert sum_e8 == right, (symbol, days, world.now_ms())


def test_an_empty_history_is_filled_newest_first(folder: Path) -> None:
    """Each 8 h of the past are asked for once, with at most 20 requests a minute, and the result is the ledger."""
    world = SettlementWorld(folder, days=30)
    world.advance(700)
    assert_equals_ledger(world)
    past = [int(one.query["startTime"]) for one in world.client.asked if one.span_ms == 8 * HOUR_MS]
    assert past == sorted(set(past), reverse=True)
    assert len(past) >= 3 * 30 - 1
    assert len(world.client.asked) <= len(past) + 5
    assert 18 <= most_in_a_minute(world) <= 20


def test_a_settlement_is_asked_for_after_30_seconds_until_every_due_symbol_is_there(folder: Path) -> None:
    """At growing intervals. Until then, the sums of the symbols that are awaited are unknown, and no others."""
    world = SettlementWorld(folder)
    world.ledger.published_after_s = 45.0
    world.ledger.published_late_s["ETHUSDT"] = 120.0
    world.advance(to_next_settlement_s(world) - 30)
    world.advance(30 + 35)
    asked = len(world.client.asked)
    awaited = {one for one, summary in world.filler.summaries.items() if summary.sum_24h_e8 is None}
    assert awaited == world.market.symbols
    world.advance(65)
    awaited = {one for one, summary in world.filler.summaries.items() if summary.sum_24h_e8 is None}
    assert awaited == {"ETHUSDT"}
    world.advance(400)
    minutes = [one for one in world.client.asked[asked - 1 :] if one.span_ms == MINUTE_MS]
    assert 3 <= len(minutes) <= 5
    apart_s = [later.at_s - earlier.at_s for earlier, later in pairwise(minutes)]
    assert apart_s == sorted(apart_s)
    assert all(summary.sum_24h_e8 is not None for summary in world.filler.summaries.values())
    assert_equals_ledger(world)


def test_symbols_with_other_intervals_keep_their_sums_at_a_settlement(folder: Path) -> None:
    """An hourly settlement makes only the sums of the symbols that are due unknown."""
    world = SettlementWorld(folder, market=Market(usd_m=60, tradfi=4, coin_m=0, fundless=0))
    world.advance(to_next_settlement_s(world))
    world.advance(HOUR_S - 5)
    world.advance(15)
    unknown = {one for one, summary in world.filler.summaries.items() if summary.sum_24h_e8 is None}
    hourly = {one for one in world.market.symbols if world.market.funding_interval_h(one) == 1}
    assert hourly
    assert unknown == hourly


def test_no_sum_is_ever_wrong(folder: Path) -> None:
    """Over three days with late publication, dividends, interval changes, outages, a pause and restarts."""
    world = SettlementWorld(folder, days=31)
    seen: Counter[str] = Counter()
    symbols = sorted(world.market.symbols)
    start_ms = world.now_ms() // (8 * HOUR_MS) * 8 * HOUR_MS
    world.ledger.published_after_s = 40.0
    world.ledger.published_late_s[symbols[3]] = 200.0
    for place, symbol in enumerate(symbols[:6]):
        world.ledger.dividends[symbol, start_ms + 8 * (place % 3 + 1) * HOUR_MS] = 8 + 300 * place
        world.ledger.change_interval(symbol, start_ms + (5 + 7 * place) * HOUR_MS + 200_000, 1)
        world.ledger.change_interval(symbol, start_ms + (26 + 7 * place) * HOUR_MS + 900_000, 4)
    world.advance(31 * 3 * 3.1, leap=True)
    world.on_step = lambda: check_sums(world, seen)
    dice = random.Random(7)
    for _ in range(16):
        world.advance(dice.uniform(0, 2 * HOUR_S), leap=True)
        what = dice.randrange(4)
        world.may_ask, world.is_current = what != 0, what != 1
        if what == 2:
            world.restart()
        elif what == 3:
            world.time.advance(dice.uniform(10, 2 * HOUR_S))
        world.advance(dice.uniform(0, HOUR_S), leap=True)
        world.may_ask = world.is_current = True
    assert min(seen[f"{what} {days}"] for what in ("known", "unknown") for days in SUM_DAYS) > 100
    world.advance(2 * HOUR_S, leap=True)
    assert_equals_ledger(world)


def test_days_of_outage_are_filled_afterwards(folder: Path) -> None:
    """Nothing is asked in a hurry meanwhile: a failed request is repeated after 30 s."""
    world = SettlementWorld(folder, days=5)
    world.advance(900)
    asked = len(world.client.asked)
    world.client.fails = lambda: failure("connection")
    world.is_current = False
    world.advance(3 * DAY_S, leap=True)
    assert len(world.client.asked) - asked <= 3 * 86_400 / 30
    assert world.filler.fault is not None
    world.client.fails = lambda: None
    world.is_current = True
    world.advance(2 * HOUR_S)
    assert world.filler.fault is None
    assert_equals_ledger(world)
    assert most_in_a_minute(world) <= 20


def test_nothing_is_asked_during_fallback_or_a_pause(folder: Path) -> None:
    """The settlements of that time are filled afterwards. A refusal is handed on, so that snapshots wait as well."""
    world = SettlementWorld(folder)
    world.advance(30)
    world.may_ask = False
    asked = len(world.client.asked)
    world.advance(9 * HOUR_S, leap=True)
    assert len(world.client.asked) == asked
    world.may_ask = True
    world.client.fails = lambda: failure("418", 3000.0)
    world.advance(4)
    world.may_ask = False
    assert len(world.errors) == 1
    asked = len(world.client.asked)
    world.advance(3000)
    assert len(world.client.asked) == asked
    world.client.fails = lambda: None
    world.may_ask = True
    world.advance(1200)
    assert_equals_ledger(world)


def test_a_window_with_more_than_1000_rows_is_filled_page_by_page(folder: Path) -> None:
    """Every page but the last is full."""
    world = SettlementWorld(folder, days=1, market=Market(usd_m=1000, tradfi=200, coin_m=0, fundless=0))
    world.advance(to_next_settlement_s(world) + 75)
    hour_ms = world.now_ms() // (8 * HOUR_MS) * 8 * HOUR_MS
    assert len(world.settled(hour_ms)) >= 1200
    assert world.stored(hour_ms) == in_order(world.settled(hour_ms))
    assert most_in_a_minute(world) <= 20


def test_if_one_millisecond_fills_a_page_its_time_stays_unknown(folder: Path) -> None:
    """Nobody can ask for the rest of it without naming each symbol. Older times are filled all the same."""
    world = SettlementWorld(folder, days=2, market=Market(usd_m=1000, tradfi=20, coin_m=0, fundless=0))
    due_ms = world.now_ms() // (8 * HOUR_MS) * 8 * HOUR_MS
    world.ledger.late_of_ms = {due_ms: 0}
    world.advance(700)
    assert not read(world.path, "BTCUSDT", due_ms, due_ms + HOUR_MS).is_complete
    assert read(world.path, "BTCUSDT", due_ms - DAY_MS, due_ms - 1).is_complete


def test_a_dividend_8_ms_after_the_settlement_is_kept_beside_it(folder: Path) -> None:
    """Both rows are there, with their times as sent; the estimate belongs to the ordinary one."""
    world = SettlementWorld(folder)
    world.advance(300)
    due_ms = world.now_ms() + round(to_next_settlement_s(world) * 1000)
    world.ledger.dividends["TSLAUSDT", due_ms] = 8
    world.advance(to_next_settlement_s(world) + 60)
    regular, special = read(world.path, "TSLAUSDT", due_ms, world.now_ms()).rows
    assert special.funding_time_ms - regular.funding_time_ms == 8
    assert (regular.rate_type, special.rate_type) == ("Regular", "Special")
    assert regular.last_estimate_e8 is not None
    assert special.last_estimate_e8 is None


def test_the_last_estimate_is_the_last_one_that_the_stream_showed(folder: Path) -> None:
    """Of every symbol, at every settlement that was watched, over restarts."""
    world = SettlementWorld(folder)
    world.advance(to_next_settlement_s(world) + 60)
    first_ms = world.now_ms()
    world.advance(20 * HOUR_S, leap=True)
    world.advance(to_next_settlement_s(world) + 25)
    world.restart()
    world.advance(120)
    rows = [row for one in world.market.symbols for row in read(world.path, one, first_ms, world.now_ms()).rows]
    assert len({row.funding_time_ms // HOUR_MS for row in rows}) > 5
    for row in rows:
        if row.rate_type == "Regular":
            due_ms = row.funding_time_ms // MINUTE_MS * MINUTE_MS
            assert row.last_estimate_e8 == round(world.last_shown[row.symbol, due_ms] * E8)


def test_an_interval_is_the_time_since_the_settlement_before(folder: Path) -> None:
    """Whatever the interval was changed to, and when."""
    world = SettlementWorld(folder)
    start_ms = world.now_ms() // (8 * HOUR_MS) * 8 * HOUR_MS + 8 * HOUR_MS
    world.ledger.change_interval("BTCUSDT", start_ms + 3 * HOUR_MS + 1, 1)
    world.ledger.change_interval("BTCUSDT", start_ms + 6 * HOUR_MS + 900_000, 4)
    world.advance((start_ms - world.now_ms()) / 1000 + 17 * HOUR_S + 10, leap=True)
    window = read(world.path, "BTCUSDT", start_ms, world.now_ms())
    assert [row.interval_hours for row in window.rows] == [8, 4, 1, 1, 2, 4, 4]
    assert window.is_complete


def test_a_settlement_that_did_not_take_place_is_awaited_for_ten_minutes(folder: Path) -> None:
    """Binance was then asked for the whole hour and does not have it: nothing is missing."""
    world = SettlementWorld(folder)
    world.advance(400)
    due_ms = world.now_ms() + round(to_next_settlement_s(world) * 1000)
    world.ledger.cancelled.add(("ETHUSDT", due_ms))
    world.advance(to_next_settlement_s(world) + 590)
    assert world.filler.summaries["ETHUSDT"].sum_24h_e8 is None
    world.advance(30)
    assert world.filler.summaries["ETHUSDT"].sum_24h_e8 is not None
    assert read(world.path, "ETHUSDT", due_ms - DAY_MS, world.now_ms()).is_complete


def test_old_settlements_are_forgotten(folder: Path) -> None:
    """Hour by hour, and with a shorter time to keep at once."""
    world = SettlementWorld(folder, days=2)
    world.advance(4 * DAY_S, leap=True)
    assert min(row["fundingTime"] for row in world.stored()) >= world.oldest_kept_ms() - HOUR_MS
    assert_equals_ledger(world)
    world.days = 1
    world.restart()
    world.advance(2 * HOUR_S, leap=True)
    assert min(row["fundingTime"] for row in world.stored()) >= world.oldest_kept_ms() - HOUR_MS
    assert_equals_ledger(world)


def test_a_month_equals_the_ledger_row_by_row(folder: Path) -> None:
    """With restarts at any time, outages, fallback and late publication. Nothing is asked for without end."""
    world = SettlementWorld(folder, days=32)
    dice = random.Random(31)
    world.ledger.published_after_s = 20.0
    while world.now_ms() < 1_795_500_000_000 + 31 * DAY_MS:
        world.advance(dice.uniform(0, 9 * HOUR_S), leap=True)
        what = dice.randrange(5)
        world.may_ask, world.is_current = what != 0, what != 1
        if what == 1:
            world.client.fails = lambda: failure("connection")
        elif what == 2:
            world.restart()
        world.advance(dice.uniform(0, 5 * HOUR_S), leap=True)
        world.may_ask = world.is_current = True
        world.client.fails = lambda: None
    world.advance(3 * HOUR_S, leap=True)
    assert len(world.settled(world.oldest_kept_ms())) > 2500
    assert_equals_ledger(world)
    answered = Counter(one.query["startTime"] for one in world.client.asked)
    assert max(answered.values()) <= 20


def test_a_restart_asks_only_for_the_batch_under_way_again(folder: Path) -> None:
    """With a restart after every request, each window is asked for once or, if it was under way, twice."""
    world = SettlementWorld(folder, days=10)
    for _ in range(3 * 10 * 2):
        world.advance(3.3)
        world.restart()
    assert most_in_a_minute(world) <= 20
    asked = Counter(one.query["startTime"] for one in world.client.asked)
    assert max(asked.values()) <= 3
    assert len(world.client.asked) <= 3 * 10 + 6
    world.advance(700)
    assert_equals_ledger(world)


def test_hours_that_a_paused_host_slept_through_are_unknown_until_binance_was_asked(folder: Path) -> None:
    """An interval may have changed meanwhile, so nobody knows who was due."""
    world = SettlementWorld(folder, days=1)
    world.advance(to_next_settlement_s(world) + 700)
    world.ledger.change_interval("BTCUSDT", world.now_ms() + 60_000, 1)
    world.may_ask = False
    world.time.advance(3 * HOUR_S)
    world.advance(300)
    assert all(summary.sum_24h_e8 is None for summary in world.filler.summaries.values())
    world.may_ask = True
    world.advance(600)
    assert all(summary.sum_24h_e8 is not None for summary in world.filler.summaries.values())
    assert_equals_ledger(world)


@pytest.mark.parametrize(
    "replace",
    [
        lambda body: b"<html>back soon</html>",
        lambda body: b"[]",
        lambda body: b'{"code":-1003,"msg":"Too many requests"}',
        lambda body: b'{"status":"ERROR","type":"VALID","code":"000002","errorData":{}}',
        lambda body: b'[{"symbol":"A","fundingTime":1700000000000,"fundingRate":"0.1","markPrice":"1"}]',
        lambda body: json.dumps([{**row, "fundingRate": "NaN"} for row in json.loads(body)]).encode(),
        lambda body: b"\xff\xfe[",
    ],
    ids=["HTML", "empty", "error", "other error", "another time", "bad rows", "not UTF-8"],
)
def test_a_useless_answer_makes_no_hour_known(folder: Path, replace: object) -> None:
    """It is asked for again later, and then the history is complete."""
    world = SettlementWorld(folder, days=1)
    world.client.replace = replace  # type: ignore[assignment]
    world.advance(700)
    settled = {row["fundingTime"] // HOUR_MS * HOUR_MS for row in world.settled(world.oldest_kept_ms())}
    assert not any(read(world.path, "BTCUSDT", at_ms, at_ms + 1000).is_complete for at_ms in settled)
    world.client.replace = lambda body: body
    world.advance(2 * HOUR_S, leap=True)
    assert_equals_ledger(world)


def test_malformed_rows_are_counted_and_the_others_kept(folder: Path) -> None:
    """Their hour is not known, and asked for again an hour later."""
    world = SettlementWorld(folder, days=1)
    world.client.replace = lambda body: body.replace(b'"BTCUSDT"', b'""')
    world.advance(200)
    assert world.filler.rejected_rows > 0
    stored = {row["symbol"] for row in world.stored(world.oldest_kept_ms())}
    assert stored == world.market.symbols - {"BTCUSDT"}
    world.client.replace = lambda body: body
    world.advance(1.2 * HOUR_S, leap=True)
    assert_equals_ledger(world)


def test_without_binances_time_nothing_is_asked_and_no_sum_is_shown(folder: Path) -> None:
    """Nobody knows then which settlements are due."""
    world = SettlementWorld(folder, days=1)
    world.advance(300)
    assert world.filler.summaries
    asked = len(world.client.asked)
    world.filler._now_ms = lambda: None
    world.advance(10)
    assert not world.filler.summaries
    assert len(world.client.asked) == asked


def test_a_history_that_cannot_be_written_is_a_fault_until_it_can(folder: Path) -> None:
    """Nothing else happens. Afterwards everything is filled."""
    world = SettlementWorld(folder / "within", days=1)
    world.advance(100)
    assert world.filler.fault is not None
    (folder / "within").mkdir()
    world.advance(700)
    assert world.filler.summaries
    shutil.rmtree(folder / "within")
    world.advance(100)
    assert world.filler.fault is not None
    assert not world.filler.summaries
    (folder / "within").mkdir()
    world.advance(700)
    assert world.filler.fault is None
    assert_equals_ledger(world)


def test_it_runs_in_a_small_market_and_in_none(folder: Path) -> None:
    """A book without symbols expects nothing."""
    world = SettlementWorld(folder, days=1, market=Market(**{**SMALL, "usd_m": 1, "tradfi": 0}))
    world.next_funding_times = dict
    world.advance(2 * HOUR_S, leap=True)
    assert world.filler.fault is None
    assert math.isfinite(world.filler.step())
