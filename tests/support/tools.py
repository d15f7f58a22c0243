"""Programs that a test needs and a machine may lack."""

import os
import shutil

import pytest


def find(program: str, package: str) -> str:
    """Return where a program of this Debian package is. Where it is not, the test skips, or fails in CI."""
    # The search path of a user does not always hold the folder of servers such as nginx.
    path = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin")
    if path is None:
        missing = f"{program} is missing: apt install {package}"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    return path
