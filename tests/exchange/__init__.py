"""A simulated Binance USD-M exchange on loopback sockets, true to the service in what a client can notice.

`Market` makes the numbers, `Exchange` serves them and misbehaves on request, `ThrottlingProxy` is a slow link to it.
`python -m tests.exchange` runs one until it is told to stop.
"""

from tests.exchange.ledger import Ledger
from tests.exchange.market import STREAM, STREAM_1S, Expected, Market, envelope, ticker_row, to_json
from tests.exchange.rest import FUNDING_INFO, FUNDING_RATE, PREMIUM_INDEX, SERVER_TIME, RestRequest
from tests.exchange.simulator import ALL, FUTURE, Exchange, Which
from tests.exchange.stream import Attempt, ConnectionRecord
from tests.exchange.throttle import ThrottlingProxy

__all__ = [
    "ALL",
    "FUNDING_INFO",
    "FUNDING_RATE",
    "FUTURE",
    "PREMIUM_INDEX",
    "SERVER_TIME",
    "STREAM",
    "STREAM_1S",
    "Attempt",
    "ConnectionRecord",
    "Exchange",
    "Expected",
    "Ledger",
    "Market",
    "RestRequest",
    "ThrottlingProxy",
    "Which",
    "envelope",
    "ticker_row",
    "to_json",
]
