"""A connection to /funding/stream of a running server; its body is read by h11."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Callable

import h11

from tests.support.follower import Follower
from tests.support.waiting import PATIENCE_S


class Subscriber:
    """Subscribes when it is made; reads only while it waits for something."""

    def __init__(self, port: int, query: str = "", *, receive_buffer: int | None = None) -> None:
        self.follower = Follower()
        self.sock = socket.socket()
        self.sock.settimeout(PATIENCE_S)
        if receive_buffer is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.connect(("127.0.0.1", port))
        self._judge = h11.Connection(h11.CLIENT)
        request = h11.Request(method="GET", target=f"/funding/stream{query}", headers=[("Host", "test")])
        self.sock.sendall(self._judge.send(request) + self._judge.send(h11.EndOfMessage()))
        self.status: int | None = None

    def __enter__(self) -> Subscriber:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave."""
        self.sock.close()

    def read(self) -> None:
        """Take in what comes next; waits for it. Raises EOFError at the end of the connection."""
        received = self.sock.recv(65536)
        if not received:
            raise EOFError
        self._judge.receive_data(received)
        while (event := self._judge.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
            if isinstance(event, h11.Response):
                self.status = event.status_code
            elif isinstance(event, h11.Data):
                self.follower.receive(bytes(event.data))

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Read until a condition holds."""
        deadline_s = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline_s, f"not within {PATIENCE_S} s: {what}"
            self.read()

    def read_what_is_there(self) -> None:
        """Take in what has come, without waiting for more."""
        while select.select([self.sock], [], [], 0)[0]:
            self.read()

    def is_ended(self) -> bool:
        """Read to the end of the connection; True when it has come."""
        with contextlib.suppress(EOFError, ConnectionError):
            while True:
                self.read()
        return True

    @classmethod
    def is_served(cls, port: int) -> bool:
        """Tell whether there is room for one more."""
        with cls(port) as subscriber:
            subscriber.wait(lambda: subscriber.status is not None, "an answer")
            return subscriber.status == 200
