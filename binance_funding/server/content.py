"""One content of the state file: its records as they are served, how old they are, and which of them are stale. Pure.

Every age is the sum of two parts. The first is the age that the record had when the file was written. The second is the
age of the file, which is the same for all records and grows until the next file is read.
"""

import math
from bisect import bisect_right
from collections.abc import Mapping
from typing import Any

Record = Mapping[str, Any]
"""A record as it is served: the fields of `schema.SERVED`, and its marks."""

# Binance's own premium index has as many decimal places.
_PREMIUM_PLACES = 8


class Content:
    """What one state file says. Ages are in seconds and never negative."""

    def __init__(self, state: Mapping[str, Any], stale_s: float) -> None:
        """Take what `state_file.read` returned, and the age beyond which a record is stale for everybody."""
        self.state = state
        self.written_at_s: float = state["updated_at"]
        self.status: Mapping[str, Any] = state["connection_status"]
        self.stale_s = stale_s
        self.records = {symbol: self._served(symbol, record) for symbol, record in state["funding_state"].items()}
        """By symbol, in the order of the file."""
        records = self.records.values()
        # Both lists are sorted. They hold ages as of the moment when the file was written.
        self._ages_s = sorted(map(self.age_when_written_s, records))
        market = [record for record in records if "unlisted" not in record and "halted" not in record]
        self._market_ages_s = sorted(map(self.age_when_written_s, market))

        self.market_size = len(self._market_ages_s)
        """The number of symbols that Binance lists and has not halted."""

    def _served(self, symbol: str, record: Record) -> Record:
        annualized = record["fundingRate"] * 24 / record["fundingIntervalHours"] * 365
        return {
            "symbol": symbol,
            **record,
            # A record cannot be newer than its file. If it claims to be, it would otherwise stay fresh for ever.
            "updatedAt": min(record["updatedAt"], self.written_at_s),
            "annualizedFundingRate": round(annualized, 12),
            "premium": _premium(record["markPrice"], record["indexPrice"]),
        }

    def age_when_written_s(self, record: Record) -> float:
        """Return how old a record was when the file was written."""
        age_s: float = self.written_at_s - record["updatedAt"]
        return age_s

    def age_of_time_s(self, time_s: float, file_age_s: float) -> float:
        """Return how long ago a time of the file was."""
        return max(0.0, self.written_at_s - time_s + file_age_s)

    def newest_age_s(self, file_age_s: float) -> float | None:
        """Return the age of the newest record; None if there are no records."""
        return self._ages_s[0] + file_age_s if self._ages_s else None

    def oldest_age_s(self, file_age_s: float) -> float | None:
        """Return the age of the oldest record of the market; None if the market has no records."""
        return self._market_ages_s[-1] + file_age_s if self._market_ages_s else None

    def stale_of_market(self, file_age_s: float, limit_s: float) -> int:
        """Return how many symbols of the market are older than the limit."""
        return len(self._market_ages_s) - bisect_right(self._market_ages_s, limit_s - file_age_s)

    def stale_count(self, file_age_s: float, limit_s: float) -> int:
        """Return how many of all records are older than the limit."""
        return len(self._ages_s) - bisect_right(self._ages_s, limit_s - file_age_s)


def _premium(mark_price: float, index_price: float) -> float | None:
    """Return the premium; None if a damaged file has an index price of 0, or prices whose ratio is not a number."""
    ratio = mark_price / index_price if index_price else math.inf
    return round(ratio - 1, _PREMIUM_PLACES) if math.isfinite(ratio) else None
