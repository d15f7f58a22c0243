"""Run the simulated exchange until SIGINT or SIGTERM, its addresses printed as settings of the daemon."""

from __future__ import annotations

import argparse
import signal

from tests.exchange import FUTURE, Exchange, Market


def main() -> None:
    """Parse the command line, print two lines and serve."""
    parser = argparse.ArgumentParser(prog="python -m tests.exchange", description=__doc__)
    parser.add_argument("--ws-port", type=int, default=0, help="0: any free one")
    parser.add_argument("--rest-port", type=int, default=0, help="0: any free one")
    parser.add_argument("--tick", type=float, default=3.0, help="seconds between two ticks")
    parser.add_argument("--ping", type=float, default=180.0, help="seconds between two pings")
    parser.add_argument("--pong-deadline", type=float, default=600.0, help="seconds to answer a ping")
    parser.add_argument("--lifetime", type=float, default=86_400.0, help="seconds after which a connection is cut")
    parser.add_argument("--usd-m", type=int, default=664, help="USD-M perpetuals")
    parser.add_argument("--lag", type=float, default=0.0, help="seconds by which the stream's event times are behind")
    parser.add_argument("--time-skew", type=float, default=0.0, help="seconds by which /fapi/v1/time is ahead")
    options = parser.parse_args()
    signals = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # the exchange's thread inherits this: they wait for sigwait
    exchange = Exchange(
        Market(usd_m=options.usd_m),
        tick_s=options.tick,
        ping_s=options.ping,
        pong_deadline_s=options.pong_deadline,
        lifetime_s=options.lifetime,
        ws_port=options.ws_port,
        rest_port=options.rest_port,
    )
    exchange.rest_time_skew_s = options.time_skew
    exchange.lag(FUTURE, options.lag)
    with exchange:
        print(f"BINANCE_WS_URLS={exchange.ws_url},{exchange.retired_url}", flush=True)
        print(f"BINANCE_REST_URL={exchange.rest_url}", flush=True)
        signal.sigwait(signals)


if __name__ == "__main__":
    main()
