"""Where the messages of all connections arrive: each message is decoded once, checked against the time, and merged."""

import math
import threading
from collections import deque

from ..context import Context
from ..record import STREAM
from ..source.rates import Decoded, MalformedMessage, decode_stream
from .exchange_clock import Verdict
from .freshness import FreshnessWatch

# Several connections bring the same few messages at about the same time.
_REMEMBERED_MESSAGES = 4


class Feed:
    """Takes the messages of all connections. Safe to call from any thread."""

    def __init__(self, context: Context, freshness: FreshnessWatch) -> None:
        self.freshness = freshness
        self.messages = 0
        self.rejected_rows = 0
        self.last_message_wall_s: float | None = None
        self._context = context
        # Held while a message is decoded: the same message of another connection waits, and is then recognised.
        self._lock = threading.RLock()
        self._recent: deque[tuple[bytes, int]] = deque(maxlen=_REMEMBERED_MESSAGES)  # messages, median event times

    def take(self, payload: bytes) -> int:
        """Merge one message into the book; return its median event time in ms, 0 if it has no usable mark price."""
        received = self._context.clock.now()
        with self._lock:
            self.messages += 1
            self.last_message_wall_s = round(received.wall_s, 3)
            for known, event_time_ms in self._recent:
                if known == payload:
                    return event_time_ms
            try:
                decoded = decode_stream(payload, received.steady_s)
            except MalformedMessage as fault:
                self._context.throttle.warn("malformed message", str(fault), next="left out")
                return 0
            decoded = self.admit(decoded, STREAM, received.steady_s)
            self.freshness.merge(decoded.rates)
            self._recent.append((payload, decoded.median_event_time_ms))
            return decoded.median_event_time_ms

    def admit(self, decoded: Decoded, source: str, received_s: float) -> Decoded:
        """Return the message without rows that are ahead of Binance's time; count and log what is rejected.

        While it is in doubt whether the message or the known time is wrong, all rows are left out, but not rejected.
        The message keeps its event time then: its connection is not to blame.
        """
        exchange_clock, median_ms = self._context.exchange_clock, decoded.median_event_time_ms
        verdict = exchange_clock.judge(median_ms, received_s) if decoded.rates else Verdict.TIMELY
        if verdict is Verdict.DOUBTFUL:
            cause = "event times are ahead of Binance's time, which is in doubt"
            self._context.throttle.warn("time of Binance in doubt", cause, source=source, next="asked for at once")
            return decoded._replace(rates=[], first_fault=cause)
        if verdict is Verdict.TIMELY:
            self._context.throttle.resolve("time of Binance in doubt")
        latest_ms = exchange_clock.latest_row_ms(median_ms, received_s) if verdict is Verdict.TIMELY else -math.inf
        decoded = decoded.up_to(latest_ms)
        if decoded.rejected:
            with self._lock:
                self.rejected_rows += decoded.rejected
            self._context.throttle.warn("rejected rows", decoded.first_fault, total=self.rejected_rows)
        return decoded
