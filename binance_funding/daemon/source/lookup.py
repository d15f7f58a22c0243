"""How long the name server takes, beside a library that looks up the same name.

Both libraries look names up themselves, and no timeout of theirs holds for that. A second lookup of the same name at
the same time shows when it is over, so that a slow name server does not use up the time for the connection.
"""

import contextlib
import socket
import threading
from collections.abc import Callable
from urllib.parse import urlsplit
from urllib.request import getproxies

from requests.utils import should_bypass_proxies

LOOKUP_LIMIT_S = 30.0
"""A lookup that takes longer is given up. Resolvers usually give up earlier."""


class BadProxy(ValueError):
    """A proxy variable holds no URL. The text does not quote the value, which may hold a password."""


class Lookup:
    """One lookup of the first host on the way to an address, in a thread of its own."""

    def __init__(self, url: str, steady_s: Callable[[], float], on_end: Callable[[], None] = lambda: None) -> None:
        """Start it. Raises BadProxy."""
        self.host, self.variable = _first_hop(url)
        """`variable` is the variable that names the host as a proxy, "" if it is the host of the address itself."""
        self.ended_s: float | None = None
        """Steady time of its end, with or without a result; None before."""
        self.addresses: list[str] = []
        self._steady_s = steady_s
        self._on_end = on_end
        try:
            threading.Thread(target=self._run, name="lookup", daemon=True).start()
        except RuntimeError:  # the host allows no more threads: the time for the lookup counts then
            self._end()

    @property
    def is_of_proxy(self) -> bool:
        """Whether the host is a proxy."""
        return bool(self.variable)

    def _run(self) -> None:
        # The library meets the same error and reports it.
        with contextlib.suppress(OSError, UnicodeError):
            found = socket.getaddrinfo(self.host, None, type=socket.SOCK_STREAM)
            self.addresses = list(dict.fromkeys(str(address[0]) for *_, address in found))
        self._end()

    def _end(self) -> None:
        self.ended_s = self._steady_s()
        self._on_end()


def _first_hop(url: str) -> tuple[str, str]:
    """Return the first host on the way to the address, and the variable that names it if it is a proxy.

    docs/settings.md lists which proxy variables each library reads. Rare differences in NO_PROXY are left out here:
    they would only make the lookup measure another name. Raises BadProxy.
    """
    parts = urlsplit(url)
    is_stream, scheme = parts.scheme in ("ws", "wss"), "https" if parts.scheme in ("wss", "https") else "http"
    proxies = getproxies()
    name = scheme if is_stream or proxies.get(scheme) else "all"
    value = proxies.get(name, "")
    # websocket-client silently ignores a value without a scheme.
    if not value or (is_stream and "//" not in value) or should_bypass_proxies(url, no_proxy=None):
        return parts.hostname or "", ""
    try:
        proxy = urlsplit(value if "//" in value else f"//{value}")
        _ = proxy.port
    except ValueError:
        raise BadProxy(f"{name}_proxy is not a URL") from None
    return proxy.hostname or "", f"{name}_proxy"
