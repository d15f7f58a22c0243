"""Runs the examples of docs/clients.md, with other addresses in place of those of the document."""

import contextlib
import functools
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from tests.exchange import Exchange
from tests.support.programs import ROOT, Daemon, Program, Server, running_both
from tests.support.tools import find
from tests.support.waiting import PATIENCE_S, eventually

DOCUMENT = ROOT / "docs" / "clients.md"
SERVER, BINANCE = "http://127.0.0.1:8888", "https://fapi.binance.com"

_RUNNERS = {".py": sys.executable, ".mjs": "node", ".go": "go", ".sh": "bash"}
_PACKAGES = {"node": "nodejs", "go": "golang-go"}
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_NAME = re.compile(r"`([\w.]+)`")


@functools.cache
def _blocks() -> list[tuple[str, str, str]]:
    """Return the paragraph before each block of code, its language and its code."""
    text = DOCUMENT.read_text(encoding="utf-8")
    return [(text[: one.start()].rstrip().rpartition("\n\n")[2], one[1], one[2]) for one in _BLOCK.finditer(text)]


def programs() -> dict[str, str]:
    """Return the code of every example by its name: the first name in the paragraph before the code."""
    return {_NAME.findall(paragraph)[0]: code for paragraph, language, code in _blocks() if language != "sh"}


def questions() -> dict[str, str]:
    """Return the command below each question."""
    return {paragraph.partition("?")[0] + "?": code for paragraph, language, code in _blocks() if language == "sh"}


def require(*names: str) -> None:
    """Skip the test if one of these programs is missing. In CI the test fails instead."""
    for name in names:
        find(name, _PACKAGES.get(name, name))


def needs(name: str) -> list[str]:
    """Return the programs that an example needs."""
    runner = _RUNNERS[Path(name).suffix]
    return [runner, "curl", "jq"] if runner == "bash" else [runner]


def is_available(name: str) -> bool:
    """Tell whether an example can run on this machine."""
    return all(shutil.which(program) for program in needs(name))


def replaced(code: str, texts: Mapping[str, str]) -> str:
    """Replace texts in the code of an example."""
    for text, other in texts.items():
        code = code.replace(text, other)
    return code


class Example(Program):
    """An example of the document, run in a folder. Its output is its log. Its child processes end with it."""

    def __init__(self, name: str, folder: Path, texts: Mapping[str, str], *arguments: str) -> None:
        self.name = name
        (folder / name).write_text(replaced(programs()[name], texts), encoding="utf-8")
        super().__init__(name, folder, {"PYTHONUNBUFFERED": 1}, *arguments)

    def command(self, script: str, folder: Path) -> list[str]:
        """Return a command that runs the example in its own process group. Go is compiled first."""
        runner = [_RUNNERS[Path(script).suffix], script]
        if runner[0] == "go":
            build = ["go", "build", "-o", f"{script}.out", script]
            subprocess.run(build, cwd=folder, check=True, timeout=2 * PATIENCE_S)
            runner = [f"./{script}.out"]
        return ["setsid", *runner]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        super().__exit__(kind, error, traceback)


class Host(NamedTuple):
    """Both programs, and their addresses by the addresses in the document."""

    exchange: Exchange
    daemon: Daemon
    server: Server
    addresses: dict[str, str]

    def ask(self, question: str, symbol: str = "BTCUSDT") -> subprocess.CompletedProcess[str]:
        """Run the command that answers a question. `symbol` replaces BTCUSDT in it."""
        require("bash", "curl", "jq")
        command = replaced(questions()[question], {**self.addresses, "BTCUSDT": symbol})
        return subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=PATIENCE_S)


@contextlib.contextmanager
def running(exchange: Exchange, folder: Path, *, every_second: bool = False) -> Iterator[Host]:
    """Run an exchange that is not started yet and both programs. The block begins when the service is healthy."""
    with exchange:
        url = exchange.ws_url_1s if every_second else exchange.ws_url
        with running_both(exchange, folder, BINANCE_WS_URLS=url) as (daemon, server):
            eventually(lambda: server.get("/funding/health")[1]["status"] == "healthy", "healthy")
            addresses = {SERVER: f"http://127.0.0.1:{server.port}", BINANCE: exchange.rest_url}
            yield Host(exchange, daemon, server, addresses)
