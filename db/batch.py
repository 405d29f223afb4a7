"""What the worker hands to the store, and what it gets back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from events.event import Event
from events.verdict import Verdict


class Coordinates(msgspec.Struct, frozen=True, gc=False):
    """A record's place in the log, and the bytes found there, kept in case it becomes a dead letter.

    Attributes:
        timestamp_ms: the log's own clock; any 64-bit value, -1 if absent.
        received_at_us: when the gateway took it, from the `received_at` header, in microseconds since 1970;
            None for direct producers.
    """

    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    received_at_us: int | None = None


class ValidRecord(msgspec.Struct, frozen=True, gc=False):
    """A record that holds an event."""

    at: Coordinates
    event: Event


class InvalidRecord(msgspec.Struct, frozen=True, gc=False):
    """A record that will be a dead letter.

    Attributes:
        reason: an `events.errors.InvalidCode`, or a reason of `events.verdict`.
        error: a sentence for the operator.
        topic, event_id: where they could be read and are valid.
    """

    at: Coordinates
    reason: str
    error: str
    topic: str | None = None
    event_id: str | None = None


class Position(msgspec.Struct, frozen=True, gc=False):
    """How far a partition has been given verdicts. The database's copy is the authoritative one.

    Attributes:
        next_offset: the next offset to read.
        incarnation: 1, and one more each time the log topic was found truncated, expired or recreated.
    """

    partition: int
    incarnation: int
    next_offset: int


class Advance(msgspec.Struct, frozen=True, gc=False):
    """The move of one position; stored only if the database still has `previous`.

    Attributes:
        fingerprint: 64-bit hash of the last record before `next_offset`, to recognise a recreated topic;
            None where there was no record.
    """

    previous: Position
    next_offset: int
    fingerprint: int | None = None


class Prepared(msgspec.Struct, frozen=True):
    """Records as `EventStore.prepare` made them ready.

    Attributes:
        firsts: the first record of each identity.
        repeated: the others, each with the place of its first.
        first_counts: how many firsts there are of each partition and topic.
        parameters: what the statements of the database take of the firsts.
    """

    firsts: Sequence[ValidRecord]
    repeated: Sequence[tuple[int, ValidRecord]]
    invalid: Sequence[InvalidRecord]
    first_counts: Counter[tuple[int, str]]
    parameters: Any


class Batch(msgspec.Struct, frozen=True):
    """One transaction's worth of records.

    `records` are in offset order within each partition; every partition they mention has an advance. An
    advance without records is allowed (transaction markers move positions). `prepared` is of these very
    records; without it the store prepares them itself.
    """

    records: Sequence[ValidRecord | InvalidRecord]
    advances: Sequence[Advance]
    prepared: Prepared | None = None


WhenBusy = Callable[[], object]
"""Called as a database server begins with what takes it longest, while this process can do other work."""


class Rejected(msgspec.Struct, frozen=True):
    """A record the database refuses: its index in `Batch.records`, and the database's words."""

    index: int
    error: str


class WriteResult(msgspec.Struct, frozen=True):
    """What one transaction did: one verdict for each record, and the positions now stored.

    `stored + duplicates + conflicts + dead_lettered == len(batch.records)`.

    Attributes:
        by_topic: how many records of each topic got each verdict; the empty topic is for records whose topic
            could not be read.
    """

    stored: int
    duplicates: int
    conflicts: int
    dead_lettered: int
    positions: Sequence[Position]
    by_topic: Mapping[tuple[str, Verdict], int] = {}
