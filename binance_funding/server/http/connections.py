"""The connections of the HTTP server, and the states that each of them may have."""

import selectors
import socket
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum, auto

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # struct linger


class State(IntEnum):  # Enum would do, but its members take ten times as long to look up in a dict
    """What the server waits for."""

    NEW = auto()  # the first bytes of a client
    IDLE = auto()  # the next request of a client that has all its answers
    READING = auto()  # the rest of a request, or time to read bytes that have come
    WRITING = auto()  # a client to take its answers, or time to answer its further requests
    SUBSCRIBED = auto()  # new events for a subscriber that has taken all others
    PUSHING = auto()  # a subscriber to take events
    CLOSING = auto()  # a client to close its side after its last answer
    CLOSED = auto()  # nothing: the socket is closed


@dataclass(eq=False, slots=True)
class Client:
    """A connection."""

    sock: socket.socket
    since_s: float  # when it entered its state
    took_s: float  # when the client last took bytes, or connected
    served: int  # number of the turn in which the client was last served, or connected
    state: State = State.NEW
    unanswered: bytes = b""  # received bytes of requests that have no answer yet
    checked: int = 0  # number of unanswered bytes that were searched for the end of a head, without success
    unsent: list[bytes | memoryview] = field(default_factory=list)
    closes: bool = False  # no further request is answered, and the connection is closed after the unsent bytes
    events: Iterator[list[bytes]] | None = None  # the source of further bytes for a subscriber


@dataclass(eq=False, slots=True)
class Rule:
    """A row of the table of states."""

    watched: int  # the event of the socket for which the server waits; 0 for a closed socket
    on_ready: Callable[[Client], None]
    limit_s: float  # how long a connection may stay in the state
    on_expiry: Callable[[Client], None]
    next_states: frozenset[State]  # a state that may follow itself begins again, with its time limit


class Connections:
    """All connections that are not closed, by state, each state in the order in which they entered it."""

    def __init__(self, selector: selectors.BaseSelector, rules: Mapping[State, Rule]) -> None:
        """Keep the selector, which watches every socket, and the table, which every change of state must obey."""
        self._selector = selector
        self._rules = rules
        self._clients: dict[State, OrderedDict[Client, None]] = {state: OrderedDict() for state in State}

    def accept(self, listener: socket.socket, now_s: float, turn: int) -> Client:
        """Accept a connection. Raises OSError if no client waits, or if the host has no file or memory left for it."""
        sock, _ = listener.accept()
        client = Client(sock, since_s=now_s, took_s=now_s, served=turn)
        try:
            sock.setblocking(False)
            self._selector.register(sock, self._rules[client.state].watched, client)
        except OSError:
            sock.close()
            raise
        self._clients[client.state][client] = None
        return client

    def enter(self, client: Client, state: State, now_s: float) -> None:
        """Change the state of a connection, or begin the same state again. Raises RuntimeError if no rule allows it."""
        before, after = self._rules[client.state], self._rules[state]
        if state not in before.next_states:
            raise RuntimeError(f"the state may not change from {client.state.name} to {state.name}")
        del self._clients[client.state][client]
        client.state, client.since_s = state, now_s
        if not after.watched:
            if client.unsent:  # send a reset, so that the kernel does not keep the bytes that it has
                client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self._selector.unregister(client.sock)
            client.sock.close()
            return
        self._clients[state][client] = None
        if after.watched != before.watched:
            self._selector.modify(client.sock, after.watched, client)

    def of(self, *states: State) -> list[Client]:
        """Return the connections in these states, for each state the oldest first."""
        return [client for state in states for client in self._clients[state]]

    def first(self, state: State) -> Client | None:
        """Return the connection that has been in this state for longest."""
        return next(iter(self._clients[state]), None)

    def count(self, *states: State) -> int:
        """Return how many connections are in these states."""
        return sum(len(self._clients[state]) for state in states)
