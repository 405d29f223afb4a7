"""What a reconciliation finds: sentences about everything that does not agree, by the check that found it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from enum import StrEnum
from typing import Final

import msgspec

KEPT_PER_CHECK: Final = 20
"""Findings of one check that are kept as sentences; the rest are counted."""


class Check(StrEnum):
    """What is compared, by the name under which it is reported."""

    COUNTER_SUM = "counter_sum"
    """received = stored + duplicate + conflict + dead_lettered, and none is negative."""
    STORED_COUNTER = "stored_counter"
    """Stored counters equal the rows of events."""
    CONFLICT_COUNTER = "conflict_counter"
    """Conflict counters equal the dead letters of conflicts."""
    DEAD_LETTER_COUNTER = "dead_letter_counter"
    """Dead-letter counters equal the other dead letters."""
    LOG_COUNTER = "log_counter"
    """Counters equal what the log says, where it still holds everything; elsewhere they are not lower."""
    EVENT_WITHOUT_KEY = "event_without_key"
    """Every event's identity has a key."""
    KEY_WITHOUT_EVENT = "key_without_event"
    """Every key has its event."""
    KEY_DISAGREES = "key_disagrees"
    """Key and event agree about number and time of storing."""
    EVENT_STORED_TWICE = "event_stored_twice"
    """An identity is stored once."""
    KEY_COUNT = "key_count"
    """There are as many keys as events."""
    ROW_BEYOND_POSITION = "row_beyond_position"
    """No row comes from an offset that, by the position, has no verdict yet."""
    GAP_MISSING = "gap_missing"
    """Every incarnation after the first began with a recorded gap."""
    POSITION_OUTSIDE_LOG = "position_outside_log"
    """The log holds the position."""
    COMMIT_BEYOND_POSITION = "commit_beyond_position"
    """The group's committed offset is not above the position."""
    LOG_REPLACED = "log_replaced"
    """The last record before the position is the one the store remembers."""
    RECORD_WITHOUT_VERDICT = "record_without_verdict"
    """Every record below the position is stored, a duplicate, or a dead letter."""
    RECORD_WITH_TWO_VERDICTS = "record_with_two_verdicts"
    """No record is both."""
    ROW_WITHOUT_RECORD = "row_without_record"
    """Every row from offsets that the log holds has its record there."""


class Finding(msgspec.Struct, frozen=True):
    """Something that does not agree, in a sentence."""

    check: Check
    sentence: str
    partition: int | None = None


class Findings:
    """Collects findings; bounded, however much is wrong."""

    def __init__(self) -> None:
        self._kept: list[Finding] = []
        self._counts: Counter[Check] = Counter()

    def add(self, check: Check, sentence: str, partition: int | None = None) -> None:
        self._counts[check] += 1
        if self._counts[check] <= KEPT_PER_CHECK:
            self._kept.append(Finding(check, sentence, partition))

    def extend(self, other: Findings) -> None:
        for check, count in other._counts.items():
            room = max(0, KEPT_PER_CHECK - self._counts[check])
            self._kept += [finding for finding in other._kept if finding.check is check][:room]
            self._counts[check] += count

    def __len__(self) -> int:
        return self._counts.total()

    def any_of(self, checks: Iterable[Check]) -> bool:
        return any(self._counts[check] for check in checks)

    @property
    def kept(self) -> list[Finding]:
        """The findings as sentences, the first `KEPT_PER_CHECK` of each check."""
        return self._kept

    @property
    def counts(self) -> dict[Check, int]:
        """How many there are of each check."""
        return dict(self._counts)
