"""Joins what the parts know into the state file: on every change, and at least once per heartbeat. One thread."""

import json
import logging
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

from . import events
from .book import Book
from .clock import Clock
from .rates import FundingRate
from .state_file import VERSION, StateFile, record_text

_log = logging.getLogger(__name__)

USUAL_INTERVAL_HOURS = 8
_TROUBLE = "state file not written"
# A wall clock set by more than this since a record was rendered: its time of update must be told anew.
_CLOCK_STEP_S = 0.1


class Renderer:
    """Renders rates as members of `funding_state`; one that has not changed is not rendered again. For one thread."""

    def __init__(self) -> None:
        self._members: dict[str, _Member] = {}
        self._wall_minus_steady_s = 0.0
        self._interval_hours: Mapping[str, int] = {}

    def render(
        self, rates: list[FundingRate], wall_minus_steady_s: float, interval_hours: Mapping[str, int]
    ) -> list[bytes]:
        """Return the members for all rates, in their order."""
        stepped = abs(wall_minus_steady_s - self._wall_minus_steady_s) > _CLOCK_STEP_S
        if stepped or interval_hours is not self._interval_hours or len(self._members) > len(rates):
            self._wall_minus_steady_s, self._interval_hours = wall_minus_steady_s, interval_hours
            self._members.clear()
        members, texts = self._members, []
        for rate in rates:
            member = members.get(rate[0]) or self._new_member(rate[0])
            if member.rate is not rate:
                member.render(rate, self._wall_minus_steady_s)
            texts.append(member.text)
        return texts

    def _new_member(self, symbol: str) -> "_Member":
        hours = self._interval_hours.get(symbol, USUAL_INTERVAL_HOURS)
        member = self._members[symbol] = _Member(json.dumps(symbol, ensure_ascii=False), hours)
        return member


class _Member:
    """What of one symbol's member stays the same, and the member as it was rendered last."""

    __slots__ = ("interval_hours", "name", "rate", "text")

    def __init__(self, name: str, interval_hours: int) -> None:
        self.name = name
        self.interval_hours = interval_hours
        self.rate: FundingRate | None = None
        self.text = b""

    def render(self, rate: FundingRate, wall_minus_steady_s: float) -> None:
        self.rate = rate
        _, funding_rate, mark_price, index_price, next_funding_time_ms, event_time_ms, source, received_s = rate
        self.text = record_text(
            self.name,
            funding_rate,
            mark_price,
            index_price,
            next_funding_time_ms,
            event_time_ms,
            received_s + wall_minus_steady_s,
            self.interval_hours,
            source,
        )


class Publisher:
    """Writes the state file. `progress_s` may be read from any thread."""

    def __init__(
        self,
        file: StateFile,
        book: Book,
        *,
        clock: Clock,
        heartbeat_s: float,
        interval_hours: Callable[[], Mapping[str, int]],
        describe: Callable[[float], dict[str, Any]],
        repeats: events.Repeats,
    ) -> None:
        """`describe` returns all other members of the file, given the wall time; it is called in this thread."""
        self._file = file
        self._book = book
        self._clock = clock
        self._heartbeat_s = heartbeat_s
        self._interval_hours = interval_hours
        self._describe = describe
        self._repeats = repeats
        self._renderer = Renderer()
        self.progress_s = clock.steady_s()
        """Steady time at which the thread last went round, whether it could write or not."""

    def run(self, stop: threading.Event) -> None:
        """Write until `stop` is set and the book's `changed` too; blocks."""
        while not stop.is_set():
            self._book.changed.wait(self._heartbeat_s)
            self._book.changed.clear()
            self.write_or_tell()
            self.progress_s = self._clock.steady_s()

    def write(self) -> None:
        """Write the file now. Raises OSError."""
        now = self._clock.now()
        header = {
            "version": VERSION,
            "updated_at": round(now.wall_s, 3),
            "daemon_pid": os.getpid(),
            # The same instant on the clock that nobody can set: readers can tell ages whatever happens to wall time.
            "boot_id": self._clock.boot_id,
            "boottime": round(now.steady_s, 3),
        }
        records = self._renderer.render(self._book.rates(), now.wall_s - now.steady_s, self._interval_hours())
        self._file.write(records, header, self._describe(now.wall_s))

    def write_or_tell(self) -> None:
        """Write the file now; tell what keeps it from being written. For one thread at a time."""
        try:
            self.write()
        except OSError as error:
            words = (error.strerror or str(error)).lower()
            self._repeats.tell(_TROUBLE, words, logging.ERROR, file=self._file.path, next="tried at every change")
            return
        lasted_s = self._repeats.over(_TROUBLE)
        if lasted_s is not None:
            _log.warning("%s", events.line("state file written again", after_s=lasted_s))
