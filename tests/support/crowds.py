"""Crowds that take all the time a server gives them: `python -m tests.support.crowds KIND PORT`, a process of its own.

Each crowd is a set of connections, every one of which behaves in the same way again and again until the crowd ends.
"""

import asyncio
import contextlib
import itertools
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import NamedTuple

from tests.support.http_client import Client
from tests.support.waiting import PATIENCE_S

_ONE_SYMBOL = b"GET /funding/BTCUSDT HTTP/1.1\r\nHost: x\r\n"
_PAUSE_S = 0.01
_serial = itertools.count()

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Manner = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Crowd(NamedTuple):
    """How many connections there are, and what each of them does from its opening to its end."""

    connections: int
    manner: Manner


async def pipeline_heads(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Ask 64 costly questions at once, no two of them alike, and again as soon as they are answered."""
    while True:
        for _ in range(64):
            limit = 1 + next(_serial) % 99_999
            writer.write(b"HEAD /funding/batch?sort=-fundingRate&limit=%d HTTP/1.1\r\nHost: x\r\n\r\n" % limit)
        for _ in range(64):
            await reader.readuntil(b"\r\n\r\n")


async def ask_and_close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Ask one question for each connection, as `ab` does."""
    writer.write(_ONE_SYMBOL + b"Connection: close\r\n\r\n")
    await reader.read()


async def never_read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Ask for a lot and take nothing of it."""
    writer.transport.pause_reading()  # type: ignore[attr-defined] # that of a socket has it
    writer.write(b"GET /funding HTTP/1.1\r\nHost: x\r\n\r\n" * 30)
    await asyncio.sleep(PATIENCE_S)


async def be_rude(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Do one of many rude things."""
    kind = next(_serial) % 5
    if kind == 0:
        for byte in _ONE_SYMBOL[:20]:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(_PAUSE_S)
    elif kind == 1:
        writer.write(b"GET /funding HTTP/1.1\r\nHost: x\r\n\r\n" * 3)
        await reader.read(1000)
        writer.transport.abort()
    elif kind == 2:
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + b"a" * 100_000)
        await reader.read()
    elif kind == 3:
        for _ in range(200):
            writer.write(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % next(_serial))
        await writer.drain()
        await reader.read(1000)
    else:
        writer.write(_ONE_SYMBOL)
        await asyncio.sleep(1)


CROWDS: Mapping[str, Crowd] = {
    "pipelining": Crowd(40, pipeline_heads),
    "closing": Crowd(1000, ask_and_close),
    "never reading": Crowd(1024, never_read),
    "rude": Crowd(1000, be_rude),
}


@contextlib.contextmanager
def crowd(kind: str, port: int) -> Iterator[None]:
    """Let a crowd loose on the server at this port; when the block begins, all its connections are open."""
    command = [sys.executable, "-m", "tests.support.crowds", kind, str(port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            yield
            process.stdin.close()
            assert process.wait(PATIENCE_S) == 0
        finally:
            process.kill()


class Waits(NamedTuple):
    """How long a polite client waited for its answers."""

    median_s: float
    worst_s: float
    answers: int


def polite_waits(port: int, for_s: float, *, keeps_alive: bool) -> Waits:
    """Ask for one symbol again and again, on one connection or on one for each question; all must be answered."""
    waits_s = []
    end_s = time.monotonic() + for_s
    with contextlib.ExitStack() as stack:
        kept = stack.enter_context(Client(("127.0.0.1", port)))
        while time.monotonic() < end_s:
            asked_s = time.monotonic()
            with contextlib.nullcontext(kept) if keeps_alive else Client(("127.0.0.1", port)) as client:
                assert client.get("/funding/BTCUSDT").status == 200
                waits_s.append(time.monotonic() - asked_s)
            time.sleep(_PAUSE_S)
    waits_s.sort()
    return Waits(waits_s[len(waits_s) // 2], waits_s[-1], len(waits_s))


async def _behave(port: int, manner: Manner, opened: "asyncio.Semaphore") -> None:
    is_first = True
    while True:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            if is_first:
                opened.release()
                is_first = False
            try:
                await manner(reader, writer)
            finally:
                writer.close()
        await asyncio.sleep(0)


async def _run(crowd: Crowd, port: int) -> None:
    opened, ended = asyncio.Semaphore(0), asyncio.Event()
    loop = asyncio.get_running_loop()

    def wait_for_end() -> None:
        sys.stdin.read()
        loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=wait_for_end, name="end of input", daemon=True).start()
    tasks = [asyncio.create_task(_behave(port, crowd.manner, opened)) for _ in range(crowd.connections)]
    for _ in tasks:
        await opened.acquire()
    print("ready", flush=True)
    await ended.wait()
    for task in tasks:
        task.cancel()


def main(kind: str, port: int) -> None:
    """Behave like this until stdin ends."""
    os.nice(10)  # the crowd is to take the server's time, not the processor
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    asyncio.run(_run(CROWDS[kind], port))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
