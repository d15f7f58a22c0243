#!/usr/bin/env python3
"""Keep the newest funding rate of every Binance USD-M perpetual in one JSON file.

The story, in the order in which data flows (binance_funding/daemon/):
  source/connection.py      reads one WebSocket connection to !markPrice@arr, in a thread of its own
  source/pool.py            keeps several connections alive, and replaces silent, lagging and old ones
  source/rest_poller.py     decides when to send which REST request
  source/rest_client.py     sends one REST request, which ends at its deadline
  source/libraries.py       adds certificates, name lookups and aborting to requests and websocket-client
  source/refusals.py        computes how long Binance asks us to wait
  source/faults.py          says why a connection or a request failed
  source/rates.py           decodes both formats of Binance into FundingRate records
  record.py                 the FundingRate record, and its form in the state file
  source/feed.py            checks each message against Binance's time, and merges it
  market/exchange_clock.py  Binance's time, by which every age is counted
  market/book.py            the newest record of each symbol, whichever source delivered it
  market/intervals.py       the funding interval, cap and floor of each symbol
  market/freshness.py       measures how current the market is, and notes gaps
  market/symbol_seconds.py  counts for how long symbols were fresh
  market/stream_state.py    decides whether REST has to replace the stream
  market/thresholds.py      every limit by which the market is judged
  market/comparison.py      compares a REST snapshot with the stream
  market/last_day.py        the last 24 hours, in quarter hours
  source/settlement_filler.py  fills the settlement history (../settlements.py)
  output/publisher.py       writes the state file on every change
  output/restore.py         restores the state from the file at the start
  supervisor.py             joins the parts, and watches their threads
  check.py                  answers --check
Both programs share ../schema.py (the fields of the state file) and ../state_file.py (replaces and reads it).
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
