"""The daemon: CPU of the whole process, time until a message is in the file, memory; and where the time goes.

CPU is counted from outside over whole minutes: all threads, in the program and in the kernel, with everything that the
daemon does between two ticks.
"""

import contextlib
import statistics
import time
from itertools import cycle, islice
from pathlib import Path

from bench.machine import cpu_s, percentile, resident_mb, settled_cpu_s
from bench.stages import Stages
from bench.subjects import Subject, Tick, next_messages, running_baseline, running_daemon
from bench.table import Line, markdown
from tests.exchange import Exchange, Market

_WARM_UP_TICKS, _TICKS = 5, 100
# A minute, in which the daemon asks REST once.
_PACED_S = 60
# Seconds between two ticks, and how much more CPU than the yardstick one and two connections may cost.
_PACES = {1: {"one": 1.15, "two": 1.35}, 3: {"one": 1.3, "two": 1.3}}


def measure(folder: Path) -> str:
    """Return the table of the daemon."""
    market = Market()
    with contextlib.ExitStack() as running:
        exchange = running.enter_context(Exchange(market, tick_s=3600))
        subjects = {
            "yardstick": running.enter_context(running_baseline(folder / "baseline")),
            "one": running.enter_context(running_daemon(exchange, folder / "one", 1)),
            "two": running.enter_context(running_daemon(exchange, folder / "two", 2)),
        }
        stages = Stages(folder)
        ticks = _take_in_turns(subjects, market, stages)
        paced_s = {tick_s: _paced_cpu_s(subjects, market, tick_s) for tick_s in _PACES}
        memory_mb = {name: resident_mb(subject.pid, "VmHWM") for name, subject in subjects.items()}
    lines = [*_cpu_lines(paced_s), *_time_lines(ticks), _memory_line(memory_mb)]
    title = f"Daemon, {len(market.symbols)} symbols in two messages each tick"
    cost_s = statistics.median(tick.cpu_s for tick in ticks["one"])
    return "\n\n".join([markdown(title, "bare loop", lines), stages.shares(cost_s)])


def _take_in_turns(subjects: dict[str, Subject], market: Market, stages: Stages) -> dict[str, list[Tick]]:
    """Give all of them the same ticks, each beginning a third of the rounds, so that noise meets all alike."""
    ticks: dict[str, list[Tick]] = {name: [] for name in subjects}
    for turn in range(_WARM_UP_TICKS + _TICKS):
        messages = next_messages(market)
        for name in islice(cycle(subjects), turn % len(subjects), turn % len(subjects) + len(subjects)):
            tick = subjects[name].take(messages)
            if turn >= _WARM_UP_TICKS:
                ticks[name].append(tick)
        stages.take(messages)
    return ticks


def _paced_cpu_s(subjects: dict[str, Subject], market: Market, tick_s: int) -> dict[str, float]:
    """Return the CPU seconds for each tick when ticks come at a pace: supervision, REST and all else included."""
    before_s = {name: settled_cpu_s(subject.pid) for name, subject in subjects.items()}
    ticks = _PACED_S // tick_s
    for _ in range(ticks):
        next_s = time.monotonic() + tick_s
        messages = next_messages(market)
        for subject in subjects.values():
            subject.take(messages)
        time.sleep(max(0.0, next_s - time.monotonic()))
    return {name: (cpu_s(subject.pid) - before_s[name]) / ticks for name, subject in subjects.items()}


def _cpu_lines(paced_s: dict[int, dict[str, float]]) -> list[Line]:
    words = {"one": "one connection", "two": "two connections"}
    lines = []
    for tick_s, cost_s in paced_s.items():
        for name, limit in _PACES[tick_s].items():
            ratio = cost_s[name] / cost_s["yardstick"]
            ours, yardstick = (f"{cost_s[key] * 1e3:.2f} ms" for key in (name, "yardstick"))
            what = f"CPU of the process for a tick every {tick_s} s, {words[name]}"
            lines.append(Line(what, ours, yardstick, ratio, f"at most {limit}", ratio <= limit))
    return lines


def _time_lines(ticks: dict[str, list[Tick]]) -> list[Line]:
    after_ms = {
        name: [seconds * 1e3 for tick in taken for seconds in tick.visible_after_s] for name, taken in ticks.items()
    }
    lines = []
    for what, percent, limit_ms in (("median", 50, 8), ("p99", 99, 20)):
        ours, yardstick = (percentile(after_ms[name], percent) for name in ("two", "yardstick"))
        words = f"last byte to file, two connections, {what}"
        promise = f"under {limit_ms} ms"
        lines.append(Line(words, f"{ours:.1f} ms", f"{yardstick:.1f} ms", ours / yardstick, promise, ours < limit_ms))
    return lines


def _memory_line(memory_mb: dict[str, float]) -> Line:
    ours, yardstick = memory_mb["two"], memory_mb["yardstick"]
    words = "highest memory (RSS), two connections"
    return Line(words, f"{ours:.1f} MB", f"{yardstick:.1f} MB", ours / yardstick, "under 40 MB", ours < 40)
