"""Every setting of both programs: name, default, meaning and check, declared once.

A value comes from the environment, else from `.env` in the working directory, else it is the default.
"""

import difflib
import io
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dotenv import dotenv_values
from dotenv.parser import parse_stream

EX_CONFIG = 78
"""Exit status for wrong settings (sysexits.h); the units tell systemd not to restart after it."""

DAEMON, SERVER = "daemon", "server"
BOTH = f"{DAEMON} {SERVER}"

_YEAR_S = 31_536_000
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
_DECIMAL = re.compile(r"[0-9]+(\.[0-9]*)?|\.[0-9]+", re.ASCII)
# As urlsplit() gives it: an IPv6 address without brackets; letters of any language.
_URL_HOST = re.compile(r"[\w.:-]+")
# Labels of a name, the parts of an IPv4 address, or an IPv6 address with its zone.
_LISTEN_HOST = re.compile(r"[0-9A-Za-z:_%-]{1,63}(\.[0-9A-Za-z:_%-]{1,63})*\.?")


class SettingsError(ValueError):
    """One or more settings are wrong; the text is one line naming each variable, its value and what is allowed."""


class InvalidValue(ValueError):
    """A value that its check does not accept; the text says what is allowed."""


def _seconds(text: str) -> float:
    value = float(text) if _DECIMAL.fullmatch(text) else math.nan
    if not 0 < value <= _YEAR_S:  # False for NaN too
        raise InvalidValue(f"a number of seconds above 0 and at most {_YEAR_S}, such as 10 or 0.5")
    return value


def _whole(least: int, most: int) -> Callable[[str], int]:
    def check(text: str) -> int:
        value = int(text) if re.fullmatch("[0-9]{1,9}", text) else least - 1
        if not least <= value <= most:
            raise InvalidValue(f"a whole number from {least} to {most}")
        return value

    return check


def _is_url(text: str, *schemes: str) -> bool:
    try:
        parts = urlsplit(text)
        addresses_a_host = _URL_HOST.fullmatch(parts.hostname or "") and parts.port != 0
    except ValueError:  # brackets without an IPv6 address between them, or a port out of range
        return False
    return parts.scheme in schemes and bool(addresses_a_host) and text.isprintable() and " " not in text


def _websocket_urls(text: str) -> tuple[str, ...]:
    urls = tuple(url.strip() for url in text.split(","))
    if not all(_is_url(url, "ws", "wss") for url in urls):
        raise InvalidValue("one or more ws:// or wss:// addresses, separated by commas")
    return urls


def _rest_url(text: str) -> str:
    if not _is_url(text, "http", "https") or set(text) & set("?#"):
        raise InvalidValue("an http:// or https:// address without query")
    return text.rstrip("/")


def _path(text: str) -> str:
    if not text.strip() or text.endswith("/") or not text.isprintable():
        raise InvalidValue("the path of a file")
    return text


def _host(text: str) -> str:
    if not _LISTEN_HOST.fullmatch(text):
        raise InvalidValue("an IP address or host name of this machine, such as 127.0.0.1 or ::")
    return text


def _level(text: str) -> str:
    if text.upper() not in _LEVELS:
        raise InvalidValue(f"one of {', '.join(_LEVELS)}")
    return text.upper()


def _setting(default: str, check: Callable[[str], Any], used_by: str, meaning: str) -> Any:
    """Declare a setting; `default` is the text that the environment would hold, `used_by` the programs that read it."""
    metadata = {"text": default, "check": check, "used_by": used_by, "meaning": meaning}
    return field(default=check(default), metadata=metadata)


def _duration(default: str, used_by: str, meaning: str) -> Any:
    return _setting(default, _seconds, used_by, meaning)


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
    history_file: str = _setting(".funding_history.sqlite3", _path, BOTH, "the settlement history (sqlite)")
    history_days: int = _setting(
        "90", _whole(0, 3650), BOTH, "days that the settlement history keeps; 0 switches it off"
    )
    stale_seconds: float = _duration("180", BOTH, "data older than this is stale: the server answers 503")
    silence_seconds: float = _duration(
        "15", DAEMON, "a connection whose newest mark prices are older than this, by Binance's clock, is replaced"
    )
    stream_connections: int = _setting(
        "2", _whole(1, 8), BOTH, "live connections kept at once; with two, the loss of one loses no data"
    )
    connection_max_age_seconds: float = _duration(
        "82800", DAEMON, "a connection is replaced at this age; Binance closes it after 24 h"
    )
    reconnect_min_seconds: float = _duration("0.5", DAEMON, "first wait before reconnecting; it doubles each time")
    reconnect_max_seconds: float = _duration(
        "60", DAEMON, "longest wait before reconnecting; at most 10 s while no connection is live"
    )
    rest_poll_seconds: float = _duration("60", DAEMON, "time between REST snapshots while the stream works")
    rest_fallback_seconds: float = _duration(
        "10", DAEMON, "time between REST snapshots while the stream delivers nothing new"
    )
    rest_timeout_seconds: float = _duration("10", DAEMON, "longest wait for one REST answer")
    heartbeat_seconds: float = _duration(
        "5", BOTH, "the state file is rewritten at least this often, also without data"
    )
    api_host: str = _setting("127.0.0.1", _host, SERVER, "address the server listens on")
    api_port: int = _setting("8888", _whole(1, 65535), SERVER, "port the server listens on")
    api_max_connections: int = _setting(
        "1024", _whole(1, 100_000), SERVER, "connections at once; beyond that, a new one replaces the one idle longest"
    )
    log_level: str = _setting("INFO", _level, BOTH, "DEBUG, INFO, WARNING or ERROR")


def variable(declared: Field[Any]) -> str:
    """Name the environment variable of a field of Settings."""
    return declared.name.upper()


_NAMES = tuple(variable(declared) for declared in fields(Settings))
_FIRST_WORDS = {name.partition("_")[0] for name in _NAMES}
# A near miss that is a common name of other programs' settings.
_OF_OTHERS = {"LOGLEVEL"}


def load(environment: Mapping[str, str] = os.environ, env_file: str = ".env") -> Settings:
    """Read and check all settings.

    Raises SettingsError if a value is not allowed or a name looks misspelt; it tells all of these at once.

    A name looks misspelt that has the letters of a setting but for one or two, in whatever order. Other programs keep
    their settings in the environment, too: there it must also begin with the first word of a setting (`API_`, `LOG_`,
    `REST_` ...). Every other name is left alone.
    """
    from_file = _read(env_file)
    given = {**from_file, **environment}
    begin_like_ours = (name for name in environment if name.upper().partition("_")[0] in _FIRST_WORDS)
    faults = _misspelt({*from_file, *begin_like_ours})
    values: dict[str, Any] = {}
    for declared in fields(Settings):
        name = variable(declared)
        try:
            values[declared.name] = declared.metadata["check"](given.get(name, declared.metadata["text"]))
        except InvalidValue as allowed:
            faults.append(f"{name}={given[name]!r} is not allowed: {allowed}")
    if not faults and values["reconnect_min_seconds"] > values["reconnect_max_seconds"]:
        allowed_s = f"at most RECONNECT_MAX_SECONDS, which is {values['reconnect_max_seconds']:g}"
        faults.append(f"RECONNECT_MIN_SECONDS={values['reconnect_min_seconds']:g} is not allowed: {allowed_s}")
    if faults:
        raise SettingsError("; ".join(faults))
    return Settings(**values)


def sources(environment: Mapping[str, str] = os.environ, env_file: str = ".env") -> dict[str, tuple[str, str]]:
    """Return of each variable that is given where it is, "environment" or the name of `env_file`, and its text.

    Raises SettingsError if `env_file` cannot be read.
    """
    given = {env_file: _read(env_file), "environment": environment}  # what comes later wins
    return {name: (place, texts[name]) for place, texts in given.items() for name in _NAMES if name in texts}


def _read(env_file: str) -> dict[str, str]:
    """Return what `env_file` holds, nothing if there is no such file. Raises SettingsError if it cannot be read."""
    try:
        text = Path(env_file).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{env_file} cannot be read: {error}") from error
    unclear = [binding.original.line for binding in parse_stream(io.StringIO(text)) if binding.error]
    if unclear:
        raise SettingsError(f"{env_file} line {unclear[0]} is not understood: NAME=value is allowed")
    return {name: value or "" for name, value in dotenv_values(stream=io.StringIO(text)).items()}


def _misspelt(names: set[str]) -> list[str]:
    by_letters = {_letters(name): name for name in _NAMES}
    return [
        f"unknown setting {repr(name)[1:-1]}: did you mean {by_letters[near]}?"
        for name in sorted(names - {*_NAMES} - _OF_OTHERS)
        for near in difflib.get_close_matches(_letters(name), by_letters, n=1, cutoff=0.9)
    ]


def _letters(name: str) -> str:
    return "".join(sorted(name.upper().replace("_", "")))


def help_text(program: str) -> str:
    """List the settings of one program ("daemon" or "server") with their defaults, for --help."""
    used = [declared for declared in fields(Settings) if program in declared.metadata["used_by"].split()]
    lines = [f"  {variable(one)}  (default {one.metadata['text']})\n      {one.metadata['meaning']}" for one in used]
    return "\n".join(["Settings, from the environment or from .env in the working directory:", "", *lines])
