"""The API over a state file, on clocks moved by hand, asked as the HTTP server asks it."""

import json
from pathlib import Path
from typing import Any

from binance_funding.server.api import Api
from binance_funding.server.http.message import Request, Response
from binance_funding.server.state_reader import StateReader
from binance_funding.settings import Settings
from tests.support.clock import BOOT_ID, SimulatedClock
from tests.support.samples import put

STALE_S = 30.0


class ApiOverFile:
    """Answers of default settings. The file does not exist until it is put there."""

    def __init__(self, directory: Path, boot_id: str = BOOT_ID) -> None:
        self.path = directory / "state.json"
        self.time = SimulatedClock(boot_id)
        self.api = Api(StateReader(str(self.path)), Settings(), self.time.clock)

    def put(self, content: dict[str, Any] | bytes) -> None:
        """Replace the state file."""
        put(self.path, content)

    def get(self, path: str, query: str = "", **headers: str) -> Response:
        """Ask as the HTTP server does: it looks for changes first."""
        self.api.version()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.api(Request("GET", path, query, named))

    def json(self, path: str, query: str = "", status: int = 200) -> dict[str, Any]:
        """Return the body of an answer of this status."""
        response = self.get(path, query)
        assert (response.status, dict(response.headers)["Content-Type"]) == (status, "application/json; charset=utf-8")
        assert response.body.endswith(b"\n")
        body: dict[str, Any] = json.loads(response.body)
        _check_headers(path, response)
        return body

    def health(self, expected: str, query: str = "") -> dict[str, Any]:
        """Return the body of /funding/health, whose verdict and status must be this one's."""
        body = self.json("/funding/health", query, status=503 if expected == "unhealthy" else 200)
        assert body["status"] == expected, body["error"]
        return body


def _check_headers(path: str, response: Response) -> None:
    """Check what holds for every answer: a cache keeps only data, and that a symbol is unknown."""
    headers = dict(response.headers)
    assert len(headers) == len(response.headers)
    if response.status == 503:
        assert (headers["Cache-Control"], headers["Retry-After"]) == ("no-store", "5")
    is_data = response.status == 200 and path not in ("/funding/health", "/health", "/healthz", "/funding/report")
    if path != "/" and not is_data and b"unknown symbol" not in response.body:
        assert headers["Cache-Control"] == "no-store"
