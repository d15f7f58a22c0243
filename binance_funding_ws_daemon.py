#!/usr/bin/env python3
"""Keep the newest funding rate of every Binance USD-M perpetual in one JSON file.

The story, in the order in which data flows (binance_funding/daemon/):
  source/connection.py      one WebSocket connection to !markPrice@arr, in a thread of its own
  source/pool.py            several of them, watched: silence, lag, backoff, planned replacement
  source/rest_poller.py     snapshots: to compare, for symbols that the stream lacks, and while it delivers nothing new
  source/rest_client.py     one REST request, which ends at its deadline
  source/faults.py          why a connection or a request failed
  source/rates.py           both formats of Binance become FundingRate records
  record.py                 the FundingRate record, and how the file shows it
  source/feed.py            where everything from Binance arrives: decoded once, checked against its time, merged
  market/exchange_clock.py  what time it is at Binance: a record is as old as it is by that clock
  market/book.py            the newest record of each symbol, whichever source delivered it
  market/freshness.py       how current the market is, and its gaps
  market/stream_state.py    whether the stream brings the market, or REST has to
  market/thresholds.py      every limit by which the market is judged
  market/comparison.py      a REST snapshot against the stream
  market/last_day.py        the last 24 hours in quarter hours
  output/publisher.py       all of it becomes the state file, on every change
  output/restore.py         and back from it at the start
supervisor.py joins the parts; schema.py says what the file holds, state_file.py replaces it atomically for the
HTTP server and everybody else. check.py answers --check.
"""

import gc
import sys

from binance_funding import program
from binance_funding.daemon.check import check_host
from binance_funding.daemon.supervisor import GARBAGE_THRESHOLD, Daemon, check
from binance_funding.settings import DAEMON


def main() -> int:
    """Run the daemon until SIGTERM, SIGINT or SIGHUP; return its exit status."""
    description = "Keep the newest Binance USD-M funding rates in a JSON file."
    settings = program.start_program(DAEMON, description, check, check_host)
    gc.set_threshold(GARBAGE_THRESHOLD)
    daemon = Daemon(settings)
    program.on_signals(daemon.threads.stop_request.make)
    return daemon.run()


if __name__ == "__main__":
    sys.exit(main())
