"""Makes the server-sent events for subscribers. No I/O; for one thread.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from .health import Verdict
from .listing import Listing, Selection, dump

_COMMENT_EVERY_S = 15.0
_COMMENT = b":\n\n"
_RETRY = b"retry: 2000\n\n"


class Push:
    """Makes the events of all subscribers, from bytes that they share."""

    def __init__(self, listing: Listing, refresh: Callable[[], None], steady_s: Callable[[], float]) -> None:
        """Call refresh before anything is sent. It must bring the listing up to date, and call `update` if it did."""
        self._listing, self._refresh, self._steady_s = listing, refresh, steady_s
        self._id = ""
        """The line of an event that says when the file was written; empty if there is no file."""
        self._verdict: Verdict | None = None
        """The verdict about the service. It is replaced when its causes change."""
        self._status = b""
        """The body of /funding/health at present."""

    def update(self, written_at_s: float, verdict: Verdict, health: Mapping[str, Any]) -> None:
        """Take the time of the file (0 if there is none) and the body of /funding/health."""
        self._id = f"id: {written_at_s}\n" if written_at_s else ""
        self._status = dump(health)
        # Two verdicts are equal while the same things are wrong, although ages and counts in their sentences grow.
        if verdict != self._verdict:
            self._verdict = verdict

    def follow(self, selection: Selection) -> Iterator[list[bytes]]:
        """Yield the changes since the last yield, each time the subscriber can take more.

        Nothing is queued: a subscriber that asks seldom gets everything that it missed in one update.
        """
        seen, verdict, commented_s = 0, None, self._steady_s()
        events = [_RETRY]
        while True:
            self._refresh()
            if seen < self._listing.edition:
                events += self._event("update" if seen else "snapshot", selection.changes(seen))
                seen = self._listing.edition
            if verdict is not self._verdict:
                events += self._event("status", [self._status])
                verdict = self._verdict
            if self._steady_s() >= commented_s + _COMMENT_EVERY_S:
                events.append(_COMMENT)
                commented_s = self._steady_s()
            yield events
            events = []

    def _event(self, name: str, lines: list[bytes]) -> list[bytes]:
        """Return an event whose data is one line, which may come in pieces; nothing if there is no data."""
        return [f"event: {name}\n{self._id}data: ".encode(), *lines, b"\n"] if lines else []
