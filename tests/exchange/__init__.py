"""A simulated Binance USD-M exchange on loopback sockets, true to the service in what a client can notice.

`Market` makes the numbers, `Exchange` serves them and misbehaves on request.
`python -m tests.exchange` runs one until it is told to stop.
"""

from tests.exchange.market import STREAM, STREAM_1S, Expected, Market, envelope, ticker_row, to_json
from tests.exchange.rest import RestRequest
from tests.exchange.simulator import ALL, FUTURE, Exchange, Which
from tests.exchange.stream import Attempt, ConnectionRecord

__all__ = [
    "ALL",
    "FUTURE",
    "STREAM",
    "STREAM_1S",
    "Attempt",
    "ConnectionRecord",
    "Exchange",
    "Expected",
    "Market",
    "RestRequest",
    "Which",
    "envelope",
    "ticker_row",
    "to_json",
]
