"""Programs that a test needs and a machine may lack."""

import os
import shutil

import pytest


def find(program: str, package: str) -> str:
    """Return the path of a program that this Debian package contains.

    If the machine lacks the program, the test is skipped. In CI it fails.
    """
    # The search path of a user does not always contain the folder of servers such as nginx.
    path = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin")
    if path is None:
        missing = f"{program} is missing: apt install {package}"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    return path
