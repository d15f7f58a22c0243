"""The connections of the HTTP server, and the states that each of them may have."""

import selectors
import socket
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto


class State(Enum):
    """What the server waits for."""

    NEW = auto()
    """For the first bytes of a client."""
    IDLE = auto()
    """For the next request of a client that has all its answers."""
    READING = auto()
    """For the rest of a request, or for time to read bytes that have come."""
    WRITING = auto()
    """For a client to take its answers, or for time to answer its further requests."""
    SUBSCRIBED = auto()
    """For new events: the subscriber has taken all others."""
    PUSHING = auto()
    """For a subscriber to take events."""
    CLOSING = auto()
    """For a client to close its side after its last answer."""
    CLOSED = auto()
    """For nothing: the socket is closed."""

    __hash__ = object.__hash__  # members are compared by identity; Enum's own hash takes ten times as long


_CLOSED = State.CLOSED  # a look-up in an Enum is slow before Python 3.12


@dataclass(eq=False, slots=True)
class Conversation:
    """The bytes received from a client that are not answered yet, and the bytes that are to be sent to it."""

    unanswered: bytes = b""
    checked: int = 0
    """So many of the unanswered bytes are known to be an incomplete head."""
    unsent: list[bytes | memoryview] = field(default_factory=list)
    closes: bool = False
    """True if no further request is answered, and the connection is closed after the unsent bytes."""
    events: Iterator[list[bytes]] | None = None
    """The source of further bytes for a subscriber."""


@dataclass(eq=False, slots=True, kw_only=True)
class Client(Conversation):
    """A connection."""

    sock: socket.socket
    since_s: float
    """When it entered its state."""
    took_s: float
    """When the client last took bytes, or connected."""
    served: int
    """Number of the turn in which it was served last, or came."""
    noticed_s: float | None = None
    """When its socket was found ready although there was no time for it; None if it does not wait."""
    state: State = State.NEW


@dataclass(eq=False, slots=True)
class Rule:
    """A row of the table of states."""

    watched: int
    """The event of the socket for which the server waits."""
    on_ready: Callable[[Client], None]
    limit_s: float
    """How long a connection may stay in the state."""
    on_expiry: Callable[[Client], None]
    next_states: frozenset[State]
    """The states that may follow. A state that may follow itself begins again, with its time limit."""


class IllegalTransition(Exception):
    """A change of state that the table does not allow: a bug of the server."""


class Connections:
    """All connections that are not closed, by state, each state in the order in which they entered it."""

    def __init__(self, selector: selectors.BaseSelector, rules: Mapping[State, Rule]) -> None:
        """Keep the selector, which watches every socket, and the table, which every change of state must obey."""
        self._selector = selector
        self._rules = rules
        self._clients: dict[State, OrderedDict[Client, None]] = {state: OrderedDict() for state in State}

    def add(self, sock: socket.socket, now_s: float, served: int) -> Client:
        """Add a new connection. Raises OSError, and closes the socket, if the host cannot watch another one."""
        client = Client(sock=sock, since_s=now_s, took_s=now_s, served=served)
        try:
            self._selector.register(sock, self._rules[client.state].watched, client)
        except OSError:
            sock.close()
            raise
        self._clients[client.state][client] = None
        return client

    def enter(self, client: Client, state: State, now_s: float) -> None:
        """Change the state of a connection, or begin the same state again. Raises IllegalTransition."""
        before, rules = client.state, self._rules
        if state not in rules[before].next_states:
            raise IllegalTransition(f"{before.name} to {state.name}")
        del self._clients[before][client]
        client.state, client.since_s = state, now_s
        if state is _CLOSED:
            self._selector.unregister(client.sock)
            client.sock.close()
            return
        self._clients[state][client] = None
        if rules[state].watched != rules[before].watched:
            self._selector.modify(client.sock, rules[state].watched, client)

    def of(self, *states: State) -> list[Client]:
        """Return the connections in these states, for each state the oldest first."""
        return [client for state in states for client in self._clients[state]]

    def first(self, state: State) -> Client | None:
        """Return the connection that has been in this state for longest."""
        return next(iter(self._clients[state]), None)

    def count(self, *states: State) -> int:
        """Return how many connections are in these states."""
        return sum(len(self._clients[state]) for state in states)
