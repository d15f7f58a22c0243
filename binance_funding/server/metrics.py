"""State file and server as Prometheus metrics, text format 0.0.4. The metrics of the file come from the schema. Pure.

Source: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Any

from .. import __version__
from ..schema import HEADER, HOURS, PROCESS, REST, SERVED, STATUS, TOTALS, UNIX_MS, Field
from .content import Content
from .http.meter import BUCKETS_S, Meter

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_PREFIX = "binance_funding_"
_DURATION = _PREFIX + "http_request_duration_seconds"
_Samples = list[tuple[str, Any]]
"""Labels and value of each sample. In a histogram, the labels follow a suffix of the name. None means not known."""
_Families = Iterator[tuple[str, str, _Samples]]
"""Name, meaning and samples of each metric."""


def render(content: Content) -> str:
    """Return all metrics of one state file. A value that the file does not know is left out."""
    return _text(_of_file(content))


def render_server(meter: Meter, usage: Mapping[str, float | None]) -> str:
    """Return the metrics of the server itself: its counts, and the resources that its process uses."""
    return _text(_of_server(meter, usage))


def _text(all_families: _Families) -> str:
    families: dict[str, tuple[list[str], list[str]]] = {}
    for name, meaning, samples in all_families:
        meanings, lines = families.setdefault(name, ([], []))
        meanings.append(meaning)
        # Python's numbers are valid in this format, but True and False are not.
        lines += [f"{name}{labels} {value + 0!r}" for labels, value in samples if value is not None]
    return "".join(_family_text(name, ", ".join(meanings), lines) for name, (meanings, lines) in families.items())


def _family_text(name: str, meaning: str, lines: list[str]) -> str:
    kind = "counter" if name.endswith("_total") else "histogram" if name == _DURATION else "gauge"
    described = f"# HELP {name} {meaning[0].upper()}{meaning[1:]}.", f"# TYPE {name} {kind}"
    return "\n".join([*described, *lines, ""])


def _of_file(content: Content) -> _Families:
    state, status = content.state, content.status
    records = [(_label("symbol", symbol), record) for symbol, record in content.records.items()]
    for one in filter(_has_metric, SERVED):
        # Prometheus counts time in seconds.
        factor = {HOURS: 3600, UNIX_MS: 0.001}.get(one.kind, 1)
        known = [(label, record[one.name]) for label, record in records if record[one.name] is not None]
        yield _PREFIX + one.metric, one.meaning, [(label, factor * value) for label, value in known]
    yield _PREFIX + "symbols", "symbols in the state file", [("", len(records))]
    totals, process = state["comparison"]["totals"], state["process"]
    sections = ((STATUS, status), (REST, status["rest"]), (TOTALS, totals), (PROCESS, process), (HEADER, state))
    for section, values in sections:
        for one in filter(_has_metric, section):
            yield _family(one, values[one.name])


def _of_server(meter: Meter, usage: Mapping[str, float | None]) -> _Families:
    yield _PREFIX + "info", "version of the HTTP server", [(_label("version", __version__), 1)]
    requests = sorted(meter.requests.items())
    counts = [(f'{{route="{route}",status="{status}"}}', count) for (route, status), count in requests]
    yield _PREFIX + "http_requests_total", "requests answered, refused ones too", counts
    bounds = zip([*BUCKETS_S, "+Inf"], accumulate(meter.buckets), strict=True)
    buckets = [(f'_bucket{{le="{bound}"}}', count) for bound, count in bounds]
    meaning = "duration of the event loop turn in which a request was answered; waiting for this turn is not included"
    yield _DURATION, meaning, [*buckets, ("_sum", round(meter.seconds, 6)), ("_count", sum(meter.buckets))]
    yield _PREFIX + "http_connections", "open connections, of at most API_MAX_CONNECTIONS", [("", meter.connections())]
    yield _PREFIX + "http_subscribers", "connections that follow /funding/stream", [("", meter.subscribers())]
    for one in PROCESS:
        yield one.metric.removeprefix("daemon_"), one.meaning, [("", usage[one.name])]


def _has_metric(one: Field) -> bool:
    return bool(one.metric)


def _family(one: Field, value: Any) -> tuple[str, str, _Samples]:
    name, brace, label = f"{_PREFIX}{one.metric}".partition("{")
    if type(value) is dict:  # one sample for each member, whose key is the value of the label
        return name, one.meaning, [(_label(label.rstrip("}"), key), value[key]) for key in sorted(value)]
    return name, one.meaning, [(brace + label, value)]


def _label(name: str, value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'{{{name}="{escaped}"}}'
