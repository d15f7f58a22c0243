"""Why a connection or a request failed: a typed cause, and the one place that turns it into a sentence.

The errors of requests, urllib3, websocket-client, ssl and socket are classified by their types alone.
"""

import enum
import http.client
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass

import requests
import urllib3.exceptions
import websocket

from ...log import printable
from .libraries import LOOKUP_LIMIT_S, BadProxy, Lookup

# A cause may quote text from outside. It goes into the log, the state file and systemd's status line.
_MAX_CHARACTERS = 300


class Kind(enum.Enum):
    """What failed. The order is that of the steps of a connection."""

    CROWDED = "crowded"
    """This host has no thread left for another attempt."""
    DNS = "DNS"
    PROXY = "proxy"
    TCP = "no connection"
    TLS = "TLS"
    REFUSED = "refused"
    """An HTTP answer other than success, to a request or to a handshake."""
    TIMEOUT = "timeout"
    """The peer was reached and did not answer in time."""
    LOST = "lost"
    """The connection ended, in whatever way."""
    PROTOCOL = "protocol error"
    """The answer breaks the rules of HTTP or WebSocket."""
    MALFORMED = "malformed"
    """The answer is valid HTTP, but not what Binance sends."""
    OLD = "old"
    """The rows of a snapshot are old: a cache has repeated it, for example."""
    SILENT = "silent"
    LAGGING = "lagging"


@dataclass(frozen=True)
class Cause:
    """Why a connection or a request failed. `str()` makes the sentence."""

    kind: Kind
    detail: str = ""
    """Text of the system, the library or the peer."""
    code: int = 0
    """The HTTP status of a refusal."""
    wait_s: float = 0.0
    """How long Binance asked not to be called."""

    @property
    def is_unreachable(self) -> bool:
        """Whether the exchange was not reached at all. Trying again soon does not burden it."""
        return self.kind in (Kind.DNS, Kind.PROXY, Kind.TCP)

    @property
    def is_refusal(self) -> bool:
        """Whether the exchange refused the request. A server error (5xx) is a refusal only if it asks for a pause."""
        return self.kind is Kind.REFUSED and (self.code < 500 or self.wait_s > 0)

    @property
    def label(self) -> str:
        """The cause as a label of a metric: the HTTP status or one of four words."""
        if self.kind is Kind.REFUSED:
            return str(self.code)
        return _LABELS.get(self.kind, "connection")

    def __str__(self) -> str:
        return printable(_sentence(self))[:_MAX_CHARACTERS]


_LABELS = {
    Kind.TIMEOUT: "timeout",
    Kind.PROTOCOL: "malformed",
    Kind.MALFORMED: "malformed",
    Kind.OLD: "old",
}
# The sentence begins with the kind if the detail does not tell what failed.
_NAMED_KINDS = (Kind.DNS, Kind.PROXY, Kind.TCP, Kind.TLS, Kind.PROTOCOL)
# Source: https://developers.binance.com/docs/derivatives/usds-margined-futures/general-info (November 2026).
_HTTP_STATUSES = {
    403: "the firewall of Binance refuses this IP",
    418: "Binance has banned this IP for asking too often",
    429: "Binance says too many requests",
    451: "Binance does not serve this country",
}


def _sentence(cause: Cause) -> str:
    if cause.kind is Kind.REFUSED:
        meaning = "Binance server error" if cause.code >= 500 else "unexpected answer"
        return f"{_HTTP_STATUSES.get(cause.code, meaning)} (HTTP {cause.code})"
    return f"{cause.kind.value}: {cause.detail}" if cause.kind in _NAMED_KINDS else cause.detail


_TIMED_OUT = "no answer in time"
NO_ANSWER_IN_TIME = Cause(Kind.TIMEOUT, _TIMED_OUT)
NO_NAME_IN_TIME = Cause(Kind.DNS, f"no answer of the name server within {LOOKUP_LIMIT_S:g} s")

NO_THREAD = Cause(Kind.CROWDED, "no thread can be started")

# The kind of an error is the first in this table for which the error, or an error inside it, has one of the types.
_TYPES: tuple[tuple[Kind, tuple[type[BaseException], ...]], ...] = (
    (Kind.PROXY, (BadProxy, requests.exceptions.ProxyError, requests.exceptions.InvalidProxyURL)),
    # requests raises InvalidSchema for a SOCKS proxy. The scheme of the address itself was checked at the start.
    (Kind.PROXY, (requests.exceptions.InvalidSchema, websocket.WebSocketProxyException)),
    (Kind.PROTOCOL, (UnicodeDecodeError, urllib3.exceptions.InvalidChunkLength, websocket.WebSocketPayloadException)),
    # Python raises UnicodeError for a host name that cannot be a host name.
    (Kind.DNS, (socket.gaierror, UnicodeError, urllib3.exceptions.LocationParseError)),
    (Kind.DNS, (websocket.WebSocketAddressException,)),
    (Kind.TCP, (urllib3.exceptions.ConnectTimeoutError,)),  # refused connections too
    (Kind.TIMEOUT, (TimeoutError, urllib3.exceptions.ReadTimeoutError, websocket.WebSocketTimeoutException)),
    (Kind.TLS, (ssl.SSLError,)),
    (Kind.LOST, (ConnectionError, http.client.IncompleteRead, websocket.WebSocketConnectionClosedException)),
)


def from_error(error: Exception, lookup: Lookup | None) -> Cause:
    """Classify an error of either library. The lookup tells whether the first host on the way is a proxy."""
    chain = list(_chain(error))
    kind = next((kind for kind, types in _TYPES if any(isinstance(one, types) for one in chain)), Kind.PROTOCOL)
    if hasattr(error, "remote_ip"):  # websocket-client adds this attribute to an error of connecting
        kind = Kind.TCP
    elif kind is Kind.PROTOCOL and type(error) is OSError:
        kind = Kind.LOST
    if lookup is not None and lookup.variable and kind in (Kind.DNS, Kind.TCP):
        kind = Kind.PROXY
    return NO_ANSWER_IN_TIME if kind is Kind.TIMEOUT else Cause(kind, _detail(chain[-1]))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and the errors inside it: the libraries wrap the error of the system several times."""
    found = [error]
    for outer in found:  # the loop appends to this list
        yield outer
        inner = [*outer.args, getattr(outer, "reason", None), outer.__cause__]
        found += [one for one in inner if isinstance(one, BaseException) and one not in found]


def _detail(error: BaseException) -> str:
    """Return the text of an error that contains no other error."""
    if isinstance(error, TimeoutError):
        return _TIMED_OUT
    if isinstance(error, ssl.SSLError):
        return getattr(error, "verify_message", "") or error.reason or str(error)
    if isinstance(error, websocket.WebSocketConnectionClosedException):
        return "connection ended without close frame (1006)"
    if isinstance(error, (http.client.IncompleteRead, http.client.RemoteDisconnected)):
        return "connection ended before the whole answer"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return " ".join(str(error).split()) or type(error).__name__
