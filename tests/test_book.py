"""The book: the newest rate wins, ages and gaps are those of the data."""

from __future__ import annotations

import threading
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from binance_funding import book as book_module
from binance_funding.book import Book
from binance_funding.history import History
from binance_funding.rates import REST, STREAM, FundingRate
from tests.fakes import EVENT_MS, STEADY_S, WALL_S, FakeClock, rate

SILENCE_S, STALE_S = 15.0, 180.0
DAY_S = 86_400.0


class Desk:
    """A book with its clock and history at hand."""

    def __init__(self) -> None:
        self.time = FakeClock()
        self.history = History()
        self.trouble = "stream: it was cut"
        self.book = Book(
            self.time.clock, self.history, silence_s=SILENCE_S, stale_s=STALE_S, trouble=lambda: self.trouble
        )

    def merge(self, source: str, **event_times_ms: int) -> int:
        """Merge a batch received now: symbol=event time."""
        received_s = self.time.steady_s
        return self.book.merge(
            [
                rate(symbol, event_time_ms=event_ms, source=source, received_s=received_s)
                for symbol, event_ms in event_times_ms.items()
            ]
        )

    def newest(self) -> dict[str, tuple[int, str]]:
        """Return event time and source by symbol."""
        return {rate.symbol: (rate.event_time_ms, rate.source) for rate in self.book.rates()}

    def gaps(self) -> list[tuple[float, float, str]]:
        """Return start, seconds and cause of the gaps noted."""
        return [(gap["start"], gap["seconds"], gap["cause"]) for gap in self.history.to_json(self.time.wall_s)[0]]


@pytest.fixture
def desk() -> Desk:
    """An empty book."""
    return Desk()


@pytest.mark.parametrize("source", [STREAM, REST])
def test_an_older_or_equal_event_time_changes_nothing(desk: Desk, source: str) -> None:
    """Whichever connection brings it; the time of update stays that of the data."""
    assert desk.merge(source, A=10) == 1
    desk.time.advance(1)
    assert desk.merge(source, A=10) == desk.merge(source, A=9) == 0
    assert desk.newest() == {"A": (10, source)}
    assert desk.book.rates()[0].received_s == STEADY_S
    assert desk.book.age_s() == 1


def test_a_newer_stream_row_always_replaces(desk: Desk) -> None:
    """A row of REST too, at once."""
    desk.merge(REST, A=10)
    assert desk.merge(STREAM, A=11) == 1
    assert desk.newest() == {"A": (11, STREAM)}


def test_rest_replaces_a_stream_row_only_after_the_silence(desk: Desk) -> None:
    """Up to SILENCE_SECONDS the stream's row stays although REST's is newer; beyond, REST's counts."""
    desk.merge(STREAM, A=10)
    desk.time.advance(SILENCE_S)
    assert desk.merge(REST, A=20) == 0
    assert desk.newest() == {"A": (10, STREAM)}
    desk.time.advance(0.001)
    assert desk.merge(REST, A=20) == 1
    assert desk.newest() == {"A": (20, REST)}


def test_rest_adds_what_the_stream_lacks_at_once(desk: Desk) -> None:
    """A symbol unknown so far, and one that REST itself brought, need no silence."""
    desk.merge(STREAM, A=10)
    assert desk.merge(REST, A=20, B=20) == 1
    assert desk.merge(REST, B=21) == 1
    assert desk.newest() == {"A": (10, STREAM), "B": (21, REST)}


def test_an_empty_batch_is_no_news(desk: Desk) -> None:
    """It sets nothing and ages nothing back."""
    desk.time.advance(3)
    assert desk.book.merge([]) == 0
    assert not desk.book.changed.is_set()
    assert desk.book.age_s() == 3


def test_changed_is_set_by_news_only(desk: Desk) -> None:
    """The publisher is not woken for a repetition."""
    desk.merge(STREAM, A=10)
    assert desk.book.changed.is_set()
    desk.book.changed.clear()
    desk.merge(STREAM, A=10)
    assert not desk.book.changed.is_set()


def test_ages_count_from_the_start_while_nothing_came(desk: Desk) -> None:
    """A daemon that never hears anything becomes stale like one that stopped hearing."""
    desk.time.advance(200)
    assert desk.book.age_s() == desk.book.stream_age_s() == 200


def test_rest_does_not_make_the_stream_look_young(desk: Desk) -> None:
    """The stream's age is its own; the book's age is of whatever came last."""
    desk.merge(STREAM, A=10)
    desk.time.advance(100)
    desk.merge(REST, A=20)
    desk.time.advance(1)
    assert desk.book.stream_age_s() == 101
    assert desk.book.age_s() == 1


def test_a_set_wall_clock_changes_no_age(desk: Desk) -> None:
    """Ages and the rule of silence live on the steady clock."""
    desk.merge(STREAM, A=10)
    desk.time.set_wall_by(3600)
    desk.time.advance(1)
    assert desk.book.age_s() == desk.book.stream_age_s() == 1
    assert desk.merge(REST, A=20) == 0
    desk.time.set_wall_by(-7200)
    assert desk.merge(STREAM, A=11) == 1
    assert desk.gaps() == []


class Batch(NamedTuple):
    """One step of the model: time passes, then one source brings these event times."""

    after_s: float
    source: str
    event_times: dict[str, int]


batches = st.builds(
    Batch,
    st.sampled_from([0.0, 0.5, 3.0, 9.0, 10.0, 10.5, 15.0, 16.0, 200.0]),
    st.sampled_from([STREAM, REST]),
    st.dictionaries(st.sampled_from("ABC"), st.integers(1, 12), max_size=3),
)


@given(st.lists(batches, max_size=30))
def test_any_sequence_of_batches_matches_a_simple_model(steps: list[Batch]) -> None:
    """Contents, news, times of update, ages and gaps are those of the rules written down plainly."""
    desk = Desk()
    desk.merge(STREAM, A=1)
    model = {"A": (1, STREAM, STEADY_S)}
    advanced_s, stream_advanced_s, gaps = STEADY_S, STEADY_S, []
    for step in steps:
        desk.time.advance(step.after_s)
        now_s, news = desk.time.steady_s, 0
        for symbol, event_ms in step.event_times.items():
            known_ms, source, updated_s = model.get(symbol, (0, REST, 0.0))
            hidden = step.source == REST and source == STREAM and now_s - updated_s <= SILENCE_S
            if event_ms > known_ms and not hidden:
                model[symbol] = (event_ms, step.source, now_s)
                news += 1
        if news:
            if now_s - advanced_s > 10:
                gaps.append((WALL_S + advanced_s - STEADY_S, now_s - advanced_s, desk.trouble))
            advanced_s = now_s
            stream_advanced_s = now_s if step.source == STREAM else stream_advanced_s
        assert desk.merge(step.source, **step.event_times) == news
        assert {r.symbol: (r.event_time_ms, r.source, r.received_s) for r in desk.book.rates()} == model
        assert desk.book.age_s() == now_s - advanced_s
        assert desk.book.stream_age_s() == now_s - stream_advanced_s
        assert desk.gaps() == gaps
        fresh = [source for _, source, updated_s in model.values() if now_s - updated_s <= STALE_S]
        assert desk.book.counts() == (len(model), fresh.count(REST), len(model) - len(fresh))


def test_a_gap_is_more_than_ten_seconds_without_news(desk: Desk) -> None:
    """Exactly ten are none; what is repeated meanwhile does not end one; its start is in wall time."""
    desk.merge(STREAM, A=1)
    desk.time.advance(10)
    desk.merge(STREAM, A=2)
    assert desk.gaps() == []
    desk.time.advance(6)
    desk.merge(STREAM, A=2)
    desk.time.advance(4.5)
    desk.merge(REST, B=1)
    assert desk.gaps() == [(WALL_S + 10, 10.5, "stream: it was cut")]
    assert (desk.book.gaps_ended, desk.book.gap_seconds) == (1, 10.5)


def test_an_outage_at_the_first_start_is_a_gap(desk: Desk) -> None:
    """The daemon runs, Binance cannot be reached: while it lasts the report counts it, and it must not vanish after."""
    desk.time.advance(3600)
    desk.merge(STREAM, A=1)
    assert desk.gaps() == [(WALL_S, 3600, "stream: it was cut")]


def test_time_without_daemon_is_a_gap_with_its_own_cause(desk: Desk) -> None:
    """From the last data of the old daemon to the first of the new one."""
    desk.book.take_over([rate("A", event_time_ms=5, received_s=STEADY_S - 60)], down_s=58)
    desk.time.advance(2)
    desk.merge(STREAM, A=6)
    desk.time.advance(20)
    desk.merge(STREAM, A=7)
    assert desk.gaps() == [(WALL_S - 60, 62, "not running"), (WALL_S + 2, 20, "stream: it was cut")]


def test_a_quick_restart_is_no_gap(desk: Desk) -> None:
    """As long as the data went on within ten seconds."""
    desk.book.take_over([rate("A", event_time_ms=5, received_s=STEADY_S - 6)], down_s=5)
    desk.time.advance(3)
    desk.merge(STREAM, A=6)
    assert desk.gaps() == []


def test_a_quick_restart_in_an_outage_is_told_by_the_outage(desk: Desk) -> None:
    """The daemon was away for a moment only; what was wrong is the stream."""
    desk.book.take_over([rate("A", event_time_ms=5, received_s=STEADY_S - 300)], down_s=2)
    desk.merge(STREAM, A=6)
    assert desk.gaps() == [(WALL_S - 300, 300, "stream: it was cut")]


def test_taken_over_data_keep_their_age(desk: Desk) -> None:
    """The book is as old as the data; event times still decide."""
    desk.book.take_over([rate("A", event_time_ms=5, received_s=STEADY_S - 100)], down_s=90)
    assert desk.book.age_s() == 100
    assert desk.merge(STREAM, A=5) == 0
    assert desk.book.age_s() == 100
    assert desk.book.counts() == (1, 0, 0)


def test_a_symbol_is_forgotten_after_a_day(desk: Desk) -> None:
    """Exactly a day is still known; what came later stays."""
    desk.merge(STREAM, A=1)
    desk.time.advance(1)
    desk.merge(REST, B=1)
    desk.time.advance(DAY_S - 1)
    desk.book.forget_departed()
    assert desk.newest().keys() == {"A", "B"}
    desk.time.advance(0.5)
    desk.book.forget_departed()
    assert desk.newest() == {"B": (1, REST)}


@pytest.mark.parametrize("source", [STREAM, REST])
def test_a_forgotten_symbol_does_not_return_with_the_same_old_row(desk: Desk, source: str) -> None:
    """A row repeated for a day with a frozen event time must not look fresh again after that day."""
    desk.merge(source, A=1)
    for _ in range(30):
        desk.time.advance(3600)
        desk.merge(source, A=1)
        desk.book.forget_departed()
    assert desk.newest().get("A", (1, source)) == (1, source)
    assert [known for known in desk.book.rates() if known.received_s != STEADY_S] == []


def test_what_the_stream_brought_is_known_apart(desk: Desk) -> None:
    """For the comparison: REST's rows do not hide it, and it counts for STALE_SECONDS."""
    desk.merge(STREAM, A=1)
    desk.time.advance(SILENCE_S + 1)
    desk.merge(REST, A=2, B=2)
    assert {symbol: r.event_time_ms for symbol, r in desk.book.stream_rates().items()} == {"A": 1}
    desk.time.advance(STALE_S - SILENCE_S - 1)
    assert list(desk.book.stream_rates()) == ["A"]
    desk.time.advance(0.001)
    assert desk.book.stream_rates() == {}


def test_data_ages_are_noted_for_the_report(desk: Desk) -> None:
    """How old the newest data had become when newer came."""
    desk.merge(STREAM, A=1)
    desk.time.advance(4.25)
    desk.merge(STREAM, A=2)
    desk.time.advance(3)
    desk.merge(STREAM, A=3)
    assert [bucket["worst"] for bucket in desk.history.to_json(desk.time.wall_s)[1]] == [4.25]


def test_one_row_from_the_future_does_not_speak_for_the_others(desk: Desk) -> None:
    """The clock is judged by the usual event time of a message."""
    desk.merge(STREAM, A=EVENT_MS, B=EVENT_MS, C=EVENT_MS + 80_000_000)
    assert desk.book.clock_offset_s() == pytest.approx(0)


def test_stale_stream_rows_never_keep_rest_out(desk: Desk) -> None:
    """However long silence is allowed to last, REST may replace what is stale."""
    book = Book(desk.time.clock, History(), silence_s=10_000, stale_s=180, trouble=str)
    book.merge([rate("A", event_time_ms=EVENT_MS, received_s=STEADY_S, source=STREAM)])
    assert book.merge([rate("A", event_time_ms=EVENT_MS + 1, received_s=STEADY_S + 100, source=REST)]) == 0
    assert book.merge([rate("A", event_time_ms=EVENT_MS + 1, received_s=STEADY_S + 181, source=REST)]) == 1


def test_a_flood_of_symbols_does_not_fill_the_memory(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond what any market has, new symbols are left out, known ones go on, and one line says so."""
    monkeypatch.setattr(book_module, "_MOST_SYMBOLS", 3)
    desk.merge(STREAM, A=1, B=1, C=1, D=1, E=1)
    desk.merge(STREAM, A=2, E=2)
    assert {rate.symbol: rate.event_time_ms for rate in desk.book.rates()} == {"A": 2, "B": 1, "C": 1}


def test_the_clock_offset_is_that_of_the_newest_event(desk: Desk) -> None:
    """Binance minus this host, positive where this host is behind; unknown before the first message."""
    assert desk.book.clock_offset_s() is None
    desk.merge(STREAM, A=EVENT_MS + 2500, B=EVENT_MS - 60_000)
    assert desk.book.clock_offset_s() == pytest.approx(2.5)


def test_the_clock_offset_is_smoothed(desk: Desk) -> None:
    """Noise of less than a second counts for a tenth."""
    desk.merge(STREAM, A=EVENT_MS)
    desk.time.advance(1)
    desk.merge(STREAM, A=EVENT_MS + 1500)
    assert desk.book.clock_offset_s() == pytest.approx(0.05)


def test_a_clock_that_was_set_is_noticed_soon(desk: Desk) -> None:
    """Three jumps in a row are no noise; one that has none beside it is a message that was old when it came."""
    desk.merge(STREAM, A=EVENT_MS)
    for second in range(1, 9, 2):
        desk.time.advance(1)
        desk.merge(STREAM, A=EVENT_MS + 1000 * second)
        desk.time.advance(1)
        desk.merge(STREAM, B=EVENT_MS + 1000 * (second + 1) - 7000)
    desk.time.advance(1)
    desk.merge(STREAM, A=EVENT_MS + 9000)
    assert desk.book.clock_offset_s() == pytest.approx(0)
    desk.time.set_wall_by(-10)
    for second in range(10, 13):
        assert desk.book.clock_offset_s() == pytest.approx(0)
        desk.time.advance(1)
        desk.merge(STREAM, A=EVENT_MS + 1000 * second)
    assert desk.book.clock_offset_s() == pytest.approx(10)


def test_rest_measures_the_clock_only_where_the_stream_does_not(desk: Desk) -> None:
    """A snapshot's event times are seconds old."""
    desk.merge(STREAM, A=EVENT_MS)
    desk.merge(REST, B=EVENT_MS - 3000)
    assert desk.book.clock_offset_s() == pytest.approx(0)
    desk.time.advance(SILENCE_S + 1)
    for second in range(3):
        desk.merge(REST, B=EVENT_MS + 16_000 + 1000 * second + 4000)
        desk.time.advance(1)
    assert desk.book.clock_offset_s() == pytest.approx(4)


def test_threads_merging_at_once_lose_nothing(desk: Desk) -> None:
    """Each batch's news is counted once, and the newest event time of every symbol stays."""
    symbols, rounds, news = [f"S{n}" for n in range(50)], 40, []

    def bring(offset: int) -> None:
        for event_ms in range(1, rounds):
            batch: list[FundingRate] = [rate(symbol, event_time_ms=event_ms + offset) for symbol in symbols]
            news.append(desk.book.merge(batch))

    threads = [threading.Thread(target=bring, args=(offset,)) for offset in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(desk.newest().values()) == {(rounds + 1, STREAM)}
    assert len(symbols) * (rounds - 1) <= sum(news) <= len(symbols) * (rounds + 1)
