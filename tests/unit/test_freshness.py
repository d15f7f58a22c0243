"""How current the market is: its ages, its gaps, and which symbols count."""

import logging

import pytest

from binance_funding.daemon.record import REST, STREAM
from tests.support.clock import STEADY_S, WALL_S
from tests.support.desk import OFFSET_S, Desk
from tests.support.samples import rate

TICK_S = 3.0
HOUR_S = 3600.0
MARKET = tuple(f"S{n:03}" for n in range(881))
CUT = "stream: it was cut"


@pytest.fixture
def desk() -> Desk:
    """An empty book at a host that knows Binance's time."""
    desk = Desk()
    desk.learn_time()
    return desk


def tick(desk: Desk, *symbols: str, seconds: float, lag_s: float = 0.0) -> None:
    """Let so much time pass in which the stream brings these symbols every 3 s, the last time at the end."""
    for _ in range(round(seconds / TICK_S)):
        desk.time.advance(TICK_S)
        desk.stream(*symbols, lag_s=lag_s)


def age_s(desk: Desk, time_s: float) -> float:
    """Return how long ago a steady time was, to the millisecond in which events are told."""
    return round(desk.now_s - time_s, 3)


def worst_s(desk: Desk) -> float:
    """Return the greatest age noted for the report."""
    worst: float = max(quarter["worst"] for quarter in desk.last_day.to_json(desk.time.wall_s)["history"])
    return worst


def test_ages_count_from_the_start_while_nothing_came(desk: Desk) -> None:
    """A daemon that never hears anything grows stale like one that stopped hearing."""
    desk.time.advance(200)
    now = desk.freshness.observe()
    assert [age_s(desk, time_s) for time_s in (now.oldest_s, now.newest_s, now.served_s, now.stream_s)] == [200] * 4
    assert desk.freshness.stream_age_s() == 200
    assert (now.symbols, now.listed, now.stale, now.behind) == (0, 0, 0, 0)


def test_data_is_as_old_as_its_event_not_as_its_arrival(desk: Desk) -> None:
    """A stream 40 s behind, that has just brought its newest: everything is 40 s old, and nothing is current."""
    desk.stream(*MARKET, lag_s=40)
    now = desk.freshness.observe()
    assert (age_s(desk, now.oldest_s), age_s(desk, now.newest_s), age_s(desk, now.stream_s)) == (40, 40, 40)
    assert (now.behind, now.stale) == (881, 881)
    assert worst_s(desk) == 40


def test_arrival_stands_in_until_the_time_is_known() -> None:
    """Then the very same records turn out to be old."""
    desk = Desk()
    desk.stream(*MARKET, lag_s=40)
    assert age_s(desk, desk.freshness.observe().oldest_s) == 0
    desk.learn_time()
    assert age_s(desk, desk.freshness.observe().oldest_s) == 40


@pytest.mark.parametrize("set_by_s", [-HOUR_S, HOUR_S])
def test_a_wall_clock_that_is_set_changes_no_age(desk: Desk, set_by_s: float) -> None:
    """Nor is it a gap."""
    desk.stream(*MARKET)
    desk.time.set_wall_by(set_by_s)
    tick(desk, *MARKET, seconds=30)
    now = desk.freshness.observe()
    assert (age_s(desk, now.oldest_s), age_s(desk, now.stream_s), desk.gaps()) == (0, 0, [])


def test_a_suspended_host_finds_its_data_old(desk: Desk) -> None:
    """The boot clock ran on: hours without news are a gap."""
    tick(desk, *MARKET, seconds=30)
    desk.time.advance(10 * HOUR_S)
    now = desk.freshness.observe()
    assert (age_s(desk, now.oldest_s), now.stale) == (36_000, 881)
    desk.stream(*MARKET)
    assert desk.gaps() == [(WALL_S + 30, 36_000, CUT)]


@pytest.mark.parametrize(("missing", "is_behind"), [(8, False), (9, True)])
def test_the_market_is_as_current_as_all_but_one_percent(desk: Desk, missing: int, is_behind: bool) -> None:
    """Of 881 symbols 8 may lack current data; the ninth is more than 1 %. Each of them is counted."""
    desk.stream(*MARKET)
    tick(desk, *MARKET[missing:], seconds=60)
    now = desk.freshness.observe()
    assert (desk.freshness.stream_age_s() > 8) is is_behind
    assert (desk.now_s - now.served_s > 10) is is_behind
    assert now.behind == missing
    assert age_s(desk, now.oldest_s) == 60


def test_one_lucky_symbol_does_not_speak_for_the_market(desk: Desk) -> None:
    """One of 881 advances, REST is down: the market is as old as the others, and in a gap."""
    desk.stream(*MARKET)
    tick(desk, MARKET[0], seconds=300)
    now = desk.freshness.observe()
    assert (age_s(desk, now.newest_s), age_s(desk, now.oldest_s)) == (0, 300)
    assert (now.stale, now.behind) == (880, 880)
    assert desk.freshness.stream_age_s() == 300
    assert worst_s(desk) == 300
    desk.time.advance(1)
    desk.stream(*MARKET)
    assert desk.gaps() == [(WALL_S, 301, CUT)]


def test_one_lucky_symbol_from_the_start_is_not_what_the_stream_used_to_bring(desk: Desk) -> None:
    """Where the stream has brought less than half of what is listed, all of it counts: the stream brings no market."""
    desk.snapshot(*MARKET)
    tick(desk, MARKET[0], seconds=30)
    now = desk.freshness.observe()
    assert (now.listed, now.behind) == (881, 880)
    assert desk.freshness.stream_age_s() == 30


def test_what_the_stream_never_brought_is_not_missed(desk: Desk) -> None:
    """A fifth of the market comes by REST alone, every 24 s: no fallback and no gap, but ages that count."""
    desk.snapshot(*MARKET)
    tick(desk, *MARKET[200:], seconds=24)
    now = desk.freshness.observe()
    assert (now.listed, now.behind, now.from_rest, desk.freshness.stream_age_s()) == (881, 0, 200, 0)
    assert age_s(desk, now.oldest_s) == 24
    desk.snapshot(*MARKET)
    assert desk.gaps() == []


def test_half_the_market_that_stops_is_missed_and_made_good_by_rest(desk: Desk) -> None:
    """The stream's age grows, the missing half is counted, and REST keeps a gap away."""
    desk.stream_state.keeps_rows = True
    desk.snapshot(*MARKET)
    tick(desk, *MARKET, seconds=30)
    assert desk.freshness.stream_age_s() <= TICK_S
    for _ in range(7):
        tick(desk, *MARKET[:440], seconds=9)
        desk.rest(*MARKET)
    now = desk.freshness.observe()
    assert (now.behind, now.from_rest, desk.freshness.stream_age_s()) == (441, 441, 63)
    assert (age_s(desk, now.oldest_s), desk.gaps()) == (0, [])


def test_symbols_that_lag_an_hour_come_from_rest(desk: Desk) -> None:
    """While the others are current; their ages are true, and they are counted."""
    desk.stream_state.keeps_rows = True
    desk.stream(*MARKET[20:])
    desk.stream(*MARKET[:20], lag_s=HOUR_S)
    assert age_s(desk, desk.freshness.observe().oldest_s) == HOUR_S
    desk.rest(*MARKET, lag_s=1)
    desk.stream(*MARKET[:20], lag_s=HOUR_S - 1)
    now = desk.freshness.observe()
    assert (now.from_rest, now.behind, age_s(desk, now.oldest_s)) == (20, 20, 1)


def test_rest_does_not_make_the_stream_look_young(desk: Desk) -> None:
    """The stream's age is its own."""
    desk.stream(*MARKET)
    desk.time.advance(100)
    desk.rest(*MARKET)
    desk.time.advance(1)
    assert desk.freshness.stream_age_s() == 101
    assert age_s(desk, desk.freshness.observe().oldest_s) == 1


def test_the_streams_age_is_that_of_now(desk: Desk) -> None:
    """What has come since the last observation counts."""
    desk.stream(*MARKET)
    desk.time.advance(9)
    desk.freshness.observe()
    desk.stream(*MARKET)
    assert desk.freshness.stream_age_s() == 0


def test_a_symbol_that_left_the_market_does_not_count(desk: Desk) -> None:
    """REST's last snapshot does not hold it: its age is nobody's fault."""
    desk.stream(*MARKET)
    desk.time.advance(200)
    desk.stream(*MARKET[20:])
    desk.snapshot(*MARKET[20:])
    now = desk.freshness.observe()
    assert (now.symbols, now.listed, now.stale, age_s(desk, now.oldest_s)) == (881, 861, 0, 0)


def test_a_halted_symbol_does_not_count(desk: Desk) -> None:
    """Its own REST row stands still; it is counted apart, until it moves again."""
    halted = dict.fromkeys(MARKET[:20], desk.now_s - HOUR_S)
    desk.snapshot(*MARKET[20:], **halted)
    desk.stream(*MARKET[20:])
    now = desk.freshness.observe()
    assert (now.listed, now.halted, now.stale, now.behind) == (861, 20, 0, 0)
    assert age_s(desk, now.oldest_s) == 0
    desk.stream(MARKET[0])
    assert desk.freshness.observe().halted == 19


def test_an_outage_of_the_exchange_excuses_nothing(desk: Desk) -> None:
    """More than 5 % of the market standing still at once: all of it counts, and it is a gap."""
    desk.snapshot(*MARKET)
    since_s = dict.fromkeys(MARKET[:50], desk.now_s)
    desk.time.advance(200)
    desk.snapshot(*MARKET[50:], **since_s)
    now = desk.freshness.observe()
    assert (now.listed, now.halted, now.stale, age_s(desk, now.oldest_s)) == (881, 0, 50, 200)
    desk.time.advance(1)
    desk.snapshot(*MARKET)
    assert [seconds for _, seconds, _ in desk.gaps()] == [201]


def test_symbols_that_turn_out_to_be_halted_were_no_gap(desk: Desk) -> None:
    """Three of eighty: more than 1 % lack new data until the next snapshot shows that there is none."""
    market = MARKET[:80]
    desk.snapshot(*market)
    since_s = dict.fromkeys(market[:3], desk.now_s)
    desk.stream(*market)
    for _ in range(17):
        desk.time.advance(1)
        desk.stream(*market[3:])
        desk.freshness.observe()
    assert desk.now_s - desk.freshness.latest.served_s > 10
    desk.snapshot(*market[3:], **since_s)
    now = desk.freshness.observe()
    assert (now.halted, now.served_s, desk.gaps()) == (3, desk.now_s, [])


def test_a_gap_of_others_beside_halted_symbols_is_noted(desk: Desk) -> None:
    """The halted symbols excuse nobody else."""
    market = MARKET[:80]
    desk.snapshot(*market)
    since_s = dict.fromkeys(market[:3], desk.now_s)
    desk.stream(*market)
    for _ in range(17):
        desk.time.advance(1)
        desk.freshness.observe()
    desk.snapshot(*market[3:], **since_s)
    desk.freshness.observe()
    assert [seconds for _, seconds, _ in desk.gaps()] == [17]


@pytest.mark.parametrize("pause_s", [5, 8, 9.5])
def test_the_worst_age_of_a_pause_is_noted_by_whoever_comes_first(desk: Desk, pause_s: float) -> None:
    """The process was paused with its main thread: a connection delivers new data before anybody has looked."""
    tick(desk, *MARKET, seconds=30)
    desk.freshness.observe()
    desk.time.advance(pause_s)
    desk.stream(*MARKET)
    desk.freshness.observe()
    assert worst_s(desk) == pause_s


def test_exactly_ten_seconds_without_news_are_no_gap(desk: Desk) -> None:
    """However often somebody looks meanwhile."""
    desk.stream(*MARKET)
    for _ in range(10):
        desk.time.advance(1)
        desk.freshness.observe()
    desk.stream(*MARKET)
    assert desk.gaps() == []


@pytest.mark.parametrize("observed", [True, False])
@pytest.mark.parametrize("source", [STREAM, REST])
def test_a_gap_lasts_from_the_last_news_to_the_next(desk: Desk, source: str, observed: bool) -> None:
    """Whichever source ends it; what is repeated, or old when it comes, does not; in wall time."""
    desk.stream(*MARKET)
    desk.time.advance(5)
    desk.stream(*MARKET, lag_s=5)
    desk.time.advance(5.5)
    if observed:
        desk.freshness.observe()
        desk.stream(*MARKET, lag_s=16)
    if source == STREAM:
        desk.stream(*MARKET)
    else:
        desk.rest(*MARKET)
    desk.time.advance(1)
    desk.stream(*MARKET)
    assert desk.gaps() == [(WALL_S, 10.5, CUT)]
    assert (desk.freshness.gaps_ended, desk.freshness.gap_seconds) == (1, 10.5)


def test_a_part_of_the_market_does_not_end_a_gap(desk: Desk) -> None:
    """Of two messages of a tick it is the second that does."""
    desk.stream(*MARKET)
    desk.time.advance(20)
    desk.stream(*MARKET[:700])
    desk.time.advance(1)
    desk.freshness.observe()
    assert desk.gaps() == []
    desk.stream(*MARKET[700:])
    assert desk.gaps() == [(WALL_S, 21, CUT)]


def test_snapshots_every_nine_seconds_are_no_gap(desk: Desk) -> None:
    """The stream is gone; REST alone is enough."""
    desk.stream(*MARKET)
    for second in range(1, 120):
        desk.time.advance(1)
        if second % 9 == 0:
            desk.rest(*MARKET, lag_s=2)
        desk.freshness.observe()
    assert desk.gaps() == []
    assert worst_s(desk) <= 11


def test_a_stream_that_lags_more_and_more_is_a_gap_once_it_is_old_when_it_comes(desk: Desk) -> None:
    """Up to `SILENCE_SECONDS` behind it brings news; what comes later is as old as it says, until REST ends the gap."""
    for second in range(0, 60, 3):
        desk.stream(*MARKET, lag_s=second / 2)
        desk.freshness.observe()
        desk.time.advance(3)
    desk.rest(*MARKET)
    assert worst_s(desk) == 57 / 2 + 3
    assert desk.gaps() == [(WALL_S + 30, 30, CUT)]


def test_symbols_that_count_again_make_no_gap_of_the_past(desk: Desk) -> None:
    """Halted for an hour, excused; then more stand still and none is: the outage begins now, not an hour ago."""
    still = dict.fromkeys(MARKET[:40], desk.now_s - HOUR_S)
    desk.snapshot(*MARKET[40:], **still)
    desk.freshness.observe()
    still |= dict.fromkeys(MARKET[40:80], desk.now_s)
    desk.time.advance(16)
    desk.snapshot(*MARKET[80:], **still)
    assert (desk.freshness.observe().halted, worst_s(desk)) == (0, HOUR_S + 16)
    desk.snapshot(*MARKET)
    assert desk.gaps() == [(WALL_S, 16, CUT)]


def test_an_outage_at_the_first_start_is_a_gap(desk: Desk) -> None:
    """The daemon runs, Binance cannot be reached: while it lasts the report counts it, and it must not vanish after."""
    desk.time.advance(HOUR_S)
    desk.stream(*MARKET)
    assert desk.gaps() == [(WALL_S, HOUR_S, CUT)]


def test_an_outage_that_outlives_a_restart_is_one_gap(desk: Desk) -> None:
    """Where even the daemon before had no data, it counts from that one's start."""
    desk.freshness.start_at(STEADY_S - 500, served_s=0, not_running_s=0)
    desk.time.advance(100)
    desk.stream(*MARKET)
    assert desk.gaps() == [(WALL_S - 500, 600, CUT)]


def restored(desk: Desk, age_s: float, not_running_s: float) -> None:
    """Start with data as old as that from an earlier daemon, which ended that long ago."""
    event_ms = round((desk.now_s - age_s + OFFSET_S) * 1000)
    desk.book.restore([rate(s, event_time_ms=event_ms, received_s=desk.now_s - age_s) for s in MARKET])
    desk.freshness.start_at(STEADY_S - HOUR_S, 0, not_running_s)


def test_time_without_daemon_is_a_gap_with_its_own_cause(desk: Desk) -> None:
    """From the last data of the old daemon to the first of the new one; the next gap has another cause."""
    restored(desk, 60, not_running_s=60)
    desk.time.advance(2)
    desk.stream(*MARKET)
    desk.time.advance(20)
    desk.stream(*MARKET)
    assert desk.gaps() == [(WALL_S - 60, 62, "not running"), (WALL_S + 2, 20, CUT)]


def test_a_quick_restart_is_no_gap(desk: Desk) -> None:
    """As long as the data goes on within ten seconds."""
    restored(desk, 6, not_running_s=6)
    desk.time.advance(3)
    desk.stream(*MARKET)
    assert desk.gaps() == []


def test_a_quick_restart_in_an_outage_has_the_outage_as_cause(desk: Desk) -> None:
    """The daemon was away for a moment only; what was wrong is the stream."""
    restored(desk, 300, not_running_s=5)
    desk.stream(*MARKET)
    assert desk.gaps() == [(WALL_S - 300, 300, CUT)]


def test_restored_data_is_as_old_as_it_was(desk: Desk) -> None:
    """Staleness stays true over a restart, and so does what the stream used to bring."""
    restored(desk, 200, not_running_s=200)
    now = desk.freshness.latest
    assert (now.stale, now.behind, age_s(desk, now.oldest_s), age_s(desk, now.stream_s)) == (881, 881, 200, 200)


def test_the_end_of_a_gap_is_logged_with_cause_and_length(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    """One line; gaps that come one soon after the other are one trouble, and are logged less and less."""
    desk.stream(*MARKET)
    for _ in range(50):
        desk.time.advance(20)
        desk.stream(*MARKET)
    assert caplog.messages[0] == f'gap ended cause="{CUT}" seconds=20'
    assert 5 < len(caplog.messages) < 15
    assert desk.freshness.gaps_ended == len(desk.gaps()) == 50


@pytest.mark.parametrize("ahead_s", [600.0, 23 * HOUR_S])
def test_what_came_ahead_of_its_time_is_dropped_once_the_time_is_known(
    ahead_s: float, caplog: pytest.LogCaptureFixture
) -> None:
    """Until then it blocks its symbols; afterwards the next rows count again, and one line says so."""
    caplog.set_level(logging.WARNING)
    desk = Desk()
    desk.stream(*MARKET[:5], lag_s=-ahead_s)
    desk.stream(*MARKET)
    assert desk.freshness.observe().symbols == 881
    desk.learn_time()
    desk.time.advance(1)
    assert desk.freshness.observe().symbols == 876
    assert desk.stream(*MARKET) == 881
    assert caplog.messages == ['records dropped count=5 cause="their event times are ahead of Binance\'s time"']


def test_what_the_file_held_ahead_of_its_time_is_dropped_at_the_start(desk: Desk) -> None:
    """Where the time is known from the daemon before."""
    desk.book.restore([rate("A", event_time_ms=desk.event_ms(-600)), rate("B", event_time_ms=desk.event_ms(-9))])
    desk.freshness.start_at(STEADY_S, served_s=0, not_running_s=0)
    assert desk.newest().keys() == {"B"}


def test_stale_is_older_than_the_setting_says() -> None:
    """Exactly as old is not; what lives on REST and is stale lives on nothing."""
    desk = Desk(stale_seconds=20)
    desk.learn_time()
    desk.rest(*MARKET)
    desk.time.advance(20)
    assert (desk.freshness.observe().stale, desk.freshness.observe().from_rest) == (0, 881)
    desk.time.advance(0.01)
    assert (desk.freshness.observe().stale, desk.freshness.observe().from_rest) == (881, 0)


def test_a_gap_of_downtime_and_outage_names_both_with_their_seconds(desk: Desk) -> None:
    """A restart of 15 s before an hour without network is not an hour without a daemon."""
    restored(desk, 18, not_running_s=15)
    desk.time.advance(HOUR_S)
    desk.stream(*MARKET)
    assert desk.gaps() == [(WALL_S - 18, HOUR_S + 18, f"not running for 15 s; for 3603 s {CUT}")]
