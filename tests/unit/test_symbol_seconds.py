"""The share of time in which symbols were fresh, against somebody who knows when each symbol got which data."""

import random

import pytest

from binance_funding.schema import QUARTER_S
from tests.support.clock import WALL_S
from tests.support.desk import Desk

SYMBOLS = [f"S{number}" for number in range(12)]
LIMITS_S = {"within_5s": 5.0, "within_12s": 12.0, "within_limit": 30.0}


class Ledger:
    """Knows when the newest data of each symbol was true, and adds up the time in which it was fresh."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.as_of_s: dict[str, float] = {}
        self.counted: set[str] = set()
        self.seconds = dict.fromkeys(("symbol_seconds", *LIMITS_S), 0.0)
        self._last_listed: set[str] = set()
        self._since_s = desk.now_s

    def advance(self, seconds: float) -> None:
        """Let time pass, in which the market is observed once a second, as the main thread does."""
        until_s = self.desk.now_s + seconds
        while self.desk.now_s < until_s:
            self.desk.time.advance(min(1.0, until_s - self.desk.now_s))
            self.desk.freshness.observe()
        self.settle()

    def settle(self) -> None:
        """Add the time since the last call."""
        now_s = self.desk.now_s
        for symbol in self.counted:
            self.seconds["symbol_seconds"] += now_s - self._since_s
            for name, limit_s in LIMITS_S.items():
                fresh_until_s = min(now_s, self.as_of_s[symbol] + limit_s)
                self.seconds[name] += max(0.0, fresh_until_s - self._since_s)
        self._since_s = now_s

    def stream(self, symbols: list[str], lag_s: float) -> None:
        """Let the stream bring these symbols, so far behind."""
        self.desk.stream(*symbols, lag_s=lag_s)
        self._note(symbols, lag_s)

    def snapshot(self, *symbols: str, **halted_since_s: float) -> None:
        """Let REST list these symbols, and others that stand still."""
        self.desk.snapshot(*symbols, **halted_since_s)
        self._note(list(symbols), 0.0)
        self.counted, self._last_listed = self._last_listed | set(symbols), set(symbols)

    def _note(self, symbols: list[str], lag_s: float) -> None:
        as_of_s = self.desk.now_s - lag_s
        self.as_of_s |= {symbol: max(as_of_s, self.as_of_s.get(symbol, as_of_s)) for symbol in symbols}
        self.counted |= set(symbols) if self.desk.book.listed is None else set()

    def noted(self) -> dict[str, float]:
        """Return the sums over all quarter hours that the daemon wrote."""
        quarters = self.desk.last_day.to_json(self.desk.time.wall_s)["history"]
        return {name: sum(quarter[name] for quarter in quarters) for name in self.seconds}


@pytest.mark.parametrize("seed", range(20))
def test_symbol_seconds_are_correct_to_the_digit(seed: int) -> None:
    """Over hours of good ticks, lags, silence, symbols that stop, and symbols that come and go."""
    rng = random.Random(seed)
    desk = Desk()
    desk.learn_time()
    ledger = Ledger(desk)
    for _ in range(400):
        ledger.advance(rng.choice([0.001, 0.3, 1.0, 3.0, 3.0, 3.0, 7.7, 20.0]))
        some = rng.sample(SYMBOLS, rng.choice([1, 6, 12, 12, 12]))
        if rng.random() < 0.9:
            ledger.stream(some, rng.choice([0.0, 0.0, 0.5, 2.0, 14.0, 60.0]))
        else:
            ledger.snapshot(*some)
    ledger.advance(1)
    assert ledger.seconds["within_5s"] < 0.9 * ledger.seconds["symbol_seconds"]
    assert ledger.noted() == pytest.approx(ledger.seconds, abs=0.002 * (desk.now_s / QUARTER_S + 1))
    assert desk.freshness.symbol_seconds.totals["all"] == pytest.approx(ledger.seconds["symbol_seconds"], abs=1e-4)


def test_symbol_seconds_belong_to_the_quarter_hour_in_which_they_passed() -> None:
    """A host that was paused for an hour fills all of them at once."""
    desk = Desk()
    desk.learn_time()
    desk.stream("A", "B")
    start_s = WALL_S - WALL_S % QUARTER_S
    desk.time.advance(3600)
    desk.freshness.observe()
    quarters = desk.last_day.to_json(desk.time.wall_s)["history"]
    by_start = {quarter["start"]: (quarter["symbol_seconds"], quarter["within_12s"]) for quarter in quarters}
    assert sum(all_s for all_s, _ in by_start.values()) == 7200
    assert by_start[start_s + QUARTER_S][0] == by_start[start_s + 2 * QUARTER_S][0] == 2 * QUARTER_S
    assert sum(fresh_s for _, fresh_s in by_start.values()) == 24


def test_while_not_running_no_symbol_is_fresh() -> None:
    """The time without a daemon counts for all symbols that it left."""
    desk = Desk()
    desk.learn_time()
    desk.stream("A", "B")
    desk.freshness.start_at(desk.now_s - 500, desk.now_s, not_running_s=100)
    desk.time.advance(2)
    desk.freshness.observe()
    quarters = desk.last_day.to_json(desk.time.wall_s)["history"]
    assert sum(quarter["symbol_seconds"] for quarter in quarters) == 204
    assert {sum(quarter[name] for quarter in quarters) for name in LIMITS_S} == {4}


def test_halted_and_unlisted_symbols_do_not_count() -> None:
    """Nobody can have newer data of them."""
    desk = Desk()
    desk.learn_time()
    symbols = [f"S{number}" for number in range(30)]
    desk.stream("S0", lag_s=60)
    desk.stream(*symbols[1:], "UNLISTED")
    desk.snapshot(*symbols[1:], S0=desk.now_s - 60)
    before = dict(desk.freshness.symbol_seconds.totals)
    desk.time.advance(4)
    desk.freshness.observe()
    assert desk.freshness.symbol_seconds.totals["all"] - before["all"] == 29 * 4
