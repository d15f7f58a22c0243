"""`systemctl` as an operator uses it: one name for both programs, and what it shows."""

import json
import re
from typing import Any

import pytest

from tests.support.installed import DAEMON, SERVER, STATE_FILE, Service
from tests.support.tools import find
from tests.support.waiting import eventually


def test_start_returns_once_the_daemon_is_ready_and_health_is_good_within_5_s(service: Service) -> None:
    """`systemctl start` of the daemon's unit starts both programs. Ordinary users can ask and read the file."""
    service.systemctl("start")
    assert service.show(DAEMON, "ActiveState") == "active"
    as_nobody = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups")
    eventually(lambda: service.health()[0] == 200, "a good health", within_s=5)
    answer = service.run(*as_nobody, find("curl", "curl"), "-sf", "localhost:8888/funding/BTCUSDT").stdout
    assert json.loads(answer)["symbol"] == "BTCUSDT"
    assert "BTCUSDT" in json.loads(service.run(*as_nobody, "cat", STATE_FILE).stdout)["funding_state"]


def test_status_shows_symbols_age_and_source(service: Service) -> None:
    """The Status line of `systemctl status` shows the state of the daemon, and changes with it."""
    service.start()
    pattern = r"Status: \"[1-9]\d* symbols, newest \d+ s old, source stream, 2 of 2 connections"
    eventually(lambda: re.search(pattern, service.run("systemctl", "status", DAEMON).stdout), "the status line")
    service.exchange.down()
    eventually(lambda: "source none, 0 of 2 connections" in service.show(DAEMON, "StatusText"), "the status to follow")


def test_stop_ends_both_within_3_s(service: Service) -> None:
    """When `systemctl stop` returns, both programs have ended by themselves with status 0."""
    for unit in (DAEMON, SERVER):
        tell = 'echo "ended: $SERVICE_RESULT, $EXIT_CODE $EXIT_STATUS"'
        service.drop_in(unit, f"ExecStopPost=sh -c '{tell}'")
    service.start()
    assert service.systemctl("stop") < 3
    for unit in (DAEMON, SERVER):
        assert service.pid(unit) == 0
        assert "ended: success, exited 0" in service.journal(unit)


def test_restart_restarts_both(service: Service) -> None:
    """`systemctl restart` starts two new processes with the current settings."""
    service.start()
    old = service.pid(DAEMON), service.pid(SERVER)
    service.configure(LOG_LEVEL="DEBUG", STALE_SECONDS=100)
    service.systemctl("restart")
    eventually(lambda: not {service.pid(DAEMON), service.pid(SERVER)} & {*old, 0}, "two new processes")
    service.wait_until_healthy()


def test_restart_keeps_records_and_gaps(service: Service) -> None:
    """Records keep their old times over a stop, and the stop counts as a gap."""
    service.start()
    service.exchange.down()
    service.systemctl("stop")
    before = service.state()
    _shift_into_the_past(before, seconds=60)
    service.machine.path(STATE_FILE).write_text(json.dumps(before))
    service.systemctl("start")
    known = service.state()["funding_state"]
    assert known.keys() == before["funding_state"].keys()
    for symbol, record in known.items():
        assert record["updatedAt"] == pytest.approx(before["funding_state"][symbol]["updatedAt"], abs=0.5)
    service.exchange.up()
    (gap,) = eventually(lambda: service.state()["gaps"], "the gap to end")
    assert gap["cause"].startswith("not running")
    assert gap["seconds"] > 60
    service.systemctl("restart")
    assert service.state()["gaps"] == [gap]


def _shift_into_the_past(state: dict[str, Any], seconds: float) -> None:
    """Change a state file to what a daemon would have left that long ago."""
    state["updated_at"] -= seconds
    state["boottime"] -= seconds
    state["connection_status"]["market_served_time"] -= seconds
    for record in state["funding_state"].values():
        record["updatedAt"] -= seconds
        record["eventTime"] -= int(seconds * 1000)


def test_start_succeeds_without_the_exchange_and_recovers_by_itself(service: Service) -> None:
    """The service starts without the exchange, reports that, and becomes healthy when the exchange is back."""
    service.exchange.down()
    service.systemctl("start")
    eventually(lambda: service.health() == (503, "unhealthy"), "the server to say so")
    eventually(lambda: service.show(DAEMON, "StatusText").startswith("no data yet, 0 of 2"), "the status line")
    assert "refused" in eventually(lambda: service.show(DAEMON, "StatusText"), "the status line")
    service.exchange.up()
    service.wait_until_healthy()
    assert service.show(DAEMON, "NRestarts") == "0"


def test_wrong_setting_fails_at_once_and_says_why(service: Service) -> None:
    """The start fails, systemd does not repeat it, and `systemctl status` shows the log line."""
    service.configure(STALE_SECONDS="soon")
    assert service.run("systemctl", "start", DAEMON, check=False).returncode != 0
    assert (service.show(DAEMON, "ActiveState"), service.show(DAEMON, "ExecMainStatus")) == ("failed", "78")
    assert service.show(DAEMON, "NRestarts") == "0"
    status = service.run("systemctl", "status", DAEMON, check=False).stdout
    assert [line for line in status.splitlines() if "STALE_SECONDS" in line and "soon" in line]
    assert "Traceback" not in status
    service.configure()
    service.start()


@pytest.mark.parametrize(("name", "value"), [("STALE_SECONDS", "soon"), ("STATE_FILE", "/nowhere/state.json")])
def test_wrong_setting_in_a_restart_takes_both_down_until_it_is_mended(service: Service, name: str, value: str) -> None:
    """The server ends with the daemon, even if the setting is only wrong for the daemon."""
    service.start()
    service.configure(**{name: value})
    assert service.run("systemctl", "restart", DAEMON, check=False).returncode != 0
    eventually(lambda: (service.pid(DAEMON), service.pid(SERVER)) == (0, 0), "both to be down")
    service.configure()
    service.systemctl("restart")
    service.wait_until_healthy()
