"""What one content of the state file says: its records, how old they are, and whether they can be trusted."""

from bisect import bisect_left
from collections.abc import Mapping
from typing import Any

from ..clock import Moment
from ..schema import FEW
from ..settings import Settings
from ..state_file import is_heartbeat_late, written_age_s

# A lag that is named; less is the way of the data.
_LAG_NAMED_S = 5.0
_UPPER_CASE = {code: code - 32 for code in range(ord("a"), ord("z") + 1)}


def upper(symbol: str) -> str:
    """Return the symbol in upper case. ASCII letters only: some of other alphabets would become S or K."""
    return symbol.translate(_UPPER_CASE)


def _served(symbol: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record of the file with what is derived from it."""
    annualized = record["fundingRate"] * 24 / record["fundingIntervalHours"] * 365
    return {"symbol": symbol, **record, "annualizedFundingRate": round(annualized, 12)}


class View:
    """One content of the state file, which can be looked at at any moment. Ages are seconds and never negative."""

    def __init__(self, state: Mapping[str, Any], settings: Settings, boot_id: str) -> None:
        self.state = state
        self.records = {symbol: _served(symbol, record) for symbol, record in state["funding_state"].items()}
        self.status: dict[str, Any] = state["connection_status"]
        self.by_upper_case = {upper(symbol): symbol for symbol in self.records}
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
        return not is_heartbeat_late(self.written_age_s(now), self._settings.heartbeat_seconds)

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
        what = f"{status['symbols_behind']} of {len(self.market)} symbols have nothing current from the stream"
        if not self._live:
            what = "no stream connection"
        elif not status["symbols_behind"]:
            what = "the stream is current again, but not yet for long"
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
