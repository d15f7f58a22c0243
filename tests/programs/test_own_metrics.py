"""What the real programs tell of themselves in /metrics, compared with what was asked and with what the kernel says."""

import contextlib
import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.exchange import Exchange
from tests.support.http_client import GET, Client
from tests.support.programs import Daemon, Server
from tests.support.waiting import eventually

MIB = 1 << 20
SAMPLE = re.compile(r"^([a-z_]+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
REQUESTS = "binance_funding_http_requests_total"
DURATION = "binance_funding_http_request_duration_seconds"


@pytest.fixture
def programs(exchange: Exchange, tmp_path: Path) -> Iterator[tuple[Daemon, Server]]:
    """Both programs, with data; the server may have another number of files open than the daemon."""
    with Daemon(exchange, tmp_path) as daemon, Server(tmp_path, most_files=777, API_MAX_CONNECTIONS=8) as server:
        daemon.wait_for_live()
        yield daemon, server


def scrape(client: Client) -> dict[str, float]:
    """Return every sample without a symbol, by its name and labels as they stand."""
    text = client.get("/metrics").body.decode()
    found = SAMPLE.findall(text)
    return {f"{name}{{{labels}}}" if labels else name: float(value) for name, labels, value in found}


def requests_in(metrics: dict[str, float]) -> dict[tuple[str, str], float]:
    """Return how many requests were answered, by route and status; those that were not, left out."""
    label = re.compile(REQUESTS + r'\{route="(.*)",status="(\d+)"\}')
    matches = [(label.fullmatch(name), value) for name, value in metrics.items()]
    return {(match[1], match[2]): value for match, value in matches if match and value}


def test_every_request_is_counted(programs: tuple[Daemon, Server]) -> None:
    """By route and status, over however many connections; each has a duration."""
    _, server = programs
    asked = {
        ("/funding/{symbol}", "200"): ["/funding/BTCUSDT"] * 40 + ["/funding/ethusdt"],
        ("/funding/{symbol}", "404"): ["/funding/NOPE", "/funding/NOPE2"],
        ("/funding", "200"): ["/funding"] * 3,
        ("/funding/batch", "200"): ["/funding/batch?symbols=BTCUSDT", "/funding/batch?symbols=BTCUSDT,ETHUSDT"],
        ("/funding/batch", "400"): ["/funding/batch"],
        ("/funding/health", "200"): ["/funding/health"],
        ("/", "200"): ["/", "/"],
        ("other", "404"): ["/a", "/b", "/a/b/c", "/funding/BTCUSDT/"],
    }
    address = ("127.0.0.1", server.port)
    with Client(address) as client:
        for (_, status), paths in asked.items():
            assert [client.get(path).status for path in paths] == [int(status)] * len(paths)
    for payload in (b"NONSENSE\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"):
        with Client(address) as client:
            client.send(payload)
            assert client.reply().status == 400
    with Client(address) as client:
        client.send(GET * 5)
        assert [client.reply().status for _ in range(5)] == [200] * 5
        metrics = scrape(client)
    expected = {key: len(paths) for key, paths in asked.items()}
    expected["/", "200"] += 5
    expected["other", "400"] = 2
    assert requests_in(metrics) == expected
    # The request for the metrics is answered before it is counted.
    assert metrics[DURATION + "_count"] == metrics[f'{DURATION}_bucket{{le="+Inf"}}'] == sum(expected.values())
    assert metrics[DURATION + "_sum"] > 0


def test_connections_and_subscribers_are_those_that_are_open(programs: tuple[Daemon, Server]) -> None:
    """They come and go; a subscriber is a connection too, and one too many is refused and counted."""
    _, server = programs
    address = ("127.0.0.1", server.port)

    def gauges() -> tuple[float, float]:
        metrics = scrape(asking)
        return metrics["binance_funding_http_connections"], metrics["binance_funding_http_subscribers"]

    with Client(address) as asking, contextlib.ExitStack() as others:
        assert gauges() == (1, 0)
        idle = others.enter_context(Client(address))
        for _ in range(4):
            subscriber = others.enter_context(Client(address))
            subscriber.send(b"GET /funding/stream?symbols=BTCUSDT HTTP/1.1\r\nHost: x\r\n\r\n")
        eventually(lambda: gauges() == (6, 4), "six connections, four of them subscribers")
        with Client(address) as too_many:
            assert too_many.get("/funding/stream").status == 503
        idle.reset()
        eventually(lambda: gauges() == (5, 4), "one connection less")
        counts = requests_in(scrape(asking))
        assert (counts["/funding/stream", "200"], counts["other", "503"]) == (4, 1)
        others.close()
        eventually(lambda: gauges() == (1, 0), "nobody else")


def of_kernel(pid: int) -> dict[str, float]:
    """Return what the kernel says of a process elsewhere than where the program reads it."""
    status = dict(re.findall(r"^(\w+):\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE))
    limit = re.search(r"^Max open files +(\d+)", Path(f"/proc/{pid}/limits").read_text(), re.MULTILINE)
    assert limit is not None
    return {
        "resident_memory_bytes": int(status["VmRSS"]) << 10,
        "virtual_memory_bytes": int(status["VmSize"]) << 10,
        "open_fds": len(os.listdir(f"/proc/{pid}/fd")),
        "max_fds": int(limit[1]),
    }


SLACK = {"resident_memory_bytes": 32 * MIB, "virtual_memory_bytes": 128 * MIB, "open_fds": 3, "max_fds": 0}


def agrees(client: Client, prefix: str, pid: int) -> bool:
    """Tell whether the metrics with this prefix are what the kernel knows of a process."""
    metrics, kernel = scrape(client), of_kernel(pid)
    return all(abs(metrics[prefix + name] - kernel[name]) <= slack for name, slack in SLACK.items())


def test_both_processes_are_told_as_the_kernel_knows_them(programs: tuple[Daemon, Server]) -> None:
    """Each one's own, not the other's: memory, descriptors, limit, start and processor time."""
    daemon, server = programs
    with Client(("127.0.0.1", server.port)) as client:
        for prefix, pid in (("process_", server.process.pid), ("binance_funding_daemon_process_", daemon.process.pid)):
            # The daemon takes its values at each heartbeat, and may have started threads since.
            eventually(partial(agrees, client, prefix, pid), f"what the kernel knows of {prefix}")
        metrics = scrape(client)
        for prefix, pid in (("process_", server.process.pid), ("binance_funding_daemon_process_", daemon.process.pid)):
            assert metrics[prefix + "start_time_seconds"] == pytest.approx(started_at_s(pid), abs=2)
            assert 0 < metrics[prefix + "cpu_seconds_total"] < 60
        assert metrics["process_max_fds"] != metrics["binance_funding_daemon_process_max_fds"]


def started_at_s(pid: int) -> float:
    """Return when a process was started, counted from when the host was: that is known in whole seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    (booted_s,) = re.findall(r"^btime (\d+)$", Path("/proc/stat").read_text(), re.MULTILINE)
    return int(booted_s) + int(fields[19]) / os.sysconf("SC_CLK_TCK")


def test_a_start_stays_the_same_until_a_restart(exchange: Exchange, tmp_path: Path) -> None:
    """So that a change of it is a restart, as an alert takes it."""
    with Server(tmp_path) as server, Client(("127.0.0.1", server.port)) as client:
        starts = []
        for _ in range(2):
            with Daemon(exchange, tmp_path) as daemon:
                daemon.wait_for_live()
                first = scrape(client)
                daemon.wait_for_newer_data()
                second = scrape(client)
                for name in ("process_start_time_seconds", "binance_funding_daemon_process_start_time_seconds"):
                    assert first[name] == second[name]
                starts.append(first["binance_funding_daemon_process_start_time_seconds"])
                assert first["binance_funding_daemon_process_cpu_seconds_total"] < 60
                daemon.terminate()
        assert starts[0] < starts[1]
