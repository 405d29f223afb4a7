"""What reading the log without a group promises, whichever log it is."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from broker.ports import Log, LogReader, NewRecord, Record, UndecodableRecord
from tests.contract.log_reader import PARTITIONS, Reader, numbered, publish


@contextlib.asynccontextmanager
async def opened(log: Log) -> AsyncIterator[LogReader]:
    reader = log.reader()
    await reader.start()
    try:
        yield reader
    finally:
        await reader.stop()
        await reader.stop()


async def read_to(reader: LogReader, partition: int, offset: int, end: int) -> list[Record]:
    """Everything from `offset` up to `end`."""
    found: list[Record | UndecodableRecord] = []
    while offset < end:
        poll = await reader.read(partition, offset, end)
        assert poll.next_offsets.keys() == {partition}
        assert offset < poll.next_offsets[partition] <= end
        assert all(offset <= record.offset < poll.next_offsets[partition] for record in poll.records)
        offset = poll.next_offsets[partition]
        found += poll.records
    return [record for record in found if isinstance(record, Record)]


async def test_a_reader_sees_every_record_just_as_a_consumer_does(log: Log) -> None:
    headers = (("again", b"1"), ("again", None), ("ключ", bytes(range(256))))
    await publish(log, [*numbered(300), NewRecord(key=b"k", value=b"\x00" * 500_000, headers=headers)])
    async with Reader(log) as consumer:
        await consumer.seek_to_beginning()
        consumed = await consumer.read(301)
    async with opened(log) as reader:
        held = await reader.offsets()
        assert set(held) == set(range(PARTITIONS))
        read = [one for p, found in held.items() for one in await read_to(reader, p, 0, found.end)]
    assert read == sorted(consumed, key=lambda record: (record.partition, record.offset))


async def test_a_reader_begins_and_ends_where_it_is_told(log: Log) -> None:
    await publish(log, numbered(50, partition=2))
    async with opened(log) as reader:
        read = await read_to(reader, 2, 7, 31)
    assert [record.offset for record in read] == list(range(7, 31))


async def test_a_reader_takes_no_partition_and_sees_what_the_group_has_committed(log: Log) -> None:
    await publish(log, numbered(10, partition=1))
    async with opened(log) as reader:
        assert await reader.committed() == dict.fromkeys(range(PARTITIONS))
        async with Reader(log) as consumer:
            await consumer.assigned(PARTITIONS)
            await consumer.consumer.commit({1: 4})
            await read_to(reader, 1, 0, 10)
            assert consumer.consumer.assignment() == frozenset(range(PARTITIONS))
            assert await reader.committed() == {**dict.fromkeys(range(PARTITIONS)), 1: 4}
        assert (await reader.committed())[1] == 4
