"""`make run` and `make demo` as their user meets them: how to ask, and nothing left behind."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.programs import ROOT, free_port
from tests.support.waiting import PATIENCE_S, eventually

DEAD_PROXY = {"http_proxy": "http://127.0.0.1:9", "no_proxy": ""}
"""A proxy of this host. The demo needs none."""
COMMAND = [sys.executable, str(ROOT / "packaging" / "foreground.py")]


@contextlib.contextmanager
def foreground(folder: Path, *arguments: str, under: str = "", **settings: object) -> Iterator[subprocess.Popen[str]]:
    """Run both programs in a folder, as arguments of another command if one is given. SIGTERM ends them."""
    environment = {**os.environ, **{name: str(value) for name, value in settings.items()}}
    with subprocess.Popen(
        [*under.split(), *COMMAND, *arguments],
        cwd=folder,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as programs:
        try:
            yield programs
        finally:
            programs.terminate()


def hint(programs: subprocess.Popen[str]) -> str:
    """Return the address in the line that says how to ask. Raises AssertionError if the programs end without it."""
    assert programs.stderr is not None
    lines: list[str] = []
    for line in programs.stderr:
        found = re.fullmatch(r"try: curl (http://\S+)", line.rstrip())
        if found:
            return found[1]
        lines.append(line)
    raise AssertionError("".join(lines))


def ask(address: str) -> int:
    """Get an address; return the status of the answer."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(address, timeout=PATIENCE_S) as response:
            status: int = response.status
            return status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def has_ipv6() -> bool:
    """Whether this machine has an IPv6 loopback address."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


def run(folder: Path, **settings: object) -> subprocess.CompletedProcess[str]:
    """Run the demo in a folder until it ends by itself."""
    return subprocess.run(
        [*COMMAND, "--demo"],
        cwd=folder,
        env={**os.environ, **{name: str(value) for name, value in settings.items()}},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )


def _alive(marker: str) -> list[int]:
    """Return the other processes in whose environment the marker stands."""
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if marker.encode() in environment.read_bytes():
                found.append(int(environment.parent.name))
    return [pid for pid in found if pid != os.getpid()]


@pytest.mark.parametrize(
    "signals",
    [
        pytest.param([signal.SIGINT], id="Ctrl-C"),
        pytest.param([signal.SIGINT, signal.SIGINT], id="Ctrl-C twice"),
        pytest.param([signal.SIGTERM], id="SIGTERM"),
        pytest.param([signal.SIGHUP], id="closed terminal"),
    ],
)
def test_demo_answers_and_leaves_nothing_behind(tmp_path: Path, signals: list[signal.Signals]) -> None:
    """It prints how to ask as soon as there is data. All three programs end with it."""
    marker, port = f"DEMO_TEST={tmp_path}", free_port()
    with foreground(tmp_path, "--demo", API_PORT=port, DEMO_TEST=tmp_path, **DEAD_PROXY) as demo:
        address = hint(demo)
        assert address == f"http://127.0.0.1:{port}/funding/BTCUSDT"
        assert ask(address) == 200
        assert len(_alive(marker)) == 4
        for signum in signals:
            demo.send_signal(signum)
            time.sleep(0.1)
        assert demo.wait(PATIENCE_S) == 0
    eventually(lambda: not _alive(marker), "all programs gone")


def test_under_nohup_a_closed_terminal_ends_nothing(tmp_path: Path) -> None:
    """A SIGHUP that is ignored at the start stays ignored; SIGTERM still ends all."""
    with foreground(tmp_path, "--demo", under="nohup", API_PORT=free_port()) as demo:
        address = hint(demo)
        demo.send_signal(signal.SIGHUP)
        time.sleep(1)  # nothing to wait for: nothing must happen
        assert ask(address) == 200
        assert demo.poll() is None
        demo.terminate()
        assert demo.wait(PATIENCE_S) == 0


@pytest.mark.parametrize(
    ("host", "reachable"),
    [
        ("0.0.0.0", "127.0.0.1"),
        pytest.param("::", "[::1]", marks=pytest.mark.skipif(not has_ipv6(), reason="NOT TESTED, no IPv6 here")),
    ],
)
def test_the_hint_names_an_address_that_can_be_asked(tmp_path: Path, host: str, reachable: str) -> None:
    """For a server on every address of the machine, the hint names the loopback address."""
    port = free_port()
    with foreground(tmp_path, "--demo", API_PORT=port, API_HOST=host) as demo:
        address = hint(demo)
        assert address == f"http://{reachable}:{port}/funding/BTCUSDT"
        assert ask(address) == 200


def test_where_there_is_no_data_the_hint_names_health(tmp_path: Path) -> None:
    """Without Binance no symbol is known, so the hint names health, which reports that."""
    nowhere = f"127.0.0.1:{free_port()}"
    addresses = {"BINANCE_WS_URLS": f"ws://{nowhere}/stream", "BINANCE_REST_URL": f"http://{nowhere}"}
    with foreground(tmp_path, API_PORT=free_port(), **addresses) as programs:
        address = hint(programs)
        assert address.endswith("/funding/health")
        assert ask(address) == 503


def test_nobody_is_sent_to_somebody_elses_server(tmp_path: Path) -> None:
    """If the port is taken, the server reports that, and no hint follows."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        demo = run(tmp_path, API_PORT=taken.getsockname()[1])
    assert demo.returncode == 69
    assert "address already in use" in demo.stderr
    assert "curl" not in demo.stderr


def test_a_wrong_setting_is_reported_once(tmp_path: Path) -> None:
    """No program is started, and one line names the setting."""
    demo = run(tmp_path, API_PORT="nonsense")
    assert demo.returncode == 78
    assert len(demo.stderr.splitlines()) == 1


def test_a_demo_without_its_exchange_does_not_ask_binance(tmp_path: Path) -> None:
    """If the simulated exchange cannot start, no daemon is started: it would ask Binance."""
    (tmp_path / "websockets.py").write_text("raise ImportError('no such library here')\n")
    demo = run(tmp_path, API_PORT=free_port())
    assert demo.returncode == 69
    assert "no such library here" in demo.stderr
    assert "starting" not in demo.stderr
