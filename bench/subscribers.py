"""Many subscribers of one server, in a process of their own: `python -m bench.subscribers PORT NUMBER`.

It prints "ready" when all have their snapshot and status, and at the end of its input, for each state of the file, when
each of them had its update: {id: [Unix s, ...]}.
"""

import json
import resource
import selectors
import socket
import sys
import time
from dataclasses import dataclass, field

_REQUEST = b"GET /funding/stream HTTP/1.1\r\nHost: x\r\n\r\n"
# An event ends with an empty line, the chunk that it is sent in with another.
_END = b"\n\n\r\n"
_RECEIVE_BYTES = 1 << 18


@dataclass(eq=False)
class _Subscriber:
    sock: socket.socket
    beginning: bytes = b""
    tail: bytes = b""
    complete: list[tuple[str, float]] = field(default_factory=list)

    def read(self) -> None:
        """Take what is there; note when an update is complete."""
        received = self.sock.recv(_RECEIVE_BYTES)
        if not received:
            raise SystemExit("a subscriber was dropped")
        self.beginning = (self.beginning + received)[:400] if len(self.beginning) < 400 else self.beginning
        self.tail = (self.tail + received)[-len(_END) :] if len(received) < len(_END) else received[-len(_END) :]
        if self.tail == _END:
            written_at = self.beginning.partition(b"id: ")[2].partition(b"\n")[0].decode()
            if written_at:  # else it was a comment
                self.complete.append((written_at, time.time()))
            self.beginning = b""


def main(port: int, number: int) -> None:
    """Subscribe, and read until the input ends."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (number + 64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    subscribers = []
    with selectors.DefaultSelector() as selector:
        for _ in range(number):
            sock = socket.create_connection(("127.0.0.1", port))
            sock.sendall(_REQUEST)
            subscribers.append(_Subscriber(sock))
            selector.register(sock, selectors.EVENT_READ, subscribers[-1])
        selector.register(sys.stdin, selectors.EVENT_READ)
        is_ready = False
        while True:
            for key, _ in selector.select():
                if key.data is None:
                    _report(subscribers)
                    return
                key.data.read()
            if not is_ready and all(subscriber.complete for subscriber in subscribers):
                is_ready = True
                print("ready", flush=True)


def _report(subscribers: list[_Subscriber]) -> None:
    times: dict[str, list[float]] = {}
    for subscriber in subscribers:
        for written_at, time_s in subscriber.complete[1:]:
            times.setdefault(written_at, []).append(time_s)
    print(json.dumps(times), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
