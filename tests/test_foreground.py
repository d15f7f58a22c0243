"""`make demo` as its user ends it: nothing may be left behind."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.programs import PATIENCE_S, ROOT, eventually, free_port


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
    """It says how to ask when somebody listens; all three programs end with it, however it is ended."""
    marker = f"DEMO_TEST={tmp_path}"
    port = free_port()
    environment = {**os.environ, "API_PORT": str(port), "DEMO_TEST": str(tmp_path)}
    command = [sys.executable, str(ROOT / "packaging" / "foreground.py"), "--demo"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as demo:
        assert demo.stderr is not None
        lines: list[str] = []
        while not (lines and lines[-1].startswith("try: curl")):
            lines.append(demo.stderr.readline())
            assert lines[-1], lines
        assert f"http://127.0.0.1:{port}/" in lines[-1]
        assert len(_alive(marker)) == 4
        for signum in signals:
            demo.send_signal(signum)
            time.sleep(0.1)
        assert demo.wait(PATIENCE_S) == 0
    eventually(lambda: not _alive(marker), "all programs gone")


def test_nobody_is_sent_to_somebody_elses_server(tmp_path: Path) -> None:
    """Where the port is taken, the server says so, and there is no hint how to ask it."""
    command = [sys.executable, str(ROOT / "packaging" / "foreground.py"), "--demo"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        environment = {**os.environ, "API_PORT": str(taken.getsockname()[1])}
        demo = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE_S
        )
    assert demo.returncode == 69
    assert "address already in use" in demo.stderr
    assert "curl" not in demo.stderr


def test_a_wrong_setting_is_told_once(tmp_path: Path) -> None:
    """Nothing is started, and nothing is said twice."""
    command = [sys.executable, str(ROOT / "packaging" / "foreground.py"), "--demo"]
    environment = {**os.environ, "API_PORT": "nonsense"}
    answer = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE_S)
    assert answer.returncode == 78
    assert len(answer.stderr.splitlines()) == 1
