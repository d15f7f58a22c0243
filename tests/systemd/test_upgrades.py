"""Restarts, crashes, upgrades and rolling back, while clients go on asking."""

import contextlib
import time
from collections.abc import Callable, Iterator

import pytest

from tests.support.installed import DAEMON, PREFIX, SERVER, Service
from tests.support.machine import CLONE
from tests.support.steady_clients import ASKING, Asked, SteadyClients
from tests.support.tools import find
from tests.support.waiting import eventually

NEXT_RELEASE = "echo '__version__ = \"next\"' >>binance_funding/__init__.py"


@pytest.fixture
def clients(service: Service) -> Iterator[SteadyClients]:
    """Clients that ask the running service."""
    service.configure(HEARTBEAT_SECONDS=5)  # as it is by default: health says from it whether the daemon lives
    service.start()
    clients = SteadyClients(8888)
    with contextlib.ExitStack() as stack:
        with service.machine.network():
            stack.enter_context(clients.running())
        yield clients


def disturb(service: Service, clients: SteadyClients, disturbance: Callable[[], object], *units: str) -> list[Asked]:
    """Call `disturbance`, and wait until these units have new processes and every client is served again.

    Returns the requests that were not answered with 200. No other may have been noticeable.
    """
    pids = [service.pid(unit) for unit in units]
    calm_age_s, started_s = clients.worst_age_s(), time.monotonic()
    disturbance()
    eventually(lambda: not {service.pid(unit) for unit in units} & {*pids, 0}, "new processes")
    if DAEMON in units:
        eventually(lambda: service.state()["daemon_pid"] == service.pid(DAEMON), "the new daemon to write")
        eventually(lambda: service.state()["connection_status"]["connected"], "it to have new data")
    service.wait_until_healthy()
    over_s = time.monotonic()
    clients.wait_for_subscribers(started_s if SERVER in units else 0.0)
    clients.wait_for_answers()
    slowest_s = max(asked.took_s for asked in clients.asked)
    print(f"{len(clients.asked)} requests, the slowest {slowest_s:.2f} s; all well after {over_s - started_s:.2f} s")
    assert slowest_s < 2
    assert clients.worst_age_s() <= calm_age_s + over_s - started_s
    for subscriber in clients.subscribers:
        assert (subscriber.retry_s, subscriber.failure) == (2.0, "")
        assert subscriber.longest_away_s < 2.0 + 2.0
    return clients.failed()


@pytest.mark.parametrize("unit", [DAEMON, SERVER])
def test_nobody_notices_a_restart(service: Service, clients: SteadyClients, unit: str) -> None:
    """During a restart, all requests are answered in time with 200, and no data is older than the restart took."""
    units = (DAEMON, SERVER) if unit == DAEMON else (SERVER,)
    assert disturb(service, clients, lambda: service.systemctl("restart", unit), *units) == []


def test_nobody_notices_a_crash_of_the_daemon(service: Service, clients: SteadyClients) -> None:
    """After SIGKILL of the daemon, all requests are answered and subscribers stay connected."""
    server = service.pid(SERVER)
    assert disturb(service, clients, lambda: service.signal("KILL"), DAEMON) == []
    assert service.pid(SERVER) == server
    assert all(subscriber.lost_s is None for subscriber in clients.subscribers)


def test_a_crash_of_the_server_costs_only_what_it_was_answering(service: Service, clients: SteadyClients) -> None:
    """After SIGKILL, each client loses at most the answer in progress. Later requests wait for the new server."""
    gone_s: list[float] = []

    def kill() -> None:
        pid = service.pid(SERVER)
        service.run("kill", "-KILL", str(pid))
        eventually(lambda: not service.machine.path(f"/proc/{pid}").exists(), "its end")
        gone_s.append(time.monotonic())

    failed = disturb(service, clients, kill, SERVER)
    assert len(failed) <= ASKING
    for asked in failed:
        assert asked.started_s < gone_s[0]
        assert "Refused" not in asked.failure
        assert asked.status == 0


def test_nobody_notices_an_upgrade(service: Service, clients: SteadyClients) -> None:
    """`make install` and a restart: all requests are answered, in the end by the new release."""
    service.install(clone=service.changed_clone(NEXT_RELEASE))
    assert disturb(service, clients, lambda: service.systemctl("restart"), DAEMON, SERVER) == []
    assert service.get("/")[1]["version"] == "next"


def current_release(service: Service) -> str:
    """Return the folder of the release that the next start will use."""
    return service.run("readlink", "-e", f"{PREFIX}/current").stdout.strip()


@pytest.fixture
def releases(service: Service) -> tuple[str, str]:
    """The folders of the current and of the previous release."""
    if len(service.releases()) < 2:
        service.install(clone=service.changed_clone(NEXT_RELEASE))
    current = current_release(service)
    (before,) = service.releases() - {current}
    return current, before


def test_rolling_back_takes_one_command_that_nobody_notices(
    service: Service, releases: tuple[str, str], clients: SteadyClients
) -> None:
    """`make rollback` starts the previous release. A second `make rollback` starts the newer release again."""
    current, before = releases
    said: list[str] = []
    assert disturb(service, clients, lambda: said.append(service.install("rollback")), DAEMON, SERVER) == []
    assert f"Rolled back to release {service.get('/')[1]['version']}.\n" in said[0]
    assert current_release(service) == before
    service.install("rollback")
    assert current_release(service) == current


def test_rolling_back_mends_a_release_that_does_not_run(service: Service, releases: tuple[str, str]) -> None:
    """It works without a clone. Both programs of the previous release run again, with that release's units."""
    current, before = releases
    module = service.machine.path(f"{current}/binance_funding/daemon/supervisor.py")
    sound = module.read_text(encoding="utf-8")
    module.write_text(f"{sound}\nDaemon.run = None\n", encoding="utf-8")
    try:
        assert service.run("systemctl", "restart", DAEMON, check=False).returncode != 0
        service.run("sh", f"{PREFIX}/current/packaging/install.sh", "rollback")
    finally:
        module.write_text(sound, encoding="utf-8")
    assert current_release(service) == before
    service.wait_until_healthy()
    unit = service.machine.path(f"/etc/systemd/system/{DAEMON}.service")
    assert unit.read_text() == service.machine.path(f"{before}/{DAEMON}.service").read_text()


def test_rolling_back_without_a_release_before_changes_nothing(service: Service) -> None:
    """It fails and says why."""
    service.run("rm", "-f", f"{PREFIX}/previous")
    before = current_release(service)
    failed = service.run("make", "-C", CLONE, "rollback", check=False)
    assert failed.returncode != 0
    assert "there is no release before this one" in failed.stdout
    assert current_release(service) == before


def test_another_address_is_used_from_the_next_restart_on(service: Service) -> None:
    """With a changed API_PORT or API_HOST, the server closes the kept socket and listens on the new address at once."""
    service.start()
    for host, port in (("127.0.0.1", 8889), ("0.0.0.0", 8889), ("0.0.0.0", 8888)):
        service.configure(API_HOST=host, API_PORT=port)
        service.systemctl("restart")
        # A client in the backlog of the closed socket is reset, so curl must ask again.
        service.run(
            find("curl", "curl"), "-sf", "--retry", "9", "--retry-all-errors", f"localhost:{port}/funding/health"
        )
        assert service.run(find("ss", "iproute2"), "-Hltn", f"sport = :{port}").stdout.split()[3] == f"{host}:{port}"
        assert (
            service.run(find("ss", "iproute2"), "-Hltn", "sport >= :8888 and sport <= :8889").stdout.count("LISTEN")
            == 1
        )
        assert service.show(SERVER, "NFileDescriptorStore") == "1"
    assert service.journal(SERVER, "-p", "warning") == []
