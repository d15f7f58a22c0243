"""What the HTTP server answers, from what the state file holds.

Ages are computed anew for every request, at most a tenth of a second late; everything else once per change of the file.
"""

import functools
import gzip
import hashlib
import re
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

from .. import __version__, process
from ..clock import Clock, Moment
from ..schema import STATUS
from ..settings import Settings
from ..state_file import EMPTY
from . import metrics, page
from .http.message import Request, Response, error_response
from .http.meter import OTHER, Meter
from .listing import Listing, dump
from .parameters import InvalidParameter, Parameters, read_parameters
from .push import Push
from .report import report
from .state_reader import StateReader
from .view import View, upper

_JSON = ("Content-Type", "application/json; charset=utf-8")
_NO_STORE = ("Cache-Control", "no-store")
# A proxy in front carries the load of many clients: it asks once a second.
_CACHEABLE = ("Cache-Control", "max-age=1")
_VARY_ENCODING = ("Vary", "Accept-Encoding")
# nginx would collect events before it passes them on; this tells it not to.
_EVENT_STREAM = (("Content-Type", "text/event-stream; charset=utf-8"), _NO_STORE, ("X-Accel-Buffering", "no"))
_RETRY_AFTER_S = 5
_TICKS_PER_S = 10
# Compression beyond this level costs more milliseconds than it saves on a local network.
_GZIP_LEVEL = 1

_SYMBOL = "/funding/{symbol}"
_ENDPOINTS = {
    "/funding": "every symbol",
    _SYMBOL: "one symbol, e.g. /funding/BTCUSDT",
    "/funding/batch?symbols=BTCUSDT,ETHUSDT": "several symbols",
    "/funding/batch?sort=-annualizedFundingRate&limit=20": "those that pay most",
    "/funding/stream?symbols=BTCUSDT,ETHUSDT": "several symbols or all, pushed when they change (server-sent events)",
    "/funding/health": "is the data fresh, and where does it come from",
    "/funding/report": "the last 24 hours: disconnections, data age, comparison with REST, gaps",
    "/metrics": "Prometheus text format",
}
_PARAMETERS = {"/funding/batch": ("symbols", "sort", "limit"), "/funding/stream": ("symbols",)}
# What is answered where there is no usable file, too.
_WITHOUT_FILE = ("/", "/funding/batch", "/funding/health", "/funding/stream")


def _camel_case(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(map(str.capitalize, others))


_HEALTH_OF_STATUS = {_camel_case(one.name): one.name for one in STATUS if one.in_health}


class _Body:
    """A large body: compressed and named when first asked for."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    @functools.cached_property
    def _compressed(self) -> bytes:
        return gzip.compress(self.content, _GZIP_LEVEL, mtime=0)

    @functools.cached_property
    def tag(self) -> str:
        return hashlib.blake2b(self.content, digest_size=12).hexdigest()

    def as_accepted(self, request: Request) -> tuple[bytes, tuple[tuple[str, str], ...]]:
        """Return the body as the client accepts it, and the header that says so."""
        if _accepts(request.headers.get("accept-encoding", ""), "gzip", "x-gzip", "*"):
            return self._compressed, (("Content-Encoding", "gzip"),)
        return self.content, ()


_PAGE = _Body(page.CONTENT)


class _Call(NamedTuple):
    """A request, what it asks for, and what is known at this moment."""

    request: Request
    asked: Parameters
    view: View
    now: Moment


_Route = Callable[[_Call], Response]


class Api:
    """Answers requests from the state file. For the one thread of the HTTP server."""

    def __init__(self, reader: StateReader, settings: Settings, clock: Clock) -> None:
        self._reader = reader
        self._settings = settings
        self._clock = clock
        self._view = View(EMPTY, settings, clock.boot_id)
        self._viewed_version = 0
        self._listing = Listing()
        self._push = Push(self._listing, self._refresh_push, clock.steady_s)
        self._pushed_version: Hashable = None
        self._bodies: dict[str, tuple[int, _Body]] = {}
        self._routes: dict[str, _Route] = {
            "/": self._root,
            "/funding": self._all,
            "/funding/batch": self._batch,
            "/funding/stream": self._stream,
            "/funding/health": self._health,
            "/funding/report": self._report,
            "/metrics": self._metrics,
            _SYMBOL: self._symbol,
        }
        self.meter = Meter(self._route_of)
        """What the server counts, for /metrics."""

    def version(self) -> Hashable:
        """Look whether the file has changed; as long as this is equal, so is every answer."""
        self._reader.refresh()
        return self._version()

    def _version(self) -> Hashable:
        return self._reader.version, int(self._clock.steady_s() * _TICKS_PER_S)

    def __call__(self, request: Request) -> Response:
        """Answer one GET or HEAD request."""
        name = self._route_of(request)
        route = self._routes.get(name)
        if route is None:
            return error_response(404, "no such path; / lists what there is")
        try:
            asked = read_parameters(request.query, _PARAMETERS.get(name, ()))
            if self._reader.state is None and name not in _WITHOUT_FILE:
                return _unavailable({"error": f"no data yet: {self._reader.error}"})
            return route(_Call(request, asked, self._current_view(), self._clock.now()))
        except InvalidParameter as error:
            return error_response(400, str(error))

    def _route_of(self, request: Request) -> str:
        path = request.path.rstrip("/") or "/"
        is_symbol = path.startswith("/funding/") and path.count("/") == 2
        return path if path in self._routes else _SYMBOL if is_symbol else OTHER

    def _current_view(self) -> View:
        if self._viewed_version != self._reader.version:
            self._viewed_version = self._reader.version
            self._view = View(self._reader.state or EMPTY, self._settings, self._clock.boot_id)
        return self._view

    def _root(self, call: _Call) -> Response:
        if _accepts(call.request.headers.get("accept", ""), "text/html"):
            return _conditional(call.request, _PAGE, page.HEADERS)
        return _json(200, {"name": "binance-funding", "version": __version__, "endpoints": _ENDPOINTS}, page.VARY)

    def _record(self, asked: str, view: View, now: Moment) -> dict[str, Any]:
        """Return one symbol's record with its age; with `error` where it is unknown or stale."""
        symbol = view.by_upper_case.get(upper(asked))
        if symbol is None:
            return {"symbol": upper(asked), "error": "unknown symbol" if view.records else "no data yet"}
        record = view.records[symbol]
        answer = {**record, "ageSeconds": view.known_age_s(record["updatedAt"], now)}
        if record["updatedAt"] < view.oldest_fresh_s(now):
            answer |= {"stale": True, "error": "stale data", "maxAgeSeconds": self._settings.stale_seconds}
        return answer

    def _symbol(self, call: _Call) -> Response:
        record = self._record(call.request.path.rstrip("/").removeprefix("/funding/"), call.view, call.now)
        if "error" not in record:
            return _json(200, record, _CACHEABLE)
        return _json(404, record, _CACHEABLE) if record["error"] == "unknown symbol" else _unavailable(record)

    def _batch(self, call: _Call) -> Response:
        named, sort, limit = call.asked
        if named is None and not sort:
            raise InvalidParameter("'symbols' or 'sort' is missing, e.g. /funding/batch?symbols=BTCUSDT,ETHUSDT")
        data = [self._record(symbol, call.view, call.now) for symbol in named or call.view.records]
        fresh, others = [r for r in data if "error" not in r], [r for r in data if "error" in r]
        stale = sum("stale" in record for record in others)
        if sort:
            # What is stale or missing is behind, whatever its value: who takes the first one trades on it.
            data = sorted(fresh, key=lambda one: one[sort.removeprefix("-")], reverse=sort.startswith("-")) + others
        counts = {"found": len(fresh), "missing": len(others) - stale, "stale": stale, "total": len(data)}
        error = self._reader.error or ("nothing asked for is fresh" if call.view.records else "no data yet")
        content = {"data": data[:limit], **counts}
        return _json(200, content, _CACHEABLE) if fresh else _unavailable({"error": error, **content})

    def _all(self, call: _Call) -> Response:
        view = call.view
        self._listing.refresh(view, call.now)
        if view.stale(view.update_times, call.now) == len(view.records):
            error = "stale data" if view.records else "no data yet"
            head = _dump({"error": error, "maxAgeSeconds": self._settings.stale_seconds}).removesuffix(b"}\n") + b","
            return _unavailable(head + self._listing.body().removeprefix(b"{") + b"\n")
        body = self._body("/funding", self._listing.edition, lambda: self._listing.body() + b"\n")
        return _conditional(call.request, body, (_JSON, _CACHEABLE, _VARY_ENCODING))

    def _body(self, path: str, version: int, make: Callable[[], bytes]) -> _Body:
        """Return a large body, made once for each version of what it holds."""
        if path not in self._bodies or self._bodies[path][0] != version:
            self._bodies[path] = version, _Body(make())
        return self._bodies[path][1]

    def _stream(self, call: _Call) -> Response:
        named = call.asked.symbols
        return Response(200, b"", _EVENT_STREAM, self._push.follow(frozenset(named) if named else None))

    def _refresh_push(self) -> None:
        if self._pushed_version != self._version():
            self._pushed_version = self._version()
            view, now = self._current_view(), self._clock.now()
            self._listing.refresh(view, now)
            self._push.update(view.state["updated_at"], self._health_content(view, now))

    def _health(self, call: _Call) -> Response:
        content = self._health_content(call.view, call.now)
        return _unavailable(content) if content["status"] == "unhealthy" else _json(200, content, _NO_STORE)

    def _health_content(self, view: View, now: Moment) -> dict[str, Any]:
        (health, problem), alive = view.verdict(now), view.daemon_alive(now)
        return {
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

    def _report(self, call: _Call) -> Response:
        view, now = call.view, call.now
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

    def _metrics(self, call: _Call) -> Response:
        of_file = self._body("/metrics", self._viewed_version, lambda: metrics.render(call.view).encode())
        body = _Body(of_file.content + metrics.render_server(self.meter, process.usage()).encode())
        content, encoding = body.as_accepted(call.request)
        headers = (("Content-Type", metrics.CONTENT_TYPE), _VARY_ENCODING, _NO_STORE, *encoding)
        return Response(200, content, headers)


def _dump(content: Mapping[str, Any]) -> bytes:
    return dump(content).encode() + b"\n"


def _json(status: int, content: Mapping[str, Any], *headers: tuple[str, str]) -> Response:
    return Response(status, _dump(content), (_JSON, *headers))


def _unavailable(content: Mapping[str, Any] | bytes) -> Response:
    body = content if isinstance(content, bytes) else _dump(content)
    return Response(503, body, (_JSON, _NO_STORE, ("Retry-After", str(_RETRY_AFTER_S))))


def _conditional(request: Request, body: _Body, headers: tuple[tuple[str, str], ...]) -> Response:
    """Answer with a large body as the client accepts it, or with 304 where the client has it."""
    content, encoding = body.as_accepted(request)
    # Another encoding is another representation, so it has another strong tag.
    etag = f'"{body.tag}{"-gzip" if encoding else ""}"'
    headers += (("ETag", etag),)
    if _matches(request.headers.get("if-none-match", ""), etag):
        return Response(304, b"", tuple(one for one in headers if one[0] != "Content-Type"))
    return Response(200, content, (*headers, *encoding))


def _accepts(header: str, *names: str) -> bool:
    """Read Accept or Accept-Encoding: whether the first of these names that it has is wanted. RFC 9110, 12.5."""
    weights: dict[str, float] = {}
    for item in header.lower().split(","):
        name, _, weight = item.partition(";")
        quality = re.fullmatch(r"\s*q=([01](?:\.[0-9]{0,3})?)\s*", weight)
        weights[name.strip()] = float(quality[1]) if quality else 1.0
    return next((weights[name] for name in names if name in weights), 0.0) > 0


def _matches(if_none_match: str, etag: str) -> bool:
    """Compare weakly, as a GET must. Source: RFC 9110, section 13.1.2."""
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return etag in tags or tags == ["*"]
