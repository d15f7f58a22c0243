"""The way to Binance, the same for stream and REST: name, proxy, TCP and TLS, within one deadline.

Proxies: `https_proxy` for wss and https, `http_proxy` for ws and http, else `all_proxy`, in either case, as urllib
reads them; not for hosts that `no_proxy` names, nor for this one. Only HTTP proxies, asked to CONNECT whatever the
scheme: RFC 9110, 9.3.6.
Certificates: those that this system trusts, or those in `SSL_CERT_FILE`.
"""

import base64
import contextlib
import http.client
import io
import os
import socket
import ssl
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from ...clock import Deadline
from ...settings import SettingsError

_SECURE = ("wss", "https")
_THIS_HOST = ("localhost", "127.0.0.1", "::1")
# A timeout of 0 would mean: not at all.
_LEAST_S = 0.001

STEPS = ("DNS", "proxy", "TCP", "TLS")
"""What `connect` does, in this order."""
OnStep = Callable[[str, str], None]
"""Gets the name of each step that has succeeded, with a few facts; called in the connecting thread."""
Connect = Callable[[str, Deadline], socket.socket]
"""`connect` without its `on_step`, or what stands in for it."""


class NoConnection(OSError):
    """No connection came about; the text says why."""

    def __init__(self, words: str, *, is_unreachable: bool, is_timeout: bool) -> None:
        super().__init__(words)
        self.is_unreachable = is_unreachable
        """Nothing answered at the address at all."""
        self.is_timeout = is_timeout


class Proxy(NamedTuple):
    """An HTTP proxy."""

    host: str
    port: int
    authorization: str
    """Header line with user and password, or ""."""
    variable: str
    """The environment variable that names it."""


def check(urls: Iterable[str]) -> None:
    """Check the settings that are the system's, for the start. Raises SettingsError, in one line."""
    for url in urls:
        proxy_for(url)
    path = os.environ.get("SSL_CERT_FILE")
    if path:
        try:
            ssl.create_default_context(cafile=path)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise SettingsError(f"SSL_CERT_FILE={path!r} holds no certificates that can be read: {reason}") from error


def proxy_for(url: str) -> Proxy | None:
    """Return the proxy through which this address is reached. Raises SettingsError for any but an HTTP proxy."""
    parts, proxies = urlsplit(url), getproxies()
    host, kind = parts.hostname or "", "https" if parts.scheme in _SECURE else "http"
    name = next(filter(proxies.get, (kind, "all")), None)
    if name is None or host in _THIS_HOST or proxy_bypass(host):
        return None
    variables = f"{name}_proxy", f"{name}_proxy".upper()
    return _proxy(next(filter(os.environ.get, variables), variables[0]), proxies[name].strip())


def _proxy(name: str, value: str) -> Proxy:
    try:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        host, port = parts.hostname, parts.port or 80
    except ValueError:
        host = None
    if not host or parts.scheme != "http":
        # The value is not quoted: it may hold a password.
        raise SettingsError(f"{name} is not allowed: it must be an HTTP proxy, as http://HOST:PORT (no SOCKS)")
    if parts.username is None:
        return Proxy(host, port, "", name)
    user = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
    return Proxy(host, port, f"Proxy-Authorization: Basic {base64.b64encode(user).decode()}\r\n", name)


def connect(url: str, deadline: Deadline, on_step: OnStep = lambda _step, _facts: None) -> socket.socket:
    """Return a socket connected to the address, with TLS if it is a secure one. From any thread.

    Blocks until the deadline at most, and for as long as the name server takes. Raises NoConnection.
    """
    parts, proxy = urlsplit(url), proxy_for(url)
    host, is_secure = parts.hostname or "", parts.scheme in _SECURE
    port = parts.port or (443 if is_secure else 80)
    target, hop = join(host, port), (proxy.host, proxy.port) if proxy else (host, port)
    sock, where = None, "proxy: " if proxy else ""
    try:
        addresses = socket.getaddrinfo(*hop, type=socket.SOCK_STREAM)
        on_step("DNS", f"{hop[0]} is {', '.join(dict.fromkeys(str(address[-1][0]) for address in addresses))}")
        if proxy is None:
            on_step("proxy", f"not used for {host}")
        sock = _open(addresses, deadline)
        if proxy:
            _tunnel(sock, target, proxy, deadline)
            on_step("proxy", f"{join(*hop)}, from {proxy.variable}, opens the way to {target}")
            where = ""
        on_step("TCP", f"{target} accepts connections")
        limit(sock, deadline)
        if is_secure:
            # A context each time: what the system trusts may change while the daemon runs.
            sock = ssl.create_default_context().wrap_socket(sock, server_hostname=host)
        on_step("TLS", f"{target} has a certificate that is trusted" if is_secure else f"not used for {target}")
        return sock
    except (OSError, UnicodeError) as error:  # UnicodeError: a name that cannot be one
        if sock is not None:
            sock.close()
        is_timeout = isinstance(error, TimeoutError)
        raise NoConnection(where + explain(error), is_unreachable=sock is None, is_timeout=is_timeout) from error


def join(host: str, port: int) -> str:
    """Write a host and its port as in a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def limit(sock: socket.socket, deadline: Deadline) -> None:
    """Let the next call of the socket block until the deadline at most. Raises TimeoutError where that is over."""
    if deadline.is_over():
        raise TimeoutError
    sock.settimeout(deadline.remaining_s() + _LEAST_S)


class _Wire(io.RawIOBase):
    """A socket as HTTPResponse reads from it, each read within what is left of one deadline.

    The socket's own timeout is for one read: headers or chunk sizes that trickle in would never reach it.
    """

    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        self._socket, self._deadline, self.in_head = sock, deadline, True

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        limit(self._socket, self._deadline)
        received = self._socket.recv_into(buffer)
        if not received and self.in_head:  # HTTPResponse would take it for the end of the headers
            raise ConnectionResetError("closed before the answer")
        return received


def read_head(sock: socket.socket, method: str, deadline: Deadline) -> http.client.HTTPResponse:
    """Read the head of the answer to a request of this method; reading its body then ends with the deadline, too.

    Raises TimeoutError, ConnectionError or http.client.HTTPException.
    """
    wire = _Wire(sock, deadline)
    answer = http.client.HTTPResponse(wire, method=method)  # type: ignore[arg-type]
    answer.begin()
    wire.in_head = False
    return answer


def shut_down(sock: socket.socket | None) -> None:
    """End a connection under the thread that reads from it, which finds it ended; returns at once. From any thread."""
    with contextlib.suppress(OSError):  # it is gone already
        if sock is not None:
            # Not the TLS socket's own shutdown, which would take the session away under the reading thread.
            socket.socket.shutdown(sock, socket.SHUT_RDWR)


def explain(error: Exception) -> str:
    """Say in a few words what went wrong on the network."""
    if isinstance(error, (socket.gaierror, UnicodeError)):
        return "DNS: the host name cannot be resolved"
    if isinstance(error, TimeoutError):
        return "no answer in time while connecting"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {getattr(error, 'verify_message', '') or error.reason or error}"
    return error.strerror.lower() if isinstance(error, OSError) and error.strerror else str(error)


def _open(addresses: list[Any], deadline: Deadline) -> socket.socket:
    """Open a TCP connection to the first of a host's addresses that answers."""
    *others, last = [address[:2] for *_, address in addresses]
    for address in others:
        with contextlib.suppress(OSError):  # one that is silent leaves time for the next
            return socket.create_connection(address, deadline.remaining_s() / 2 + _LEAST_S)
    return socket.create_connection(last, deadline.remaining_s() + _LEAST_S)


def _tunnel(sock: socket.socket, target: str, proxy: Proxy, deadline: Deadline) -> None:
    limit(sock, deadline)
    sock.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{proxy.authorization}\r\n".encode())
    try:
        answer = read_head(sock, "CONNECT", deadline)
    except http.client.HTTPException as error:
        raise OSError("its answer to CONNECT is not HTTP") from error
    if answer.status // 100 != 2:
        raise OSError(f"it answers CONNECT with {answer.status} {answer.reason[:100]}")
