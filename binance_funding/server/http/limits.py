"""The limits of the HTTP server."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Every limit and timeout; those without "all" are for one connection."""

    idle_s: float = 30.0
    """Without a request, since it was accepted or since its last answer."""
    request_s: float = 10.0
    """From the first byte of a request to its last."""
    write_s: float = 30.0
    """For a client to take the answers to what it asked at once, for a subscriber to take or acknowledge anything.

    From a host that has vanished nothing comes, and a few records at a time never fill what the kernel keeps.
    """
    push_every_s: float = 0.05
    """Between two looks whether there is something for the subscribers."""
    push_buffer_bytes: int = 64 << 10
    """What the kernel may keep of events for a subscriber that does not read; it doubles this."""
    closing_s: float = 2.0
    """For a client to close its side after its last answer."""
    closing_connections: int = 128
    """All that are closing; beyond, the first of them is closed for good."""
    drain_s: float = 0.5
    """For all last answers after stop(). Where the listening socket outlives the server, who connects waits as long."""
    accept_pause_s: float = 0.5
    """Before the next is accepted, where all files are open and in use."""
    cache_bytes: int = 8 << 20
    """All answers in the cache, with the requests they belong to."""
    unsent_bytes: int = 256 << 10
    """Answers queued before the next request is looked at."""
    per_turn: int = 64
    """Requests answered before the others have their turn; all connections accepted in one turn."""
    pushes_per_turn: int = 16
    """All subscribers that are sent something in one turn: requests wait that long."""
