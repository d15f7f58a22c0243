"""Run the measurements: all of them, or one part."""

import argparse
import shutil
import tempfile
from pathlib import Path

from bench import daemon, growth, history, machine, page, proxied, push, server

_PARTS = {
    "daemon": daemon.measure,
    "server": server.measure,
    "push": push.measure,
    "proxied": proxied.measure,
    "growth": growth.measure,
    "history": history.measure,
    "page": page.measure,
}
_NEEDS = {
    "server": ("nginx", "wrk"),
    "push": ("wrk",),
    "proxied": ("nginx", "wrk"),
    "growth": ("wrk",),
    "page": ("chromium", "chromedriver"),
}
_PACKAGES = {"nginx": "nginx-light", "chromedriver": "chromium-driver"}
_RESULTS = Path(__file__).with_name("results.md")


def main() -> None:
    """Parse the command line, measure, print; what a whole run printed is also written to results.md."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("part", nargs="?", choices=_PARTS, help="only this part; results.md is left as it is")
    chosen = parser.parse_args().part
    machine.drive()
    texts = [_tell("# What it costs\n\n" + "\n".join(f"- {line}" for line in machine.description()))]
    texts += [_tell(_measure(part)) for part in ([chosen] if chosen else _PARTS)]
    if not chosen:
        _RESULTS.write_text("\n\n".join(texts) + "\n", encoding="utf-8")


def _measure(part: str) -> str:
    missing = [program for program in _NEEDS.get(part, ()) if shutil.which(program) is None]
    if missing:
        packages = " ".join(_PACKAGES.get(program, program) for program in missing)
        return f"## {part.capitalize()}\n\nNot measured: {' and '.join(missing)} not found (apt install {packages})."
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        return _PARTS[part](Path(folder))


def _tell(text: str) -> str:
    print(text, end="\n\n", flush=True)
    return text


if __name__ == "__main__":
    main()
