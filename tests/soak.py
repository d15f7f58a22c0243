"""A whole day of faults in minutes: the real daemon, the simulated exchange, every interval divided by the speed.

`python -m tests.soak --speed 60 --hours 24 --seed 1` prints what was done and a report, and ends with status 1 if
data grew too old while either stream or REST could be had, or if memory, descriptors or threads leaked. The same seed
makes the same faults at the same times.

All seconds that are printed are the day's, not the clock's. What the daemon takes to notice and to attempt again is
not sped up (REST looks at the stream every second, attempts have an allowance), and at this speed a host that stands
still for a tenth of a second costs 6 s: run it on one that has nothing else to do.
"""

import argparse
import contextlib
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tests.exchange import ALL, FUTURE, Exchange, Market
from tests.support.programs import Daemon
from tests.support.waiting import eventually

MEMORY_GROWTH_KB = 5 * 1024
HOUR_S = 3600.0

# What the daemon may take, on the clock, to notice that the stream is gone, and to find the exchange again.
RECOVERY_CLOCK_S = 2.5

# A sixth of what Binance grants: with faults that often, no connection would live to see its 24th hour.
_LIFETIME_S = 14_400

_SETTINGS_S = {
    "STALE_SECONDS": 180,
    "SILENCE_SECONDS": 15,
    "CONNECTION_MAX_AGE_SECONDS": _LIFETIME_S * 23 / 24,
    "RECONNECT_MIN_SECONDS": 0.5,
    "RECONNECT_MAX_SECONDS": 60,
    "REST_POLL_SECONDS": 60,
    "REST_FALLBACK_SECONDS": 10,
    "REST_TIMEOUT_SECONDS": 10,
    "HEARTBEAT_SECONDS": 5,
}


class Resources(NamedTuple):
    """What a process holds."""

    memory_kb: int
    descriptors: int
    threads: int


def resources(pid: int) -> Resources:
    """Read what a process holds from /proc."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    values = dict(line.split(":", 1) for line in status.splitlines())
    return Resources(
        int(values["VmRSS"].split()[0]), len(os.listdir(f"/proc/{pid}/fd")), int(values["Threads"].split()[0])
    )


@dataclass
class Watch:
    """Follows the state file: how old its oldest record is as of the exchange, outages of everything apart."""

    exchange: Exchange
    daemon: Daemon
    speed: float
    outages: list[tuple[float, float]] = field(default_factory=list)
    """Wall times between which nothing could be had, the recovery included."""
    stop: threading.Event = field(default_factory=threading.Event)
    ages: list[tuple[float, float]] = field(default_factory=list)
    """Wall time and age in seconds of the clock, for every look."""

    def run(self) -> None:
        """Look a hundred times a second."""
        while not self.stop.wait(0.01):
            oldest_ms = min((record["eventTime"] for record in self.daemon.records().values()), default=None)
            if oldest_ms is not None:
                self.ages.append((time.time(), (self.exchange.now_ms() - oldest_ms) / 1000))

    def worst(self) -> tuple[float, float]:
        """Return wall time and greatest age, in seconds of the day, outside of outages."""
        calm = [
            (at_s, age_s * self.speed)
            for at_s, age_s in self.ages
            if not any(begin_s <= at_s <= until_s for begin_s, until_s in self.outages)
        ]
        return max(calm, key=lambda look: look[1])

    def most_s(self) -> float:
        """Return the greatest age allowed, in seconds of the day: until noticed, and until REST has answered."""
        return _SETTINGS_S["SILENCE_SECONDS"] + _SETTINGS_S["REST_FALLBACK_SECONDS"] + RECOVERY_CLOCK_S * self.speed


class Day:
    """Decides the faults of one day from a seed, and makes them happen."""

    def __init__(self, exchange: Exchange, watch: Watch, speed: float, seed: int) -> None:
        self._exchange = exchange
        self._watch = watch
        self._speed = speed
        self._random = random.Random(seed)
        self.done: list[str] = []
        self._faults: list[tuple[int, Callable[[], None]]] = [
            (8, self._lose_one),
            (2, self._lose_all),
            (3, self._rest_fails),
            (2, self._stream_lags),
            (1, self._stream_down),
            (1, self._all_down),
        ]

    def run(self, hours: float) -> None:
        """Let a fault happen about every 40 minutes, for so many hours of the day."""
        end_s = time.monotonic() + hours * HOUR_S / self._speed
        weights, faults = zip(*self._faults, strict=True)
        while time.monotonic() < end_s:
            self._pass(self._random.uniform(1200, 3600))
            self._random.choices(faults, weights)[0]()
        self._pass(600)

    def _pass(self, seconds: float) -> None:
        time.sleep(seconds / self._speed)

    def _note(self, what: str) -> None:
        self.done.append(what)
        print(f"  {what}", flush=True)

    def _lose_one(self) -> None:
        ways = ["drop", "reset", "stall", "silence", "stand_still", "send_half_frame", "trickle", "close", "lag"]
        way = self._random.choice(ways)
        if len(self._exchange.live) < 2:
            return
        record = self._exchange.live[self._random.randrange(2)]
        self._note(f"one connection: {way}")
        options = {"growing_s_per_s": 0.5} if way == "lag" else {}
        getattr(self._exchange, way)(which=record, **options)

    def _lose_all(self) -> None:
        way = self._random.choice(["drop", "reset", "close"])
        self._note(f"all connections at once: {way}")
        getattr(self._exchange, way)()

    def _rest_fails(self) -> None:
        ways = ["rest_hang", "rest_html", "rest_empty", "rest_garbage", "rest_reset", "rest_trickle"]
        way = self._random.choice(ways)
        minutes = self._random.uniform(5, 40)
        self._note(f"REST for {minutes:.0f} min: {way}")
        getattr(self._exchange, way)()
        self._pass(minutes * 60)
        self._exchange.rest_ok()

    def _stream_lags(self) -> None:
        minutes = self._random.uniform(4, 15)
        self._note(f"stream lags for {minutes:.0f} min")
        with contextlib.suppress(LookupError):
            self._exchange.lag(ALL, growing_s_per_s=0.5)
        self._exchange.lag(FUTURE, behind_s=60 / self._speed)
        self._pass(minutes * 60)
        self._exchange.behave(FUTURE)
        with contextlib.suppress(LookupError):
            self._exchange.behave(ALL)

    def _stream_down(self) -> None:
        self._down_for("stream", rest=False)

    def _all_down(self) -> None:
        begin_s = time.time()
        self._down_for("everything", rest=True)
        self._watch.outages.append((begin_s, time.time() + RECOVERY_CLOCK_S))

    def _down_for(self, what: str, *, rest: bool) -> None:
        minutes = self._random.uniform(4, 15)
        self._note(f"{what} down for {minutes:.0f} min")
        self._exchange.down(rest=rest)
        self._pass(minutes * 60)
        self._exchange.up(rest=rest)


def _settings(speed: float) -> dict[str, str]:
    return {name: f"{seconds / speed:.6f}" for name, seconds in _SETTINGS_S.items()}


def _settled(daemon: Daemon) -> Resources:
    """Read the resources once both connections have been live for a while."""
    daemon.wait_for_live()
    time.sleep(3)
    daemon.wait_for_live()
    return resources(daemon.process.pid)


def _report(day: Day, watch: Watch, status: dict[str, Any], before: Resources, after: Resources) -> list[str]:
    """Print the report; return what is not as it should be."""
    worst_at_s, worst_s = watch.worst()
    print(f"faults made            {len(day.done)}")
    print(f"worst data age         {worst_s:.1f} s, at most {watch.most_s():.1f} s, while stream or REST could be had")
    print(f"disconnections         {status['disconnects']} unplanned, {status['planned_disconnects']} planned")
    print(f"attempts after failure {status['reconnect_attempts']}")
    print(f"memory                 {before.memory_kb} kB -> {after.memory_kb} kB")
    print(f"descriptors            {before.descriptors} -> {after.descriptors}")
    print(f"threads                {before.threads} -> {after.threads}")
    faults = [f"data {worst_s:.1f} s old at {worst_at_s:.3f}"] if worst_s > watch.most_s() else []
    if after.memory_kb - before.memory_kb > MEMORY_GROWTH_KB:
        faults.append("memory grew by more than 5 MB")
    if after.descriptors > before.descriptors:
        faults.append("descriptors leaked")
    if after.threads > before.threads:
        faults.append("threads leaked")
    if status["planned_disconnects"] == 0:
        faults.append("no planned replacement happened")
    return faults


def main() -> int:
    """Run one day; return 0 if it went as it should."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speed", type=float, default=60.0, help="how many times faster than a real day")
    parser.add_argument("--hours", type=float, default=24.0, help="length of the day")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    speed: float = given.speed
    print(f"{given.hours:g} hours at {speed:g} times the speed, seed {given.seed}")
    exchange = Exchange(
        Market(usd_m=60, tradfi=20, coin_m=3, fundless=5),
        tick_s=3 / speed,
        ping_s=180 / speed,
        pong_deadline_s=600 / speed,
        lifetime_s=_LIFETIME_S / speed,
    )
    with tempfile.TemporaryDirectory() as folder, exchange:
        # The retired address first: every connection that starts anew has to find its way past it.
        urls = f"{exchange.retired_url},{exchange.ws_url}"
        with Daemon(exchange, Path(folder), **{**_settings(speed), "BINANCE_WS_URLS": urls}) as daemon:
            before = _settled(daemon)
            watch = Watch(exchange, daemon, speed)
            watcher = threading.Thread(target=watch.run, name="watch")
            watcher.start()
            day = Day(exchange, watch, speed, given.seed)
            try:
                day.run(given.hours)
                eventually(lambda: daemon.status().get("connections") == 2, "two connections at the end of the day")
                after = _settled(daemon)
                status = daemon.status()
            finally:
                watch.stop.set()
                watcher.join()
            took_s = daemon.terminate()
            faults = _report(day, watch, status, before, after)
            print(f"log                    {len(daemon.log)} lines; stopped in {took_s:.1f} s")
            if any("Traceback" in line for line in daemon.log):
                faults.append("a traceback in the log")
            if faults:
                print("\n".join(daemon.log))
    print("PASSED" if not faults else "FAILED: " + "; ".join(faults))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
