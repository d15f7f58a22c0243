"""What an HTTP refusal of Binance means, in words, and how long it asks to wait. Pure.

Facts of the exchange, as of November 2026:
- 429: too many requests; 418: the IP is banned, 2 minutes to 3 days; asking again too early lengthens the ban. [1]
- `Retry-After` holds the seconds; else the body names the end in ms ("... IP banned until 1795500000000"). [1]
- 403: refused by the firewall; 451: not served from this country. Both come for the WebSocket handshake too.
[1] https://developers.binance.com/docs/derivatives/usds-margined-futures/general-info
"""

import math
import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import NamedTuple

LONGEST_BAN_S = 3 * 86_400
# The longest that any other refusal is believed: it is no ban, and may be over sooner than it thought.
_LONGEST_PAUSE_S = 600.0
_BAN_WITHOUT_END_S = 120.0
_BANNED_UNTIL = re.compile(r"banned until ([0-9]{13})")

_WORDS = {
    403: "the firewall of Binance refuses this IP",
    418: "Binance has banned this IP for asking too often",
    429: "Binance says too many requests",
    451: "Binance does not serve this country",
}


class Refusal(NamedTuple):
    """One refusal: what it means, and for how long nothing may be asked (0: nothing was said)."""

    words: str
    wait_s: float


def explain(status: int, headers: Mapping[str, str], body: str, wall_s: float) -> Refusal:
    """Explain an HTTP status other than success."""
    words = _WORDS.get(status, "Binance server error" if status >= 500 else "unexpected answer")
    by_name = {name.lower(): value for name, value in headers.items()}
    return Refusal(f"{words} (HTTP {status})", _wait_s(status, by_name, body, wall_s))


def _wait_s(status: int, headers: Mapping[str, str], body: str, wall_s: float) -> float:
    # Binance's clock names the end of a ban: its time is in the answer, else this host's stands in.
    now_s = _http_date_s(headers.get("date", "")) or wall_s
    asked_s, is_ban = _retry_after_s(headers.get("retry-after", "").strip(), now_s), status in (418, 429)
    if is_ban and asked_s <= 0:
        asked_s = _ban_s(status, body, now_s)
    return min(max(asked_s, 0.0), LONGEST_BAN_S if is_ban else _LONGEST_PAUSE_S)


def _retry_after_s(text: str, now_s: float) -> float:
    """Return the seconds that a header asks for; 0 where it says nothing. Source: RFC 9110, 10.2.3."""
    if re.fullmatch("[0-9]{1,9}", text):
        return float(text)
    return (_http_date_s(text) or now_s) - now_s


def _ban_s(status: int, body: str, now_s: float) -> float:
    named = _BANNED_UNTIL.search(body)
    if named and int(named[1]) / 1000 > now_s:
        return int(named[1]) / 1000 - now_s
    return 60 - math.fmod(now_s, 60) if status == 429 else _BAN_WITHOUT_END_S


def _http_date_s(text: str) -> float | None:
    try:
        return parsedate_to_datetime(text).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None
