"""Where the HTTP server listens, and the open files that its connections need."""

import resource
import socket

from ..program import EX_UNAVAILABLE, Explain
from ..systemd import store_socket, take_stored_socket
from .http.server import Limits

_BACKLOG = 1024
SPARE_FILES = Limits.closing_connections + 64
"""Number of files that the server opens in addition to its connections."""


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens at this address. Host "::" includes IPv4; port 0 is any free port.

    Under systemd the socket outlives this process, and clients that connect between two processes wait in its backlog.
    Raises OSError if the host is unknown or the address cannot be used.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    # If the host has both kinds of addresses, IPv4 serves everybody: clients that try IPv6 first fall back to IPv4.
    family, _, _, _, address = min(found, key=lambda info: info[0] != socket.AF_INET)
    stored = take_stored_socket()
    if stored is not None:
        stored.listen(_BACKLOG)  # the previous process may have shut it down (see below) and ended then
        if (stored.family, stored.getsockname()) == (family, address):
            return stored
        # API_HOST or API_PORT has changed. shutdown() frees the old port at once. close() alone would not, because
        # systemd holds a duplicate of the socket.
        stored.shutdown(socket.SHUT_RDWR)
        stored.close()
    dual_stack = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
    listener = socket.create_server(address, family=family, backlog=_BACKLOG, dualstack_ipv6=dual_stack)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit it
    store_socket(listener)
    return listener


def explanation(host: str, port: int) -> Explain:
    """Return the function that explains why `listen` failed at this address."""

    def explain(error: OSError) -> tuple[str, int]:
        words = (error.strerror or str(error)).partition(" (while")[0].lower()
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        return f"cannot listen on {address}: {words}; change API_PORT or API_HOST", EX_UNAVAILABLE

    return explain


def raise_file_limit(max_connections: int) -> int:
    """Raise this process's limit of open files, up to its hard limit, so that max_connections fit.

    Returns how many connections fit. If the limit is too low for SPARE_FILES, a quarter of it is for connections.
    """
    needed = max_connections + SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)  # both finite on Linux
    if soft < needed:
        soft = min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return min(max_connections, max(soft - SPARE_FILES, soft // 4))
