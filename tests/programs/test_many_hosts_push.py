"""Push through the nginx in front, as shipped."""

import signal
from pathlib import Path

from tests.support.hosts import Host, Hosts, running_hosts
from tests.support.subscriber import Subscriber
from tests.support.waiting import eventually


def subscribe(hosts: Hosts, query: str = "") -> Subscriber:
    """Subscribe through nginx, and wait for the beginning."""
    subscriber = Subscriber(hosts.nginx.port, query)
    subscriber.wait(lambda: bool(subscriber.follower.data and subscriber.follower.status), "snapshot and status")
    return subscriber


def subscribe_at(hosts: Hosts, host: Host, query: str = "") -> Subscriber:
    """Subscribe until this host serves it: on a busy machine even a host that is well may take too long."""

    def attempt() -> Subscriber | None:
        subscriber = subscribe(hosts, query)
        if host.serves(subscriber):
            return subscriber
        subscriber.close()
        return None

    return eventually(attempt, "a subscriber at this host")


def test_what_changes_comes_at_once(hosts: Hosts) -> None:
    """Nothing is held back until there is more: what is last before a pause comes before the pause is over."""
    with subscribe_at(hosts, hosts.first, "?symbols=BTCUSDT") as subscriber:
        subscriber.wait(lambda: "update" in subscriber.follower.events, "an update")
        hosts.first.daemon.process.send_signal(signal.SIGSTOP)
        last = hosts.first.server.get("/funding")[1]["data"]["BTCUSDT"]
        subscriber.wait(
            lambda: subscriber.follower.data["BTCUSDT"]["eventTime"] >= last["eventTime"], "the last update"
        )
        hosts.first.daemon.process.send_signal(signal.SIGCONT)


def test_subscribers_of_a_host_that_dies_find_the_next(hosts: Hosts) -> None:
    """Their connection ends at once, and the next one is served by another host."""
    with subscribe_at(hosts, hosts.first) as subscriber:
        hosts.first.kill_server()
        assert subscriber.is_ended()
    with subscribe(hosts) as subscriber:
        assert hosts.second.serves(subscriber)
    hosts.first.start_server()
    subscribe_at(hosts, hosts.first).close()


def test_a_host_without_fresh_data_gets_no_new_subscribers(hosts: Hosts) -> None:
    """It tells those whom it has, and whoever subscribes again is served by another host."""
    with subscribe_at(hosts, hosts.first) as subscriber:
        hosts.first.exchange.down()
        subscriber.wait(lambda: subscriber.follower.status["status"] == "unhealthy", "the status")
    with subscribe(hosts) as subscriber:
        assert hosts.second.serves(subscriber)
    hosts.first.exchange.up()
    subscribe_at(hosts, hosts.first).close()


def test_subscribers_of_a_frozen_host_are_cut(tmp_path: Path) -> None:
    """After the longest silence between two comments; the limit is shortened here."""
    with running_hosts(tmp_path, lambda text: text.replace("read_timeout 20s;", "read_timeout 2s;")) as hosts:
        with subscribe_at(hosts, hosts.first) as subscriber:
            hosts.first.freeze_server()
            assert subscriber.is_ended()
        with subscribe(hosts) as subscriber:
            assert hosts.second.serves(subscriber)
        hosts.first.thaw_server()


def test_a_full_host_passes_subscribers_to_the_next(tmp_path: Path) -> None:
    """Half of its connections may wait like this; that they do is no fault for which it is left out."""
    with running_hosts(tmp_path, API_MAX_CONNECTIONS=16) as hosts:
        subscribers = [subscribe_at(hosts, hosts.first) for _ in range(8)]
        subscribers.append(subscribe(hosts))
        assert hosts.second.serves(subscribers[-1])
        hosts.ask("/funding")
        assert hosts.nginx.asked()[0].ports == [hosts.first.port]
        for subscriber in subscribers:
            subscriber.close()
