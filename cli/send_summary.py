"""What `aggregator send` has to say at the end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


@dataclass
class SendSummary:
    """What became of the events.

    `unique + duplicates == accepted + sum(rejected.values())`: both count what the gateway has answered for.

    Attributes:
        events_read: events taken from the input, or made up.
        unique: events sent that are no copies made here.
        duplicates: copies sent.
        accepted: events the gateway has acknowledged.
        rejected: events it refused, by code.
        messages: a sentence about each of the first few of these.
        unreadable: lines of the input that hold no JSON; `unreadable_lines` are the first few numbers.
        failure: why sending ended early; None if it did not.
    """

    seed: int
    events_read: int = 0
    unique: int = 0
    duplicates: int = 0
    accepted: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    unreadable: int = 0
    unreadable_lines: list[int] = field(default_factory=list)
    requests: int = 0
    retries: int = 0
    seconds: float = 0.0
    events_per_second: float = 0.0
    failure: str | None = None

    @property
    def complete(self) -> bool:
        """Whether everything there was to send has been accepted."""
        return not (self.rejected or self.unreadable or self.failure)


def print_table(summary: SendSummary, console: Console) -> None:
    """The counts, for people."""
    from rich.table import Table

    table = Table(box=None, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in (
        ("events read", f"{summary.events_read:,}"),
        ("unique sent", f"{summary.unique:,}"),
        ("duplicates sent", f"{summary.duplicates:,}"),
        ("accepted", f"{summary.accepted:,}"),
        ("rejected", f"{sum(summary.rejected.values()):,}"),
        ("requests", f"{summary.requests:,}"),
        ("retries", f"{summary.retries:,}"),
        ("seconds", f"{summary.seconds:,.2f}"),
        ("events/s", f"{summary.events_per_second:,.0f}"),
        ("seed", str(summary.seed)),
    ):
        table.add_row(name, value)
    console.print(table)


def complaints(summary: SendSummary) -> Iterator[str]:
    """Sentences about everything that was not accepted."""
    if summary.failure:
        yield f"{summary.failure} Run it again, with --seed {summary.seed}: repeated events are stored once."
    if summary.rejected:
        codes = ", ".join(f"{count:,} {code}" for code, count in sorted(summary.rejected.items()))
        yield f"The gateway rejected {sum(summary.rejected.values()):,} events ({codes}), among them:"
        yield from (f"  {message}" for message in summary.messages)
    if summary.unreadable:
        numbers = ", ".join(f"{number:,}" for number in summary.unreadable_lines)
        more = " and more" if summary.unreadable > len(summary.unreadable_lines) else ""
        yield f"{summary.unreadable:,} lines are not JSON and were not sent: line {numbers}{more}."
