"""The limits of the HTTP server: each is a time or a number of bytes, because a count limits neither."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Every limit and timeout. A limit applies to one connection unless it says otherwise."""

    turn_s: float = 0.006
    """Time for serving all ready clients in one turn of the loop. The request being answered is finished."""
    share_s: float = 0.002
    """Time for one client in one turn; less if more than three are ready, so that the round is soon over.

    It is also the time for all subscribers, and for all new connections, in one turn.
    """
    idle_s: float = 30.0
    """Time without a request, from the connection's beginning or from its last answer."""
    request_s: float = 10.0
    """Time from the first byte of a request to its last."""
    write_s: float = 30.0
    """Time for a client to take all answers it asked for at once, and for a subscriber to take or acknowledge anything.

    The kernel buffers small events even for a host that has vanished; only missing acknowledgements reveal it.
    """
    stalled_s: float = 2.0
    """A client that is to take bytes, and has taken none for this time, is closed when a newcomer needs its place."""
    push_every_s: float = 0.05
    """Time between two looks for new events, for all subscribers."""
    send_buffer_bytes: int = 128 << 10
    """Bytes that the kernel may buffer for a client that does not read. The kernel doubles this number."""
    push_buffer_bytes: int = 64 << 10
    """The same for a subscriber."""
    closing_s: float = 2.0
    """Time for a client to close its side after its last answer."""
    closing_connections: int = 128
    """Number of connections that may be closing at once. Beyond it, the server closes the oldest of them for good."""
    drain_s: float = 0.5
    """Time for all last answers after stop(). With a stored listening socket, new clients wait this long."""
    accept_pause_s: float = 0.5
    """Time until the server accepts again after the process ran out of files."""
    cache_bytes: int = 8 << 20
    """Memory of the cache: all answers, the requests they belong to, and their bookkeeping."""
    unsent_bytes: int = 128 << 10
    """Answers queued for a client before its next request is looked at."""
