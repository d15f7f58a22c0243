"""The feed: messages of all connections, each decoded once and merged, whatever they hold."""

import json
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from binance_funding.daemon.record import STREAM, FundingRate
from tests.support.clock import WALL_S
from tests.support.desk import Desk
from tests.support.samples import stream_row

HOUR_S = 3600.0


@pytest.fixture
def desk() -> Desk:
    """A feed at a host that knows Binance's time."""
    desk = Desk()
    desk.learn_time()
    return desk


def test_a_message_is_merged_and_answered_with_its_event_time(desk: Desk) -> None:
    """That of the median row, by Binance's clock; counted with the wall time of its arrival."""
    desk.time.advance(1.2345)
    assert desk.feed.take(desk.message("A", "B", lag_s=2)) == desk.event_ms(2)
    assert desk.newest() == {"A": (desk.event_ms(2), STREAM), "B": (desk.event_ms(2), STREAM)}
    assert (desk.feed.messages, desk.feed.last_message_wall_s) == (1, WALL_S + 1.234)


def test_the_same_message_of_another_connection_is_not_decoded_again(desk: Desk) -> None:
    """It counts as a message of that connection, with its event time; arrival stays that of the first."""
    message = desk.message("A")
    first = desk.feed.take(message)
    came_s = desk.now_s
    desk.time.advance(0.5)
    assert desk.feed.take(message) == first
    assert (desk.feed.messages, desk.book.rates()[0].received_s) == (2, came_s)


def test_rejected_rows_of_a_message_are_counted_once(desk: Desk) -> None:
    """However many connections bring it."""
    message = json.dumps([stream_row("A"), stream_row("B", p="x"), stream_row("")]).encode()
    for _ in range(3):
        desk.feed.take(message)
    assert (desk.feed.rejected_rows, list(desk.newest())) == (2, ["A"])


def test_an_older_message_of_a_connection_that_lags_changes_nothing(desk: Desk) -> None:
    """Its own event time is returned, so that the lag is noticed."""
    desk.feed.take(desk.message("A"))
    assert desk.feed.take(desk.message("A", lag_s=40)) == desk.event_ms(40)
    assert desk.newest() == {"A": (desk.event_ms(), STREAM)}


@pytest.mark.parametrize(
    "payload",
    [b"{", b"\xff", b"[]", b'{"data":[]}', b'{"result":null,"id":1}', b'[{"e":"24hrTicker","s":"A","p":"1"}]', b"[5]"],
)
def test_a_message_without_mark_prices_has_no_event_time(desk: Desk, payload: bytes) -> None:
    """It does not keep its connection alive, and costs nothing else."""
    assert desk.feed.take(payload) == 0
    assert desk.newest() == {}
    assert desk.feed.take(desk.message("A")) == desk.event_ms()


def test_malformed_messages_are_logged_seldom(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    """A flood of them is one trouble; none of them ends the feed."""
    for n in range(1000):
        desk.feed.take(b"{" * (n + 1))
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("malformed message cause=")


def test_rejected_rows_are_logged_seldom(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    """With what was wrong with the first, and how many there were so far."""
    for n in range(1000):
        desk.feed.take(json.dumps([stream_row("A", E=desk.event_ms()), stream_row("B", p=n, E="x")]).encode())
    assert len(caplog.messages) == 1
    assert caplog.messages[0].endswith("total=1")


@pytest.mark.parametrize("ahead_s", [1.5, 10.5, 600.0, 23 * HOUR_S])
def test_an_exchange_that_is_ahead_for_a_moment_does_no_harm(desk: Desk, ahead_s: float) -> None:
    """Its rows are left out while the time is in doubt, and rejected once it is confirmed; then all goes on."""
    desk.feed.take(desk.message("A", "B"))
    desk.time.advance(1)
    assert desk.feed.take(desk.message("A", "B", lag_s=-ahead_s)) == desk.event_ms(-ahead_s)
    assert desk.feed.rejected_rows == 0
    for _ in range(2):
        desk.time.advance(1)
        desk.answer_time()
    desk.time.advance(1)
    assert desk.feed.take(desk.message("A", "B", lag_s=-ahead_s)) == 0
    assert desk.feed.rejected_rows == 2
    assert {event_ms for event_ms, _ in desk.newest().values()} == {desk.event_ms(4)}
    desk.feed.take(desk.message("A", "B"))
    assert set(desk.newest().values()) == {(desk.event_ms(), STREAM)}


def test_one_row_ahead_costs_only_itself(desk: Desk) -> None:
    """The good rows of the same message count, and so does the message."""
    rows = [stream_row(symbol, E=desk.event_ms()) for symbol in "ABC"] + [stream_row("D", E=desk.event_ms(-HOUR_S))]
    assert desk.feed.take(json.dumps(rows).encode()) == desk.event_ms()
    assert (list(desk.newest()), desk.feed.rejected_rows) == (["A", "B", "C"], 1)


@pytest.mark.parametrize("time_known", [True, False])
def test_symbols_that_lag_do_not_make_the_others_look_ahead(time_known: bool) -> None:
    """Half of a message an hour behind its other half: the known time decides, not the median."""
    desk = Desk()
    if time_known:
        desk.learn_time()
    rows = [stream_row(symbol, E=desk.event_ms(HOUR_S)) for symbol in "ABC"] + [stream_row("D", E=desk.event_ms())]
    desk.feed.take(json.dumps(rows).encode())
    assert ("D" in desk.newest()) is time_known


def test_an_exchange_ahead_from_the_first_message_is_found_out() -> None:
    """What it brought is dropped when Binance's time becomes known, and all goes on."""
    desk = Desk()
    desk.feed.take(desk.message("A", lag_s=-600))
    desk.learn_time()
    desk.freshness.observe()
    assert desk.newest() == {}
    desk.time.advance(3)
    desk.feed.take(desk.message("A"))
    assert desk.newest() == {"A": (desk.event_ms(), STREAM)}


@pytest.mark.parametrize("wall_error_s", [-86_400.0, -9.0, 9.0, 86_400.0])
@pytest.mark.parametrize("time_known", [True, False])
def test_a_wall_clock_that_is_wrong_costs_no_row(wall_error_s: float, time_known: bool) -> None:
    """From the start or set while the daemon runs, with Binance's time known or not."""
    for set_at in (0, 5):
        desk = Desk()
        if time_known:
            desk.learn_time()
        for step in range(40):
            if step == set_at:
                desk.time.set_wall_by(wall_error_s)
            assert desk.feed.take(desk.message("A")) == desk.event_ms()
            desk.freshness.observe()
            desk.time.advance(3)
        assert (desk.feed.rejected_rows, list(desk.newest())) == (0, ["A"])


def test_two_connections_at_once_decode_each_message_once(desk: Desk) -> None:
    """Both count their messages; nothing is lost and nothing goes back."""
    messages = [json.dumps([stream_row("A", E=desk.event_ms() + n)]).encode() for n in range(300)]
    threads = [
        threading.Thread(target=lambda: [desk.feed.take(message) for message in messages], name=f"stream-{n}")
        for n in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert desk.feed.messages == 600
    assert desk.newest() == {"A": (desk.event_ms() + 299, STREAM)}


def as_of_s(desk: Desk, record: FundingRate) -> float:
    """Return when the record was true, as far as is known now."""
    return desk.exchange_clock.as_of_s(record.event_time_ms, record.received_s)


lags = st.sampled_from([-23 * HOUR_S, -600.0, -3.0, 0.0, 0.2, 3.0, 14.0, 40.0, 300.0, HOUR_S])
steps = st.one_of(
    st.tuples(st.just("message"), st.sets(st.sampled_from("ABC"), min_size=1), lags),
    st.tuples(st.just("snapshot"), st.sets(st.sampled_from("ABC"), min_size=1), lags),
    st.tuples(st.just("answer"), lags),
    st.tuples(st.just("set the wall clock"), lags),
    st.tuples(st.just("the stream is live or not")),
    st.tuples(st.just("pass"), st.sampled_from([0.1, 3.0, 9.0, 61.0, HOUR_S])),
)


def take_step(desk: Desk, step: tuple[Any, ...]) -> None:
    """Let one thing happen."""
    kind, *facts = step
    exchange_clock = desk.exchange_clock
    if kind == "message":
        desk.feed.take(desk.message(*sorted(facts[0]), lag_s=facts[1]))
    elif kind == "snapshot":
        exchange_clock.judge(desk.event_ms(facts[1]), desk.now_s)
        desk.rest(*sorted(facts[0]), lag_s=facts[1])
    elif kind == "answer":
        exchange_clock.note_answer(desk.event_ms(facts[0]) / 1000, desk.now_s, desk.now_s)
    elif kind == "set the wall clock":
        desk.time.set_wall_by(facts[0])
    elif kind == "pass":
        desk.time.advance(facts[0])
    else:
        desk.stream_state.keeps_rows = not desk.stream_state.keeps_rows


@given(st.lists(steps, max_size=40))
def test_whatever_comes_no_record_is_younger_than_its_arrival_or_goes_back(story: list[tuple[Any, ...]]) -> None:
    """A newer event is never found older than the one before it, and no event gives way to an older one.

    Whatever the sequence of messages, lags and answers. Only what proves to be ahead of its time is dropped.
    """
    desk = Desk()
    for step in story:
        before = {record.symbol: record for record in desk.book.rates()}
        take_step(desk, step)
        after = {record.symbol: record for record in desk.book.rates()}
        latest_ms = desk.exchange_clock.latest_record_ms(desk.now_s)
        for symbol, known in before.items():
            record = after.get(symbol)
            if record is None:
                assert known.event_time_ms > latest_ms
                continue
            assert record.event_time_ms >= known.event_time_ms or known.event_time_ms > latest_ms
            assert as_of_s(desk, record) >= as_of_s(desk, known) or known.event_time_ms > latest_ms
        assert all(as_of_s(desk, record) <= record.received_s <= desk.now_s for record in after.values())
