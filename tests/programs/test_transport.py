"""The way to Binance, through proxies and TLS, over real sockets: stream and REST alike."""

import base64
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from binance_funding.daemon.source.rest import RestClient, RestError
from binance_funding.daemon.source.transport import NoConnection, connect

from binance_funding.clock import Clock, Deadline
from binance_funding.daemon.context import Context
from binance_funding.daemon.source.connection import Connection
from binance_funding.settings import load
from tests.exchange import Exchange, Market
from tests.support.peers import Listener, Talk, answers, silent_port, trickles, tunnels
from tests.support.programs import free_port
from tests.support.running_stream import SMALL
from tests.support.waiting import eventually

HOST = "exchange.example"
"""A name that only a proxy can resolve."""


@pytest.fixture(autouse=True)
def _no_proxy_of_the_tester(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def connection_to(url: str, messages: list[bytes]) -> Connection:
    """Return a connection that collects what comes."""

    def take(payload: bytes) -> int:
        messages.append(payload)
        return 0

    return Connection(Context(load({}, env_file="/nonexistent")), 1, url, take, lambda: None)


def stream_cause(url: str) -> str:
    """Return why a connection to this address ends."""
    connection = connection_to(url, [])
    connection.run()
    assert connection.ending is not None
    return connection.ending.cause


def rest_cause(url: str) -> str:
    """Return why a request to this address fails."""
    with pytest.raises(RestError) as caught:
        RestClient(url, 10, Clock()).get("/")
    return str(caught.value)


# Proxies


@pytest.mark.parametrize("form", ["http://127.0.0.1:{}", "127.0.0.1:{}"])
def test_stream_and_rest_go_through_the_proxy(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    """Both with CONNECT, whatever the spelling; names are resolved there, and what comes is what the exchange sends."""
    heads: list[str] = []
    with Exchange(Market(**SMALL), tick_s=0.1) as exchange, Listener(tunnels(heads)) as proxy:
        monkeypatch.setenv("ALL_PROXY", form.format(proxy.port))
        rest_url, ws_url = (url.replace("127.0.0.1", HOST) for url in (exchange.rest_url, exchange.ws_url))
        client = RestClient(rest_url, 10, Clock())
        assert client.get("/fapi/v1/premiumIndex").startswith(b"[")
        client.close()
        messages: list[bytes] = []
        connection = connection_to(ws_url, messages)
        thread = threading.Thread(target=connection.run, name="connection")
        thread.start()
        eventually(lambda: messages, "a message")
        connection.abort()
        thread.join(10)
    assert [head.split()[0] for head in heads] == ["CONNECT", "CONNECT"]
    assert [head.split()[1] for head in heads] == [url.split("/")[2] for url in (rest_url, ws_url)]


def test_the_proxy_gets_user_and_password(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the variable has them."""
    heads: list[str] = []
    with Exchange(Market(**SMALL)) as exchange, Listener(tunnels(heads)) as proxy:
        monkeypatch.setenv("http_proxy", f"http://me:p%40ss@127.0.0.1:{proxy.port}")
        client = RestClient(exchange.rest_url.replace("127.0.0.1", HOST), 10, Clock())
        client.get("/fapi/v1/premiumIndex")
        client.close()
    assert f"Proxy-Authorization: Basic {base64.b64encode(b'me:p@ss').decode()}\r\n" in heads[0]


@pytest.mark.parametrize(
    ("talk", "cause"),
    [
        (answers(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n"), " 407 Proxy Authentication Required"),
        (answers(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 3\r\n\r\nbad"), " 502 Bad Gateway"),
        (answers(b"SSH-2.0-OpenSSH_9.6\r\n"), "its answer to CONNECT is not HTTP"),
        (answers(b"X" * 100_000), "its answer to CONNECT is not HTTP"),
        (answers(b""), "closed before the answer"),
        (answers(b"HTTP/1.1 200 OK\r\nX-Cut: "), "closed before the answer"),
    ],
)
def test_a_proxy_that_refuses_is_named_as_the_proxy(monkeypatch: pytest.MonkeyPatch, talk: Talk, cause: str) -> None:
    """Nobody should look for it at Binance."""
    with Listener(talk) as proxy:
        monkeypatch.setenv("ALL_PROXY", f"127.0.0.1:{proxy.port}")
        for words in (stream_cause(f"wss://{HOST}/"), rest_cause(f"https://{HOST}").removeprefix("no connection: ")):
            assert words.startswith("proxy: ")
            assert cause in words


def test_a_dead_proxy_is_named_as_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the causes of stream and REST alike."""
    monkeypatch.setenv("ALL_PROXY", f"127.0.0.1:{free_port()}")
    assert stream_cause(f"wss://{HOST}/") == "proxy: connection refused"
    assert rest_cause(f"https://{HOST}") == "no connection: proxy: connection refused"


def test_a_proxy_whose_name_cannot_be_resolved_is_named_as_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not as a failure of Binance's name."""
    monkeypatch.setenv("ALL_PROXY", "p..example:3128")
    assert stream_cause(f"wss://{HOST}/") == "proxy: DNS: the host name cannot be resolved"


@pytest.mark.parametrize("beginning", [b"", b"HTTP/1.1 200 OK\r\nX-Long: "], ids=["status line", "headers"])
def test_a_proxy_whose_answer_trickles_ends_with_the_deadline(
    monkeypatch: pytest.MonkeyPatch, beginning: bytes
) -> None:
    """And leaves no thread behind: each byte comes in time, the whole never."""
    with Listener(trickles(beginning)) as proxy:
        monkeypatch.setenv("ALL_PROXY", f"127.0.0.1:{proxy.port}")
        with pytest.raises(NoConnection, match="proxy: no answer in time") as caught:
            connect(f"wss://{HOST}/", Deadline(0.3))
    assert caught.value.is_timeout
    assert not caught.value.is_unreachable


# TCP


def test_an_address_that_is_silent_leaves_time_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name may have several, and not all need to answer."""
    with silent_port() as silent, Listener(answers(b"")) as peer:
        stream, tcp = socket.SOCK_STREAM, socket.IPPROTO_TCP
        found = [(socket.AF_INET, stream, tcp, "", ("127.0.0.1", port)) for port in (silent, peer.port)]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_arguments, **_options: found)
        connect("ws://exchange.example/", Deadline(1.0)).close()
        eventually(lambda: peer.accepted == 1, "the connection")


# TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """A private certificate authority."""
    return trustme.CA()


@pytest.fixture
def authority_file(authority: trustme.CA, tmp_path: Path) -> str:
    """Return the path of its certificate."""
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


@pytest.fixture
def tls_port(authority: trustme.CA) -> Iterator[int]:
    """A port that speaks TLS with a certificate of that authority, and hangs up after one answer."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)

    def talk(sock: socket.socket) -> None:
        with context.wrap_socket(sock, server_side=True) as tls:
            tls.recv(4096)
            tls.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]")

    with Listener(talk) as listener:
        yield listener.port


def test_a_private_authority_needs_one_setting(
    monkeypatch: pytest.MonkeyPatch, authority_file: str, tls_port: int
) -> None:
    """SSL_CERT_FILE serves stream and REST."""
    monkeypatch.setenv("SSL_CERT_FILE", authority_file)
    client = RestClient(f"https://localhost:{tls_port}", 10, Clock())
    assert client.get("/") == b"[]"
    client.close()
    assert "HTTP 200" in stream_cause(f"wss://localhost:{tls_port}/")


def test_a_certificate_of_somebody_else_is_refused(tls_port: int) -> None:
    """By both, and in the words of the check."""
    assert stream_cause(f"wss://localhost:{tls_port}/").startswith("TLS: unable to get local issuer certificate")
    assert rest_cause(f"https://localhost:{tls_port}").startswith("no connection: TLS: unable to get local issuer")


def test_a_certificate_for_another_name_is_refused(
    monkeypatch: pytest.MonkeyPatch, authority_file: str, tls_port: int
) -> None:
    """Trusted, but not for this host."""
    monkeypatch.setenv("SSL_CERT_FILE", authority_file)
    assert "certificate is not valid for '127.0.0.1'" in stream_cause(f"wss://127.0.0.1:{tls_port}/")


def test_a_tls_handshake_that_trickles_ends_with_the_deadline() -> None:
    """Record by record, none of them the last."""
    with Listener(trickles(b"\x16\x03\x03\x40\x00", b"\x00")) as peer, pytest.raises(NoConnection) as caught:
        connect(f"wss://127.0.0.1:{peer.port}/", Deadline(0.4))
    assert caught.value.is_timeout
