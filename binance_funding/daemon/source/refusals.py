"""Computes how long an HTTP refusal of Binance asks us to wait. Pure.

Facts of the exchange, as of November 2026:
- 429: too many requests. 418: the IP is banned, for 2 minutes to 3 days. Asking too early lengthens the ban. [1]
- `Retry-After` holds the seconds. If it is absent, the body has the end in Unix ms ("... IP banned until
  1795500000000"). [1]
- 403: refused by the firewall; 451: not served from this country. Both come for the WebSocket handshake too.
[1] https://developers.binance.com/docs/derivatives/usds-margined-futures/general-info
"""

import math
import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

from .faults import Cause, Kind

LONGEST_BAN_S = 3 * 86_400
# A refusal that is not a ban is obeyed for at most this long, because its reason may end sooner.
_LONGEST_PAUSE_S = 600.0
_BAN_WITHOUT_END_S = 120.0
_BANNED_UNTIL = re.compile(r"banned until ([0-9]{13})")


def refusal(status: int, headers: Mapping[str, str], body: bytes, wall_s: float) -> Cause:
    """Return the cause for an HTTP status other than success."""
    by_name = {name.lower(): value for name, value in headers.items()}
    text = body.decode("utf-8", "replace")
    return Cause(Kind.REFUSED, code=status, wait_s=_wait_s(status, by_name, text, wall_s))


def _wait_s(status: int, headers: Mapping[str, str], body: str, wall_s: float) -> float:
    # The end of a ban is given in Binance's time, so it is compared with the `Date` of the answer. If there is no
    # `Date`, this host's clock is used.
    now_s = _http_date_s(headers.get("date", "")) or wall_s
    asked_s, is_ban = _retry_after_s(headers.get("retry-after", "").strip(), now_s), status in (418, 429)
    if is_ban and asked_s <= 0:
        asked_s = _ban_s(status, body, now_s)
    return min(max(asked_s, 0.0), LONGEST_BAN_S if is_ban else _LONGEST_PAUSE_S)


def _retry_after_s(text: str, now_s: float) -> float:
    """Return the seconds in a `Retry-After` header, 0 if there are none. Source: RFC 9110, 10.2.3."""
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
