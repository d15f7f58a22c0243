"""The direction of imports between the folders."""

from pathlib import Path

from tests.support.source import PACKAGE, PROGRAMS, ROOT, imports

FOLDER = ROOT / PACKAGE
DAEMON, SERVER = f"{PACKAGE}.daemon", f"{PACKAGE}.server"


def imported_from(package: str, paths: list[Path]) -> list[tuple[str, str]]:
    """Return each of these files with each name that it imports from the package."""
    return [
        (str(path), name) for path in paths for name in sorted(imports(path)) if f"{name}.".startswith(f"{package}.")
    ]


def test_neither_wing_is_imported_from_outside() -> None:
    """The daemon runs without the server's code and the server without the daemon's. Shared modules import neither."""
    daemon_program, server_program = PROGRAMS
    shared = list(FOLDER.glob("*.py"))
    assert imported_from(DAEMON, [*shared, server_program, *(FOLDER / "server").rglob("*.py")]) == []
    assert imported_from(SERVER, [*shared, daemon_program, *(FOLDER / "daemon").rglob("*.py")]) == []


def test_each_program_imports_its_wing() -> None:
    """The test above would pass if no import were seen."""
    daemon_program, server_program = PROGRAMS
    assert imported_from(DAEMON, [daemon_program]) != []
    assert imported_from(SERVER, [server_program]) != []


def test_relative_imports_are_seen_inside_functions(tmp_path: Path) -> None:
    """They are resolved to absolute names."""
    module = tmp_path / "package" / "daemon" / "module.py"
    module.parent.mkdir(parents=True)
    module.write_text("from ..server import api\ndef f():\n    from . import book\n")
    names = {"package.server", "package.server.api", "package.daemon", "package.daemon.book"}
    assert imports(module, tmp_path) == names


def test_no_test_module_imports_another() -> None:
    """Tests share the modules of tests/support and tests/exchange."""
    paths = sorted((ROOT / "tests").rglob("*.py"))
    assert [(str(path), name) for path in paths for name in imports(path) if ".test_" in name] == []


def test_the_market_knows_nothing_of_its_sources_and_its_file() -> None:
    """Records go from source to market to output. The market can be read and tested without the other two."""
    market = list((FOLDER / "daemon" / "market").glob("*.py"))
    assert market
    for room in ("source", "output"):
        assert imported_from(f"{DAEMON}.{room}", market) == []
