"""Newest funding rates of all Binance USD-M perpetuals for one host: stream -> book -> state file -> HTTP."""

__version__ = "1.1.0"
