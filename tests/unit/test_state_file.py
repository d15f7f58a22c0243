"""Reading the state file: never trusted blindly, bounded in what it costs, and as old as it is."""

import json
import os
import socket
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from binance_funding.clock import Moment
from binance_funding.schema import HEADER, LAST, QUARTER, RECORD, REST, STATUS, TOTALS
from binance_funding.state_file import EMPTY, StateFile, UnusableState, read, written_age_s
from tests.support import state_files
from tests.support.clock import BOOT_ID, STEADY_S, WALL_S
from tests.support.samples import EVENT_MS, NEXT_FUNDING_MS, put, record, state, status
from tests.support.state_files import OLD_FILE, unprivileged, write


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the state file is to be."""
    return tmp_path / "state.json"


def unusable(path: Path | str) -> str:
    """Return the text with which the file is refused."""
    with pytest.raises(UnusableState) as caught:
        read(str(path))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_written_is_read(path: Path) -> None:
    """All members, in one JSON object that ends with a line, a record a line."""
    write(path)
    expected = {
        "fundingRate": 0.0001,
        "markPrice": 1.5,
        "indexPrice": 1.25,
        "nextFundingTime": NEXT_FUNDING_MS,
        "eventTime": EVENT_MS,
        "updatedAt": WALL_S,
        "fundingIntervalHours": 8,
        "source": "rest",
        "estimatedSettlePrice": None,
        "interestRate": None,
        "fundingRateCap": None,
        "fundingRateFloor": None,
    }
    content = path.read_bytes()
    assert json.loads(content) == {**state_files.HEADER, "funding_state": {"A": expected}, **state_files.REST}
    assert content.endswith(b"}\n")
    assert content.splitlines()[1:-1] == [state_files.RECORD]
    assert read(str(path))["funding_state"] == {"A": expected}


def test_no_records_is_a_valid_file(path: Path) -> None:
    """A daemon that has no data yet says so."""
    StateFile(str(path)).write([], state_files.HEADER, state_files.REST)
    assert read(str(path))["funding_state"] == {}


def test_a_whole_file_is_read_as_it_stands(path: Path) -> None:
    """Nothing is lost or changed on the way, marks of a record included."""
    content = state({"A": record(halted=True), "B": record(unlisted=True, fundingIntervalAssumed=True)})
    content["comparison"]["last"] = {one.name: one.default for one in LAST}
    content["gaps"] = [{"start": WALL_S - 60, "seconds": 11.5, "cause": "not running"}]
    content["history"] = [{one.name: WALL_S + number for number, one in enumerate(QUARTER)}]
    put(path, content)
    assert read(str(path)) == content


def test_what_is_not_declared_is_left_out(path: Path) -> None:
    """A later release may write more: neither answers nor the next file hold what nobody checked."""
    more = {"more": {"deep": [[1]]}}
    put(path, {**state({"A": record(**more)}, connection_status=status(**more), gaps=[]), **more})
    assert read(str(path)) == state({"A": record()})


def test_only_a_few_members_must_be_there(path: Path) -> None:
    """All others have defaults."""
    needed = {name: state()[name] for name in ("version", "updated_at", "funding_state")}
    put(path, needed)
    content = read(str(path))
    assert {name: content[name] for name in needed} == needed
    del needed["funding_state"]
    assert content == {**EMPTY, **needed, "funding_state": state()["funding_state"]}
    assert EMPTY["connection_status"].keys() == {one.name for one in STATUS} | {"rest"}
    assert EMPTY["connection_status"]["rest"] == {one.name: one.default for one in REST}
    assert EMPTY["comparison"] == {"last": None, "totals": {one.name: 0 for one in TOTALS}}


def test_the_file_of_the_release_before_is_read(path: Path) -> None:
    """All that it holds is taken as it is; what it lacks has its default."""
    written, content = json.loads(OLD_FILE.read_bytes()), read(str(OLD_FILE))
    assert len(content["funding_state"]) == 18
    for name, values in written.items():
        if name not in ("connection_status", "funding_state", "history"):
            assert content[name] == values, name
    lacking = {"stream_lag_seconds", "paused_until", "symbols_behind", "symbols_halted", "market_served_time"}
    lacking |= {"age_uncertainty_seconds", "symbol_seconds", "fresh_symbol_seconds"}
    assert written["connection_status"].keys() == content["connection_status"].keys() - lacking
    assert content["connection_status"] == {
        **dict.fromkeys(lacking),
        "fresh_symbol_seconds": {},
        **written["connection_status"],
    }
    (old_quarter,), (quarter,) = written["history"], content["history"]
    assert quarter == {**dict.fromkeys((one.name for one in QUARTER), 0), **old_quarter}
    names = [one.name for one in RECORD]
    assert content["funding_state"] == {
        symbol: {**dict.fromkeys(names), **old} for symbol, old in written["funding_state"].items()
    }


@pytest.mark.parametrize("name", [one.name for one in HEADER + RECORD + STATUS])
def test_a_field_that_may_be_missing_is_no_reason_to_refuse_the_file(path: Path, name: str) -> None:
    """What the release before did not know costs nobody the gaps and the day; what is required is required."""
    content = state()
    for section in (content, content["funding_state"]["BTCUSDT"], content["connection_status"]):
        section.pop(name, None)
    put(path, content)
    if any(one.required for one in HEADER + RECORD if one.name == name):
        assert unusable(path) == f"{path}: not a state file ({name} is missing)"
    else:
        read(str(path))


def test_a_missing_file_is_an_error(path: Path) -> None:
    """Its text names the path and says what is wrong in words."""
    assert unusable(path) == f"{path}: no such file or directory"
    assert unusable(path / "below") == f"{path / 'below'}: no such file or directory"


def test_a_fifo_does_not_block_the_reader(path: Path) -> None:
    """With or without somebody at its other end."""
    os.mkfifo(path)
    assert unusable(path) == f"{path}: not a file of at most 8 MiB"


def test_a_socket_a_device_and_a_directory_are_errors(path: Path) -> None:
    """None of them is read without end, or ends the server, whose every request looks at the file."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        unusable(path)
    assert unusable("/dev/zero") == "/dev/zero: not a file of at most 8 MiB"
    assert unusable(path.parent) == f"{path.parent}: not a file of at most 8 MiB"


def test_a_file_without_right_to_read_is_an_error(path: Path) -> None:
    """In words."""
    write(path)
    path.chmod(0o000)
    path.parent.chmod(0o755)
    with unprivileged():
        assert "permission denied" in unusable(path)


@pytest.mark.parametrize("size", [8 * 1024 * 1024 + 1, 105_000_000, 1 << 40])
def test_a_file_beyond_8_mib_is_not_read(path: Path, size: int) -> None:
    """It costs neither time nor memory, whatever it holds."""
    with path.open("wb") as file:
        file.truncate(size)
    tracemalloc.start()
    try:
        start_s = time.monotonic()
        assert unusable(path) == f"{path}: not a file of at most 8 MiB"
        assert time.monotonic() - start_s < 1
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


WHOLE = json.dumps(state()).encode()


@pytest.mark.parametrize("length", [0, 1, 20, len(WHOLE) // 2, len(WHOLE) - 1])
def test_a_truncated_file_is_an_error(path: Path, length: int) -> None:
    """Wherever it was cut."""
    path.write_bytes(WHOLE[:length])
    assert "not valid JSON" in unusable(path)


JUNK: dict[str, Any] = {
    "null": None,
    "number": 5,
    "list": [],
    "text": "state",
    "empty": {},
    "version 2": state(version=2),
    "no version": {name: value for name, value in state().items() if name != "version"},
    "updated_at text": state(updated_at="now"),
    "updated_at true": state(updated_at=True),
    "updated_at null": state(updated_at=None),
    "updated_at too large": state(updated_at=10**400),
    "boottime text": state(boottime="x"),
    "boot_id null": state(boot_id=None),
    "records list": {**state(), "funding_state": []},
    "records null": {**state(), "funding_state": None},
    "no records": {name: value for name, value in state().items() if name != "funding_state"},
    "record null": state({"A": None}),
    "record empty": state({"A": {}}),
    "record list": state({"A": [1]}),
    "rate true": state({"A": record(fundingRate=True)}),
    "rate text": state({"A": record(fundingRate="0.1")}),
    "rate null": state({"A": record(fundingRate=None)}),
    "price list": state({"A": record(markPrice=[1])}),
    "index price huge": state({"A": record(indexPrice=10**301)}),
    "source unknown": state({"A": record(source="hearsay")}),
    "source list": state({"A": record(source=[])}),
    "interval zero": state({"A": record(fundingIntervalHours=0)}),
    "interval 25": state({"A": record(fundingIntervalHours=25)}),
    "interval text": state({"A": record(fundingIntervalHours="8")}),
    "interval list": state({"A": record(fundingIntervalHours=[])}),
    "interval true": state({"A": record(fundingIntervalHours=True)}),
    "mark number": state({"A": record(halted=1)}),
    "mark null": state({"A": record(unlisted=None)}),
    "status list": state(connection_status=[]),
    "status null": state(connection_status=None),
    "status nested": state(connection_status=status(last_error=[[]])),
    "fallback text": state(connection_status=status(fallback_active="x")),
    "start time huge": state(connection_status=status(daemon_start_time=10**400)),
    "REST list": state(connection_status={"rest": []}),
    "polls true": state(connection_status={"rest": {"polls": True}}),
    "polls text": state(connection_status={"rest": {"polls": "1\n2"}}),
    "errors_by_status null": state(connection_status={"rest": {"errors_by_status": None}}),
    "errors_by_status list": state(connection_status={"rest": {"errors_by_status": [1]}}),
    "REST nested": state(connection_status={"rest": {"trouble": {}}}),
    "comparison null": state(comparison=None),
    "comparison list": state(comparison={"last": [1]}),
    "comparison text": state(comparison={"last": "yesterday"}),
    "comparison nested": state(comparison={"last": {"only_in_rest_symbols": [["A"]]}}),
    "comparison nested deeper": state(comparison={"last": {"only_in_rest_symbols": {"A": 1}}}),
    "totals list": state(comparison={"last": None, "totals": []}),
    "gaps null": state(gaps=None),
    "gaps number": state(gaps=5),
    "gap empty": state(gaps=[{}]),
    "gap text": state(gaps=[{"start": "x", "seconds": 1, "cause": ""}]),
    "history list of lists": state(history=[[1]]),
    "history text": state(history=[{"start": "x"}]),
}


@pytest.mark.parametrize("content", JUNK.values(), ids=JUNK.keys())
def test_json_that_no_daemon_wrote_is_an_error(path: Path, content: Any) -> None:
    """Every member that readers rely on is checked, booleans in the place of numbers included."""
    put(path, json.dumps(content).encode())
    assert unusable(path).startswith(f"{path}: ")


@pytest.mark.parametrize("member", ["updatedAt", "fundingRate", "nextFundingTime"])
@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400", "-1e400", "9" * 5000])
def test_numbers_that_are_not_finite_are_errors(path: Path, member: str, number: str) -> None:
    """However they are spelt."""
    put(path, json.dumps(state({"A": record(**{member: "X"})})).replace('"X"', number).encode())
    unusable(path)


@pytest.mark.parametrize(
    "content",
    [
        state(comparison={"last": {"compared": "X"}, "totals": {}}),
        state(comparison={"last": None, "totals": {"runs": "X"}}),
        state(connection_status={"connections": "X", "rest": {}}),
    ],
    ids=["comparison", "totals", "status"],
)
def test_infinite_statistics_are_errors(path: Path, content: dict[str, Any]) -> None:
    """All numbers of the file are finite; the daemon refuses to write what is not, and would die at every start."""
    put(path, json.dumps(content).replace('"X"', "1e400").encode())
    unusable(path)


@pytest.mark.parametrize(
    "content", [b"\xff", b"\xef\xbb\xbf{}", "{}".encode("utf-16"), b"[" * 200_000, b"{}{}", b"\0" * 50]
)
def test_bytes_that_are_no_json_are_errors(path: Path, content: bytes) -> None:
    """Encodings, nesting and blocks of zeros that a power failure leaves."""
    put(path, content)
    assert "not valid JSON" in unusable(path)


@pytest.mark.parametrize(
    "content",
    [
        state({"A\ud800": record()}),
        state(comparison={"last": {"mismatched_symbols": ["\udfff"]}, "totals": {}}),
        state(gaps=[{"start": 1, "seconds": 1, "cause": "\ud800"}]),
    ],
    ids=["symbol", "comparison", "gap"],
)
def test_text_that_cannot_be_encoded_is_an_error(path: Path, content: dict[str, Any]) -> None:
    """A daemon that takes it over could never write again, and would die at every start."""
    put(path, content)
    unusable(path)


@pytest.mark.parametrize("text", ["a \\ud800 in the text", "\\\\ud800", "\U0001f600", "\\n"])
def test_text_that_only_looks_like_an_escape_is_read(path: Path, text: str) -> None:
    """An error quoted from a malformed message may hold any characters, backslashes included."""
    put(path, state(connection_status={"last_error": text, "rest": {}}))
    assert read(str(path))["connection_status"]["last_error"] == text


WRITTEN = state()


@pytest.mark.parametrize("wall_set_by_s", [0.0, 3600.0, -3600.0, 1e6])
def test_within_one_boot_the_age_of_the_file_is_exact(wall_set_by_s: float) -> None:
    """Whoever sets the wall clock changes nothing."""
    now = Moment(WALL_S + wall_set_by_s + 42.5, STEADY_S + 42.5)
    assert written_age_s(WRITTEN, now, BOOT_ID) == 42.5


@pytest.mark.parametrize("boot_id", ["", "another"])
def test_of_another_boot_the_wall_clock_says_how_old_the_file_is(boot_id: str) -> None:
    """Steady times of two boots cannot be compared, nor those of boots without a name."""
    assert written_age_s(WRITTEN, Moment(WALL_S + 60, 5.0), boot_id) == 60
    if boot_id:  # it was written before this boot began, whatever the wall clock says
        assert written_age_s(WRITTEN, Moment(WALL_S + 1, 5.0), boot_id) == 5
    assert written_age_s(state(boot_id="", boottime=1.0), Moment(WALL_S + 60, 5.0), boot_id) == 60


def test_clocks_of_two_boots_may_differ_a_little() -> None:
    """Ages are never negative."""
    assert written_age_s(state(boot_id=""), Moment(WALL_S - 3, 5.0), "another") == 0


@pytest.mark.parametrize(("now", "boot_id"), [((WALL_S - 60, 500.0), "another"), ((WALL_S, STEADY_S - 60), BOOT_ID)])
def test_a_file_of_the_future_is_as_old_as_the_boot(now: tuple[float, float], boot_id: str) -> None:
    """A clock that was ahead wrote it, or a host with another clock since boot: it must not pass for new until then."""
    assert written_age_s(WRITTEN, Moment(*now), boot_id) == now[1]
