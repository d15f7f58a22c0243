"""The sending end of a mark price stream, reduced to what can be timed: finished frames, written at a known moment.

The simulated exchange sends from an event loop of its own, as its turn comes; here the caller's thread writes.
"""

import base64
import hashlib
import re
import socket
import struct
from collections.abc import Sequence
from time import monotonic

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3
_KEY = re.compile(rb"(?i)\r\nsec-websocket-key: *([^\r]+)\r\n")
_TIMEOUT_S = 30.0


class Feeder:
    """Accepts the WebSocket connections of one client and sends all of them the same. For one thread."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(_TIMEOUT_S)
        self._connections: list[socket.socket] = []
        self.url = f"ws://127.0.0.1:{self._listener.getsockname()[1]}/market/stream?streams=!markPrice@arr"

    def accept(self, count: int) -> None:
        """Wait for so many connections and shake hands with each. Raises TimeoutError."""
        for _ in range(count):
            sock, _ = self._listener.accept()
            sock.settimeout(_TIMEOUT_S)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _shake_hands(sock)
            self._connections.append(sock)

    def send(self, messages: Sequence[bytes]) -> list[float]:
        """Send text messages, all of them to one connection after the other.

        Returns the monotonic time at which the last byte of each was on its way to the first connection.
        """
        frames = [_frame(message) for message in messages]
        sent_s: list[float] = []
        for connection in self._connections:
            for frame in frames:
                connection.sendall(frame)
                sent_s.append(monotonic())
        return sent_s[: len(messages)]

    def close(self) -> None:
        """Close everything."""
        for sock in (self._listener, *self._connections):
            sock.close()


def _shake_hands(sock: socket.socket) -> None:
    request = b""
    while not request.endswith(b"\r\n\r\n"):
        received = sock.recv(4096)
        if not received:
            raise ConnectionError("the client left during the handshake")
        request += received
    key = _KEY.search(request)
    if key is None:
        raise ConnectionError(f"no WebSocket handshake: {request[:200]!r}")
    accept = base64.b64encode(hashlib.sha1(key[1] + _GUID).digest()).decode()
    sock.sendall(
        f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {accept}\r\n\r\n".encode()
    )


def _frame(payload: bytes) -> bytes:
    """Make one text frame (RFC 6455 section 5.2)."""
    size = len(payload)
    if size < 126:
        head = struct.pack("!BB", 0x81, size)
    elif size < 1 << 16:
        head = struct.pack("!BBH", 0x81, 126, size)
    else:
        head = struct.pack("!BBQ", 0x81, 127, size)
    return head + payload
