"""The settlement history is filled over real sockets, and read meanwhile."""

import threading
from pathlib import Path

import requests
from binance_funding.daemon.market.last_estimates import LastEstimates
from binance_funding.daemon.source.rest import RestError

from binance_funding.clock import Clock
from binance_funding.daemon.source.settlement_filler import SettlementFiller
from binance_funding.log import EventLogger, LogThrottle
from binance_funding.settlements import HOUR_MS, HistoryFault, SettlementReader, SettlementWriter, to_decimal
from tests.exchange import FUNDING_RATE, Exchange, Market
from tests.support.settlement_world import failure
from tests.support.waiting import eventually


class Client:
    """Asks the simulated exchange."""

    def __init__(self, base_url: str) -> None:
        self._base_url = base_url

    def get(self, path: str, within_s: float) -> bytes:
        """Return the body of a successful answer."""
        answer = requests.get(self._base_url + path, timeout=within_s)
        if answer.status_code != 200:
            raise failure(str(answer.status_code), float(answer.headers.get("Retry-After", 0)))
        return answer.content


def test_hours_are_filled_from_the_exchange_while_another_thread_reads(tmp_path: Path) -> None:
    """Row by row as in the ledger. A refusal is handed on; afterwards it goes on."""
    path, clock, errors = str(tmp_path / "history.sqlite3"), Clock(), list[RestError]()
    with Exchange(Market(usd_m=40, tradfi=8, coin_m=0, fundless=0)) as exchange:
        exchange.rest_fault(429, retry_after_s=7, count=1, path=FUNDING_RATE)
        filler = SettlementFiller(
            SettlementWriter(path, 1),
            Client(exchange.rest_url),
            clock,
            LogThrottle(EventLogger("test"), clock.steady_s),
            now_ms=exchange.now_ms,
            next_funding_times=dict,
            estimates=LastEstimates(),
            may_ask=lambda: True,
            on_error=errors.append,
        )
        stop = threading.Event()
        thread = threading.Thread(target=filler.run, args=(stop,))
        thread.start()
        reader = SettlementReader(path)

        def rows() -> list[tuple[str, int, str]]:
            try:
                window = reader.window(0, exchange.now_ms(), 10_000, symbol=None, newest=False)
            except HistoryFault:
                return []
            return [(row.symbol, row.funding_time_ms, to_decimal(row.rate_e8)) for row in window.rows]

        found = eventually(rows, "rows in the history", 60)
        stop.set()
        thread.join(20)
        assert not thread.is_alive()
        assert len(errors) == 1
        hours = {time_ms // HOUR_MS for _, time_ms, _ in found}
        ledger = [row for hour in hours for row in exchange.ledger.rows(hour * HOUR_MS, (hour + 1) * HOUR_MS - 1)]
        expected = [(row["symbol"], row["fundingTime"], row["fundingRate"]) for row in ledger]
        assert sorted(found) == sorted(expected)
        reader.close()
