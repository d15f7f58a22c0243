"""The last funding rate that the stream showed for each symbol before its next funding time moved on."""

import threading
from collections.abc import Iterable
from typing import Protocol

# A rate counts as the last one if its event time is at most this long before the settlement: three ticks. After a
# longer silence of the stream, nobody knows what it would have shown.
_MAX_MS_BEFORE = 10_000
_KEPT_MS = 86_400_000


class Row(Protocol):
    """What is needed of a row of the stream."""

    @property
    def symbol(self) -> str: ...  # noqa: D102
    @property
    def funding_rate(self) -> float: ...  # noqa: D102
    @property
    def next_funding_time_ms(self) -> int: ...  # noqa: D102
    @property
    def event_time_ms(self) -> int: ...  # noqa: D102


class LastEstimates:
    """Keeps two rows per symbol: the newest one, and the last one of the funding period before it.

    After a restart it is fed with the restored rows of the stream. The state file is written at every tick, so nothing
    is lost if the stream is back before the settlement. Safe to call from any thread; no call blocks.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards both dictionaries: every connection feeds them
        self._newest: dict[str, Row] = {}
        self._before: dict[str, Row] = {}
        """By symbol: the last row of the period that ended most recently."""

    def note(self, rows: Iterable[Row]) -> None:
        """Take in decoded rows of the stream, of any connection and in any order."""
        with self._lock:
            newest = self._newest
            for row in rows:
                known = newest.get(row.symbol)
                if known is None:
                    newest[row.symbol] = row
                elif row.event_time_ms > known.event_time_ms:
                    newest[row.symbol] = row
                    if row.next_funding_time_ms > known.next_funding_time_ms:
                        self._before[row.symbol] = known
                elif row.next_funding_time_ms < known.next_funding_time_ms:
                    self._note_late(row)

    def _note_late(self, row: Row) -> None:
        """Take in a row of the period before, which a slower connection brought."""
        before = self._before.get(row.symbol)
        if before is None or (
            row.next_funding_time_ms >= before.next_funding_time_ms and row.event_time_ms > before.event_time_ms
        ):
            self._before[row.symbol] = row

    def before(self, settlement_ms: int) -> dict[str, float]:
        """Return the last rate by symbol before this settlement, of the symbols that the stream showed until then.

        To be called once the stream is past this time, and before the next settlement. Forgets symbols that the
        stream has not shown for a day.
        """
        with self._lock:
            old = [one for one, row in self._newest.items() if row.event_time_ms < settlement_ms - _KEPT_MS]
            for symbol in old:
                del self._newest[symbol]
                self._before.pop(symbol, None)
            return {
                row.symbol: row.funding_rate
                for row in (*self._newest.values(), *self._before.values())
                if row.next_funding_time_ms == settlement_ms and row.event_time_ms >= settlement_ms - _MAX_MS_BEFORE
            }
