"""The settlement history under the shipped units, in which the server runs as another user than the daemon."""

from tests.support.installed import DAEMON, HISTORY_DIRECTORY, HISTORY_FILE, SERVER, Service
from tests.support.tools import find
from tests.support.waiting import eventually

CSV = "http://127.0.0.1:8888/funding/BTCUSDT/history?format=csv"
OLDER_UNIT = (
    "sed -i /HISTORY_FILE/d binance-funding-*.service; "
    "sed -i -e /^StateDirectory/d -e 's| /var/lib/binance-funding$||' binance-funding-ws.service"
)


def rows(service: Service) -> int:
    """Return how many settlements curl gets as CSV."""
    answer = service.run(find("curl", "curl"), "-s", CSV, check=False).stdout.splitlines()
    return len(answer) - 1 if answer and answer[0].startswith("fundingTime,") else 0


def wait_for_rows(service: Service) -> int:
    """Wait until the history has the three settlements of BTCUSDT in a day; return how many there are."""
    return eventually(lambda: rows(service) >= 3 and rows(service), "three settlements", 60)


def test_the_server_reads_it_as_another_user(service: Service) -> None:
    """Everybody may read it, and only the daemon may write it."""
    service.start()
    wait_for_rows(service)
    uids = {service.run("stat", "-c", "%u", f"/proc/{service.pid(unit)}").stdout for unit in (DAEMON, SERVER)}
    assert len(uids) == 2
    assert service.run("stat", "-c", "%U %a", HISTORY_FILE).stdout.strip() == "binance-funding 644"
    assert service.run("stat", "-c", "%a", HISTORY_DIRECTORY).stdout.strip() == "755"


def test_it_outlives_a_reinstallation(service: Service) -> None:
    """`make uninstall` keeps it, and the next installation goes on with it, whoever its user is then."""
    service.start()
    before = wait_for_rows(service)
    service.run("sh", "/opt/binance-funding/current/packaging/install.sh", "uninstall")
    # The user that the next installation creates may get another number.
    service.run("chown", "-R", "12345:12345", HISTORY_DIRECTORY)
    service.install()
    service.configure(HISTORY_DAYS=1, BINANCE_REST_URL="http://127.0.0.1:1")
    service.systemctl("start")
    eventually(lambda: rows(service) == before, "the old settlements")
    service.configure()
    service.systemctl("restart")
    service.wait_until_healthy()
    eventually(lambda: service.state()["funding_state"]["BTCUSDT"]["settledFundingRate"], "a settlement in the record")


def test_an_upgrade_from_units_without_history_begins_one(service: Service) -> None:
    """As release 1.1 had them. Its settings file stays as it was."""
    service.install(clone=service.changed_clone(OLDER_UNIT))
    service.configure(HISTORY_DAYS=0)
    service.start()
    assert service.run("test", "-e", HISTORY_DIRECTORY, check=False).returncode != 0
    service.install()
    service.configure()
    service.systemctl("restart")
    service.wait_until_healthy()
    wait_for_rows(service)
