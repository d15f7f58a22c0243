"""Settings of all tests, and the summary of the skipped ones: which program or right this machine lacks."""

import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import settings

# hypothesis tries the same examples on every run, so that a failure can be repeated.
settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=100, database=None)
settings.load_profile("repeatable")

# A proxy that this machine's environment names does not reach the simulated exchange.
os.environ["no_proxy"] = "127.0.0.1,localhost"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print each reason for which tests were skipped, and how many.

    SKIPPED_TESTS names a file that gets a line for each of these tests. `make test` adds up several runs with it.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        return
    details = [report.longrepr for report in terminalreporter.getreports("skipped")]
    reasons = [detail[2].removeprefix("Skipped: ") for detail in details if isinstance(detail, tuple)]
    if reasons:
        terminalreporter.section("skipped tests")
        for reason, count in sorted(Counter(reasons).items()):
            terminalreporter.write_line(f"{count:7} {reason}")
    if file := os.environ.get("SKIPPED_TESTS"):
        with Path(file).open("a", encoding="utf-8") as lines:
            lines.writelines(f"{reason}\n" for reason in reasons)
