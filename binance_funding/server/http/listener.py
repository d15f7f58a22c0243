"""What the HTTP server needs of its host: a listening socket, and files for as many connections as it may have."""

import errno
import resource
import socket

from ...service import store_socket, take_stored_socket
from .limits import Limits

_BACKLOG = 1024
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
SPARE_FILES = Limits.closing_connections + 64
"""Files open beside the connections served."""


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens there, "::" for IPv4 too, port 0 for any free port.

    Under systemd it outlives this process: whoever connects while the next one starts waits in its backlog.
    Raises OSError where the host is unknown or the address not to be had.
    """
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    stored = take_stored_socket()
    if stored is not None:
        # It listens, unless the process before has shut it down, and ended before it had another to store.
        stored.listen(_BACKLOG)
        if (stored.family, stored.getsockname()) == (family, address):
            return stored
        # API_HOST or API_PORT was changed. Closing would free the port only once systemd has closed its duplicate.
        stored.shutdown(socket.SHUT_RDWR)
        stored.close()
    dual_stack = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
    listener = socket.create_server(address, family=family, backlog=_BACKLOG, dualstack_ipv6=dual_stack)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit it
    store_socket(listener)
    return listener


def accept(listener: socket.socket) -> socket.socket | None:
    """Return the next connection, non-blocking; None where none waits.

    Raises OSError where this process or the host has no file or memory left for it.
    """
    while True:
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno in _EXHAUSTED:
                raise
            continue  # that one hung up while it waited: man accept(2), "Error handling"
        connection.setblocking(False)
        return connection


def raise_file_limit(max_connections: int) -> int:
    """Raise this process's limit of open files so that max_connections fit, as far as its hard limit allows.

    Returns how many of them do fit; with so few files that the spare ones are not to be had, a quarter of the limit.
    """
    needed = max_connections + SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)  # both finite on Linux
    if soft < needed:
        soft = min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return min(max_connections, max(soft - SPARE_FILES, soft // 4))
