"""What the tests of bad days share; a module that needs another exchange has a fixture of its own."""

from collections.abc import Iterator

import pytest

from tests.exchange import Exchange
from tests.support.bad_days import small_exchange


@pytest.fixture
def exchange() -> Iterator[Exchange]:
    """A small exchange."""
    with small_exchange() as exchange:
        yield exchange
