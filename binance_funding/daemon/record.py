"""The FundingRate record, which every part of the daemon passes on, and how it is written into the state file."""

from typing import NamedTuple

STREAM, REST = "websocket", "rest"


class FundingRate(NamedTuple):
    """One symbol's funding rate and prices at one event time. Every number is finite."""

    symbol: str
    funding_rate: float
    """Fraction per funding interval."""
    mark_price: float
    """In the quote asset; above 0, like the index price."""
    index_price: float
    next_funding_time_ms: int
    event_time_ms: int
    """On Binance's clock."""
    source: str
    """STREAM or REST."""
    received_s: float
    """When it arrived, on this host's steady clock."""


def render(rate: FundingRate, symbol_text: str, updated_at_text: str, interval_hours: int, marks_text: str) -> str:
    """Return the record as one member of `funding_state`, in the order of schema.RECORD.

    The symbol and the time of update are given as JSON text, because many records share them; the marks as JSON members
    that begin with a comma, or "".
    """
    return (
        f'{symbol_text}:{{"fundingRate":{rate.funding_rate!r},"markPrice":{rate.mark_price!r},'
        f'"indexPrice":{rate.index_price!r},"nextFundingTime":{rate.next_funding_time_ms},'
        f'"eventTime":{rate.event_time_ms},"updatedAt":{updated_at_text},'
        f'"fundingIntervalHours":{interval_hours},"source":"{rate.source}"{marks_text}}}'
    )
