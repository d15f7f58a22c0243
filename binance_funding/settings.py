"""Every setting of both programs: name, default, meaning and check, declared once.

A value comes from the environment, else from `.env` in the working directory, else it is the default.
"""

import difflib
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any
from urllib.parse import urlsplit

from dotenv import dotenv_values
from dotenv.parser import parse_stream

EX_CONFIG = 78
"""Exit status for wrong settings (sysexits.h); the units tell systemd not to restart after it."""

DAEMON, SERVER = "daemon", "server"
BOTH = f"{DAEMON} {SERVER}"

_YEAR_S = 31_536_000
# Near misses that are common names of other programs' settings.
_OF_OTHERS = {"LOGLEVEL"}
# As urlsplit() gives it: an IPv6 address without brackets; letters of any language.
_HOST_NAME = re.compile(r"[\w.:-]+")
_DECIMAL = re.compile(r"[0-9]+(\.[0-9]*)?|\.[0-9]+", re.ASCII)


class SettingsError(ValueError):
    """One or more settings are wrong; the text is one line naming variable, value and what is allowed."""


class _Refused(ValueError):
    """A value that its check does not take; the text says what is allowed."""


def _seconds(text: str) -> float:
    value = float(text) if _DECIMAL.fullmatch(text) else math.nan
    if not 0 < value <= _YEAR_S:
        raise _Refused(f"a number of seconds above 0 and at most {_YEAR_S}, such as 10 or 0.5")
    return value


def _whole(least: int, most: int) -> Callable[[str], int]:
    def check(text: str) -> int:
        value = int(text) if re.fullmatch("[0-9]{1,9}", text) else least - 1
        if not least <= value <= most:
            raise _Refused(f"a whole number from {least} to {most}")
        return value

    return check


def _is_url(text: str, schemes: tuple[str, str]) -> bool:
    try:
        parts = urlsplit(text)
        port_is_valid = parts.port is None or parts.port > 0
    except ValueError:
        return False
    return (
        parts.scheme in schemes
        and bool(_HOST_NAME.fullmatch(parts.hostname or ""))
        and port_is_valid
        and text.isprintable()
        and " " not in text
    )


def _websocket_urls(text: str) -> tuple[str, ...]:
    urls = tuple(url.strip() for url in text.split(","))
    if not all(_is_url(url, ("ws", "wss")) for url in urls):
        raise _Refused("one or more ws:// or wss:// addresses, separated by commas")
    return urls


def _rest_url(text: str) -> str:
    if not _is_url(text, ("http", "https")) or "?" in text or "#" in text:
        raise _Refused("an http:// or https:// address without query")
    return text.rstrip("/")


def _path(text: str) -> str:
    if not text.strip() or text.endswith("/") or not text.isprintable():
        raise _Refused("the path of a file")
    return text


def _host(text: str) -> str:
    try:
        if not re.fullmatch(r"[0-9A-Za-z.:_%-]{1,253}", text) or not text.encode("idna"):
            raise ValueError(text)
    except ValueError:  # UnicodeError: an empty label, or one that is too long
        raise _Refused("an IP address or host name of this machine, such as 127.0.0.1 or ::") from None
    return text


def _level(text: str) -> str:
    levels = ("DEBUG", "INFO", "WARNING", "ERROR")
    if text.upper() not in levels:
        raise _Refused(f"one of {', '.join(levels)}")
    return text.upper()


def _setting(default: str, check: Callable[[str], Any], used_by: str, meaning: str) -> Any:
    return field(
        default=check(default),
        metadata={"text": default, "check": check, "used_by": used_by, "meaning": meaning},
    )


@dataclass(frozen=True)
class Settings:
    """All settings, checked. The environment variable of a field is its name in capitals; durations are in seconds."""

    binance_ws_urls: tuple[str, ...] = _setting(
        "wss://fstream.binance.com/market/stream?streams=!markPrice@arr,"
        "wss://fstream.binance.com/stream?streams=!markPrice@arr",
        _websocket_urls,
        DAEMON,
        "candidate stream addresses; one that refuses or stays silent gives way to the next",
    )
    binance_rest_url: str = _setting("https://fapi.binance.com", _rest_url, DAEMON, "REST base address")
    state_file: str = _setting(".funding_state.json", _path, BOTH, "the file that both programs share")
    stale_seconds: float = _setting(
        "180", _seconds, BOTH, "data older than this is stale: the daemon polls REST, the server answers 503"
    )
    silence_seconds: float = _setting(
        "15", _seconds, DAEMON, "a connection that brings no mark prices for this long is dropped"
    )
    stream_connections: int = _setting(
        "2", _whole(1, 8), BOTH, "live connections kept at once; a second one makes any single loss gapless"
    )
    connection_max_age_seconds: float = _setting(
        "82800", _seconds, DAEMON, "planned replacement of a connection, before Binance cuts it after 24 h"
    )
    reconnect_min_seconds: float = _setting(
        "0.5", _seconds, DAEMON, "first wait before reconnecting; doubles each time"
    )
    reconnect_max_seconds: float = _setting("60", _seconds, DAEMON, "longest wait before reconnecting")
    rest_poll_seconds: float = _setting("60", _seconds, DAEMON, "time between REST snapshots while the stream is well")
    rest_fallback_seconds: float = _setting(
        "10", _seconds, DAEMON, "time between REST polls while stream data is stale"
    )
    rest_timeout_seconds: float = _setting("10", _seconds, DAEMON, "longest wait for one REST answer")
    heartbeat_seconds: float = _setting(
        "5", _seconds, BOTH, "the state file is rewritten at least this often, data or not"
    )
    api_host: str = _setting("127.0.0.1", _host, SERVER, "address the server listens on")
    api_port: int = _setting("8888", _whole(1, 65535), SERVER, "port the server listens on")
    api_max_connections: int = _setting(
        "1024", _whole(1, 100_000), SERVER, "clients at once; beyond it the connection idle longest gives way"
    )
    log_level: str = _setting("INFO", _level, BOTH, "DEBUG, INFO, WARNING or ERROR")


def load(environment: Mapping[str, str] = os.environ, env_file: str = ".env") -> Settings:
    """Read and check all settings.

    Raises SettingsError with one line that names the wrong variables, their values and what is allowed.
    """
    given = {**_from_file(env_file), **environment}
    _refuse_misspelt(environment, "the environment")
    values: dict[str, Any] = {}
    faults: list[str] = []
    for declared in fields(Settings):
        name = variable(declared)
        if name not in given:
            continue
        try:
            values[declared.name] = declared.metadata["check"](given[name])
        except _Refused as allowed:
            faults.append(f"{name}={given[name]!r} is not allowed: {allowed}")
    settings = Settings(**values)
    if settings.reconnect_min_seconds > settings.reconnect_max_seconds and not faults:
        faults.append(
            f"RECONNECT_MIN_SECONDS={settings.reconnect_min_seconds:g} is not allowed: "
            f"at most RECONNECT_MAX_SECONDS, which is {settings.reconnect_max_seconds:g}"
        )
    if faults:
        raise SettingsError("; ".join(faults))
    return settings


def _from_file(env_file: str) -> dict[str, str]:
    """Return what `.env` holds. Raises SettingsError if it cannot be read or holds a name that looks misspelt."""
    if not os.path.exists(env_file):
        return {}
    try:
        with open(env_file, encoding="utf-8") as file:
            unclear = [binding.original.line for binding in parse_stream(file) if binding.error]
        content = {} if unclear else dotenv_values(env_file)
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{env_file} cannot be read: {error}") from error
    if unclear:
        raise SettingsError(f"{env_file} line {unclear[0]} is not understood: NAME=value is allowed")
    _refuse_misspelt(content, env_file)
    return {name: value or "" for name, value in content.items()}


def _refuse_misspelt(given: Iterable[str], source: str) -> None:
    names = [variable(declared) for declared in fields(Settings)]
    by_letters = {_letters(name): name for name in names}
    for name in given:
        # Other programs may keep their own settings in the same place: only a near miss is surely a mistake.
        near = difflib.get_close_matches(name.upper(), names, n=1, cutoff=0.9)
        meant = by_letters.get(_letters(name)) or next(iter(near), None)
        if meant and name not in names and name not in _OF_OTHERS:
            raise SettingsError(f"{name} in {source} is no setting: {meant} is")


def _letters(name: str) -> str:
    return "".join(sorted(name.upper().replace("_", "")))


def variable(declared: "Field[Any]") -> str:
    """Name the environment variable of a field of Settings."""
    return declared.name.upper()


def help_text(program: str) -> str:
    """List the settings of one program ("daemon" or "server") with their defaults, for --help."""
    lines = ["Settings, from the environment or from .env in the working directory:", ""]
    for declared in fields(Settings):
        if program in declared.metadata["used_by"].split():
            lines.append(f"  {variable(declared)}  (default {declared.metadata['text']})")
            lines.append(f"      {declared.metadata['meaning']}")
    return "\n".join(lines)
