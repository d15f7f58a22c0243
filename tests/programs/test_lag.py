"""Age is that of the exchange's clock: streams that fall behind and clocks that are wrong, for the real programs."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.exchange import ALL, FUTURE, Exchange, Market
from tests.exchange.throttle import ThrottlingProxy
from tests.support.bad_days import logs_calmly, small_exchange
from tests.support.programs import Daemon, Server
from tests.support.sampling import Answer, Sampler, answer, oldest_age_s
from tests.support.waiting import eventually

SILENCE_S = 3.0
FALLBACK_S = 2.0
STALE_S = 20.0
SYMBOL = "BTCUSDT"
_SETTINGS = {"SILENCE_SECONDS": SILENCE_S, "REST_FALLBACK_SECONDS": FALLBACK_S, "STALE_SECONDS": STALE_S}
_TRUE_TO_S = 1.0


class Host:
    """Both programs of one host, well at the start, and samples of what the server answers for one symbol."""

    def __init__(self, exchange: Exchange, daemon: Daemon, server: Server) -> None:
        self.exchange = exchange
        self.daemon = daemon
        self.server = server

    def health(self) -> tuple[str, str]:
        """Return the health in one word, and what is wrong."""
        health = self.server.get("/funding/health")[1]
        return health["status"], health["error"] or ""

    def wait_for_health(self, status: str, error: str = "", within_s: float = 30.0) -> None:
        """Wait until health is this, and its error matches."""
        eventually(
            lambda: self.health()[0] == status and re.search(error, self.health()[1]),
            f"health {status} {error}, last {self.health()}",
            within_s,
        )

    def sampled(self) -> Sampler[Answer]:
        """Sample the answers for one symbol while entered."""
        return Sampler(lambda: answer(self.exchange, self.server, SYMBOL))

    def lines(self, pattern: str) -> list[str]:
        """Return the log lines in which the regular expression is found."""
        return [line for line in self.daemon.log if re.search(pattern, line)]


@contextlib.contextmanager
def host(exchange: Exchange, folder: Path, **settings: object) -> Iterator[Host]:
    """Run both programs until all is well, and then the block."""
    given = {**_SETTINGS, **settings}
    with Daemon(exchange, folder, **given) as daemon, Server(folder, STALE_SECONDS=given["STALE_SECONDS"]) as server:
        one = Host(exchange, daemon, server)
        daemon.wait_for_live()
        one.wait_for_health("healthy", "^$")
        yield one


def are_true(answers: list[Answer]) -> bool:
    """Tell whether every age that was said is that of the exchange."""
    return all(abs(one.age_s - one.true_age_s) < _TRUE_TO_S for one in answers)


def oldest_served_s(answers: list[Answer]) -> float:
    """Return the greatest age, as of the exchange, of an answer that was given as fresh."""
    return max(one.true_age_s for one in answers if one.status == 200)


def test_lag_that_grows_is_made_good_by_rest(tmp_path: Path) -> None:
    """Nothing older than SILENCE_SECONDS and 4 s is served, every age is true, health and log name the lag."""
    with small_exchange() as exchange, host(exchange, tmp_path) as one:
        with one.sampled() as sampler:
            # What is opened from now on lags from its first message.
            exchange.lag(FUTURE, behind_s=20.0, growing_s_per_s=0.9)
            exchange.lag(ALL, growing_s_per_s=0.9)
            one.wait_for_health("degraded", r"\d+ s behind Binance's clock")
            eventually(lambda: one.server.get("/funding/health")[1]["streamLagSeconds"] > 20, "the lag in health")
            eventually(lambda: len(sampler.samples) > 80, "samples of 8 s")
            assert one.health()[0] == "degraded"
            assert one.daemon.status()["connections"] == 0
            exchange.behave(FUTURE)
            with contextlib.suppress(LookupError):
                exchange.behave(ALL)
            one.wait_for_health("healthy", "^$", within_s=15.0)
        assert oldest_served_s(sampler.samples) <= SILENCE_S + 4.0
        assert {sample.status for sample in sampler.samples} == {200}
        assert are_true(sampler.samples)
        assert one.daemon.state()["gaps"] == []
        assert 1 <= len(one.lines("WARNING lagging cause=.*mark prices are [0-9]+ s behind Binance's clock")) <= 4
        assert len(one.lines("INFO +stream recovered")) == 1
        logs_calmly(one.daemon)


def test_lag_without_rest_is_stale_in_time(tmp_path: Path) -> None:
    """503 from STALE_SECONDS on, by the exchange's clock, and the report's worst age is the true one."""
    stale_s = 8.0
    with small_exchange() as exchange, host(exchange, tmp_path, STALE_SECONDS=stale_s) as one:
        with one.sampled() as sampler:
            exchange.rest_fault(503)
            exchange.lag(FUTURE, behind_s=20.0)
            exchange.lag(ALL, growing_s_per_s=0.8)
            eventually(lambda: sampler.samples and sampler.samples[-1].true_age_s > stale_s + 8, "stale data")
        report = one.server.get("/funding/report")[1]
        truth_s = oldest_age_s(exchange, one.daemon)
        assert are_true(sampler.samples)
        assert {sample.status for sample in sampler.samples if sample.true_age_s > stale_s + 0.5} == {503}
        assert {sample.status for sample in sampler.samples if sample.true_age_s < stale_s - 0.5} == {200}
        assert report["dataAge"]["worstSeconds"] == pytest.approx(truth_s, abs=_TRUE_TO_S)
        assert report["dataAge"]["pass"] is False
        assert report["gaps"]["count"] == 1
        assert one.health()[0] == "unhealthy"


def test_the_good_one_lost_in_the_same_moment_is_no_gap(tmp_path: Path) -> None:
    """REST is asked at once, the lost connection comes back soon, and what lags is not taken for fresh meanwhile."""
    with small_exchange() as exchange, host(exchange, tmp_path) as one:
        with one.sampled() as sampler:
            exchange.lag(0, behind_s=30.0)
            exchange.reset(1)
            one.daemon.wait_for_line("WARNING lost")
            one.daemon.wait_for_line("WARNING (lagging|silent)")
            one.daemon.wait_for_line("INFO +connected", count=4)
            one.daemon.wait_for_live()
        assert oldest_served_s(sampler.samples) <= SILENCE_S + 4.0
        assert are_true(sampler.samples)
        assert one.daemon.state()["gaps"] == []


@pytest.mark.parametrize(("lagging", "falls_back"), [(2, False), (60, True)])
def test_symbols_that_lag_an_hour_come_from_rest(tmp_path: Path, lagging: int, falls_back: bool) -> None:
    """While the others are current: their ages are true, one line says how many; a fallback where they are too many."""
    with Exchange(Market(usd_m=300, tradfi=0, coin_m=0, fundless=0), tick_s=0.5) as exchange:
        symbols = sorted(exchange.market.symbols)[:lagging]
        exchange.lag_symbols(symbols, 3600.0)
        settings = {**_SETTINGS, "REST_POLL_SECONDS": 2}
        with Daemon(exchange, tmp_path, **settings) as daemon, Server(tmp_path) as server:
            daemon.wait_for_live()
            one = Host(exchange, daemon, server)
            one.daemon.wait_for_line(f"symbols from REST .*count={lagging} of=300")
            with Sampler(lambda: oldest_age_s(exchange, daemon)) as oldest, one.sampled() as answers:
                eventually(lambda: len(answers.samples) > 40, "samples of 4 s")
            assert max(oldest.samples) <= SILENCE_S + 4.0
            assert are_true(answers.samples)
            assert are_true([answer(exchange, server, symbol) for symbol in symbols])
            assert one.health()[0] == ("degraded" if falls_back else "healthy")
            assert bool(one.lines("fallback on")) == falls_back
            assert not one.lines("lagging|silent|lost")
            logs_calmly(daemon)


@pytest.mark.parametrize("offset_s", [9.0, -86_400.0])
def test_wrong_clock_of_this_host_is_no_lag(tmp_path: Path, offset_s: float) -> None:
    """No drop, no age that is not true; the log names NTP once."""
    with small_exchange(clock_offset_s=offset_s) as exchange, host(exchange, tmp_path) as one:
        with one.sampled() as sampler:
            eventually(lambda: len(sampler.samples) > 40, "samples of 4 s, more than the silence")
        assert {sample.status for sample in sampler.samples} == {200}
        assert are_true(sampler.samples)
        assert one.daemon.status()["disconnects"] == 0
        assert one.daemon.status()["clock_offset_seconds"] == pytest.approx(offset_s, abs=_TRUE_TO_S)
        assert len(one.lines("WARNING clock cause=.*NTP")) == 1
        assert not one.lines("lagging|silent|lost|fallback")


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"rest_time_jump_s": 3600.0}, id="jumping ahead"),
        pytest.param({"rest_row_skew_s": 3600.0}, id="rows an hour ahead"),
    ],
)
def test_wrong_time_of_rest_makes_nothing_stale(tmp_path: Path, wrong: dict[str, float]) -> None:
    """Single wrong answers are not believed, and rows of REST ahead of Binance's time are rejected."""
    with small_exchange() as exchange:
        for name, seconds in wrong.items():
            setattr(exchange, name, seconds)
        settings = {**_SETTINGS, "REST_POLL_SECONDS": 1}
        with Daemon(exchange, tmp_path, **settings) as daemon, Server(tmp_path) as server:
            daemon.wait_for_live()
            eventually(
                lambda: {one["source"] for one in daemon.records().values()} == {"websocket"}, "the stream's rows"
            )
            one = Host(exchange, daemon, server)
            one.wait_for_health("healthy")
            with one.sampled() as sampler:
                eventually(lambda: len(sampler.samples) > 20, "samples of 2 s")
            assert {sample.status for sample in sampler.samples} == {200}
            assert are_true(sampler.samples)
            assert one.health()[0] == "healthy"
            assert daemon.status()["disconnects"] == 0
            assert not one.lines("lagging|silent|clock cause")


def test_unknown_time_of_binance_is_said(tmp_path: Path) -> None:
    """REST never answered: ages are by arrival, and health says that they are; once known they are by its clock."""
    with small_exchange() as exchange:
        exchange.down(ws=False)
        settings = {**_SETTINGS, "REST_POLL_SECONDS": 1}
        with Daemon(exchange, tmp_path, **settings) as daemon, Server(tmp_path) as server:
            daemon.wait_for_live()
            one = Host(exchange, daemon, server)
            one.wait_for_health("healthy", "ages are by arrival: Binance's time is not known")
            assert daemon.status()["clock_offset_seconds"] is None
            exchange.up(ws=False)
            one.wait_for_health("healthy", "^$")


def test_slow_link_is_noticed_and_made_good_by_rest(tmp_path: Path) -> None:
    """Each connection gets 60 kB/s of the 170 that the market takes, REST is direct: lag is named, data stay fresh."""
    silence_s = 12.0
    with (
        Exchange(tick_s=1.0) as exchange,
        ThrottlingProxy(exchange.ws_port, 1e9) as link,
        host(exchange, tmp_path, SILENCE_SECONDS=silence_s, BINANCE_WS_URLS=link.through(exchange.ws_url)) as one,
    ):
        with Sampler(lambda: oldest_age_s(exchange, one.daemon)) as oldest, one.sampled() as answers:
            link.bytes_per_s = 60_000
            one.wait_for_health("degraded", "behind Binance's clock: fresh through REST")
            one.daemon.wait_for_line("WARNING lagging cause=.*behind Binance's clock")
            link.bytes_per_s = 1e9
            one.wait_for_health("healthy", "^$")
        assert max(oldest.samples) <= silence_s + 4.0
        assert are_true(answers.samples)
        assert one.daemon.state()["gaps"] == []
