"""The tables of docs/state-file.md, made from the schema: `python -m tests.support.field_tables` writes them.

A table stands between `<!-- fields: NAME -->` and `<!-- end -->`.
"""

import re
import sys
from pathlib import Path

from binance_funding import schema

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "state-file.md"
SECTIONS: dict[str, schema.Section] = {
    "header": schema.HEADER,
    "record": schema.RECORD,
    "marks": schema.MARKS,
    "connection_status": schema.STATUS,
    "rest": schema.REST,
    "totals": schema.TOTALS,
    "last": schema.LAST,
    "process": schema.PROCESS,
    "gap": schema.GAP,
    "quarter": schema.QUARTER,
}
_MARKED = re.compile(r"(<!-- fields: (\w+) -->\n).*?(?=<!-- end -->)", re.DOTALL)


def fill(document: str) -> str:
    """Return the document with every table made anew from the schema. Raises KeyError for an unknown section."""
    return _MARKED.sub(lambda match: match[1] + table(SECTIONS[match[2]]), document)


def sections_of(document: str) -> list[str]:
    """Return the names of the sections whose tables the document contains."""
    return [name for _, name in _MARKED.findall(document)]


def table(section: schema.Section) -> str:
    """Return a section as a Markdown table. It has a column for metrics if a field has a metric."""
    has_metrics = any(field.metric for field in section)
    columns = ("field", "unit", "meaning", "metric")[: 4 if has_metrics else 3]
    rows = [columns, ("---",) * len(columns), *(_row(field)[: len(columns)] for field in section)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


def _row(field: schema.Field) -> tuple[str, ...]:
    may_be_null = field.default is None and not field.required
    unit = (field.kind.unit or "number") + (" or null" if may_be_null else "")
    metric = f"`binance_funding_{field.metric}`" if field.metric else ""
    return f"`{field.name}`", unit, field.meaning, metric


def main() -> int:
    """Write the tables; return 0."""
    DOCUMENT.write_text(fill(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
