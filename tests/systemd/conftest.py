"""One booted machine for all tests of the units and the installer. tests/support/machine.py says what it takes.

Where no machine can be booted the tests are skipped, with the reason; where CI is set they fail.
"""

import contextlib
import os
from collections.abc import Iterator

import pytest

from tests.exchange import Exchange, Market
from tests.support.installed import DAEMON, PREFIX, SERVER, SETTINGS_FILE, Installation, Service
from tests.support.machine import CannotBootError, Machine
from tests.support.programs import ROOT


@pytest.fixture(scope="session")
def machine() -> Iterator[Machine]:
    """A booted machine on which this product was never installed."""
    with contextlib.ExitStack() as stack:
        try:
            machine = stack.enter_context(Machine(ROOT))
        except CannotBootError as error:
            if os.environ.get("CI"):
                pytest.fail(f"no systemd can be booted here: {error}")
            pytest.skip(f"NOT TESTED, no systemd can be booted here: {error}")
        machine.run("sh", "-c", f"rm -rf {PREFIX} {SETTINGS_FILE} /etc/systemd/system/binance-funding-*")
        machine.run("systemctl", "daemon-reload")
        yield machine


@pytest.fixture(scope="session")
def exchange(machine: Machine) -> Iterator[Exchange]:
    """A simulated exchange in the machine's network."""
    exchange = Exchange(Market(usd_m=50), tick_s=1)
    with machine.network():
        exchange.start()
    yield exchange
    exchange.stop()


@pytest.fixture(scope="session")
def installation(machine: Machine, exchange: Exchange) -> Installation:
    """The product, newly installed."""
    service = Service(machine, exchange)
    said = service.install()
    return Installation(said, machine.path(SETTINGS_FILE).read_text(), bool(service.pid(DAEMON) or service.pid(SERVER)))


@pytest.fixture
def service(machine: Machine, exchange: Exchange, installation: Installation) -> Iterator[Service]:
    """The installed service, stopped, without state or drop-ins."""
    service = Service(machine, exchange)
    service.reset()
    yield service
    service.run("systemctl", "stop", DAEMON, SERVER, check=False)
