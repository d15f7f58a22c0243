"""The interface to systemd: notifications, the watchdog, and a socket that is kept over a restart."""

import os
import socket

from .log import EventLogger

_STORED = "FDNAME=listener"
_FIRST_STORED_FD = 3  # SD_LISTEN_FDS_START

_log = EventLogger(__name__)


def notify(state: str, *sockets: socket.socket) -> bool:
    """Send systemd a state, e.g. "READY=1"; does nothing where no service manager listens. Never blocks or raises.

    False where one should listen and could not be reached; the next state may reach it.

    Source: man sd_notify(3), $NOTIFY_SOCKET; sockets go along with FDSTORE=1 and are duplicated by it.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return True
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.setblocking(False)
            sock.connect("\0" + address[1:] if address.startswith("@") else address)
            socket.send_fds(sock, [state.encode(errors="replace")], [given.fileno() for given in sockets])
    except OSError as error:
        _log.debug("systemd not reached", state=state, cause=error)
        return False
    return True


def store_socket(sock: socket.socket) -> None:
    """Give systemd a socket to keep, in place of the one before, for the next process of this unit.

    What the unit keeps is closed when it is stopped for good, not by a crash or `systemctl restart`.
    Source: man sd_pid_notify_with_fds(3); man systemd.service(5), FileDescriptorStoreMax=.
    """
    notify(f"FDSTOREREMOVE=1\n{_STORED}")
    notify(f"FDSTORE=1\n{_STORED}", sock)


def take_stored_socket() -> socket.socket | None:
    """Return the socket that the process before gave to store_socket, None without one or when called again.

    Source: man sd_listen_fds(3).
    """
    if os.environ.pop("LISTEN_PID", None) != str(os.getpid()) or os.environ.get("LISTEN_FDS") != "1":
        return None
    return socket.socket(fileno=_FIRST_STORED_FD)


def watchdog_interval_s() -> float | None:
    """Return how often systemd wants to hear WATCHDOG=1 (half of WatchdogSec), None where it does not.

    Source: man sd_watchdog_enabled(3).
    """
    microseconds, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID")
    if not microseconds.isdigit() or int(microseconds) == 0 or pid not in (None, str(os.getpid())):
        return None
    return int(microseconds) / 2_000_000
