"""What the HTTP server answers: the endpoints, and the answer of each from the state file.

Ages are computed for every request. Everything else is made once for each change of the file, when it is first needed.
"""

import re
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple

from .. import __version__, process
from ..clock import Clock
from ..settings import Settings
from ..state_file import EMPTY, written_age_s
from . import history, metrics, page, parameters
from .content import Content
from .health import UNHEALTHY, Verdict, health, judge
from .http.message import Request, Response, error_response
from .http.meter import OTHER, Meter
from .listing import Listed, Listing, Selection, dump, upper
from .parameters import InvalidParameter
from .push import Push
from .report import report
from .representation import Body, accepts, accepts_gzip, conditional
from .state_reader import StateReader

_JSON = ("Content-Type", "application/json; charset=utf-8")
_NO_STORE = ("Cache-Control", "no-store")
# A proxy in front carries the load of many clients, because it asks only once a second.
_CACHEABLE = ("Cache-Control", "max-age=1")
_VARY_ENCODING = ("Vary", "Accept-Encoding")
# X-Accel-Buffering keeps nginx from collecting events before it passes them on.
_EVENT_STREAM = (("Content-Type", "text/event-stream; charset=utf-8"), _NO_STORE, ("X-Accel-Buffering", "no"))
_RETRY_AFTER = ("Retry-After", "5")
_VERSIONS_PER_S = 10


class Call(NamedTuple):
    """A request to an endpoint, with its decoded parameters."""

    request: Request
    given: parameters.Given
    file_age_s: float
    """The age of the state file at this moment."""
    limit_s: float
    """The age beyond which data is stale for this request: STALE_SECONDS, or the reader's own limit if it is less."""


@dataclass(frozen=True)
class Endpoint:
    """One path, and how it is answered."""

    answer: Callable[[Call], Response]
    """May raise InvalidParameter, which becomes 400."""
    parameters: tuple[str, ...] = ()
    """The parameters that a request may have; any other is 400."""
    needs_file: bool = True
    """Whether the answer is 503 while there is no usable state file."""


_SYMBOL, _HISTORY = "/funding/{symbol}", "/funding/{symbol}/history"
# Other exchanges write BTC/USDT, and ccxt BTC/USDT:USDT. The path is decoded, so %2F in a name is a slash too.
_SYMBOL_PATH = re.compile("/funding/[^/]+(/USD[^/]*)?", re.IGNORECASE)
_HISTORY_END = "/history"
_HEALTH = "/funding/health"
ALIASES = {"/health": _HEALTH, "/healthz": _HEALTH}
"""Other paths of endpoints."""
_EXAMPLES = {
    "/funding": "every symbol",
    _SYMBOL: "one symbol, e.g. /funding/BTCUSDT",
    _HISTORY: "its settlements, as JSON or (format=csv) CSV",
    "/funding/batch?symbols=BTCUSDT,ETHUSDT": "several symbols",
    "/funding/batch?sort=-annualizedFundingRate&limit=20": "the symbols with the highest rates",
    "/funding/stream?symbols=BTCUSDT,ETHUSDT": "some symbols or all, pushed when they change (server-sent events)",
    _HEALTH: "whether the data is fresh, and where it comes from",
    "/funding/report": "the last 24 hours: disconnections, data age, comparison with REST, gaps",
    "/metrics": "Prometheus text format",
}


class Api:
    """Answers requests from the state file. For the one thread of the HTTP server."""

    def __init__(self, reader: StateReader, settings: Settings, clock: Clock) -> None:
        """Read nothing yet. `version` reads the file."""
        self._reader = reader
        self._settings = settings
        self._clock = clock
        self._content = Content(EMPTY, settings.stale_seconds)
        self._content_version = 0
        """The version of the reader from which the content was made."""
        self._listing = Listing()
        self._push = Push(self._listing, self._refresh_push, clock.steady_s)
        self._pushed_version: Hashable = None
        self._list: tuple[int, Body] = 0, Body(b"")
        """The edition of the listing, and the body of /funding made from it."""
        self._page: tuple[int, Body] = 0, Body(b"")
        """The edition of the listing, and the page with the plain table made from it."""
        self._file_metrics: tuple[int, Body] = 0, Body(b"")
        """The version of the content, and the metrics of the file made from it."""
        self.endpoints = {
            "/": Endpoint(self._root, needs_file=False),
            "/funding": Endpoint(self._all, ("maxAge",)),
            _SYMBOL: Endpoint(self._symbol, ("maxAge",)),
            _HISTORY: Endpoint(self._history, history.PARAMETERS, needs_file=False),
            "/funding/batch": Endpoint(self._batch, ("symbols", "sort", "limit", "maxAge"), needs_file=False),
            "/funding/stream": Endpoint(self._stream, ("symbols",), needs_file=False),
            _HEALTH: Endpoint(self._health, ("maxAge",), needs_file=False),
            "/funding/report": Endpoint(self._report),
            "/metrics": Endpoint(self._metrics, needs_file=False),
        }
        """By path."""
        self.meter = Meter(self._path_of)
        """What the server counts, for /metrics."""

    def version(self) -> Hashable:
        """Read the file if it has changed. While the returned value stays equal, every answer stays equal."""
        self._reader.refresh()
        if self._content_version != self._reader.version:
            self._content_version = self._reader.version
            self._content = Content(self._reader.state or EMPTY, self._settings.stale_seconds)
        return self._version()

    def _version(self) -> Hashable:
        return self._content_version, int(self._clock.steady_s() * _VERSIONS_PER_S)

    def __call__(self, request: Request) -> Response:
        """Answer one GET or HEAD request."""
        endpoint = self.endpoints.get(self._path_of(request))
        if endpoint is None:
            slash = "paths do not end with a slash; " if request.path.endswith("/") else ""
            return error_response(404, f"no such path; {slash}/ lists all paths")
        try:
            given = parameters.parse(request.query, endpoint.parameters)
            limit_s = min(parameters.max_age_s(given), self._settings.stale_seconds)
            if endpoint.needs_file and self._reader.state is None:
                return _unavailable(dump({"error": f"no data yet: {self._reader.error}"}))
            return endpoint.answer(Call(request, given, self._file_age_s(), limit_s))
        except InvalidParameter as error:
            return error_response(400, str(error))

    def _path_of(self, request: Request) -> str:
        """Return the path of the endpoint that answers a request."""
        path = ALIASES.get(request.path, request.path)
        if path in self.endpoints:
            return path
        of_symbol = path.removesuffix(_HISTORY_END)
        if not _SYMBOL_PATH.fullmatch(of_symbol):
            return OTHER
        return _SYMBOL if of_symbol == path else _HISTORY

    def _file_age_s(self) -> float:
        return written_age_s(self._content.state, self._clock.now(), self._clock.boot_id)

    def _root(self, call: Call) -> Response:
        if accepts(call.request.headers.get("accept", ""), "text/html"):
            self._listing.refresh(self._content, call.file_age_s)
            if self._page[0] != self._listing.edition:
                self._page = self._listing.edition, Body(page.CONTENT + page.plain_table(self._listing.fresh()))
            return conditional(call.request, self._page[1], page.HEADERS)
        body = dump({"name": "binance-funding", "version": __version__, "endpoints": _EXAMPLES})
        return Response(200, body, (_JSON, page.VARY))

    def _symbol(self, call: Call) -> Response:
        self._listing.refresh(self._content, call.file_age_s)
        name = upper(call.request.path.removeprefix("/funding/"))
        listed = self._listing.by_name.get(name)
        if listed is None:
            return self._unknown(name)
        body = listed.with_age(call.file_age_s, call.limit_s) + b"\n"
        is_stale = listed.is_older(call.file_age_s, call.limit_s)
        return _unavailable(body) if is_stale else Response(200, body, (_JSON, _CACHEABLE))

    def _unknown(self, name: str) -> Response:
        body = self._listing.unknown(name) + b"\n"
        return Response(404, body, (_JSON, _CACHEABLE)) if self._listing.all else _unavailable(body)

    def _history(self, call: Call) -> Response:
        if not self._settings.history_days:
            return error_response(404, "the settlement history is switched off (HISTORY_DAYS=0)")
        self._listing.refresh(self._content, call.file_age_s)
        name = upper(call.request.path.removeprefix("/funding/").removesuffix(_HISTORY_END))
        listed = self._listing.by_name.get(name)
        symbol, unknown = (name, self._unknown(name)) if listed is None else (listed.symbol, None)
        # Settlements are dated by Binance's clock.
        now_s = self._clock.wall_s() + (self._content.status["clock_offset_seconds"] or 0.0)
        asked = history.Question(symbol, call.request, call.given, round(now_s * 1000))
        return history.answer(self._settings.history_file, asked, unknown)

    def _batch(self, call: Call) -> Response:
        names, order = parameters.symbols(call.given), parameters.sort_order(call.given)
        limit = parameters.limit(call.given)
        if names is None and order is None:
            raise InvalidParameter("symbols or sort is missing, for example /funding/batch?symbols=BTCUSDT,ETHUSDT")
        self._listing.refresh(self._content, call.file_age_s)
        asked: list[Listed | str]  # an unknown name stays a text
        asked = [*self._listing.all] if names is None else [self._listing.by_name.get(name, name) for name in names]
        known = [one for one in asked if isinstance(one, Listed)]
        fresh = {listed for listed in known if not listed.is_older(call.file_age_s, call.limit_s)}
        missing, stale = len(asked) - len(known), len(known) - len(fresh)
        counts = {"found": len(fresh), "missing": missing, "stale": stale, "total": len(asked)}
        if order is not None:
            # Only fresh records are sorted. A client that takes the first one trades on it, so the others come last.
            in_order = [listed for listed in self._listing.in_order(order) if listed in fresh]
            asked = [*in_order, *(one for one in asked if one not in fresh)]
        rows = [
            one.with_age(call.file_age_s, call.limit_s) if isinstance(one, Listed) else self._listing.unknown(one)
            for one in asked[:limit]
        ]
        body = b'"data":[%b],%b' % (b",".join(rows), dump(counts)[1:])
        if fresh:
            return Response(200, b"{" + body, (_JSON, _CACHEABLE))
        error = self._reader.error or ("nothing requested is fresh" if self._listing.all else "no data yet")
        return _unavailable(dump({"error": error})[:-2] + b"," + body)

    def _all(self, call: Call) -> Response:
        self._listing.refresh(self._content, call.file_age_s)
        stale = self._content.stale_count(call.file_age_s, call.limit_s)
        # A reader's own limit nearly always finds the same records stale. If not, its answer is made for it alone, and
        # neither kept nor compressed: clients that vary the limit cost little time and no memory.
        is_shared = stale == self._content.stale_count(call.file_age_s, self._settings.stale_seconds)
        if is_shared:
            (records,) = self._listing.changes_of_all(0)
        else:
            records = self._listing.within(call.file_age_s, call.limit_s)
        if stale == len(self._listing.all):
            error = "stale data" if self._listing.all else "no data yet"
            head = dump({"error": error, "maxAgeSeconds": call.limit_s})
            return _unavailable(head[:-2] + b"," + records[1:])
        headers = (_JSON, _CACHEABLE, _VARY_ENCODING)
        if not is_shared:
            return conditional(call.request, Body(records), headers, may_compress=False)
        if self._list[0] != self._listing.edition:
            self._list = self._listing.edition, Body(records)
        return conditional(call.request, self._list[1], headers)

    def _stream(self, call: Call) -> Response:
        names = parameters.symbols(call.given)
        selection = Selection(self._listing, None if names is None else ",".join(names))
        return Response(200, b"", _EVENT_STREAM, self._push.follow(selection))

    def _refresh_push(self) -> None:
        if self._pushed_version != self._version():
            self._pushed_version = self._version()
            file_age_s = self._file_age_s()
            self._listing.refresh(self._content, file_age_s)
            self._push.update(self._content.written_at_s, *self._judged(file_age_s, self._settings.stale_seconds))

    def _judged(self, file_age_s: float, limit_s: float) -> tuple[Verdict, dict[str, Any]]:
        """Return the health of the service, and the body of /funding/health."""
        verdict = judge(self._content, file_age_s, limit_s, self._reader.error, self._settings)
        return verdict, health(self._content, file_age_s, limit_s, verdict, self._settings)

    def _health(self, call: Call) -> Response:
        verdict, content = self._judged(call.file_age_s, call.limit_s)
        body = dump(content)
        return _unavailable(body) if verdict.status == UNHEALTHY else Response(200, body, (_JSON, _NO_STORE))

    def _report(self, call: Call) -> Response:
        state, status, file_age_s = self._content.state, self._content.status, call.file_age_s
        running_s = self._content.age_of_time_s(status["daemon_start_time"] or state["updated_at"], file_age_s)
        newest_s, oldest_s = self._content.newest_age_s(file_age_s), self._content.oldest_age_s(file_age_s)
        served_s = status["market_served_time"]
        market_s = self._content.age_of_time_s(served_s, file_age_s) if served_s else newest_s
        body = report(
            state["gaps"],
            state["history"],
            self._clock.wall_s(),
            oldest_age_s=running_s if oldest_s is None else oldest_s,
            market_age_s=running_s if market_s is None else market_s,
            stale_s=self._settings.stale_seconds,
        )
        return Response(200, dump(body), (_JSON, _NO_STORE))

    def _metrics(self, call: Call) -> Response:
        if self._file_metrics[0] != self._content_version:
            text = metrics.render(self._content) if self._reader.state else ""
            self._file_metrics = self._content_version, Body(text.encode())
        of_file = self._file_metrics[1]
        of_server = metrics.render_server(self.meter, process.usage()).encode()
        headers = (("Content-Type", metrics.CONTENT_TYPE), _VARY_ENCODING, _NO_STORE)
        if accepts_gzip(call.request):
            return Response(200, of_file.compressed(of_server), (*headers, ("Content-Encoding", "gzip")))
        return Response(200, of_file.content + of_server, headers)


def _unavailable(body: bytes) -> Response:
    return Response(503, body, (_JSON, _NO_STORE, _RETRY_AFTER))
