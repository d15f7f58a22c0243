"""Counters of the HTTP server's work, for its metrics. No I/O; for the server's one thread."""

from bisect import bisect_left
from collections.abc import Callable

from .message import Request

OTHER = "other"
"""Route of everything that no handler answered: bad requests, unknown paths, refusals, faults."""
BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
"""Upper bounds of the histogram of durations."""


class Meter:
    """Counts requests by route and status. All requests answered in one turn of the loop get the turn's duration."""

    def __init__(self, route_of: Callable[[Request], str] = lambda _: OTHER) -> None:
        """Let `route_of` name the route of a request. There must be few names: each is a time series for ever."""
        self.route_of = route_of
        # Return the number of open connections, and of subscribers among them. The server sets both.
        self.connections: Callable[[], int] = lambda: 0
        self.subscribers: Callable[[], int] = lambda: 0
        # By route and status. An alert notices only the increase of a series that exists, so two exist from the start.
        self.requests = {(OTHER, 500): 0, (OTHER, 503): 0}
        self.buckets = [0] * (len(BUCKETS_S) + 1)  # number of durations; the last bucket is for those above all bounds
        self.seconds = 0.0  # sum of all durations
        self._unmeasured = 0  # requests counted since the last duration

    def count(self, route: str, status: int) -> None:
        """Count a request."""
        self.requests[route, status] = self.requests.get((route, status), 0) + 1
        self._unmeasured += 1

    def measure(self, lasted_s: float) -> None:
        """Give this duration to all requests that were counted since the last call."""
        if self._unmeasured:
            self.buckets[bisect_left(BUCKETS_S, lasted_s)] += self._unmeasured
            self.seconds += lasted_s * self._unmeasured
            self._unmeasured = 0
