"""Which proxy is used, as the environment says, and what is refused at the start."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from unittest import mock

import pytest
from binance_funding.daemon.source.transport import Proxy, check, proxy_for

from binance_funding.settings import SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping

STREAM, REST = "wss://stream.example/market", "https://rest.example"


@pytest.fixture(autouse=True)
def _no_proxy_of_the_tester(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy") or name == "SSL_CERT_FILE"]:
        monkeypatch.delenv(name)


def proxy_of(url: str, environment: Mapping[str, str]) -> Proxy | None:
    """Return the proxy for an address where the environment says this, and nothing else of proxies."""
    with mock.patch.dict(os.environ, environment):
        return proxy_for(url)


def named(host: str, port: int, variable: str) -> Proxy:
    """Return a proxy that asks for nobody's name, and the variable that names it."""
    return Proxy(host, port, "", variable)


@pytest.mark.parametrize("url", [STREAM, REST])
@pytest.mark.parametrize("name", ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"])
@pytest.mark.parametrize(
    "value", ["http://p.example:3128", "p.example:3128", "http://p.example:3128/", " p.example:3128 "]
)
def test_stream_and_rest_use_the_same_proxy(url: str, name: str, value: str) -> None:
    """Whatever the variable, its case, and with scheme or without."""
    assert proxy_of(url, {name: value}) == named("p.example", 3128, name)


@pytest.mark.parametrize("url", ["ws://stream.example/", "http://rest.example"])
def test_addresses_without_tls_have_a_variable_of_their_own(url: str) -> None:
    """As everywhere."""
    assert proxy_of(url, {"http_proxy": "p.example:1"}) == named("p.example", 1, "http_proxy")
    assert proxy_of(url, {"https_proxy": "p.example:1"}) is None


def test_the_variable_of_the_scheme_goes_before_that_of_all() -> None:
    """And lower case before upper case, also where it says that there is none."""
    environment = {"ALL_PROXY": "all.example:1", "HTTPS_PROXY": "upper.example:1", "https_proxy": "lower.example:1"}
    assert proxy_of(REST, environment) == named("lower.example", 1, "https_proxy")
    assert proxy_of(REST, {**environment, "https_proxy": ""}) == named("all.example", 1, "ALL_PROXY")


def test_without_a_variable_there_is_no_proxy() -> None:
    """Nor with an empty one."""
    assert proxy_of(REST, {}) is None
    assert proxy_of(REST, {"https_proxy": "", "ALL_PROXY": ""}) is None


@pytest.mark.parametrize("name", ["no_proxy", "NO_PROXY"])
@pytest.mark.parametrize("value", ["rest.example", ".example", "example", "a.b, REST.example", "*"])
def test_hosts_can_be_excepted(name: str, value: str) -> None:
    """By name, by domain, or all."""
    assert proxy_of(REST, {"https_proxy": "p.example:1", name: value}) is None


@pytest.mark.parametrize("value", ["est.example", "x.rest.example", "rest.example.org", ",", ""])
def test_other_hosts_are_not_excepted(value: str) -> None:
    """A part of a name is another name."""
    assert proxy_of(REST, {"https_proxy": "p.example:1", "no_proxy": value}) is not None


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]"])
def test_this_host_is_never_asked_for_through_a_proxy(host: str) -> None:
    """It would answer for itself."""
    assert proxy_of(f"http://{host}:8080", {"http_proxy": "p.example:1", "ALL_PROXY": "socks5://p.example"}) is None


def test_user_and_password_are_sent_as_they_are_meant() -> None:
    """Percent-encoded in the variable, base64 on the wire: RFC 7617."""
    proxy = proxy_of(REST, {"https_proxy": "http://me:p%40ss@p.example:3128"})
    assert proxy == Proxy("p.example", 3128, "Proxy-Authorization: Basic bWU6cEBzcw==\r\n", "https_proxy")


def test_a_proxy_without_port_listens_at_80() -> None:
    """That of its scheme."""
    assert proxy_of(REST, {"https_proxy": "http://p.example"}) == named("p.example", 80, "https_proxy")


@pytest.mark.parametrize(
    "value",
    ["socks5://p.example:1080", "socks5h://u:secret@p.example:1", "https://p.example:1", "http://", "http://p:x", "["],
)
@pytest.mark.parametrize("url", [STREAM, REST])
def test_any_other_proxy_is_refused_in_one_line(url: str, value: str) -> None:
    """It names the variable and what is allowed, and gives no password away."""
    with mock.patch.dict(os.environ, {"ALL_PROXY": value}), pytest.raises(SettingsError) as caught:
        check([url])
    assert str(caught.value).startswith("ALL_PROXY is not allowed: it must be an HTTP proxy")
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_proxy_that_is_not_used_is_not_refused() -> None:
    """Somebody else's setting must not stop the start."""
    with mock.patch.dict(os.environ, {"ALL_PROXY": "socks5://p.example:1", "https_proxy": "p.example:1"}):
        check([STREAM, REST])
    with mock.patch.dict(os.environ, {"ALL_PROXY": "socks5://p.example:1", "no_proxy": "example"}):
        check([STREAM, REST])


@pytest.mark.parametrize("path", ["/nonexistent/ca.pem", "/etc/hostname", "/"])
def test_certificates_that_cannot_be_read_are_refused(path: str) -> None:
    """Else every connection would fail, in stranger words."""
    with mock.patch.dict(os.environ, {"SSL_CERT_FILE": path}), pytest.raises(SettingsError) as caught:
        check([REST])
    assert str(caught.value).startswith(f"SSL_CERT_FILE='{path}' holds no certificates that can be read")
