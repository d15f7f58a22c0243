"""What the HTTP server says: the state file's content, how old it is, and whether it can be trusted.

Ages are told anew for every request, at most a tenth of a second late; everything else once per change of the file.
"""

import functools
import gzip
import hashlib
import json
import re
from collections.abc import Callable, Hashable, Mapping
from typing import Any
from urllib.parse import parse_qs

from . import __version__, metrics
from .clock import Clock, Moment
from .history import report
from .http_server import Request, Response, error_response
from .settings import Settings
from .state_file import StateReader, written_age_s

_JSON = ("Content-Type", "application/json; charset=utf-8")
_NO_STORE = ("Cache-Control", "no-store")
_RETRY_AFTER_S = 5
_TICKS_PER_S = 10
# Compression beyond this level costs more milliseconds than it saves on a local network.
_GZIP_LEVEL = 1
# A heartbeat may be late on a busy machine; three in a row are not.
_HEARTBEATS_MISSED, _HEARTBEAT_SLACK_S = 3, 2.0

# A symbol or two that left the market are stale until they are forgotten; a part of the market going stale is trouble.
_FEW_STALE = 0.01

_ENDPOINTS = {
    "/funding": "every symbol",
    "/funding/{symbol}": "one symbol, e.g. /funding/BTCUSDT",
    "/funding/batch?symbols=BTCUSDT,ETHUSDT": "several symbols",
    "/funding/health": "is the data fresh, and where does it come from",
    "/funding/report": "the last 24 hours: disconnections, data age, comparison with REST, gaps",
    "/metrics": "Prometheus text format",
}


_HEALTH_WITHOUT_FILE = {
    "status": "unhealthy",
    "websocketConnected": False,
    "connections": 0,
    "symbolCount": 0,
    "symbolsFromRest": None,
    "symbolsStale": None,
    "oldestDataAgeSeconds": None,
    "newestDataAgeSeconds": None,
    "daemonAlive": False,
    "fallbackActive": None,
    "lastConnectedTime": None,
    "messagesReceived": None,
    "reconnectAttempts": None,
    "uptimeSeconds": None,
}


class View:
    """One content of the state file, at one moment. Ages are seconds and never negative."""

    def __init__(self, state: Mapping[str, Any], settings: Settings, clock: Clock) -> None:
        self.state = state
        self.records: dict[str, dict[str, Any]] = state["funding_state"]
        self.status: dict[str, Any] = state["connection_status"]
        self.by_upper_case = {symbol.upper(): symbol for symbol in self.records}
        self._settings = settings
        self._clock = clock
        times = [record["updatedAt"] for record in self.records.values()]
        self.newest_update_s: float | None = max(times, default=None)
        self.oldest_update_s: float | None = min(times, default=None)
        self._update_times = times

    def written_age_s(self, now: Moment) -> float:
        """Return how long ago the file was written, by whichever clock says longer: a set clock cannot hide age."""
        by_wall_s: float = now.wall_s - self.state["updated_at"]
        return max(by_wall_s, written_age_s(self.state, now.wall_s, now.steady_s, self._clock.boot_id))

    def age_s(self, updated_at_s: float, now: Moment) -> float:
        """Return how old data of this time of update is."""
        written_at_s: float = self.state["updated_at"]
        return max(0.0, written_at_s - updated_at_s + self.written_age_s(now))

    def stale_count(self, now: Moment) -> int:
        """Return how many symbols are older than STALE_SECONDS."""
        oldest_fresh_s = self._oldest_fresh_s(now)
        return sum(time_s < oldest_fresh_s for time_s in self._update_times)

    def fresh_from_rest(self, now: Moment) -> int:
        """Return how many symbols live on REST."""
        oldest_fresh_s = self._oldest_fresh_s(now)
        return sum(r["source"] == "rest" and r["updatedAt"] >= oldest_fresh_s for r in self.records.values())

    def _oldest_fresh_s(self, now: Moment) -> float:
        oldest_fresh_s: float = self.state["updated_at"] + self.written_age_s(now) - self._settings.stale_seconds
        return oldest_fresh_s

    def is_stale(self, updated_at_s: float | None, now: Moment) -> bool:
        """Tell whether data of this time of update may no longer be served as if it were fresh."""
        return updated_at_s is None or self.age_s(updated_at_s, now) > self._settings.stale_seconds

    def daemon_alive(self, now: Moment) -> bool:
        """Tell whether the daemon still writes."""
        heartbeat_s = self._settings.heartbeat_seconds
        return self.written_age_s(now) <= max(_HEARTBEATS_MISSED * heartbeat_s, heartbeat_s + _HEARTBEAT_SLACK_S)

    def troubles(self) -> str:
        """Return what went wrong last with the stream and is wrong with REST, to be appended to its consequence."""
        troubles = {"stream": self.status.get("last_error"), "REST": self.status["rest"].get("trouble")}
        return "".join(f"; {source}: {trouble}" for source, trouble in troubles.items() if trouble)

    def number(self, name: str) -> Any:
        """Return a number of `connection_status`, None where it is not one."""
        value = self.status.get(name)
        return value if type(value) in (int, float) else None


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


class Answers:
    """Answers requests from the state file. For the one thread of the HTTP server."""

    def __init__(self, reader: StateReader, settings: Settings, clock: Clock) -> None:
        self._reader = reader
        self._settings = settings
        self._clock = clock
        self._view: View | None = None
        self._viewed_generation = -1
        self._list: tuple[int, _Body] | None = None
        self._metrics_body: _Body | None = None
        self._routes: dict[str, Callable[[Request, View, Moment], Response]] = {
            "/funding": self._all,
            "/funding/batch": self._batch,
            "/funding/report": self._report,
            "/metrics": self._metrics,
        }

    def epoch(self) -> Hashable:
        """Look whether the file has changed; as long as this is equal, so is every answer."""
        self._reader.refresh()
        return self._reader.generation, int(self._clock.steady_s() * _TICKS_PER_S)

    def __call__(self, request: Request) -> Response:
        """Answer one GET or HEAD request."""
        path = request.path.rstrip("/") or "/"
        if path == "/":
            return _json(200, {"name": "binance-funding", "version": __version__, "endpoints": _ENDPOINTS})
        view, now = self._current_view(), self._clock.now()
        if path == "/funding/health":
            return self._health(view, now)
        is_symbol = path.startswith("/funding/") and path.count("/") == 2
        if path not in self._routes and not is_symbol:
            return error_response(404, "no such path; / lists what there is")
        if view is None:
            return _unavailable({"error": f"no data: {self._reader.error}"})
        route = self._routes.get(path)
        return route(request, view, now) if route else self._symbol(path.removeprefix("/funding/"), view, now)

    def _current_view(self) -> View | None:
        if self._viewed_generation != self._reader.generation:
            self._viewed_generation = self._reader.generation
            state = self._reader.state
            self._view = None if state is None else View(state, self._settings, self._clock)
            self._list = self._metrics_body = None
        return self._view

    def _record(self, asked: str, view: View, now: Moment) -> dict[str, Any]:
        """Return one symbol's record with what is derived from it; with `error` where it is unknown or stale."""
        symbol = view.by_upper_case.get(asked.upper())
        if symbol is None:
            return {"symbol": asked.upper(), "error": "unknown symbol"}
        record = view.records[symbol]
        hours = record["fundingIntervalHours"]
        answer = {
            "symbol": symbol,
            **record,
            "ageSeconds": round(view.age_s(record["updatedAt"], now), 3),
            "annualizedFundingRate": round(record["fundingRate"] * 24 / hours * 365, 12),
        }
        if view.is_stale(record["updatedAt"], now):
            answer |= {"error": "stale data", "maxAgeSeconds": self._settings.stale_seconds}
        return answer

    def _symbol(self, asked: str, view: View, now: Moment) -> Response:
        record = self._record(asked, view, now)
        if "error" not in record:
            return _json(200, record)
        if not view.records:
            return _unavailable({**record, "error": "no data yet"})
        return _unavailable(record) if "fundingRate" in record else _json(404, record)

    def _batch(self, request: Request, view: View, now: Moment) -> Response:
        given = ",".join(parse_qs(request.query).get("symbols", []))
        asked = dict.fromkeys(symbol.strip().upper() for symbol in given.split(",") if symbol.strip())
        if not asked:
            return error_response(400, "name the symbols: /funding/batch?symbols=BTCUSDT,ETHUSDT")
        data = [self._record(symbol, view, now) for symbol in asked]
        missing = sum("error" in record for record in data)
        return _json(200, {"data": data, "found": len(data) - missing, "missing": missing, "total": len(data)})

    def _all(self, request: Request, view: View, now: Moment) -> Response:
        if view.newest_update_s is None or view.is_stale(view.newest_update_s, now):
            return _unavailable(
                {
                    "error": "stale data" if view.records else "no data yet",
                    "maxAgeSeconds": self._settings.stale_seconds,
                    **_listing(view),
                }
            )
        stale = view.stale_count(now)
        if self._list is None or self._list[0] != stale:
            self._list = stale, _Body(_dump(self._marked_listing(view, now)) if stale else self._listing_of_file(view))
        content, encoding = self._list[1].as_accepted(request)
        # Another encoding is another representation, so it has another strong tag.
        etag = f'"{self._list[1].tag}{"-gzip" if encoding else ""}"'
        headers = (("Vary", "Accept-Encoding"), ("Cache-Control", "max-age=1"), ("ETag", etag))
        if _matches(request.headers.get("if-none-match", ""), etag):
            return Response(304, b"", headers)
        return Response(200, content, (_JSON, *headers, *encoding))

    def _listing_of_file(self, view: View) -> bytes:
        """Return the listing, its records as they stand in the file where that is possible."""
        data = self._reader.records_json()
        if data is None:
            return _dump(_listing(view))
        return b"%b%b}\n" % (_dump({**_listing(view), "data": None}).removesuffix(b"null}\n"), data)

    def _marked_listing(self, view: View, now: Moment) -> dict[str, Any]:
        """Return the listing with every stale record marked as such: none may pass for a fresh one."""
        data = {
            symbol: {**record, "stale": True} if view.is_stale(record["updatedAt"], now) else record
            for symbol, record in view.records.items()
        }
        return {**_listing(view), "data": data}

    def _health(self, view: View | None, now: Moment) -> Response:
        if view is None:
            return _unavailable({**_HEALTH_WITHOUT_FILE, "error": self._reader.error})
        verdict, error = self._verdict(view, now)
        newest, oldest, start = view.newest_update_s, view.oldest_update_s, view.number("daemon_start_time")
        alive = view.daemon_alive(now)
        health = {
            "status": verdict,
            "websocketConnected": alive and view.status["connected"],
            "connections": (view.number("connections") or 0) if alive else 0,
            "symbolCount": len(view.records),
            "symbolsFromRest": view.fresh_from_rest(now),
            "symbolsStale": view.stale_count(now),
            "oldestDataAgeSeconds": None if oldest is None else round(view.age_s(oldest, now), 3),
            "newestDataAgeSeconds": None if newest is None else round(view.age_s(newest, now), 3),
            "daemonAlive": alive,
            "fallbackActive": view.status["fallback_active"],
            "lastConnectedTime": view.number("last_connected_time"),
            "messagesReceived": view.number("messages_received"),
            "reconnectAttempts": view.number("reconnect_attempts"),
            "uptimeSeconds": None if start is None or not alive else round(view.age_s(start, now), 3),
            "error": error,
        }
        return _unavailable(health) if verdict == "unhealthy" else _json(200, health, _NO_STORE)

    def _verdict(self, view: View, now: Moment) -> tuple[str, str | None]:
        """Return the health in one word, and what is wrong in one sentence."""
        if not view.daemon_alive(now):
            return "unhealthy", f"the daemon has not written for {view.written_age_s(now):.0f} s"
        newest = view.newest_update_s
        if newest is None:
            return "unhealthy", f"no data yet{view.troubles()}"
        if view.is_stale(newest, now):
            return "unhealthy", f"no new data for {view.age_s(newest, now):.0f} s{view.troubles()}"
        live, wanted = view.number("connections") or 0, view.number("connections_wanted")
        wanted = self._settings.stream_connections if wanted is None else wanted
        if not view.status["connected"]:
            source = "fresh through REST" if view.fresh_from_rest(now) else f"data {view.age_s(newest, now):.0f} s old"
            return "degraded", f"no stream connection, {source}{view.troubles()}"
        if live < wanted:
            return "degraded", f"{live} of {wanted} stream connections"
        if view.status["fallback_active"]:
            return "degraded", "the stream is stale, fresh through REST only"
        stale = view.stale_count(now)
        if stale > _FEW_STALE * len(view.records):
            return "degraded", f"{stale} of {len(view.records)} symbols are stale"
        return "healthy", None

    def _report(self, _request: Request, view: View, now: Moment) -> Response:
        since = view.newest_update_s if view.newest_update_s is not None else view.number("daemon_start_time")
        age_s = 0.0 if since is None else view.age_s(since, now)
        gaps, history = view.state["gaps"], view.state["history"]
        return _json(200, report(gaps, history, now.wall_s, age_s, self._settings.stale_seconds), _NO_STORE)

    def _metrics(self, request: Request, view: View, _now: Moment) -> Response:
        if self._metrics_body is None:
            self._metrics_body = _Body(metrics.render(view.state).encode())
        content, encoding = self._metrics_body.as_accepted(request)
        headers = (("Content-Type", metrics.CONTENT_TYPE), ("Vary", "Accept-Encoding"), _NO_STORE, *encoding)
        return Response(200, content, headers)


def _listing(view: View) -> dict[str, Any]:
    return {"updatedAt": view.newest_update_s, "count": len(view.records), "data": view.records}


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
