"""Decodes everything that comes from Binance, checks it against Binance's time, compares it, and merges it."""

import math
import threading
from collections import deque

from ...clock import Clock
from ...log import EventLogger, LogThrottle
from ...settings import Settings
from ..market.book import Book
from ..market.comparison import Comparison
from ..market.exchange_clock import ExchangeClock, Verdict
from ..market.freshness import FreshnessWatch
from ..record import REST, STREAM
from .rates import Decoded, MalformedMessage, decode_premium_index, decode_stream

# All connections deliver the same messages at about the same time. Only the first copy of a message is decoded.
_REMEMBERED_MESSAGES = 4


class Feed:
    """Takes the messages of all connections and the snapshots of REST. Safe to call from any thread."""

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        exchange_clock: ExchangeClock,
        book: Book,
        freshness: FreshnessWatch,
        comparison: Comparison,
    ) -> None:
        self.messages = 0
        self.rejected_rows = 0
        self.last_message_wall_s: float | None = None
        self._settings = settings
        self._clock = clock
        self._exchange_clock = exchange_clock
        self._book = book
        self._freshness = freshness
        self._comparison = comparison
        self._throttle = LogThrottle(EventLogger(__name__), clock.steady_s)
        # Held while a message is decoded. A copy from another connection waits, and is then found in `_recent`.
        self._lock = threading.RLock()
        self._recent: deque[tuple[bytes, int]] = deque(maxlen=_REMEMBERED_MESSAGES)  # messages, median event times

    def take(self, payload: bytes) -> int:
        """Merge one message into the book; return its median event time in ms, 0 if it has no usable mark price."""
        received = self._clock.now()
        with self._lock:
            self.messages += 1
            self.last_message_wall_s = round(received.wall_s, 3)
            for known, event_time_ms in self._recent:
                if known == payload:
                    return event_time_ms
            try:
                decoded = decode_stream(payload, received.steady_s)
            except MalformedMessage as fault:
                self._throttle.warn("malformed message", str(fault), next="left out")
                return 0
            decoded = self._admit(decoded, STREAM, received.steady_s)
            self._freshness.merge(decoded.rates)
            self._recent.append((payload, decoded.median_event_time_ms))
            return decoded.median_event_time_ms

    def take_snapshot(self, body: bytes) -> float:
        """Compare an answer to premiumIndex with the stream and merge it; return the age of its median row in seconds.

        Raises MalformedMessage if it has no usable row.
        """
        received = self._clock.now()
        decoded = self._admit(decode_premium_index(body, received.steady_s), REST, received.steady_s)
        if not decoded.rates:
            raise MalformedMessage(decoded.first_fault)
        oldest_s = received.steady_s - self._settings.stale_seconds
        stream = {symbol: rate for symbol, rate in self._book.stream_rates().items() if rate.received_s >= oldest_s}
        self._comparison.run(stream, decoded.rates, received.wall_s)
        self._freshness.merge(decoded.rates, is_snapshot=True)
        return self._book.note_snapshot(decoded.rates, received.steady_s)

    def _admit(self, decoded: Decoded, source: str, received_s: float) -> Decoded:
        """Return the message without rows that are ahead of Binance's time; count and log what is rejected.

        While it is in doubt whether the message or the known time is wrong, all rows are left out, but not counted as
        rejected. The message keeps its event time, so that its connection does not count as silent.
        """
        exchange_clock, median_ms = self._exchange_clock, decoded.median_event_time_ms
        verdict = exchange_clock.judge(median_ms, received_s) if decoded.rates else Verdict.TIMELY
        if verdict is Verdict.DOUBTFUL:
            cause = "event times are ahead of Binance's time, which is in doubt"
            self._throttle.warn("time of Binance in doubt", cause, source=source, next="asked for at once")
            return decoded._replace(rates=[], first_fault=cause)
        if verdict is Verdict.TIMELY:
            self._throttle.resolve("time of Binance in doubt")
        latest_ms = exchange_clock.latest_row_ms(median_ms, received_s) if verdict is Verdict.TIMELY else -math.inf
        decoded = decoded.up_to(latest_ms)
        if decoded.rejected:
            with self._lock:
                self.rejected_rows += decoded.rejected
            self._throttle.warn("rejected rows", decoded.first_fault, total=self.rejected_rows)
        return decoded
