"""A real Prometheus over the real server, and what the documents give it to read.

The tools come with the Debian package prometheus. Without them a test is skipped; in CI they must be there.
"""

import json
import re
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from binance_funding.schema import PROCESS
from binance_funding.server import metrics
from binance_funding.server.http.meter import Meter
from tests.support.programs import ROOT, free_port
from tests.support.samples import state, view
from tests.support.tools import find
from tests.support.waiting import PATIENCE_S, eventually

FOLDER = ROOT / "docs" / "prometheus"
ALERTS, ALERTS_TEST, DASHBOARD = FOLDER / "alerts.yml", FOLDER / "alerts_test.yml", FOLDER / "dashboard.json"
SCRAPE_S = 0.5


def documented_config() -> str:
    """Return the configuration that the README shows."""
    shown = re.search(r"```yaml\n(.*?)```", (FOLDER / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert shown is not None
    return shown[1]


def own_metrics() -> str:
    """Return what a server has of itself, of an idle one."""
    return metrics.render_server(Meter(), dict.fromkeys((one.name for one in PROCESS), 1))


def served_names() -> set[str]:
    """Return the names of all metrics, with those of a histogram's parts."""
    families = re.findall(r"(?m)^# TYPE (\S+) (\S+)", metrics.render(view(state())) + own_metrics())
    parts = {f"{name}_{part}" for name, kind in families if kind == "histogram" for part in ("bucket", "sum", "count")}
    return parts | {name for name, _ in families}


class Prometheus:
    """A running Prometheus, asked through its HTTP API."""

    def __init__(self, port: int) -> None:
        self._base = f"http://127.0.0.1:{port}"
        # Loopback only: whatever proxy the environment names is not for this.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ask(self, path: str, **parameters: str) -> Any:
        """Return the `data` of an answer. Raises OSError as long as it is not ready."""
        url = f"{self._base}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with self._opener.open(url, timeout=PATIENCE_S) as response:
            answer = json.load(response)
        assert answer["status"] == "success"
        return answer["data"]

    def samples(self, selector: str) -> list[tuple[dict[str, str], float, float]]:
        """Return labels, time and value of the newest sample of each series."""
        # The selector of a range gives samples with the times of their scrapes.
        series = self.ask("query", query=f"{selector}[5m]")["result"]
        return [(one["metric"], one["values"][-1][0], float(one["values"][-1][1])) for one in series]


@contextmanager
def running(folder: Path, server_port: int) -> Iterator[Prometheus]:
    """Run Prometheus with the README's configuration, only faster and towards this server."""
    program = find("prometheus", "prometheus")
    config = documented_config().replace("scrape_interval: 15s", f"scrape_interval: {SCRAPE_S * 1000:.0f}ms")
    config = config.replace("127.0.0.1:8888", f"127.0.0.1:{server_port}")
    folder.mkdir()
    (folder / "prometheus.yml").write_text(config, encoding="utf-8")
    shutil.copy(ALERTS, folder)
    port = free_port()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                program,
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        client = Prometheus(port)

        def is_ready() -> bool:
            assert process.poll() is None, (folder / "log").read_text()
            try:
                client.ask("status/runtimeinfo")
            except OSError:
                return False
            return True

        eventually(is_ready, "Prometheus answers")
        yield client
    finally:
        process.terminate()
        process.wait(PATIENCE_S)
