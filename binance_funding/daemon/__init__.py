"""Binance to state file: stream and REST, the newest rate of each symbol, and how fresh the whole is."""
