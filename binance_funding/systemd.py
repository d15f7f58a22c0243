"""The interface to systemd: notifications, the watchdog, and a socket that systemd keeps during a restart."""

import os
import socket

from .log import EventLogger

_STORED = "FDNAME=listener"
_FIRST_STORED_FD = 3  # SD_LISTEN_FDS_START

_log = EventLogger(__name__)


def notify(state: str, *sockets: socket.socket) -> bool:
    """Send systemd a state, such as "READY=1". Never blocks or raises; does nothing if systemd did not start us.

    `sockets` are sent along, for FDSTORE=1. Returns False if systemd could not be reached; it is safe to try again.
    Source: man sd_notify(3).
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
    """Let systemd keep a socket for the next process of this unit. It replaces the socket that was stored before.

    systemd keeps the socket over a crash and `systemctl restart`, and closes it after `systemctl stop`.
    Source: man sd_pid_notify_with_fds(3); man systemd.service(5), FileDescriptorStoreMax=.
    """
    notify(f"FDSTOREREMOVE=1\n{_STORED}")
    notify(f"FDSTORE=1\n{_STORED}", sock)


def take_stored_socket() -> socket.socket | None:
    """Return the socket that an earlier process stored with `store_socket`; None if there is none.

    A second call returns None.

    Source: man sd_listen_fds(3).
    """
    if os.environ.pop("LISTEN_PID", None) != str(os.getpid()) or os.environ.get("LISTEN_FDS") != "1":
        return None
    return socket.socket(fileno=_FIRST_STORED_FD)


def watchdog_interval_s() -> float | None:
    """Return the seconds between two WATCHDOG=1 (half of WatchdogSec); None if the unit has no watchdog.

    Source: man sd_watchdog_enabled(3).
    """
    microseconds, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID")
    if not microseconds.isdigit() or int(microseconds) == 0 or pid not in (None, str(os.getpid())):
        return None
    return int(microseconds) / 2_000_000
