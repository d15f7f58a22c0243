"""REST with rate-limit manners: one thread ("rest"), never in the stream's way.

Facts of the exchange, as of November 2026:
- GET /fapi/v1/premiumIndex without symbol: all symbols, weight 10 of 2400 per minute. [1]
- GET /fapi/v1/time: weight 1. [2]
- GET /fapi/v1/fundingInfo: symbols whose interval was ever adjusted (others have 8 h), at most 500 per 5 min. [3]
- Refused requests cost weight too, and asking too early lengthens a ban; see refusals.py.
[1] https://developers.binance.com/docs/derivatives/usds-margined-futures/market-data/rest-api/Mark-Price
[2] https://developers.binance.com/docs/derivatives/usds-margined-futures/market-data/rest-api/Check-Server-Time
[3] https://developers.binance.com/docs/derivatives/usds-margined-futures/market-data/rest-api/Get-Funding-Rate-Info
"""

import contextlib
import http.client
import math
import socket
import ssl
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from ... import __version__
from ...clock import Clock, Deadline, Moment
from ...log import EventLogger
from ..context import Context
from ..market.feed import Feed
from ..record import REST, FundingRate
from . import rates, refusals, transport

_log = EventLogger(__name__)

PREMIUM_INDEX, TIME, _FUNDING_INFO = "/fapi/v1/premiumIndex", "/fapi/v1/time", "/fapi/v1/fundingInfo"
_INTERVALS_KEPT_S = 3600.0
# Each of them is asked for with a snapshot, once a minute at most, and may not hold up the next one.
_RETRY_S, _BESIDE_WITHIN_S = 55.0, 5.0
# An answer that lacks more of the symbols whose interval was known is a fault.
_MOST_UNLISTED = 0.1
# Eighty times the answer of today's market.
_LARGEST_ANSWER_BYTES = 16 * 1024 * 1024
_AGENT = f"binance-funding/{__version__}"
# Where Binance refuses without saying for how long (firewall, country), the wait doubles up to this.
_LONGEST_WAIT_WITHOUT_RETRY_AFTER_S = 300.0
_WITHOUT_RETRY_AFTER = ("403", "451")
# A snapshot is asked for before it is due, since it is its answer that should come that often. With 10 s that makes at
# most 7 snapshots, a weight of 70, in a minute; one more where the stream ends just after one.
_FALLBACK_SHARE = 0.86
_SHORTEST_STEP_S, _LONGEST_STEP_S = 0.05, 1.0
_LONGEST_WORDS = 300
_REFUSED, _FAILED = "REST refused", "REST failed"
_KNOWN_STATUSES = ("403", "418", "429", "451", "connection", "malformed", "old", "timeout")


class RestError(Exception):
    """A request brought no usable answer: `status` is HTTP's or a word, `wait_s` for how long Binance said to wait."""

    def __init__(self, words: str, status: str, wait_s: float = 0.0) -> None:
        super().__init__(words[:_LONGEST_WORDS])
        self.status = status
        self.wait_s = wait_s


class BrokenOff(Exception):
    """The request was ended by `break_off`: no failure, but the end."""


@dataclass
class RestClient:
    """Asks Binance over one kept connection. For one thread; `break_off` from any."""

    base_url: str
    timeout_s: float
    clock: Clock
    largest_answer_bytes: int = _LARGEST_ANSWER_BYTES
    connect: transport.Connect = transport.connect
    used_weight: str = field(default="", init=False)
    """What this IP has used of its weight in this minute, as the last answer said; "" where none has."""

    def __post_init__(self) -> None:
        self._socket: socket.socket | None = None
        self._stopped = False

    def get(self, path: str, within_s: float = math.inf) -> bytes:
        """Return the body of a successful answer; blocks for the timeout at most. Raises RestError or BrokenOff.

        No redirect is followed. A kept connection that turns out to be closed is replaced by a new one, once.
        """
        deadline = Deadline(min(self.timeout_s, within_s), self.clock.steady_s)
        is_kept = self._socket is not None
        try:
            try:
                answer, body = self._ask(path, deadline)
            except (ConnectionError, ssl.SSLError):
                if not is_kept:
                    raise
                answer, body = self._ask(path, deadline)
        except (OSError, http.client.HTTPException, ValueError, zlib.error) as error:
            self._check_running()
            raise _failure(error) from error
        self.used_weight = answer.headers.get("x-mbx-used-weight-1m", self.used_weight)
        if answer.status != 200:
            text = body.decode("utf-8", "replace")
            refusal = refusals.explain(answer.status, dict(answer.headers), text, self.clock.wall_s())
            raise RestError(refusal.words, str(answer.status), refusal.wait_s)
        if len(body) > self.largest_answer_bytes:
            raise RestError(f"answer of more than {self.largest_answer_bytes >> 20} MiB", "malformed")
        return body

    def _ask(self, path: str, deadline: Deadline) -> tuple[http.client.HTTPResponse, bytes]:
        """Ask over the kept connection, or a new one; it is kept when the whole answer has come."""
        is_whole = False
        self._check_running()
        try:
            sock = self._socket = self._socket or self.connect(self.base_url, deadline)
            transport.limit(sock, deadline)
            sock.sendall(self._request(path))
            with transport.read_head(sock, "GET", deadline) as answer:
                body = _read(answer, self.largest_answer_bytes)
            self._check_running()  # what was broken off may look like an end
            is_whole = len(body) <= self.largest_answer_bytes and not answer.will_close
        finally:
            if not is_whole:
                self.close()
        return answer, body

    def _check_running(self) -> None:
        if self._stopped:
            raise BrokenOff

    def _request(self, path: str) -> bytes:
        url = urlsplit(self.base_url + path)
        lines = f"GET {url.path} HTTP/1.1", f"Host: {url.netloc}", f"User-Agent: {_AGENT}", "Accept-Encoding: gzip"
        return "\r\n".join([*lines, "", ""]).encode()

    def break_off(self) -> None:
        """End the request under way, and every later one: they raise BrokenOff."""
        self._stopped = True
        transport.shut_down(self._socket)

    def close(self) -> None:
        """Close the kept connection."""
        sock, self._socket = self._socket, None
        if sock is not None:
            sock.close()


def _read(answer: http.client.HTTPResponse, most_bytes: int) -> bytes:
    """Read and unpack the body, or as much of it as shows that it is longer than this."""
    body = answer.read(most_bytes + 1)
    if answer.length and len(body) <= most_bytes:
        raise http.client.IncompleteRead(body, answer.length)
    if len(body) > most_bytes or answer.headers.get("Content-Encoding", "").lower() != "gzip":
        return body
    return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(body, most_bytes + 1)  # the 16: with a gzip header


def _failure(error: Exception) -> RestError:
    """Say in a few words, and by kind, why a request failed."""
    if isinstance(error, transport.NoConnection):
        return RestError(f"no connection: {error}", "timeout" if error.is_timeout else "connection")
    if isinstance(error, TimeoutError):
        return RestError("no answer in time", "timeout")
    if isinstance(error, OSError):
        return RestError(f"no connection: {transport.explain(error)}", "connection")
    if isinstance(error, http.client.IncompleteRead):
        return RestError("no connection: it ended amid the answer", "connection")
    return RestError(f"answer not understood: {error}", "malformed")


@dataclass
class RestPoller:
    """Polls when it is due, merges into the book, compares. Reading its fields is safe from any thread."""

    context: Context
    client: RestClient
    feed: Feed
    live_connections: Callable[[], int]
    polls: int = 0
    errors: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(_KNOWN_STATUSES, 0)))
    """Failed polls by HTTP status or kind of failure; the usual ones from the start, so that the first shows."""
    last_success_wall_s: float | None = None
    last_error: str | None = None
    trouble: str | None = None
    """What keeps snapshots from coming now."""
    fallback_active: bool = False
    interval_hours: Mapping[str, int] = field(default_factory=dict)
    """Funding interval by symbol where Binance lists it; replaced as a whole."""
    interval_known: frozenset[str] = frozenset()
    """The symbols there were when Binance last listed them: one that is not listed has 8 h. Replaced as a whole."""

    def __post_init__(self) -> None:
        self._clock, self._settings, self._throttle = self.context.clock, self.context.settings, self.context.throttle
        self._freshness, self._book = self.feed.freshness, self.feed.freshness.book
        self._was_live = False
        self._took_s = 0.0
        self._refused_in_a_row = 0
        self._asked_s = self._counted_from_s = self._paused_until_s = self._intervals_learned_s = -math.inf
        self._asked_beside_s: dict[str, float] = {}
        self.progress_s = self._clock.steady_s()
        """Steady time at which the thread last went round; a request that hangs keeps it standing."""

    def restore(self, pause_s: float, interval_hours: Mapping[str, int], interval_known: frozenset[str]) -> None:
        """Go on from what an earlier daemon knew: a ban outlives it, and so do the funding intervals."""
        self.interval_hours, self.interval_known = interval_hours, interval_known
        self._paused_until_s = self._clock.steady_s() + pause_s

    def run(self, stop: threading.Event) -> None:
        """Poll until `stop` is set; blocks, for a request under way until `abort`."""
        with contextlib.suppress(BrokenOff):
            while not stop.wait(self.step()):
                pass
        self.client.close()

    def abort(self) -> None:
        """Break off the request under way, for the end. From any thread."""
        self.client.break_off()

    def step(self) -> float:
        """Poll if it is due; return the seconds to the next step. For the polling thread; blocks for the requests."""
        self.progress_s = self._clock.steady_s()
        self._update_fallback()
        wait_s = self._due_s() - self.progress_s
        if wait_s > 0:
            self._update_time()
            return min(wait_s, _LONGEST_STEP_S, max(_SHORTEST_STEP_S, self._until_fallback_s()))
        is_usable = self._poll()
        self._update_time()
        if is_usable:
            self._update_intervals()
        return 0.0

    def status(self) -> dict[str, Any]:
        """Return `connection_status.rest`, ready for the state file."""
        now = self._clock.now()
        return {
            "polls": self.polls,
            "errors": sum(self.errors.values()),
            "errors_by_status": dict(self.errors),
            "last_success_time": self.last_success_wall_s,
            "paused_until": now.wall_at(self._paused_until_s) if self._paused_until_s > now.steady_s else None,
            "last_error": self.last_error,
            "trouble": self.trouble,
        }

    def _due_s(self) -> float:
        due_s, fallback_s = self._asked_s + self._settings.rest_poll_seconds, self._settings.rest_fallback_seconds
        if self.fallback_active or not self._freshness.latest.symbols:
            due_s = min(due_s + fallback_s, self._counted_from_s + _FALLBACK_SHARE * fallback_s)
        return max(due_s, self._paused_until_s)

    def _until_fallback_s(self) -> float:
        """Return the seconds until the stream's silence would turn fallback on, infinite where it is on."""
        return math.inf if self.fallback_active else self.context.current_s - self._freshness.stream_age_s()

    def _update_fallback(self) -> None:
        """Decide whether the stream brings the market; if not, REST stands in."""
        live, age_s, limit_s = self.live_connections(), self._freshness.stream_age_s(), self.context.current_s
        # Where it has come within half the limit it is back; in between, what was decided stays.
        active = age_s > (limit_s / 2 if self.fallback_active else limit_s) or (self._was_live and not live)
        self._was_live = self._was_live or live > 0
        self._book.stream_is_live = live > 0 and age_s <= limit_s / 2
        if active == self.fallback_active:
            return
        self.fallback_active, latest = active, self._freshness.latest
        if active:
            # Asked for any earlier, a snapshot might bring nothing newer than the stream had.
            self._counted_from_s = latest.served_s - self._took_s
            self._throttle.warn("fallback on", stream_age_s=age_s, live=live, behind=latest.behind, of=latest.listed)
        else:
            self._throttle.resolve("fallback on", log_as="fallback off", live=live)

    def _poll(self) -> bool:
        """Ask for one snapshot, compare and merge it; return whether it could be used."""
        self._asked_s = self._counted_from_s = self._clock.steady_s()
        self.polls += 1
        try:
            body = self.client.get(PREMIUM_INDEX)
            received = self._clock.now()
            self._took_s = received.steady_s - self._asked_s
            decoded = self.feed.admit(rates.decode_premium_index(body, received.steady_s), REST, received.steady_s)
            if not decoded.rates:
                raise rates.MalformedMessage(decoded.first_fault)
        except (RestError, rates.MalformedMessage) as error:
            self._note_error(error)
            return False
        self._compare(decoded.rates, received)
        self._freshness.merge(decoded.rates)
        age_s = self._book.note_snapshot(decoded.rates, received.steady_s)
        if age_s > self.context.current_s:
            self._note_error(RestError(f"the rows of the snapshot are {age_s:.0f} s old", "old"))
            return False
        # After the merge: a gap that it ends is logged with the trouble there was.
        self.last_success_wall_s, self.trouble, self._refused_in_a_row = round(received.wall_s, 3), None, 0
        self._throttle.resolve(_REFUSED, _FAILED, log_as="REST recovered")
        return True

    def _compare(self, snapshot: Sequence[FundingRate], received: Moment) -> None:
        oldest_s = received.steady_s - self._settings.stale_seconds
        stream = {symbol: rate for symbol, rate in self._book.stream_rates().items() if rate.received_s >= oldest_s}
        result = self.context.comparison.run(stream, snapshot, received.wall_s)
        counted = {name: result[name] for name in ("compared", "mismatched")}
        self.context.last_day.count(received.wall_s, runs=1, **counted)

    def _note_error(self, error: RestError | rates.MalformedMessage) -> None:
        status = error.status if isinstance(error, RestError) else "malformed"
        self._heed(error)
        if status in _WITHOUT_RETRY_AFTER and self._paused_until_s <= self._clock.steady_s():
            wait_s = self._settings.rest_fallback_seconds * 2.0 ** min(self._refused_in_a_row, 20)
            self._paused_until_s = self._clock.steady_s() + min(wait_s, _LONGEST_WAIT_WITHOUT_RETRY_AFTER_S)
            self._refused_in_a_row += 1
        self.errors[status] += 1
        self.last_error = self.trouble = str(error)
        event = _REFUSED if status.isdigit() else _FAILED
        self._throttle.warn(event, str(error), next_in_s=round(max(0.0, self._due_s() - self._clock.steady_s()), 1))

    def _heed(self, error: RestError | rates.MalformedMessage) -> None:
        """Wait for as long as Binance asked, whichever request it refused."""
        if isinstance(error, RestError) and error.wait_s:
            self._paused_until_s = self._clock.steady_s() + error.wait_s

    def _ask_beside(self, path: str, learn: Callable[[bytes], None]) -> None:
        """Ask for something else with a snapshot, once a minute at most.

        It gets no more time than there is until the next one may be due, be it because the stream ends.
        """
        now_s = self._clock.steady_s()
        spare_s = min(self._due_s() - now_s, self._until_fallback_s())
        is_too_soon = path != TIME and now_s < self._asked_beside_s.get(path, -math.inf) + _RETRY_S
        if spare_s <= 0 or self._paused_until_s > now_s or is_too_soon:
            return
        self._asked_beside_s[path] = now_s
        if path == TIME:
            self.context.exchange_clock.note_asked(now_s)
        trouble = "time of Binance not learned" if path == TIME else "funding intervals unknown"
        over = "time of Binance learned again" if path == TIME else "funding intervals known again"
        try:
            learn(self.client.get(path, min(_BESIDE_WITHIN_S, spare_s)))
        except (RestError, rates.MalformedMessage) as error:
            self._heed(error)
            self._throttle.warn(trouble, str(error), next="asked again")
        else:
            self._throttle.resolve(trouble, log_as=over)

    def _update_time(self) -> None:
        """Ask for Binance's time if that is due."""
        if self._clock.steady_s() >= self.context.exchange_clock.ask_due_s:
            self._ask_beside(TIME, self._learn_time)

    def _learn_time(self, body: bytes) -> None:
        asked_s, answered_s = self._asked_beside_s[TIME], self._clock.steady_s()
        self.context.exchange_clock.note_answer(rates.decode_server_time(body), asked_s, answered_s)

    def _update_intervals(self) -> None:
        """Refresh the funding intervals hourly, and where a symbol is new.

        On failure the last known ones stay in force, and so does that of a symbol that an answer no longer lists.
        """
        is_old = self._clock.steady_s() - self._intervals_learned_s >= _INTERVALS_KEPT_S
        if is_old or not self._symbols() <= self.interval_known:
            self._ask_beside(_FUNDING_INFO, self._learn_intervals)

    def _learn_intervals(self, body: bytes) -> None:
        listed, symbols = rates.decode_funding_info(body), self._symbols()
        known = {symbol: hours for symbol, hours in self.interval_hours.items() if symbol in symbols}
        lost = known.keys() - listed.keys()
        if len(lost) > _MOST_UNLISTED * len(known):
            raise rates.MalformedMessage(f"{len(lost)} of {len(known)} known symbols are missing")
        self.interval_hours, self.interval_known = {**known, **listed}, symbols
        self._intervals_learned_s = self._clock.steady_s()

    def _symbols(self) -> frozenset[str]:
        return frozenset(rate.symbol for rate in self._book.rates())
