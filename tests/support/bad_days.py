"""Checks that all tests of faults share: the log is calm, and the daemon recovers."""

import re

from tests.exchange import Exchange, Market
from tests.support.programs import Daemon

TICK_S = 0.25


def small_exchange(clock_offset_s: float = 0.0) -> Exchange:
    """Return an exchange of few symbols that ticks four times a second."""
    market = Market(usd_m=20, tradfi=5, coin_m=2, fundless=2)
    return Exchange(market, tick_s=TICK_S, clock_offset_s=clock_offset_s)


def logs_calmly(daemon: Daemon, most_lines: int = 20) -> None:
    """Check that the log has no traceback, few lines, and a time and a level in each line."""
    assert not any("Traceback" in line for line in daemon.log), "\n".join(daemon.log)
    assert len(daemon.log) <= most_lines, "\n".join(daemon.log)
    assert all(re.match(r"\d{4}-\d\d-\d\dT[\d:.]+Z (INFO|WARNING|ERROR) ", line) for line in daemon.log)


def recovers(daemon: Daemon, connections: int = 2) -> None:
    """Wait until the connections are live and every record advances."""
    daemon.wait_for_live(connections)
    daemon.wait_for_newer_data()
