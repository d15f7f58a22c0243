"""`--check` as somebody runs it who has never seen the code: its lines and its exit status."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.exchange import Exchange
from tests.support.programs import Program, free_port

_LINE = re.compile(r"ok   [A-Za-z ]+: .+|FAIL [A-Za-z ]+: .+; .+")
STEPS = ["settings", "state file", "DNS", "proxy", "TCP", "TLS", "handshake", "mark prices"]
STEPS += ["lag", "REST", "clock", "HTTP port"]
"""In the order of the lines."""


@dataclass(frozen=True)
class Report:
    """What a check said."""

    status: int
    lines: list[str]

    def of(self, step: str) -> list[str]:
        """Return the lines of one step."""
        return [line for line in self.lines if line[5:].startswith(f"{step}: ")]

    @property
    def failures(self) -> list[str]:
        """The lines of the steps that failed."""
        return [line for line in self.lines if line.startswith("FAIL")]

    @property
    def failure(self) -> str:
        """The only line of a step that failed."""
        (line,) = self.failures
        return line


class HostCheck(Program):
    """The daemon's `--check` against a simulated exchange, each silence and each REST answer waited for 1 s."""

    def __init__(self, exchange: Exchange, folder: Path, **settings: Any) -> None:
        addresses = {"BINANCE_WS_URLS": exchange.ws_url, "BINANCE_REST_URL": exchange.rest_url}
        patience = {"SILENCE_SECONDS": 1, "REST_TIMEOUT_SECONDS": 1}
        given = {**addresses, **patience, "API_PORT": free_port(), **settings}
        super().__init__("binance_funding_ws_daemon.py", folder, given, "--check")

    def report(self) -> Report:
        """Wait for the end and check what holds of every report: order, form, exit status."""
        report = Report(self.wait(), self.log)
        text = "\n".join(report.lines)
        assert all(_LINE.fullmatch(line) for line in report.lines), text
        steps = [line[5:].partition(":")[0] for line in report.lines]
        assert steps == sorted(steps, key=STEPS.index), text
        assert report.status == (1 if report.failures else 0), text
        return report


def check_host(exchange: Exchange, folder: Path, **settings: Any) -> Report:
    """Run a check to its end; return what it said."""
    with HostCheck(exchange, folder, **settings) as check:
        return check.report()
