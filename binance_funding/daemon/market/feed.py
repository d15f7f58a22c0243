"""Where the messages of all connections come together: each is decoded once, and merged as far as it can be true."""

import math
import threading
from collections import deque
from dataclasses import dataclass

from ..context import Context
from ..record import STREAM
from ..source.rates import Decoded, MalformedMessage, decode_stream
from .exchange_clock import Verdict
from .freshness import FreshnessWatch


@dataclass
class Feed:
    """Where all connections hand in their messages. Safe to call from any thread."""

    context: Context
    freshness: FreshnessWatch
    messages: int = 0
    rejected_rows: int = 0
    last_message_wall_s: float | None = None

    def __post_init__(self) -> None:
        # Held while a message is decoded: the same message of another connection waits, and is then recognised.
        self._lock = threading.RLock()
        self._recent: deque[tuple[bytes, int]] = deque(maxlen=4)

    def take(self, payload: bytes) -> int:
        """Merge one message into the book; return its median event time in ms, 0 if it holds no usable mark price."""
        received = self.context.clock.now()
        with self._lock:
            self.messages += 1
            self.last_message_wall_s = round(received.wall_s, 3)
            for known, event_time_ms in self._recent:
                if known == payload:
                    return event_time_ms
            try:
                decoded = decode_stream(payload, received.steady_s)
            except MalformedMessage as fault:
                self.context.throttle.warn("malformed message", str(fault), next="left out")
                return 0
            decoded = self.admit(decoded, STREAM, received.steady_s)
            self.freshness.merge(decoded.rates)
            self._recent.append((payload, decoded.median_event_time_ms))
            return decoded.median_event_time_ms

    def admit(self, decoded: Decoded, source: str, received_s: float) -> Decoded:
        """Return the message without rows that are ahead of Binance's time; count and log what is rejected.

        While it is in doubt whether the message or the known time is wrong, all rows are left out, but not rejected.
        """
        exchange_clock = self.context.exchange_clock
        if not decoded.rates:
            verdict = Verdict.TIMELY
        else:
            verdict = exchange_clock.judge(decoded.median_event_time_ms, received_s)
        if verdict is Verdict.TIMELY:
            decoded = decoded.up_to(exchange_clock.latest_row_ms(decoded.median_event_time_ms, received_s))
        elif verdict is Verdict.DOUBTFUL:
            cause = "event times are ahead of Binance's time, which is in doubt"
            self.context.throttle.warn("time of Binance in doubt", cause, source=source, next="asked for at once")
            return decoded._replace(rates=[], first_fault=cause)
        else:
            decoded = decoded.up_to(-math.inf)
        if decoded.rejected:
            with self._lock:
                self.rejected_rows += decoded.rejected
            self.context.throttle.warn("rejected rows", decoded.first_fault, total=self.rejected_rows)
        return decoded
