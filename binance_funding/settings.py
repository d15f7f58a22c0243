"""Every setting of both programs, declared once: name, default, meaning and check.

A value comes from the environment, or else from `.env` in the working directory. If neither has it, the default holds.
"""

import difflib
import io
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dotenv import dotenv_values
from dotenv.parser import parse_stream

from .log import printable

EX_CONFIG = 78
"""Exit status for wrong settings (sysexits.h); the units tell systemd not to restart after it."""

DAEMON, SERVER = "daemon", "server"
BOTH = f"{DAEMON} {SERVER}"

_YEAR_S = 31_536_000
# Source: Binance's documentation of premiumIndex and of the limits per IP, November 2026.
_SNAPSHOT_WEIGHT, _WEIGHT_PER_MINUTE = 10, 2400
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
_DECIMAL = re.compile(r"[0-9]+(\.[0-9]*)?|\.[0-9]+", re.ASCII)
# A host as urlsplit() returns it: an IPv6 address has no brackets, and a name may have letters of any language.
_URL_HOST = re.compile(r"[\w.:-]+")
# A host name, an IPv4 address, or an IPv6 address, perhaps with a zone (fe80::1%eth0).
_LISTEN_HOST = re.compile(r"[0-9A-Za-z:_%-]{1,63}(\.[0-9A-Za-z:_%-]{1,63})*\.?")


class SettingsError(ValueError):
    """One or more settings are wrong. The text names, in one line, each variable, its value and the allowed values."""


class InvalidValue(ValueError):
    """The value of a setting is not allowed. The text says which values are."""


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
    except ValueError:  # brackets that hold no IPv6 address, or a port out of range
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
    return os.path.expanduser(text)


def _host(text: str) -> str:
    if not _LISTEN_HOST.fullmatch(text):
        raise InvalidValue("an IP address or host name of this machine, such as 127.0.0.1 or ::")
    return text


def _level(text: str) -> str:
    if text.upper() not in _LEVELS:
        raise InvalidValue(f"one of {', '.join(_LEVELS)}")
    return text.upper()


def _setting(default: str, check: Callable[[str], Any], used_by: str, meaning: str) -> Any:
    """Declare a setting. `default` is a text, as in the environment; `used_by` names the programs that use it."""
    metadata = {"text": default, "check": check, "used_by": used_by, "meaning": meaning}
    return field(default=check(default), metadata=metadata)


def _duration(default: str, used_by: str, meaning: str) -> Any:
    return _setting(default, _seconds, used_by, meaning)


@dataclass(frozen=True)
class Settings:
    """All settings, checked. The environment variable of a field is its name in capitals; durations are in seconds."""

    binance_ws_urls: tuple[str, ...] = _setting(
        "wss://fstream.binance.com/market/stream?streams=!markPrice@arr",
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
    stale_seconds: float = _duration("30", BOTH, "data older than this is stale: the server answers 503")
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
    """Return the name of the environment variable for a field of Settings."""
    return declared.name.upper()


_NAMES = tuple(variable(declared) for declared in fields(Settings))
_FIRST_WORDS = {name.partition("_")[0] for name in _NAMES}
# Settings by their names without the last word. If the environment has such a name, it is probably a mistake.
_WITHOUT_ENDING = {name.rpartition("_")[0]: name for name in _NAMES if name.endswith(("_SECONDS", "_URL", "_URLS"))}
# Names that resemble our settings, but are settings of other programs.
_OF_OTHERS = {"LOGLEVEL"}


def load(environment: Mapping[str, str] = os.environ, env_file: str = ".env") -> Settings:
    """Read and check all settings.

    Raises SettingsError if a value is not allowed or a name looks misspelt. The error lists all faults at once.

    A name looks misspelt if it has the letters of a setting, in any order, except for one or two. The environment also
    has variables of other programs. Of these, only names that begin with the first word of a setting (`API_`, `LOG_`,
    `REST_` ...) are checked.
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
    if not faults and os.path.abspath(values["history_file"]) == os.path.abspath(values["state_file"]):
        faults.append("HISTORY_FILE is not allowed: it must be another file than STATE_FILE")
    if faults:
        raise SettingsError("; ".join(faults))
    return Settings(**values)


def sources(environment: Mapping[str, str] = os.environ, env_file: str = ".env") -> dict[str, tuple[str, str]]:
    """Return the place and the text of each variable that is set. The place is "environment" or the name of `env_file`.

    Raises SettingsError if `env_file` cannot be read.
    """
    given = {env_file: _read(env_file), "environment": environment}  # the environment wins
    return {name: (place, texts[name]) for place, texts in given.items() for name in _NAMES if name in texts}


def _read(env_file: str) -> dict[str, str]:
    """Return the variables in `env_file`; none if there is no such file. Raises SettingsError if it cannot be read."""
    try:
        text = Path(env_file).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{env_file} cannot be read: {error}") from error
    for binding in parse_stream(io.StringIO(text)):
        if binding.error or (binding.key is not None and binding.value is None):
            raise SettingsError(f"{env_file} line {binding.original.line} is not NAME=value")
    return {name: value or "" for name, value in dotenv_values(stream=io.StringIO(text)).items()}


def warnings(settings: Settings, environment: Mapping[str, str] = os.environ, env_file: str = ".env") -> list[str]:
    """Return a sentence for each value that harms the service, and for each name that is mistaken for a setting.

    Raises SettingsError if `env_file` cannot be read.
    """
    unknown = sorted(_read(env_file).keys() - {*_NAMES})
    shortened = sorted(_WITHOUT_ENDING.keys() & environment.keys())
    return [
        *_harmful_values(settings),
        *(f"{printable(name)} in {env_file} is not a setting and has no effect" for name in unknown),
        *(f"{name} is not a setting and has no effect: did you mean {_WITHOUT_ENDING[name]}?" for name in shortened),
    ]


def _harmful_values(settings: Settings) -> Iterator[str]:
    for name, seconds in (
        ("REST_POLL_SECONDS", settings.rest_poll_seconds),
        ("REST_FALLBACK_SECONDS", settings.rest_fallback_seconds),
    ):
        weight = 60 / seconds * _SNAPSHOT_WEIGHT + 1
        if weight > _WEIGHT_PER_MINUTE / 4:
            yield f"{name}={seconds:g} uses a weight of {weight:.0f} a minute; Binance allows {_WEIGHT_PER_MINUTE}"
    tick_s = 1 if all(url.endswith("@1s") for url in settings.binance_ws_urls) else 3
    if settings.silence_seconds < 2 * tick_s:
        yield f"SILENCE_SECONDS={settings.silence_seconds:g} drops healthy connections: messages come every {tick_s} s"
    if settings.stale_seconds < 2 * tick_s:
        yield f"STALE_SECONDS={settings.stale_seconds:g} makes data stale between two messages, {tick_s} s apart"


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
