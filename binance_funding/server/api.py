"""What the HTTP server answers: the state file's content, how old it is, and whether it can be trusted.

Ages are computed anew for every request, at most a tenth of a second late; everything else once per change of the file.
"""

import functools
import gzip
import hashlib
import json
import re
from bisect import bisect_left
from collections.abc import Callable, Hashable, Mapping
from typing import Any
from urllib.parse import parse_qs

from .. import __version__
from ..clock import Clock, Moment
from ..schema import FEW, STATUS
from ..settings import Settings
from ..state_file import EMPTY, written_age_s
from . import metrics
from .http_message import Request, Response, error_response
from .report import report
from .state_reader import StateReader

_JSON = ("Content-Type", "application/json; charset=utf-8")
_NO_STORE = ("Cache-Control", "no-store")
_RETRY_AFTER_S = 5
_TICKS_PER_S = 10
# Compression beyond this level costs more milliseconds than it saves on a local network.
_GZIP_LEVEL = 1
# A heartbeat may be late on a busy machine; three in a row are not.
_HEARTBEATS_MISSED, _HEARTBEAT_SLACK_S = 3, 2.0
# A lag that is named; less is the way of the data.
_LAG_NAMED_S = 5.0
_UPPER_CASE = {code: code - 32 for code in range(ord("a"), ord("z") + 1)}

_ENDPOINTS = {
    "/funding": "every symbol",
    "/funding/{symbol}": "one symbol, e.g. /funding/BTCUSDT",
    "/funding/batch?symbols=BTCUSDT,ETHUSDT": "several symbols",
    "/funding/health": "is the data fresh, and where does it come from",
    "/funding/report": "the last 24 hours: disconnections, data age, comparison with REST, gaps",
    "/metrics": "Prometheus text format",
}
# What is answered where there is no usable file, too.
_WITHOUT_FILE = ("/", "/funding/health")


def _camel_case(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(map(str.capitalize, others))


_HEALTH_OF_STATUS = {_camel_case(one.name): one.name for one in STATUS if one.in_health}


def _upper(symbol: str) -> str:
    """Return the symbol in upper case. ASCII letters only: some of other alphabets would become S or K."""
    return symbol.translate(_UPPER_CASE)


class _Body:
    """A large body: compressed and named when first asked for."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    @functools.cached_property
    def _compressed(self) -> bytes:
        return gzip.compress(self._content, _GZIP_LEVEL, mtime=0)

    @functools.cached_property
    def tag(self) -> str:
        return hashlib.blake2b(self._content, digest_size=12).hexdigest()

    def as_accepted(self, request: Request) -> tuple[bytes, tuple[tuple[str, str], ...]]:
        """Return the body as the client accepts it, and the header that says so."""
        if _accepts_gzip(request.headers.get("accept-encoding", "")):
            return self._compressed, (("Content-Encoding", "gzip"),)
        return self._content, ()


class View:
    """One content of the state file, which can be looked at at any moment. Ages are seconds and never negative."""

    def __init__(self, state: Mapping[str, Any], settings: Settings, boot_id: str) -> None:
        self.state = state
        self.records: dict[str, dict[str, Any]] = state["funding_state"]
        self.status: dict[str, Any] = state["connection_status"]
        self.by_upper_case = {_upper(symbol): symbol for symbol in self.records}
        records = self.records.values()
        self._settings = settings
        self._boot_id = boot_id
        self._written_at_s: float = state["updated_at"]
        self._live: int = self.status["connections"] or 0
        self._wanted: int = self.status["connections_wanted"] or settings.stream_connections
        self.update_times = sorted([record["updatedAt"] for record in records])
        # What REST lists, less what the exchange itself has nothing newer for.
        self.market = sorted([r["updatedAt"] for r in records if "unlisted" not in r and "halted" not in r])
        self.newest_update_s: float | None = max(self.update_times, default=None)
        self.oldest_update_s: float | None = min(self.market, default=None)
        self.listing: tuple[int, _Body] | None = None
        """The list of all records, and how many of them it shows as stale."""

    @functools.cached_property
    def metrics(self) -> _Body:
        """The content as Prometheus reads it: no ages, so it is the same at any moment."""
        return _Body(metrics.render(self.state).encode())

    def written_age_s(self, now: Moment) -> float:
        """Return how long ago the file was written."""
        return written_age_s(self.state, now, self._boot_id)

    def age_s(self, time_s: float, now: Moment) -> float:
        """Return how long ago a time of the file was."""
        return max(0.0, self._written_at_s - time_s + self.written_age_s(now))

    def known_age_s(self, time_s: float | None, now: Moment) -> float | None:
        """Return the same to the millisecond, None for a time that is not known."""
        return None if time_s is None else round(self.age_s(time_s, now), 3)

    def oldest_fresh_s(self, now: Moment) -> float:
        """Return the time before which data are stale: they may no longer be served as if they were fresh."""
        return self._written_at_s + self.written_age_s(now) - self._settings.stale_seconds

    def stale(self, times_s: list[float], now: Moment) -> int:
        """Return how many of these sorted times are stale."""
        return bisect_left(times_s, self.oldest_fresh_s(now))

    def daemon_alive(self, now: Moment) -> bool:
        """Tell whether the daemon still writes."""
        heartbeat_s = self._settings.heartbeat_seconds
        return self.written_age_s(now) <= max(_HEARTBEATS_MISSED * heartbeat_s, heartbeat_s + _HEARTBEAT_SLACK_S)

    def verdict(self, now: Moment) -> tuple[str, str | None]:
        """Return the health in one word, and what is wrong in one sentence."""
        if not self.daemon_alive(now):
            return "unhealthy", f"the daemon has not written for {self.written_age_s(now):.0f} s"
        health, problem = self._market_verdict(now) or self._stream_verdict(now)
        clauses = [problem] if health == "healthy" else [problem, *self._troubles()]
        if health != "unhealthy" and self.status["clock_offset_seconds"] is None:
            clauses.append("ages are by arrival: Binance's time is not known")
        return health, "; ".join(filter(None, clauses)) or None

    def _market_verdict(self, now: Moment) -> tuple[str, str] | None:
        """Judge the age of the data; return None where that is as it should be."""
        market, stale = len(self.market), self.stale(self.market, now)
        if self.newest_update_s is None:
            return "unhealthy", "no data yet"
        if self.newest_update_s < self.oldest_fresh_s(now):
            return "unhealthy", f"no new data for {self.age_s(self.newest_update_s, now):.0f} s"
        if stale > FEW * market:
            health = "unhealthy" if stale >= market - FEW * market else "degraded"
            return health, f"{stale} of {market} symbols are stale"
        return None

    def _stream_verdict(self, now: Moment) -> tuple[str, str | None]:
        """Judge where the data comes from."""
        status, lag_s = self.status, self.status["stream_lag_seconds"] or 0.0
        if self._live and not status["fallback_active"]:
            short = f"{self._live} of {self._wanted} stream connections"
            return ("degraded", short) if self._live < self._wanted else ("healthy", None)
        missing = f"{status['symbols_behind'] or 0} of {len(self.market)}"
        what = f"{missing} symbols have nothing current from the stream" if self._live else "no stream connection"
        lag = f", the stream lags {lag_s:.0f} s behind Binance's clock" if lag_s > _LAG_NAMED_S else ""
        source = f"newest data {self.age_s(self.newest_update_s or 0.0, now):.0f} s old"
        if status["symbols_from_rest"] and not status["rest"]["trouble"]:
            source = "fresh through REST"
        return "degraded", f"{what}{lag}: {source}"

    def _troubles(self) -> list[str]:
        """Return what keeps the stream or REST from being as it should be."""
        stream = self.status["last_error"] if self._live < self._wanted else None
        rest = self.status["rest"]["trouble"]
        return [f"{source}: {trouble}" for source, trouble in (("stream", stream), ("REST", rest)) if trouble]


_Route = Callable[[Request, View, Moment], Response]


class Api:
    """Answers requests from the state file. For the one thread of the HTTP server."""

    def __init__(self, reader: StateReader, settings: Settings, clock: Clock) -> None:
        self._reader = reader
        self._settings = settings
        self._clock = clock
        self._view = View(EMPTY, settings, clock.boot_id)
        self._viewed_version = 0
        self._routes: dict[str, _Route] = {
            "/": lambda *_: _json(200, {"name": "binance-funding", "version": __version__, "endpoints": _ENDPOINTS}),
            "/funding": self._all,
            "/funding/batch": self._batch,
            "/funding/health": self._health,
            "/funding/report": self._report,
            "/metrics": self._metrics,
        }

    def version(self) -> Hashable:
        """Look whether the file has changed; as long as this is equal, so is every answer."""
        self._reader.refresh()
        return self._reader.version, int(self._clock.steady_s() * _TICKS_PER_S)

    def __call__(self, request: Request) -> Response:
        """Answer one GET or HEAD request."""
        path = request.path.rstrip("/") or "/"
        is_symbol = path.startswith("/funding/") and path.count("/") == 2
        route = self._routes.get(path, self._symbol if is_symbol else None)
        if route is None:
            return error_response(404, "no such path; / lists what there is")
        view = self._current_view()
        if self._reader.state is None and path not in _WITHOUT_FILE:
            return _unavailable({"error": f"no data: {self._reader.error}"})
        return route(request, view, self._clock.now())

    def _current_view(self) -> View:
        if self._viewed_version != self._reader.version:
            self._viewed_version = self._reader.version
            self._view = View(self._reader.state or EMPTY, self._settings, self._clock.boot_id)
        return self._view

    def _record(self, asked: str, view: View, now: Moment) -> dict[str, Any]:
        """Return one symbol's record with what is derived from it; with `error` where it is unknown or stale."""
        symbol = view.by_upper_case.get(_upper(asked))
        if symbol is None:
            return {"symbol": _upper(asked), "error": "unknown symbol" if view.records else "no data yet"}
        record = view.records[symbol]
        answer = {
            "symbol": symbol,
            **record,
            "ageSeconds": view.known_age_s(record["updatedAt"], now),
            "annualizedFundingRate": round(record["fundingRate"] * 24 / record["fundingIntervalHours"] * 365, 12),
        }
        if record["updatedAt"] < view.oldest_fresh_s(now):
            answer |= {"stale": True, "error": "stale data", "maxAgeSeconds": self._settings.stale_seconds}
        return answer

    def _symbol(self, request: Request, view: View, now: Moment) -> Response:
        record = self._record(request.path.rstrip("/").removeprefix("/funding/"), view, now)
        if "error" not in record:
            return _json(200, record)
        return _json(404, record) if record["error"] == "unknown symbol" else _unavailable(record)

    def _batch(self, request: Request, view: View, now: Moment) -> Response:
        given = ",".join(parse_qs(request.query).get("symbols", []))
        asked = dict.fromkeys(_upper(symbol.strip()) for symbol in given.split(",") if symbol.strip())
        if not asked:
            return error_response(400, "missing parameter 'symbols', e.g. /funding/batch?symbols=BTCUSDT,ETHUSDT")
        data = [self._record(symbol, view, now) for symbol in asked]
        missing = sum("error" in record for record in data)
        return _json(200, {"data": data, "found": len(data) - missing, "missing": missing, "total": len(data)})

    def _all(self, request: Request, view: View, now: Moment) -> Response:
        stale = view.stale(view.update_times, now)
        if stale == len(view.records):
            error = "stale data" if view.records else "no data yet"
            return _unavailable({"error": error, "maxAgeSeconds": self._settings.stale_seconds, **_listing(view, now)})
        if view.listing is None or view.listing[0] != stale:
            view.listing = stale, _Body(_dump(_listing(view, now)))
        body = view.listing[1]
        content, encoding = body.as_accepted(request)
        # Another encoding is another representation, so it has another strong tag.
        etag = f'"{body.tag}{"-gzip" if encoding else ""}"'
        headers = (("Vary", "Accept-Encoding"), ("Cache-Control", "max-age=1"), ("ETag", etag))
        if _matches(request.headers.get("if-none-match", ""), etag):
            return Response(304, b"", headers)
        return Response(200, content, (_JSON, *headers, *encoding))

    def _health(self, _request: Request, view: View, now: Moment) -> Response:
        (health, problem), alive = view.verdict(now), view.daemon_alive(now)
        content = {
            "status": health,
            "websocketConnected": alive and view.status["connected"],
            "connections": (view.status["connections"] or 0) if alive else 0,
            "symbolCount": len(view.records),
            "symbolsStale": view.stale(view.market, now),
            "oldestDataAgeSeconds": view.known_age_s(view.oldest_update_s, now),
            "newestDataAgeSeconds": view.known_age_s(view.newest_update_s, now),
            "daemonAlive": alive,
            **{name: view.status[key] for name, key in _HEALTH_OF_STATUS.items()},
            "uptimeSeconds": view.known_age_s(view.status["daemon_start_time"], now) if alive else None,
            "error": self._reader.error or problem,
        }
        return _unavailable(content) if health == "unhealthy" else _json(200, content, _NO_STORE)

    def _report(self, _request: Request, view: View, now: Moment) -> Response:
        start_s = view.status["daemon_start_time"] or view.state["updated_at"]
        served_s = view.status["market_served_time"] or view.newest_update_s or start_s
        content = report(
            view.state["gaps"],
            view.state["history"],
            now.wall_s,
            oldest_age_s=view.age_s(view.oldest_update_s or start_s, now),
            market_age_s=view.age_s(served_s, now),
            stale_s=self._settings.stale_seconds,
        )
        return _json(200, content, _NO_STORE)

    def _metrics(self, request: Request, view: View, _now: Moment) -> Response:
        content, encoding = view.metrics.as_accepted(request)
        headers = (("Content-Type", metrics.CONTENT_TYPE), ("Vary", "Accept-Encoding"), _NO_STORE, *encoding)
        return Response(200, content, headers)


def _listing(view: View, now: Moment) -> dict[str, Any]:
    """Return all records, the stale ones marked as such: none may pass for a fresh one."""
    oldest_fresh_s = view.oldest_fresh_s(now)
    data = {
        symbol: {**record, "stale": True} if record["updatedAt"] < oldest_fresh_s else record
        for symbol, record in view.records.items()
    }
    return {"updatedAt": view.newest_update_s, "count": len(data), "data": data}


def _dump(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def _json(status: int, content: Mapping[str, Any], *headers: tuple[str, str]) -> Response:
    return Response(status, _dump(content), (_JSON, *headers))


def _unavailable(content: Mapping[str, Any]) -> Response:
    return _json(503, content, _NO_STORE, ("Retry-After", str(_RETRY_AFTER_S)))


def _accepts_gzip(accept_encoding: str) -> bool:
    """Read Accept-Encoding. Source: RFC 9110, section 12.5.3."""
    weights: dict[str, float] = {}
    for item in accept_encoding.lower().split(","):
        coding, _, weight = item.partition(";")
        quality = re.fullmatch(r"\s*q=([01](?:\.[0-9]{0,3})?)\s*", weight)
        weights[coding.strip()] = float(quality[1]) if quality else 1.0
    return weights.get("gzip", weights.get("x-gzip", weights.get("*", 0.0))) > 0


def _matches(if_none_match: str, etag: str) -> bool:
    """Compare weakly, as a GET must. Source: RFC 9110, section 13.1.2."""
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return etag in tags or tags == ["*"]
