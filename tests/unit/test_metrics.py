"""The metrics, read by the letter of the exposition format."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from binance_funding import __version__
from binance_funding.schema import HEADER, PROCESS, REST, SERVED, STATUS, TOTALS
from binance_funding.server import metrics
from binance_funding.server.http.meter import BUCKETS_S, Meter
from binance_funding.state_file import EMPTY
from tests.support.clock import WALL_S
from tests.support.samples import record, state, status, view

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LABEL = rf'({NAME})="((?:[^"\\\n]|\\["\\n])*)"'
SAMPLE = re.compile(rf"({NAME})(?:\{{({LABEL}(?:,{LABEL})*)\}})? (\S+)")
NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:e[+-]?[0-9]+)?")
ESCAPES = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}


class Family(NamedTuple):
    """One metric: its type, its help, and its values by label."""

    kind: str
    help: str
    samples: dict[tuple[tuple[str, str], ...], float]


def blocks(text: str) -> Iterator[tuple[str, str, str, list[str]]]:
    """Split the text into name, type, help and sample lines; HELP and TYPE must come first and once each."""
    assert text.endswith("\n")
    lines = text[:-1].split("\n")
    while lines:
        help_line, type_line = lines.pop(0), lines.pop(0)
        described = re.fullmatch(rf"# HELP ({NAME}) (\S.*)", help_line)
        typed = re.fullmatch(rf"# TYPE ({NAME}) (counter|gauge|histogram)", type_line)
        assert described is not None, help_line
        assert typed is not None, type_line
        assert described[1] == typed[1]
        samples = []
        while lines and not lines[0].startswith("#"):
            samples.append(lines.pop(0))
        yield typed[1], typed[2], described[2], samples


def parse(text: str) -> dict[str, Family]:
    """Read the text format strictly."""
    families: dict[str, Family] = {}
    for name, kind, meaning, lines in blocks(text):
        assert name not in families, f"{name} comes twice"
        samples: dict[tuple[tuple[str, str], ...], float] = {}
        for line in lines:
            match = SAMPLE.fullmatch(line)
            assert match is not None, line
            part = match[1].removeprefix(name)
            assert part in (("_bucket", "_sum", "_count") if kind == "histogram" else ("",)), line
            value = match[match.re.groups]
            assert NUMBER.fullmatch(value), line
            pairs = re.findall(LABEL, match[2] or "")
            labels = tuple((key, re.sub(r"\\.", lambda m: ESCAPES[m[0]], text)) for key, text in pairs)
            labels = (("", part), *labels) if part else labels
            assert labels not in samples, line
            samples[labels] = float(value)
        families[name] = Family(kind, meaning, samples)
    return families


def values(content: dict[str, Any]) -> dict[str, Any]:
    """Return what is rendered: name without prefix to value, or to values by label."""
    found: dict[str, Any] = {}
    for name, family in parse(metrics.render(view(content))).items():
        short = name.removeprefix("binance_funding_")
        found[short] = {labels[0][1]: value for labels, value in family.samples.items() if labels}
        if () in family.samples:
            found[short] = family.samples[()]
    return found


def test_every_documented_metric_is_there_with_its_value() -> None:
    """All names, labels and numbers of a state file."""
    records = {"BTCUSDT": record(), "ETHUSDT": record(fundingRate=-1e-05, markPrice=3000, updatedAt=WALL_S - 1.5)}
    records["ETHUSDT"]["fundingIntervalHours"] = 4
    assert values(state(records)) == {
        "rate": {"BTCUSDT": 0.0001, "ETHUSDT": -1e-05},
        "mark_price": {"BTCUSDT": 91725.87823913, "ETHUSDT": 3000},
        "updated_timestamp_seconds": {"BTCUSDT": WALL_S, "ETHUSDT": WALL_S - 1.5},
        "interval_seconds": {"BTCUSDT": 28800, "ETHUSDT": 14400},
        "annualized_rate": {"BTCUSDT": 0.1095, "ETHUSDT": -0.0219},
        "symbols": 2,
        "stream_connections": 2,
        "stream_messages_total": 1234,
        "stream_disconnects_total": {"planned": 2, "unplanned": 1},
        "last_message_timestamp_seconds": WALL_S - 0.5,
        "rejected_rows_total": 7,
        "fallback_active": 0,
        "stream_lag_seconds": 0.25,
        "symbols_from_rest": 0,
        "symbols_behind": 0,
        "symbols_halted": 0,
        "rest_polls_total": 60,
        "rest_errors_total": {"429": 2, "timeout": 1},
        "comparison_rows_total": 90,
        "comparison_mismatches_total": 2,
        "gaps_total": 4,
        "gap_seconds_total": 61.5,
        "clock_offset_seconds": -0.125,
        "age_uncertainty_seconds": 0.0312,
        "symbol_seconds_total": 7200,
        "fresh_symbol_seconds_total": {"5s": 7100, "12s": 7190, "limit": 7200},
        "state_file_timestamp_seconds": WALL_S,
        "daemon_start_time_seconds": WALL_S - 7200,
        "daemon_process_cpu_seconds_total": 12.5,
        "daemon_process_resident_memory_bytes": 36 << 20,
        "daemon_process_virtual_memory_bytes": 512 << 20,
        "daemon_process_open_fds": 14,
        "daemon_process_max_fds": 1024,
        "daemon_process_start_time_seconds": WALL_S - 7200.5,
    }


def test_labels_have_the_documented_names() -> None:
    """Dashboards select by them."""
    names = {
        name.removeprefix("binance_funding_"): {key for labels in family.samples for key, _ in labels}
        for name, family in parse(metrics.render(view(state()))).items()
    }
    assert {name: keys for name, keys in names.items() if keys} == {
        "rate": {"symbol"},
        "mark_price": {"symbol"},
        "interval_seconds": {"symbol"},
        "annualized_rate": {"symbol"},
        "updated_timestamp_seconds": {"symbol"},
        "stream_disconnects_total": {"kind"},
        "rest_errors_total": {"status"},
        "fresh_symbol_seconds_total": {"within"},
    }


def test_counters_and_only_counters_end_in_total() -> None:
    """And every name has the project's prefix."""
    for name, family in parse(metrics.render(view(state()))).items():
        assert name.startswith("binance_funding_")
        assert (family.kind == "counter") == name.endswith("_total"), name


@pytest.mark.parametrize("symbol", ['A"B', "A\\B", "A\\nB", "A\nB", "币安人生USDT", "A}B", 'A\\"', " "])
def test_labels_are_escaped(symbol: str) -> None:
    """Whatever a symbol holds, it is read back as it was."""
    assert values(state({symbol: record()}))["rate"] == {symbol: 0.0001}


def test_every_metric_of_the_schema_is_rendered() -> None:
    """A field that names one needs nothing else."""
    declared = {
        one.metric.partition("{")[0] for one in (*HEADER, *SERVED, *STATUS, *REST, *TOTALS, *PROCESS) if one.metric
    }
    assert values(state()).keys() == declared | {"symbols"}


def test_help_is_a_sentence() -> None:
    """Made of the meaning of the fields, all of them where several share a metric."""
    families = parse(metrics.render(view(state())))
    for family in families.values():
        assert re.fullmatch(r"[A-Z].*[^.]\.", family.help), family.help
    assert families["binance_funding_stream_disconnects_total"].help == "Connections lost, connections replaced."


def test_an_empty_file_leaves_out_what_it_does_not_know() -> None:
    """No sample is made up; names and types are there all the same."""
    found = values({**EMPTY, "updated_at": WALL_S})
    assert {name: value for name, value in found.items() if value != {}} == {
        "symbols": 0,
        "state_file_timestamp_seconds": WALL_S,
        "rest_polls_total": 0,
        "comparison_rows_total": 0,
        "comparison_mismatches_total": 0,
    }
    assert found.keys() == values(state()).keys()


def test_what_is_unknown_for_now_is_left_out() -> None:
    """Null in the file is no sample, not zero."""
    unknown = status(last_message_time=None, clock_offset_seconds=None, stream_lag_seconds=None)
    found = values(state(connection_status=unknown))
    assert found["last_message_timestamp_seconds"] == found["clock_offset_seconds"] == found["stream_lag_seconds"] == {}


def test_an_active_fallback_is_one() -> None:
    """A boolean is a number here."""
    assert values(state(connection_status=status(fallback_active=True)))["fallback_active"] == 1


@pytest.mark.parametrize("number", [1e-12, 1e22, 2**53, -0.0, 5e-324])
def test_numbers_are_rendered_without_loss(number: float) -> None:
    """In whatever spelling Python prefers."""
    assert values(state({"A": record(markPrice=number)}))["mark_price"] == {"A": number}


# The server's own


def of_server(meter: Meter) -> dict[str, Family]:
    """Return what is rendered of this meter and of a process that uses one of each."""
    return parse(metrics.render_server(meter, dict.fromkeys((one.name for one in PROCESS), 1)))


def busy_meter() -> Meter:
    """Return one that has counted two requests of 3 ms, and one of 3 s."""
    meter = Meter()
    for requests, code, lasted_s in ((2, 200, 0.003), (1, 404, 3.0)):
        for _ in range(requests):
            meter.count("/funding/{symbol}", code)
        meter.measure(lasted_s)
    meter.connections, meter.subscribers = lambda: 7, lambda: 5
    return meter


def test_the_server_shows_what_it_counted() -> None:
    """Its version, requests by route and status, connections, and the conventional names for its process."""
    families = of_server(busy_meter())
    assert families["binance_funding_info"].samples == {(("version", __version__),): 1}
    requests = families["binance_funding_http_requests_total"]
    assert requests.kind == "counter"
    assert {tuple(value for _, value in labels): count for labels, count in requests.samples.items()} == {
        ("/funding/{symbol}", "200"): 2,
        ("/funding/{symbol}", "404"): 1,
        ("other", "500"): 0,
        ("other", "503"): 0,
    }
    assert {name for labels in requests.samples for name, _ in labels} == {"route", "status"}
    assert families["binance_funding_http_connections"].samples == {(): 7}
    assert families["binance_funding_http_subscribers"].samples == {(): 5}
    of_process = {name: family.kind for name, family in families.items() if name.startswith("process_")}
    assert of_process == {
        "process_cpu_seconds_total": "counter",
        "process_resident_memory_bytes": "gauge",
        "process_virtual_memory_bytes": "gauge",
        "process_open_fds": "gauge",
        "process_max_fds": "gauge",
        "process_start_time_seconds": "gauge",
    }


def test_the_durations_are_a_histogram() -> None:
    """Each bucket holds those of the smaller ones too; the last one and the count hold all."""
    histogram = of_server(busy_meter())["binance_funding_http_request_duration_seconds"]
    assert histogram.kind == "histogram"
    buckets = [(dict(labels)["le"], n) for labels, n in histogram.samples.items() if labels[0][1] == "_bucket"]
    assert buckets == [*((str(bound), 2 if bound >= 0.005 else 0) for bound in BUCKETS_S), ("+Inf", 3)]
    others = {labels[0][1]: value for labels, value in histogram.samples.items() if len(labels) == 1}
    assert others == {"_sum": pytest.approx(3.006), "_count": 3}


def test_the_server_has_what_the_daemon_has() -> None:
    """The same figures of both processes, under the same names but for the prefix; no name of the file's twice."""
    of_file, own = parse(metrics.render(view(state()))), of_server(Meter())
    prefix = "binance_funding_daemon_"
    of_daemon = {name.removeprefix(prefix) for name in of_file if name.startswith(prefix + "process_")}
    assert of_daemon == {name for name in own if not name.startswith("binance_funding_")}
    assert own.keys().isdisjoint(of_file)


def test_what_a_process_does_not_know_is_left_out() -> None:
    """No sample is made up."""
    usage = {**dict.fromkeys((one.name for one in PROCESS), 1), "open_fds": None}
    assert parse(metrics.render_server(Meter(), usage))["process_open_fds"].samples == {}
