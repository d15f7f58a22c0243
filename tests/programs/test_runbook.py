"""The commands that docs/operations.md gives for alerts, run by a shell as they stand there, but for the port."""

import os
import re
import subprocess
from pathlib import Path

from tests.exchange import Exchange
from tests.support.http_client import Client
from tests.support.programs import ROOT, Daemon, Server
from tests.support.tools import find
from tests.support.waiting import eventually

SECTION = (
    (ROOT / "docs" / "operations.md").read_text(encoding="utf-8").partition("\n## Alerts\n")[2].partition("\n## ")[0]
)
BLOCKS = re.findall(r"^```\n(.*?)\n```$", SECTION, re.DOTALL | re.MULTILINE)


def command(begins: str, server: Server) -> str:
    """Return the one documented command that begins like this, for the port of this server."""
    found: str
    (found,) = [block for block in BLOCKS if block.startswith(begins)]
    assert "8888" in found
    return found.replace("8888", str(server.port))


def sh(line: str, *path: Path) -> str:
    """Run a line as cron does; return what it prints. It finds programs in these folders first."""
    for tool, package in (("curl", "curl"), ("jq", "jq"), ("ss", "iproute2")):
        if tool in re.findall(r"[a-z]+", line):
            find(tool, package)
    environment = {"PATH": ":".join([*map(str, path), os.environ["PATH"]])}
    done = subprocess.run(
        ["/bin/sh", "-c", line],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=30,
    )
    return done.stdout


def cron_job(server: Server) -> str:
    """Return what the line for cron runs: what is behind its five fields. There, % would be a line end."""
    line = command("*/5", server)
    assert "%" not in line
    assert "\n" not in line
    return line.split(maxsplit=5)[5]


def test_the_line_for_cron_prints_nothing_while_the_rates_can_be_used(exchange: Exchange, tmp_path: Path) -> None:
    """Whether all is well, or they come through REST."""
    with Daemon(exchange, tmp_path) as daemon, Server(tmp_path) as server:
        daemon.wait_for_live()
        assert sh(cron_job(server)) == ""
        exchange.down(rest=False)
        eventually(lambda: server.get("/funding/health")[1]["status"] == "degraded", "degraded")
        assert sh(cron_job(server)) == ""


def test_the_line_for_cron_prints_what_is_wrong(exchange: Exchange, tmp_path: Path) -> None:
    """With the words of the health answer where there is one, else with those of curl."""
    with Server(tmp_path) as server:
        assert '"error":"' in sh(cron_job(server))
        with Daemon(exchange, tmp_path) as daemon:
            daemon.wait_for_live()
            daemon.terminate()
        eventually(lambda: server.get("/funding/health")[0] == 503, "unhealthy")
        assert "the daemon has not written for " in sh(cron_job(server))
    assert "Failed to connect" in sh(cron_job(server))


def test_the_line_for_cron_can_write_to_the_journal(tmp_path: Path) -> None:
    """In the way that is named beside it."""
    (instead,) = re.findall(r"`(logger [^`]*)` in place of\s+`(echo [^`]*)`", SECTION)
    stub = tmp_path / "logger"
    stub.write_text('#!/bin/sh\nprintf "%s|" "$@"\n')
    stub.chmod(0o755)
    with Server(tmp_path) as server:
        job = cron_job(server)
        assert instead[1] in job
        said = sh(job.replace(instead[1], instead[0]), tmp_path)
    assert said.startswith("-p|user.err|-t|binance-funding|")
    assert '{"status":"unhealthy"' in said


def test_the_stale_symbols_are_listed(exchange: Exchange, tmp_path: Path) -> None:
    """Each with its source, and whether it is halted."""
    with Daemon(exchange, tmp_path) as daemon, Server(tmp_path) as server:
        daemon.wait_for_live()
        exchange.halt(["BTCUSDT"])
        line = command("curl -s http://127.0.0.1:8888/funding | jq", server)
        eventually(lambda: sh(line).splitlines() == ["BTCUSDT websocket true"], "the halted symbol is stale")


def test_clients_are_counted_by_address(tmp_path: Path) -> None:
    """The address with most connections first."""
    with Server(tmp_path) as server, Client(("127.0.0.1", server.port)), Client(("127.0.0.1", server.port)):
        assert sh(command("ss ", server)).split() == ["2", "127.0.0.1"]
