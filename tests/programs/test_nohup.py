"""Programs that are started with nohup go on when their terminal is closed."""

import signal
from pathlib import Path

import pytest

from tests.exchange import Exchange
from tests.support.programs import Daemon, Program, Server


class NohupDaemon(Daemon):
    """The daemon under nohup."""

    def command(self, script: str, folder: Path) -> list[str]:
        """Return what runs the script in a folder."""
        return ["nohup", *super().command(script, folder)]


class NohupServer(Server):
    """The server under nohup."""

    def command(self, script: str, folder: Path) -> list[str]:
        """Return what runs the script in a folder."""
        return ["nohup", *super().command(script, folder)]


@pytest.mark.parametrize("kind", ["daemon", "server"])
def test_sighup_is_ignored_under_nohup(exchange: Exchange, tmp_path: Path, kind: str) -> None:
    """Both programs go on with their work, and SIGTERM still ends them in good order."""
    program: Program
    with NohupDaemon(exchange, tmp_path) if kind == "daemon" else NohupServer(tmp_path) as program:
        if isinstance(program, Daemon):
            program.wait_for_live()
        program.process.send_signal(signal.SIGHUP)
        if isinstance(program, Daemon):
            program.wait_for_newer_data()
        else:
            assert isinstance(program, Server)
            assert program.get("/")[0] == 200
        assert program.process.poll() is None
        program.terminate()
        assert program.process.returncode == 0
