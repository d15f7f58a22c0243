"""Every field of the state file, declared once: name, type, unit, meaning, and its metric if it has one.

Reading, checking and writing the file, the health answer, the metrics and docs/state-file.md use these declarations. If
a file lacks a field, the field gets its default. If it lacks a required field, it is not a state file.
"""

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple, NoReturn

VERSION = 1
WINDOW_S = 86_400
"""Length of the time that the report covers."""
QUARTER_S = 900
"""Length of one member of `history`."""
GAP_SECONDS = 10.0
"""If the market gets no new data for longer than this, it is a gap."""
FEW = 0.01
"""If more than this share of the symbols has no current data, the market has none."""
USUAL_INTERVAL_HOURS = 8
"""Funding interval of a symbol if Binance names no interval for it."""


class Kind(NamedTuple):
    """The kind of a value: its JSON types and its unit."""

    types: frozenset[type]
    unit: str = ""
    members: frozenset[type] = frozenset()
    """JSON types of the members, if the value is a list or an object."""


_NUMBER = frozenset({int, float})
COUNT, RATIO, SECONDS = Kind(_NUMBER), Kind(_NUMBER, "fraction"), Kind(_NUMBER, "s")
PRICE, HOURS, BYTES = Kind(_NUMBER, "quote asset"), Kind(_NUMBER, "h"), Kind(_NUMBER, "bytes")
UNIX_S, UNIX_MS = Kind(_NUMBER, "Unix s"), Kind(_NUMBER, "Unix ms")
FLAG, TEXT = Kind(frozenset({bool}), "true or false"), Kind(frozenset({str}), "text")
COUNTS = Kind(frozenset({dict}), "numbers by name", members=_NUMBER)
NAMES = Kind(frozenset({list}), "list of names", members=TEXT.types)


@dataclass(frozen=True)
class Field:
    """One field of the file."""

    name: str
    kind: Kind
    meaning: str
    _: KW_ONLY
    default: Any = None
    """Value if a file lacks the field. If it is None, the field may be null, which means "not known"."""
    required: bool = False
    allowed: tuple[Any, ...] = ()
    metric: str = ""
    """Name of the metric without the prefix `binance_funding_`. Fields that share a metric add `{label="value"}`.

    A name that ends in `_total` is a counter, any other a gauge. The HELP text is the meaning of the fields."""
    in_health: bool = False
    """Whether the health answer shows the field. Its name is in camel case there."""

    def read(self, members: list[dict[str, Any]]) -> list[Any]:
        """Return the value of this field in each member. Thousands of values are checked at once, which is faster.

        Raises ValueError if a required value is missing, or if a value is not allowed.
        """
        try:
            if self.required:
                values = [member[self.name] for member in members]
            else:
                values = [member.get(self.name, self.default) for member in members]
        except KeyError:
            raise ValueError(f"{self.name} is missing") from None
        may_be_null = self.default is None and not self.required
        self._check([value for value in values if value is not None] if may_be_null else values)
        return values

    def _check(self, values: list[Any]) -> None:
        """Raise ValueError if a value is not allowed. No value is NaN, because `refuse_constant` rejects it earlier."""
        self._check_type(values, self.kind.types)
        if self.allowed and not set(values) <= set(self.allowed):
            raise ValueError(f"{self.name} is none of {', '.join(map(str, self.allowed))}")
        if self.kind.members:
            held = [one for value in values for one in (value.values() if type(value) is dict else value)]
            self._check_type(held, self.kind.members)

    def _check_type(self, values: list[Any], types: frozenset[type]) -> None:
        if not set(map(type, values)) <= types:
            raise ValueError(f"{self.name} has the wrong type")
        # This also rejects infinity, which json.loads returns for 1e999, and integers too large for a float.
        if types is _NUMBER and values and not -1e300 < min(values) <= max(values) < 1e300:
            raise ValueError(f"{self.name} is too large")


Section = tuple[Field, ...]

HEADER: Section = (
    Field("version", COUNT, "format of the file", required=True, allowed=(VERSION,)),
    Field("updated_at", UNIX_S, "when the file was written", required=True, metric="state_file_timestamp_seconds"),
    Field("daemon_pid", COUNT, "process ID of the daemon that wrote the file", default=0),
    Field("boot_id", TEXT, "ID of the boot of the host; `boottime` counts from this boot", default=""),
    Field("boottime", SECONDS, "when the file was written, in seconds since the boot of the host", default=0.0),
)

_HOURS = tuple(range(1, 25))

RECORD: Section = (
    Field("fundingRate", RATIO, "funding rate per funding interval: 0.0001 is 0.01 %", required=True, metric="rate"),
    Field("markPrice", PRICE, "mark price", required=True, metric="mark_price"),
    Field("indexPrice", PRICE, "index price", required=True),
    Field("nextFundingTime", UNIX_MS, "time of the next funding", required=True),
    Field("eventTime", UNIX_MS, "event time, by Binance's clock", required=True),
    Field("updatedAt", UNIX_S, "event time by this host's clock", required=True, metric="updated_timestamp_seconds"),
    Field(
        "fundingIntervalHours",
        HOURS,
        "time between two fundings",
        default=USUAL_INTERVAL_HOURS,
        allowed=_HOURS,
        metric="interval_seconds",
    ),
    Field("source", TEXT, "`websocket` or `rest`", required=True, allowed=("websocket", "rest")),
    Field("estimatedSettlePrice", PRICE, "estimated settle price"),
    Field("interestRate", RATIO, "interest rate, as part of the funding rate"),
    Field("fundingRateCap", RATIO, "highest funding rate; null if Binance names none"),
    Field("fundingRateFloor", RATIO, "lowest funding rate; null if Binance names none"),
    Field("settledFundingRate", RATIO, "funding rate of the last settlement", metric="settled_rate"),
    Field("settledFundingTime", UNIX_MS, "time of the last settlement", metric="settled_timestamp_seconds"),
    Field("fundingRateSum24h", RATIO, "sum of the settled rates of the last 24 full hours; null if not complete"),
    Field("fundingRateSum7d", RATIO, "the same for 7 days"),
    Field("fundingRateSum30d", RATIO, "the same for 30 days"),
)

SERVED: Section = (
    Field("symbol", TEXT, "as Binance spells it"),
    *RECORD,
    Field("annualizedFundingRate", RATIO, "funding rate per year, without compounding", metric="annualized_rate"),
    Field("premium", RATIO, "mark price / index price - 1"),
)
"""The fields of each record in the answers of the server."""

MARKS: Section = (
    Field("halted", FLAG, "the exchange itself has nothing newer", default=False),
    Field("unlisted", FLAG, "REST does not list the symbol", default=False),
    Field("fundingIntervalAssumed", FLAG, "Binance has not named the interval since it changed", default=False),
)
"""Members that a record has only if they are true."""

REST: Section = (
    Field("polls", COUNT, "requests for REST snapshots", default=0, metric="rest_polls_total"),
    Field("errors", COUNT, "REST snapshots that failed", default=0),
    Field("errors_by_status", COUNTS, "failed REST snapshots by cause", default={}, metric="rest_errors_total{status}"),
    Field("last_success_time", UNIX_S, "when the last snapshot came"),
    Field("paused_until", UNIX_S, "end of the pause in REST requests that Binance asked for"),
    Field("last_error", TEXT, "cause of the last failed snapshot"),
    Field("trouble", TEXT, "the last error; null if the last snapshot succeeded"),
)

STATUS: Section = (
    Field("connected", FLAG, "whether any connection is live", default=False),
    Field("connections", COUNT, "connections that deliver current mark prices", metric="stream_connections"),
    Field("connections_wanted", COUNT, "`STREAM_CONNECTIONS`"),
    Field("url", TEXT, "address of the first live connection"),
    Field("last_connected_time", UNIX_S, "when a connection last became live", in_health=True),
    Field("last_message_time", UNIX_S, "when the last message came", metric="last_message_timestamp_seconds"),
    Field("messages_received", COUNT, "messages received", metric="stream_messages_total", in_health=True),
    Field("disconnects", COUNT, "connections lost", metric='stream_disconnects_total{kind="unplanned"}'),
    Field("planned_disconnects", COUNT, "connections replaced", metric='stream_disconnects_total{kind="planned"}'),
    Field("reconnect_attempts", COUNT, "attempts to connect after a loss or a failed attempt", in_health=True),
    Field("last_error", TEXT, "cause of the last lost or failed connection"),
    Field("rejected_rows", COUNT, "malformed rows that were skipped", metric="rejected_rows_total"),
    Field("fallback_active", FLAG, "whether REST replaces the stream", metric="fallback_active", in_health=True),
    Field("stream_lag_seconds", SECONDS, "lag of the best connection", metric="stream_lag_seconds", in_health=True),
    Field("paused_until", UNIX_S, "end of the pause in connecting that Binance asked for"),
    Field("symbols_from_rest", COUNT, "symbols that only REST delivers", metric="symbols_from_rest", in_health=True),
    Field("symbols_behind", COUNT, "symbols not current in the stream", metric="symbols_behind", in_health=True),
    Field("symbols_halted", COUNT, "symbols halted at the exchange", metric="symbols_halted", in_health=True),
    Field("market_served_time", UNIX_S, "when at least 99 % of the market last had new data"),
    Field("clock_offset_seconds", SECONDS, "Binance's time minus this host's clock", metric="clock_offset_seconds"),
    Field(
        "age_uncertainty_seconds",
        SECONDS,
        "by how much an age may be wrong at most; null while Binance's time is unknown or in doubt",
        metric="age_uncertainty_seconds",
        in_health=True,
    ),
    Field("symbol_seconds", SECONDS, "seconds, summed over the symbols that count", metric="symbol_seconds_total"),
    Field(
        "fresh_symbol_seconds",
        COUNTS,
        "the part of `symbol_seconds` with data no older than 5 s, 12 s and `STALE_SECONDS`",
        default={},
        metric="fresh_symbol_seconds_total{within}",
    ),
    Field("daemon_start_time", UNIX_S, "when the daemon started", metric="daemon_start_time_seconds"),
    Field("gaps_ended", COUNT, "gaps that have ended; a gap is more than 10 s without new data", metric="gaps_total"),
    Field("gap_seconds", SECONDS, "total length of the gaps that have ended", metric="gap_seconds_total"),
    Field("history_error", TEXT, "what keeps the settlement history from being filled, or null"),
)

TOTALS: Section = (
    Field("runs", COUNT, "snapshots compared", default=0),
    Field("compared", COUNT, "REST rows compared with the stream", default=0, metric="comparison_rows_total"),
    Field("matched", COUNT, "REST rows that agreed", default=0),
    Field("mismatched", COUNT, "REST rows that differed", default=0, metric="comparison_mismatches_total"),
    Field("identical", COUNT, "REST rows with the same event time and the same numbers as the stream", default=0),
)

LAST: Section = (
    Field("compared_at", UNIX_S, "when the snapshot came", default=0),
    *(Field(one.name, one.kind, one.meaning, default=0) for one in TOTALS[1:]),
    Field("max_funding_rate_difference", RATIO, "largest difference of a funding rate", default=0.0),
    Field("max_mark_price_difference_ratio", RATIO, "largest relative difference of a mark price", default=0.0),
    Field("only_in_stream", COUNT, "symbols that only the stream delivered", default=0),
    Field("only_in_rest", COUNT, "symbols that only REST delivered", default=0),
    Field("mismatched_symbols", NAMES, "symbols of mismatched rows, at most 20", default=[]),
    Field("only_in_stream_symbols", NAMES, "symbols that only the stream delivered, at most 20", default=[]),
    Field("only_in_rest_symbols", NAMES, "symbols that only REST delivered, at most 20", default=[]),
)

PROCESS: Section = (
    Field("cpu_seconds", SECONDS, "processor time used", metric="daemon_process_cpu_seconds_total"),
    Field("resident_memory_bytes", BYTES, "memory in RAM", metric="daemon_process_resident_memory_bytes"),
    Field("virtual_memory_bytes", BYTES, "address space", metric="daemon_process_virtual_memory_bytes"),
    Field("open_fds", COUNT, "open file descriptors", metric="daemon_process_open_fds"),
    Field("max_fds", COUNT, "limit of open file descriptors", metric="daemon_process_max_fds"),
    Field("start_time_seconds", UNIX_S, "start of the process", metric="daemon_process_start_time_seconds"),
)
"""What a process uses of the host. The names here are those of the daemon's metrics.

The server's metrics have the same names without `binance_funding_daemon_`, as is usual for the scraped process."""

GAP: Section = (
    Field("start", UNIX_S, "arrival of the last new data before the gap", required=True),
    Field("seconds", SECONDS, "length of the gap", required=True),
    Field("cause", TEXT, "cause; `not running` means that no daemon ran; two causes have their seconds", default=""),
)

QUARTER: Section = (
    Field("start", UNIX_S, "beginning of the quarter hour", required=True),
    Field("observed", SECONDS, "how long the daemon observed the market", default=0),
    Field("unplanned", COUNT, "connections lost unplanned", default=0),
    Field("planned", COUNT, "connections replaced as planned", default=0),
    Field("runs", COUNT, "snapshots compared", default=0),
    Field("compared", COUNT, "rows compared", default=0),
    Field("mismatched", COUNT, "rows that differed", default=0),
    Field("worst", SECONDS, "greatest age of the oldest symbol", default=0),
    Field("symbol_seconds", SECONDS, "seconds, summed over the symbols that count", default=0),
    Field("within_5s", SECONDS, "symbol-seconds in which the data was no older than 5 s", default=0),
    Field("within_12s", SECONDS, "symbol-seconds in which the data was no older than 12 s", default=0),
    Field("within_limit", SECONDS, "symbol-seconds in which the data was no older than `STALE_SECONDS`", default=0),
)


def refuse_constant(name: str) -> NoReturn:
    """Refuse NaN and Infinity. json.loads accepts them, unless this function is its `parse_constant`."""
    raise ValueError(f"{name} is not JSON")


def complete(section: Section, members: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the members with the declared fields of the section only, checked. Absent fields get their defaults.

    Raises ValueError, TypeError or AttributeError if a required field is missing or a value is not allowed.
    """
    names, columns = [one.name for one in section], [one.read(members) for one in section]
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def declared(section: Section, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values in the order of the section. Raises KeyError if the value of a declared field is missing."""
    return {one.name: values[one.name] for one in section}
