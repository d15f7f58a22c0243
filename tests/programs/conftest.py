"""What the tests of bad days share; a module that needs another exchange has a fixture of its own."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.exchange import Exchange
from tests.support.bad_days import small_exchange
from tests.support.hosts import Hosts, running_hosts


@pytest.fixture
def exchange() -> Iterator[Exchange]:
    """A small exchange."""
    with small_exchange() as exchange:
        yield exchange


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """Two hosts behind the nginx that is shipped; every test leaves them well."""
    with running_hosts(tmp_path_factory.mktemp("hosts")) as hosts:
        yield hosts
