"""The table: one line for each figure, with its yardstick, their ratio, and what was promised."""

from typing import NamedTuple


class Line(NamedTuple):
    """One figure. `holds` is None where nothing was promised."""

    what: str
    ours: str
    yardstick: str = ""
    ratio: float | None = None
    promise: str = ""
    holds: bool | None = None


def markdown(title: str, yardstick: str, lines: list[Line]) -> str:
    """Write the lines as a Markdown table under a heading."""
    rows = [("", "ours", yardstick, "ratio", "promised", "holds"), ("---", "---:", "---:", "---:", "---", "---")]
    rows += [
        (
            line.what,
            line.ours,
            line.yardstick,
            "" if line.ratio is None else f"{line.ratio:.2f}",
            line.promise,
            "" if line.holds is None else "yes" if line.holds else "NO",
        )
        for line in lines
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    text = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return "\n".join([f"## {title}", "", *text])
