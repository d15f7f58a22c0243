"""Settings: where a value comes from, and what is said about a wrong one."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from binance_funding.settings import (
    DAEMON,
    SERVER,
    Settings,
    SettingsError,
    help_text,
    load,
    sources,
    variable,
    warnings,
)

ROOT = Path(__file__).parents[2]
NO_FILE = "/nonexistent/.env"
SECONDS = "a number of seconds above 0"
DURATIONS = [variable(field) for field in fields(Settings) if variable(field).endswith("_SECONDS")]

DOCUMENTED = {
    "binance_ws_urls": ("wss://fstream.binance.com/market/stream?streams=!markPrice@arr",),
    "binance_rest_url": "https://fapi.binance.com",
    "state_file": ".funding_state.json",
    "stale_seconds": 30,
    "silence_seconds": 15,
    "stream_connections": 2,
    "connection_max_age_seconds": 82800,
    "reconnect_min_seconds": 0.5,
    "reconnect_max_seconds": 60,
    "rest_poll_seconds": 60,
    "rest_fallback_seconds": 10,
    "rest_timeout_seconds": 10,
    "heartbeat_seconds": 5,
    "api_host": "127.0.0.1",
    "api_port": 8888,
    "api_max_connections": 1024,
    "log_level": "INFO",
}


def refusal(environment: dict[str, str], env_file: str = NO_FILE) -> str:
    """Return the text with which these settings are refused."""
    with pytest.raises(SettingsError) as caught:
        load(environment, env_file)
    return str(caught.value)


def env_file(directory: Path, text: str) -> str:
    """Write a .env file and return its path."""
    path = directory / ".env"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_without_any_setting_the_documented_defaults_hold() -> None:
    """An empty environment gives exactly the documented values, for exactly the documented names."""
    settings = load({}, NO_FILE)
    assert {field.name: getattr(settings, field.name) for field in fields(Settings)} == DOCUMENTED


@pytest.mark.parametrize("name", DURATIONS)
@pytest.mark.parametrize(
    "value",
    [
        "0",
        "0.0",
        "-1",
        "",
        " ",
        "5 s",
        " 5",
        "5\n",
        "1e3",
        "1_000",
        "0x10",
        "nan",
        "inf",
        "\uff11\uff10",
        "31536001",
        "9" * 400,
    ],
)
def test_a_duration_is_a_plain_positive_number(name: str, value: str) -> None:
    """Whatever is not a plain decimal number above 0 and up to a year is refused, by name and value."""
    message = refusal({name: value})
    assert message.startswith(f"{name}={value!r} is not allowed: {SECONDS}")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("value", "seconds"), [("0.05", 0.05), (".5", 0.5), ("5.", 5.0), ("31536000", 31_536_000.0), ("007", 7.0)]
)
def test_a_duration_accepts_fractions(value: str, seconds: float) -> None:
    """Tests and impatient operators may give parts of a second."""
    assert load({"STALE_SECONDS": value}, NO_FILE).stale_seconds == seconds


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        *(("API_PORT", value, "a whole number from 1 to 65535") for value in ("0", "65536", "-1", "80.0", "", "http")),
        ("API_PORT", "9" * 5000, "a whole number from 1 to 65535"),
        ("API_PORT", "\uff18\uff18\uff18\uff18", "a whole number from 1 to 65535"),
        *(("STREAM_CONNECTIONS", value, "a whole number from 1 to 8") for value in ("0", "9", "two", "1.5")),
        *(("API_MAX_CONNECTIONS", value, "a whole number from 1 to 100000") for value in ("0", "100001", "1e3")),
        *(
            ("BINANCE_WS_URLS", value, "ws:// or wss://")
            for value in (
                "",
                ",",
                "wss://a,",
                "wss://a,,wss://b",
                "https://a",
                "a",
                "wss://",
                "wss:///path",
                "wss://a:99999",
                "wss://a:0",
                "wss://a:x",
                "wss://[::1",
                "wss://a b",
                "wss://a\nb",
                "wss://a\udcff",
            )
        ),
        *(
            ("BINANCE_REST_URL", value, "http:// or https://")
            for value in ("", "wss://a", "fapi.binance.com", "https://", "https://a?b=c", "https://a#b", "https://a b")
        ),
        *(("STATE_FILE", value, "the path of a file") for value in ("", " ", "/tmp/", "a\0b")),
        *(("API_HOST", value, "an IP address or host name") for value in ("", "a b", "http://a", "a/24", "[::1]", "é")),
        *(("API_HOST", value, "an IP address or host name") for value in ("a..b", ".a", "a" * 64, "a\nb")),
        *(("LOG_LEVEL", value, "DEBUG, INFO, WARNING, ERROR") for value in ("", "NOTSET", "20", "INFO ", "CRITICAL")),
    ],
)
def test_a_wrong_value_is_refused_in_one_line(name: str, value: str, allowed: str) -> None:
    """The refusal names the variable, the value as given and what is allowed, whatever the value contains."""
    message = refusal({name: value})
    assert message.startswith(f"{name}={value!r} is not allowed: ")
    assert allowed in message
    assert "\n" not in message


@pytest.mark.parametrize("value", ["https://fapi.binance.com?", "https://fapi.binance.com#"])
def test_a_rest_address_with_an_empty_query_is_refused(value: str) -> None:
    """A path appended to it would become part of the query."""
    refusal({"BINANCE_REST_URL": value})


@pytest.mark.parametrize("value", ["wss://a;wss://b", "wss://a\\x", "wss://%zz"])
def test_a_stream_address_whose_host_cannot_exist_is_refused(value: str) -> None:
    """Semicolons instead of commas are the likely mistake."""
    refusal({"BINANCE_WS_URLS": value})


@pytest.mark.parametrize("value", ["state\nfile.json", "state\udcff.json"])
def test_an_unprintable_path_is_refused(value: str) -> None:
    """Log lines, STATUS= and JSON answers contain the path, and none of them can hold such a name."""
    refusal({"STATE_FILE": value})


@pytest.mark.parametrize("value", ["::", "::1", "fe80::1%eth0", "0.0.0.0", "localhost", "db-1.example.", "a" * 63])
def test_an_address_to_listen_on_may_be_of_either_family_or_a_name(value: str) -> None:
    """Whether this machine has it is seen when the server starts."""
    assert load({"API_HOST": value}, NO_FILE).api_host == value


def test_all_faults_are_in_one_line() -> None:
    """One start is enough to learn of every mistake."""
    message = refusal({"API_PORT": "x", "STALE_SECONDS": "y", "LOG_LEVEL": "z", "API_HOST": "::1", "API_PROT": "1"})
    assert message.split("; ") == [
        "unknown setting API_PROT: did you mean API_PORT?",
        "STALE_SECONDS='y' is not allowed: a number of seconds above 0 and at most 31536000, such as 10 or 0.5",
        "API_PORT='x' is not allowed: a whole number from 1 to 65535",
        "LOG_LEVEL='z' is not allowed: one of DEBUG, INFO, WARNING, ERROR",
    ]


def test_the_least_reconnect_wait_may_not_exceed_the_longest() -> None:
    """Two values that contradict each other are refused together; equal ones are fine."""
    message = refusal({"RECONNECT_MIN_SECONDS": "61"})
    assert message == "RECONNECT_MIN_SECONDS=61 is not allowed: at most RECONNECT_MAX_SECONDS, which is 60"
    assert load({"RECONNECT_MIN_SECONDS": "60"}, NO_FILE).reconnect_min_seconds == 60


def test_several_stream_addresses_are_separated_by_commas() -> None:
    """Spaces around them do not matter."""
    settings = load({"BINANCE_WS_URLS": " wss://a/x?streams=!markPrice@arr , ws://127.0.0.1:9443/y "}, NO_FILE)
    assert settings.binance_ws_urls == ("wss://a/x?streams=!markPrice@arr", "ws://127.0.0.1:9443/y")


def test_a_slash_at_the_end_of_the_rest_address_does_not_matter() -> None:
    """Paths are appended to it."""
    assert load({"BINANCE_REST_URL": "http://127.0.0.1:8080/"}, NO_FILE).binance_rest_url == "http://127.0.0.1:8080"


def test_the_log_level_may_be_in_lower_case() -> None:
    """It is a word, not a constant."""
    assert load({"LOG_LEVEL": "debug"}, NO_FILE).log_level == "DEBUG"


def test_the_environment_wins_over_the_file_and_the_file_over_the_default(tmp_path: Path) -> None:
    """Environment, else .env, else default; each setting by itself."""
    path = env_file(tmp_path, "API_PORT=1111\nAPI_HOST=::1\n")
    settings = load({"API_PORT": "2222"}, path)
    assert (settings.api_port, settings.api_host, settings.log_level) == (2222, "::1", "INFO")


def test_the_source_of_each_value_can_be_shown(tmp_path: Path) -> None:
    """The environment or the file's name, for every setting that is not at its default."""
    path = env_file(tmp_path, "API_PORT=1111\nAPI_HOST=::1\n")
    found = sources({"API_PORT": "2222", "HOME": "/root"}, path)
    assert found == {"API_PORT": ("environment", "2222"), "API_HOST": (path, "::1")}


def test_a_wrong_value_in_the_file_is_refused_unless_the_environment_replaces_it(tmp_path: Path) -> None:
    """Only the value that would be used is judged."""
    path = env_file(tmp_path, "API_PORT=x\n")
    assert refusal({}, path).startswith("API_PORT='x' is not allowed")
    assert load({"API_PORT": "1"}, path).api_port == 1


@pytest.mark.parametrize("line", ["API_PORT", "=2", "API_PORT: 8888", "set the port"])
def test_a_line_that_is_not_an_assignment_is_refused(tmp_path: Path, line: str) -> None:
    """It is named by its number, and neither skipped nor taken for the default."""
    path = env_file(tmp_path, f"API_HOST=::1\n{line}\n")
    assert refusal({}, path) == f"{path} line 2 is not NAME=value"


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("STALE_SECOND", "STALE_SECONDS"),
        ("BINANCE_WS_URL", "BINANCE_WS_URLS"),
        ("RECONECT_MAX_SECONDS", "RECONNECT_MAX_SECONDS"),
        ("API_MAX_CONECTIONS", "API_MAX_CONNECTIONS"),
        ("LOG_LEVELS", "LOG_LEVEL"),
        ("API_PROT", "API_PORT"),
        ("STATEFILE", "STATE_FILE"),
        ("STALESECONDS", "STALE_SECONDS"),
        ("api_port", "API_PORT"),
    ],
)
def test_a_misspelt_name_in_the_file_is_refused(tmp_path: Path, wrong: str, right: str) -> None:
    """A near miss is a mistake, not a default; the right name is offered."""
    assert refusal({}, env_file(tmp_path, f"{wrong}=1\n")) == f"unknown setting {wrong}: did you mean {right}?"


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("STALE_SECOND", "STALE_SECONDS"),
        ("API_PROT", "API_PORT"),
        ("api_port", "API_PORT"),
        ("LOG_LEVELS", "LOG_LEVEL"),
    ],
)
def test_a_misspelt_name_in_the_environment_that_begins_like_ours_is_refused(wrong: str, right: str) -> None:
    """Under systemd the settings come from EnvironmentFile=, where a misspelt name is as much a mistake."""
    assert refusal({wrong: "1"}) == f"unknown setting {wrong}: did you mean {right}?"


@pytest.mark.parametrize(
    "name",
    [
        *("REST_TIMEOUT", "LOGLEVEL", "LOG_FORMAT", "API_KEY", "API_HOSTNAME", "API_PORT_8888_TCP", "STATE_DIRECTORY"),
        *("APP_PORT", "STATEFILE", "XSTALE_SECONDS", "MY_LOG_LEVEL", "PORT", "_"),
    ],
)
def test_a_foreign_name_in_the_environment_does_not_matter(name: str) -> None:
    """Other programs keep their settings there: theirs differ by more, or do not begin like ours."""
    assert load({name: "1"}, NO_FILE) == Settings()


def test_foreign_names_in_the_file_do_not_matter(tmp_path: Path) -> None:
    """Other programs may keep their settings in the same file."""
    path = env_file(tmp_path, "DATABASE_URL=x\nPORT=1\nAPP_PORT=2\nREST_TIMEOUT=3\nAPI_KEY=z\nLOGLEVEL=info\n")
    assert load({}, path) == Settings()


@pytest.mark.parametrize("name", ["STALE_SECONDS\n", "API_PORT\x1b"])
def test_a_misspelt_name_is_shown_in_one_printable_line(name: str) -> None:
    """A stray line break or escape sequence does not reach the log."""
    assert refusal({name: "1"}).isprintable()


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path) -> None:
    """Some editors write one."""
    assert load({}, env_file(tmp_path, "\ufeffAPI_PORT=1\n")).api_port == 1


def test_a_directory_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    """What cannot be read is not skipped."""
    assert refusal({}, str(tmp_path)).startswith(f"{tmp_path} cannot be read: ")


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    """What cannot be read is not skipped."""
    path = tmp_path / ".env"
    path.write_bytes(b"API_HOST=\xff\n")
    assert refusal({}, str(path)).startswith(f"{path} cannot be read: ")


def test_the_example_file_lists_every_setting_with_its_meaning_and_default(tmp_path: Path) -> None:
    """In the order of the declarations, below a line with the meaning; commented in, it changes nothing."""
    _opening, *paragraphs = (ROOT / ".env.example").read_text(encoding="utf-8").strip().split("\n\n")
    assert paragraphs == [
        f"# {meaning[0].upper()}{meaning[1:]}.\n#{variable(field)}={field.metadata['text']}"
        for field in fields(Settings)
        for meaning in [field.metadata["meaning"]]
    ]
    active = [paragraph.splitlines()[1].removeprefix("#") for paragraph in paragraphs]
    assert load({}, env_file(tmp_path, "\n".join(active))) == Settings()


@pytest.mark.parametrize(
    ("name", "value", "effect"),
    [
        ("REST_POLL_SECONDS", "0.1", "uses a weight of 6001 a minute; Binance allows 2400"),
        ("REST_FALLBACK_SECONDS", "0.9", "uses a weight of 668 a minute; Binance allows 2400"),
        ("SILENCE_SECONDS", "2", "drops healthy connections: messages come every 3 s"),
        ("STALE_SECONDS", "5.9", "makes data stale between two messages, 3 s apart"),
    ],
)
def test_a_harmful_value_is_warned_of_with_its_effect(name: str, value: str, effect: str) -> None:
    """It is allowed, since tests and experiments need it, but the operator is told."""
    assert warnings(load({name: value}, NO_FILE), {}, NO_FILE) == [f"{name}={value} {effect}"]


def test_a_stream_of_a_message_a_second_allows_less_silence() -> None:
    """Two ticks are 2 s then."""
    url = "wss://fstream.binance.com/market/stream?streams=!markPrice@arr@1s"
    assert warnings(load({"SILENCE_SECONDS": "2", "BINANCE_WS_URLS": url}, NO_FILE), {}, NO_FILE) == []


def test_names_that_are_no_settings_are_warned_of(tmp_path: Path) -> None:
    """Every unknown name in the file; in the environment, settings without their ending."""
    path = env_file(tmp_path, "PORT=1\nAPI_PORT=2\n")
    environment = {"STALE": "60", "REST_TIMEOUT": "3", "PATH": "/bin", "API_KEY": "z"}
    assert warnings(load(environment, path), environment, path) == [
        f"PORT in {path} is not a setting and has no effect",
        "REST_TIMEOUT is not a setting and has no effect: did you mean REST_TIMEOUT_SECONDS?",
        "STALE is not a setting and has no effect: did you mean STALE_SECONDS?",
    ]


def test_a_tilde_in_a_path_is_the_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a shell would expand it; systemd and .env do not."""
    monkeypatch.setenv("HOME", "/home/somebody")
    assert load({"STATE_FILE": "~/state.json"}, NO_FILE).state_file == "/home/somebody/state.json"


def test_help_lists_the_settings_of_a_program_with_their_defaults() -> None:
    """Each program lists those that it uses; together they list all."""
    texts = {program: help_text(program) for program in (DAEMON, SERVER)}
    for field in fields(Settings):
        users = [program for program in texts if program in field.metadata["used_by"].split()]
        assert users, f"{field.name} is used by nobody"
        for program, text in texts.items():
            line = f"  {variable(field)}  (default {field.metadata['text']})"
            assert (line in text.splitlines()) == (program in users)
            assert (field.metadata["meaning"] in text) == (program in users)
