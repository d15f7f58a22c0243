"""Server-sent events: what a subscriber is sent whenever it can take more. No I/O; for one thread.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from .listing import Listing, Symbols, dump

_COMMENT_EVERY_S = 15.0
_COMMENT = b":\n\n"
_RETRY = b"retry: 2000\n\n"


class Push:
    """Makes the events: the same bytes once for all who are to be sent the same."""

    def __init__(self, listing: Listing, refresh: Callable[[], None], steady_s: Callable[[], float]) -> None:
        self._listing, self._refresh, self._steady_s = listing, refresh, steady_s
        self._id = ""
        self._status_key, self._status = "", b""

    def update(self, updated_at: float, health: Mapping[str, Any]) -> None:
        """Take over when the file was written, 0 where there is none, and what the health answer says."""
        self._id = f"id: {updated_at}\n" if updated_at else ""
        # Ages and counts of symbols change all the time: what matters is what is wrong, not for how long.
        self._status_key = health["status"] + re.sub(r"[0-9.]+ (s\b|of [0-9]+ symbols)", "", health["error"] or "")
        self._status = dump(health).encode()

    def follow(self, symbols: Symbols) -> Iterator[list[bytes]]:
        """Yield what one subscriber lacks, each time it is asked.

        Nothing is queued: who asks seldom gets all that it missed in one update. `refresh` is called before, and calls
        `update` at least once.
        """
        seen, status_key, commented_s = 0, "", self._steady_s()
        events = [_RETRY]
        while True:
            self._refresh()
            if seen < self._listing.edition:
                events += self._event("update" if seen else "snapshot", self._listing.body(symbols, seen))
                seen = self._listing.edition
            if status_key != self._status_key:
                events += self._event("status", self._status)
                status_key = self._status_key
            if self._steady_s() >= commented_s + _COMMENT_EVERY_S:
                events.append(_COMMENT)
                commented_s = self._steady_s()
            yield events
            events = []

    def _event(self, name: str, body: bytes) -> list[bytes]:
        # The body stays one object, however many are sent it.
        return [f"event: {name}\n{self._id}data: ".encode(), body, b"\n\n"] if body else []
