"""Which certificates are trusted: those of the system and of SSL_CERT_FILE, by both libraries.

websocket-client does so by itself. requests trusts a list of its own instead, unless its adapter is told otherwise.
"""

import os
import ssl
from typing import Any

from requests.adapters import HTTPAdapter

from ...settings import SettingsError


class SystemCertificates(HTTPAdapter):
    """Lets requests trust what this system trusts when the session is made."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Make the pool of connections without a proxy."""
        super().init_poolmanager(*args, ssl_context=ssl.create_default_context(), **kwargs)

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        """Make the pool of connections through a proxy."""
        return super().proxy_manager_for(*args, ssl_context=ssl.create_default_context(), **kwargs)

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        """Add no list of requests' own. The context above verifies."""


def check_certificates() -> None:
    """Check SSL_CERT_FILE for the start. Raises SettingsError, since every connection would fail without a reason."""
    path = os.environ.get("SSL_CERT_FILE")
    if path:
        try:
            ssl.create_default_context(cafile=path)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise SettingsError(f"SSL_CERT_FILE={path!r} holds no certificates that can be read: {reason}") from error
