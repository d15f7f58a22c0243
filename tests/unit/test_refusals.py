"""What a refusal of Binance means, and how long it asks to wait."""

from __future__ import annotations

from datetime import datetime, timezone
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from binance_funding.daemon.source.refusals import LONGEST_BAN_S, refusal
from tests.support.clock import WALL_S

BAN = '{"code":-1003,"msg":"Way too much request weight used; IP banned until %d. Please use the websocket."}'


def wait_s(status: int, headers: dict[str, str], body: str = "", wall_s: float = WALL_S) -> float:
    """Return how long this answer asks to wait."""
    return refusal(status, headers, body.encode(), wall_s).wait_s


def http_date(unix_s: float) -> str:
    """Write a time as HTTP headers do."""
    return format_datetime(datetime.fromtimestamp(unix_s, timezone.utc), usegmt=True)


@pytest.mark.parametrize(
    ("status", "words", "is_refusal"),
    [
        (403, "the firewall of Binance refuses this IP (HTTP 403)", True),
        (418, "Binance has banned this IP for asking too often (HTTP 418)", True),
        (429, "Binance says too many requests (HTTP 429)", True),
        (451, "Binance does not serve this country (HTTP 451)", True),
        (500, "Binance server error (HTTP 500)", False),
        (404, "unexpected answer (HTTP 404)", True),
        (302, "unexpected answer (HTTP 302)", True),
    ],
)
def test_every_status_has_a_meaning(status: int, words: str, is_refusal: bool) -> None:
    """The sentence has the number for whoever wants to look it up. A server error is no refusal."""
    cause = refusal(status, {}, b"", WALL_S)
    assert (str(cause), cause.is_refusal) == (words, is_refusal)


@pytest.mark.parametrize("status", [403, 418, 429, 451, 503])
def test_retry_after_seconds_are_obeyed(status: int) -> None:
    """Whatever the status, and before anything the body says."""
    body = BAN % int((WALL_S + 1000) * 1000)
    assert wait_s(status, {"retry-after": " 7 "}, body, WALL_S) == 7


def test_retry_after_may_be_a_date() -> None:
    """It is measured by the clock of the answer where that tells it, else by ours."""
    until = {"retry-after": http_date(WALL_S + 90)}
    assert wait_s(429, until, "", WALL_S) == 90
    assert wait_s(429, {**until, "date": http_date(WALL_S + 60)}, "", WALL_S - 5000) == 30


@pytest.mark.parametrize("status", [418, 429])
def test_the_body_tells_the_end_of_a_ban(status: int) -> None:
    """In milliseconds of Binance's clock, which the answer's Date shows where ours is wrong."""
    body = BAN % int((WALL_S + 300) * 1000)
    assert wait_s(status, {}, body, WALL_S) == 300
    assert wait_s(status, {"date": http_date(WALL_S)}, body, WALL_S + 86_400) == 300


@pytest.mark.parametrize(("into_minute_s", "expected_s"), [(0, 60), (1, 59), (59.5, 0.5)])
def test_too_many_requests_without_a_time_wait_for_the_end_of_the_minute(
    into_minute_s: float, expected_s: float
) -> None:
    """Binance counts by UTC minutes."""
    assert wait_s(429, {}, "", WALL_S - WALL_S % 60 + into_minute_s) == pytest.approx(expected_s)


def test_a_ban_without_a_time_lasts_two_minutes() -> None:
    """The shortest there is."""
    assert wait_s(418, {}, "<html>teapot</html>", WALL_S) == 120


@pytest.mark.parametrize("status", [403, 451, 500, 404])
def test_other_refusals_without_a_time_ask_for_no_wait(status: int) -> None:
    """How often to ask then is the caller's policy; a ban in the body of these is not Binance's word."""
    assert wait_s(status, {}, BAN % int((WALL_S + 300) * 1000), WALL_S) == 0


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"retry-after": "999999999"}, ""),
        ({"retry-after": http_date(WALL_S + 10 * LONGEST_BAN_S)}, ""),
        ({}, BAN % 9_999_999_999_999),
    ],
)
def test_no_wait_is_longer_than_the_longest_ban(headers: dict[str, str], body: str) -> None:
    """A wrong answer must not silence the daemon for years."""
    assert wait_s(418, headers, body, WALL_S) == LONGEST_BAN_S == 3 * 86_400


@pytest.mark.parametrize(
    ("headers", "body"), [({"retry-after": http_date(WALL_S - 90)}, ""), ({}, BAN % int((WALL_S - 90) * 1000))]
)
def test_a_time_that_is_over_is_as_none(headers: dict[str, str], body: str) -> None:
    """A ban that refuses right now is not over, whatever it says: the usual two minutes."""
    assert wait_s(418, headers, body, WALL_S) == 120
    assert wait_s(503, headers, body, WALL_S) == 0


def test_what_is_no_ban_silences_nobody_for_days() -> None:
    """A gateway's Retry-After of a year is believed for ten minutes."""
    assert wait_s(503, {"retry-after": "31536000"}, "", WALL_S) == 600


@pytest.mark.parametrize("text", ["", "soon", "-5", "1.5", "1e9", "\uff11\uff10", "0x10", "9999999999", ", , ,", "1,2"])
def test_a_retry_after_that_says_nothing_is_as_none(text: str) -> None:
    """The rule for an answer without it applies."""
    assert wait_s(418, {"retry-after": text}, "", WALL_S) == 120


@pytest.mark.parametrize("header", ["retry-after", "date"])
@pytest.mark.parametrize(
    "text",
    [
        "Mon, 01 Jan 99999999999 00:00:00 GMT",
        "Mon, 01 Jan 2020 00:00:00 +99999999999999",
        "Mon, 99999999999999999999 Jan 2020 00:00:00 GMT",
    ],
)
def test_a_date_beyond_all_bounds_is_as_none(header: str, text: str) -> None:
    """It must not end the thread that asked."""
    assert wait_s(418, {header: text}, "", WALL_S) == 120


short_numbers = st.integers(0, 9999).map(str)
date_parts = st.sampled_from(["Mon,", "Jan", "feb", "GMT", "-0000", "+9999", "-2400", "00:00:00", ":", "1:2", ".", "-"])


@given(
    st.integers(300, 599),
    st.text(max_size=30) | st.lists(date_parts | short_numbers, max_size=7).map(" ".join),
    st.text(max_size=30) | st.lists(date_parts | short_numbers, max_size=7).map(" ".join),
    st.text(max_size=30) | st.integers(0, 10**15).map(lambda until: f"banned until {until}"),
)
def test_whatever_is_answered_the_wait_is_between_none_and_the_longest_ban(
    status: int, retry_after: str, date: str, body: str
) -> None:
    """Nothing raises."""
    assert 0 <= wait_s(status, {"retry-after": retry_after, "date": date}, body) <= LONGEST_BAN_S
