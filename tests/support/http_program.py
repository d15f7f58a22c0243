"""An HTTP server in a process of its own: `python -m tests.support.http_program FILES CONNECTIONS`.

It prints its port, and "stopped" after SIGTERM. FILES is its limit of open files; 0 raises it as needed. /huge has
8 MB, /events has events of 900 buffers without an end. Any other path says how many turns there were, and how big the
process is.
"""

import contextlib
import itertools
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

from binance_funding.server.http.message import Request, Response
from binance_funding.server.http.server import HttpServer, Limits
from binance_funding.server.listener import listen, raise_file_limit
from tests.support.http_client import Client
from tests.support.waiting import PATIENCE_S

_PATIENT = Limits(idle_s=1000, request_s=1000, write_s=1000, stalled_s=1000)


class Usage(NamedTuple):
    """What a server has used since its start."""

    turns: int
    memory_bytes: int


class _Program:
    def __init__(self) -> None:
        self._turns = 0
        self._statm = open("/proc/self/statm", encoding="ascii")  # noqa: SIM115 - later there may be no file left
        self._huge = b"x" * (8 << 20)
        self._event = [b"x" * 300 for _ in range(900)]

    def count_turn(self) -> int:
        """Return another version each time, so that nothing is cached."""
        self._turns += 1
        return self._turns

    def answer(self, request: Request) -> Response:
        """Answer as the path says."""
        if request.path == "/huge":
            return Response(200, self._huge)
        if request.path == "/events":
            return Response(200, b"", events=itertools.repeat(self._event))
        self._statm.seek(0)
        pages = int(self._statm.read().split()[1])
        return Response(200, b"%d %d" % (self._turns, pages * resource.getpagesize()))


def usage(client: Client) -> Usage:
    """Ask the program what it has used."""
    turns, memory_bytes = client.get().body.split()
    return Usage(int(turns), int(memory_bytes))


@contextlib.contextmanager
def http_program(files: int, connections: int) -> Iterator[tuple[str, int]]:
    """Run the program and yield its address; it is ended by SIGTERM, and must then stop in good order."""
    command = [sys.executable, "-m", "tests.support.http_program", str(files), str(connections)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield "127.0.0.1", int(process.stdout.readline())
            process.terminate()
            assert process.stdout.read() == "stopped\n"
            assert process.wait(PATIENCE_S) == 0
        finally:
            process.kill()


def main(files: int, connections: int) -> None:
    """Serve until SIGTERM."""
    program = _Program()
    if files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    else:
        raise_file_limit(connections)
    server = HttpServer(
        listen("127.0.0.1", 0),
        program.answer,
        max_connections=connections,
        cache_version=program.count_turn,
        limits=_PATIENT,
    )
    signal.signal(signal.SIGTERM, lambda *_: server.stop())
    print(server.address[1], flush=True)
    server.serve()
    print("stopped", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
