"""The shape of the code: who imports whom, and how long things may be."""

from pathlib import Path

import pytest

from tests.support.source import PACKAGE, PROGRAMS, ROOT, code_lines, imports, product_files

DAEMON, SERVER = f"{PACKAGE}.daemon", f"{PACKAGE}.server"
TESTS = sorted((ROOT / "tests").rglob("*.py"))


def lines(path: Path) -> int:
    """Return the number of lines as they stand."""
    return len(path.read_text(encoding="utf-8").splitlines())


def within(names: set[str], package: str) -> set[str]:
    """Return those of the imported names that belong to a package."""
    return {name for name in names if name == package or name.startswith(f"{package}.")}


def wing(path: Path) -> str:
    """Return which wing a module of the package belongs to, "" for what both share."""
    folder = path.relative_to(ROOT).parts[1]
    return f"{PACKAGE}.{folder}" if path.relative_to(ROOT).parts[2:] else ""


@pytest.mark.parametrize("path", sorted((ROOT / PACKAGE).rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_wing_is_imported_from_outside_it(path: Path) -> None:
    """Neither wing imports the other, and what both share imports neither."""
    others = {DAEMON, SERVER} - {wing(path)}
    assert {name for other in others for name in within(imports(path), other)} == set()


@pytest.mark.parametrize(
    ("path", "other"), list(zip(PROGRAMS, (SERVER, DAEMON), strict=True)), ids=["daemon", "server"]
)
def test_a_program_imports_one_wing(path: Path, other: str) -> None:
    """The daemon runs without the server's code, and the server without the daemon's."""
    assert within(imports(path), other) == set()


def test_imports_are_seen_wherever_they_stand(tmp_path: Path) -> None:
    """Relative imports are resolved, and those inside functions count."""
    module = tmp_path / "package" / "daemon" / "module.py"
    module.parent.mkdir(parents=True)
    module.write_text("from ..server import api\ndef f():\n    import os.path\n    from . import book\n")
    assert imports(module, tmp_path) == {
        "package.server",
        "package.server.api",
        "os.path",
        "package.daemon",
        "package.daemon.book",
    }


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_programs_are_short(path: Path) -> None:
    """A program has fewer than 70 lines: settings, signals, exit status."""
    assert lines(path) < 70


def test_http_server_is_short() -> None:
    """The two HTTP files have fewer than 500 lines together, as they stand."""
    folder = ROOT / PACKAGE / "server"
    assert lines(folder / "http_server.py") + lines(folder / "http_message.py") < 500


def test_product_is_small() -> None:
    """The product has no more lines of code than it had: 4,110, where 3,200 are wanted."""
    counts = {path.relative_to(ROOT): code_lines(path.read_text(encoding="utf-8")) for path in product_files()}
    assert sum(counts.values()) <= 4110, counts


def test_lines_of_code_are_counted() -> None:
    """Blank lines, comments and docstrings are no code; each line of a text that spans several is."""
    source = (
        '"""Doc.\n\nstring."""\n\n# comment\nx = """a\nb"""\ndef f():\n    """Doc."""\n    return (\n        1\n    )\n'
    )
    assert code_lines(source) == 6


@pytest.mark.parametrize("path", TESTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_test_module_is_long(path: Path) -> None:
    """No file of the tests has more than 600 lines."""
    assert lines(path) <= 600


@pytest.mark.parametrize("path", TESTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_test_module_imports_another(path: Path) -> None:
    """What tests share is in tests/support and tests/exchange."""
    assert {name for name in imports(path) if name.startswith("tests.") and ".test_" in name} == set()
