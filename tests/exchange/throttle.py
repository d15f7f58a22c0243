"""A slow link: a TCP proxy on loopback that passes on so many bytes per second."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Coroutine
from typing import Any

from tests.exchange.loop import LoopThread
from tests.exchange.stream import reset_transport

HOST = "127.0.0.1"
KERNEL_BUFFER_BYTES = 16_384
SEGMENT_BYTES = 1460
"""As on Ethernet. Loopback's own 64 KiB segments would make a small receive buffer stop and go."""
PIECE_S = 0.05
"""What is passed on at once is what the link carries in this time."""
CATCH_UP_S = 0.2
"""A pause that grew longer than it should by up to this is made up for, so that the mean rate is exact."""


class ThrottlingProxy:
    """Passes connections on to a port of 127.0.0.1, what comes from there at so many bytes per second each.

    Sockets buffer a few kB only, so what is too much for the link waits at the sender. What the client sends is
    not slowed down. A FIN is passed on behind the data, an RST at once; where the target refuses to connect, the
    client is reset. Use as a context manager; thread "throttling-proxy". `bytes_per_s` may be changed at any time.
    """

    def __init__(self, target_port: int, bytes_per_s: float) -> None:
        self.bytes_per_s = bytes_per_s
        self.port = 0
        """Where the proxy listens, once started."""
        self._target_port = target_port
        self._server: asyncio.Server | None = None
        self._transports: set[asyncio.WriteTransport] = set()
        self._thread = LoopThread("throttling-proxy", self._start, self._stop)

    def __enter__(self) -> ThrottlingProxy:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._thread.stop()

    def through(self, url: str) -> str:
        """Return a URL of the target with the proxy's port in place of its own."""
        return url.replace(f"{HOST}:{self._target_port}", f"{HOST}:{self.port}", 1)

    async def _start(self) -> None:
        sock = _small_socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((HOST, 0))
        self.port = sock.getsockname()[1]
        self._server = await asyncio.start_server(self._serve, sock=sock, limit=SEGMENT_BYTES)

    async def _stop(self) -> None:
        if self._server is None:
            return
        self._server.close()
        for transport in self._transports:
            reset_transport(transport)
        await self._server.wait_closed()

    async def _serve(self, client_reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        client.transport.set_write_buffer_limits(0)  # drain() returns when the kernel has everything
        self._transports.add(client.transport)
        try:
            target_reader, target = await asyncio.open_connection(sock=await self._connect(), limit=SEGMENT_BYTES)
        except ConnectionRefusedError:
            reset_transport(client.transport)
            self._transports.discard(client.transport)
            return
        self._transports.add(target.transport)
        try:
            await _both(_pass_on(client_reader, target), self._pass_on_slowly(target_reader, client))
        except (ConnectionError, asyncio.CancelledError):  # one side was reset, or the proxy ends
            reset_transport(client.transport)
            reset_transport(target.transport)
        finally:
            self._transports -= {client.transport, target.transport}
            client.close()
            target.close()

    async def _connect(self) -> socket.socket:
        sock = _small_socket()
        try:
            await asyncio.get_running_loop().sock_connect(sock, (HOST, self._target_port))
        except OSError:
            sock.close()
            raise
        return sock

    async def _pass_on_slowly(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        while data := await reader.read(max(1, int(self.bytes_per_s * PIECE_S))):
            writer.write(data)
            await writer.drain()
            due_s = max(due_s, loop.time() - CATCH_UP_S) + len(data) / self.bytes_per_s
            await asyncio.sleep(due_s - loop.time())
        writer.write_eof()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()
    writer.write_eof()


async def _both(*coroutines: Coroutine[Any, Any, None]) -> None:
    """Run both to their end, or until one of them raises; that error is raised, the other coroutine cancelled."""
    tasks = [asyncio.ensure_future(one) for one in coroutines]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _small_socket() -> socket.socket:
    """Return a non-blocking socket that buffers little, as do those that it accepts."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KERNEL_BUFFER_BYTES)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL_BUFFER_BYTES)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT_BYTES)
    return sock
