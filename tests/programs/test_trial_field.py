"""A new field of the state file is one line in the schema and one where it is measured; the rest follows."""

import json
import shutil
from pathlib import Path
from typing import Any

from tests.exchange import Exchange, Market
from tests.support.programs import FAST, ROOT, Program, Server, free_port
from tests.support.state_files import OLD_FILE
from tests.support.waiting import eventually

DAEMON, SERVER, PACKAGE = "binance_funding_ws_daemon.py", "funding_api_server.py", "binance_funding"

RECORD_FIELD = (
    (
        "schema.py",
        '    Field("indexPrice", ',
        '    Field("estimatedSettlePrice", PRICE, "settle price", default=0.0, metric="eps"),',
    ),
    ("daemon/rates.py", '    "indexPrice": (', '    "estimatedSettlePrice": ("P", "estimatedSettlePrice"),'),
)
STATUS_FIELD = (
    (
        "schema.py",
        '    Field("rejected_rows", ',
        '    Field("listed_now", COUNT, "symbols listed", metric="listed", in_health=True),',
    ),
    (
        "daemon/supervisor.py",
        '            "symbols_halted": freshness.halted',
        '            "listed_now": len(self._book.listed or ()),',
    ),
)


class ServerOf(Server):
    """The HTTP server of a copy of the product."""

    def __init__(self, product: Path, folder: Path) -> None:
        self.port = free_port()
        Program.__init__(self, str(product / SERVER), folder, {**FAST, "API_PORT": self.port})
        self.wait_for_line("listening")


def changed_product(folder: Path) -> Path:
    """Copy the product and add a line after each of those named; return the copy."""
    product = folder / "product"
    shutil.copytree(ROOT / PACKAGE, product / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))
    for program in (DAEMON, SERVER):
        shutil.copy(ROOT / program, product)
    for name, after, added in (*RECORD_FIELD, *STATUS_FIELD):
        path = product / PACKAGE / name
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        (place,) = (number for number, line in enumerate(lines) if line.startswith(after))
        lines.insert(place + 1, added + "\n")
        path.write_text("".join(lines), encoding="utf-8")
    return product


def test_a_trial_field_of_record_and_status_is_two_lines_each(tmp_path: Path) -> None:
    """Written, taken over, checked, served and scraped; a file of the release before, which lacks both, is read."""
    product, file = changed_product(tmp_path), tmp_path / ".funding_state.json"
    shutil.copy(OLD_FILE, file)
    market = Market(usd_m=14, tradfi=4, coin_m=0, fundless=0)
    with Exchange(market, tick_s=0.5) as exchange, ServerOf(product, tmp_path) as server:
        status, old = server.get("/funding/BTCUSDT")
        assert (status, old["estimatedSettlePrice"]) == (503, 0.0)
        assert server.get("/funding/health")[1]["listedNow"] is None

        addresses = {"BINANCE_WS_URLS": exchange.ws_url, "BINANCE_REST_URL": exchange.rest_url}
        with Program(str(product / DAEMON), tmp_path, {**FAST, **addresses}) as daemon:
            daemon.wait_for_line("took over symbols=18")

            def is_current() -> bool:
                answer: dict[str, Any] = server.get("/funding/BTCUSDT")[1]
                sent: str = market.row("BTCUSDT", answer["eventTime"])["P"]
                return (answer["source"], answer["estimatedSettlePrice"]) == ("websocket", float(sent))

            eventually(is_current, "the settle price that the exchange sent")
            eventually(lambda: server.get("/funding/health")[1]["listedNow"] == 18, "the number of symbols listed")
            assert json.loads(file.read_bytes())["connection_status"]["listed_now"] == 18
            metrics = server.request("/metrics")[2].decode()
            assert "# HELP binance_funding_eps Settle price.\n" in metrics
            assert "\nbinance_funding_listed 18\n" in metrics
            assert '\nbinance_funding_eps{symbol="BTCUSDT"} ' in metrics
            daemon.terminate()
        assert daemon.process.returncode == 0
        assert "Traceback" not in "\n".join([*daemon.log, *server.log])
