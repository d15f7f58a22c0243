"""Settings of all tests, and the summary of the programs that this machine lacks."""

import os
from collections import Counter
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.tools import MissingProgram

_MISSING = "missing program"

# hypothesis tries the same examples on every run, so that a failure can be repeated.
settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=100, database=None)
settings.load_profile("repeatable")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(call: pytest.CallInfo[None]) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note the missing program in the report, which reaches the summary also from a process of xdist."""
    report = yield
    if call.excinfo is not None and isinstance(call.excinfo.value, MissingProgram):
        report.user_properties.append((_MISSING, str(call.excinfo.value)))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests were skipped for each missing program.

    MISSING_PROGRAMS names a file that gets a line for each of these tests. `make test` adds up several runs with it.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        return
    skipped = terminalreporter.getreports("skipped")
    missing = [text for report in skipped for name, text in report.user_properties if name == _MISSING]
    if missing:
        terminalreporter.section("tests skipped because a program is missing")
        for text, count in sorted(Counter(missing).items()):
            terminalreporter.write_line(f"{count:4} {text}")
    if file := os.environ.get("MISSING_PROGRAMS"):
        with Path(file).open("a", encoding="utf-8") as lines:
            lines.writelines(f"{text}\n" for text in missing)
