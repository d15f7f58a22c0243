"""Programs that a test needs and a machine may lack."""

import os
import shutil

import pytest


class MissingProgram(pytest.skip.Exception):  # type: ignore[name-defined,misc] # mypy sees a variable
    """Skips the test. tests/conftest.py counts these at the end of a run."""


def find(program: str, package: str) -> str:
    """Return the path of a program that this Debian package contains.

    Raises MissingProgram if the machine lacks it. In CI the test fails instead.
    """
    # The search path of a user does not always contain the folder of servers such as nginx.
    path = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin")
    if path is None:
        missing = f"{program} is missing: apt install {package}"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        raise MissingProgram(missing)
    return path
