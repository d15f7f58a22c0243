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
        self._texts: dict[str, tuple[FundingRate, str]] = {}
        self._names: dict[str, str] = {}
        self._wall_minus_steady_s = 0.0
        self._interval_hours: Mapping[str, int] = {}

    def render(
        self, rates: list[FundingRate], wall_minus_steady_s: float, interval_hours: Mapping[str, int]
    ) -> list[str]:
        """Return the texts of all rates, in their order."""
        stepped = abs(wall_minus_steady_s - self._wall_minus_steady_s) > _CLOCK_STEP_S
        if stepped or interval_hours is not self._interval_hours or len(self._texts) > len(rates):
            self._wall_minus_steady_s, self._interval_hours = wall_minus_steady_s, interval_hours
            self._texts.clear()
        known = self._texts
        texts = []
        for rate in rates:
            symbol = rate[0]
            rendered = known.get(symbol)
            if rendered is None or rendered[0] is not rate:
                rendered = known[symbol] = (rate, self._text(rate))
            texts.append(rendered[1])
        return texts

    def _text(self, rate: FundingRate) -> str:
        (
            symbol,
            funding_rate,
            mark_price,
            index_price,
            next_funding_time_ms,
            event_time_ms,
            source,
            received_s,
        ) = rate
        name = self._names.get(symbol)
        if name is None:
            name = self._names[symbol] = json.dumps(symbol, ensure_ascii=False)
        return record_text(
            name,
            funding_rate,
            mark_price,
            index_price,
            next_funding_time_ms,
            event_time_ms,
            received_s + self._wall_minus_steady_s,
            self._interval_hours.get(symbol, USUAL_INTERVAL_HOURS),
            source,
        )


class Publisher:
    """Writes the state file. `progress_s` and `written_s` may be read from any thread."""

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
