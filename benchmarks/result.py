"""A benchmark's result: a table for people, JSON for everything else."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks.rounds import Contestant, Outcome

RESULTS_VARIABLE: Final = "AGGREGATOR_BENCHMARK_RESULTS"
RESULTS: Final = Path(os.environ.get(RESULTS_VARIABLE) or Path(__file__).with_name("results"))


class Column(NamedTuple):
    """A figure of a table.

    Attributes:
        figure: its name in a round.
        title: the head of the column.
        pattern: how it is written.
        more_is_better: which way is ahead.
    """

    figure: str
    title: str
    pattern: str = "{:,.0f}"
    more_is_better: bool = False

    def as_json(self) -> dict[str, Any]:
        return dict(self._asdict())

    def cell(self, value: float | None) -> str:
        return "–" if value is None else self.pattern.format(value)


class Table(NamedTuple):
    """What belongs together; the first column is the one whose ratio is told."""

    title: str
    columns: Sequence[Column]

    def rows(self, outcomes: Sequence[Mapping[str, Any]], reference: str) -> list[list[str]]:
        """Head and body, of outcomes as in JSON; those without the first figure are left out."""
        first = self.columns[0].figure
        base = next((o["median"].get(first) for o in outcomes if o["name"] == reference), None)
        rows = [["", *(column.title for column in self.columns), "spread", "ratio"]]
        for outcome in outcomes:
            value = outcome["median"].get(first)
            if value is None:
                continue
            rounds = [round_[first] for round_ in outcome["rounds"] if first in round_]
            rows.append(
                [
                    outcome["name"],
                    *(column.cell(outcome["median"].get(column.figure)) for column in self.columns),
                    f"± {(max(rounds) - min(rounds)) / 2 / value:.0%}" if value else "–",
                    f"{value / base:.2f}" if base else "–",
                ]
            )
        return rows


def arguments(name: str, description: str | None, **numbers: tuple[int, str]) -> argparse.Namespace:
    """What every benchmark can be told, and the numbers of this one: default and meaning, by name."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for option, (default, meaning) in {**numbers, "rounds": (5, "of all contestants")}.items():
        parser.add_argument(
            f"--{option}", type=int, default=default, help=f"{meaning} (default: {default:,})"
        )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these contestants")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}/{name}.json")
    return parser.parse_args()


def chosen(contestants: Sequence[Contestant], only: Sequence[str] | None) -> list[Contestant]:
    """Those that are named; all if none is."""
    return [contestant for contestant in contestants if not only or contestant.name in only]


def finish(
    name: str,
    machine: Mapping[str, Any],
    settings: Mapping[str, Any],
    tables: Sequence[Table],
    outcomes: Sequence[Outcome],
    reference: str,
    *,
    keep: bool,
) -> None:
    """Print the tables and who was left out and why; keep it as `NAME.json` if asked to."""
    for each in tables:
        show(f"{each.title}, medians", outcomes, each.columns, reference)
    sys.stdout.writelines(f"\n{o.name} is left out: {o.left_out}\n" for o in outcomes if o.left_out)
    document = {
        "benchmark": name,
        **machine,
        "settings": settings,
        "tables": [
            {"title": each.title, "columns": [column.as_json() for column in each.columns]} for each in tables
        ],
        "reference": reference,
        "outcomes": [outcome.as_json() for outcome in outcomes],
    }
    write(name, document, RESULTS if keep else None)


def show(title: str, outcomes: Sequence[Outcome], columns: Sequence[Column], reference: str) -> None:
    """Print one table."""
    rows = Table(title, columns).rows([outcome.as_json() for outcome in outcomes], reference)
    sys.stdout.write(f"\n{title}\n\n{table(rows)}\n")


def write(name: str, document: Mapping[str, Any], directory: Path | None) -> None:
    """Write the result to `NAME.json` in the directory; with none it was only printed."""
    if directory is None:
        return
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / f"{name}.json"
    file.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    sys.stdout.write(f"\nwritten to {directory.name}/{file.name}\n")


def several(size: int, what: str) -> str:
    """Title of a table."""
    return f"{size:,} event{'s' if size > 1 else ''} per {what}"


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
