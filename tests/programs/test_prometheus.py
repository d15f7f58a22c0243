"""The metrics as Prometheus itself sees them, and the alert rules by its own tools.

The tools come with the Debian package prometheus. Without them these tests are skipped; in CI they must be there.
"""

import json
import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from binance_funding.server import metrics
from binance_funding.state_file import EMPTY
from tests.exchange import Exchange, Market
from tests.support.programs import ROOT, Daemon, Server
from tests.support.prometheus import (
    ALERTS,
    ALERTS_TEST,
    FOLDER,
    documented_config,
    own_metrics,
    running,
    served_names,
)
from tests.support.samples import record, state, status, view
from tests.support.tools import find
from tests.support.waiting import PATIENCE_S, eventually

UNICODE_SYMBOL = "币安人生USDT"


@pytest.fixture
def promtool() -> str:
    """Where promtool is."""
    return find("promtool", "prometheus")


def run(*command: str, stdin: str = "") -> tuple[int, str]:
    """Run a tool; return its exit status and all it said."""
    ended = subprocess.run(
        command, input=stdin.encode(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=PATIENCE_S
    )
    return ended.returncode, ended.stdout.decode()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(state({"BTCUSDT": record(), UNICODE_SYMBOL: record(), 'A"\\\n': record()}), id="all is known"),
        pytest.param(
            state(connection_status=status(clock_offset_seconds=None, last_message_time=None)), id="some is unknown"
        ),
        pytest.param(EMPTY, id="nothing is known"),
    ],
)
def test_promtool_finds_nothing_to_say_about_the_metrics(promtool: str, content: dict[str, Any]) -> None:
    """Names, types, help and syntax: neither an error nor a hint, but for the unit in which funding is spoken of."""
    _, said = run(promtool, "check", "metrics", stdin=metrics.render(view(content)) + own_metrics())
    assert said == ""


def test_promtool_would_say_what_is_wrong(promtool: str) -> None:
    """The check above can fail: a counter without _total is found."""
    text = metrics.render(view(state())).replace("rest_polls_total", "rest_polls")
    status, said = run(promtool, "check", "metrics", stdin=text)
    assert status != 0
    assert 'binance_funding_rest_polls counter metrics should have "_total" suffix' in said


def test_alert_rules_are_valid(promtool: str) -> None:
    """Expressions and templates parse."""
    status, said = run(promtool, "check", "rules", str(ALERTS))
    assert status == 0, said
    assert "SUCCESS" in said


DOCUMENTS = [ALERTS, ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_metric_named_is_one_that_the_server_has(path: Path) -> None:
    """An alert on a name that does not exist is silent for ever, and so is a dashboard. Paths and programs are none."""
    name = re.compile(r"(?<![/\w])(?:binance_funding|process)_[a-z_]+\b(?!\.py)")
    named = set(name.findall(path.read_text(encoding="utf-8")))
    assert named - served_names() == set()
    assert len(named) > 20 or path.parent != FOLDER


def test_every_metric_of_the_server_itself_is_documented() -> None:
    """Those of the state file are in the tables of docs/state-file.md, which are made from the schema."""
    table = (FOLDER / "README.md").read_text(encoding="utf-8").partition("## The server's own metrics")[2]
    for name in re.findall(r"(?m)^# TYPE (\S+)", own_metrics()):
        assert re.search(rf"`{name}[`{{]", table), name


def alert_names() -> list[str]:
    """Return the names of all alerts."""
    return re.findall(r"- alert: (\w+)", ALERTS.read_text(encoding="utf-8"))


def test_every_alert_says_how_bad_it_is_and_what_to_do() -> None:
    """Each has for, severity, summary and description."""
    blocks = ALERTS.read_text(encoding="utf-8").split("- alert: ")[1:]
    for block in blocks:
        for part in (
            r"expr: ",
            r"for: [1-9]\d*m\n",
            r"severity: (critical|warning|info)\n",
            "summary: ",
            "descript",
            "runbook",
        ):
            assert len(re.findall(part, block)) == 1, (block, part)
    assert len(set(alert_names())) == len(blocks) >= 10


def test_every_alert_leads_to_what_to_do() -> None:
    """To a heading of its own in docs/operations.md, where it is installed; no heading speaks of another alert."""
    links = re.findall(r"- alert: (\w+)\n.*?runbook_url: (\S+)\n", ALERTS.read_text(encoding="utf-8"), re.DOTALL)
    installed = "file:///opt/binance-funding/current/docs/operations.md"
    assert links == [(name, f"{installed}#{name.lower()}") for name in alert_names()]
    headings = re.findall(r"^### (\w+)$", (ROOT / "docs" / "operations.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert [name for name in headings if name.startswith("BinanceFunding")] == alert_names()


def test_alert_rules_pass_their_unit_tests(promtool: str) -> None:
    """Each alert fires when it must, with the words it must say, and does not before."""
    status, said = run(promtool, "test", "rules", str(ALERTS_TEST))
    assert status == 0, said
    assert "SUCCESS" in said


def test_one_lucky_symbol_does_not_keep_the_alert_on_stale_data_silent(promtool: str, tmp_path: Path) -> None:
    """It speaks of the market: 200 symbols stand still, one advances."""
    stamps = {f"S{number}": "0x40" for number in range(200)} | {"LUCKY": "0+15x40"}
    series = [
        {"series": f'binance_funding_updated_timestamp_seconds{{instance="a", symbol="{name}"}}', "values": values}
        for name, values in stamps.items()
    ]
    summary = "No new funding rate on a for 5m 0s"
    name = "BinanceFundingDataStale"
    description = re.search(rf"alert: {name}.*?description: >-\n(.*?)\n\n", ALERTS.read_text(), re.DOTALL)
    assert description is not None
    alert = {
        "exp_labels": {"severity": "critical", "instance": "a"},
        "exp_annotations": {
            "summary": summary,
            "description": " ".join(description[1].split()),
            "runbook_url": f"file:///opt/binance-funding/current/docs/operations.md#{name.lower()}",
        },
    }
    case = {"alertname": name, "eval_time": "5m", "exp_alerts": [alert]}
    test = {"interval": "15s", "input_series": series, "alert_rule_test": [case]}
    content = {"rule_files": [str(ALERTS)], "evaluation_interval": "15s", "tests": [test]}
    (tmp_path / "test.yml").write_text(json.dumps(content), encoding="utf-8")  # JSON is YAML too
    status, said = run(promtool, "test", "rules", str(tmp_path / "test.yml"))
    assert status == 0, said


def failures(promtool: str, folder: Path, rules: str) -> dict[str, set[tuple[bool, bool]]]:
    """Test other rules by the unit tests; return by alert its failures: whether it had to fire, and whether it did."""
    (folder / ALERTS.name).write_text(rules, encoding="utf-8")
    shutil.copy(ALERTS_TEST, folder)
    status, said = run(promtool, "test", "rules", str(folder / ALERTS_TEST.name))
    assert status != 0
    failed = defaultdict(set)
    # An empty list is written "[]", a list of alerts begins with "[" and a line break.
    for name, nothing_due, nothing_came in re.findall(
        r"alertname: (\w+),.*?exp:\[(\]?).*?got:\[(\]?)", said, re.DOTALL
    ):
        failed[name].add((not nothing_due, not nothing_came))
    return failed


EXPRESSION = re.compile(r"expr: (?:>-\n)?.*?(?=\n +for: )", re.DOTALL)


def test_unit_tests_notice_an_alert_that_never_fires(promtool: str, tmp_path: Path) -> None:
    """Of every alert it is tested that it fires."""
    rules, count = EXPRESSION.subn("expr: vector(0) > 1", ALERTS.read_text(encoding="utf-8"))
    assert count == len(alert_names())
    failed = failures(promtool, tmp_path, rules)
    assert {name for name, cases in failed.items() if (True, False) in cases} == set(alert_names())


def test_unit_tests_notice_an_alert_that_always_fires(promtool: str, tmp_path: Path) -> None:
    """Of every alert it is tested that it can be silent."""
    rules, count = EXPRESSION.subn("expr: vector(1)", ALERTS.read_text(encoding="utf-8"))
    assert count == len(alert_names())
    failed = failures(promtool, tmp_path, re.sub(r"for: \w+", "for: 0s", rules))
    assert {name for name, cases in failed.items() if (False, True) in cases} == set(alert_names())


def test_unit_tests_notice_an_alert_that_does_not_wait(promtool: str, tmp_path: Path) -> None:
    """Of every alert it is tested that it gives a passing trouble the time to pass."""
    rules = re.sub(r"for: \w+", "for: 0s", ALERTS.read_text(encoding="utf-8"))
    failed = failures(promtool, tmp_path, rules)
    assert {name for name, cases in failed.items() if (False, True) in cases} == set(alert_names())


def test_documented_configuration_is_valid(promtool: str, tmp_path: Path) -> None:
    """The README's scrape configuration, with the rules beside it as it says."""
    (tmp_path / "prometheus.yml").write_text(documented_config(), encoding="utf-8")
    shutil.copy(ALERTS, tmp_path)
    status, said = run(promtool, "check", "config", str(tmp_path / "prometheus.yml"))
    assert status == 0, said
    assert "1 rule files found" in said


def test_prometheus_scrapes_what_the_exchange_sent(tmp_path: Path) -> None:
    """Every rate and mark price that Prometheus holds of one scrape is a pair the exchange sent, of every symbol."""
    market = Market(usd_m=20, tradfi=5, coin_m=2, fundless=2)
    assert UNICODE_SYMBOL in market.symbols
    with (
        Exchange(market, tick_s=0.5) as exchange,
        Daemon(exchange, tmp_path) as daemon,
        Server(tmp_path) as server,
        running(tmp_path / "prometheus", server.port) as client,
    ):
        daemon.wait_for_live()
        first_tick_ms = exchange.ticks[-1]

        def pairs() -> dict[str, tuple[float, float]]:
            """Rate and mark price by symbol, where both are of the same scrape, and that of fresh data."""
            read = {
                name: client.samples(f"binance_funding_{name}")
                for name in ("rate", "updated_timestamp_seconds", "mark_price")
            }
            found: dict[tuple[str, float], dict[str, float]] = defaultdict(dict)
            for name, samples in read.items():
                for labels, time_s, value in samples:
                    assert set(labels) == {"__name__", "job", "instance", "symbol"}
                    found[labels["symbol"], time_s][name] = value
            return {
                symbol: (of["rate"], of["mark_price"])
                for (symbol, _), of in found.items()
                if len(of) == len(read) and of["updated_timestamp_seconds"] * 1000 > first_tick_ms
            }

        scraped: dict[str, tuple[float, float]] = {}

        def is_complete() -> bool:
            scraped.update(pairs())
            return scraped.keys() == market.symbols

        eventually(is_complete, "all symbols in one scrape")
        ticks = exchange.ticks
        for symbol, pair in scraped.items():
            sent = [market.expected(symbol, tick_ms)[:2] for tick_ms in ticks]
            assert pair in sent, symbol

        (target,) = client.ask("targets")["activeTargets"]
        assert (target["health"], target["lastError"]) == ("up", "")
        (group,) = client.ask("rules")["groups"]
        assert [rule["name"] for rule in group["rules"]] == alert_names()


def test_prometheus_scrapes_a_server_without_a_state_file(tmp_path: Path) -> None:
    """The server's own metrics are there, and so is what the first alert looks for: no metric of the file."""
    with Server(tmp_path) as server, running(tmp_path / "prometheus", server.port) as client:
        eventually(lambda: [value for _, _, value in client.samples("binance_funding_info")] == [1.0], "metrics")
        missing = "up unless on (job, instance) binance_funding_state_file_timestamp_seconds"
        assert len(client.ask("query", query=missing)["result"]) == 1
