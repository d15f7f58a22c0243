"""What time it is at Binance, kept on this host's boot clock, and how old a record is by it.

Source: GET /fapi/v1/time, asked beside the snapshots, half the round trip taken off. Nobody sets the boot clock, so the
difference between the two stays what it is, and one answer serves for hours.

No answer is believed on its word. Three witnesses tell something of the same time: the newest event time of the stream,
that of REST's snapshots, and this host's wall clock. An answer is taken over when more of them agree with it than with
what was known before, and at least one does; that it measures anew what was known counts like one of them. Where stream
and wall clock agree with each other, no other answer is taken over: two independent ones do not err by the same amount.
What was known is dropped then, unless the stream had confirmed it and merely fell behind since. So an answer that
jumps, creeps or is an hour off changes nothing, and neither does a stream that lags or a wrong wall clock.

An offset is Binance's Unix time minus this host's steady clock, in seconds.
"""

import math
import threading
from collections.abc import Iterable

from ...clock import Clock
from ...log import EventLogger
from ..source.rates import REST, STREAM, FundingRate

_log = EventLogger(__name__)

LARGEST_WALL_OFFSET_S = 5.0
"""A wall clock that differs by more is wrong: what needs the time of day on this host goes wrong with it."""

_WALL = "wall clock"
# A witness within this of an answer agrees with it; connections that lag by less are still live.
_AGREEMENT_S = 10.0
# What a witness has seen longer ago than this, it has not seen.
_WITNESS_S = 60.0
# A longer round trip leaves too much open.
_LONGEST_ROUND_TRIP_S = 4.0
# What differs from what is known by no more than this is the same time, measured anew.
_JITTER_S = 1.0
# An event so far ahead of Binance's time has not happened.
_AHEAD_S = 10.0


class ExchangeClock:
    """Binance's time. Safe to call from any thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()  # guards what was witnessed and the judgement made of it
        # Offset, and the steady time at which it was seen. No key is ever added: both may be read without the lock.
        self._witnesses = dict.fromkeys((STREAM, REST), (-math.inf, -math.inf))
        self._is_confirmed = False
        self.offset_s: float | None = None
        """None while Binance's time is not known."""
        self.learned_s = -math.inf
        """Steady time at which an answer was last taken over."""
        self.ask_due_s = -math.inf
        """Steady time from which Binance's time should be asked for."""

    def note_asked(self, asked_s: float) -> None:
        """Take note that the time is being asked for, so that it is not asked again at once."""
        self.ask_due_s = asked_s + (60.0 if self.offset_s is not None else 3.0)

    def note_answer(self, server_time_s: float, asked_s: float, received_s: float) -> None:
        """Take note of an answer: Binance's Unix time, and the steady times of question and answer."""
        if received_s - asked_s > _LONGEST_ROUND_TRIP_S:
            return
        answer_s = server_time_s - (asked_s + received_s) / 2
        with self._lock:
            seen, known_s = self._seen(received_s), self._known_s()
            is_same = abs(answer_s - known_s) <= _JITTER_S
            is_supported = _support(seen, answer_s) + is_same > _support(seen, known_s)
            if not is_supported or _is_refuted(seen, answer_s):
                return
            self._is_confirmed = self._is_confirmed and is_same
            self.offset_s, self.learned_s = answer_s, received_s
        if not is_same and math.isfinite(known_s):
            _log.warning("time of Binance corrected", by_s=answer_s - known_s)

    def note_events(self, source: str, event_time_ms: int, received_s: float) -> None:
        """Take note of the median event time of a message of the stream, or of a snapshot; 0 says nothing."""
        if not event_time_ms or (self.offset_s is None and event_time_ms > self.latest_ms(received_s)):
            return
        offset_s = event_time_ms / 1000 - received_s
        with self._lock:
            best_s, seen_s = self._witnesses[source]
            # Of several connections the one that lags least is the witness.
            if offset_s < best_s and received_s - seen_s <= _AGREEMENT_S:
                return
            self._witnesses[source] = offset_s, received_s
            seen, known_s = self._seen(received_s), self._known_s()
            stream_s = seen.get(STREAM, -math.inf)
            self._is_confirmed = self._is_confirmed or abs(stream_s - known_s) <= _AGREEMENT_S
            has_fallen_behind = self._is_confirmed and stream_s < known_s
            if self.offset_s is None or has_fallen_behind or not _is_refuted(seen, known_s):
                return
            self.offset_s = None
        _log.warning("time of Binance dropped", off_by_s=known_s - stream_s, next="ages by arrival")

    def restore(self, offset_s: float) -> None:
        """Start with what an earlier daemon knew within the same boot."""
        self.offset_s = offset_s

    def _known_s(self) -> float:
        return -math.inf if self.offset_s is None else self.offset_s

    def _seen(self, now_s: float) -> dict[str, float]:
        """Return the offset that each witness stands for, where it has seen something lately."""
        seen = {source: offset_s for source, (offset_s, at_s) in self._witnesses.items() if now_s - at_s < _WITNESS_S}
        return {_WALL: self._clock.wall_s() - self._clock.steady_s(), **seen}

    def as_of_s(self, event_time_ms: int, received_s: float) -> float:
        """Return the steady time of an event at Binance; that of its arrival where it cannot be told."""
        offset_s = self.offset_s
        return received_s if offset_s is None else min(received_s, event_time_ms / 1000 - offset_s)

    def all_as_of_s(self, rates: Iterable[FundingRate]) -> list[float]:
        """Return the same for many: without a call for each, since there are thousands every second."""
        offset_s = self.offset_s
        if offset_s is None:
            return [rate.received_s for rate in rates]
        return [min(rate.received_s, rate.event_time_ms / 1000 - offset_s) for rate in rates]

    def latest_ms(self, now_s: float) -> float:
        """Return the event time beyond which nothing can have happened; infinite where that cannot be told.

        Where Binance's time is not known, what stream and wall clock agree upon bounds it.
        """
        seen, offset_s = self._seen(now_s), self.offset_s
        if offset_s is None:
            offset_s = seen[_WALL] if _is_corroborated(seen) else math.inf
        return (now_s + offset_s + _AHEAD_S) * 1000

    def is_doubted(self) -> bool:
        """Tell whether the time is to be asked for: it is not known, or REST's last snapshot does not agree with it."""
        return self.offset_s is None or abs(self._witnesses[REST][0] - self.offset_s) > _AGREEMENT_S

    def wall_offset_s(self) -> float | None:
        """Return Binance's time minus this host's wall clock, None while it is not known."""
        offset_s, now = self.offset_s, self._clock.now()
        return None if offset_s is None else offset_s + now.steady_s - now.wall_s


def _support(seen: dict[str, float], offset_s: float) -> int:
    """Count the witnesses that agree with an offset."""
    return sum(abs(offset_s - witness_s) <= _AGREEMENT_S for witness_s in seen.values())


def _is_corroborated(seen: dict[str, float]) -> bool:
    """Tell whether stream and wall clock agree: two independent ones do not err by the same amount."""
    return abs(seen.get(STREAM, math.inf) - seen[_WALL]) <= _AGREEMENT_S / 2


def _is_refuted(seen: dict[str, float], offset_s: float) -> bool:
    """Tell whether stream and wall clock agree with each other and not with this."""
    return _is_corroborated(seen) and abs(offset_s - seen[_WALL]) > _AGREEMENT_S
