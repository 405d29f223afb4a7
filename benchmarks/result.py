"""A benchmark's result: a table for people, JSON for everything else."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.rounds import Outcome

RESULTS: Final = Path(__file__).with_name("results")


class Column:
    """A figure of the table: what it is called, and how it is written."""

    def __init__(self, figure: str, title: str, pattern: str = "{:,.0f}") -> None:
        self.figure = figure
        self.title = title
        self._pattern = pattern

    def as_json(self) -> dict[str, str]:
        return {"figure": self.figure, "title": self.title, "pattern": self._pattern}

    def cell(self, value: float | None) -> str:
        return "–" if value is None else self._pattern.format(value)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Text in columns; the first row is the head, the first column is aligned to the left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def outcome_rows(outcomes: Sequence[Outcome], columns: Sequence[Column], reference: str) -> list[list[str]]:
    """Medians, and the first column's ratio to the reference's."""
    first = columns[0]
    base = next((o.median(first.figure) for o in outcomes if o.name == reference), None)
    rows = [["", *(column.title for column in columns), "spread", "ratio"]]
    for outcome in outcomes:
        value = outcome.median(first.figure)
        if value is None:
            continue
        spread = outcome.spread(first.figure) or 0.0
        rows.append(
            [
                outcome.name,
                *(column.cell(outcome.median(column.figure)) for column in columns),
                f"± {spread:.0%}",
                "–" if not base else f"{value / base:.2f}",
            ]
        )
    return rows


def write(name: str, document: Mapping[str, Any], directory: Path | None) -> None:
    """Write the result to `NAME.json` in the directory; with none it is only printed."""
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    if directory is None:
        return
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / f"{name}.json"
    file.write_text(text)
    sys.stdout.write(f"\nwritten to {file}\n")


def show(title: str, outcomes: Sequence[Outcome], columns: Sequence[Column], reference: str) -> None:
    """Print the table, and below it who was left out and why."""
    sys.stdout.write(f"\n{title}\n\n{table(outcome_rows(outcomes, columns, reference))}\n")
    sys.stdout.writelines(f"\n{o.name} is left out: {o.left_out}\n" for o in outcomes if o.left_out)
    sys.stdout.flush()
