"""The page for browsers, which is one file. Its headers forbid every script and style except its own."""

import base64
import hashlib
import re
from pathlib import Path

CONTENT = Path(__file__).with_name("page.html").read_bytes()


def _source(tag: bytes) -> str:
    """Return the source expression that allows the one element with this tag.

    Source: https://www.w3.org/TR/CSP3/, section 2.3.1.
    """
    (text,) = re.findall(b"<%b>(.*?)</%b>" % (tag, tag), CONTENT, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'"


_POLICY = (
    f"default-src 'none'; script-src {_source(b'script')}; style-src {_source(b'style')}; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
VARY = ("Vary", "Accept, Accept-Encoding")
HEADERS = (
    VARY,
    ("Content-Type", "text/html; charset=utf-8"),
    ("Cache-Control", "no-cache"),
    ("Content-Security-Policy", _POLICY),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
)
