"""`make install`, again, failing, and `make uninstall`."""

import re

import pytest

from tests.support.installed import DAEMON, PREFIX, SERVER, SETTINGS_FILE, Installation, Service
from tests.support.machine import CLONE
from tests.support.waiting import eventually


def test_installation_starts_nothing_and_says_what_is_next(installation: Installation) -> None:
    """After `make install` nothing runs yet, and the operator knows what to type."""
    assert not installation.started
    assert "systemctl enable --now binance-funding-ws" in installation.said


def test_everybody_can_read_the_installation(service: Service) -> None:
    """A strict umask during the installation does not keep the services' users from its files, bytecode included."""
    assert service.run("find", PREFIX, "!", "-type", "l", "!", "-perm", "-o=r").stdout == ""
    assert service.run("find", PREFIX, "-type", "d", "!", "-perm", "-o=x").stdout == ""
    package = f"{PREFIX}/current/binance_funding"
    sources = service.run("find", package, "-name", "*.py").stdout.split()
    compiled = service.run("find", package, "-name", "*.pyc").stdout.split()
    assert {"daemon", "server"} <= {source.split("/")[-2] for source in sources}
    assert len(compiled) == len(sources)


def test_what_the_documentation_refers_to_is_installed_too(service: Service) -> None:
    """The links in the README and in the pages for operators lead to installed files."""
    release = service.machine.path(f"{PREFIX}/{service.run('readlink', f'{PREFIX}/current').stdout.strip()}")
    # development.md links to files of the clone.
    pages = [page for page in release.glob("docs/**/*.md") if page.name != "development.md"]
    assert len(pages) >= 5
    for page in [release / "README.md", *pages]:
        links = re.findall(r"\]\((?!https?:)([^)#]+)[)#]", page.read_text(encoding="utf-8"))
        assert [link for link in links if not (page.parent / link).exists()] == [], page.name


def test_installed_settings_are_the_defaults(service: Service, installation: Installation) -> None:
    """All settings are commented out. Uncommented, systemd and both programs accept them."""
    assert [line for line in installation.settings.splitlines() if line and not line.startswith("#")] == []
    uncommented, count = re.subn(r"^#([A-Z_]+=)", r"\1", installation.settings, flags=re.MULTILINE)
    assert count >= 17
    service.write(SETTINGS_FILE, uncommented)
    service.systemctl("start")
    eventually(lambda: service.health()[0] == 503, "the server to answer")
    assert service.state()["funding_state"] == {}


def test_upgrade_over_a_running_service(service: Service) -> None:
    """A second `make install` leaves processes and settings alone; the new programs run after a restart.

    The running programs keep their files until then: the release before stays installed, older releases do not.
    """
    service.start()
    service.machine.path(SETTINGS_FILE).open("a").write("# mine\n")
    settings = service.machine.path(SETTINGS_FILE).read_bytes()
    old = service.pid(DAEMON), service.pid(SERVER)
    of_old = service.run("readlink", "-f", f"{PREFIX}/current").stdout.strip()
    said = service.install(clone=service.changed_clone("echo '__version__ = \"next\"' >>binance_funding/__init__.py"))
    assert "systemctl restart binance-funding-ws" in said
    assert service.machine.path(SETTINGS_FILE).read_bytes() == settings
    assert (service.pid(DAEMON), service.pid(SERVER)) == old
    assert service.get("/funding/BTCUSDT")[0] == 200
    service.systemctl("restart")
    service.wait_until_healthy()
    release = service.run("readlink", "-f", f"{PREFIX}/current").stdout.strip()
    assert service.get("/")[1]["version"] == "next"
    assert any(line.startswith("starting ") and "version=next" in line for line in service.journal())
    assert service.releases() == {of_old, release}
    service.install()
    assert len(service.releases()) == 2
    assert of_old not in service.releases()


@pytest.mark.parametrize(
    ("module", "fault", "reason"),
    [
        ("daemon/supervisor.py", "import nothing", "binance_funding_ws_daemon.py does not run"),
        ("server/report.py", "import", "the programs do not compile"),
    ],
)
def test_failed_upgrade_changes_nothing(service: Service, module: str, fault: str, reason: str) -> None:
    """A failed installation neither replaces the current release nor leaves files behind."""
    clone = service.changed_clone(f"echo '{fault}' >>binance_funding/{module}")
    before = service.run("find", PREFIX, "-maxdepth", "1").stdout, service.machine.path(f"{PREFIX}/current").readlink()
    failed = service.run("make", "-C", clone, "install", check=False, host_network=True, timeout_s=120)
    assert failed.returncode != 0
    assert reason in failed.stdout
    after = service.run("find", PREFIX, "-maxdepth", "1").stdout, service.machine.path(f"{PREFIX}/current").readlink()
    assert after == before


def test_uninstallation_leaves_the_settings_only(service: Service) -> None:
    """The installed script removes a running, enabled service completely. `make uninstall` then has nothing to do."""
    service.systemctl("enable")
    service.start()
    settings = service.machine.path(SETTINGS_FILE).read_bytes()
    for command in (f"sh {PREFIX}/current/packaging/install.sh uninstall", f"make -C {CLONE} uninstall"):
        service.run("sh", "-c", command)
        search = ("find", "/etc", "/opt", "/run", "/usr", "/var", "-xdev", "-name", "*binance-funding*")
        assert service.run(*search).stdout.split() == [SETTINGS_FILE]
        assert service.run("systemctl", "list-units", "--all", "--no-legend", "binance-funding-*").stdout == ""
        assert service.run("id", "binance-funding", check=False).returncode != 0
    assert service.machine.path(SETTINGS_FILE).read_bytes() == settings
