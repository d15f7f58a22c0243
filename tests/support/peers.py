"""Small peers for one connection at a time, each in a thread: what no exchange does, and a proxy."""

import contextlib
import select
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

_PIECE_BYTES = 65_536

Talk = Callable[[socket.socket], None]


class Listener:
    """Listens on 127.0.0.1 and lets `talk` deal with one connection after the other; counts them."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: socket.socket | None = None
        self._thread = threading.Thread(target=self._serve, name="peer")
        self.accepted = 0

    @property
    def port(self) -> int:
        """Its port."""
        port: int = self._listener.getsockname()[1]
        return port

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # the listener was shut down, or the client has gone
            while True:
                sock, _ = self._listener.accept()
                self.accepted += 1
                with sock, contextlib.suppress(OSError):
                    self._open = sock
                    self._talk(sock)

    def __enter__(self) -> "Listener":
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        for sock in (self._listener, self._open):
            with contextlib.suppress(OSError):
                if sock is not None:
                    sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._listener.close()
        assert not self._thread.is_alive()


def answers(answer: bytes) -> Talk:
    """Read once, answer with these bytes, hang up."""

    def talk(sock: socket.socket) -> None:
        sock.recv(_PIECE_BYTES)
        sock.sendall(answer)

    return talk


def records(heads: list[str], given: Sequence[bytes]) -> Talk:
    """Read once and note it, give the next answer (the last of them again and again), hang up."""

    def talk(sock: socket.socket) -> None:
        heads.append(sock.recv(_PIECE_BYTES).decode("latin-1"))
        sock.sendall(given[min(len(heads), len(given)) - 1])

    return talk


def trickles(beginning: bytes, piece: bytes = b"X", pause_s: float = 0.02) -> Talk:
    """Read once, answer with the beginning, and then with one piece after the other until the client has gone."""

    def talk(sock: socket.socket) -> None:
        sock.recv(_PIECE_BYTES)
        sock.sendall(beginning)
        while not select.select([sock], [], [], pause_s)[0]:
            sock.sendall(piece)

    return talk


def tunnels(heads: list[str]) -> Talk:
    """Be an HTTP proxy for CONNECT, for which every name is one of this host; note the heads of the requests."""

    def talk(sock: socket.socket) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += sock.recv(_PIECE_BYTES)
        heads.append(head.decode())
        port = int(heads[-1].split()[1].rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as target:
            sock.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            _pump(sock, target)

    return talk


def _pump(one: socket.socket, other: socket.socket) -> None:
    while True:
        for sock in select.select([one, other], [], [])[0]:
            received = sock.recv(_PIECE_BYTES)
            if not received:
                return
            (other if sock is one else one).sendall(received)


@contextmanager
def silent_port() -> Iterator[int]:
    """Yield a port that answers no SYN: its backlog is full."""
    with socket.socket() as listener, contextlib.ExitStack() as waiting:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port: int = listener.getsockname()[1]
        for _ in range(4):
            sock = waiting.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", port))
        yield port
