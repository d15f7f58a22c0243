"""The states of the HTTP server's connections: whatever several clients do before one turn of its loop meets it all.

Hypothesis lets clients do things in any order, with sockets that hold little and a clock moved by hand; h11 judges.
"""

import contextlib
import gc
import os
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

import h11
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from binance_funding.server.http.connections import Client, State
from binance_funding.server.http.message import Request, Response
from binance_funding.server.http.server import HttpServer, Limits
from binance_funding.server.listener import listen
from tests.support.clock import SimulatedClock
from tests.support.http_client import Reply
from tests.support.waiting import eventually

SMALL_BUFFER = 4096
ANSWER_S = 0.001
"""How long the handler takes for an answer: two clients have their turn, with two answers each."""
LIMITS = Limits(
    turn_s=2 * ANSWER_S,
    share_s=ANSWER_S,
    closing_connections=1,
    unsent_bytes=100_000,
    send_buffer_bytes=SMALL_BUFFER,
    push_buffer_bytes=SMALL_BUFFER,
)
MAX_CONNECTIONS = 4
MAX_PEERS = 7
BIG = b"x" * 100_000
PADDING = b"." * 15_000
EXAMPLES = int(os.environ.get("HTTP_STATE_EXAMPLES", "200"))
TURNS = st.integers(0, 2)
SUBSCRIBERS = (State.SUBSCRIBED, State.PUSHING)
SOME = st.sets(st.integers(0, MAX_PEERS - 1), min_size=1)


class Question(NamedTuple):
    """What a client may send, and the answer that is due to it."""

    sent: bytes
    method: str
    status: int
    path: str = ""
    closes: bool = False

    @property
    def body(self) -> bytes:
        """The body of the answer to a polite question."""
        return b"" if self.method == "HEAD" else body_of(self.path)


def question(path: str, method: str = "GET", headers: str = "") -> Question:
    """Return a polite request; headers are whole lines."""
    sent = f"{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode()
    return Question(sent, method, 200, path, closes=bool(headers))


QUESTIONS = (
    *(question(f"/{number}") for number in range(3)),
    question("/big"),
    question("/head", "HEAD"),
    question("/last", headers="Connection: close\r\n"),
)
SUBSCRIPTION = question("/events")
BAD_QUESTIONS = (
    Question(b"\0", "GET", 400, closes=True),
    Question(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nbody", "POST", 405, closes=True),
)


REFUSALS = (b"HTTP/1.1 408 ", b"HTTP/1.1 503 ")
"""For want of time and for want of room: not an answer to a question."""


def body_of(path: str) -> bytes:
    """Return what there is: the path, or more than the sockets hold."""
    return BIG if path == "/big" else path.encode()


def newest(chunks: bytes) -> int:
    """Return up to where events led that were received; each must begin where the one before ended."""
    number, events = 0, b""
    while chunks:
        length, ended, rest = chunks.partition(b"\r\n")
        end = int(length, 16) if ended else 0
        if len(rest) < end + 2 or not ended:
            break  # not complete
        assert rest[end : end + 2] == b"\r\n"
        events, chunks = events + rest[:end], rest[end + 2 :]
    for event in events.replace(PADDING, b"").split(b";")[:-1]:
        start, end = map(int, event.split(b"-"))
        assert start == number < end
        number = end
    return number


def open_files() -> int:
    """Return how many files this process has open."""
    return len(os.listdir("/proc/self/fd"))


class Peer:
    """A client: what it has sent and received, and how many answers must reach it."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.sock = socket.socket()
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.connect(address)
        self.sock.setblocking(False)
        self.name = self.sock.getsockname()
        self.asked: list[Question] = []
        self.unfinished: tuple[Question, bytes] | None = None
        self.due = 0
        self.was_held = False  # by the server, before a turn
        self.is_reliable = True  # until it does what may cost it answers that are due
        self.has_shut_down = False
        self.received = b""
        self.has_ended = False

    def may_ask(self) -> bool:
        """Whether a further request could be answered."""
        last = self.asked[-1] if self.asked else None
        return not self.has_shut_down and not (last and (last.closes or last is SUBSCRIPTION))

    def send(self, data: bytes) -> None:
        """Send, unless the server has hung up."""
        try:
            assert self.sock.send(data) == len(data)
        except ConnectionError:
            self.is_reliable = False

    def ask(self, question: Question) -> None:
        """Send a whole request, after the rest of the one of which a part was sent."""
        self.finish()
        if self.may_ask():
            self.send(question.sent)
            self.asked.append(question)

    def begin(self, question: Question, part_bytes: int) -> None:
        """Send a part of a request, after the rest of the one of which a part was sent."""
        self.finish()
        if self.may_ask():
            self.send(question.sent[:part_bytes])
            self.unfinished = question, question.sent[part_bytes:]

    def finish(self) -> None:
        """Send the rest of a request of which a part was sent."""
        if self.unfinished is not None:
            question, rest = self.unfinished
            self.unfinished = None
            self.send(rest)
            self.asked.append(question)

    def read(self, limit_bytes: int) -> bool:
        """Read a little; False if nothing was there."""
        try:
            data = self.sock.recv(limit_bytes)
        except BlockingIOError:
            return False
        except ConnectionError:
            self.is_reliable, data = False, b""
        self.received += data
        self.has_ended = not data
        return bool(data)

    def has_its_answers(self, news: int) -> bool:
        """Check that every answer is the one to what was asked, in order; tell whether all that are due have come."""
        received, answered, refused = self.received, 0, False
        while received and not refused:
            question = None if received.startswith(REFUSALS) else self.asked[answered]
            if question is SUBSCRIPTION:
                head, _, events = received.partition(b"\r\n\r\n")
                assert b"Content-Length" not in head
                return newest(events) == news or not self.is_reliable
            try:
                reply, received = Reply.read(question.method if question else "GET", received, bytes)
            except h11.RemoteProtocolError:
                break  # not complete
            if question is None:
                refused = reply.closes
                # Else it was refused before it was asked anything.
                answered += answered < self.due and self.asked[answered] is SUBSCRIPTION
            else:
                assert (reply.status, reply.closes) == (question.status, question.closes)
                assert reply.status != 200 or reply.body == question.body
                answered += 1
        if not self.is_reliable:
            return True
        assert answered <= self.due
        closes = refused or (answered > 0 and self.asked[answered - 1].closes)
        is_answered = answered == self.due and (refused or self.was_held or not self.asked)
        return is_answered and not received and self.has_ended >= closes


@pytest.fixture(autouse=True, scope="module")
def nothing_left_behind() -> None:
    """Close what tests before this left to the garbage collector: open files are counted here."""
    gc.collect()


class Connections(RuleBasedStateMachine):
    """Clients do something; now and then comes a turn of the loop."""

    def __init__(self) -> None:
        super().__init__()
        self.host = SimulatedClock()
        self.news = 0
        self.peers: list[Peer] = []
        self.served: list[object] = []
        listener = listen("127.0.0.1", 0)
        clock = self.host.clock.steady_s
        self.server = HttpServer(
            listener,
            self.answer,
            max_connections=MAX_CONNECTIONS,
            limits=LIMITS,
            steady_s=clock,
        )
        self.own_files = open_files()

    def answer(self, request: Request) -> Response:
        """Answer with what there is, or with all news from now on. Takes some time."""
        self.host.advance(ANSWER_S)
        if request.path == SUBSCRIPTION.path:
            return Response(200, b"", events=self.events())
        return Response(200, body_of(request.path))

    def events(self) -> Iterator[list[bytes]]:
        """Yield what is new since it was asked last."""
        number = 0
        while True:
            start, number = number, self.news
            yield [b"%d-%d" % (start, number), PADDING, b";"] if number > start else []

    def teardown(self) -> None:
        """Let everybody read to the end, and check what they got."""
        try:
            eventually(self.all_have_their_answers, "all answers that are due have come", within_s=5)
        finally:
            for peer in self.peers:
                peer.sock.close()
            self.server.stop()
            self.server.serve()

    def all_have_their_answers(self) -> bool:
        """Go on as long as anything comes; tell whether all got what was due. Raises where they got something else."""
        self.host.advance(LIMITS.push_every_s)
        self.turn()
        while [peer for peer in self.peers if peer.read(1 << 20)]:
            self.turn()
        return all(peer.has_its_answers(self.news) for peer in self.peers)

    def held(self) -> dict[object, Client]:
        """Return the connections that the server holds, by the addresses of their clients."""
        clients: dict[object, Client] = {}
        for client in self.server._connections.of(*State):
            with contextlib.suppress(OSError):  # reset, which the server has not noticed yet
                clients[client.sock.getpeername()] = client
        return clients

    @rule()
    def turn(self) -> None:
        """Let the server meet all that has happened. What was asked on a connection it holds is due from now on."""
        held = self.held()
        for peer in self.peers:
            client = held.get(peer.name)
            peer.was_held |= client is not None
            if client is not None and (not client.closes or client.state in SUBSCRIBERS):
                peer.due = len(peer.asked)
                has_read = client.state not in (State.WRITING, State.PUSHING)
                if not has_read and self.host.steady_s - client.took_s >= LIMITS.stalled_s:
                    peer.is_reliable = False
        waiting = self.waiting()
        assert self.server._run_once(0.0)
        self.host.advance(ANSWER_S)
        self.check_order(waiting)

    @rule(number=st.integers(1, 3), turns=TURNS)
    def connect(self, number: int, turns: int) -> None:
        """A few more clients."""
        for _ in range(min(number, MAX_PEERS - len(self.peers))):
            self.peers.append(Peer(self.server.address))
        self.go_on(turns)

    def go_on(self, turns: int) -> None:
        """Let the server meet what has happened up to now, or let more happen first."""
        for _ in range(turns):
            self.turn()

    def speakers(self, who: set[int]) -> list[Peer]:
        """Return clients that are about to send; to a connection that was closed, that can cost them answers."""
        held = self.held()
        peers = [peer for number, peer in enumerate(self.peers) if number in who]
        for peer in peers:
            client = held.get(peer.name)
            if peer.due and (client is None or client.closes):
                peer.is_reliable = False
        return peers

    @rule(who=SOME, questions=st.lists(st.sampled_from(QUESTIONS), min_size=1, max_size=6), turns=TURNS)
    def ask(self, who: set[int], questions: list[Question], turns: int) -> None:
        """Send a request, or a pipeline of them."""
        for peer in self.speakers(who):
            for question in questions:
                peer.ask(question)
        self.go_on(turns)

    @rule(who=SOME, turns=TURNS)
    def subscribe(self, who: set[int], turns: int) -> None:
        """Ask for all news."""
        for peer in self.speakers(who):
            peer.ask(SUBSCRIPTION)
        self.go_on(turns)

    @rule(turns=TURNS)
    def publish(self, turns: int) -> None:
        """There is something new for all who subscribed."""
        self.news += 1
        self.host.advance(LIMITS.push_every_s)
        self.go_on(turns)

    @rule(who=SOME, question=st.sampled_from(BAD_QUESTIONS), turns=TURNS)
    def ask_badly(self, who: set[int], question: Question, turns: int) -> None:
        """Send what is refused."""
        for peer in self.speakers(who):
            peer.ask(question)
        self.go_on(turns)

    @rule(who=SOME, question=st.sampled_from(QUESTIONS[:2]), part_bytes=st.integers(1, 20), turns=TURNS)
    def ask_in_part(self, who: set[int], question: Question, part_bytes: int, turns: int) -> None:
        """Send the beginning of a request, after the rest of the one before."""
        for peer in self.speakers(who):
            peer.begin(question, part_bytes)
        self.go_on(turns)

    @rule(who=SOME, limit_bytes=st.sampled_from([100, 5000, 1 << 20]))
    def read(self, who: set[int], limit_bytes: int) -> None:
        """Read a little or a lot."""
        for number in who.intersection(range(len(self.peers))):
            self.peers[number].read(limit_bytes)

    @rule(number=st.integers(0, MAX_PEERS - 1), resets=st.booleans())
    def hang_up(self, number: int, resets: bool) -> None:
        """Say that no more will be asked, or close at once."""
        if number >= len(self.peers):
            return
        peer = self.peers[number]
        if resets:
            self.peers.remove(peer)
            peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.sock.close()
            return
        with contextlib.suppress(OSError):  # the server has hung up before
            peer.sock.shutdown(socket.SHUT_WR)
        peer.has_shut_down, peer.unfinished = True, None

    @rule(seconds=st.sampled_from([1, 3, 11, 31]), turns=TURNS)
    def wait(self, seconds: float, turns: int) -> None:
        """Let time pass."""
        self.host.advance(seconds)
        self.go_on(turns)

    def waiting(self) -> dict[Client, int]:
        """Return the clients that ask and whose sockets are ready, each with the number of its last turn."""
        keys = (key for key, _ in self.server._selector.select(0) if key.data is not None)
        return {key.data: key.data.served for key in keys if key.data.state not in SUBSCRIBERS}

    def check_order(self, waiting: dict[Client, int]) -> None:
        """Of the clients that were ready before a turn, those that were served longest ago have been served in it."""
        served = [before for client, before in waiting.items() if client.served != before]
        left = [
            before for client, before in waiting.items() if client.served == before and client.state != State.CLOSED
        ]
        assert not served or not left or max(served) <= min(left)
        assert served or not waiting

    @invariant()
    def every_connection_is_in_the_state_that_it_names(self) -> None:
        """And its socket is watched for the event that the state waits for."""
        held = [(client, state) for state in State for client in self.server._connections.of(state)]
        assert all(client.state is state for client, state in held)
        assert len({client for client, _ in held}) == len(held)
        watched = {key.data: key.events for key in self.server._selector.get_map().values() if key.data is not None}
        assert watched == {client: self.server._rules[state].watched for client, state in held}

    @invariant()
    def every_open_socket_is_that_of_a_connection(self) -> None:
        """No socket is lost, and none is kept."""
        assert open_files() == self.own_files + self.server._connections.count(*State) + len(self.peers)

    @invariant()
    def there_are_no_more_than_there_may_be(self) -> None:
        """Neither served nor closing connections, nor subscribers."""
        closing = self.server._connections.count(State.CLOSING)
        assert closing <= LIMITS.closing_connections
        assert self.server._connections.count(*State) - closing <= MAX_CONNECTIONS
        assert self.server._connections.count(*SUBSCRIBERS) <= MAX_CONNECTIONS // 2


TestConnections = Connections.TestCase
TestConnections.settings = settings(max_examples=EXAMPLES, stateful_step_count=40)


def test_an_illegal_change_of_state_raises() -> None:
    """A closed connection stays closed, whatever the server's code does with it."""
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        server = HttpServer(listener, lambda _: Response(200, b""), max_connections=1)
        client = server._connections.accept(listener, 0.0, 0)
        with pytest.raises(RuntimeError):
            server._connections.enter(client, State.NEW, 0.0)
        server._connections.enter(client, State.CLOSED, 0.0)
        for state in State:
            with pytest.raises(RuntimeError):
                server._connections.enter(client, state, 0.0)
        server.stop()
        server.serve()
