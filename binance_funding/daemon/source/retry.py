"""When and where the stream pool tries next: backoff, the allowance of attempts, pauses, and the next address.

Facts of the exchange, as of November 2026: no limit on attempts is documented for futures. Spot allows 300 per 5 min
and IP: this keeps below one per second. Source:
https://developers.binance.com/docs/binance-spot-api-docs/web-socket-streams
"""

import math
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from ...settings import Settings

# One attempt per this time over all connections, in a burst so many.
_ATTEMPT_EVERY_S, _BURST = 1.25, 8
# The longest wait if nothing answers at all (refused, unreachable, no DNS). Asking again burdens nobody, the exchange's
# return is noticed soon, and an outage does not count against the connection that ends it.
_UNREACHABLE_WAIT_S = 1.0


class AttemptAllowance:
    """Token bucket shared by all connections, which also keeps the pauses that Binance asked for. For one thread."""

    def __init__(self, now_s: float) -> None:
        self.paused_until_s = -math.inf
        self._left = float(_BURST)
        self._counted_s = now_s

    def pause(self, until_s: float) -> None:
        """Allow nothing until then. Of several pauses the longest holds."""
        self.paused_until_s = max(self.paused_until_s, until_s)

    def take(self, now_s: float) -> bool:
        """Take one attempt if one is allowed now."""
        self._left = min(self._left + (now_s - self._counted_s) / _ATTEMPT_EVERY_S, _BURST)
        self._counted_s = now_s
        if now_s < self.paused_until_s or self._left < 1:
            return False
        self._left -= 1
        return True


class Backoff:
    """How long to wait after a failure: twice as long each time, scattered, so that not all hosts return at once."""

    def __init__(self, settings: Settings, uniform: Callable[[float, float], float]) -> None:
        self._min_s = settings.reconnect_min_seconds
        self._max_s = settings.reconnect_max_seconds
        self._uniform = uniform

    def wait_s(self, failures: int, *, is_unreachable: bool) -> float:
        """Return the wait after so many failures before this one."""
        wait_s = max(self._min_s, _UNREACHABLE_WAIT_S) if is_unreachable else self._min_s * 2.0 ** min(failures, 30)
        return self.scattered(min(wait_s, self._max_s))

    def min_wait_s(self) -> float:
        """Return the wait that holds after every failure, however long the connection had lived."""
        return self.scattered(self._min_s)

    def scattered(self, wait_s: float) -> float:
        """Return a time between half the wait and all of it."""
        return self._uniform(wait_s / 2, wait_s)


def next_url_index(urls: Sequence[str], index: int, *, is_unreachable: bool) -> int:
    """Return the index of the address to try after this one; if nothing answered there, one of another host."""
    hosts = [urlsplit(url).netloc for url in urls]
    following = [*range(index + 1, len(urls)), *range(index)]
    return next((other for other in following if not is_unreachable or hosts[other] != hosts[index]), index)
