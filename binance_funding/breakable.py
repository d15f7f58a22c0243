"""A requests session whose request can be broken from outside, wherever it hangs.

The library's timeout is for one byte: an answer whose headers, chunk sizes or trailers trickle in never times out, and
nothing of it can be closed before it has come. What can be broken is the socket beneath.
"""

import socket
from typing import Any

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection


class Sockets:
    """The socket of the request under way. `break_off` may be called from any thread."""

    def __init__(self) -> None:
        self._current: socket.socket | None = None

    def use(self, sock: socket.socket | None) -> None:
        """Note the socket of a new connection."""
        self._current = sock

    def break_off(self) -> None:
        """End whatever waits for this socket; the request then fails like one whose peer has gone."""
        sock = self._current
        if sock is not None and sock.fileno() >= 0:
            # Not the TLS socket's own shutdown, which would take the session away under the reading thread.
            socket.socket.shutdown(sock, socket.SHUT_RDWR)


def breakable_session(sockets: Sockets) -> requests.Session:
    """Make a session that notes its sockets, with or without a proxy."""

    class NotingHTTP(HTTPConnection):
        def connect(self) -> None:
            super().connect()
            sockets.use(self.sock)

    class NotingHTTPS(HTTPSConnection):
        def connect(self) -> None:
            super().connect()
            sockets.use(self.sock)

    class HTTPPool(urllib3.HTTPConnectionPool):
        ConnectionCls = NotingHTTP

    class HTTPSPool(urllib3.HTTPSConnectionPool):
        ConnectionCls = NotingHTTPS

    pools = {"http": HTTPPool, "https": HTTPSPool}

    class Adapter(HTTPAdapter):
        def init_poolmanager(self, *args: Any, **options: Any) -> None:
            super().init_poolmanager(*args, **options)
            self.poolmanager.pool_classes_by_scheme = pools

        def proxy_manager_for(self, *args: Any, **options: Any) -> Any:
            manager = super().proxy_manager_for(*args, **options)
            manager.pool_classes_by_scheme = pools
            return manager

    session = requests.Session()
    for scheme in pools:
        session.mount(f"{scheme}://", Adapter())
    return session
