"""The documents agree with the code: links, settings, log events, endpoints, fields of the state file."""

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

from binance_funding import __version__
from binance_funding.clock import Clock
from binance_funding.server.api import ALIASES, Api
from binance_funding.server.http.message import Request
from binance_funding.server.state_reader import StateReader
from binance_funding.settings import Settings, variable
from tests.support import field_tables
from tests.support.source import PACKAGE, ROOT, log_events, product_files

README = ROOT / "README.md"
CHANGELOG = ROOT / "CHANGELOG.md"
DOCUMENTS = [README, CHANGELOG, *sorted((ROOT / "docs").rglob("*.md"))]
DEFAULTS = {variable(declared): declared.metadata["text"] for declared in fields(Settings)}

_FENCED = re.compile(r"^ *```.*?^ *```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
_ROW = re.compile(r"^\|(.*)\|$", re.MULTILINE)
_LEVELS = {"DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"}


def prose(path: Path) -> str:
    """Return a document without its blocks of code."""
    return _FENCED.sub("", path.read_text(encoding="utf-8"))


def anchors(path: Path) -> set[str]:
    """Return the anchors of a document's headings, as code hosting sites make them."""
    headings = (re.sub(r"\[([^]]*)\]\([^)]*\)|`", r"\1", heading) for heading in _HEADING.findall(prose(path)))
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def rows(path: Path) -> list[list[str]]:
    """Return the cells of all rows of a document's tables."""
    return [[cell.strip() for cell in row.split(" | ")] for row in _ROW.findall(prose(path))]


def broken_links(path: Path, root: Path = ROOT) -> list[str]:
    """Return the links of a document that lead nowhere within the root."""
    broken = []
    for link in _LINK.findall(prose(path)):
        if re.match(r"https?:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        inside = target.is_relative_to(root) and target.exists()
        if not inside or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


def test_readme_is_short() -> None:
    """The README has at most 130 lines; the reference is in docs/."""
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 130


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(path: Path) -> None:
    """Every relative link leads to a file of the repository, and to a heading where it names one."""
    assert broken_links(path) == []


def test_every_document_is_found_from_the_readme() -> None:
    """Whoever follows links from the README comes to every document."""
    seen, unseen = set[Path](), [README]
    while unseen:
        path = unseen.pop()
        seen.add(path)
        linked = {(path.parent / link.partition("#")[0]).resolve() for link in _LINK.findall(prose(path))}
        unseen += [target for target in linked & set(DOCUMENTS) if target not in seen]
    assert set(DOCUMENTS) - seen == set()


def test_the_changelog_begins_with_the_version_of_the_programs() -> None:
    """Its entries have a version and a date each, the newest first. Only [Unreleased] may precede them."""
    text = CHANGELOG.read_text(encoding="utf-8")
    entries = re.findall(r"^## (.*)$", text, re.MULTILINE)
    if entries[0] == "[Unreleased]":
        del entries[0]
    matches = [re.fullmatch(r"\[(\d+)\.(\d+)\.(\d+)\] - \d{4}-\d\d-\d\d", entry) for entry in entries]
    versions = [tuple(map(int, match.groups())) for match in matches if match]
    assert len(versions) == len(entries)
    assert versions == sorted(set(versions), reverse=True)
    assert ".".join(map(str, versions[0])) == __version__
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security", "Upgrading"}
    assert set(re.findall(r"^### (.*)$", text, re.MULTILINE)) <= kinds


def test_the_version_stands_in_one_place() -> None:
    """But for the changelog, no file of the product, its units or its packaging repeats it."""
    kinds = ("*.toml", "*.mk", "*.md", "*.service", "packaging/*.py", "packaging/*.sh", "docs/**/*.md")
    files = [*product_files(), ROOT / "Makefile", *(path for kind in kinds for path in ROOT.glob(kind))]
    version = re.compile(rf"(?<![\d.]){re.escape(__version__)}(?![\d.])")
    holding = {path for path in files if version.search(path.read_text(encoding="utf-8"))}
    assert holding == {ROOT / PACKAGE / "__init__.py", CHANGELOG}


def test_every_setting_is_documented_with_its_default() -> None:
    """The table of docs/settings.md holds every setting with its default, and no other."""
    documented = {
        cells[0].strip("`"): cells[1].strip("`") for cells in rows(ROOT / "docs/settings.md") if len(cells) == 3
    }
    assert {name: text for name, text in documented.items() if name.isupper()} == DEFAULTS


def test_every_setting_is_in_the_example() -> None:
    """.env.example holds every setting with its default, commented out, and no other."""
    lines = (ROOT / ".env.example").read_text(encoding="utf-8").splitlines()
    settings = [line.removeprefix("#").partition("=") for line in lines if re.match(r"#[A-Z_]+=", line)]
    assert {name: text for name, _, text in settings} == DEFAULTS


def test_every_event_is_documented() -> None:
    """The log tables of docs/operations.md name every event that the programs log, and no other."""
    documented = {
        event
        for cells in rows(ROOT / "docs/operations.md")
        if cells[0] in _LEVELS
        for event in re.findall("`([^`]+)`", cells[1])
    }
    source = "".join(path.read_text(encoding="utf-8") for path in product_files())
    # Some events are logged under the name of a variable. Of these, the name must be in the source.
    named = {event for event in documented if f'"{event}"' in source or f'"{event.removesuffix(" again")}"' in source}
    logged = log_events(source) | named
    assert documented == logged


def test_every_endpoint_is_documented() -> None:
    """The first table of docs/http-api.md names every endpoint that the server lists at `/`, its aliases, no other."""
    answer = Api(StateReader("/nonexistent"), Settings(), Clock())(Request("GET", "/", "", {}))
    listed = {request.partition("?")[0] for request in json.loads(answer.body)["endpoints"]}
    cells = [cells[0] for cells in rows(ROOT / "docs/http-api.md")]
    documented = {path for cell in cells for path in re.findall(r"`(/[^`?]*)", cell)}
    assert documented - {"/"} == listed | ALIASES.keys()


def test_the_tables_of_fields_are_those_of_the_schema() -> None:
    """docs/state-file.md holds every field of the schema; `make docs` writes its tables."""
    document = field_tables.DOCUMENT.read_text(encoding="utf-8")
    assert sorted(field_tables.sections_of(document)) == sorted(field_tables.SECTIONS)
    assert field_tables.fill(document) == document


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    """Found are links to no file, to no heading and out of the repository; those in blocks of code are no links."""
    good = ["other.md", "other.md#a-heading-of-two-words", "#here", "https://example.com/#x"]
    bad = ["missing.md", "other.md#here", "#not-here", "../outside.md"]
    document, other = tmp_path / "docs" / "document.md", tmp_path / "docs" / "other.md"
    document.parent.mkdir()
    document.write_text("# Here\n```\n[code](x.md)\n```\n" + "".join(f"[to]({link})\n" for link in [*good, *bad]))
    other.write_text("## A `heading` [of two](x.md) words\n")
    (tmp_path / "outside.md").touch()
    assert broken_links(document, tmp_path / "docs") == bad


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_use_the_words_of_the_field(path: Path) -> None:
    """Lines are logged, connections dropped, answers served: nothing is told or lent."""
    assert re.findall(r"\b(?:told|lends|lent|has its right|in its stead)\b", prose(path)) == []
