"""Either source alone is enough: with default settings no outage of the stream leads to old data.

Two outages with real connections and real time run side by side. tests/simulated/test_fallback.py has the others.
"""

import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.exchange import ALL, FUTURE, PREMIUM_INDEX, Exchange, Market
from tests.support.programs import Daemon
from tests.support.sampling import Sampler, oldest_age_s
from tests.support.waiting import eventually

OUTAGE_S = 30.0
OLDEST_S = 12.0
BACK_WITHIN_S = 12.0
MOST_REQUESTS, MOST_WEIGHT = 15, 130
_AGAIN_EVERY_S = 1.0
_DEFAULTS = {
    "SILENCE_SECONDS": 15,
    "STALE_SECONDS": 180,
    "RECONNECT_MIN_SECONDS": 0.5,
    "RECONNECT_MAX_SECONDS": 60,
    "REST_POLL_SECONDS": 60,
    "REST_FALLBACK_SECONDS": 10,
    "REST_TIMEOUT_SECONDS": 10,
    "HEARTBEAT_SECONDS": 5,
}

Fault = Callable[[Exchange], object]


class Outage(NamedTuple):
    """How the stream goes away, and what is done every second while it is away."""

    begin: Fault
    again: Fault = lambda _exchange: None


def silenced(exchange: Exchange) -> None:
    """Let no connection bring data."""
    exchange.silence(FUTURE)
    exchange.silence(ALL)


def failed_over(exchange: Exchange) -> None:
    """Let a firewall forget all connections, and new ones bring nothing."""
    exchange.silence(FUTURE)
    exchange.fail_over()


class FailsNow:
    """Lets one snapshot fail every so many seconds."""

    def __init__(self, every_s: int) -> None:
        self._every_s = every_s
        self._calls = 0

    def __call__(self, exchange: Exchange) -> None:
        """Be called every second."""
        self._calls += 1
        if self._calls % self._every_s == 0:
            exchange.rest_fault(500, path=PREMIUM_INDEX, count=1)


class FailsOverAgain:
    """Lets the firewall forget all connections every 10 s."""

    def __init__(self) -> None:
        self._calls = 0

    def __call__(self, exchange: Exchange) -> None:
        """Be called every second."""
        self._calls += 1
        if self._calls % 10 == 0:
            exchange.fail_over()


OUTAGES = {
    "firewall": Outage(failed_over, FailsOverAgain()),
    "single failed answers": Outage(silenced, FailsNow(10)),
}


class Result(NamedTuple):
    """What became of one daemon."""

    oldest_s: float
    """Greatest age of any record, as of the exchange."""
    gaps: list[str]
    """Causes of all gaps."""
    back_after_s: float
    most_requests: int
    """REST requests in any 60 s from the beginning of the outage on."""
    most_weight: int
    log: list[str]


def live_through(outage: Outage, folder: Path) -> Result:
    """Run a daemon with default settings through one outage."""
    market = Market(usd_m=15, tradfi=10, coin_m=2, fundless=2)
    with Exchange(market) as exchange, Daemon(exchange, folder, **_DEFAULTS) as daemon:
        daemon.wait_for_live()
        daemon.wait_for_newer_data()
        with Sampler(lambda: oldest_age_s(exchange, daemon)) as sampler:
            began_s = time.time()
            outage.begin(exchange)
            stop = threading.Event()
            while time.time() < began_s + OUTAGE_S:
                stop.wait(_AGAIN_EVERY_S)
                with contextlib.suppress(LookupError):  # no connection is there at the moment
                    outage.again(exchange)
            back_after_s = end(exchange, daemon)
        requests = [one for one in exchange.rest_requests if one.at_s > began_s]
        return Result(
            oldest_s=max(sampler.samples),
            gaps=[gap["cause"] for gap in daemon.state()["gaps"]],
            back_after_s=back_after_s,
            most_requests=most_in_a_minute([(one.at_s, 1) for one in requests]),
            most_weight=most_in_a_minute([(one.at_s, weight(one.path)) for one in requests]),
            log=daemon.log,
        )


def end(exchange: Exchange, daemon: Daemon) -> float:
    """End every outage; return after how many seconds the stream brings the market again."""
    exchange.behave(FUTURE)
    with contextlib.suppress(LookupError):
        exchange.behave(ALL)
    exchange.accept_handshakes()
    exchange.up()
    ended_s = time.monotonic()
    eventually(lambda: daemon.status().get("connections", 0) >= 1, "a live connection")
    eventually(lambda: not daemon.status().get("fallback_active", True), "the end of the fallback")
    return time.monotonic() - ended_s


def weight(path: str) -> int:
    """Return the weight of a request."""
    return 10 if "premiumIndex" in path else 1 if "time" in path else 0


def most_in_a_minute(amounts: list[tuple[float, int]]) -> int:
    """Return the greatest sum of the amounts within any 60 s, given with their times."""
    return max(sum(n for at_s, n in amounts if 0 <= at_s - start_s < 60) for start_s, _ in amounts)


@pytest.mark.timeout(120)
def test_no_outage_of_the_stream_leads_to_old_data(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing older than 12 s, no gap, back on the stream within 12 s, Binance's limits kept, few lines in the log."""
    with ThreadPoolExecutor(len(OUTAGES)) as pool:
        running = [pool.submit(live_through, one, tmp_path_factory.mktemp("host")) for one in OUTAGES.values()]
    for name, future in zip(OUTAGES, running, strict=True):
        result = future.result()
        assert result.oldest_s <= OLDEST_S, name
        assert result.gaps == [], name
        assert result.back_after_s <= BACK_WITHIN_S, name
        assert result.most_requests <= MOST_REQUESTS, name
        assert result.most_weight <= MOST_WEIGHT, name
        assert len(result.log) <= 40, "\n".join(result.log)
        assert not any("Traceback" in line for line in result.log), name


SLOW_NAMES = """
import socket, time
_lookup = socket.getaddrinfo
def getaddrinfo(host, *args, **options):
    if host == "exchange.example":
        time.sleep(4)
        host = "127.0.0.1"
    return _lookup(host, *args, **options)
socket.getaddrinfo = getaddrinfo
"""


def test_a_slow_name_server_delays_data_and_does_not_prevent_it(tmp_path: Path) -> None:
    """It takes longer than the limits of a request and a connection, which begin when the name is known."""
    (tmp_path / "sitecustomize.py").write_text(SLOW_NAMES, encoding="ascii")
    with Exchange(Market(usd_m=15, tradfi=10, coin_m=2, fundless=2)) as exchange:
        urls = {
            "BINANCE_WS_URLS": exchange.ws_url.replace("127.0.0.1", "exchange.example"),
            "BINANCE_REST_URL": exchange.rest_url.replace("127.0.0.1", "exchange.example"),
        }
        limits = {**_DEFAULTS, "REST_TIMEOUT_SECONDS": 2, "SILENCE_SECONDS": 3.5}
        with Daemon(exchange, tmp_path, PYTHONPATH=tmp_path, **limits, **urls) as daemon:
            daemon.wait_for_live()
            assert daemon.status()["rest"]["last_success_time"]
            daemon.wait_for_newer_data()
            assert not any("connect failed" in line or "REST failed" in line for line in daemon.log)
