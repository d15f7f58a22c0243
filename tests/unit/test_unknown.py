"""Names that are no symbol: what is said of them, and which symbol is suggested."""

import pytest

from binance_funding.server.unknown import explain

MARKET = {"BTCUSDT", "ETHUSDC", "PERPUSDT", "币安人生USDT", "1000PEPEUSDT"}


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        *((name, "BTCUSDT") for name in ("BTC", "BTCUSD", "BTC-USDT", "BTC_USDT", "BTC/USDT", "BTC USDT", "BTC-USD")),
        *((name, "BTCUSDT") for name in ("BTC-PERP", "BTC_PERP", "BTCPERP", "BTCUSDT.P", "BTC-USDT-SWAP")),
        *((name, "BTCUSDT") for name in ("BTC/USDT:USDT", "BTC-USDT-PERP", "BTC/USD:BTC")),
        *((name, "PERPUSDT") for name in ("PERP", "PERP-USDT", "PERP-PERP")),
        ("ETH-USDC", "ETHUSDC"),
        ("币安人生", "币安人生USDT"),
        *((name, "") for name in ("ETH", "PEPE", "BTCUSDTT", "BTCUSDC", "XBT", "", "-", "USDT", ".P", "币安")),
    ],
)
def test_a_suggestion_is_another_spelling_and_never_another_asset(name: str, suggestion: str) -> None:
    """Separators and the mark of a perpetual are left out; USDT is added. Nothing is guessed beyond that."""
    assert explain(name, MARKET) == ("unknown symbol", suggestion)


@pytest.mark.parametrize("name", ["BTCUSD_PERP", "BTCUSD_261225", "1000PEPEUSD_PERP"])
def test_a_symbol_of_the_other_futures_market_is_named_as_such(name: str) -> None:
    """It is another contract, so none is suggested."""
    assert explain(name, MARKET) == ("unknown symbol: COIN-M symbols are not served", "")


@pytest.mark.parametrize("name", ["BTCUSDT_261225", "ETHUSDC_270326"])
def test_a_delivery_contract_is_named_as_such(name: str) -> None:
    """It has no funding rate."""
    assert explain(name, MARKET) == ("unknown symbol: delivery contracts have no funding", "")
