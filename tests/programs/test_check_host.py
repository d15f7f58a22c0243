"""`--check` of what belongs to this host: settings, state file, port; and beside a daemon that runs."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.exchange import Exchange
from tests.support.host_check import STEPS, HostCheck, check_host
from tests.support.programs import ROOT, STATE_FILE, Daemon, Server, free_port
from tests.support.waiting import PATIENCE_S, eventually


def test_a_host_where_all_is_well_passes(exchange: Exchange, tmp_path: Path) -> None:
    """Every step has an `ok` line, and nothing stays behind."""
    report = check_host(exchange, tmp_path)
    assert report.failures == []
    assert [step for step in STEPS if report.of(step)] == STEPS
    assert list(tmp_path.iterdir()) == []
    eventually(lambda: not exchange.live, "the end of its connection")
    assert [record.close_code for record in exchange.connections] == [1000]


# Settings


def test_settings_that_were_given_are_shown_with_their_place(exchange: Exchange, tmp_path: Path) -> None:
    """The environment or .env; the others are at their defaults."""
    (tmp_path / ".env").write_text("STALE_SECONDS=77\nAPI_PORT=1\n", encoding="utf-8")
    (line,) = check_host(exchange, tmp_path).of("settings")
    assert "STALE_SECONDS=77 (.env), " in line
    assert f"BINANCE_REST_URL={exchange.rest_url} (environment), " in line
    assert "API_PORT=1 (.env)" not in line
    assert ", all others at their defaults" in line


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"STALE_SECONDS": "soon"}, "STALE_SECONDS='soon' is not allowed"),
        ({"SSL_CERT_FILE": "/nonexistent"}, "SSL_CERT_FILE='/nonexistent' holds no certificates"),
    ],
)
def test_wrong_settings_fail_at_the_first_step(
    exchange: Exchange, tmp_path: Path, settings: dict[str, str], fault: str
) -> None:
    """With what is allowed; nothing else is tried."""
    report = check_host(exchange, tmp_path, **settings)
    assert report.failure.startswith(f"FAIL settings: {fault}")
    assert report.failure.endswith("; correct it in the environment or in .env")
    assert len(report.lines) == 1


@pytest.mark.parametrize(("path", "why"), [("nowhere/state.json", "no such directory"), (".", "not a regular file")])
def test_a_place_that_cannot_be_fails_at_the_state_file(
    exchange: Exchange, tmp_path: Path, path: str, why: str
) -> None:
    """The other steps are taken all the same."""
    report = check_host(exchange, tmp_path, STATE_FILE=tmp_path / path)
    assert report.failure.startswith(f"FAIL state file: {tmp_path / path} cannot be written: ")
    assert why in report.failure
    assert report.of("REST")


# State file


def test_a_full_disk_fails_at_the_state_file(exchange: Exchange, small_disk: Path) -> None:
    """The file has to fit; what was written to try that is gone again."""
    report = check_host(exchange, small_disk)
    assert report.failure.startswith(
        f"FAIL state file: {small_disk}/{STATE_FILE} cannot be written: no space left on device; "
    )
    assert list(small_disk.iterdir()) == []
    assert shutil.disk_usage(small_disk).used == 0


def test_a_read_only_folder_fails_at_the_state_file(exchange: Exchange, small_disk: Path) -> None:
    """With what can be done about it."""
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    report = check_host(exchange, small_disk)
    assert " cannot be written: read-only file system; " in report.failure
    assert report.failure.endswith("set STATE_FILE to another place")


def test_a_lock_of_somebody_else_fails_at_the_state_file(exchange: Exchange, tmp_path: Path) -> None:
    """The daemon could not take it either."""
    (tmp_path / f"{STATE_FILE}.lock").symlink_to("/nowhere")
    report = check_host(exchange, tmp_path)
    assert report.failure.startswith(f"FAIL state file: {tmp_path}/{STATE_FILE} cannot be written: ")


def test_a_daemon_that_hangs_fails_at_the_state_file(exchange: Exchange, tmp_path: Path) -> None:
    """It holds the file, and does not write it any more."""
    with Daemon(exchange, tmp_path) as daemon:
        daemon.wait_for_live()
        daemon.process.send_signal(signal.SIGSTOP)
        try:
            written_s = (tmp_path / STATE_FILE).stat().st_mtime
            eventually(lambda: time.time() - written_s > 3, "its file to be old")
            report = check_host(exchange, tmp_path, HEARTBEAT_SECONDS=0.5)
        finally:
            daemon.process.send_signal(signal.SIGCONT)
        held = f"the daemon with pid {daemon.process.pid} holds {tmp_path}/{STATE_FILE}, but no longer writes it"
    assert report.failure.startswith(f"FAIL state file: {held} (written ")
    assert "restart a daemon that hangs" in report.failure


# Beside what runs


def test_a_daemon_and_a_server_that_run_notice_nothing(exchange: Exchange, tmp_path: Path) -> None:
    """All is well, both are named, and neither their logs nor their counts show anything of it."""
    with Daemon(exchange, tmp_path) as daemon, Server(tmp_path) as server:
        daemon.wait_for_live()
        daemon.wait_for_line("connected", count=2)
        logs = daemon.log, server.log
        report = check_host(exchange, tmp_path, API_PORT=server.port)
        assert report.failures == []
        pid = daemon.process.pid
        assert report.of("state file")[0].startswith(f"ok   state file: {tmp_path}/{STATE_FILE} was written 0.")
        assert report.of("state file")[0].endswith(f" s ago by the running daemon, pid {pid}")
        address = f"127.0.0.1:{server.port}"
        assert report.of("HTTP port") == [f"ok   HTTP port: {address} is answered by our own server already"]
        daemon.wait_for_newer_data()
        assert (daemon.log, server.log) == logs
        counts = ("disconnects", "planned_disconnects", "reconnect_attempts", "connections", "rejected_rows")
        assert [daemon.status()[name] for name in counts] == [0, 0, 0, 2, 0]
        assert (tmp_path / f"{STATE_FILE}.lock").read_text().strip() == str(pid)


def test_a_check_does_not_keep_a_daemon_from_starting(exchange: Exchange, tmp_path: Path) -> None:
    """While it runs, it holds neither the file nor the port."""
    port = free_port()
    (tmp_path / f"{STATE_FILE}.lock").touch(mode=0o600)  # as an earlier daemon leaves it
    waiting = {"BINANCE_WS_URLS": exchange.retired_url, "SILENCE_SECONDS": 3, "API_PORT": port}
    with HostCheck(exchange, tmp_path, **waiting) as check:
        check.wait_for_line("state file")
        with Daemon(exchange, tmp_path) as daemon, Server(tmp_path, API_PORT=port):
            daemon.wait_for_live()
        check.report()


# Port


def test_a_port_that_somebody_else_has_fails(exchange: Exchange, tmp_path: Path) -> None:
    """Whatever it answers, or does not."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        report = check_host(exchange, tmp_path, API_PORT=port)
    assert report.failure.startswith(f"FAIL HTTP port: 127.0.0.1:{port} cannot be used: address already in use; ")
    assert "API_PORT to a free port" in report.failure


def test_an_address_of_another_host_fails_at_the_port(exchange: Exchange, tmp_path: Path) -> None:
    """One from the documentation's network: nobody has it."""
    report = check_host(exchange, tmp_path, API_HOST="192.0.2.1", API_PORT=8888)
    assert report.failure.startswith("FAIL HTTP port: 192.0.2.1:8888 cannot be used: cannot assign requested address; ")
    assert "set API_HOST to an address of this host" in report.failure


# What becomes of it


def test_it_ends_within_20_s_whatever_hangs(exchange: Exchange, tmp_path: Path) -> None:
    """Here a name server that does not answer, for which no deadline of a socket holds."""
    if os.geteuid() != 0 or subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    server = "127.53.0.1"
    (tmp_path / "resolv.conf").write_text(f"nameserver {server}\noptions timeout:30 attempts:5\n", encoding="ascii")
    program = f'exec "{sys.executable}" "{ROOT}/binance_funding_ws_daemon.py" --check'
    script = f'mount --bind resolv.conf "$(readlink -f /etc/resolv.conf)" && {program}'
    settings = {"BINANCE_WS_URLS": "wss://stream.example/market/stream", "BINANCE_REST_URL": exchange.rest_url}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind((server, 53))
        start_s = time.monotonic()
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", script],
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "API_PORT": str(free_port()), **settings},
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
        took_s = time.monotonic() - start_s
    assert "FAIL DNS: stream.example: no answer within 17 s; see why `getent hosts stream.example` fails" in done.stdout
    assert "ok   REST: " in done.stdout
    assert done.returncode == 1
    assert took_s < 25, "20 s, and what a busy machine takes to start it"


def test_whoever_reads_only_the_first_line_sees_no_traceback(exchange: Exchange, tmp_path: Path) -> None:
    """`--check | head -1`."""
    program = f'"{sys.executable}" "{ROOT}/binance_funding_ws_daemon.py" --check | head -1'
    settings = {"BINANCE_WS_URLS": exchange.ws_url, "BINANCE_REST_URL": exchange.rest_url}
    done = subprocess.run(
        ["sh", "-c", program],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], **settings},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.stderr == ""
    assert done.stdout.startswith("ok   settings: ")


def test_ctrl_c_ends_it_without_a_traceback(exchange: Exchange, tmp_path: Path) -> None:
    """At once."""
    exchange.hang_handshakes()
    with HostCheck(exchange, tmp_path, SILENCE_SECONDS=20) as check:
        exchange.wait(lambda: exchange.attempts, what="its handshake")
        check.terminate(signal.SIGINT)
        assert check.process.returncode == -signal.SIGINT
        assert not any("Traceback" in line for line in check.log)
