"""The daemon's log in simulated time: one line for each event, few for what lasts, none for a message."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from binance_funding.daemon.source.rest_client import RestError
from tests.support.clock import STEADY_S
from tests.support.house import HOUR_S, House, lines_of
from tests.support.simulated_rest import http_error, lost
from tests.support.simulated_stream import Line, opens_and_stays_silent, refuses, unreachable


@pytest.fixture
def house(tmp_path: Path) -> House:
    """A daemon with default settings, against an exchange that is well."""
    return House(tmp_path)


def test_a_wrong_clock_is_named_until_it_is_right(house: House, caplog: pytest.LogCaptureFixture) -> None:
    """Above 5 s in either direction, once and then seldom; a clock that goes wrong again is named again."""
    caplog.set_level(logging.INFO)
    house.time.set_wall_by(-4.0)
    house.advance(20)
    assert not lines_of(caplog, "clock")
    house.time.set_wall_by(-3.0)
    house.advance(20)
    named = lines_of(caplog, "clock cause")
    assert len(named) == 1
    assert "offset_s=7" in named[0]
    assert 'next="check NTP"' in named[0]
    house.time.set_wall_by(7.0)
    house.advance(20)
    assert len(lines_of(caplog, "clock right again after_s=")) == 1
    house.time.set_wall_by(8.0)
    house.advance(20)
    assert len(lines_of(caplog, "clock cause")) == 2


def test_a_stream_that_falls_behind_is_never_named_a_wrong_clock(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    """Binance's time comes from REST, and stays known while that fails."""
    house.advance(120)
    house.binance.fails = lambda path: lost("no connection")
    for line in house.lines.open:
        line.falls_behind(0.5)
    house.advance(120)
    assert lines_of(caplog, "lagging")
    assert not lines_of(caplog, "clock")
    assert house.write()["connection_status"]["clock_offset_seconds"] == pytest.approx(0, abs=0.2)


def test_a_gap_is_logged_with_the_trouble_of_its_time_only(house: House, caplog: pytest.LogCaptureFixture) -> None:
    """Not with a loss or a refusal that was over before it began."""
    house.advance(60)
    house.binance.fails = lambda path: lost("an old trouble")
    house.lines.open[0].ends("an old loss")
    house.advance(120)
    house.binance.fails = lambda path: None
    house.advance(120)
    house.exchange.symbols = []
    house.binance.fails = lambda path: lost("a trouble of REST")
    house.advance(9)
    house.exchange.symbols = ["BTCUSDT", "ETHUSDT"]
    house.advance(30)
    house.lines.answer = refuses("a new refusal")
    house.lose_all("a new loss")
    house.advance(25)
    house.lines.answer = Line.brings
    house.advance(15)
    assert [line.partition(" seconds=")[0] for line in lines_of(caplog, "gap ended")] == [
        'gap ended cause="stream: nothing came; REST: a trouble of REST"',
        'gap ended cause="stream: a new refusal; REST: a trouble of REST"',
    ]


def test_what_comes_and_goes_costs_few_lines(house: House, caplog: pytest.LogCaptureFixture) -> None:
    """REST that fails every other time, handshakes that are refused every other time: an hour of it is no flood."""
    caplog.set_level(logging.INFO)
    house.advance(120)
    caplog.clear()
    turns = iter(range(1_000_000))
    house.binance.fails = lambda path: http_error(500) if next(turns) % 2 else None

    def answer(line: Line) -> None:
        if next(turns) % 2:
            refuses("HTTP 503")(line)
            return
        line.brings()
        house.exchange.in_(5, line.ends)

    house.lines.answer = answer
    house.lose_all()
    house.advance(HOUR_S)
    assert len(caplog.records) < 120
    assert {"REST failed", "REST recovered", "lost", "connect failed"} <= {
        event for event in ("REST failed", "REST recovered", "lost", "connect failed") if lines_of(caplog, event)
    }


def test_symbols_that_live_on_rest_are_counted_in_the_log_when_that_changes(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    """Once when it begins and once when it ends; not while the whole stream is down, which has its own lines."""
    caplog.set_level(logging.INFO)
    symbols = [f"SIM{number:03d}USDT" for number in range(200)]
    house.exchange.symbols = house.exchange.listed = symbols
    house.advance(120)
    house.exchange.symbols = symbols[1:]
    house.advance(1800)
    assert lines_of(caplog, "symbols from REST") == ["symbols from REST count=1 of=200"]
    house.exchange.symbols = symbols
    house.advance(60)
    assert lines_of(caplog, "symbols from REST")[1].startswith("symbols from REST after_s=")
    assert lines_of(caplog, "symbols from REST")[1].endswith("count=0 of=200")
    house.lines.answer = unreachable
    house.lose_all()
    house.advance(600)
    assert len(lines_of(caplog, "symbols from REST")) == 2
    assert not lines_of(caplog, "fallback off")


def test_half_of_the_market_on_rest_is_logged_once(house: House, caplog: pytest.LogCaptureFixture) -> None:
    """Fallback, and how many symbols; nothing more while it lasts, and each once when it is over."""
    caplog.set_level(logging.INFO)
    symbols = [f"SIM{number:03d}USDT" for number in range(20)]
    house.exchange.symbols = house.exchange.listed = symbols
    house.advance(120)
    caplog.clear()
    house.exchange.symbols = symbols[:10]
    house.advance(65)
    assert [line.partition("=")[0] for line in caplog.messages] == [
        "fallback on stream_age_s",
        "symbols from REST count",
    ]
    assert "behind=10 of=20" in caplog.messages[0]
    house.exchange.symbols = symbols
    house.advance(65)
    assert sorted(line.partition("=")[0] for line in caplog.messages[2:]) == [
        "fallback off after_s",
        "symbols from REST after_s",
    ]


def stands_still(line: Line) -> None:
    """Bring for ever what was true shortly before the outage, which begins a minute after the start."""
    line.brings(lambda: line.lines.exchange.now_s - STEADY_S - 50.0)


OUTAGES: dict[str, Callable[[Line], None]] = {
    "connection refused": unreachable,
    "HTTP 403": refuses("handshake refused: the firewall of Binance refuses this IP (HTTP 403)"),
    "HTTP 418": refuses("handshake refused: Binance has banned this IP (HTTP 418)", wait_s=120.0),
    "HTTP 503": refuses("handshake refused: Binance has trouble of its own (HTTP 503)"),
    "no handshake within 15 s": lambda line: None,
    "no new mark prices for 15 s": opens_and_stays_silent,
    "behind Binance's clock": stands_still,
}


def hour_without(house: House, answer: Callable[[Line], None], rest_error: RestError) -> None:
    """Let a good minute be followed by an outage of stream and REST for an hour."""
    house.advance(60)
    house.lines.answer = answer
    house.binance.fails = lambda path: rest_error
    house.lose_all()
    house.advance(HOUR_S)


@pytest.mark.parametrize("cause", OUTAGES)
def test_an_hour_without_exchange_costs_few_lines(house: House, caplog: pytest.LogCaptureFixture, cause: str) -> None:
    """Fewer than 24 lines of all parts together, from the loss to the recovery, the cause among them."""
    caplog.set_level(logging.INFO)
    hour_without(house, OUTAGES[cause], lost("no connection: connection refused"))
    house.lines.answer = Line.brings
    house.binance.fails = lambda path: None
    house.advance(300)
    assert len(house.daemon._stream.live()) == 2
    lines = [record.getMessage() for record in caplog.records]
    outage = lines[next(place for place, line in enumerate(lines) if line.startswith("lost")) :]
    assert len(outage) < 24, "\n".join(outage)
    assert any(cause in line for line in outage)
    for event in ("fallback on", "fallback off", "REST failed", "REST recovered", "gap ended"):
        assert len(lines_of(caplog, event)) >= 1, event
    assert lines_of(caplog, "stream recovered") or lines_of(caplog, "stream steady")
    assert not any(record.exc_info for record in caplog.records)


@pytest.mark.parametrize("status", [403, 418])
def test_an_hour_of_refused_rest_costs_few_lines(house: House, caplog: pytest.LogCaptureFixture, status: int) -> None:
    """The same where REST is refused, whatever the reason."""
    caplog.set_level(logging.INFO)
    told_s = 120.0 if status == 418 else 0.0
    hour_without(house, unreachable, http_error(status, told_s))
    assert len(caplog.records) < 20
    assert len(lines_of(caplog, "REST refused")) in range(1, 7)
