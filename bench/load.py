"""Load for HTTP servers, made by wrk; and the yardstick, nginx, with what it needs to serve a few files."""

import contextlib
import json
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from bench.machine import child_of, cpu_s, on_measured_core
from tests.support.programs import free_port
from tests.support.waiting import eventually

CLIENTS = 64
_SECONDS = 2

_REPORT = """
done = function(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format('\\n{"requests": %d, "duration_us": %d, "failed": %d, "p99_us": %d}\\n',
    summary.requests, summary.duration, errors.connect + errors.read + errors.write + errors.status + errors.timeout,
    latency:percentile(99)))
end
"""

_NGINX = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log off; server_tokens off; sendfile on; tcp_nopush on; default_type application/json;
  keepalive_requests 1000000000; keepalive_timeout 300s; open_file_cache max=100 inactive=60s;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{ listen 127.0.0.1:{port} backlog=1024; {locations} }}
}}
"""


class Served(NamedTuple):
    """A running HTTP server: its port, and the process that serves."""

    port: int
    pid: int


class Load(NamedTuple):
    """What clients got who each asked again as soon as they had their answer, and what it cost the server."""

    per_s: float
    p99_ms: float
    cpu_us: float
    """CPU for each request: unlike the rate, it hardly depends on what else the machine does meanwhile."""


def wrk(server: Served, path: str, headers: Mapping[str, str], folder: Path, seconds: int = _SECONDS) -> Load:
    """Ask for a path from CLIENTS keep-alive connections. Raises RuntimeError if any answer is an error."""
    script = folder / "report.lua"
    script.write_text(_REPORT, encoding="ascii")
    options = [f"-H{name}: {value}" for name, value in headers.items()]
    command = ["wrk", "-t1", f"-c{CLIENTS}", f"-d{seconds}s", *options, f"-s{script}"]
    before_s = cpu_s(server.pid)
    ran = subprocess.run(
        [*command, f"http://127.0.0.1:{server.port}{path}"], capture_output=True, text=True, check=True
    )
    used_s = cpu_s(server.pid) - before_s
    result = json.loads(ran.stdout.splitlines()[-1])
    if result["failed"] or not result["requests"]:
        raise RuntimeError(f"{path}: {result}")
    requests: int = result["requests"]
    return Load(requests / result["duration_us"] * 1e6, result["p99_us"] / 1e3, used_s / requests * 1e6)


class File(NamedTuple):
    """What nginx serves for one path."""

    body: bytes
    content_encoding: str = ""


@contextlib.contextmanager
def running_nginx(folder: Path, files: Mapping[str, File]) -> Iterator[Served]:
    """Serve one file for each path, with one worker on the measured core."""
    port, locations = free_port(), []
    folder.chmod(0o755)
    for number, (path, file) in enumerate(files.items()):
        (folder / f"{number}.json").write_bytes(file.body)
        encoding = f"add_header Content-Encoding {file.content_encoding};" if file.content_encoding else ""
        locations.append(f"location = {path} {{ alias {folder}/{number}.json; {encoding} }}")
    configuration = folder / "nginx.conf"
    text = _NGINX.format(folder=folder, port=port, locations="\n".join(locations))
    configuration.write_text(text, encoding="ascii")
    command = ["nginx", "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(configuration)]
    with on_measured_core():
        master = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield Served(port, eventually(lambda: _worker_of(master), "nginx's worker"))
    finally:
        master.terminate()
        master.wait()


def _worker_of(master: "subprocess.Popen[bytes]") -> int:
    try:
        return child_of(master.pid)
    except ValueError:
        return 0
