"""The FundingRate record, which every part of the daemon passes on, and how it is written into the state file."""

from typing import NamedTuple

from ..schema import USUAL_INTERVAL_HOURS

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
    estimated_settle_price: float | None = None
    """None if the row does not have it."""
    interest_rate: float | None = None
    """Only REST rows have it."""


class Terms(NamedTuple):
    """The terms of a symbol's funding, as Binance names them in fundingInfo."""

    hours: int
    """Funding interval."""
    cap: float | None
    """Highest funding rate. It is None if Binance names none, and so is the floor."""
    floor: float | None
    is_assumed: bool = False
    """Whether the interval is only assumed."""


UNKNOWN_TERMS = Terms(USUAL_INTERVAL_HOURS, None, None, is_assumed=True)


def number(value: float | None) -> str:
    """Return a number as JSON."""
    return "null" if value is None else repr(value)


def render(rate: FundingRate, symbol_text: str, updated_at_text: str, interval_hours: int, more_text: str) -> str:
    """Return the record as one member of `funding_state`, in the order of schema.RECORD.

    Symbol and time of update are JSON text, made by the caller, because many records share them. `more_text` holds the
    last members as JSON, each after a comma.
    """
    return (
        f'{symbol_text}:{{"fundingRate":{rate.funding_rate!r},"markPrice":{rate.mark_price!r},'
        f'"indexPrice":{rate.index_price!r},"nextFundingTime":{rate.next_funding_time_ms},'
        f'"eventTime":{rate.event_time_ms},"updatedAt":{updated_at_text},'
        f'"fundingIntervalHours":{interval_hours},"source":"{rate.source}",'
        f'"estimatedSettlePrice":{number(rate.estimated_settle_price)}{more_text}}}'
    )
