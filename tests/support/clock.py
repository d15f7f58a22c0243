"""The one simulated clock of all tests: both clocks of a host, moved by hand."""

from binance_funding.clock import Clock

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
