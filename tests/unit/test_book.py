"""The book: the newest event wins, REST fills what the stream lacks, and what is listed or halted is known."""

import threading
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from binance_funding.daemon.record import REST, STREAM
from tests.support.clock import STEADY_S
from tests.support.desk import Desk
from tests.support.samples import EVENT_MS, rate

CURRENT_S = 8.0
"""Age up to which a row of the stream is current, with default settings."""
DAY_S = 86_400.0
HOUR_S = 3600.0


@pytest.fixture
def desk() -> Desk:
    """An empty book beside a stream that is live; Binance's time is not known."""
    desk = Desk()
    desk.stream_state.keeps_rows = True
    return desk


def put(desk: Desk, source: str, **event_times_ms: int) -> int:
    """Merge a batch that comes now: symbol=event time."""
    rates = [
        rate(symbol, event_time_ms=event_ms, source=source, received_s=desk.now_s)
        for symbol, event_ms in event_times_ms.items()
    ]
    return desk.book.merge(rates)


@pytest.mark.parametrize("source", [STREAM, REST])
def test_an_older_or_equal_event_time_changes_nothing(desk: Desk, source: str) -> None:
    """Whichever connection brings it; its arrival stays that of the event."""
    assert put(desk, source, A=10) == 1
    desk.time.advance(1)
    assert put(desk, source, A=10) == put(desk, source, A=9) == 0
    assert desk.newest() == {"A": (10, source)}
    assert desk.book.rates()[0].received_s == STEADY_S


def test_a_newer_stream_row_always_replaces(desk: Desk) -> None:
    """A row of REST too, at once."""
    put(desk, REST, A=10)
    assert put(desk, STREAM, A=11) == 1
    assert desk.newest() == {"A": (11, STREAM)}


def test_rest_replaces_a_stream_row_that_is_no_longer_current(desk: Desk) -> None:
    """Up to 8 s the stream's row stays although REST's is newer; beyond, REST's counts."""
    put(desk, STREAM, A=10)
    desk.time.advance(CURRENT_S)
    assert put(desk, REST, A=20) == 0
    desk.time.advance(0.001)
    assert put(desk, REST, A=20) == 1
    assert desk.newest() == {"A": (20, REST)}


def test_rest_replaces_a_stream_row_that_was_old_when_it_came(desk: Desk) -> None:
    """By Binance's clock, where that is known: arrival says nothing about freshness."""
    desk.learn_time()
    desk.stream("A", lag_s=CURRENT_S)
    desk.stream("B", lag_s=CURRENT_S + 0.01)
    assert desk.rest("A", "B") == 1
    assert {symbol: source for symbol, (_, source) in desk.newest().items()} == {"A": STREAM, "B": REST}


def test_rest_replaces_a_stream_row_that_is_much_older_than_its_own(desk: Desk) -> None:
    """By more than 8 s, also where Binance's time is not known."""
    put(desk, STREAM, A=EVENT_MS, B=EVENT_MS)
    assert put(desk, REST, A=EVENT_MS + 8000, B=EVENT_MS + 8001) == 1
    assert desk.newest() == {"A": (EVENT_MS, STREAM), "B": (EVENT_MS + 8001, REST)}


def test_rest_replaces_everything_older_while_no_connection_is_live(desk: Desk) -> None:
    """There is no stream that anything could be left to."""
    put(desk, STREAM, A=10)
    desk.stream_state.keeps_rows = False
    assert put(desk, REST, A=11) == 1


def test_rest_adds_what_the_stream_lacks_at_once(desk: Desk) -> None:
    """A symbol unknown so far, and one that REST itself brought."""
    put(desk, STREAM, A=10)
    assert put(desk, REST, A=20, B=20) == 1
    assert put(desk, REST, B=21) == 1
    assert desk.newest() == {"A": (10, STREAM), "B": (21, REST)}


def test_a_silence_shorter_than_eight_seconds_is_current_no_longer_than_that() -> None:
    """`SILENCE_SECONDS` bounds what is current."""
    desk = Desk(silence_seconds=2)
    desk.stream_state.keeps_rows = True
    put(desk, STREAM, A=10)
    desk.time.advance(2.001)
    assert put(desk, REST, A=20) == 1


def test_changed_is_set_by_news_only(desk: Desk) -> None:
    """The publisher is not woken for a repetition, nor for nothing."""
    put(desk, STREAM, A=10)
    assert desk.book.changed.is_set()
    desk.book.changed.clear()
    put(desk, STREAM, A=10)
    assert desk.book.merge([]) == 0
    assert not desk.book.changed.is_set()


class Batch(NamedTuple):
    """One step of the model: time passes, then one source brings rows as old as said."""

    after_s: float
    source: str
    lags_s: dict[str, float]
    stream_is_live: bool


batches = st.builds(
    Batch,
    st.sampled_from([0.0, 0.5, 3.0, 8.0, 8.5, 15.0, 200.0]),
    st.sampled_from([STREAM, REST]),
    st.dictionaries(st.sampled_from("ABC"), st.sampled_from([0.0, 0.5, 3.0, 7.5, 9.0, 40.0, HOUR_S]), max_size=3),
    st.booleans(),
)


@given(st.lists(batches, max_size=30), st.booleans())
def test_any_sequence_of_batches_matches_a_simple_model(steps: list[Batch], time_known: bool) -> None:
    """Contents and news are those of the rules written down plainly, whether Binance's time is known or not."""
    desk, model = Desk(), dict[str, tuple[int, str, float]]()
    if time_known:
        desk.learn_time()
    for step in steps:
        desk.time.advance(step.after_s)
        desk.stream_state.keeps_rows = step.stream_is_live
        now_s, news, rates = desk.now_s, 0, []
        for symbol, lag_s in step.lags_s.items():
            event_ms = desk.event_ms(lag_s)
            rates.append(rate(symbol, event_time_ms=event_ms, source=step.source, received_s=now_s))
            known_ms, known_source, as_of_s = model.get(symbol, (0, REST, 0.0))
            is_current = now_s - as_of_s <= CURRENT_S and event_ms - known_ms <= CURRENT_S * 1000
            is_hidden = step.source == REST and known_source == STREAM and step.stream_is_live and is_current
            if event_ms > known_ms and not is_hidden:
                model[symbol] = event_ms, step.source, now_s - lag_s if time_known else now_s
                news += 1
        assert desk.book.merge(rates) == news
        assert desk.newest() == {symbol: record[:2] for symbol, record in model.items()}


def test_a_symbol_is_dropped_after_a_day(desk: Desk) -> None:
    """Exactly a day is still known; what came later stays."""
    put(desk, STREAM, A=1)
    desk.time.advance(1)
    put(desk, REST, B=1)
    desk.time.advance(DAY_S - 1)
    desk.book.prune_delisted(desk.now_s)
    assert desk.newest().keys() == {"A", "B"}
    desk.time.advance(0.5)
    desk.book.prune_delisted(desk.now_s)
    assert desk.newest() == {"B": (1, REST)}
    assert desk.book.stream_rates() == {}


@pytest.mark.parametrize("source", [STREAM, REST])
def test_a_dropped_symbol_does_not_return_with_the_same_old_row(desk: Desk, source: str) -> None:
    """REST may repeat the last row of a dead symbol for ever."""
    desk.learn_time()
    last_ms = desk.event_ms()
    put(desk, source, A=last_ms)
    for _ in range(30):
        desk.time.advance(HOUR_S)
        put(desk, source, A=last_ms)
        desk.book.prune_delisted(desk.now_s)
    assert desk.newest() == {}
    put(desk, source, A=desk.event_ms())
    assert list(desk.newest()) == ["A"]


def test_what_the_stream_brought_is_known_apart(desk: Desk) -> None:
    """Where REST's rows have taken its place it tells how far behind the stream is, and it never goes back."""
    put(desk, STREAM, A=1)
    desk.time.advance(CURRENT_S + 1)
    put(desk, REST, A=10, B=10)
    put(desk, STREAM, A=5, B=6)
    put(desk, STREAM, A=4)
    assert {symbol: r.event_time_ms for symbol, r in desk.book.stream_rates().items()} == {"A": 5, "B": 6}
    assert desk.newest() == {"A": (10, REST), "B": (10, REST)}


def test_what_lies_ahead_is_dropped(desk: Desk) -> None:
    """From what the stream brought as well; the exact bound has happened."""
    put(desk, STREAM, A=10, B=11, C=50)
    put(desk, REST, D=12)
    assert desk.book.drop_ahead(10) == 3
    assert desk.newest() == {"A": (10, STREAM)}
    assert list(desk.book.stream_rates()) == ["A"]
    put(desk, STREAM, B=9)
    assert desk.newest() == {"A": (10, STREAM), "B": (9, STREAM)}


def test_where_a_rest_row_was_ahead_the_streams_own_row_is_served_again(desk: Desk) -> None:
    """It is known, so the symbol does not disappear until the next tick."""
    put(desk, STREAM, A=10)
    put(desk, REST, A=20_000)
    assert desk.newest() == {"A": (20_000, REST)}
    assert desk.book.drop_ahead(15_000) == 1
    assert desk.newest() == {"A": (10, STREAM)}


def test_taken_over_data_keep_their_times(desk: Desk) -> None:
    """Event times still decide, and what the stream had brought is known as such."""
    desk.book.restore([rate("A", event_time_ms=5, received_s=STEADY_S - 100), rate("B", event_time_ms=5, source=REST)])
    assert list(desk.book.stream_rates()) == ["A"]
    assert put(desk, STREAM, A=5, B=4) == 0
    assert desk.book.rates()[0].received_s == STEADY_S - 100


def test_listed_are_the_symbols_of_the_last_two_snapshots(desk: Desk) -> None:
    """One snapshot that lacks some delists nothing; before the first one nothing is known."""
    symbols = [f"S{n}" for n in range(20)]
    lists = [desk.book.listed]
    for listed in (symbols, symbols[:10], [*symbols[:-1], "NEW"], [*symbols[:-1], "NEW"]):
        desk.snapshot(*listed)
        lists.append(desk.book.listed)
    assert lists == [None, {*symbols}, {*symbols}, {*symbols[:-1], "NEW"}, {*symbols[:-1], "NEW"}]


@pytest.mark.parametrize("time_known", [True, False])
def test_a_symbol_whose_row_is_far_behind_its_snapshot_is_halted(time_known: bool) -> None:
    """By more than 8 s; a symbol that merely lags in the stream is not, since REST has something newer."""
    desk = Desk()
    if time_known:
        desk.learn_time()
    symbols = [f"S{n}" for n in range(20)]
    halted_since_s = desk.now_s
    desk.stream(*symbols, "STILL")
    desk.time.advance(8)
    desk.stream(*symbols[1:])
    desk.snapshot(*symbols, STILL=halted_since_s)
    assert desk.book.halted == set()
    desk.time.advance(0.1)
    desk.snapshot(*symbols, STILL=halted_since_s)
    assert desk.book.halted == {"STILL"}


def test_an_old_snapshot_says_nothing_about_halts(desk: Desk) -> None:
    """A cache repeats it: the symbols that have advanced since are not halted, and those that were stay so."""
    desk.learn_time()
    since_s = desk.now_s
    symbols = {f"S{n}": since_s for n in range(20)}
    desk.time.advance(9)
    desk.snapshot(**symbols, MORE=since_s - 20)
    assert desk.book.halted == set()
    desk.snapshot(*symbols, MORE=since_s - 20)
    desk.time.advance(9)
    desk.snapshot(**dict.fromkeys(symbols, desk.now_s - 9), MORE=desk.now_s)
    assert desk.book.halted == set()  # MORE advanced


@pytest.mark.parametrize("source", [STREAM, REST])
def test_a_symbol_is_halted_until_something_newer_comes(desk: Desk, source: str) -> None:
    """At once, not with the next snapshot: a record that is fresh must not be marked."""
    desk.learn_time()
    symbols, since_s = [f"S{n}" for n in range(20)], desk.now_s - HOUR_S
    desk.snapshot(*symbols, STILL=since_s)
    assert desk.book.halted == {"STILL"}
    put(desk, STREAM, STILL=round(desk.event_ms(HOUR_S)) - 1)
    assert desk.book.halted == {"STILL"}
    put(desk, source, STILL=desk.event_ms())
    assert desk.book.halted == set()


@pytest.mark.parametrize(("still", "halted"), [(5, 5), (6, 0)])
def test_a_twentieth_of_the_market_standing_still_is_an_outage(desk: Desk, still: int, halted: int) -> None:
    """More than 5 % of what is listed: that excuses none of them."""
    desk.learn_time()
    moving = [f"S{n}" for n in range(100 - still)]
    since_s = dict.fromkeys((f"X{n}" for n in range(still)), desk.now_s - HOUR_S)
    desk.snapshot(*moving, **since_s)
    assert len(desk.book.halted) == halted


def test_a_symbol_that_rest_does_not_list_is_not_halted(desk: Desk) -> None:
    """Only what its own REST row says counts."""
    desk.learn_time()
    desk.stream("GONE", lag_s=HOUR_S)
    desk.snapshot(*(f"S{n}" for n in range(40)))
    assert desk.book.halted == set()


def test_threads_merging_at_once_lose_nothing(desk: Desk) -> None:
    """Each batch's news is counted once, and the newest event time of every symbol stays."""
    symbols, rounds, news = [f"S{n}" for n in range(50)], 40, list[int]()

    def bring(offset: int) -> None:
        for event_ms in range(1, rounds):
            news.append(desk.book.merge([rate(symbol, event_time_ms=event_ms + offset) for symbol in symbols]))

    threads = [threading.Thread(target=bring, args=(offset,), name=f"feed-{offset}") for offset in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(desk.newest().values()) == {(rounds + 1, STREAM)}
    assert len(symbols) * (rounds - 1) <= sum(news) <= len(symbols) * (rounds + 1)
