"""What every bad day has in common: a small exchange, a calm log, and all being well afterwards."""

import re

from tests.exchange import Exchange, Market
from tests.support.programs import Daemon

TICK_S = 0.25


def small_exchange(clock_offset_s: float = 0.0) -> Exchange:
    """Return an exchange of few symbols that ticks four times a second: what matters is what happens to it."""
    market = Market(usd_m=20, tradfi=5, coin_m=2, fundless=2)
    return Exchange(market, tick_s=TICK_S, clock_offset_s=clock_offset_s)


def logs_calmly(daemon: Daemon, most_lines: int = 20) -> None:
    """Check the log: no traceback, no flood, every line a whole one."""
    assert not any("Traceback" in line for line in daemon.log), "\n".join(daemon.log)
    assert len(daemon.log) <= most_lines, "\n".join(daemon.log)
    assert all(re.match(r"\d{4}-\d\d-\d\dT[\d:.]+Z (INFO|WARNING|ERROR) ", line) for line in daemon.log)


def recovers(daemon: Daemon, connections: int = 2) -> None:
    """Check that all is well again: the connections live, every record advancing."""
    daemon.wait_for_live(connections)
    daemon.wait_for_newer_data()
