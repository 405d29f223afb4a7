"""The log as the rest of the system sees it.

Words: `offset` is a record's place in its partition; `next_offset` is that + 1; a *position* is the next
offset to read; `committable` maps partition to a next offset proven safe; `end_offset` is the next offset
the log will assign. One log topic per deployment, so a partition is named by its number alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import msgspec

Headers = tuple[tuple[str, bytes | None], ...]
"""A multimap: a key may repeat, a value may be null."""


class NewRecord(msgspec.Struct, frozen=True, gc=False):
    """A record to be appended. Records with equal keys go to the same partition, in order of appending."""

    key: bytes
    value: bytes
    headers: Headers = ()


class Record(msgspec.Struct, frozen=True, gc=False):
    """A record as read from the log. `timestamp_ms` is the log's clock: any 64-bit value, -1 if absent."""

    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers

    @property
    def next_offset(self) -> int:
        return self.offset + 1


class UndecodableRecord(msgspec.Struct, frozen=True, gc=False):
    """A place in the log whose bytes the client cannot read (CRC, codec, header encoding). Reading on from
    `next_offset` skips just this record, or, where the client cannot tell records apart, its whole batch."""

    partition: int
    offset: int
    next_offset: int
    error: str


class Poll(msgspec.Struct, frozen=True):
    """What one poll returned.

    Attributes:
        records: in offset order within each partition.
        next_offsets: for each partition that moved, the position after these records. It can lie beyond the
            last record's next_offset, or move with no record at all: transaction markers and aborted records
            take offsets without being returned.
    """

    records: Sequence[Record | UndecodableRecord]
    next_offsets: Mapping[int, int]


class PartitionOffsets(msgspec.Struct, frozen=True):
    """The offsets a partition holds: `beginning` up to but not including `end`."""

    partition: int
    beginning: int
    end: int


class LogDescription(msgspec.Struct, frozen=True):
    """The log topic as the broker describes it. `settings` holds the topic settings we depend on."""

    topic: str
    partitions: int
    replication_factor: int
    settings: Mapping[str, str]


class RebalanceListener(Protocol):
    """Told about assignment changes by the consumer.

    `on_revoked` is awaited before the partitions can go to another consumer of the group: store and commit
    what is in flight, bounded by the rebalance timeout. It is not called by `Consumer.stop`.
    """

    async def on_revoked(self, partitions: frozenset[int]) -> None: ...

    async def on_assigned(self, partitions: frozenset[int]) -> None: ...


class Producer(Protocol):
    """Appends records. Safe to use from many tasks of one event loop."""

    async def start(self) -> None:
        """Connect. Raises LogUnavailable or TopicMissing."""

    async def stop(self) -> None:
        """Finish what is in flight, bounded in time, then close. Idempotent."""

    async def publish(self, records: Sequence[NewRecord], *, timeout: float) -> None:
        """Append records; returns once every one of them is durable (Kafka: acks=all; local: fsync).

        On any error some of the records may be in the log.

        Args:
            timeout: seconds after which to give up.

        Raises:
            LogUnavailable: not acknowledged (ProduceOutcomeUnknown: the deadline passed).
            LogFull: the log or its buffer is full.
            RecordTooLarge: the log will never take one of them.
        """

    @property
    def in_flight(self) -> int:
        """Records handed over and not yet acknowledged."""


class Consumer(Protocol):
    """A member of the consumer group. One task uses it at a time.

    It never chooses a position by itself: after an assignment a partition yields nothing until `seek`.
    """

    async def start(self) -> None:
        """Join the group. Raises LogUnavailable or TopicMissing."""

    async def stop(self) -> None:
        """Leave the group, bounded in time. Idempotent. Drain before: the listener is not called."""

    def assignment(self) -> frozenset[int]:
        """Partitions that are ours now."""

    async def poll(self, max_records: int, timeout: float) -> Poll:
        """Up to `max_records` records from the assigned partitions that have been sought.

        Waits up to `timeout` seconds for the first record. Must be called even without an assignment: it
        drives the membership in the group. A record is returned once per seek: the consumer's own position
        moves on with what it returns.

        Raises:
            OffsetOutOfRange: a position is outside the log.
            LogUnavailable, TopicMissing: after any exception the caller has to seek every partition again.
        """

    def seek(self, partition: int, offset: int) -> None:
        """Set the position of an assigned partition. Ignored if the partition is not ours any more."""

    async def commit(self, committable: Mapping[int, int]) -> None:
        """Commit next offsets for the group, in bounded time; partitions no longer assigned are left out.

        Raises:
            CommitFailed: nothing or only a part was committed.
        """

    async def committed(self, partitions: Iterable[int]) -> dict[int, int | None]:
        """The group's committed offsets; None where there is none. Raises LogUnavailable."""

    async def offsets(self, partitions: Iterable[int]) -> dict[int, PartitionOffsets]:
        """Beginning and end offsets. Raises LogUnavailable."""


class LogAdmin(Protocol):
    """Describes and creates the log topic. Belongs to no group."""

    async def start(self) -> None:
        """Connect. Raises LogUnavailable."""

    async def stop(self) -> None:
        """Close. Idempotent."""

    async def describe(self) -> LogDescription:
        """Raises TopicMissing, LogUnavailable."""

    async def create(self, partitions: int, replication_factor: int) -> bool:
        """Create the log topic; False if it exists already. Raises LogUnavailable, LogMisconfigured."""

    async def offsets(self) -> dict[int, PartitionOffsets]:
        """Beginning and end offsets of every partition. Raises TopicMissing, LogUnavailable."""


class LogReader(Protocol):
    """Reads any stretch of the log, in order to check it. Belongs to no group, and moves nothing."""

    async def start(self) -> None:
        """Connect. Raises LogUnavailable, LogMisconfigured."""

    async def stop(self) -> None:
        """Close. Idempotent."""

    async def offsets(self) -> dict[int, PartitionOffsets]:
        """Beginning and end offsets of every partition. Raises TopicMissing, LogUnavailable."""

    async def committed(self) -> dict[int, int | None]:
        """The offsets the consumer group has committed, of every partition; None where there is none.

        Raises TopicMissing, LogUnavailable.
        """

    async def read(self, partition: int, offset: int, end: int) -> Poll:
        """Records from `offset` on and below `end`: as many as one fetch brings.

        Args:
            end: above `offset`, and not above the partition's end offset.

        Returns:
            A poll that has moved this partition, and no further than to `end`.

        Raises:
            OffsetOutOfRange: the log does not hold `offset` any more.
            TopicMissing, LogUnavailable.
        """


class Log(Protocol):
    """Opens what uses one log topic. Nothing is connected until its `start`."""

    @property
    def topic(self) -> str:
        """The log topic's name; part of every stored position."""

    def producer(self) -> Producer: ...

    def consumer(self, listener: RebalanceListener) -> Consumer: ...

    def admin(self) -> LogAdmin: ...

    def reader(self) -> LogReader: ...
