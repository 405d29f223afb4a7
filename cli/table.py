"""Tables on a terminal or in a pipe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

_CELL: Final = 60


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print aligned columns, never cut to a terminal's width: ids have to be readable in a pipe, too."""
    cells = [[_printable("" if value is None else str(value)) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    for line in (columns, *cells):
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _printable(cell: str) -> str:
    """Names are chosen by producers: nothing of them may steer the terminal."""
    shown = "".join(character if character.isprintable() else "\ufffd" for character in cell)
    return shown if len(shown) <= _CELL else shown[: _CELL - 1] + "…"
