"""The log of the embedded mode: SQLite, one process, the guarantees of the Kafka log.

An acknowledged record is on disk (`synchronous=FULL`); offsets of a partition have no gaps and are never used
twice. Consumers of the process share the partitions as a consumer group does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from broker.errors import LogUnavailable
from broker.local_consumer import LocalConsumer, held_offsets
from broker.local_group import ConsumerGroup
from broker.local_journal import MAX_RECORD_BYTES, Append, Journal
from broker.local_reader import LocalReader
from broker.ports import LogDescription, NewRecord, PartitionOffsets, RebalanceListener
from broker.settings import LocalLogSettings

LOCAL_TOPIC: Final = "local"
"""The log topic's name where none is given."""
_BUFFER_BYTES: Final = 64 * 1024 * 1024
_STOP_SECONDS: Final = 10.0


class LocalLog:
    """A `broker.ports.Log` in one SQLite file, for one event loop of one process at a time.

    `start` it before anything it opens, and `stop` it after. The caller keeps other processes away from the
    file. Nothing here survives a `kill -9` but what is on disk, and that is every acknowledged record and
    every committed offset.

    Args:
        path: the file; created, with its directory, where missing.
        topic: the log topic's name.
        clock: seconds since 1970; becomes the records' timestamps and decides what is past its retention.
        buffer_bytes: bytes of records accepted and not yet on disk; above that `publish` raises LogFull.
    """

    def __init__(
        self,
        path: Path,
        settings: LocalLogSettings,
        *,
        topic: str = LOCAL_TOPIC,
        clock: Callable[[], float] = time.time,
        buffer_bytes: int = _BUFFER_BYTES,
    ) -> None:
        self._topic = topic
        self._settings = settings
        self._journal = Journal(path, settings, clock=clock, buffer_bytes=buffer_bytes)
        self._group = ConsumerGroup()

    @property
    def topic(self) -> str:
        return self._topic

    async def start(self) -> None:
        """Open the file, creating it with the partitions of the settings. No effect when started.

        Raises:
            LogMisconfigured: the file is no log, or of a newer version.
            LogUnavailable, LogFull: the file cannot be opened or created.
        """
        await self._journal.open()

    async def stop(self) -> None:
        """Write what was accepted, then close the file, bounded in time. Idempotent."""
        await self._journal.close()

    async def trim(self) -> int:
        """Remove records past the retention time that the group has committed; returns how many.

        Unread records are never removed, whatever their age. The last committed record of a partition stays.
        The space is used again; the file does not shrink.

        Raises LogUnavailable, LogFull.
        """
        return await self._journal.trim()

    def producer(self) -> LocalProducer:
        return LocalProducer(self._journal)

    def consumer(self, listener: RebalanceListener) -> LocalConsumer:
        return LocalConsumer(self._journal, self._group, listener)

    def admin(self) -> LocalAdmin:
        return LocalAdmin(self._journal, self._topic, self._settings)

    def reader(self) -> LocalReader:
        return LocalReader(self._journal.path)


class LocalProducer:
    """See `broker.ports.Producer`. A publish is one transaction: all of its records are kept, or none."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._is_started = False
        self._unsettled: dict[Append, int] = {}

    @property
    def in_flight(self) -> int:
        return sum(self._unsettled.values())

    async def start(self) -> None:
        self._journal.require_open()
        self._is_started = True

    async def stop(self) -> None:
        self._is_started = False
        if self._unsettled:
            await asyncio.wait({append.outcome for append in self._unsettled}, timeout=_STOP_SECONDS)

    async def publish(self, records: Sequence[NewRecord], *, timeout: float) -> None:
        if not self._is_started:
            raise LogUnavailable("The producer is not started.")
        if records:
            append = self._journal.accept(records)
            # Counted until the file has answered, which can be later than the deadline.
            self._unsettled[append] = len(records)
            append.outcome.add_done_callback(lambda _: self._unsettled.pop(append))
            await self._journal.settle(append, timeout)


class LocalAdmin:
    """See `broker.ports.LogAdmin`."""

    def __init__(self, journal: Journal, topic: str, settings: LocalLogSettings) -> None:
        self._journal = journal
        self._topic = topic
        self._settings = settings

    async def start(self) -> None:
        self._journal.require_open()

    async def stop(self) -> None:
        """Nothing to close."""

    async def describe(self) -> LogDescription:
        self._journal.require_open()
        return LogDescription(
            topic=self._topic,
            partitions=len(self._journal.partitions),
            replication_factor=1,
            settings={
                "max.message.bytes": str(MAX_RECORD_BYTES),
                "retention.ms": str(int(self._settings.retention_hours * 3_600_000)),
            },
        )

    async def create(self, partitions: int, replication_factor: int) -> bool:
        """Always False: an open log has its partitions."""
        self._journal.require_open()
        return False

    async def offsets(self) -> dict[int, PartitionOffsets]:
        self._journal.require_open()
        return {p: held_offsets(self._journal, p) for p in self._journal.partitions}
