#!/usr/bin/env python3
"""Serve the newest Binance USD-M funding rates over HTTP, from the file that the daemon writes.

The story, in the order in which data flows (binance_funding/server/):
  state_reader.py    reads the state file again when it has changed
  content.py         the content of one state file, and the ages of its records
  listing.py         renders each record once for each change
  api.py             the endpoints, and their answers
  parameters.py      reads the parameters of a request; unknown.py explains names that are not symbols
  push.py            sends subscribers the records that changed
  history.py         answers from the settlement history
  health.py          judges whether the service is well now; report.py does it for the last 24 hours
  metrics.py         writes the numbers of the file for Prometheus
  page.py            serves page.html, which shows the file to people
  representation.py  compresses a large answer, and gives it an ETag
  http/              reads requests and sends answers; knows nothing of funding rates; listener.py opens its socket
"""

import math
import os
import sys

from binance_funding import __version__, program, systemd
from binance_funding.clock import Clock
from binance_funding.log import EventLogger
from binance_funding.server.api import Api
from binance_funding.server.http.server import HttpServer
from binance_funding.server.listener import explanation, listen, raise_file_limit
from binance_funding.server.state_reader import StateReader
from binance_funding.settings import SERVER

_log = EventLogger("binance_funding.server")


def main() -> int:
    """Run the server until SIGTERM, SIGINT or SIGHUP; return its exit status."""
    settings = program.start_program(SERVER, "Serve the newest Binance USD-M funding rates over HTTP.")
    threads, host, port = program.Threads(), settings.api_host, settings.api_port
    program.on_signals(threads.stop_request.make)
    listener = program.acquire(lambda: listen(host, port), explanation(host, port), threads.stop_request)
    fitting = raise_file_limit(settings.api_max_connections)
    if fitting < settings.api_max_connections:
        _log.warning("fewer connections", most=fitting, cause="the limit of open files (ulimit -n)")
    api = Api(StateReader(settings.state_file), settings, Clock())
    server = HttpServer(
        listener,
        api,
        max_connections=fitting,
        cache_version=api.version,
        meter=api.meter,
        on_alive=lambda: systemd.notify("READY=1\nWATCHDOG=1"),
        alive_every_s=systemd.watchdog_interval_s() or math.inf,
    )
    program.on_signals(server.stop)
    if threads.stop_request.wait(0):  # a signal came before the server could receive it
        server.stop()
    host, port = server.address
    _log.info("listening", version=__version__, pid=os.getpid(), host=host, port=port, state_file=settings.state_file)
    systemd.notify(f"READY=1\nSTATUS=listening on {host} port {port}, reading {settings.state_file}")
    threads.guard("main", server.serve)
    systemd.notify("STOPPING=1")
    _log.info("stopped", cause="a bug" if threads.crashed else "signal")
    return threads.exit_status()


if __name__ == "__main__":
    sys.exit(main())
