#!/usr/bin/env python3
"""Serve the newest Binance USD-M funding rates over HTTP, from the file that the daemon writes.

state_file.py   reads the file again when it has changed
answers.py      makes answers of its content: how old it is, whether it can be trusted
metrics.py      the same for Prometheus
http_server.py  takes requests and sends the answers; it never calls Binance and never writes
"""

import logging
import os
import sys

from binance_funding import __version__, events, service
from binance_funding.answers import Answers
from binance_funding.clock import Clock
from binance_funding.http_server import HttpServer, raise_file_limit
from binance_funding.settings import SERVER
from binance_funding.state_file import StateReader

_log = logging.getLogger("binance_funding.server")

EX_OK, EX_UNAVAILABLE, EX_SOFTWARE = 0, 69, 70


def main() -> int:
    """Run the server until SIGTERM or SIGINT; return its exit status."""
    settings = service.start_program(SERVER, "Serve the newest Binance USD-M funding rates over HTTP.")
    answers = Answers(StateReader(settings.state_file), settings, Clock())
    try:
        fitting = raise_file_limit(settings.api_max_connections)
        server = HttpServer(
            settings.api_host,
            settings.api_port,
            answers,
            max_connections=settings.api_max_connections,
            epoch=answers.epoch,
            alive=lambda: service.notify("READY=1\nWATCHDOG=1"),
            alive_s=service.watchdog_interval_s(),
        )
    except OSError as error:
        words = (error.strerror or str(error)).partition(" (while")[0].lower()
        _log.error("API_HOST=%s API_PORT=%d cannot be listened on: %s", settings.api_host, settings.api_port, words)
        return EX_UNAVAILABLE
    service.on_signals(server.stop)
    if fitting < settings.api_max_connections:
        _log.warning("%s", events.line("few files", connections=fitting, cause="the limit of open files (ulimit -n)"))
    host, port = server.address[:2]
    _log.info(
        "%s",
        events.line(
            "listening", version=__version__, pid=os.getpid(), host=host, port=port, state_file=settings.state_file
        ),
    )
    service.notify(f"READY=1\nSTATUS=listening on {host} port {port}, reading {settings.state_file}")
    if not service.ends_well("main", server.serve):
        return EX_SOFTWARE
    service.notify("STOPPING=1")
    _log.info("%s", events.line("stopped", cause="signal"))
    return EX_OK


if __name__ == "__main__":
    sys.exit(main())
