"""What does websocket-client's UTF-8 validation cost for messages of the size Binance sends?

For each size, this prints the fastest of several runs of websocket-client's validation, of Python's strict decoding
(which rejects everything that the validation rejects) and of JSON parsing.
"""

from __future__ import annotations

import importlib.util
import json
import platform
import timeit
from importlib.metadata import version

from websocket._utils import validate_utf8

REPEATS = 15
ROWS = {"October 2026, second message": 217, "October 2026, first message": 745}


def market(rows: int) -> bytes:
    """Return one message of the all-market stream, with the shape and size of Binance's messages."""
    row = {
        "e": "markPriceUpdate",
        "E": 1795500000000,
        "s": "1000SHIBUSDT",
        "p": "91725.87823913",
        "ap": "91724.11508696",
        "P": "91800.52317391",
        "i": "91769.87543478",
        "r": "0.00010000",
        "T": 1795507200000,
        "st": 1,
    }
    data = [row] * (rows - 1) + [row | {"s": "币安人生USDT"}]
    message = {"stream": "!markPrice@arr", "data": data}
    return json.dumps(message, separators=(",", ":"), ensure_ascii=False).encode()


def milliseconds(statement: str, message: bytes) -> float:
    """Return the duration of the fastest of REPEATS runs, in ms."""
    names = {"message": message, "validate_utf8": validate_utf8, "json": json}
    return min(timeit.repeat(statement, globals=names, number=1, repeat=REPEATS)) * 1000


def main() -> None:
    """Measure the durations and print them."""
    validator = "Python" if importlib.util.find_spec("wsaccel") is None else "wsaccel (compiled)"
    print(
        f"websocket-client {version('websocket-client')} validating in {validator}; Python {platform.python_version()}"
    )
    for name, rows in ROWS.items():
        message = market(rows)
        print(
            f"{name}, {len(message) / 1000:.0f} KB: "
            f"validation {milliseconds('validate_utf8(message)', message):.1f} ms, "
            f"strict decoding {milliseconds('message.decode()', message):.3f} ms, "
            f"JSON parsing {milliseconds('json.loads(message)', message):.2f} ms"
        )


if __name__ == "__main__":
    main()
