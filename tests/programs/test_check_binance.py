"""`--check` where Binance is reached and something is wrong there, or with this host's clock."""

import json
import time
from pathlib import Path

import pytest

from tests.exchange import FUTURE, PREMIUM_INDEX, SERVER_TIME, Exchange, ticker_row
from tests.support.bad_days import small_exchange
from tests.support.host_check import HostCheck, check_host
from tests.support.programs import STATE_FILE

MEANING = {
    403: "the firewall of Binance refuses this IP (HTTP 403)",
    418: "Binance has banned this IP for asking too often (HTTP 418), and asks for a pause of ",
    429: "Binance says too many requests (HTTP 429), and asks for a pause of ",
    451: "Binance does not serve this country (HTTP 451)",
    503: "Binance server error (HTTP 503)",
    404: "unexpected answer (HTTP 404)",
}


@pytest.mark.parametrize("status", MEANING)
def test_a_refused_handshake_says_what_the_status_means(exchange: Exchange, tmp_path: Path, status: int) -> None:
    """And what to do; REST is another way, and well."""
    exchange.refuse_handshakes(status)
    report = check_host(exchange, tmp_path)
    assert report.failure.startswith(f"FAIL handshake: {exchange.ws_url}: {MEANING[status]}")
    assert report.failure.endswith("or correct BINANCE_WS_URLS")
    assert report.of("TCP")[0].startswith("ok ")
    assert report.of("mark prices") == report.of("lag") == []
    assert [line[:4] for line in report.of("REST") + report.of("clock")] == ["ok  ", "ok  "]


@pytest.mark.parametrize("status", MEANING)
def test_a_refused_request_says_what_the_status_means(exchange: Exchange, tmp_path: Path, status: int) -> None:
    """And what to do; the stream is another way, and well."""
    exchange.rest_fault(status, body="" if status in (404, 503) else None)
    report = check_host(exchange, tmp_path)
    assert report.failure.startswith(f"FAIL REST: {exchange.rest_url}: {MEANING[status]}")
    assert report.failure.endswith("or correct BINANCE_REST_URL")
    assert report.of("mark prices")[0].startswith("ok ")
    assert report.of("lag") == report.of("clock") == []
    assert len(exchange.rest_requests) == 1


def test_a_handshake_without_answer_fails(exchange: Exchange, tmp_path: Path) -> None:
    """The connection opened, but nobody answered."""
    exchange.hang_handshakes()
    report = check_host(exchange, tmp_path)
    assert report.failure.startswith(f"FAIL handshake: {exchange.ws_url}: no answer in time; ")


def test_the_retired_address_is_named_as_such(exchange: Exchange, tmp_path: Path) -> None:
    """It opens and stays silent: since when, and which address to use."""
    report = check_host(exchange, tmp_path, BINANCE_WS_URLS=exchange.retired_url)
    assert report.of("handshake")[0].startswith("ok ")
    assert report.failure.startswith(f"FAIL mark prices: {exchange.retired_url}: nothing came for 1 s; ")
    assert f"this address was retired on 2026-04-23: use {exchange.ws_url}" in report.failure


def test_beside_an_address_that_works_the_retired_one_is_no_fault(exchange: Exchange, tmp_path: Path) -> None:
    """Both are the default, and a healthy host is to pass."""
    report = check_host(exchange, tmp_path, BINANCE_WS_URLS=f"{exchange.ws_url},{exchange.retired_url}")
    assert report.failures == []
    assert len(report.of("TCP")) == 2
    assert len(report.of("handshake")) == 2
    works, retired = report.of("mark prices")
    assert works.startswith("ok   mark prices: 25 symbols, the first after ")
    assert "this address was retired on 2026-04-23" in retired
    assert retired.endswith("another one does")


def test_another_address_that_fails_is_a_fault_beside_one_that_works(exchange: Exchange, tmp_path: Path) -> None:
    """Somebody has set it, and it will be tried when the first one fails."""
    wrong = exchange.ws_url.replace("/market/", "/market/x/")
    report = check_host(exchange, tmp_path, BINANCE_WS_URLS=f"{exchange.ws_url},{wrong}")
    assert report.failure.startswith(f"FAIL handshake: {wrong}: unexpected answer (HTTP 404); ")


def test_an_address_that_stays_silent_fails_at_the_mark_prices(exchange: Exchange, tmp_path: Path) -> None:
    """One that is not retired is not called so."""
    exchange.silence(FUTURE)
    report = check_host(exchange, tmp_path)
    assert report.failure.startswith(f"FAIL mark prices: {exchange.ws_url}: nothing came for 1 s; ")
    assert "retired" not in report.failure


def test_messages_without_mark_prices_fail_at_the_mark_prices(exchange: Exchange, tmp_path: Path) -> None:
    """What comes is another stream's: its field `p` is a price change."""
    exchange.silence(FUTURE)
    with HostCheck(exchange, tmp_path, SILENCE_SECONDS=3) as check:
        exchange.wait_for_live()
        exchange.send_rows([ticker_row("BTCUSDT", exchange.now_ms())])
        report = check.report()
    assert report.failure.startswith(
        f"FAIL mark prices: {exchange.ws_url}: only messages without a mark price came; correct BINANCE_WS_URLS"
    )


def test_a_connection_that_is_closed_fails_at_the_mark_prices(exchange: Exchange, tmp_path: Path) -> None:
    """With the reason that the exchange gave, on one line."""
    exchange.silence(FUTURE)
    with HostCheck(exchange, tmp_path, SILENCE_SECONDS=10) as check:
        exchange.wait_for_live()
        exchange.close(1008, "not\nyou")
        report = check.report()
    assert "closed by the exchange with code 1008 (not\\nyou)" in report.failure


def test_a_stream_that_lags_fails(exchange: Exchange, tmp_path: Path) -> None:
    """By Binance's clock, whose time REST tells."""
    exchange.lag(FUTURE, 20)
    report = check_host(exchange, tmp_path)
    assert report.failure.startswith("FAIL lag: mark prices are 2")
    assert "look for a slow link" in report.failure
    assert report.of("clock")[0].startswith("ok ")


def test_a_clock_that_is_9_s_off_fails(tmp_path: Path) -> None:
    """It is not taken for a lag."""
    with small_exchange(clock_offset_s=9) as exchange:
        report = check_host(exchange, tmp_path)
    assert report.failure.startswith(("FAIL clock: this host's clock is 9.", "FAIL clock: this host's clock is 8.9"))
    assert " behind Binance's; " in report.failure
    assert "timedatectl set-ntp true" in report.failure
    assert report.of("lag")[0].startswith("ok ")


def test_a_time_that_agrees_with_nothing_fails(exchange: Exchange, tmp_path: Path) -> None:
    """An answer an hour off is no reason to set this host's clock."""
    exchange.rest_time_skew_s = 3600
    report = check_host(exchange, tmp_path)
    assert report.failure.startswith("FAIL clock: the time that Binance names came too late, or agrees with nothing")
    assert report.of("lag") == []


def test_a_page_instead_of_rest_fails(exchange: Exchange, tmp_path: Path) -> None:
    """A login page on the way answers 200."""
    exchange.rest_html()
    report = check_host(exchange, tmp_path)
    assert report.failure.startswith(f"FAIL REST: {exchange.rest_url}: not valid JSON")
    assert "login page" in report.failure


@pytest.mark.parametrize("path", [PREMIUM_INDEX, SERVER_TIME])
def test_a_request_without_answer_fails(exchange: Exchange, tmp_path: Path, path: str) -> None:
    """The snapshot as well as the time."""
    exchange.rest_hang(path=path)
    report = check_host(exchange, tmp_path)
    assert report.failure.startswith(f"FAIL REST: {exchange.rest_url}: no answer in time; ")


def test_rest_is_reported_with_the_weight_used(exchange: Exchange, tmp_path: Path) -> None:
    """A check costs 11: a snapshot and the time."""
    report = check_host(exchange, tmp_path)
    assert report.of("REST")[0].endswith("weight used by this IP in this minute: 11 of 2400")
    assert [request.path for request in exchange.rest_requests] == [PREMIUM_INDEX, SERVER_TIME]


def test_a_pause_that_binance_asked_for_is_kept(exchange: Exchange, tmp_path: Path) -> None:
    """Whatever daemon was asked: neither the stream nor REST is, and the lines say for how long."""
    until = {"paused_until": time.time() + 100}
    status = {"connection_status": {**until, "rest": until}}
    state = {"version": 1, "updated_at": time.time(), "funding_state": {}, **status}
    (tmp_path / STATE_FILE).write_text(json.dumps(state), encoding="utf-8")
    report = check_host(exchange, tmp_path)
    handshake, rest = report.failures
    for line, step, url in ((handshake, "handshake", exchange.ws_url), (rest, "REST", exchange.rest_url)):
        assert line.startswith(f"FAIL {step}: {url}: not asked, since Binance asked for a pause; ")
        assert "wait if Binance asks for it" in line
    assert (exchange.attempts, exchange.rest_requests) == ([], [])
