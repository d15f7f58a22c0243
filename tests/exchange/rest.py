"""The exchange's REST side: a small HTTP/1.1 server in the exchange's event loop, with faults on request."""

from __future__ import annotations

import asyncio
import gzip
import http
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import parse_qsl, urlsplit

from tests.exchange.market import Market, to_json
from tests.exchange.stream import RECORDS_KEPT, reset_transport

PREMIUM_INDEX = "/fapi/v1/premiumIndex"
FUNDING_INFO = "/fapi/v1/fundingInfo"
FUNDING_RATE = "/fapi/v1/fundingRate"
SERVER_TIME = "/fapi/v1/time"
ALL_SYMBOLS_WEIGHT = 10
WEIGHT_PER_MINUTE = 2400
SETTLEMENTS = 100

How = Literal["answer", "hang", "trickle", "cut", "reset"]


@dataclass(frozen=True)
class RestRequest:
    """One request as received (`at_s`: Unix seconds) and the status answered; 0 where no answer was meant."""

    at_s: float
    path: str
    headers: dict[str, str]
    status: int


@dataclass
class RestFault:
    """How the next requests are treated, `remaining` of them or (None) all until cleared.

    `body` None with "trickle" or "cut" stands for the right answer, sent slowly or half.
    `path` limits the fault to requests whose target begins with it.
    """

    status: int = 200
    body: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    how: How = "answer"
    remaining: int | None = None
    path: str = "/"
    pause_s: float = 0.01


@dataclass
class _Answer:
    status: int
    body: bytes
    headers: dict[str, str]


class RestService:
    """Answers REST requests. To be used in the event loop only."""

    def __init__(
        self,
        market: Market,
        now_ms: Callable[[], int],
        row_time_ms: Callable[[], int],
        server_time_ms: Callable[[], int],
    ) -> None:
        self.requests: deque[RestRequest] = deque(maxlen=RECORDS_KEPT)
        self._faults: dict[str, RestFault] = {}  # by path
        self._market = market
        self._now_ms = now_ms
        self._row_time_ms = row_time_ms
        self._server_time_ms = server_time_ms
        self._server: asyncio.Server | None = None
        self._serving: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._stalled: set[asyncio.StreamWriter] = set()
        self._weight_minute = 0
        self._weight_used = 0

    def set_fault(self, fault: RestFault) -> None:
        """Let a fault begin. It replaces those for its own path and for paths that begin with it."""
        self.clear_faults(fault.path)
        self._faults[fault.path] = fault

    def clear_faults(self, path: str) -> None:
        """End the faults for a path and for paths that begin with it."""
        self._faults = {one: fault for one, fault in self._faults.items() if not one.startswith(path)}

    async def listen(self, sock: socket.socket) -> None:
        """Accept connections on a bound socket, which then belongs to the server."""
        self._server = await asyncio.start_server(self._serve, sock=sock)

    async def stop_listening(self) -> None:
        """Close the listening socket and reset every connection."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.close()
        tasks = list(self._serving)
        for task, writer in list(self._serving.items()):
            reset_transport(writer.transport)
            task.cancel()
        await asyncio.gather(*tasks)
        await server.wait_closed()

    def stall_open(self) -> None:
        """Answer nothing any more on the connections that are open now."""
        self._stalled |= set(self._serving.values())

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving[task] = writer
        try:
            while await self._serve_one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            return  # the client has left, or the exchange goes down
        finally:
            del self._serving[task]
            self._stalled.discard(writer)
            writer.close()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; False ends the connection."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        request_line, *lines = head.rstrip("\r\n").split("\r\n")
        if writer in self._stalled:
            while await reader.read(4096):
                pass
            return False
        method, target, _ = request_line.split(" ")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        fault = self._next_fault(target)
        answer = self._answer(method, target)
        if fault is not None and fault.body is not None:
            answer = _Answer(fault.status, fault.body, fault.headers)
        elif fault is None and "gzip" in headers.get("accept-encoding", ""):
            answer = _Answer(
                answer.status, gzip.compress(answer.body, 1), {**answer.headers, "Content-Encoding": "gzip"}
            )
        how: How = "answer" if fault is None else fault.how
        status = 0 if how in ("hang", "reset") else answer.status
        self.requests.append(RestRequest(time.time(), target, headers, status))
        return await self._send(answer, fault, how, reader, writer)

    async def _send(
        self,
        answer: _Answer,
        fault: RestFault | None,
        how: How,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> bool:
        if how == "hang":
            while await reader.read(4096):
                pass
            return False
        if how == "reset":
            reset_transport(writer.transport)
            return False
        if how == "cut":
            writer.write(_head(answer) + answer.body[: len(answer.body) // 2])
        elif how == "trickle" and fault is not None:
            writer.write(_head(answer))
            for place in range(len(answer.body)):
                writer.write(answer.body[place : place + 1])
                await writer.drain()
                await asyncio.sleep(fault.pause_s)
        else:
            writer.write(_head(answer) + answer.body)
        await writer.drain()
        return how != "cut"

    def _next_fault(self, target: str) -> RestFault | None:
        """Return the fault for a target, of several the one with the longest path, and count it."""
        path = max((one for one in self._faults if target.startswith(one)), key=len, default=None)
        if path is None:
            return None
        fault = self._faults[path]
        if fault.remaining is not None:
            fault.remaining -= 1
            if fault.remaining <= 0:
                del self._faults[path]
        return fault

    def _answer(self, method: str, target: str) -> _Answer:
        url = urlsplit(target)
        query = dict(parse_qsl(url.query))
        symbol = query.get("symbol", "")
        if method != "GET":
            return _json(405, {"code": -1, "msg": "Method not allowed."})
        if url.path == FUNDING_INFO:
            return _json(200, self._market.funding_info())
        if url.path == FUNDING_RATE:
            return self._funding_rate(symbol, query)
        if url.path == SERVER_TIME:
            return self._weighed(1, self._server_time)
        if url.path == PREMIUM_INDEX:
            return self._weighed(1 if symbol else ALL_SYMBOLS_WEIGHT, lambda: self._premium_index(symbol))
        return _json(404, {"code": -5000, "msg": f"Path {url.path}, Method GET is invalid"})

    def _funding_rate(self, symbol: str, query: dict[str, str]) -> _Answer:
        """Answer for one symbol, by `startTime` and `limit`: the real exchange knows more."""
        start_ms, limit = int(query.get("startTime", 0)), int(query.get("limit", SETTLEMENTS))
        try:
            rows = self._market.funding_history(symbol, self._now_ms(), start_ms, limit)
        except KeyError:
            return _invalid_symbol()
        return _json(200, rows)

    def _server_time(self) -> _Answer:
        return _json(200, {"serverTime": self._server_time_ms()})

    def _premium_index(self, symbol: str) -> _Answer:
        rows = self._market.premium_index(self._row_time_ms())
        if not symbol:
            return _json(200, rows)
        row = next((row for row in rows if row["symbol"] == symbol), None)
        return _json(200, row) if row else _invalid_symbol()

    def _weighed(self, weight: int, answer: Callable[[], _Answer]) -> _Answer:
        weighed = self._weigh(weight) or answer()
        weighed.headers["X-MBX-USED-WEIGHT-1M"] = str(self._weight_used)
        return weighed

    def _weigh(self, weight: int) -> _Answer | None:
        """Count a request's weight; return the refusal when the minute's allowance is spent."""
        now_s = self._now_ms() // 1000
        if now_s // 60 != self._weight_minute:
            self._weight_minute, self._weight_used = now_s // 60, 0
        self._weight_used += weight
        if self._weight_used <= WEIGHT_PER_MINUTE:
            return None
        refusal = _json(429, {"code": -1003, "msg": f"Too many requests; the limit is {WEIGHT_PER_MINUTE} a minute."})
        refusal.headers["Retry-After"] = str(60 - now_s % 60)
        return refusal


def _json(status: int, value: object) -> _Answer:
    return _Answer(status, to_json(value).encode(), {"Content-Type": "application/json;charset=utf-8"})


def _invalid_symbol() -> _Answer:
    return _json(400, {"code": -1121, "msg": "Invalid symbol."})


def _head(answer: _Answer) -> bytes:
    lines = [
        f"HTTP/1.1 {answer.status} {http.HTTPStatus(answer.status).phrase}",
        f"Content-Length: {len(answer.body)}",
    ]
    lines += [f"{name}: {value}" for name, value in answer.headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
