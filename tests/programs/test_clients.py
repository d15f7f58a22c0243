"""Every example of docs/clients.md as its reader would run it, against the real programs, on good and on bad days."""

import contextlib
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from tests.exchange import Exchange, Market
from tests.support.examples import Example, Host, is_available, needs, programs, questions, require, running
from tests.support.programs import Server
from tests.support.waiting import eventually

CLIENTS = ("poll.py", "push.py", "poll.mjs", "push.mjs", "poll.go", "push.go", "poll.sh", "push.sh")
PUSHED = tuple(name for name in CLIENTS if name.startswith("push"))
SYMBOLS = ("BTCUSDT", "ETHUSDT")
RATE = re.compile(r"([A-Z]+) (-?\d[\d.e-]*)( \d[\d.]*)?$")
SHORT_SILENCE = {
    "timeout=(5, 30)": "timeout=(5, 2)",
    "30_000": "2_000",
    "30 * time.Second": "2 * time.Second",
    "--speed-time 30": "--speed-time 2",
}
"""What the examples wait for at most without a byte, and what they wait for here."""
PART_S = 18.0
"""Longest wait for one part of a day, of which a client that fails must not use up all."""


def rates(lines: list[str]) -> dict[str, float]:
    """Return the last rate that was printed of each symbol."""
    return {match[1]: float(match[2]) for match in map(RATE.match, lines) if match}


def trades_both(lines: list[str]) -> bool:
    """Tell whether rates of both symbols were printed, after the last time that it did not trade."""
    waits = [place for place, line in enumerate(lines) if "not trading" in line]
    return rates(lines[waits[-1] + 1 if waits else 0 :]).keys() == set(SYMBOLS)


def trades_not(lines: list[str]) -> bool:
    """Tell whether it was printed that nothing is traded on."""
    return any("not trading" in line for line in lines)


def since(pattern: str, lines: list[str]) -> list[str]:
    """Return the lines from the first one that the pattern is found in. Raises AssertionError where there is none."""
    found = [place for place, line in enumerate(lines) if re.search(pattern, line)]
    assert found, lines
    return lines[found[0] :]


Printed = dict[str, list[str]]


def printed(clients: list[Example], happen: Callable[[], object], done: Callable[[list[str]], bool]) -> Printed:
    """Let something happen and return what each client prints until all are done, or had time enough."""
    before = {client.name: len(client.log) for client in clients}
    happen()
    with contextlib.suppress(AssertionError):  # the tests judge, each its client
        eventually(lambda: all(done(client.log[before[client.name] :]) for client in clients), "all done", PART_S)
    return {client.name: client.log[before[client.name] :] for client in clients}


class Day(NamedTuple):
    """What each client printed in each part of a day, and how the questions were answered while data was stale."""

    fresh: Printed
    stale: Printed
    fresh_again: Printed
    server_gone: Printed
    server_back: Printed
    stale_answers: dict[str, subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host with a small market."""
    with running(Exchange(Market(usd_m=40, tradfi=10), tick_s=1.0), tmp_path_factory.mktemp("host")) as host:
        yield host


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> Day:
    """A day on which the daemon hangs, and later the server is restarted, lived through by all clients at once."""
    folder = tmp_path_factory.mktemp("day")
    with (
        running(Exchange(Market(usd_m=40, tradfi=10), tick_s=1.0), folder) as host,
        contextlib.ExitStack() as opened,
    ):
        names = [name for name in CLIENTS if is_available(name)]
        clients = [opened.enter_context(Example(name, folder, host.addresses)) for name in names]
        fresh = printed(clients, lambda: None, trades_both)
        stale = printed(clients, lambda: host.daemon.process.send_signal(signal.SIGSTOP), trades_not)
        answers = {question: host.ask(question) for question in questions()} if is_available("poll.sh") else {}
        fresh_again = printed(clients, lambda: host.daemon.process.send_signal(signal.SIGCONT), trades_both)
        gone = printed(clients, host.server.terminate, trades_not)
        restart = lambda: opened.enter_context(Server(folder, API_PORT=host.server.port))  # noqa: E731
        return Day(fresh, stale, fresh_again, gone, printed(clients, restart, trades_both), answers)


@pytest.fixture(scope="module")
def frozen(host: Host, tmp_path_factory: pytest.TempPathFactory) -> tuple[Printed, Printed]:
    """What each subscriber printed while the server was frozen, and then, with less patience than in the document."""
    folder = tmp_path_factory.mktemp("frozen")
    with contextlib.ExitStack() as opened:
        clients = [
            opened.enter_context(Example(name, folder, {**host.addresses, **SHORT_SILENCE}))
            for name in PUSHED
            if is_available(name)
        ]
        printed(clients, lambda: None, trades_both)
        lost = printed(clients, lambda: host.server.process.send_signal(signal.SIGSTOP), trades_not)
        return lost, printed(clients, lambda: host.server.process.send_signal(signal.SIGCONT), trades_both)


def test_every_example_is_run() -> None:
    """Whatever has a name in the document is one of the clients, or the script of the settlement."""
    assert sorted(programs()) == sorted([*CLIENTS, "settlement.sh"])


def test_a_subscriber_waits_30_s() -> None:
    """Each has one limit of silence, which the tests shorten."""
    assert sorted(text for name in PUSHED for text in SHORT_SILENCE if text in programs()[name]) == sorted(
        SHORT_SILENCE
    )


@pytest.mark.parametrize("name", CLIENTS)
class TestClient:
    """One client."""

    def test_shows_fresh_rates(self, day: Day, name: str) -> None:
        """It prints a rate of each symbol, and does so again when it could not for a while."""
        require(*needs(name))
        for part in (day.fresh, day.fresh_again, day.server_back):
            assert trades_both(part[name]), part[name]

    def test_trades_on_nothing_stale(self, day: Day, name: str) -> None:
        """From when the data is stale, it says so and prints no rate any more."""
        require(*needs(name))
        assert rates(since("not trading", day.stale[name])) == {}

    def test_trades_on_nothing_while_the_server_is_gone(self, day: Day, name: str) -> None:
        """It says why in one line, prints no rate any more, and goes on asking."""
        require(*needs(name))
        lines = since("no answer|connection lost|^curl: ", day.server_gone[name])
        assert rates(lines) == {}
        assert not any(re.match(r"Traceback|\s+(at|File) |panic", line) for line in lines)


@pytest.mark.parametrize("name", PUSHED)
def test_a_silent_connection_is_left(frozen: tuple[Printed, Printed], name: str) -> None:
    """A subscriber that gets nothing, not even a comment, says so, connects again, and has rates as soon as it can."""
    require(*needs(name))
    lost, back = (printed[name] for printed in frozen)
    assert rates(since("connection lost", lost)) == {}
    assert trades_both(back), back


def test_nothing_stale_answers_a_question(day: Day) -> None:
    """Then curl says so and nothing is printed, but below the question whether it is."""
    require("curl", "jq")
    answers = dict(day.stale_answers)
    fresh = answers.pop("Is the data fresh, and if not, why?").stdout
    assert re.fullmatch(r"unhealthy, the daemon has not written for \d+ s\n", fresh)
    assert len(answers) == 4
    for answer in answers.values():
        assert answer.stdout == ""
        assert answer.stderr == "curl: (22) The requested URL returned error: 503\n"
