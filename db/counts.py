"""Counting verdicts within a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from events.verdict import Verdict

CountKey = tuple[int, str]
"""Partition and topic; the topic is empty for records whose topic could not be read."""


class Counts(NamedTuple):
    """How many records got each verdict."""

    stored: int = 0
    duplicate: int = 0
    conflict: int = 0
    dead_lettered: int = 0

    @property
    def received(self) -> int:
        return sum(self)


def tally(verdicts: Mapping[tuple[int, str, Verdict], int]) -> dict[CountKey, Counts]:
    """Counts per partition and topic, in that order: the order in which counter rows are locked."""
    keys = sorted({(partition, topic) for partition, topic, _ in verdicts})
    return {
        (partition, topic): Counts(*(verdicts.get((partition, topic, verdict), 0) for verdict in _ORDER))
        for partition, topic in keys
    }


_ORDER = (Verdict.STORED, Verdict.DUPLICATE, Verdict.CONFLICT, Verdict.DEAD_LETTERED)
