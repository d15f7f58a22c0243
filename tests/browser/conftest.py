"""One browser for each module, and a server whose state file the tests write. Every test opens the page anew."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.browser import Browser, chromium
from tests.support.page_files import serve
from tests.support.programs import Server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium."""
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the state file."""
    return tmp_path_factory.mktemp("host")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    """A server without a daemon."""
    with serve(folder) as server:
        yield server
