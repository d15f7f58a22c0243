"""The one simulated clock of all tests: both clocks of a host, moved by hand."""

from binance_funding.clock import Clock
from binance_funding.daemon.market.exchange_clock import ExchangeClock

WALL_S = 1_795_500_000.0
STEADY_S = 10_000.0
BOOT_ID = "5a1d7c0e-0000-4000-8000-000000000001"


class SimulatedClock:
    """Both clocks of a host, moved by hand; `clock` is what the code under test is given."""

    def __init__(self, boot_id: str = BOOT_ID) -> None:
        self.wall_s = WALL_S
        self.steady_s = STEADY_S
        self.clock = Clock(lambda: self.wall_s, lambda: self.steady_s, boot_id)

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.wall_s += seconds
        self.steady_s += seconds

    def set_wall_by(self, seconds: float) -> None:
        """Set the wall clock, as NTP or an operator does; no time passes."""
        self.wall_s += seconds


def learn_time(exchange_clock: ExchangeClock, offset_s: float, now_s: float = STEADY_S) -> None:
    """Let two answers agree on Binance's time: so many seconds ahead of the steady clock."""
    for answered_s in (now_s - 1, now_s):
        exchange_clock.note_asked(answered_s)
        exchange_clock.note_answer(answered_s + offset_s, answered_s, answered_s)
