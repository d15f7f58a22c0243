"""Every threshold by which the daemon judges the market, in one table. GAP_SECONDS and FEW are shared with the server.

Times are seconds, shares are fractions of the symbols concerned.
"""

from ...schema import FEW as MISSING_SHARE
from ...schema import GAP_SECONDS
from ...settings import Settings

__all__ = ["GAP_SECONDS", "MISSING_SHARE"]

CURRENT_S = 8.0
"""A symbol is current until its data is older than this. REST replaces stream rows that are not current, fallback
starts when the stream is not current, and a snapshot that is not current is a REST fault. `SILENCE_SECONDS` can lower
it: see `current_s`."""

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
"""A symbol is removed if its record is older than this."""

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
"""After two answers have confirmed the time, messages ahead of it are rejected for this long without asking again."""

DRIFT = 50e-6
"""The boot clock gains or loses no more than this share of the time that has passed."""

TIME_RESOLUTION_S = 0.005
"""Binance's time and the times in the state file are rounded, and a record is rendered again only after a larger
change of its time. Together that is less than this."""

INTERVALS_EVERY_S = 60.0
"""The funding intervals are asked for this often."""

INTERVALS_SOON_S = 20.0
"""They are asked for at once if a next funding time contradicts one of them, but no more often than this."""

SETTLED_WITHIN_S = 5.0
"""The next funding time may change by this much earlier than the funding itself."""

MAX_UNLISTED_SHARE = 0.1
"""If an answer about funding intervals lacks more of the symbols that it should list than this, it is a fault."""

FRESH_S = (5.0, 12.0)
"""The report has the share of time in which symbols were no older than each of these, and than `STALE_SECONDS`."""

LARGEST_WALL_OFFSET_S = 5.0
"""If this host's wall clock differs from Binance's by more than this, a warning says to check NTP."""

UNWATCHED_S = 1.5
"""If the last measurement is older than this, the market is measured before new data is merged."""

FUNDING_TIME_WITHIN_S = 90.0
"""A record older than this says nothing about when its symbol is settled. REST delivers some symbols once a minute."""

ESTIMATE_WITHIN_S = 10.0
"""A rate is the last estimate if its event time is at most this long before the settlement: three ticks. After a longer
silence of the stream, nobody knows what it would have shown."""


def current_s(settings: Settings) -> float:
    """Return the age up to which data is current with these settings."""
    return min(CURRENT_S, settings.silence_seconds)
