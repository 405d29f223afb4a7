"""Consumers and listeners as the contract tests drive them: until something holds, with a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence

from broker.partitioner import partition_for
from broker.ports import Consumer, Log, NewRecord, Record

PARTITIONS = 4
DEADLINE = 40.0
"""Seconds after which something that ought to happen counts as not happening."""


class Listener:
    """Notes what it is told; `when_revoked` and `when_assigned` are awaited by the consumer."""

    def __init__(self) -> None:
        self.told: list[tuple[str, frozenset[int]]] = []
        self.when_revoked: Callable[[frozenset[int]], Awaitable[None]] | None = None
        self.when_assigned: Callable[[frozenset[int]], Awaitable[None]] | None = None

    async def on_revoked(self, partitions: frozenset[int]) -> None:
        self.told.append(("revoked", partitions))
        if self.when_revoked is not None:
            await self.when_revoked(partitions)

    async def on_assigned(self, partitions: frozenset[int]) -> None:
        self.told.append(("assigned", partitions))
        if self.when_assigned is not None:
            await self.when_assigned(partitions)


class Reader:
    """A consumer with its listener, and the records it has read. Use as a context: it leaves the group."""

    def __init__(self, log: Log) -> None:
        self.listener = Listener()
        self.consumer: Consumer = log.consumer(self.listener)
        self.records: list[Record] = []

    async def __aenter__(self) -> Reader:
        await self.consumer.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.consumer.stop()

    @property
    def values(self) -> list[bytes | None]:
        return [record.value for record in self.records]

    async def poll(self, max_records: int = 100, timeout: float = 0.1) -> Sequence[Record]:
        """Poll once and keep the records."""
        poll = await self.consumer.poll(max_records, timeout)
        records = [record for record in poll.records if isinstance(record, Record)]
        assert len(records) == len(poll.records)
        self.records += records
        return records

    async def assigned(self, partitions: int = PARTITIONS) -> frozenset[int]:
        """Wait until it owns this many partitions."""
        await until(lambda: len(self.consumer.assignment()) == partitions, self)
        return self.consumer.assignment()

    async def seek_to_beginning(self) -> None:
        """Wait for every partition, then start each at offset 0."""
        for partition in await self.assigned():
            self.consumer.seek(partition, 0)

    async def read(self, count: int) -> list[Record]:
        """Poll until there are this many more records, and return them."""
        wanted = len(self.records) + count
        await until(lambda: len(self.records) >= wanted, self)
        assert len(self.records) == wanted
        return self.records[-count:]

    async def end_offsets(self) -> dict[int, int]:
        offsets = await self.consumer.offsets(range(PARTITIONS))
        return {partition: held.end for partition, held in offsets.items()}


async def until(condition: Callable[[], bool], *readers: Reader) -> None:
    """Let readers poll, all at once, until a condition holds."""
    async with asyncio.timeout(DEADLINE):
        while not condition():
            await asyncio.gather(*(reader.poll() for reader in readers))


async def publish(log: Log, records: Iterable[NewRecord]) -> None:
    """Append records with a producer of its own."""
    producer = log.producer()
    await producer.start()
    try:
        await producer.publish(list(records), timeout=DEADLINE)
    finally:
        await producer.stop()


def key_in(partition: int) -> bytes:
    """A key whose records go to this partition."""
    return next(key for key in map(str.encode, map(str, range(10_000))) if _goes_to(key, partition))


def numbered(count: int, *, partition: int | None = None, first: int = 0) -> list[NewRecord]:
    """Records with the values `first`, `first + 1` and so on: of one partition, or spread over all."""
    return [
        NewRecord(key=b"%d" % n if partition is None else key_in(partition), value=b"%d" % n)
        for n in range(first, first + count)
    ]


def _goes_to(key: bytes, partition: int) -> bool:
    return partition_for(key, PARTITIONS) == partition
