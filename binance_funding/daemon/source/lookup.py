"""How long the name server takes, beside a library that looks up the same name.

Both libraries look names up themselves, and no timeout of theirs holds for that. A second lookup of the same name at
the same time shows when it is over, so that a slow name server does not use up the time for the connection.
"""

import socket
import threading
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies

from requests.utils import should_bypass_proxies

LOOKUP_LIMIT_S = 30.0
"""A lookup that takes longer is given up. Resolvers usually give up earlier."""

_SECURE = ("wss", "https")
_STREAM = ("ws", "wss")


class BadProxy(ValueError):
    """A proxy variable holds no URL. The text does not quote the value, which may hold a password."""


class Hop(NamedTuple):
    """The first host that a library connects to."""

    host: str
    variable: str
    """The variable that names it as a proxy, "" if it is the host of the address itself."""


def first_hop(url: str) -> Hop:
    """Return the first host on the way to the address. Raises BadProxy.

    docs/settings.md lists which proxy variables each library reads. Rare differences in NO_PROXY are left out here:
    they would only make the lookup measure another name.
    """
    parts = urlsplit(url)
    host, is_stream = parts.hostname or "", parts.scheme in _STREAM
    proxies, scheme = getproxies(), "https" if parts.scheme in _SECURE else "http"
    name = scheme if is_stream or proxies.get(scheme) else "all"
    value = proxies.get(name, "")
    # websocket-client silently ignores a value without a scheme.
    if not value or (is_stream and "//" not in value) or should_bypass_proxies(url, no_proxy=None):
        return Hop(host, "")
    try:
        proxy = urlsplit(value if "//" in value else f"//{value}")
        _ = proxy.port
    except ValueError:
        raise BadProxy(f"{name}_proxy is not a URL") from None
    return Hop(proxy.hostname or "", f"{name}_proxy")


class Lookup:
    """One lookup of the first host on the way to an address, in a thread of its own. Never raises but BadProxy."""

    def __init__(self, url: str, steady_s: Callable[[], float], on_end: Callable[[], None] = lambda: None) -> None:
        self.hop = first_hop(url)
        self.began_s = steady_s()
        self.ended_s: float | None = None
        """Steady time of its end, with or without a result; None before."""
        self.addresses: list[str] = []
        self._steady_s = steady_s
        self._on_end = on_end
        threading.Thread(target=self._run, name="lookup", daemon=True).start()

    def _run(self) -> None:
        try:
            found = socket.getaddrinfo(self.hop.host, None, type=socket.SOCK_STREAM)
            self.addresses = list(dict.fromkeys(str(address[0]) for *_, address in found))
        except (OSError, UnicodeError):
            pass  # the library meets the same error and reports it
        self.ended_s = self._steady_s()
        self._on_end()
