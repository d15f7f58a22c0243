"""What the HTTP server counts of its own work, for its metrics. For its one thread; no I/O."""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

from .message import Request

OTHER = "other"
"""Route of what no handler answered: bad requests, unknown paths, refusals, faults."""
BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
"""Upper bounds of the histogram of durations."""


@dataclass(eq=False, slots=True)
class Tally:
    """How many requests of one route were answered with one status."""

    requests: int = 0


class Meter:
    """Counts requests by route and status, and how long they took; asks the server for its connections.

    A duration is that of the turn of the event loop in which a request was answered, together with all others that were
    ready: at most so long it took from noticing the request to handing the answer to the kernel. What a slow client
    takes to read it is not in it. So a request costs two additions, and a turn one look at the clock.
    """

    def __init__(self, route_of: Callable[[Request], str] = lambda _: OTHER) -> None:
        """Let route_of name the route of a request: one of a fixed set, as each is a time series for ever."""
        self.route_of = route_of
        self.connections: Callable[[], int] = lambda: 0
        self.subscribers: Callable[[], int] = lambda: 0
        self.buckets = [0] * (len(BUCKETS_S) + 1)
        self.seconds = 0.0
        # Those of which an alert waits for the first increase are there from the start.
        self.tallies = {(OTHER, 500): Tally(), (OTHER, 503): Tally()}
        """By route and status."""
        self.in_turn = 0
        """Requests answered in this turn."""

    def count(self, route: str, status: int) -> Tally:
        """Count a request that is answered in this turn; return the tally for those that get the same answer."""
        tally = self.tallies.setdefault((route, status), Tally())
        tally.requests += 1
        self.in_turn += 1
        return tally

    def end_turn(self, lasted_s: float) -> None:
        """Take over for how long the requests of this turn lasted."""
        if self.in_turn:
            self.buckets[bisect_left(BUCKETS_S, lasted_s)] += self.in_turn
            self.seconds += lasted_s * self.in_turn
            self.in_turn = 0
