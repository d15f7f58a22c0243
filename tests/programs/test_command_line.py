"""What both programs do with their settings and their command line before they start."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from binance_funding.program import EX_UNAVAILABLE
from binance_funding.settings import DAEMON, EX_CONFIG, SERVER, help_text
from tests.support.programs import ROOT
from tests.support.waiting import PATIENCE_S

PROGRAMS = {DAEMON: "binance_funding_ws_daemon.py", SERVER: "funding_api_server.py"}


def run(program: str, folder: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a program to its own end in a folder."""
    return subprocess.run(
        [sys.executable, str(ROOT / PROGRAMS[program]), *arguments],
        cwd=folder,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_with_wrong_settings_stops_with_status_78(tmp_path: Path, program: str) -> None:
    """One line on stderr, no traceback, and the exit status after which systemd does not restart."""
    done = run(program, tmp_path, STALE_SECONDS="soon", API_PROT="1")
    assert done.returncode == 78
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "unknown setting API_PROT: did you mean API_PORT?" in done.stderr
    assert "STALE_SECONDS='soon' is not allowed: a number of seconds above 0" in done.stderr


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_warns_of_harmful_and_unknown_settings(tmp_path: Path, program: str) -> None:
    """A line for each, and it starts all the same. Here it ends because file and address cannot be had."""
    (tmp_path / ".env").write_text("PORT=80\nSTATE_FILE=nowhere/state.json\n", encoding="utf-8")
    done = run(program, tmp_path, REST_POLL_SECONDS="0.1", STALE="60", API_HOST="192.0.2.1")
    lines = [line.split("settings warning=", 1)[1] for line in done.stderr.splitlines() if "settings warning=" in line]
    assert done.returncode in (EX_CONFIG, EX_UNAVAILABLE)
    assert lines == [
        '"REST_POLL_SECONDS=0.1 uses a weight of 6001 a minute; Binance allows 2400"',
        '"PORT in .env is not a setting and has no effect"',
        '"STALE is not a setting and has no effect: did you mean STALE_SECONDS?"',
    ]


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_of_a_program_shows_its_settings(tmp_path: Path, program: str) -> None:
    """--help works without any setting and ends with status 0."""
    done = run(program, tmp_path, "--help")
    assert done.returncode == 0
    assert help_text(program) in done.stdout
