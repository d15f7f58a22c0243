"""Which proxy variables and certificates each library reads: the table in docs/settings.md, with real proxies."""

import base64
import os
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from binance_funding.clock import Clock
from binance_funding.daemon.source.connection import Connection
from binance_funding.daemon.source.faults import Cause, Kind
from binance_funding.daemon.source.libraries import check_certificates
from binance_funding.daemon.source.rest_client import RestClient, RestError
from binance_funding.settings import SettingsError
from tests.exchange import Exchange, Market
from tests.support.parts import connection_to
from tests.support.peers import Listener, Talk, answers, trickles, tunnels
from tests.support.programs import free_port
from tests.support.running_stream import SMALL
from tests.support.tls_front import TlsFront
from tests.support.waiting import PATIENCE_S, eventually

HOST = "exchange.invalid"
"""A name that only a proxy can resolve."""
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "WEBSOCKET_CLIENT_CA_BUNDLE")


@pytest.fixture(autouse=True)
def _variables_of_the_tester(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.lower().endswith("_proxy") or name in CERTIFICATES:
            monkeypatch.delenv(name)


def collecting(url: str, messages: list[bytes]) -> Connection:
    """Return a connection that collects the messages."""

    def take(payload: bytes) -> int:
        messages.append(payload)
        return 0

    return connection_to(url, take, silence_seconds=2)


def stream_cause(host: str = HOST, port: int = 443) -> Cause:
    """Return why a connection to this host ends."""
    connection = collecting(f"wss://{host}:{port}/market", [])
    connection.run()
    assert connection.ending is not None
    return connection.ending


def rest_cause(host: str = HOST, port: int = 443, scheme: str = "https") -> Cause:
    """Return why a request to this host fails."""
    with pytest.raises(RestError) as caught:
        RestClient(f"{scheme}://{host}:{port}", 2, Clock()).get("/")
    return caught.value.cause


PROXY = "http://{}"
STREAM, REST = "stream", "REST"


@pytest.mark.parametrize(
    ("variables", "host", "users"),
    [
        pytest.param({"https_proxy": PROXY}, HOST, {STREAM, REST}, id="lower case"),
        pytest.param({"HTTPS_PROXY": PROXY}, HOST, {STREAM, REST}, id="upper case"),
        pytest.param({"https_proxy": "", "HTTPS_PROXY": PROXY}, HOST, set(), id="an empty lower case one wins"),
        pytest.param({"http_proxy": PROXY}, HOST, set(), id="that of the other scheme"),
        pytest.param({"ALL_PROXY": PROXY}, HOST, {REST}, id="all_proxy"),
        pytest.param({"https_proxy": "{}"}, HOST, {REST}, id="without http://"),
        pytest.param({"https_proxy": PROXY}, "127.0.0.1", {STREAM, REST}, id="this host by its address"),
        pytest.param({"https_proxy": PROXY}, "localhost", {STREAM, REST}, id="this host by its name"),
        pytest.param({"https_proxy": PROXY, "no_proxy": "127.0.0.1"}, "127.0.0.1", set(), id="no_proxy, address"),
        pytest.param({"https_proxy": PROXY, "no_proxy": "127.0.0.0/8"}, "127.0.0.1", set(), id="no_proxy, network"),
        pytest.param({"https_proxy": PROXY, "no_proxy": HOST}, HOST, set(), id="no_proxy, name"),
        pytest.param({"https_proxy": PROXY, "NO_PROXY": ".invalid"}, HOST, set(), id="NO_PROXY, domain with dot"),
        pytest.param({"https_proxy": PROXY, "NO_PROXY": "a.b, invalid"}, HOST, set(), id="no_proxy, list"),
        pytest.param({"https_proxy": PROXY, "no_proxy": "*"}, HOST, set(), id="no_proxy, all"),
        pytest.param({"https_proxy": PROXY, "no_proxy": f"{HOST}:443"}, HOST, {STREAM}, id="no_proxy, with port"),
        pytest.param({"https_proxy": PROXY, "no_proxy": "change.invalid"}, HOST, {STREAM, REST}, id="another name"),
    ],
)
def test_each_library_uses_the_proxy_of_its_variables(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], host: str, users: set[str]
) -> None:
    """The table says which."""
    for name, cause_of in ((STREAM, stream_cause), (REST, rest_cause)):
        with Listener(answers(b"HTTP/1.1 502 Bad Gateway\r\n\r\n")) as proxy:
            for variable, value in variables.items():
                monkeypatch.setenv(variable, value.format(f"127.0.0.1:{proxy.port}"))
            cause = cause_of(host)
            assert (proxy.accepted > 0) == (name in users), name
        assert (cause.kind is Kind.PROXY) == (name in users), name


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
def ports(authority: trustme.CA) -> Iterator[tuple[int, int]]:
    """An exchange behind TLS with a certificate of that authority: its ports for the stream and for REST."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(HOST, "localhost").configure_cert(context)
    with (
        Exchange(Market(**SMALL), tick_s=0.1) as exchange,
        TlsFront(context, exchange.ws_port) as stream,
        TlsFront(context, exchange.rest_port) as rest,
    ):
        yield stream.port, rest.port


def receives(host: str, ports: tuple[int, int]) -> None:
    """See that both libraries get data from the exchange behind TLS."""
    client = RestClient(f"https://{host}:{ports[1]}", 10, Clock())
    assert client.get("/fapi/v1/premiumIndex").startswith(b"[")
    client.close()
    messages: list[bytes] = []
    connection = collecting(f"wss://{host}:{ports[0]}/market/stream?streams=!markPrice@arr", messages)
    thread = threading.Thread(target=connection.run, name="connection")
    thread.start()
    eventually(lambda: messages, "a message")
    connection.abort()
    thread.join(PATIENCE_S)


def test_stream_and_rest_go_through_the_proxy(
    monkeypatch: pytest.MonkeyPatch, authority_file: str, ports: tuple[int, int]
) -> None:
    """With CONNECT, user and password; the proxy resolves the name. TLS is that of the exchange."""
    heads: list[str] = []
    with Listener(tunnels(heads)) as proxy:
        monkeypatch.setenv("https_proxy", f"http://me:p%40ss@127.0.0.1:{proxy.port}")
        monkeypatch.setenv("SSL_CERT_FILE", authority_file)
        receives(HOST, ports)
    assert [head.split()[:2] for head in heads] == [["CONNECT", f"{HOST}:{port}"] for port in reversed(ports)]
    authorization = f"Proxy-Authorization: Basic {base64.b64encode(b'me:p@ss').decode()}\r\n"
    assert all(authorization in head for head in heads)


@pytest.mark.parametrize(
    "talk",
    [
        pytest.param(answers(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n"), id="407"),
        pytest.param(answers(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 3\r\n\r\nbad"), id="502"),
    ],
)
def test_a_proxy_that_refuses_is_named_as_the_proxy(monkeypatch: pytest.MonkeyPatch, talk: Talk) -> None:
    """Nobody should look for the fault at Binance."""
    with Listener(talk) as proxy:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.port}")
        assert stream_cause().kind is Kind.PROXY
        assert rest_cause().kind is Kind.PROXY


@pytest.mark.parametrize("address", ["http://127.0.0.1:{}", "http://proxy.invalid:{}"], ids=["dead", "no such name"])
def test_a_proxy_that_is_not_there_is_named_as_the_proxy(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """And is unreachable: trying again soon burdens nobody."""
    monkeypatch.setenv("https_proxy", address.format(free_port()))
    for cause in (stream_cause(), rest_cause()):
        assert (cause.kind, cause.is_unreachable) == (Kind.PROXY, True)


@pytest.mark.parametrize("value", ["socks5://me:secret@127.0.0.1:{}", "http://127.0.0.1:x", "http://["])
def test_a_proxy_that_neither_library_can_use_is_named_without_its_password(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    """SOCKS needs packages that the service does not install."""
    monkeypatch.setenv("https_proxy", value.format(free_port()))
    for cause in (stream_cause(), rest_cause()):
        assert cause.kind is Kind.PROXY
        assert "secret" not in str(cause)


def test_a_proxy_whose_answer_trickles_ends_the_request_with_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte comes in time, the whole never."""
    with Listener(trickles(b"HTTP/1.1 200 OK\r\nX-Long: ")) as proxy:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.port}")
        assert rest_cause().kind is Kind.TIMEOUT


# Certificates


@pytest.mark.parametrize(
    ("variable", "users"),
    [
        ("SSL_CERT_FILE", {STREAM, REST}),
        ("REQUESTS_CA_BUNDLE", {REST}),
        ("CURL_CA_BUNDLE", {REST}),
        ("WEBSOCKET_CLIENT_CA_BUNDLE", {STREAM}),
    ],
)
def test_each_library_trusts_the_certificates_of_its_variables(
    monkeypatch: pytest.MonkeyPatch, authority_file: str, ports: tuple[int, int], variable: str, users: set[str]
) -> None:
    """Certificates that are not trusted are named by what is wrong with them."""
    monkeypatch.setenv(variable, authority_file)
    stream, rest = stream_cause("localhost", ports[0]), None
    # The path of this request is unknown to the exchange: behind trusted TLS it is a refusal.
    rest = rest_cause("localhost", ports[1])
    for name, cause in ((STREAM, stream), (REST, rest)):
        assert cause.kind is (Kind.REFUSED if name in users else Kind.TLS), name
        assert name in users or cause.detail == "unable to get local issuer certificate"


def test_the_systems_certificates_stay_trusted_beside_ssl_cert_file(
    monkeypatch: pytest.MonkeyPatch, authority: trustme.CA, ports: tuple[int, int], tmp_path: Path
) -> None:
    """The system's folder holds the authority here, the variable names another one."""
    folder = tmp_path / "certs"
    folder.mkdir()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    context = ssl.create_default_context()
    context.load_verify_locations(str(folder / "ca.pem"))
    os.system(f"openssl rehash {folder}")
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "other.pem"))
    monkeypatch.setenv("SSL_CERT_DIR", str(folder))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "other.pem"))
    receives("localhost", ports)


def test_a_certificate_for_another_name_is_refused(
    monkeypatch: pytest.MonkeyPatch, authority_file: str, ports: tuple[int, int]
) -> None:
    """Trusted, but not for this host."""
    monkeypatch.setenv("SSL_CERT_FILE", authority_file)
    for cause in (stream_cause("127.0.0.1", ports[0]), rest_cause("127.0.0.1", ports[1])):
        assert cause.kind is Kind.TLS
        assert "certificate is not valid for '127.0.0.1'" in cause.detail


def test_a_tls_handshake_that_trickles_ends_with_the_deadline() -> None:
    """Record by record, none of them the last."""
    with Listener(trickles(b"\x16\x03\x03\x40\x00", b"\x00")) as peer:
        assert stream_cause("127.0.0.1", peer.port).kind is Kind.TIMEOUT


@pytest.mark.parametrize("path", ["/nonexistent/ca.pem", "/etc/hostname", "/"])
def test_certificates_that_cannot_be_read_stop_the_start(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """Else every connection would fail, in stranger words."""
    monkeypatch.setenv("SSL_CERT_FILE", path)
    with pytest.raises(SettingsError) as caught:
        check_certificates()
    assert str(caught.value).startswith(f"SSL_CERT_FILE='{path}' holds no certificates that can be read")
