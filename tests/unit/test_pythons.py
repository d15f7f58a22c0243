"""Finding the interpreters for `make test-all`, with scripts in place of the interpreters."""

from pathlib import Path

from tests.support.pythons import find


def interpreter(folder: Path, version: str, script: str | None = None) -> Path:
    """Put a program into a folder that answers like an interpreter of this version, or as the script says."""
    folder.mkdir(exist_ok=True)
    path = folder / f"python{version}"
    path.write_text(f"#!/bin/sh\n{script or f'echo {version}'}\n", encoding="ascii")
    path.chmod(0o755)
    return path


def test_the_first_usable_interpreter_of_each_version_is_found(tmp_path: Path) -> None:
    """A pyenv shim of a version that is not activated fails. Versions before 3.10 and other programs do not count."""
    shims, versions = tmp_path / "shims", tmp_path / "versions"
    for name in ("3.9", "3.11-config"):
        interpreter(shims, name)
    first = interpreter(shims, "3.11")
    interpreter(shims, "3.12", "echo pyenv: python3.12: command not found >&2; exit 127")
    interpreter(versions, "3.11")
    second = interpreter(versions, "3.12")
    assert find([shims, tmp_path / "missing", versions]) == ({"3.11": first, "3.12": second}, {})


def test_a_version_without_a_usable_interpreter_is_named_with_the_reason(tmp_path: Path) -> None:
    """One without the module venv, for example, cannot be used."""
    path = interpreter(tmp_path, "3.13", "echo \"ModuleNotFoundError: No module named 'ensurepip'\" >&2; exit 1")
    reason = f"{path} cannot be used: ModuleNotFoundError: No module named 'ensurepip'"
    assert find([tmp_path]) == ({}, {"3.13": reason})
