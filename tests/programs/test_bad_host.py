"""A host that has a bad day: disk, file, clock, a pause, and a bug of our own."""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.exchange import Exchange
from tests.support.bad_days import logs_calmly, recovers
from tests.support.programs import ROOT, STATE_FILE, Daemon, Server
from tests.support.sampling import oldest_age_s
from tests.support.waiting import eventually


def fill(path: Path) -> None:
    """Write a file until the disk is full."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)


def test_full_disk_keeps_the_last_file_and_is_mended(exchange: Exchange, small_disk: Path) -> None:
    """The old file stays whole, the trouble is logged once, and writing goes on when there is room."""
    with Daemon(exchange, small_disk) as daemon:
        daemon.wait_for_live()
        fill(small_disk / "ballast")
        daemon.wait_for_line("ERROR +state file not written cause=.*no space left")
        assert len(daemon.records()) == 25
        (small_disk / "ballast").unlink()
        daemon.wait_for_line("state file written again")
        recovers(daemon)
        logs_calmly(daemon)


def test_read_only_folder_is_told_and_mended(exchange: Exchange, small_disk: Path) -> None:
    """Remounted read-only and back: logged once, mended by itself."""
    with Daemon(exchange, small_disk) as daemon:
        daemon.wait_for_live()
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
        daemon.wait_for_line("ERROR +state file not written cause=.*read-only file system")
        subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
        daemon.wait_for_line("state file written again")
        recovers(daemon)
        logs_calmly(daemon)


@pytest.mark.parametrize("damage", ["deleted", "truncated", "junk", "link to nowhere"])
def test_damaged_state_file_is_replaced_by_the_next_write(exchange: Exchange, tmp_path: Path, damage: str) -> None:
    """Whatever is done to the file, the next write makes it whole."""
    path = tmp_path / STATE_FILE
    with Daemon(exchange, tmp_path) as daemon:
        daemon.wait_for_live()
        if damage == "deleted":
            path.unlink()
        elif damage == "truncated":
            os.truncate(path, 100)
        elif damage == "junk":
            path.write_bytes(b"\xff\x00junk")
        else:
            link = tmp_path / "link"
            link.symlink_to("/nowhere")
            link.replace(path)
        recovers(daemon)
        logs_calmly(daemon)


CLOCK_THAT_CAN_BE_SET = """
import os, time
real_time = time.time
def shifted_time():
    try:
        with open(os.environ["SHIFT_FILE"]) as file:
            return real_time() + float(file.read() or 0)
    except FileNotFoundError:
        return real_time()
time.time = shifted_time
"""


@pytest.mark.parametrize("jump_s", [3600, -3600])
def test_clock_that_jumps_an_hour_disturbs_nothing(exchange: Exchange, tmp_path: Path, jump_s: int) -> None:
    """No connection is dropped, no fallback, no gap; the times in the file follow, and the offset is logged."""
    (tmp_path / "sitecustomize.py").write_text(CLOCK_THAT_CAN_BE_SET)
    shift = tmp_path / "shift"
    settings: dict[str, Any] = {"PYTHONPATH": tmp_path, "SHIFT_FILE": shift}
    with Daemon(exchange, tmp_path, **settings) as daemon, Server(tmp_path, **settings) as server:
        daemon.wait_for_live()
        eventually(lambda: server.get("/funding/health")[1]["status"] == "healthy", "health")
        started_s = time.monotonic()
        uptime_s = server.get("/funding/health")[1]["uptimeSeconds"]
        before = daemon.state()["updated_at"]
        (tmp_path / "new").write_text(str(jump_s))
        (tmp_path / "new").rename(shift)
        eventually(lambda: abs(daemon.state()["updated_at"] - before - jump_s) < 60, "the new time in the file")
        daemon.wait_for_line("WARNING clock cause=.*differs.*next=.check NTP")
        recovers(daemon)
        state = daemon.state()
        ages_s = [state["updated_at"] - record["updatedAt"] for record in state["funding_state"].values()]
        assert all(-1 < age_s < 30 for age_s in ages_s)
        assert state["connection_status"]["disconnects"] == 0
        assert state["connection_status"]["clock_offset_seconds"] == pytest.approx(-jump_s, abs=5)
        assert state["gaps"] == []
        eventually(lambda: server.get("/funding/health")[1]["status"] == "healthy", "health")
        assert server.get("/funding/BTCUSDT")[1]["ageSeconds"] < 30
        uptime_s -= server.get("/funding/health")[1]["uptimeSeconds"]
        assert -uptime_s == pytest.approx(time.monotonic() - started_s, abs=2)
        logs_calmly(daemon)


def test_thread_that_dies_of_a_bug_ends_the_process(exchange: Exchange, tmp_path: Path) -> None:
    """A bug must not leave a daemon that looks alive: non-zero status, and the traceback once."""
    (tmp_path / "sitecustomize.py").write_text(
        "import binance_funding.daemon.output.publisher as p\n"
        "def render(self, rates, *more):\n"
        "    if rates:\n"
        "        raise RuntimeError('a bug')\n"
        "    return original(self, rates, *more)\n"
        "original, p.Renderer.render = p.Renderer.render, render\n"
    )
    path = f"{tmp_path}:{ROOT}"
    with Daemon(exchange, tmp_path, PYTHONPATH=path) as daemon:
        assert daemon.wait() == 70
        assert any("thread died thread=publisher" in line for line in daemon.log)
        assert sum("Traceback" in line for line in daemon.log) == 1


@pytest.mark.parametrize("pause_s", [12])
def test_pause_of_the_whole_process_loses_no_connection(exchange: Exchange, tmp_path: Path, pause_s: float) -> None:
    """Stopped and continued, it reads what has come meanwhile before it judges anybody silent, or a thread stuck."""
    with Daemon(exchange, tmp_path) as daemon:
        daemon.wait_for_live()
        daemon.process.send_signal(signal.SIGSTOP)
        time.sleep(pause_s)
        daemon.process.send_signal(signal.SIGCONT)
        recovers(daemon)
        assert daemon.status()["disconnects"] == 0
        assert not any(" ERROR " in line for line in daemon.log), "\n".join(daemon.log)
        logs_calmly(daemon)


@pytest.mark.parametrize("ahead_s", [60.0, 9.0, 4.0])
def test_binance_ahead_of_what_is_known_is_current_again_within_20_s(
    exchange: Exchange, tmp_path: Path, ahead_s: float
) -> None:
    """So it looks from a virtual machine that was paused without its clocks; and a restart starts from the truth."""
    with Daemon(exchange, tmp_path) as daemon:
        daemon.wait_for_live()
        eventually(lambda: daemon.status()["clock_offset_seconds"] is not None, "Binance's time")
        exchange.clock_offset_s = ahead_s
        eventually(lambda: daemon.records() and oldest_age_s(exchange, daemon) < 2, "current data", 20)
        eventually(lambda: abs(daemon.status()["clock_offset_seconds"] - ahead_s) < 1, "the right time", 20)
        assert daemon.status()["disconnects"] == 0
        logs_calmly(daemon)
        daemon.terminate()
    exchange.clock_offset_s = 2 * ahead_s
    with Daemon(exchange, tmp_path) as daemon:
        eventually(lambda: daemon.records() and oldest_age_s(exchange, daemon) < 2, "current data", 20)
        eventually(lambda: abs((daemon.status()["clock_offset_seconds"] or 0) - 2 * ahead_s) < 1, "the right time", 20)
        assert daemon.status()["rejected_rows"] == 0
