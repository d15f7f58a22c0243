"""The state file as Prometheus metrics, text format 0.0.4. Pure.

Source: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from collections.abc import Iterable, Mapping
from typing import Any

from . import __version__

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_PREFIX = "binance_funding_"
_Samples = Iterable[tuple[str, Any]]


def render(state: Mapping[str, Any]) -> str:
    """Return all metrics of one state file; what the file does not know is left out."""
    lines: list[str] = []
    for name, kind, meaning, samples in _families(state):
        lines.append(f"# HELP {_PREFIX}{name} {meaning}")
        lines.append(f"# TYPE {_PREFIX}{name} {kind}")
        # Numbers as Python writes them are numbers of the format too.
        lines += [f"{_PREFIX}{name}{labels} {value!r}" for labels, value in samples if value is not None]
    return "\n".join(lines) + "\n"


def _families(state: Mapping[str, Any]) -> Iterable[tuple[str, str, str, _Samples]]:
    records = [(_label("symbol", symbol), record) for symbol, record in state["funding_state"].items()]

    def per_symbol(key: str) -> _Samples:
        return [(label, record[key]) for label, record in records]

    yield "rate", "gauge", "Newest funding rate, a fraction per funding interval.", per_symbol("fundingRate")
    yield "mark_price", "gauge", "Newest mark price in the quote asset.", per_symbol("markPrice")
    yield (
        "updated_timestamp_seconds",
        "gauge",
        "Time at which the symbol's data last advanced, by this host's clock.",
        per_symbol("updatedAt"),
    )
    yield from _stream_families(state["connection_status"], len(records))
    yield from _rest_families(state["connection_status"], state["comparison"]["totals"])
    yield from _daemon_families(state)


def _stream_families(status: Mapping[str, Any], symbols: int) -> Iterable[tuple[str, str, str, _Samples]]:
    yield "symbols", "gauge", "Symbols in the state file.", _one(symbols)
    yield "stream_connections", "gauge", "Connections that bring mark prices now.", _one(status.get("connections"))
    yield (
        "stream_messages_total",
        "counter",
        "Messages received over all connections.",
        _one(status.get("messages_received")),
    )
    yield (
        "stream_disconnects_total",
        "counter",
        "Connections that ended after bringing data: replaced as planned, or lost.",
        [
            (_label("kind", "planned"), status.get("planned_disconnects")),
            (_label("kind", "unplanned"), status.get("disconnects")),
        ],
    )
    yield (
        "last_message_timestamp_seconds",
        "gauge",
        "Time of the last message of the stream.",
        _one(status.get("last_message_time")),
    )
    yield "rejected_rows_total", "counter", "Malformed rows left out.", _one(status.get("rejected_rows"))


def _rest_families(status: Mapping[str, Any], compared: Mapping[str, Any]) -> Iterable[tuple[str, str, str, _Samples]]:
    rest = status["rest"]
    errors = [(_label("status", name), count) for name, count in sorted(rest["errors_by_status"].items())]
    yield (
        "fallback_active",
        "gauge",
        "1 while stream data is stale and REST is polled in its stead.",
        _one(int(status["fallback_active"])),
    )
    yield "rest_polls_total", "counter", "REST snapshots asked for.", _one(rest.get("polls"))
    yield "rest_errors_total", "counter", "REST snapshots that failed, by HTTP status or kind of failure.", errors
    yield (
        "comparison_rows_total",
        "counter",
        "Rows of REST snapshots compared with the stream.",
        _one(compared.get("compared")),
    )
    yield (
        "comparison_mismatches_total",
        "counter",
        "Rows that differed more than the market moves.",
        _one(compared.get("mismatched")),
    )


def _daemon_families(state: Mapping[str, Any]) -> Iterable[tuple[str, str, str, _Samples]]:
    status = state["connection_status"]
    yield (
        "gaps_total",
        "counter",
        "Times in which no source brought anything new for more than 10 s.",
        _one(status.get("gaps_ended")),
    )
    yield "gap_seconds_total", "counter", "Length of those times together.", _one(status.get("gap_seconds"))
    yield (
        "clock_offset_seconds",
        "gauge",
        "Time of Binance minus time of this host, smoothed.",
        _one(status.get("clock_offset_seconds")),
    )
    yield (
        "state_file_timestamp_seconds",
        "gauge",
        "Time at which the daemon last wrote the state file.",
        _one(state["updated_at"]),
    )
    yield (
        "daemon_start_time_seconds",
        "gauge",
        "Time at which the daemon started.",
        _one(status.get("daemon_start_time")),
    )
    yield "info", "gauge", "Version of the HTTP server.", [(_label("version", __version__), 1)]


def _one(value: Any) -> _Samples:
    return [("", value)]


def _label(name: str, value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'{{{name}="{escaped}"}}'
