"""`--check` where the network fails: DNS, proxy, TCP, TLS. Each is the only step that fails, and says what to do."""

import datetime
import ssl
from pathlib import Path

import pytest
import trustme

from tests.exchange import Exchange
from tests.support.host_check import check_host
from tests.support.peers import Listener, Talk, answers, silent_port, tunnels
from tests.support.programs import free_port
from tests.support.tls_front import Certify, tls_front

PATH = "/market/stream?streams=!markPrice@arr"
BEHIND_PROXY = f"ws://exchange.example{PATH}"


def test_a_name_that_is_not_resolved_fails_at_dns(exchange: Exchange, tmp_path: Path) -> None:
    """It says with which command to go on, and what REST's way leads to is still checked."""
    report = check_host(exchange, tmp_path, BINANCE_WS_URLS=f"wss://nowhere.invalid{PATH}")
    assert report.failure.startswith("FAIL DNS: nowhere.invalid: ")
    assert "`getent hosts nowhere.invalid`" in report.failure
    assert report.of("REST")[0].startswith("ok ")
    assert report.of("handshake") == report.of("mark prices") == report.of("lag") == []


def proxied(port_or_host: object) -> dict[str, object]:
    """Return the variables that name a proxy for the stream; REST, which is on this host, goes without."""
    return {"http_proxy": f"http://me:secret@{port_or_host}", "no_proxy": "127.0.0.1"}


def test_a_dead_proxy_fails_as_the_proxy(exchange: Exchange, tmp_path: Path) -> None:
    """The variable that names it is said, its password is not."""
    variables = proxied(f"127.0.0.1:{free_port()}")
    report = check_host(exchange, tmp_path, BINANCE_WS_URLS=BEHIND_PROXY, **variables)
    assert report.failure.startswith("FAIL proxy: exchange.example: connection refused; start that proxy, ")
    assert "correct http_proxy" in report.failure
    assert not any("secret" in line for line in report.lines)


def test_a_proxy_that_cannot_be_resolved_fails_as_the_proxy(exchange: Exchange, tmp_path: Path) -> None:
    """Binance's name is not at fault."""
    variables = proxied("nowhere.invalid:3128")
    report = check_host(exchange, tmp_path, BINANCE_WS_URLS=BEHIND_PROXY, **variables)
    assert report.failure.startswith("FAIL proxy: exchange.example: name or service not known; ")


def test_a_proxy_that_wants_a_password_says_so(exchange: Exchange, tmp_path: Path) -> None:
    """With the status of its answer."""
    with Listener(answers(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")) as proxy:
        variables = proxied(f"127.0.0.1:{proxy.port}")
        report = check_host(exchange, tmp_path, BINANCE_WS_URLS=BEHIND_PROXY, **variables)
    assert report.failure.startswith("FAIL proxy: exchange.example: ")
    assert "407" in report.failure


def test_a_proxy_that_is_used_is_named_by_its_variable(exchange: Exchange, tmp_path: Path) -> None:
    """All is well through it; REST on this host goes without."""
    with Listener(tunnels([])) as proxy:
        url = exchange.ws_url.replace("127.0.0.1", "exchange.example")
        report = check_host(exchange, tmp_path, BINANCE_WS_URLS=url, **proxied(f"127.0.0.1:{proxy.port}"))
    assert report.of("proxy") == [
        "ok   proxy: http_proxy is used for exchange.example",
        "ok   proxy: none is used for 127.0.0.1",
    ]
    assert report.failures == []


def test_a_port_where_nobody_listens_fails_at_tcp(exchange: Exchange, tmp_path: Path) -> None:
    """For stream and REST alike, each with its setting."""
    port = free_port()
    addresses = {"BINANCE_WS_URLS": f"ws://127.0.0.1:{port}{PATH}", "BINANCE_REST_URL": f"http://127.0.0.1:{port}"}
    report = check_host(exchange, tmp_path, **addresses)
    for line, setting in zip(report.failures, addresses, strict=True):
        assert line.startswith(f"FAIL TCP: 127.0.0.1:{port}: connection refused; ")
        assert "firewall" in line
        assert line.endswith(f"correct {setting}")
    assert report.of("REST") == report.of("clock") == []


def test_a_black_hole_fails_at_tcp(exchange: Exchange, tmp_path: Path) -> None:
    """A firewall that drops packets looks like this."""
    with silent_port() as port:
        report = check_host(exchange, tmp_path, BINANCE_WS_URLS=f"ws://127.0.0.1:{port}{PATH}")
    assert report.failure.startswith(f"FAIL TCP: 127.0.0.1:{port}: no answer in time; ")


def expired(authority: trustme.CA, context: ssl.SSLContext) -> None:
    """Give the server a certificate of the day before yesterday."""
    now = datetime.datetime.now(datetime.timezone.utc)
    day = datetime.timedelta(days=1)
    certificate = authority.issue_cert("127.0.0.1", not_before=now - 2 * day, not_after=now - day)
    certificate.configure_cert(context)


def of_another_name(authority: trustme.CA, context: ssl.SSLContext) -> None:
    """Give the server the certificate of another host."""
    authority.issue_cert("login.example").configure_cert(context)


@pytest.mark.parametrize(
    ("certify", "cause"),
    [(expired, "certificate has expired"), (of_another_name, "certificate is not valid for '127.0.0.1'")],
)
def test_a_certificate_that_is_not_valid_fails_at_tls(
    exchange: Exchange, tmp_path: Path, certify: Certify, cause: str
) -> None:
    """In the words of the check, and with what that usually means."""
    with tls_front(exchange, certify) as (url, authority), authority.cert_pem.tempfile() as trusted:
        report = check_host(exchange, tmp_path, BINANCE_WS_URLS=url, SSL_CERT_FILE=trusted)
    assert report.failure.startswith("FAIL TLS: 127.0.0.1:")
    assert cause in report.failure


def self_signed(authority: trustme.CA, context: ssl.SSLContext) -> None:
    """Give the server the certificate of the authority itself."""
    with authority.cert_pem.tempfile() as certificate, authority.private_key_pem.tempfile() as key:
        context.load_cert_chain(certificate, key)


def of_an_unknown_authority(authority: trustme.CA, context: ssl.SSLContext) -> None:
    """Give the server a certificate of an authority that is not trusted."""
    authority.issue_cert("127.0.0.1").configure_cert(context)


@pytest.mark.parametrize("certify", [self_signed, of_an_unknown_authority])
def test_a_certificate_that_nobody_vouches_for_fails_at_tls(
    exchange: Exchange, tmp_path: Path, certify: Certify
) -> None:
    """With the one setting for a proxy that looks into TLS."""
    with tls_front(exchange, certify) as (url, _):
        report = check_host(exchange, tmp_path, BINANCE_WS_URLS=url)
    assert report.failure.startswith("FAIL TLS: 127.0.0.1:")
    assert "certificate" in report.failure
    assert "SSL_CERT_FILE" in report.failure


def test_tls_that_is_trusted_is_reported(exchange: Exchange, tmp_path: Path) -> None:
    """With the private authority named, all is well."""
    with tls_front(exchange) as (url, authority), authority.cert_pem.tempfile() as trusted:
        report = check_host(exchange, tmp_path, BINANCE_WS_URLS=url, SSL_CERT_FILE=trusted)
    assert report.failures == []
    assert report.of("TLS")[0].endswith("has a certificate that is trusted")


@pytest.mark.parametrize("talk", [answers(b"HTTP/1.1 400 Bad Request\r\n\r\n"), answers(b"")], ids=["HTTP", "end"])
def test_a_port_that_speaks_no_tls_fails_at_tls(exchange: Exchange, tmp_path: Path, talk: Talk) -> None:
    """Not at the handshake, which never began."""
    with Listener(talk) as peer:
        report = check_host(exchange, tmp_path, BINANCE_WS_URLS=f"wss://127.0.0.1:{peer.port}{PATH}")
        assert report.failure.startswith(f"FAIL TLS: 127.0.0.1:{peer.port}: ")
