"""The server's side of the state file: read again only when it has changed."""

import os
from typing import Any

from ..state_file import UnusableState, read


class StateReader:
    """What the file holds now. For one thread."""

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)  # what is said of it is read in other folders, too
        self._seen: tuple[int, ...] | None = None
        self.state: dict[str, Any] | None = None
        """What the file holds, completed as the schema says; None where there is no usable file."""
        self.error = "not read yet"
        """Why there is none."""
        self.version = 0
        """Grows whenever `state` changed."""

    def refresh(self) -> None:
        """Bring `state` up to date; costs one stat where nothing has changed. Never raises for a bad file."""
        seen = self._look()
        if seen == self._seen and self.version:
            return
        self._seen = seen
        try:
            self.state, self.error = read(self.path), ""
        except UnusableState as error:
            if isinstance(error.__cause__, OSError) and seen is not None:
                # No property of the file, such as too many open files: keep what was read, and look again.
                self._seen = ()
                if self.state is not None:
                    return
            self.state, self.error = None, str(error)
        self.version += 1

    def _look(self) -> tuple[int, ...] | None:
        try:
            info = os.stat(self.path)
        except OSError:
            return None
        return info.st_ino, info.st_mtime_ns, info.st_size, info.st_dev
