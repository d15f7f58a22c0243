"""What the nginx in front answers, as shipped, and with what can be switched on in its configuration."""

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import requests
import trustme

from tests.support.hosts import PATHS, Hosts
from tests.support.nginx import running_nginx
from tests.support.peers import Listener, answers, silent_port
from tests.support.programs import free_port
from tests.support.waiting import PATIENCE_S, eventually


def test_a_known_list_is_not_sent_again(hosts: Hosts) -> None:
    """If-None-Match with the tag of a copy gets 304, whatever other encodings and tags the client knows."""

    def revalidates() -> bool:
        tag = hosts.ask("/funding", Accept_Encoding="gzip").headers["ETag"]
        again = hosts.ask("/funding", Accept_Encoding="br, gzip", If_None_Match=f'"other", W/{tag}')
        return (again.status_code, again.content, again.headers.get("ETag")) == (304, b"", tag)

    eventually(revalidates, "304 before the next change of the list")


@pytest.mark.parametrize(
    ("accepts", "encoding"),
    [
        ("gzip, deflate, br, zstd", "gzip"),
        ("br;q=1.0, gzip;q=0.8", "gzip"),
        ("gzip;q=0, identity", None),
        ("gzip; q=0.000", None),
        ("identity", None),
        ("br", None),
    ],
)
def test_clients_get_the_list_in_an_encoding_that_they_accept(hosts: Hosts, accepts: str, encoding: str | None) -> None:
    """A copy made for others is not sent to those who could not read it."""
    answer = hosts.ask("/funding", Accept_Encoding=accepts)
    assert answer.headers.get("Content-Encoding") == encoding
    assert answer.headers["Vary"] == "Accept-Encoding"
    assert "BTCUSDT" in answer.json()["data"]


def test_a_browser_gets_the_page_and_a_program_gets_json(hosts: Hosts) -> None:
    """The two answers of / are kept apart."""
    kinds = [hosts.ask("/", Accept=accept).headers["Content-Type"] for accept in ("text/html,*/*", "*/*") * 2]
    assert kinds == ["text/html; charset=utf-8", "application/json; charset=utf-8"] * 2


def test_each_path_and_query_has_an_answer_of_its_own(hosts: Hosts) -> None:
    """A question mark that belongs to the path does not begin a query."""
    paths = ("batch?symbols=BTCUSDT", "batch?symbols=ETHUSDT", "batch%3Fsymbols=BTCUSDT", "BTCUSDT%3F", "BTCUSDT?")
    eventually(lambda: time.time() % 1 < 0.5, "the first half of a second")
    given = [hosts.ask(f"/funding/{path}") for path in paths]
    assert [answer.status_code for answer in given] == [200, 200, 404, 404, 200]
    assert [answer.json()["data"][0]["symbol"] for answer in given[:2]] == ["BTCUSDT", "ETHUSDT"]


def test_an_answer_keeps_the_date_at_which_the_host_made_it(tmp_path: Path) -> None:
    """By it the age of a copy is known, to clients and to caches behind."""
    made = "Mon, 01 Jan 2001 00:00:00 GMT"
    answer = f"HTTP/1.1 200 OK\r\nDate: {made}\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}"
    with Listener(answers(answer.encode())) as host, running_nginx(tmp_path, host.port, free_port()) as nginx:
        dates = requests.get(f"{nginx.url}/funding", timeout=PATIENCE_S).raw.headers.getlist("Date")
    assert dates == [made]


def test_metrics_are_not_passed_on(hosts: Hosts) -> None:
    """They are those of one host."""
    answer = hosts.ask("/metrics")
    assert (answer.status_code, list(answer.json())) == (404, ["error"])


def test_a_host_that_swallows_packets_gives_way_to_the_next(hosts: Hosts, tmp_path: Path) -> None:
    """Connecting has a limit of its own."""
    with silent_port() as port, running_nginx(tmp_path, port, hosts.second.port) as nginx:
        answer = requests.get(f"{nginx.url}/funding/BTCUSDT", timeout=PATIENCE_S)
        assert (answer.status_code, nginx.asked()[0].ports) == (200, [port, hosts.second.port])


def test_other_methods_are_answered_as_by_a_host(hosts: Hosts) -> None:
    """What a browser asks before a request to another origin, too."""
    for method in ("HEAD", "OPTIONS", "POST"):
        there, here = (
            requests.request(method, f"http://127.0.0.1:{port}/funding", timeout=PATIENCE_S)
            for port in (hosts.first.port, hosts.nginx.port)
        )
        assert (here.status_code, here.content) == (there.status_code, there.content)
        names = ("Allow", "Access-Control-Allow-Origin", "Access-Control-Allow-Methods", "Access-Control-Max-Age")
        assert {name: here.headers.get(name) for name in names} == {name: there.headers.get(name) for name in names}


def test_without_any_host_nginx_answers_in_json(tmp_path: Path) -> None:
    """503 with Retry-After, within the moment it takes to be refused."""
    with running_nginx(tmp_path, free_port(), free_port()) as nginx:
        for path in (*PATHS, "/", "/funding/stream"):
            answer = requests.get(f"{nginx.url}{path}", timeout=PATIENCE_S)
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
            assert answer.headers["Cache-Control"] == "no-store"
            assert answer.json() == {"error": "no host answers"}


def switched_on(*directives: str) -> Callable[[str], str]:
    """Return what takes the comment sign off every line with one of these directives."""

    def edit(text: str) -> str:
        for directive in directives:
            text, count = re.subn(rf"(?m)^( *)# (?={directive} .*;$)", r"\1", text)
            assert count, directive
        return text

    return edit


def test_whoever_is_not_on_the_allow_list_is_refused(tmp_path: Path) -> None:
    """With 403, in JSON."""
    edit = switched_on("allow", "deny")
    with running_nginx(tmp_path, free_port(), free_port(), edit) as nginx:
        answer = requests.get(f"{nginx.url}/funding", timeout=PATIENCE_S)
    assert (answer.status_code, answer.json()) == (403, {"error": "refused by the proxy"})


def test_whoever_asks_too_often_is_refused(hosts: Hosts, tmp_path: Path) -> None:
    """With 429, in JSON, after a burst that is served."""
    edit = switched_on("limit_req_zone", "limit_req", "limit_req_status")
    with (
        running_nginx(tmp_path, hosts.first.port, hosts.second.port, edit) as nginx,
        requests.Session() as session,
    ):
        given = [session.get(f"{nginx.url}/funding/BTCUSDT", timeout=PATIENCE_S) for _ in range(100)]
        assert {answer.status_code for answer in given} == {200}
        refused = eventually(
            lambda: [
                a for _ in range(50) if (a := session.get(f"{nginx.url}/", timeout=PATIENCE_S)).status_code != 200
            ],
            "a refusal",
        )
    assert {answer.status_code for answer in refused} == {429}
    assert refused[0].json() == {"error": "refused by the proxy"}


def test_tls_can_be_switched_on(hosts: Hosts, tmp_path: Path) -> None:
    """With the lines for it in the place of those for plain HTTP."""
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    files = {"fullchain.pem": certificate.cert_chain_pems, "privkey.pem": [certificate.private_key_pem]}
    for name, pems in files.items():
        (tmp_path / name).write_bytes(b"".join(pem.bytes() for pem in pems))
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    port = free_port()

    def edit(text: str) -> str:
        text = switched_on("listen", "ssl_certificate", "ssl_certificate_key", "ssl_protocols")(text)
        text = re.sub(r"listen 127\.0\.0\.[12]:\d+;", "", text, count=2)
        for shipped, put_in in {"listen 443": f"listen 127.0.0.1:{port}", "[::]:443": f"127.0.0.2:{port}"}.items():
            assert shipped in text
            text = text.replace(shipped, put_in)
        return text.replace("/etc/letsencrypt/live/funding.example.com", str(tmp_path))

    with running_nginx(tmp_path, hosts.first.port, hosts.second.port, edit):
        answer = requests.get(
            f"https://localhost:{port}/funding/BTCUSDT", verify=str(tmp_path / "authority.pem"), timeout=PATIENCE_S
        )
    assert answer.json()["symbol"] == "BTCUSDT"
