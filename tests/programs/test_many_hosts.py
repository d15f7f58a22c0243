"""Two hosts and the nginx in front, as shipped: whatever happens to one of them, clients notice nothing."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from tests.support.hosts import PATHS, STALE_S, Crowd, Host, Hosts
from tests.support.programs import ROOT
from tests.support.waiting import eventually

CLIENTS, PAUSE_S = 64, 0.3


class Fault(NamedTuple):
    """What happens to the first host, and how it ends."""

    begin: Callable[[Host], object]
    end: Callable[[Host], object]


FAULTS = {
    "daemon killed": Fault(Host.kill_daemon, Host.start_daemon),
    "exchange cut": Fault(lambda host: host.exchange.down(), lambda host: host.exchange.up()),
    "server frozen": Fault(Host.freeze_server, Host.thaw_server),
    "server killed": Fault(Host.kill_server, Host.start_server),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_of_the_first_host_reaches_no_client(hosts: Hosts, fault: Fault) -> None:
    """Every answer is 200 and as current as it says, before, during and after; no host is asked more than once a s."""
    with Crowd(hosts.nginx, CLIENTS, PAUSE_S) as crowd:
        hosts.wait_for_answer_of(hosts.first)
        fault.begin(hosts.first)
        hosts.wait_for_answer_of(hosts.second)
        fault.end(hosts.first)
        hosts.wait_for_answer_of(hosts.first)
    assert crowd.wrong == []
    assert crowd.answers > CLIENTS
    assert crowd.most_per_s() < 2


def test_while_the_first_host_is_well_the_second_is_not_asked(hosts: Hosts) -> None:
    """Answers in turns would take data back in time, and tags with them."""
    seen = len(hosts.nginx.asked())

    def only_the_first_was_asked() -> bool:
        asked = hosts.nginx.asked()[seen:][-2 * len(PATHS) :]
        return len(asked) == 2 * len(PATHS) and all(one.ports == [hosts.first.port] for one in asked)

    with Crowd(hosts.nginx, CLIENTS, PAUSE_S) as crowd:
        eventually(only_the_first_was_asked, "some seconds of questions to the first host alone")
    assert crowd.wrong == []


def test_the_busier_the_clients_the_less_of_it_reaches_a_host(hosts: Hosts) -> None:
    """Clients that ask without a pause get hundreds of answers for each one that a host gives."""
    seen = len(hosts.nginx.asked())
    with Crowd(hosts.nginx, CLIENTS, pause_s=0.0) as crowd:
        eventually(lambda: len(hosts.nginx.asked()) > seen + 3 * len(PATHS), "some seconds of questions")
    assert crowd.wrong == []
    assert crowd.most_per_s() < 2
    assert crowd.answers > 20 * len(hosts.nginx.asked()[seen:])


def test_a_stale_symbol_is_asked_from_the_next_host_and_all_else_still_from_the_first(hosts: Hosts) -> None:
    """503 for one symbol is not taken for a fault of the host."""
    stale, fresh = "/funding/ETHUSDT", "/funding/BTCUSDT"
    hosts.first.exchange.halt(["ETHUSDT"])

    def asked_as_it_should_be() -> bool:
        hosts.ask(stale)
        hosts.ask(fresh)
        newest = {asked.path: asked.ports for asked in hosts.nginx.asked() if asked.ports}
        first, second = hosts.first.port, hosts.second.port
        return newest[stale] == [first, second] and newest[fresh] == [first]

    eventually(asked_as_it_should_be, "the stale symbol from the second host, the fresh one from the first")
    assert hosts.ask(stale).status_code == 200
    hosts.first.exchange.resume(["ETHUSDT"])


def test_where_all_are_stale_the_answer_of_a_host_is_passed_on(hosts: Hosts) -> None:
    """503 with the last known record and Retry-After, as without nginx; the hosts are still asked once a second."""
    for host in (hosts.first, hosts.second):
        host.exchange.down()
    eventually(lambda: hosts.ask(PATHS[0]).status_code != 200, "an answer that is not fresh")
    stale = hosts.ask(PATHS[0])
    assert (stale.status_code, stale.headers["Retry-After"], stale.headers["Cache-Control"]) == (503, "5", "no-store")
    assert stale.json()["stale"] is True
    assert stale.json()["symbol"] == "BTCUSDT"
    seen = len(hosts.nginx.asked())
    assert {hosts.ask(PATHS[0]).status_code for _ in range(50)} == {503}
    assert sum(len(asked.ports) for asked in hosts.nginx.asked()[seen:]) < 50
    for host in (hosts.first, hosts.second):
        host.exchange.up()
    hosts.wait_for_answer_of(hosts.first)


def test_the_example_with_two_addresses_gets_fresh_data_from_whichever_host_has_them(hosts: Hosts) -> None:
    """As it stands in docs/many-hosts.md, but for the addresses."""
    found = re.search(r"```python\n(.*?)```", (ROOT / "docs/many-hosts.md").read_text(encoding="utf-8"), re.DOTALL)
    assert found
    example = found[1]
    for address, host in {"192.0.2.11:8888": hosts.first, "192.0.2.12:8888": hosts.second}.items():
        assert address in example
        example = example.replace(address, f"127.0.0.1:{host.port}")
    program: dict[str, Any] = {}
    exec(example, program)
    for begin, end in ((Host.freeze_server, Host.thaw_server), (Host.kill_server, Host.start_server)):
        for host in (hosts.first, hosts.second):
            begin(host)
            assert program["funding"]("BTCUSDT")["ageSeconds"] < STALE_S
            end(host)
    with pytest.raises(LookupError, match="no host has fresh data of NOPE"):
        program["funding"]("NOPE")
