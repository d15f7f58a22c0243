"""Explains names that are not symbols of the market, and suggests the symbol that is probably meant. Pure."""

import re
from collections.abc import Container
from typing import NamedTuple

# Since June 2026 both futures markets of Binance share one system, so clients meet the names of the other market too.
_COIN_M = re.compile(".+USD_(PERP|[0-9]{6})")
_DELIVERY = re.compile(".+_[0-9]{6}")
# How other exchanges and programs mark a perpetual: BTC-PERP, BTC-USDT-SWAP, BTCUSDT.P, and ccxt's BTC/USDT:USDT.
_PERPETUAL = re.compile(r"([-_/ ]?(PERP|SWAP)|\.P|:.*)$")
_SEPARATORS = str.maketrans("", "", "-_/ ")


class Unknown(NamedTuple):
    """What is answered for an unknown symbol."""

    error: str
    suggestion: str = ""
    """A symbol of the market in upper case; empty if there is none to suggest."""


def explain(name: str, market: Container[str]) -> Unknown:
    """Say why a name, in upper case, is not among the symbols of the market.

    The suggestion is the first of these that is a symbol: the name without separators; the same with USDT added (after
    USD: T); and both again without the ending that marks a perpetual.
    """
    if _COIN_M.fullmatch(name):
        return Unknown("unknown symbol: COIN-M symbols are not served")
    if _DELIVERY.fullmatch(name):
        return Unknown("unknown symbol: delivery contracts have no funding")
    for spelling in dict.fromkeys((name, _PERPETUAL.sub("", name))):
        base = spelling.translate(_SEPARATORS)
        for candidate in (base, base + ("T" if base.endswith("USD") else "USDT")):
            if candidate in market:
                return Unknown("unknown symbol", candidate)
    return Unknown("unknown symbol")
