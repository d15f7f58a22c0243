"""The Grafana dashboard: every query run by a real Prometheus that scrapes the real programs, and its form."""

import itertools
import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from tests.exchange import Exchange, Market
from tests.exchange.rest import PREMIUM_INDEX
from tests.support.programs import Daemon, Server
from tests.support.prometheus import DASHBOARD, FOLDER, Prometheus, running, served_names
from tests.support.waiting import eventually

CONTENT: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
SYMBOL = "币安人生USDT"
VALUES = {"job": ".+", "instance": ".+", "symbol": SYMBOL, "__rate_interval": "10s"}
"""What Grafana puts in place of variables: `.+` for All, and at least four scrapes for the interval."""
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
SELECTED = 'job=~"$job", instance=~"$instance"'
METRIC = re.compile(r"\b(?:binance_funding|process)_\w+")


class Query(NamedTuple):
    """One query of a panel."""

    panel: str
    expression: str

    @property
    def filled_in(self) -> str:
        """The expression as Grafana sends it."""
        text = self.expression
        for name, value in VALUES.items():
            text = text.replace(f"${name}", value)
        return text


PANELS = [panel for panel in CONTENT["panels"] if panel["type"] != "row"]
QUERIES = [Query(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]
VARIABLES = {one["name"]: one for one in CONTENT["templating"]["list"]}


def names(queries: list[Query]) -> list[str]:
    """Name each query by its panel and its place there."""
    seen: dict[str, Iterator[int]] = {}
    return [f"{one.panel} {next(seen.setdefault(one.panel, itertools.count(1)))}" for one in queries]


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus with some scrapes of both programs, of which the first snapshots failed."""
    folder = tmp_path_factory.mktemp("dashboard")
    with Exchange(Market(usd_m=20, tradfi=5, coin_m=2, fundless=2), tick_s=0.5) as exchange:
        # A status is there with its first error: in good health there would be none to show.
        exchange.rest_fault(500, count=2, path=PREMIUM_INDEX)
        with (
            Daemon(exchange, folder, REST_POLL_SECONDS=1) as daemon,
            Server(folder) as server,
            running(folder / "prometheus", server.port) as client,
        ):
            daemon.wait_for_live()
            daemon.wait_for_line("REST recovered")
            yield client


@pytest.mark.parametrize("query", QUERIES, ids=names(QUERIES))
def test_every_query_returns_data(prometheus: Prometheus, query: Query) -> None:
    """Numbers, of the variables' values; an empty panel would look like peace."""
    assert "$" not in query.filled_in

    def values() -> list[str]:
        result = prometheus.ask("query", query=query.filled_in)["result"]
        found = [one["value"][1] for one in result]
        return found if "NaN" not in found else []

    assert not {"+Inf", "-Inf"} & set(eventually(values, f"data for {query.filled_in}"))


def test_a_query_without_data_would_be_noticed(prometheus: Prometheus) -> None:
    """Of a metric that there is not, and of a symbol that there is not."""
    for expression in ("binance_funding_nonsense", 'binance_funding_rate{symbol="NONSENSE"}'):
        assert prometheus.ask("query", query=expression)["result"] == []


@pytest.mark.parametrize(
    ("variable", "value"),
    [("job", "binance-funding"), ("instance", "127.0.0.1:"), ("symbol", SYMBOL)],
)
def test_every_variable_has_values(prometheus: Prometheus, variable: str, value: str) -> None:
    """Those that can be chosen are the labels of what is scraped."""
    question = Query(variable, VARIABLES[variable]["query"]["query"]).filled_in
    asked = re.fullmatch(r"label_values\((.*), (\w+)\)", question)
    assert asked is not None
    series, label = asked.groups()

    def found() -> list[str]:
        values: list[str] = prometheus.ask(f"label/{label}/values", **{"match[]": series})
        return [one for one in values if one.startswith(value)]

    assert len(eventually(found, f"values of {question}")) == 1


def documented_queries() -> list[str]:
    """Return the queries that the README shows."""
    table = (FOLDER / "README.md").read_text(encoding="utf-8").partition("## Queries")[2]
    return [
        query
        for row in re.findall(r"^\|.*\| (`.*`) \|$", table, re.MULTILINE)
        for query in row.strip("`").split("`, `")
    ]


def test_every_documented_query_returns_data(prometheus: Prometheus) -> None:
    """Those of the README, as they stand."""
    assert len(documented_queries()) > 5
    for query in documented_queries():
        eventually(lambda query=query: prometheus.ask("query", query=query)["result"], f"data for {query}")  # type: ignore[misc]


# Its form


def test_every_metric_named_is_one_that_the_server_has() -> None:
    """And all of them are confined to the job and the hosts chosen."""
    assert {name for query in QUERIES for name in METRIC.findall(query.expression)} - served_names() == set()
    for query in QUERIES:
        selectors = re.findall(METRIC.pattern + r"(\{[^}]*\})?", query.expression)
        assert all(selector.startswith("{" + SELECTED) for selector in selectors), query


def test_counters_are_shown_as_what_was_added() -> None:
    """A counter by itself only says when the program was started."""
    for query in QUERIES:
        counters = re.findall(r"(\w*\(?)(?:binance_funding|process)_\w+_(?:total|bucket|sum|count)\b", query.expression)
        assert set(counters) <= {"rate(", "increase("}, query


def test_every_panel_says_what_it_shows() -> None:
    """Title, description, unit, and a legend; titles and numbers are not used twice."""
    for panel in PANELS:
        assert re.search(r"[^.]$", panel["title"])
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert all(target["legendFormat"] for target in panel["targets"])
        references = [target["refId"] for target in panel["targets"]]
        assert references == list("ABC"[: len(references)])
    for attribute in ("id", "title"):
        found = [panel[attribute] for panel in CONTENT["panels"] if panel["type"] != "row" or attribute == "id"]
        assert len(set(found)) == len(found)


def test_every_panel_asks_the_source_that_was_chosen() -> None:
    """No panel is bound to the one Grafana on which it was made."""
    assert VARIABLES["datasource"]["query"] == "prometheus"
    for part in (*PANELS, *(target for panel in PANELS for target in panel["targets"])):
        assert part["datasource"] == SOURCE
    for name, variable in VARIABLES.items():
        assert name == "datasource" or variable["datasource"] == SOURCE


def test_no_panel_covers_another() -> None:
    """All of them are within the 24 columns of the grid."""
    taken: set[tuple[int, int]] = set()
    for panel in CONTENT["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = itertools.product(
            range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        )
        for cell in cells:
            assert cell not in taken, panel["title"]
            taken.add(cell)


def test_freshness_comes_first() -> None:
    """Whoever opens the dashboard sees at once whether the rates can be used."""
    first = [panel["title"] for panel in PANELS if panel["gridPos"]["y"] <= 1]
    assert first[:2] == ["Oldest data", "Newest data"]
