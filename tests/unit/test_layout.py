"""The shape of the code: which module may import which."""

from pathlib import Path

import pytest

from tests.support.source import PACKAGE, PROGRAMS, ROOT, imports

DAEMON, SERVER = f"{PACKAGE}.daemon", f"{PACKAGE}.server"
TESTS = sorted((ROOT / "tests").rglob("*.py"))


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


@pytest.mark.parametrize("path", TESTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_test_module_imports_another(path: Path) -> None:
    """What tests share is in tests/support and tests/exchange."""
    assert {name for name in imports(path) if name.startswith("tests.") and ".test_" in name} == set()
