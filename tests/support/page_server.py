"""The real server, with the fields and answers that it gets on other branches: `python -m tests.support.page_server`.

When those are merged, this file goes, and `page_files.serve` returns `Server`.
"""

import json
import sys
import urllib.parse
from pathlib import Path
from typing import Any

from binance_funding import schema
from binance_funding.schema import RATIO, UNIX_MS, Field

HISTORY_FILE = Path(".page_history.json")
"""Answers of /funding/{symbol}/history by symbol, in the folder of the state file."""
_NEW = (
    Field("settledFundingRate", RATIO, ""),
    Field("settledFundingTime", UNIX_MS, ""),
    *(Field(f"fundingRateSum{time}", RATIO, "") for time in ("24h", "7d", "30d")),
)
# The other modules take these names when they are imported, so this comes first. A test imports only HISTORY_FILE.
if __name__ == "__main__":
    schema.RECORD = (*schema.RECORD, *_NEW)
    schema.SERVED = (*schema.SERVED, *_NEW)

import funding_api_server  # noqa: E402
from binance_funding.server import api  # noqa: E402
from binance_funding.server.http.message import Request, Response  # noqa: E402
from binance_funding.server.listing import dump  # noqa: E402

_answer = api.Api.__call__
_HISTORY = "/history"


def _answered(self: api.Api, request: Request) -> Response:
    """Answer from the history, or as the server does."""
    if request.path.endswith(_HISTORY):
        return _history(request.path.removesuffix(_HISTORY).rpartition("/")[2], request.query)
    return _answer(self, request)


def _history(symbol: str, query: str) -> Response:
    headers = (("Content-Type", "application/json; charset=utf-8"),)
    found = json.loads(HISTORY_FILE.read_text(encoding="utf-8")).get(symbol) if HISTORY_FILE.exists() else None
    if found is None:
        return Response(404, dump({"error": "unknown symbol"}), headers)
    from_ms = int(dict(urllib.parse.parse_qsl(query))["from"])
    data = [row for row in found["data"] if row["fundingTime"] >= from_ms]
    total = sum(row["fundingRate"] for row in data) if found["complete"] else None
    content: dict[str, Any] = {**found, "from": from_ms, "count": len(data), "fundingRateSum": total, "data": data}
    return Response(200, dump(content), headers)


def main() -> int:
    """Run the server."""
    api.Api.__call__ = _answered  # type: ignore[method-assign]
    return funding_api_server.main()


if __name__ == "__main__":
    sys.exit(main())
