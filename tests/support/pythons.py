"""Prints the path of one interpreter for each Python version from 3.10 on, for `make test-all`.

It looks in PATH and in the versions that pyenv has installed. For each version without a usable interpreter, it prints
the reason to stderr. It needs no package, and runs on any Python from 3.10 on.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

OLDEST = (3, 10)
_NAME = re.compile(r"python3\.[0-9]+")
# An interpreter starts in a fraction of this time.
_ANSWER_WITHIN_S = 20
_PROBE = "import sys, ensurepip, venv; print('%d.%d' % sys.version_info[:2])"


def folders() -> list[Path]:
    """Return the folders of PATH, then those of pyenv's versions."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    return [*map(Path, os.environ.get("PATH", "").split(os.pathsep)), *sorted(pyenv.glob("versions/*/bin"))]


def find(where: Iterable[Path]) -> tuple[dict[str, Path], dict[str, str]]:
    """Return the first usable interpreter of each version, and the reason for each version without a usable one.

    A pyenv shim of a version that is not activated fails when it is run. The next interpreter of that version is used.
    """
    usable: dict[str, Path] = {}
    unusable: dict[str, str] = {}
    for path in _candidates(where):
        version = path.name.removeprefix("python")
        if version in usable:
            continue
        fault = _fault(path, version)
        if fault:
            unusable[version] = f"{path} {fault}"
        else:
            usable[version] = path
    return usable, {version: why for version, why in unusable.items() if version not in usable}


def _candidates(where: Iterable[Path]) -> Iterator[Path]:
    for folder in where:
        if folder.is_dir():
            yield from (path for path in sorted(folder.iterdir()) if _NAME.fullmatch(path.name) and _is_new(path.name))


def _is_new(name: str) -> bool:
    return tuple(map(int, name.removeprefix("python").split("."))) >= OLDEST


def _fault(path: Path, version: str) -> str:
    """Return why an interpreter cannot be used, or "" if it can."""
    try:
        probe = subprocess.run(
            [path, "-c", _PROBE], capture_output=True, text=True, timeout=_ANSWER_WITHIN_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"does not run: {error}"
    if probe.returncode == 0 and probe.stdout.strip() == version:
        return ""
    lines = probe.stderr.strip().splitlines()
    return f"cannot be used: {lines[-1] if lines else f'it is Python {probe.stdout.strip()}'}"


def main() -> int:
    """Print the paths, oldest version first; return 1 if there is none."""
    usable, unusable = find(folders())
    for version, why in sorted(unusable.items()):
        print(f"Python {version} is left out: {why}", file=sys.stderr)
    for version in sorted(usable, key=lambda text: int(text.split(".")[1])):
        print(usable[version])
    return 0 if usable else 1


if __name__ == "__main__":
    sys.exit(main())
