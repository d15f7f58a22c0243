"""A real nginx that runs the shipped configuration in a folder of its own, without root rights."""

import contextlib
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from tests.support.programs import ROOT, free_port
from tests.support.tools import find
from tests.support.waiting import eventually

SHIPPED = ROOT / "packaging" / "nginx" / "binance-funding.conf"

# nginx ignores "user", with a warning, if it is not started as root.
_MAIN = """
user root; daemon off; worker_processes {workers}; pid {folder}/nginx.pid;
events {{ worker_connections 4096; }}
http {{
  log_format asked escape=json
    '{{"time_s":$msec,"hosts":"$upstream_addr","statuses":"$upstream_status","path":"$request_uri"}}';
  access_log {folder}/asked.log asked;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  include {folder}/binance-funding.conf;
}}
"""


class Asked(NamedTuple):
    """One request that nginx passed on: when it was answered, and the ports of the hosts asked until one answered."""

    time_s: float
    path: str
    ports: list[int]
    statuses: list[str]

    @classmethod
    def parsed(cls, line: str) -> "Asked":
        """Read a line of the log. It has no ports if nginx knew that all hosts were gone."""
        fields = json.loads(line)
        ports = [int(port) for port in re.findall(r"127\.0\.0\.1:(\d+)", fields["hosts"])]
        return cls(fields["time_s"], fields["path"], ports, re.findall(r"\d+", fields["statuses"]))


class Nginx(NamedTuple):
    """A running nginx."""

    port: int
    pid: int
    folder: Path

    @property
    def url(self) -> str:
        """Its address, without a path."""
        return f"http://127.0.0.1:{self.port}"

    def worker_pid(self) -> int:
        """Return the one worker process. The other children of nginx manage the cache."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text(encoding="ascii").split()
        (worker,) = [pid for pid in children if b"worker process" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        return int(worker)

    def asked(self) -> list[Asked]:
        """Return the requests that have reached the hosts so far, except push."""
        return [Asked.parsed(line) for line in (self.folder / "asked.log").read_text(encoding="utf-8").splitlines()]

    def copies(self) -> list[Path]:
        """Return the files of its caches."""
        return [path for path in self.folder.glob("nginx-binance-funding*/**/*") if path.is_file()]

    def errors(self) -> str:
        """Return its error log."""
        return (self.folder / "error.log").read_text(encoding="utf-8")


def configuration(folder: Path, port: int, first: int, second: int) -> str:
    """Return the shipped configuration with hosts, ports and folder of a test, and nothing else changed."""
    text = SHIPPED.read_text(encoding="utf-8")
    replacements = {
        "192.0.2.11:8888": f"127.0.0.1:{first}",
        "192.0.2.12:8888": f"127.0.0.1:{second}",
        "listen 8080;": f"listen 127.0.0.1:{port};",
        "listen [::]:8080;": f"listen 127.0.0.2:{port};",  # not every machine has IPv6
        "127.0.0.1:8889": f"127.0.0.1:{free_port()}",
        "/var/cache/": f"{folder}/",
    }
    for shipped, put_in in replacements.items():
        assert shipped in text, shipped
        text = text.replace(shipped, put_in)
    return text


@contextlib.contextmanager
def running_nginx(
    folder: Path, first: int, second: int, edit: Callable[[str], str] = lambda text: text, *, workers: int = 2
) -> Iterator[Nginx]:
    """Run nginx in front of two hosts, given by their ports; `edit` may change its configuration."""
    program, port = find("nginx", "nginx-light"), free_port()
    (folder / "binance-funding.conf").write_text(edit(configuration(folder, port, first, second)), encoding="utf-8")
    (folder / "nginx.conf").write_text(_MAIN.format(folder=folder, workers=workers), encoding="utf-8")
    command = [program, "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(folder / "nginx.conf")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            nginx = Nginx(port, process.pid, folder)
            eventually(lambda: (folder / "nginx.pid").exists() or process.poll() is not None, "nginx to start")
            assert process.poll() is None, nginx.errors()
            yield nginx
        finally:
            process.terminate()
