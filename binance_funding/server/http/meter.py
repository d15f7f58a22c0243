"""Counters of the HTTP server's work, for its metrics. No I/O; for the server's one thread."""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

from .message import Request

OTHER = "other"
"""Route of everything that no handler answered: bad requests, unknown paths, refusals, faults."""
BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
"""Upper bounds of the histogram of durations."""


@dataclass(eq=False, slots=True)
class Tally:
    """How many requests of one route were answered with one status."""

    requests: int = 0


class Meter:
    """Counts requests by route and status, and measures how long they took.

    A duration begins when the server notices that bytes have come, and ends with the turn of the loop that answers the
    request. It includes waiting for other clients; it does not include the time a slow client takes to send or read.
    Requests that did not wait count as long as their turn, so that a request costs no look at the clock.
    """

    def __init__(self, route_of: Callable[[Request], str] = lambda _: OTHER) -> None:
        """Let `route_of` name the route of a request. There must be few names: each is a time series for ever."""
        self.route_of = route_of
        self.connections: Callable[[], int] = lambda: 0
        """Set by the server; returns the number of open connections."""
        self.subscribers: Callable[[], int] = lambda: 0
        """Set by the server; returns the number of subscribers."""
        self.buckets = [0] * (len(BUCKETS_S) + 1)
        """Number of durations by bucket; the last bucket is for durations above all bounds."""
        self.seconds = 0.0
        """Sum of all durations."""
        # An alert notices only the increase of a series that exists, so these two exist from the start.
        self.tallies = {(OTHER, 500): Tally(), (OTHER, 503): Tally()}
        """By route and status."""
        self.unmeasured = 0
        """Requests counted since the last duration."""

    def count(self, route: str, status: int) -> Tally:
        """Count a request; return its tally, so that later requests with the same answer can be counted there."""
        tally = self.tallies.setdefault((route, status), Tally())
        tally.requests += 1
        self.unmeasured += 1
        return tally

    def measure(self, lasted_s: float) -> None:
        """Give all requests that were counted since the last call this duration."""
        if self.unmeasured:
            self.buckets[bisect_left(BUCKETS_S, lasted_s)] += self.unmeasured
            self.seconds += lasted_s * self.unmeasured
            self.unmeasured = 0
