"""Binance -> records: the WebSocket connections, the REST requests, and both formats."""
