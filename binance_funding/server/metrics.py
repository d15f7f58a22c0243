"""The state file as Prometheus metrics, text format 0.0.4: one table, made from the schema. Pure.

Source: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from collections.abc import Iterator
from typing import Any

from .. import __version__
from ..schema import HEADER, PROCESS, REST, SERVED, STATUS, TOTALS, Field
from .view import View

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_PREFIX = "binance_funding_"
_Samples = list[tuple[str, Any]]
"""Labels and value of each; a value that is not known is None."""


def render(view: View) -> str:
    """Return all metrics of one state file; what the file does not know is left out."""
    families: dict[str, tuple[list[str], list[str]]] = {}
    for name, meaning, samples in _families(view):
        meanings, lines = families.setdefault(_PREFIX + name, ([], []))
        meanings.append(meaning)
        # Numbers as Python writes them are numbers of the format too, but for true and false.
        lines += [f"{_PREFIX}{name}{labels} {value + 0!r}" for labels, value in samples if value is not None]
    return "".join(_family_text(name, ", ".join(meanings), lines) for name, (meanings, lines) in families.items())


def _family_text(name: str, meaning: str, lines: list[str]) -> str:
    kind = "counter" if name.endswith("_total") else "gauge"
    described = f"# HELP {name} {meaning[0].upper()}{meaning[1:]}.", f"# TYPE {name} {kind}"
    return "\n".join([*described, *lines, ""])


def _families(view: View) -> Iterator[tuple[str, str, _Samples]]:
    state, status = view.state, view.status
    records = [(_label("symbol", symbol), record) for symbol, record in view.records.items()]
    for one in filter(_has_metric, SERVED):
        yield one.metric, one.meaning, [(label, record[one.name]) for label, record in records]
    yield "symbols", "symbols in the state file", [("", len(records))]
    totals, process = state["comparison"]["totals"], state["process"]
    sections = ((STATUS, status), (REST, status["rest"]), (TOTALS, totals), (PROCESS, process), (HEADER, state))
    for section, values in sections:
        for one in filter(_has_metric, section):
            yield _family(one, values[one.name])
    yield "info", "version of the HTTP server", [(_label("version", __version__), 1)]


def _has_metric(one: Field) -> bool:
    return bool(one.metric)


def _family(one: Field, value: Any) -> tuple[str, str, _Samples]:
    name, brace, label = one.metric.partition("{")
    if type(value) is dict:  # a sample for each member, under the label named
        return name, one.meaning, [(_label(label.rstrip("}"), key), value[key]) for key in sorted(value)]
    return name, one.meaning, [(brace + label, value)]


def _label(name: str, value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'{{{name}="{escaped}"}}'
