"""The server's side of the state file, which is read again only after it has changed."""

import os
from typing import Any

from ..state_file import UnusableState, read


class StateReader:
    """The current content of the file. For one thread."""

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)  # error texts name the whole path
        self._seen: tuple[int, ...] | None = None
        """Identity of the file that was read last; None if there was no file."""
        self.state: dict[str, Any] | None = None
        """The content of the file, completed as the schema says; None if there is no usable file."""
        self.error = "not read yet"
        """Why there is no usable file; empty if there is one."""
        self.version = 0
        """Grows whenever `state` or `error` changes."""

    def refresh(self) -> None:
        """Bring `state` up to date. This costs one stat if nothing has changed. Never raises for a bad file."""
        seen = self._look()
        if seen == self._seen and self.version:
            return
        self._seen = seen
        try:
            self.state, self.error = read(self.path), ""
        except UnusableState as error:
            if isinstance(error.__cause__, OSError) and seen is not None:
                # The file is not the cause (for example EMFILE). Keep the last content, and try again next time.
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
