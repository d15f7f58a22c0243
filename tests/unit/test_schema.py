"""The schema: what it lets in, what it fills in, and that what is written is what is declared."""

import json
from typing import Any

import pytest

from binance_funding.daemon.record import render
from binance_funding.schema import (
    COUNT,
    COUNTS,
    FLAG,
    GAP,
    HEADER,
    LAST,
    MARKS,
    NAMES,
    PROCESS,
    QUARTER,
    RECORD,
    REST,
    SECONDS,
    STATUS,
    TEXT,
    TOTALS,
    Field,
    Kind,
    complete,
    declared,
)
from tests.support.samples import EVENT_MS, NEXT_FUNDING_MS, rate

SECTIONS = {
    "header": HEADER,
    "record": RECORD,
    "marks": MARKS,
    "status": STATUS,
    "rest": REST,
    "totals": TOTALS,
    "last": LAST,
    "process": PROCESS,
    "gap": GAP,
    "quarter": QUARTER,
}
FIELDS = [pytest.param(one, id=f"{name}.{one.name}") for name, section in SECTIONS.items() for one in section]


def read(field: Field, *values: Any) -> list[Any]:
    """Return what the field reads from members that hold these values."""
    return field.read([{field.name: value} for value in values])


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (COUNT, [0, 7, -1, 2.5, 1e299], ["1", True, None, [], {}, 1e300, -1e300, 10**400, float("inf")]),
        (SECONDS, [0.0, 3], [False, "soon"]),
        (FLAG, [True, False], [0, 1, "true", None]),
        (TEXT, ["", "币"], [0, True, None, ["text"]]),
        (COUNTS, [{}, {"429": 1, "timeout": 2.5}], [[], {"429": True}, {"429": "1"}, {"429": None}, None]),
        (NAMES, [[], ["A", "B"]], [{}, {"A": 1}, ["A", 1], [["A"]], "A", None]),
    ],
    ids=["number", "seconds", "flag", "text", "numbers by name", "list of names"],
)
def test_a_field_takes_values_of_its_kind_and_no_others(kind: Kind, good: list[Any], bad: list[Any]) -> None:
    """One wrong value among thousands is found, and the error names the field; true is no number."""
    field = Field("pulse", kind, "a trial", required=True)
    assert read(field, *good) == good
    for value in bad:
        with pytest.raises(ValueError, match=r"^pulse "):
            read(field, *good, value, *good)


def test_a_missing_required_field_is_an_error() -> None:
    """It names the field."""
    with pytest.raises(ValueError, match=r"^pulse is missing$"):
        Field("pulse", COUNT, "a trial", required=True).read([{"pulse": 1}, {}])


def test_a_field_without_a_default_may_be_null() -> None:
    """Null and missing are both "not known"; a field with a default is never null."""
    assert Field("pulse", COUNT, "a trial").read([{"pulse": None}, {}, {"pulse": 3}]) == [None, None, 3]
    with pytest.raises(ValueError, match="wrong type"):
        read(Field("pulse", COUNT, "a trial", default=0), None)


def test_only_allowed_values_are_taken() -> None:
    """The error lists them."""
    field = Field("side", TEXT, "a trial", required=True, allowed=("long", "short"))
    assert read(field, "long", "short", "long") == ["long", "short", "long"]
    with pytest.raises(ValueError, match=r"^side is none of long, short$"):
        read(field, "long", "flat")


def test_a_section_is_completed_and_reduced_to_what_is_declared() -> None:
    """An older file lacks fields, a newer one has more; the members given stay as they are."""
    section = (Field("a", COUNT, "a trial", required=True), Field("b", TEXT, "a trial", default="x"))
    given: list[dict[str, Any]] = [{"a": 1, "later": [[1]]}, {"b": "y", "a": 2}]
    assert complete(section, given) == [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]
    assert given == [{"a": 1, "later": [[1]]}, {"b": "y", "a": 2}]
    assert complete(section, []) == []


@pytest.mark.parametrize("member", [None, 5, "text", [], [1]])
def test_a_member_that_is_no_object_is_an_error(member: Any) -> None:
    """One of the errors that the reader of the file expects."""
    for section in SECTIONS.values():
        with pytest.raises((ValueError, TypeError, AttributeError)):
            complete(section, [member])


def test_what_is_declared_must_be_given() -> None:
    """A field that nobody measures is a fault at the first write, not a hole in the file; the order is the schema's."""
    given = {one.name: n for n, one in enumerate(reversed(STATUS))}
    assert list(declared(STATUS, given)) == [one.name for one in STATUS]
    del given["url"]
    with pytest.raises(KeyError, match="url"):
        declared(STATUS, given)


def test_a_record_is_written_as_declared() -> None:
    """Every field in its order; numbers as short as they can be, times with milliseconds, marks at the end."""
    more = ',"interestRate":0.0001,"fundingRateCap":null,"fundingRateFloor":null,"halted":true'
    written = render(rate(funding_rate=-1e-8, mark_price=5.0), '"币"', "1795500000.124", 4, more)
    assert written == (
        '"币":{"fundingRate":-1e-08,"markPrice":5.0,"indexPrice":100.25,'
        f'"nextFundingTime":{NEXT_FUNDING_MS},"eventTime":{EVENT_MS},"updatedAt":1795500000.124,'
        '"fundingIntervalHours":4,"source":"websocket","estimatedSettlePrice":null'
        f"{more}}}"
    )
    (member,) = json.loads("{" + written + "}").values()
    assert list(member) == [*(one.name for one in RECORD), "halted"]


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_is_declared_soundly(field: Field) -> None:
    """Its default is a value of its own kind, its name is not another's, and its meaning begins a sentence."""
    if not field.required:
        assert field.read([{}]) == [field.default]
    assert field.meaning
    assert not field.meaning.endswith(".")
    assert "|" not in field.meaning, "it would end a cell of the table"
    assert not field.required or field.default is None


def test_no_name_is_declared_twice() -> None:
    """Neither a field within its section, nor a mark beside a field of the record, nor a metric."""
    for section in [*SECTIONS.values(), RECORD + MARKS]:
        names = [one.name for one in section]
        assert len(set(names)) == len(names)
    metrics = [one.metric for section in SECTIONS.values() for one in section if one.metric]
    assert len(set(metrics)) == len(metrics)
