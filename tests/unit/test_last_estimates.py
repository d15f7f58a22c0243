"""The last rate that the stream showed before each settlement."""

import random

import pytest

from binance_funding.daemon.market.last_estimates import LastEstimates
from tests.support.settlement_world import StreamRow

DUE_MS = 1_795_507_200_000
NEXT_MS = DUE_MS + 28_800_000
ROWS = [StreamRow("A", at_ms / 1e9, DUE_MS, DUE_MS + at_ms) for at_ms in (-9000, -6000, -3000)]
AFTER = [StreamRow("A", at_ms / 1e9, NEXT_MS, DUE_MS + at_ms) for at_ms in (0, 3000, 6000)]


def test_it_is_the_last_one_before_the_next_funding_time_moved_on() -> None:
    """Whatever comes afterwards."""
    estimates = LastEstimates()
    for row in ROWS + AFTER:
        estimates.note([row])
    assert estimates.before(DUE_MS) == {"A": -3e-6}
    assert estimates.before(NEXT_MS) == {}


def test_a_next_funding_time_that_moves_on_late_belongs_to_the_settlement() -> None:
    """Or one that has not moved on yet."""
    estimates = LastEstimates()
    late = StreamRow("A", 0.5, DUE_MS, DUE_MS + 1500)
    estimates.note([*ROWS, late])
    assert estimates.before(DUE_MS) == {"A": 0.5}
    estimates.note(AFTER[1:])
    assert estimates.before(DUE_MS) == {"A": 0.5}


def test_the_order_in_which_connections_deliver_does_not_matter() -> None:
    """A slower one may bring the last row after a faster one has brought the next period."""
    for seed in range(50):
        rows = ROWS * 2 + AFTER * 2
        random.Random(seed).shuffle(rows)
        estimates = LastEstimates()
        for row in rows:
            estimates.note([row])
        assert estimates.before(DUE_MS) == {"A": -3e-6}


def test_after_a_silence_nobody_knows_the_last_one() -> None:
    """A rate from more than 10 s before the settlement is none."""
    estimates = LastEstimates()
    estimates.note([StreamRow("A", 0.1, DUE_MS, DUE_MS - 10_001), StreamRow("B", 0.2, DUE_MS, DUE_MS - 10_000)])
    estimates.note([StreamRow(one, 0.3, NEXT_MS, DUE_MS + 60_000) for one in "AB"])
    assert estimates.before(DUE_MS) == {"B": 0.2}


@pytest.mark.parametrize("other_ms", [DUE_MS - 14_400_000, NEXT_MS])
def test_a_next_funding_time_that_changes_before_it_is_no_settlement(other_ms: int) -> None:
    """The interval was changed: the last rate is the one that named the time that came true."""
    estimates = LastEstimates()
    estimates.note([StreamRow("A", 0.1, other_ms, DUE_MS - 15_000_000)])
    estimates.note(ROWS + AFTER)
    assert estimates.before(DUE_MS) == {"A": -3e-6}


def test_symbols_that_are_gone_are_forgotten() -> None:
    """A market that lists and delists for years fills no memory."""
    estimates = LastEstimates()
    estimates.note([StreamRow(f"S{n}", 0.1, DUE_MS - 86_400_000, DUE_MS - 90_000_000) for n in range(1000)])
    estimates.note(ROWS)
    estimates.before(DUE_MS)
    assert len(estimates._newest) == 1
