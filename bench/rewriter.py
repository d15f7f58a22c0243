"""Replaces a state file every second, as a daemon does."""

import json
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from binance_funding.state_file import StateFile

_EVERY_S = 1.0


class Rewriter:
    """While entered, writes the file again every second, in a thread of its own."""

    def __init__(self, path: Path, state: dict[str, Any]) -> None:
        """Write nothing yet. The state is changed as time goes by."""
        self.advance = True
        """Whether every record is new with each write, and not the heartbeat alone. May be set at any time."""
        self._file = StateFile(str(path))
        self._state = state
        self._lock = threading.Lock()  # held while writing: the thread and the caller of write() share one file name
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rewriter")

    def write(self) -> None:
        """Write the file now. From any thread."""
        with self._lock:
            now_s = time.time()
            self._state |= {"updated_at": now_s, "boottime": time.clock_gettime(time.CLOCK_BOOTTIME)}
            if self.advance:
                for record in self._state["funding_state"].values():
                    record |= {"updatedAt": now_s, "eventTime": round(now_s * 1000)}
            rest = dict(self._state)
            records = [
                f"{json.dumps(symbol)}:{json.dumps(record)}".encode()
                for symbol, record in rest.pop("funding_state").items()
            ]
            self._file.write(records, {"version": rest.pop("version")}, rest)

    def _run(self) -> None:
        while not self._stop.wait(_EVERY_S):
            self.write()

    def __enter__(self) -> "Rewriter":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
