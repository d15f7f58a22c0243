"""Adds to requests and websocket-client: certificates of the system, a limit for name lookups, aborting by threads."""

import contextlib
import os
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from requests.adapters import HTTPAdapter
from requests.utils import should_bypass_proxies

from ...settings import SettingsError

LOOKUP_LIMIT_S = 30.0
"""A name lookup that takes longer is given up. Resolvers usually give up earlier."""


class BadProxy(ValueError):
    """A proxy variable holds no URL. The text does not quote the value, which may hold a password."""


class Lookup:
    """Looks up the first host on the way to an address, in a thread of its own, to see how long that takes.

    Both libraries look the name up themselves, and their timeouts do not cover that time. This second lookup runs at
    the same time. When it ends, the limits of a request or a connection begin.
    """

    def __init__(self, url: str, steady_s: Callable[[], float], on_end: Callable[[], None] = lambda: None) -> None:
        """Start the lookup. Raises BadProxy."""
        self.host, self.variable = _first_hop(url)
        """`variable` is the variable that names the host as a proxy, "" if it is the host of the address itself."""
        self.ended_s: float | None = None
        """Steady time of its end, with or without a result; None before."""
        self.addresses: list[str] = []
        self._steady_s = steady_s
        self._on_end = on_end
        try:
            threading.Thread(target=self._run, name="lookup", daemon=True).start()
        except RuntimeError:  # the host allows no more threads: the limits begin at once
            self._end()

    def _run(self) -> None:
        # The library gets the same error and reports it.
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


def shut_down(sock: socket.socket) -> None:
    """End a connection while another thread reads from it."""
    with contextlib.suppress(OSError):  # the connection may have ended already
        # ssl.SSLSocket.shutdown would also drop the TLS session, while the other thread still reads with it.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


class SystemAdapter(HTTPAdapter):
    """Lets requests trust the certificates of this system, and lets any thread end a request that hangs.

    websocket-client trusts them by itself. requests trusts a list of its own unless its adapter says otherwise.
    """

    def __init__(self) -> None:
        self._connection: Any = None
        """The connection that was opened last."""
        self._sock: Any = None
        """Socket of the connection. It is kept here because the connection drops it before the answer is complete."""
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Make the pool of connections without a proxy."""
        super().init_poolmanager(*args, ssl_context=ssl.create_default_context(), **kwargs)

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        """Make the pool of connections through a proxy."""
        return super().proxy_manager_for(*args, ssl_context=ssl.create_default_context(), **kwargs)

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        """Do nothing: requests would load its own list of certificates here. The TLS context verifies instead."""

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        """Return the pool for one request. `shut_down` knows the connection that the pool opens."""
        adapter = self
        pool: Any = super().get_connection_with_tls_context(*args, **kwargs)

        class KnownConnection(type(pool).ConnectionCls):  # type: ignore[misc] # one class for http, one for https
            def connect(self) -> None:
                adapter._connection = self
                super().connect()
                adapter._sock = self.sock

        pool.ConnectionCls = KnownConnection
        return pool

    def shut_down(self) -> None:
        """End the connection, even while the answer of the proxy or the TLS handshake still arrives."""
        sock = getattr(self._connection, "sock", None) or self._sock
        if isinstance(sock, socket.socket):
            shut_down(sock)


def check_certificates() -> None:
    """Check SSL_CERT_FILE for the start. Raises SettingsError, since every connection would fail without a reason."""
    path = os.environ.get("SSL_CERT_FILE")
    if path:
        try:
            ssl.create_default_context(cafile=path)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise SettingsError(f"SSL_CERT_FILE={path!r} holds no certificates that can be read: {reason}") from error
