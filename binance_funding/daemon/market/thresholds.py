"""Every threshold by which the daemon judges the market, in one table. GAP_SECONDS and FEW are shared with the server.

Times are seconds, shares are fractions of the symbols concerned.
"""

from ...schema import FEW as MISSING_SHARE
from ...schema import GAP_SECONDS

__all__ = ["GAP_SECONDS", "MISSING_SHARE"]

CURRENT_S = 8.0
"""A symbol is current until its data is older than this. REST replaces stream rows that are not current, fallback
starts when the stream is not current, and a snapshot that is not current is a REST fault. `SILENCE_SECONDS` can lower
it."""

HALTED_BEHIND_S = 8.0
"""A symbol is halted if its row in a snapshot is further than this behind the median row of the same snapshot."""

MAX_HALTED_SHARE = 0.05
"""If more symbols than this halt at once, the exchange has an outage, and none of them counts as halted."""

COMPARABLE_S = 5.0
"""A REST row is compared with a stream row if their event times are no further apart: the market moves."""

FUNDING_RATE_TOLERANCE = 0.00005
"""A larger difference is a mismatch. The market moves less in that time, and every real fault is larger."""

MARK_PRICE_TOLERANCE = 0.005
"""The same for mark prices, relative to REST."""

KEPT_S = 86_400.0
"""A symbol that no source has brought anything new for in this time is removed."""

EVENT_AHEAD_S = 1.0
"""A message whose median event time is further ahead of Binance's time than this contradicts that time."""

ROW_AHEAD_S = 10.0
"""While Binance's time is unknown, a row further ahead of the median of its message than this is rejected. A record
that turns out to be further ahead of Binance's time than this is dropped."""

TIME_EVERY_S = 60.0
"""Binance's time is asked for this often while it is known."""

TIME_SOON_S = 3.0
"""Binance's time is asked for this often while it is unknown or in doubt."""

LONGEST_ROUND_TRIP_S = 2.0
"""An answer about Binance's time that took longer than this is not used."""

SAME_TIME_S = 1.0
"""Two answers say the same if they differ by no more than this and both round trips."""

TIME_NEAR_EVENTS_S = 15.0
"""While the time is unknown, one answer suffices if it is this close to the newest event times."""

DOUBT_S = 10.0
"""Binance's time counts as unknown if answers have not settled a contradiction within this time."""

REFUTED_FOR_S = 60.0
"""Once two answers have confirmed the time, further messages ahead of it are rejected for this long without asking."""

LARGEST_WALL_OFFSET_S = 5.0
"""If this host's wall clock differs from Binance's by more than this, a warning says to check NTP."""

UNWATCHED_S = 1.5
"""If nobody has measured the market for this long, it is measured before new data hides how old the data had become."""
