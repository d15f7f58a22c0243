"""Where the messages of all connections come together: each is decoded once and merged into the book."""

import threading
from collections import deque

from . import events
from .book import Book
from .clock import Clock
from .rates import MalformedMessage, decode_stream, usual_event_time_ms


class Feed:
    """Where all connections hand in their messages. What several of them bring is decoded once."""

    def __init__(self, book: Book, clock: Clock, repeats: events.Repeats) -> None:
        self._book = book
        self._clock = clock
        self._repeats = repeats
        # Held while a message is decoded: the same message of another connection waits, and is then recognised.
        self._lock = threading.Lock()
        self._recent: deque[tuple[bytes, int]] = deque(maxlen=4)
        self.messages = 0
        self.rejected_rows = 0
        self.last_message_wall_s: float | None = None

    def take(self, payload: bytes) -> int:
        """Merge one message into the book; return its usual event time in ms, 0 if it holds no usable mark price."""
        received = self._clock.now()
        with self._lock:
            self.messages += 1
            self.last_message_wall_s = round(received.wall_s, 3)
            for known, event_ms in self._recent:
                if known == payload:
                    return event_ms
            try:
                decoded = decode_stream(payload, received)
            except MalformedMessage as fault:
                self._repeats.tell("malformed message", str(fault), next="left out")
                return 0
            if decoded.rejected:
                self.rejected_rows += decoded.rejected
                self._repeats.tell("rejected rows", decoded.first_fault, total=self.rejected_rows)
            self._book.merge(decoded.rates)
            event_ms = usual_event_time_ms(decoded.rates)
            self._recent.append((payload, event_ms))
            return event_ms
