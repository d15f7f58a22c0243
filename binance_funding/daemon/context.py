"""What every part of the daemon uses: settings, clocks, the day's history, and the throttle of the log."""

from dataclasses import dataclass, field

from ..clock import Clock
from ..log import EventLogger, LogThrottle
from ..settings import Settings
from .market.comparison import Comparison
from .market.exchange_clock import ExchangeClock
from .market.last_day import LastDay
from .market.thresholds import CURRENT_S


@dataclass
class Context:
    """Made once, before the parts. All of it is safe to use from any thread."""

    settings: Settings
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.exchange_clock = ExchangeClock(self.clock)
        self.last_day = LastDay()
        self.throttle = LogThrottle(EventLogger("binance_funding.daemon"), self.clock.steady_s)
        self.comparison = Comparison(self.throttle)

    @property
    def current_s(self) -> float:
        """Age up to which a row of the stream is current, in seconds: beyond it, REST is asked in its stead."""
        return min(CURRENT_S, self.settings.silence_seconds)
