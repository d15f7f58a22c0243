"""Writes the state file on every change, and at least once per heartbeat. One thread."""

import json
import logging
import math
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ...clock import Clock, Moment
from ...log import EventLogger, LogThrottle
from ...schema import HEADER, MARKS, VERSION, declared
from ...settings import Settings
from ...settlements import E8, Summary
from ...state_file import StateFile
from ..market.book import Book
from ..market.exchange_clock import ExchangeClock
from ..record import UNKNOWN_TERMS, FundingRate, Terms, number, render

_TROUBLE = "state file not written"
# A tick consists of two messages. The second follows the first closely, and both are written together.
_MESSAGES_OF_A_TICK, _SECOND_MESSAGE_S = 2, 0.025
# If a clock was set by more than this since the records were rendered, they are rendered again.
_CLOCK_STEP_S = 0.002


class Annotations(NamedTuple):
    """Facts about symbols other than their rates. If a part changes, it is replaced as a whole."""

    terms: Mapping[str, Terms]
    interest_rates: Mapping[str, float]
    listed: frozenset[str] | None
    halted: frozenset[str]
    settlements: Mapping[str, Summary]


_NOT_SETTLED = Summary(None, None, None, None, None)


class _Member:
    """The member of `funding_state` for one symbol: its unchanging parts, and the text that was rendered last."""

    __slots__ = ("interval_hours", "more_text", "rate", "symbol_text", "text")

    def __init__(
        self, symbol: str, terms: Terms, interest_rate: float | None, settled: Summary, marks: list[str]
    ) -> None:
        self.symbol_text = json.dumps(symbol, ensure_ascii=False)
        self.interval_hours = terms.hours
        terms_text = (
            f',"interestRate":{number(interest_rate)},"fundingRateCap":{number(terms.cap)},'
            f'"fundingRateFloor":{number(terms.floor)}'
        )
        self.more_text = terms_text + _settled_text(settled) + "".join(f',"{mark}":true' for mark in marks)
        self.rate: FundingRate | None = None  # the record from which `text` was rendered
        self.text = b""


def _settled_text(settled: Summary) -> str:
    members = {
        "settledFundingRate": _rate(settled.settled_rate_e8),
        "settledFundingTime": settled.settled_time_ms,
        "fundingRateSum24h": _rate(settled.sum_24h_e8),
        "fundingRateSum7d": _rate(settled.sum_7d_e8),
        "fundingRateSum30d": _rate(settled.sum_30d_e8),
    }
    return "," + json.dumps(members, separators=(",", ":"))[1:-1]


def _rate(value_e8: int | None) -> float | None:
    return None if value_e8 is None else value_e8 / E8


class Renderer:
    """Renders records as members of `funding_state`; an unchanged record is not rendered again. For one thread."""

    def __init__(self, exchange_clock: ExchangeClock) -> None:
        self._exchange_clock = exchange_clock
        self._members: dict[str, _Member] = {}
        # The members were rendered with the following values. If one of these changes, all members are rendered again.
        self._annotations = Annotations({}, {}, None, frozenset(), {})
        self._wall_minus_steady_s = self._offset_s = 0.0

    def render(self, rates: list[FundingRate], wall_minus_steady_s: float, annotations: Annotations) -> list[bytes]:
        """Return the members for all records, in their order."""
        offset_s = self._exchange_clock.offset_s or 0.0
        step_s = max(abs(wall_minus_steady_s - self._wall_minus_steady_s), abs(offset_s - self._offset_s))
        if step_s > _CLOCK_STEP_S or annotations != self._annotations or len(self._members) > len(rates):
            self._wall_minus_steady_s, self._offset_s = wall_minus_steady_s, offset_s
            self._annotations = annotations
            self._members.clear()
        wall_s, times_s = self._wall_minus_steady_s, self._exchange_clock.all_as_of_s(rates)
        texts = []
        shown_s, updated_at_text = math.nan, ""
        for rate, as_of_s in zip(rates, times_s, strict=True):
            member = self._members.get(rate.symbol) or self._new_member(rate.symbol)
            if member.rate is not rate:
                if as_of_s != shown_s:  # most records of a message have the same time
                    shown_s, updated_at_text = as_of_s, f"{as_of_s + wall_s:.3f}"
                text = render(rate, member.symbol_text, updated_at_text, member.interval_hours, member.more_text)
                member.rate, member.text = rate, text.encode()
            texts.append(member.text)
        return texts

    def _new_member(self, symbol: str) -> _Member:
        all_terms, interest_rates, listed, halted, settlements = self._annotations
        terms = all_terms.get(symbol, UNKNOWN_TERMS)
        marks = {
            "halted": symbol in halted,
            "unlisted": listed is not None and symbol not in listed,
            "fundingIntervalAssumed": terms.is_assumed,
        }
        is_set = [mark.name for mark in MARKS if marks[mark.name]]
        settled = settlements.get(symbol, _NOT_SETTLED)
        member = self._members[symbol] = _Member(symbol, terms, interest_rates.get(symbol), settled, is_set)
        return member


class Publisher:
    """Writes the state file. `progress_s` may be read from any thread."""

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        exchange_clock: ExchangeClock,
        file: StateFile,
        book: Book,
        annotations: Callable[[], Annotations],
        describe: Callable[[Moment], dict[str, Any]],
    ) -> None:
        """Write nothing yet. `describe` returns the members after the records; it is called in the writing thread."""
        self._clock = clock
        self._throttle = LogThrottle(EventLogger(__name__), clock.steady_s)
        self._file = file
        self._book = book
        self._annotations = annotations
        self._describe = describe
        self._heartbeat_s = settings.heartbeat_seconds
        self._renderer = Renderer(exchange_clock)
        self.progress_s = self._clock.steady_s()
        """Steady time at which the thread last finished a round, whether it could write or not."""

    def run(self, stop: threading.Event) -> None:
        """Write until `stop` is set; blocks. To end it at once, set `changed` of the book too."""
        written_news = 0
        while not stop.is_set():
            if self._book.changed.wait(self._heartbeat_s) and self._book.news - written_news < _MESSAGES_OF_A_TICK:
                self._book.changed.clear()
                self._book.changed.wait(_SECOND_MESSAGE_S)
            self._book.changed.clear()
            written_news = self._book.news
            self.write_or_log()
            self.progress_s = self._clock.steady_s()

    def write(self) -> None:
        """Write the file now. Raises OSError."""
        now = self._clock.now()
        header = {
            "version": VERSION,
            "updated_at": round(now.wall_s, 3),
            "daemon_pid": os.getpid(),
            # The same instant on the boot clock, which nobody can set: ages stay right even if the wall clock is set.
            "boot_id": self._clock.boot_id,
            "boottime": round(now.steady_s, 3),
        }
        records = self._renderer.render(self._book.rates(), now.wall_s - now.steady_s, self._annotations())
        self._file.write(records, declared(HEADER, header), self._describe(now))

    def write_or_log(self) -> None:
        """Write the file now; if it cannot be written, log why. For one thread at a time."""
        try:
            self.write()
        except OSError as error:
            words = (error.strerror or str(error)).lower()
            self._throttle.warn(_TROUBLE, words, logging.ERROR, file=self._file.path, next="tried at every change")
            return
        self._throttle.resolve(_TROUBLE, log_as="state file written again", level=logging.WARNING)
