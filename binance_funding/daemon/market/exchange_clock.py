"""Binance's time, carried on by this host's boot clock. Every age is counted by it.

`GET /fapi/v1/time` is asked once a minute, and every 3 s while the time is unknown or in doubt. Half the round trip is
subtracted from each answer. An answer is adopted if the answer before it says the same. While the time is unknown, an
answer that is close to the newest event times is adopted at once.

A message that is ahead of the known time contradicts it: either the message is wrong, or this host's boot clock stood
still (a paused virtual machine) or runs slow (NTP slews it). Such a message is left out until two answers have decided.
If they confirm the known time, messages like it are rejected. If no answer decides within 10 s, the time is unknown,
and ages are counted from arrival until it is known again.

An offset is Binance's Unix time minus this host's steady clock, in seconds.
"""

import enum
import math
import threading
from collections.abc import Iterable
from typing import NamedTuple

from ...clock import Clock
from ...log import EventLogger
from ..record import FundingRate
from . import thresholds

_log = EventLogger(__name__)


class Verdict(enum.Enum):
    """What Binance's time says about a whole message."""

    TIMELY = enum.auto()
    """Not ahead of Binance's time, as far as that is known."""
    DOUBTFUL = enum.auto()
    """Ahead of Binance's time, and it is not decided yet which of the two is wrong."""
    AHEAD = enum.auto()
    """Ahead of Binance's time, which two answers have confirmed since the doubt began."""


class _Answer(NamedTuple):
    """One usable answer to GET /fapi/v1/time."""

    server_time_s: float
    offset_s: float
    round_trip_s: float

    def says_the_same_as(self, other: "_Answer") -> bool:
        allowed_s = self.round_trip_s + other.round_trip_s + thresholds.SAME_TIME_S
        return abs(self.offset_s - other.offset_s) <= allowed_s


class _Doubt:
    """A message that contradicted the known time, and how many answers have confirmed that time since."""

    def __init__(self, since_s: float, event_offset_s: float) -> None:
        self.since_s = since_s
        self.event_offset_s = event_offset_s
        self.confirmations = 0

    @property
    def is_refuted(self) -> bool:
        return self.confirmations >= 2


class ExchangeClock:
    """Binance's time. Safe to call from any thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()  # guards every field below; `offset_s` may be read without it
        self.offset_s: float | None = None
        """None while Binance's time is not known."""
        self._adopted_s = 0.0  # when the adopted answer arrived
        self._adopted_round_trip_s = 0.0
        self._asked_s = -math.inf
        self._last_answer: _Answer | None = None  # the last usable one, whether it was adopted or not
        self._is_disputed = False  # whether that answer differed from the known time
        self._doubt: _Doubt | None = None
        self._event_offset_s = math.nan  # of the last message that was judged

    def now_ms(self) -> int | None:
        """Return Binance's time; None while it is not known."""
        offset_s = self.offset_s
        return None if offset_s is None else round((self._clock.steady_s() + offset_s) * 1000)

    @property
    def ask_due_s(self) -> float:
        """The steady time from which Binance's time should be asked; -inf at the beginning."""
        with self._lock:
            is_sure = self.offset_s is not None and not self._is_disputed
            is_sure = is_sure and (self._doubt is None or self._doubt.is_refuted)
            return self._asked_s + (thresholds.TIME_EVERY_S if is_sure else thresholds.TIME_SOON_S)

    def note_asked(self, asked_s: float) -> None:
        """Take note that Binance's time is being asked, whatever comes of it."""
        with self._lock:
            self._asked_s = asked_s

    def note_answer(self, server_time_s: float, asked_s: float, received_s: float) -> None:
        """Take note of an answer: Binance's Unix time, and the steady times of question and answer."""
        answer = _Answer(server_time_s, server_time_s - (asked_s + received_s) / 2, received_s - asked_s)
        with self._lock:
            previous, known_s = self._last_answer, self.offset_s
            # A cache repeats an answer to the millisecond.
            is_repeated = previous is not None and answer.server_time_s == previous.server_time_s
            if answer.round_trip_s > thresholds.LONGEST_ROUND_TRIP_S or is_repeated:
                return
            self._last_answer = answer
            if not self._is_adopted(answer, previous):
                self._is_disputed = known_s is not None
                return
            self.offset_s, self._is_disputed = answer.offset_s, False
            self._adopted_s, self._adopted_round_trip_s = received_s, answer.round_trip_s
            self._settle(answer.offset_s, asked_s)
        if known_s is not None and abs(answer.offset_s - known_s) > thresholds.SAME_TIME_S:
            _log.warning("time of Binance corrected", by_s=answer.offset_s - known_s)

    def uncertainty_s(self) -> float | None:
        """Return by how much an age may be wrong at most; None while Binance's time is unknown or in doubt.

        The server may have read its time at any instant of the round trip, and the boot clock drifts since.
        """
        with self._lock:
            if self.offset_s is None or self._is_disputed or (self._doubt is not None and not self._doubt.is_refuted):
                return None
            drift_s = thresholds.DRIFT * (self._clock.steady_s() - self._adopted_s)
            return self._adopted_round_trip_s / 2 + drift_s + thresholds.TIME_RESOLUTION_S

    def _is_adopted(self, answer: _Answer, previous: _Answer | None) -> bool:
        if previous is not None and answer.says_the_same_as(previous):
            return True
        # False while no message has been judged, because nothing is close to NaN.
        is_near_events = abs(answer.offset_s - self._event_offset_s) <= thresholds.TIME_NEAR_EVENTS_S
        return self.offset_s is None and is_near_events

    def _settle(self, offset_s: float, asked_s: float) -> None:
        """End the doubt if the adopted time explains the message, else count a confirmation of the known time."""
        if self._doubt is None:
            return
        if self._doubt.event_offset_s - offset_s <= thresholds.EVENT_AHEAD_S:
            self._doubt = None
        elif asked_s >= self._doubt.since_s:
            self._doubt.confirmations += 1

    def judge(self, median_event_time_ms: int, received_s: float) -> Verdict:
        """Judge a message or snapshot by the median event time of its rows."""
        event_offset_s = median_event_time_ms / 1000 - received_s
        with self._lock:
            self._event_offset_s = event_offset_s
            if self.offset_s is None or event_offset_s - self.offset_s <= thresholds.EVENT_AHEAD_S:
                return Verdict.TIMELY
            doubt = self._doubt
            if doubt is None or (doubt.is_refuted and received_s - doubt.since_s > thresholds.REFUTED_FOR_S):
                doubt = self._doubt = _Doubt(received_s, event_offset_s)
            if doubt.is_refuted:
                return Verdict.AHEAD
            if received_s - doubt.since_s <= thresholds.DOUBT_S:
                return Verdict.DOUBTFUL
            self.offset_s = self._doubt = None
        _log.warning("time of Binance unknown", cause="event times contradict it and no answer decides")
        return Verdict.TIMELY

    def latest_row_ms(self, median_event_time_ms: int, now_s: float) -> float:
        """Return the event time beyond which a single row of a timely message is wrong."""
        offset_s = self.offset_s
        if offset_s is None:
            return median_event_time_ms + thresholds.ROW_AHEAD_S * 1000
        # If half of the market lags, the median is too early for the other half.
        return max(median_event_time_ms, (now_s + offset_s) * 1000) + thresholds.EVENT_AHEAD_S * 1000

    def latest_record_ms(self, now_s: float) -> float:
        """Return the event time beyond which a record must be wrong; infinite while Binance's time is unknown."""
        offset_s = self.offset_s
        return math.inf if offset_s is None else (now_s + offset_s + thresholds.ROW_AHEAD_S) * 1000

    def as_of_s(self, event_time_ms: int, received_s: float) -> float:
        """Return the steady time at which an event was true at Binance; its arrival while that is unknown."""
        offset_s = self.offset_s
        return received_s if offset_s is None else min(received_s, event_time_ms / 1000 - offset_s)

    def all_as_of_s(self, rates: Iterable[FundingRate]) -> list[float]:
        """Return the same for many records. One call for each of them would cost too much."""
        offset_s = self.offset_s
        if offset_s is None:
            return [rate.received_s for rate in rates]
        return [min(rate.received_s, rate.event_time_ms / 1000 - offset_s) for rate in rates]

    def wall_offset_s(self) -> float | None:
        """Return Binance's time minus this host's wall clock, None while Binance's time is unknown."""
        offset_s, now = self.offset_s, self._clock.now()
        return None if offset_s is None else offset_s + now.steady_s - now.wall_s
