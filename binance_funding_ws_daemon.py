#!/usr/bin/env python3
"""Keep the newest funding rate of every Binance USD-M perpetual in one JSON file.

The story, in the order in which data flows (binance_funding/daemon/):
  connection.py      one WebSocket connection to !markPrice@arr, in a thread of its own
  stream.py          several of them, watched: silence, lag, backoff, planned replacement
  feed.py            where their messages come together, each decoded once
  rest.py            snapshots: to compare, for what the stream lacks, and while it brings nothing current
  rates.py           both formats of Binance become FundingRate records
  exchange_clock.py  what time it is at Binance: a record is as old as it is by that clock
  book.py            the newest record of each symbol, whichever source brought it
  freshness.py       how current the market is, and its gaps
  publisher.py       all of it becomes the state file, on every change
supervisor.py joins the parts; schema.py says what the file holds, state_file.py replaces it atomically for the
HTTP server and everybody else. check.py answers --check.
"""

import gc
import sys

from binance_funding import service
from binance_funding.daemon.check import check_host
from binance_funding.daemon.supervisor import GARBAGE_THRESHOLD, Daemon, check
from binance_funding.settings import DAEMON


def main() -> int:
    """Run the daemon until SIGTERM, SIGINT or SIGHUP; return its exit status."""
    description = "Keep the newest Binance USD-M funding rates in a JSON file."
    settings = service.start_program(DAEMON, description, check, check_host)
    gc.set_threshold(GARBAGE_THRESHOLD)
    daemon = Daemon(settings)
    service.on_signals(daemon.threads.stop_request.make)
    return daemon.run()


if __name__ == "__main__":
    sys.exit(main())
