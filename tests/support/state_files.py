"""State files as a daemon writes them, a real one of the release before among them."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from binance_funding.daemon.record import render
from binance_funding.state_file import StateFile
from tests.support.clock import WALL_S
from tests.support.samples import rate


def record_text(symbol_text: str, updated_at_s: float = WALL_S) -> bytes:
    """Return one member of `funding_state` as the daemon writes it, with an interval of 8 h and without marks."""
    return render(
        rate(mark_price=1.5, index_price=1.25, source="rest"),
        symbol_text,
        f"{updated_at_s:.3f}",
        8,
        ',"interestRate":null,"fundingRateCap":null,"fundingRateFloor":null',
    ).encode()


RECORD = record_text('"A"')
HEADER: dict[str, Any] = {"version": 1, "updated_at": WALL_S, "daemon_pid": 1, "boot_id": "", "boottime": 1.0}
REST: dict[str, Any] = {"connection_status": {"rest": {}}, "comparison": {}, "gaps": [], "history": []}

OLD_FILE = Path(__file__).resolve().parents[1] / "data" / "state_file_1.0.0.json"
"""Written by release 1.0.0 on 2026-11-24 in its second run against a simulated exchange of 18 symbols, of which the
stream did not bring DOGEUSDT and REST did not list XRPUSDT. The daemon had been away for 11 s, and was killed with both
connections live."""

NOBODY = 65534


def record_of(symbol: str) -> bytes:
    """Return a record's text for another symbol."""
    return RECORD.replace(b'"A"', json.dumps(symbol, ensure_ascii=False).encode(), 1)


def write(path: Path, *records: bytes, **members: Any) -> None:
    """Write the file as a daemon does."""
    StateFile(str(path)).write(records or [RECORD], {**HEADER, **members}, REST)


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """Give up root's rights within the block: root may read and write anywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
