"""How sure the ages are: the true age lies within the bound, on any route to Binance and with any drift of the host."""

import random
from collections.abc import Callable

import pytest

from binance_funding.clock import Clock
from binance_funding.daemon.market import thresholds
from binance_funding.daemon.market.exchange_clock import ExchangeClock

START_S = 1_795_500_000.0


class Host:
    """A host whose boot clock drifts, on a route to Binance that takes its time each way."""

    def __init__(self, drift: float = 0.0) -> None:
        self.true_s = START_S
        self._drift = drift
        self.exchange_clock = ExchangeClock(Clock(lambda: self.true_s, self.steady_s, "boot"))

    def steady_s(self) -> float:
        """Return the time on the boot clock."""
        return 500.0 + (self.true_s - START_S) * (1 + self._drift)

    def ask(self, there_s: float, back_s: float) -> None:
        """Ask for Binance's time over a route that takes so long each way."""
        asked_s = self.steady_s()
        self.true_s += there_s
        server_time_s = int(self.true_s * 1000) / 1000
        self.true_s += back_s
        self.exchange_clock.note_asked(asked_s)
        self.exchange_clock.note_answer(server_time_s, asked_s, self.steady_s())

    def error_s(self, age_s: float) -> float:
        """Return by how much the age of a row is wrong that has arrived now and is so old."""
        event_ms = round((self.true_s - age_s) * 1000)
        shown_s = self.steady_s() - self.exchange_clock.as_of_s(event_ms, self.steady_s())
        return abs(shown_s - (self.true_s - event_ms / 1000))

    def bound_s(self) -> float:
        """Return the bound; it must be known."""
        bound_s = self.exchange_clock.uncertainty_s()
        assert bound_s is not None
        return bound_s


def test_it_is_half_the_round_trip_and_grows_by_50_ppm() -> None:
    """From the adopted answer on; each new answer replaces it."""
    host = Host()
    for _ in range(2):
        host.ask(0.1, 0.3)
    assert host.bound_s() == pytest.approx(0.2 + thresholds.TIME_RESOLUTION_S)
    host.true_s += 1000
    assert host.bound_s() == pytest.approx(0.2 + 0.05 + thresholds.TIME_RESOLUTION_S)
    host.ask(0.01, 0.01)
    assert host.bound_s() == pytest.approx(0.01 + thresholds.TIME_RESOLUTION_S)


def test_it_is_not_known_while_binances_time_is_unknown_or_in_doubt() -> None:
    """Before the first answers agree, while an answer disagrees, and while a message contradicts the time."""
    host = Host()
    assert host.exchange_clock.uncertainty_s() is None
    host.ask(0.1, 0.1)
    assert host.exchange_clock.uncertainty_s() is None
    host.true_s += 3
    host.ask(0.1, 0.1)
    assert host.bound_s() > 0
    asked_s = host.steady_s()
    host.exchange_clock.note_answer(host.true_s + 500, asked_s, asked_s)
    assert host.exchange_clock.uncertainty_s() is None
    host.ask(0.1, 0.1)
    host.true_s += 3
    host.ask(0.1, 0.1)
    assert host.bound_s() > 0
    host.exchange_clock.judge(round((host.true_s + 60) * 1000), host.steady_s())
    assert host.exchange_clock.uncertainty_s() is None


Route = Callable[[random.Random], tuple[float, float]]
ROUTES: dict[str, Route] = {
    "fast": lambda _rng: (0.01, 0.01),
    "slow": lambda _rng: (0.9, 0.9),
    "slow there": lambda _rng: (1.8, 0.001),
    "slow back": lambda _rng: (0.001, 1.8),
    "changing": lambda rng: (rng.uniform(0, 1), rng.uniform(0, 1)),
    "sometimes too slow": lambda rng: rng.choice([(0.02, 0.02), (3.0, 0.1), (0.1, 30.0)]),
}


@pytest.mark.parametrize("route", ROUTES.values(), ids=ROUTES.keys())
@pytest.mark.parametrize("drift", [0.0, 45e-6, -45e-6])
def test_the_true_age_always_lies_within_the_bound(route: Route, drift: float) -> None:
    """For rows of any age, at any time after an answer, over slow, asymmetric and changing routes."""
    rng, host = random.Random(5), Host(drift)
    checked, largest_s = 0, 0.0
    for _ in range(300):
        host.ask(*route(rng))
        for _ in range(5):
            host.true_s += rng.uniform(0, 30)
            bound_s = host.exchange_clock.uncertainty_s()
            if bound_s is not None:
                error_s = host.error_s(rng.uniform(0, 20))
                assert error_s <= bound_s
                checked, largest_s = checked + 1, max(largest_s, error_s)
    assert checked > 500
    assert largest_s > 0
