"""State files for the page, written as of now: a market to look at, and a day to remember."""

import time
from pathlib import Path
from typing import Any

from tests.support.programs import STATE_FILE, Server
from tests.support.samples import put, record, state, status

PATIENT = {"STALE_SECONDS": 180, "HEARTBEAT_SECONDS": 60}
"""Settings with which a file that nobody writes again stays fresh for as long as a test needs."""
QUARTER_S = 900
HOSTILE = "<img src=x onerror=alert(1)>"
NON_ASCII = "币安人生USDT"


def aged(age_s: float, **fields: Any) -> dict[str, Any]:
    """Return a record that was true so long ago; its funding is in 2 h 0 min 30 s from then."""
    at_s = time.time() - age_s
    times = {"updatedAt": round(at_s, 3), "eventTime": int(at_s * 1000), "nextFundingTime": int((at_s + 7230) * 1000)}
    return record(**{**times, **fields})


def market() -> dict[str, dict[str, Any]]:
    """Return records that differ in every column and in what is wrong with them."""
    named = {
        "BTCUSDT": aged(0.5, fundingRate=0.0001, markPrice=91725.878, indexPrice=91769.875),
        "ETHUSDT": aged(1.0, fundingRate=-0.00025, markPrice=3250.5, indexPrice=3248.0, fundingIntervalHours=4),
        NON_ASCII: aged(1.5, fundingRate=0.0015, markPrice=0.0012345678, indexPrice=0.0012345, fundingIntervalHours=1),
        HOSTILE: aged(2.0, fundingRate=0.0, markPrice=12.0, indexPrice=0.0),
        "OLDUSDT": aged(1000.0, fundingRate=0.003, markPrice=1.0, indexPrice=1.0),
        "HALTUSDT": aged(100.0, fundingRate=0.002, halted=True, fundingIntervalAssumed=True),
        "RESTUSDT": aged(3.0, fundingRate=0.0005, source="rest"),
        "LEFTUSDT": aged(4.0, fundingRate=0.0006, unlisted=True),
    }
    many = {
        f"SIM{n:03d}USDT": aged(
            5 + n / 10,
            fundingRate=(n * 7 % 40 - 20) / 1e5,
            markPrice=10.0 + n * 13 % 40,
            indexPrice=10.0 + n * 13 % 40 + (n * 3 % 40 - 20) / 1000,
            fundingIntervalHours=(1, 2, 4, 8)[n % 4],
            nextFundingTime=int((time.time() + 3600 + n * 11 % 40 * 60) * 1000),
        )
        for n in range(40)
    }
    return {**named, **many}


def served(**members: Any) -> dict[str, Any]:
    """Return a connection status in which no gap opens, however long a test looks at it."""
    return status(market_served_time=time.time() + 3600, **members)


def write(folder: Path, records: dict[str, dict[str, Any]], **members: Any) -> None:
    """Write a file of now in which all is well, but for the members given."""
    good = {"updated_at": time.time(), "boot_id": "", "connection_status": served()}
    put(folder / STATE_FILE, state(records, **{**good, **members}))


def quarter_start_s() -> int:
    """Return when this quarter hour began."""
    return int(time.time() // QUARTER_S) * QUARTER_S


def quarter(start_s: int, **counts: float) -> dict[str, float]:
    """Return a quarter hour of `history` that went well, but for the counts given."""
    good = {"observed": 900, "unplanned": 0, "planned": 0, "runs": 15, "compared": 9000, "mismatched": 0, "worst": 3.1}
    return {"start": start_s, **good, **counts}


def serve(folder: Path, **settings: Any) -> Server:
    """Return a server over the folder's file, which nobody writes again."""
    return Server(folder, **{**PATIENT, **settings})
