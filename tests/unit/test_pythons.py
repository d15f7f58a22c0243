"""Finding the interpreters for `make test-all`, with stand-ins that answer like interpreters."""

from pathlib import Path

from tests.support.pythons import find


def interpreter(folder: Path, version: str, script: str | None = None) -> Path:
    """Put a program into a folder that answers like an interpreter of this version, or as the script says."""
    folder.mkdir(exist_ok=True)
    path = folder / f"python{version}"
    path.write_text(f"#!/bin/sh\n{script or f'echo {version}'}\n", encoding="ascii")
    path.chmod(0o755)
    return path


def test_each_version_is_found_once(tmp_path: Path) -> None:
    """Of several interpreters of one version the first is taken."""
    first, _ = interpreter(tmp_path / "a", "3.11"), interpreter(tmp_path / "b", "3.11")
    newer = interpreter(tmp_path / "b", "3.12")
    assert find([tmp_path / "a", tmp_path / "b"]) == ({"3.11": first, "3.12": newer}, {})


def test_only_from_3_10_on(tmp_path: Path) -> None:
    """Older versions, other programs and folders that do not exist are passed over."""
    interpreter(tmp_path, "3.9")
    interpreter(tmp_path, "2.7")
    interpreter(tmp_path, "3.11-config")
    assert find([tmp_path, tmp_path / "missing"]) == ({}, {})


def test_one_that_cannot_be_used_gives_way_to_the_next(tmp_path: Path) -> None:
    """A pyenv shim of a version that is not activated stands in PATH before the version itself."""
    interpreter(tmp_path / "shims", "3.12", "echo pyenv: python3.12: command not found >&2; exit 127")
    real = interpreter(tmp_path / "versions", "3.12")
    assert find([tmp_path / "shims", tmp_path / "versions"]) == ({"3.12": real}, {})


def test_a_version_that_cannot_be_used_is_named_with_the_reason(tmp_path: Path) -> None:
    """None is skipped silently: one without the module venv, say."""
    path = interpreter(tmp_path, "3.13", "echo \"ModuleNotFoundError: No module named 'ensurepip'\" >&2; exit 1")
    assert find([tmp_path]) == (
        {},
        {"3.13": f"{path} cannot be used: ModuleNotFoundError: No module named 'ensurepip'"},
    )
