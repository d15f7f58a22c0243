"""The size of the product and of its tests: `python -m tests.support.size` prints lines of code for each folder."""

import sys
from collections.abc import Iterable
from pathlib import Path

from tests.support.source import PACKAGE, PROGRAMS, ROOT, code_lines


def _lines(paths: Iterable[Path]) -> int:
    return sum(code_lines(path.read_text(encoding="utf-8")) for path in paths)


def main() -> int:
    """Print a line for each folder; return 0."""
    package = ROOT / PACKAGE
    folders = [package, *(path for path in sorted(package.rglob("*")) if any(path.glob("*.py")))]
    sizes = {"programs": _lines(PROGRAMS)}
    sizes |= {str(folder.relative_to(ROOT)): _lines(folder.glob("*.py")) for folder in folders}
    product, tests = sum(sizes.values()), _lines((ROOT / "tests").rglob("*.py"))
    print("lines of code without blank lines, comments and docstrings:")
    for name, lines in sizes.items():
        print(f"{lines:7,} {name}")
    print(f"{product:7,} product\n{tests:7,} tests, {tests / product:.1f} for each line of the product")
    return 0


if __name__ == "__main__":
    sys.exit(main())
