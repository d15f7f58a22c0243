"""Where the messages of all connections come together: each is decoded once and merged into the book."""

import threading
from collections import deque
from dataclasses import dataclass

from .context import Context
from .freshness import FreshnessWatch
from .rates import STREAM, MalformedMessage, decode_stream


@dataclass
class Feed:
    """Where all connections hand in their messages. What several of them bring is decoded once."""

    context: Context
    freshness: FreshnessWatch
    messages: int = 0
    rejected_rows: int = 0
    last_message_wall_s: float | None = None

    def __post_init__(self) -> None:
        # Held while a message is decoded: the same message of another connection waits, and is then recognised.
        self._lock = threading.Lock()
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
            self.context.exchange_clock.note_events(STREAM, decoded.median_event_time_ms, received.steady_s)
            decoded = decoded.up_to(self.context.exchange_clock.latest_ms(received.steady_s))
            if decoded.rejected:
                self.rejected_rows += decoded.rejected
                self.context.throttle.warn("rejected rows", decoded.first_fault, total=self.rejected_rows)
            self.freshness.merge(decoded.rates)
            self._recent.append((payload, decoded.median_event_time_ms))
            return decoded.median_event_time_ms
