"""`--check` of an installed service: its user, its settings, its restrictions, in one command."""

from tests.support.installed import DAEMON, PREFIX, STATE_DIRECTORY, STATE_FILE, Service
from tests.support.programs import free_port

CHECK = f"{PREFIX}/current/check"


def test_the_installed_service_is_checked_as_it_runs(service: Service) -> None:
    """`check` works before the first start, beside the running service, and with a drop-in. It disturbs nothing."""
    before = service.run(CHECK).stdout
    assert f"ok   state file: {STATE_FILE} can be written, and no daemon writes it now" in before
    assert f"BINANCE_REST_URL={service.exchange.rest_url} (environment)" in before
    assert "ok   HTTP port: 127.0.0.1:8888 is free" in before
    assert "FAIL" not in before
    owner = service.run("stat", "--format=%U", STATE_DIRECTORY).stdout.strip()
    assert owner == "binance-funding"

    service.start()
    pid, log = service.pid(DAEMON), service.journal()
    beside = service.run(CHECK).stdout
    assert f" s ago by the running daemon, pid {pid}" in beside
    assert "ok   HTTP port: 127.0.0.1:8888 is answered by our own server already" in beside
    assert "FAIL" not in beside
    assert (service.pid(DAEMON), service.journal()) == (pid, log)
    service.wait_until_healthy()

    port = free_port()
    service.drop_in(DAEMON, f"Environment=http_proxy=http://127.0.0.1:{port} no_proxy=127.0.0.1")
    service.configure(BINANCE_WS_URLS="ws://exchange.example/market/stream?streams=!markPrice@arr")
    failing = service.run(CHECK, check=False)
    assert failing.returncode == 1
    assert "FAIL proxy: exchange.example: connection refused; start that proxy, correct http_proxy" in failing.stdout
