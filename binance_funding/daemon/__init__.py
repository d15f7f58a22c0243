"""From Binance to the state file: stream and REST, the newest rate of each symbol, and how fresh the market is."""
