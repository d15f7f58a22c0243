"""What docs/clients.md answers in a line, and what it says of the numbers, tried with the real programs."""

import re
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from tests.exchange import STREAM_1S, Exchange, Market
from tests.support.examples import DOCUMENT, Example, Host, require, running
from tests.support.waiting import PATIENCE_S, eventually

HOUR_S = 3600
BEFORE_THE_HOUR_S = 20


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host with a small market."""
    with running(Exchange(Market(usd_m=40, tradfi=10), tick_s=1.0), tmp_path_factory.mktemp("host")) as host:
        yield host


def answered(host: Host, question: str, path: str, symbol: str = "BTCUSDT") -> tuple[str, Any]:
    """Return what is printed below a question, and what a path said before and after that."""

    def unchanged() -> tuple[str, Any] | None:
        before, answer, after = _without_age(host, path), host.ask(question, symbol), _without_age(host, path)
        assert (answer.returncode, answer.stderr) == (0, "")
        return (answer.stdout, before) if before == after else None

    return eventually(unchanged, "an answer between two changes")


def _without_age(host: Host, path: str) -> Any:
    _, content = host.server.get(path)
    for record in content["data"] if isinstance(content.get("data"), list) else [content]:
        record.pop("ageSeconds", None)
    return content


class TestQuestions:
    """Those that are answered in a line."""

    def test_what_pays_most(self, host: Host) -> None:
        """Ten symbols with their rates, the highest of a year first."""
        printed, best = answered(host, "What pays most now?", "/funding/batch?sort=-annualizedFundingRate&limit=10")
        pattern = re.compile(r"(\S+) (\S+) % each (\d) h, (\S+) % a year")
        lines = [pattern.fullmatch(line) for line in printed.splitlines()]
        assert len(lines) == len(best["data"]) == 10
        for line, record in zip(lines, best["data"], strict=True):
            assert line is not None, printed
            assert (line[1], int(line[3])) == (record["symbol"], record["fundingIntervalHours"])
            assert float(line[2]) == pytest.approx(record["fundingRate"] * 100)
            assert float(line[4]) == pytest.approx(record["annualizedFundingRate"] * 100, abs=0.006)

    def test_when_is_the_next_funding(self, host: Host) -> None:
        """The time of the symbol's next funding, and the minutes until then."""
        printed, record = answered(host, "When is the next funding of a symbol?", "/funding/BTCUSDT")
        when = datetime.fromtimestamp(record["nextFundingTime"] / 1000, timezone.utc)
        minutes = int((when - datetime.now(timezone.utc)).total_seconds() // 60)
        assert printed in [f"{when:%Y-%m-%dT%H:%M:%SZ}, in {passed} min\n" for passed in (minutes, minutes + 1)]

    def test_whose_funding_is_next(self, host: Host) -> None:
        """Every symbol that is settled at the next time when any is."""
        printed, every = answered(host, "Whose funding is next, and when?", "/funding")
        records = every["data"].values()
        first_ms = min(record["nextFundingTime"] for record in records)
        symbols = [record["symbol"] for record in records if record["nextFundingTime"] == first_ms]
        when = datetime.fromtimestamp(first_ms / 1000, timezone.utc)
        assert printed == f"{when:%Y-%m-%dT%H:%M:%SZ}: {' '.join(symbols)}\n"

    def test_what_a_position_pays(self, host: Host) -> None:
        """The fee of 10,000 USDT at the next funding, and a day's at the same rate."""
        symbol = next(
            one for one in sorted(host.exchange.market.symbols) if host.exchange.market.funding_interval_h(one) == 1
        )
        question = "How much does a long position of 10,000 USDT pay?"
        printed, record = answered(host, question, f"/funding/{symbol}", symbol)
        fee, day = map(float, re.findall(r"(\S+) USDT", printed))
        assert fee == pytest.approx(10_000 * record["fundingRate"], abs=0.0001)
        assert day == pytest.approx(10_000 * record["fundingRate"] * 24 / record["fundingIntervalHours"], abs=0.0001)

    def test_is_the_data_fresh(self, host: Host) -> None:
        """In one word, and what is wrong."""
        assert host.ask("Is the data fresh, and if not, why?").stdout == "healthy, nothing is wrong\n"


def test_every_second(tmp_path: Path) -> None:
    """With the setting that the document shows, there is a new record of the stream each second."""
    streams = re.findall(r"BINANCE_WS_URLS=\S+\?streams=([^\s`]+)", DOCUMENT.read_text(encoding="utf-8"))
    assert streams == [STREAM_1S]
    with running(Exchange(Market(usd_m=5, tradfi=2)), tmp_path, every_second=True) as host:
        seen_ms = set[int]()

        def three_in_a_row() -> bool:
            record = host.server.get("/funding/BTCUSDT")[1]
            if record["source"] == "websocket":
                seen_ms.add(record["eventTime"])
            return any({at_ms, at_ms + 1000, at_ms + 2000} <= seen_ms for at_ms in seen_ms)

        eventually(three_in_a_row, "a record of the stream for each of three seconds")


def test_settlement(tmp_path: Path) -> None:
    """The script shows the rate before and after a settlement, between what was settled before and then."""
    require("bash", "curl", "jq")
    exchange = Exchange(Market(usd_m=40, tradfi=10), tick_s=1.0)
    exchange.clock_offset_s = HOUR_S - time.time() % HOUR_S - BEFORE_THE_HOUR_S
    with (
        running(exchange, tmp_path) as host,
        Example("settlement.sh", tmp_path, {**host.addresses, "sleep 5": "sleep 1"}) as script,
    ):
        assert script.wait(2 * PATIENCE_S) == 0, script.log
        symbol, *lines = script.log
        found = [re.fullmatch(r"(\S+)  (shown|settled) +(\S+) %", line) for line in lines]
        assert [one and one[2] for one in found] == ["settled", "shown", "settled", "shown"], script.log
        times_s = [datetime.fromisoformat(one[1].replace("Z", "+00:00")).timestamp() for one in found if one]
        percents = [float(one[3]) for one in found if one]
        assert times_s[1] < times_s[2] <= times_s[3]
        assert times_s[2] % HOUR_S == 0
        expected = [exchange.market.expected(symbol, round(at_s * 1000)).funding_rate * 100 for at_s in times_s]
        assert percents == pytest.approx(expected)
        assert percents[1] == pytest.approx(percents[2], abs=0.001)
