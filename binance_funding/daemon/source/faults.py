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

from .lookup import LOOKUP_LIMIT_S, BadProxy

# A cause may quote text from outside. It goes into the log, the state file and systemd's status line.
_MAX_CHARACTERS = 300


class Kind(enum.Enum):
    """What failed, in the order in which a connection is set up, and then in which it is used."""

    DNS = "DNS"
    PROXY = "proxy"
    TCP = "TCP"
    TLS = "TLS"
    REFUSED = "refused"
    """An HTTP answer other than success, to a request or to a handshake."""
    TIMEOUT = "timeout"
    """The peer was reached and did not answer in time."""
    LOST = "lost"
    """The connection ended or broke."""
    CLOSED = "closed"
    """The peer ended the WebSocket connection with a close frame."""
    PROTOCOL = "protocol"
    """The answer breaks the rules of HTTP or WebSocket."""
    MALFORMED = "malformed"
    """The answer is valid HTTP, but not what Binance sends."""
    TOO_LARGE = "too large"
    CROWDED = "crowded"
    """Too many earlier attempts still hang."""
    SILENT = "silent"
    LAGGING = "lagging"
    ENDED_BY_US = "ended by us"


@dataclass(frozen=True)
class Cause:
    """Why a connection or a request failed. `str()` makes the sentence."""

    kind: Kind
    detail: str = ""
    """Text of the system, the library or the peer."""
    code: int = 0
    """The HTTP status, or the code of the close frame."""
    wait_s: float = 0.0
    """How long Binance asked not to be called."""
    is_unreachable: bool = False
    """Nothing answered at the address at all. Trying again soon burdens nobody."""
    is_timeout: bool = False

    @property
    def is_refusal(self) -> bool:
        """Whether the exchange refused the request. A fault of the server's own (5xx) without a pause is none."""
        return self.kind is Kind.REFUSED and (self.code < 500 or self.wait_s > 0)

    @property
    def label(self) -> str:
        """The cause as a label of a metric: the HTTP status or one of four words."""
        if self.kind is Kind.REFUSED:
            return str(self.code)
        if self.is_timeout:
            return "timeout"
        is_bad_answer = self.kind in (Kind.PROTOCOL, Kind.MALFORMED, Kind.TOO_LARGE)
        return "malformed" if is_bad_answer else "connection"

    def __str__(self) -> str:
        return _sentence(self)[:_MAX_CHARACTERS]


# Source: RFC 6455, 7.4.1.
_CLOSE_CODES = {1000: "normal", 1001: "going away", 1008: "policy violation", 1011: "server error"}
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
    if cause.kind is Kind.CLOSED:
        reason = cause.detail or _CLOSE_CODES.get(cause.code, "unknown")
        return f"closed by the exchange with code {cause.code} ({reason})" if cause.code else "closed without a code"
    prefix = {
        Kind.DNS: "DNS: ",
        Kind.PROXY: "proxy: ",
        Kind.TCP: "no connection: ",
        Kind.TLS: "TLS: ",
        Kind.PROTOCOL: "protocol error: ",
    }.get(cause.kind, "")
    return prefix + cause.detail


_NO_NAME, _NO_ANSWER = "the host name cannot be resolved", "no answer in time"
NO_ANSWER_IN_TIME = Cause(Kind.TIMEOUT, _NO_ANSWER, is_timeout=True)
NO_NAME_IN_TIME = Cause(
    Kind.DNS, f"no answer of the name server within {LOOKUP_LIMIT_S:g} s", is_unreachable=True, is_timeout=True
)
_ErrorTypes = tuple[type[BaseException], ...]
_PROXY: _ErrorTypes = (
    BadProxy,
    requests.exceptions.ProxyError,
    requests.exceptions.InvalidProxyURL,
    requests.exceptions.InvalidSchema,  # a SOCKS proxy; the scheme of the address itself was checked at the start
    websocket.WebSocketProxyException,
)
_DNS: _ErrorTypes = (
    socket.gaierror,
    UnicodeEncodeError,
    requests.exceptions.InvalidURL,
    urllib3.exceptions.LocationParseError,
    websocket.WebSocketAddressException,
)
_TIMEOUT: _ErrorTypes = (
    TimeoutError,
    requests.exceptions.Timeout,
    urllib3.exceptions.ReadTimeoutError,
    urllib3.exceptions.ConnectTimeoutError,
    websocket.WebSocketTimeoutException,
)
_BAD_ANSWER: _ErrorTypes = (urllib3.exceptions.InvalidChunkLength, websocket.WebSocketPayloadException)
_CUT: _ErrorTypes = (http.client.IncompleteRead, http.client.RemoteDisconnected)
_LOST: _ErrorTypes = (*_CUT, ConnectionError, websocket.WebSocketConnectionClosedException)


def from_error(error: Exception, *, via_proxy: bool) -> Cause:
    """Classify an error of either library. `via_proxy`: the first host on the way is a proxy."""
    chain = list(_chain(error))

    def has(types: _ErrorTypes) -> bool:
        return any(isinstance(one, types) for one in chain)

    is_timeout = has(_TIMEOUT) and not has((urllib3.exceptions.NewConnectionError,))
    is_unresolved = has(_DNS) or type(error) is UnicodeError
    is_unreachable = is_unresolved or _failed_to_connect(chain)
    if has(_PROXY) or (via_proxy and is_unreachable):
        detail = _NO_NAME if is_unresolved else _NO_ANSWER if is_timeout else _detail(chain)
        return Cause(Kind.PROXY, detail, is_unreachable=is_unreachable, is_timeout=is_timeout)
    if is_unresolved:
        return Cause(Kind.DNS, _NO_NAME, is_unreachable=True)
    if is_unreachable:
        detail = _NO_ANSWER if is_timeout else _detail(chain)
        return Cause(Kind.TCP, detail, is_unreachable=True, is_timeout=is_timeout)
    if is_timeout:
        return NO_ANSWER_IN_TIME
    if has((ssl.SSLError,)):
        return Cause(Kind.TLS, _detail(chain))
    if not has(_BAD_ANSWER) and (has(_LOST) or type(chain[-1]) is OSError):
        return Cause(Kind.LOST, _detail(chain))
    return Cause(Kind.PROTOCOL, _detail(chain))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and the errors inside it: the libraries wrap the error of the system several times."""
    found = [error]
    for outer in found:  # grows meanwhile
        yield outer
        inner = [*outer.args, getattr(outer, "reason", None), outer.__cause__]
        found += [one for one in inner if isinstance(one, BaseException) and one not in found]


def _failed_to_connect(chain: list[BaseException]) -> bool:
    """Whether no TCP connection came about. websocket-client marks such errors with the address that it tried."""
    is_connecting = (urllib3.exceptions.ConnectTimeoutError, requests.exceptions.ConnectTimeout)
    return any(isinstance(one, is_connecting) or hasattr(one, "remote_ip") for one in chain)


def _detail(chain: list[BaseException]) -> str:
    """Return the text of the innermost error, which is that of the system."""
    innermost = chain[-1]
    if isinstance(innermost, ssl.SSLError):
        return getattr(innermost, "verify_message", "") or innermost.reason or str(innermost)
    if isinstance(innermost, websocket.WebSocketConnectionClosedException):
        return "connection ended without close frame (1006)"
    if isinstance(innermost, _CUT) and not isinstance(innermost, _BAD_ANSWER):
        return "connection ended before the whole answer"
    if isinstance(innermost, OSError) and innermost.strerror:
        return innermost.strerror.lower()
    return " ".join(str(innermost).split()) or type(innermost).__name__
