"""What `journalctl` shows."""

import re

from tests.support.installed import DAEMON, SERVER, Service
from tests.support.waiting import eventually


def test_no_warning_in_a_quiet_run(service: Service) -> None:
    """`journalctl -p warning` is empty after start, work, restart and stop."""
    service.start()
    eventually(lambda: service.state()["comparison"]["totals"]["runs"] >= 2, "two comparisons with REST")
    service.systemctl("restart")
    service.wait_until_healthy()
    service.systemctl("stop")
    assert service.journal(DAEMON, "-p", "warning") == []
    assert service.journal(SERVER, "-p", "warning") == []
    assert any(line.startswith("connected ") for line in service.journal(DAEMON, "-p", "info"))


def test_warnings_of_a_rough_run_are_its_losses(service: Service) -> None:
    """`journalctl -p warning` shows a line for each lost connection, and possibly that REST was used meanwhile."""
    service.start()

    def connected() -> int:
        return sum(line.startswith("connected ") for line in service.journal())

    eventually(lambda: connected() == 2, "both connections")
    service.exchange.reset()
    eventually(lambda: connected() == 4, "two new ones")
    service.systemctl("stop")
    # Both connections are lost at once. The daemon may or may not check the market before they are back.
    warnings = [line for line in service.journal(DAEMON, "-p", "warning") if not line.startswith("fallback on ")]
    assert all(line.startswith("lost ") and 'cause="connection reset by peer"' in line for line in warnings), warnings
    assert {found for line in warnings for found in re.findall(r" conn=(\d+) ", line)} == {"1", "2"}
    assert len(warnings) == 2
