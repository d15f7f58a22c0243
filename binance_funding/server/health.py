"""Judges whether the service is well, and makes the body of /funding/health. Pure.

A verdict is a list of typed causes, and the status follows from them. Each cause also has a sentence for people, which
no program reads.
"""

from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from ..schema import FEW, STATUS
from ..settings import Settings
from ..state_file import is_heartbeat_late
from .content import Content

HEALTHY, DEGRADED, UNHEALTHY = "healthy", "degraded", "unhealthy"

# The sentence names a lag of the stream only above this. A smaller lag is the normal delay of the network.
_LAG_NAMED_S = 5.0


class Kind(Enum):
    """The kinds of causes."""

    FILE_UNUSABLE = auto()
    DAEMON_SILENT = auto()
    NO_DATA_YET = auto()
    NO_NEW_DATA = auto()
    NEARLY_ALL_STALE = auto()
    SOME_STALE = auto()
    NO_CONNECTION = auto()
    FEWER_CONNECTIONS = auto()
    STREAM_BEHIND = auto()
    STREAM_RECOVERING = auto()
    STREAM_TROUBLE = auto()
    REST_TROUBLE = auto()
    AGES_BY_ARRIVAL = auto()
    HISTORY_TROUBLE = auto()


_UNHEALTHY = {Kind.FILE_UNUSABLE, Kind.DAEMON_SILENT, Kind.NO_DATA_YET, Kind.NO_NEW_DATA, Kind.NEARLY_ALL_STALE}
# The data is as good as ever.
_HARMLESS = {Kind.AGES_BY_ARRIVAL, Kind.HISTORY_TROUBLE}


@dataclass(frozen=True)
class Cause:
    """One thing that is wrong. Causes that differ only in their sentences, such as in an age that grows, are equal."""

    kind: Kind
    sentence: str = field(compare=False)
    facts: tuple[Hashable, ...] = ()
    """Values that distinguish this cause from others of the same kind."""


@dataclass(frozen=True)
class Verdict:
    """The health of the service."""

    causes: tuple[Cause, ...]

    @property
    def status(self) -> str:
        """Return the health in one word."""
        kinds = {cause.kind for cause in self.causes}
        if kinds & _UNHEALTHY:
            return UNHEALTHY
        return DEGRADED if kinds - _HARMLESS else HEALTHY

    @property
    def error(self) -> str | None:
        """Return everything that is wrong as one sentence, None if nothing is."""
        return "; ".join(cause.sentence for cause in self.causes) or None


def judge(content: Content, file_age_s: float, limit_s: float, file_error: str, settings: Settings) -> Verdict:
    """Judge the state file, or the lack of a usable one, which file_error explains.

    Data older than limit_s is stale.
    """
    if file_error:
        return Verdict((Cause(Kind.FILE_UNUSABLE, file_error, (file_error,)),))
    if is_heartbeat_late(file_age_s, settings.heartbeat_seconds):
        return Verdict((Cause(Kind.DAEMON_SILENT, f"the daemon has not written for {file_age_s:.0f} s"),))
    live = content.status["connections"] or 0
    wanted = content.status["connections_wanted"] or settings.stream_connections
    cause = _market_cause(content, file_age_s, limit_s) or _stream_cause(content, file_age_s, live, wanted)
    causes = [cause, *_troubles(content, live, wanted)] if cause else []
    if content.status["clock_offset_seconds"] is None and not (cause and cause.kind in _UNHEALTHY):
        causes.append(Cause(Kind.AGES_BY_ARRIVAL, "ages are by arrival: Binance's time is not known"))
    if trouble := content.status["history_error"]:
        causes.append(Cause(Kind.HISTORY_TROUBLE, f"settlement history: {trouble}", (trouble,)))
    return Verdict(tuple(causes))


def _market_cause(content: Content, file_age_s: float, limit_s: float) -> Cause | None:
    """Judge the age of the data; return None if nearly all data is fresh."""
    market, stale = content.market_size, content.stale_of_market(file_age_s, limit_s)
    newest_s = content.newest_age_s(file_age_s)
    if newest_s is None:
        return Cause(Kind.NO_DATA_YET, "no data yet")
    if newest_s > limit_s:
        return Cause(Kind.NO_NEW_DATA, f"no new data for {newest_s:.0f} s")
    if stale <= FEW * market:
        return None
    kind = Kind.NEARLY_ALL_STALE if stale >= market - FEW * market else Kind.SOME_STALE
    return Cause(kind, f"{stale} of {market} symbols are stale")


def _stream_cause(content: Content, file_age_s: float, live: int, wanted: int) -> Cause | None:
    """Judge the source of the data; return None if all connections deliver it."""
    status, behind = content.status, content.status["symbols_behind"]
    if live and not status["fallback_active"]:
        sentence = f"{live} of {wanted} stream connections"
        return Cause(Kind.FEWER_CONNECTIONS, sentence, (live, wanted)) if live < wanted else None
    if not live:
        kind, what = Kind.NO_CONNECTION, "no stream connection"
    elif behind:
        kind = Kind.STREAM_BEHIND
        what = f"{behind} of {content.market_size} symbols have nothing current from the stream"
    else:
        kind, what = Kind.STREAM_RECOVERING, "the stream is current again, but not yet for long"
    lag_s = status["stream_lag_seconds"] or 0.0
    lags = lag_s > _LAG_NAMED_S
    lag = f", the stream lags {lag_s:.0f} s behind Binance's clock" if lags else ""
    through_rest = bool(status["symbols_from_rest"]) and not status["rest"]["trouble"]
    newest = f"newest data {content.newest_age_s(file_age_s) or 0.0:.0f} s old"
    source = "fresh through REST" if through_rest else newest
    return Cause(kind, f"{what}{lag}: {source}", (lags, through_rest))


def _troubles(content: Content, live: int, wanted: int) -> list[Cause]:
    """Return the troubles of stream and REST, as the daemon worded them."""
    stream = content.status["last_error"] if live < wanted else None
    rest = content.status["rest"]["trouble"]
    troubles = ((Kind.STREAM_TROUBLE, "stream", stream), (Kind.REST_TROUBLE, "REST", rest))
    return [Cause(kind, f"{source}: {trouble}", (trouble,)) for kind, source, trouble in troubles if trouble]


def _camel_case(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(map(str.capitalize, others))


_SHOWN = {_camel_case(one.name): one.name for one in STATUS if one.in_health}
"""The fields of the connection status that health shows, by their name there."""


def health(content: Content, file_age_s: float, limit_s: float, verdict: Verdict, settings: Settings) -> dict[str, Any]:
    """Return the body of /funding/health. The verdict must be for the same limit."""
    status, alive = content.status, not is_heartbeat_late(file_age_s, settings.heartbeat_seconds)
    oldest_s, newest_s = content.oldest_age_s(file_age_s), content.newest_age_s(file_age_s)
    start_s = status["daemon_start_time"] if alive else None
    uptime_s = None if start_s is None else content.age_of_time_s(start_s, file_age_s)
    return {
        "status": verdict.status,
        "websocketConnected": alive and status["connected"],
        "connections": (status["connections"] or 0) if alive else 0,
        "symbolCount": len(content.records),
        "symbolsStale": content.stale_of_market(file_age_s, limit_s),
        "oldestDataAgeSeconds": _to_ms(oldest_s),
        "newestDataAgeSeconds": _to_ms(newest_s),
        "daemonAlive": alive,
        **{shown: status[name] for shown, name in _SHOWN.items()},
        "uptimeSeconds": _to_ms(uptime_s),
        "error": verdict.error,
    }


def _to_ms(seconds: float | None) -> float | None:
    """Round seconds to the millisecond; None stays None, for "not known"."""
    return None if seconds is None else round(seconds, 3)
