"""What every log promises, whichever it is."""

from __future__ import annotations

import asyncio
import time

import pytest

from broker.errors import (
    CommitFailed,
    LogUnavailable,
    OffsetOutOfRange,
    ProduceOutcomeUnknown,
    RecordTooLarge,
)
from broker.partitioner import partition_for
from broker.ports import Log, NewRecord
from tests.contract.conftest import LogUnderTest
from tests.contract.log_reader import DEADLINE, PARTITIONS, Reader, numbered, publish, until
from tests.support.faulty_log import FailingLog


async def test_records_of_a_partition_are_read_in_the_order_they_were_published(log: Log) -> None:
    await publish(log, numbered(250, partition=1))
    async with Reader(log) as reader:
        await reader.seek_to_beginning()
        records = await reader.read(250)
    assert [record.value for record in records] == [b"%d" % n for n in range(250)]
    assert [record.offset for record in records] == sorted({record.offset for record in records})


async def test_equal_keys_go_to_the_partition_the_partitioner_names(log: Log) -> None:
    await publish(log, [NewRecord(key=b"%d" % (n % 10), value=b"") for n in range(50)])
    async with Reader(log) as reader:
        await reader.seek_to_beginning()
        records = await reader.read(50)
    assert all(r.key is not None and r.partition == partition_for(r.key, PARTITIONS) for r in records)


async def test_a_record_comes_back_as_it_was_published(log: Log) -> None:
    headers = (("again", b"1"), ("again", b"2"), ("nothing", None), ("ключ", bytes(range(256))), ("", b""))
    before_ms = int(time.time() * 1000) - 60_000
    published = [
        NewRecord(key=b"\x00\xff", value=b"\x00\xfe" * 1_000, headers=headers),
        NewRecord(key=b"", value=b""),
    ]
    await publish(log, published)
    async with Reader(log) as reader:
        await reader.seek_to_beginning()
        records = await reader.read(2)
    found = {(r.key, r.value, r.headers) for r in records}
    assert found == {(r.key, r.value, r.headers) for r in published}
    assert all(r.timestamp_ms > before_ms for r in records)


async def test_an_empty_publish_appends_nothing(log: Log) -> None:
    await publish(log, [])
    async with Reader(log) as reader:
        await reader.assigned()
        assert await reader.end_offsets() == dict.fromkeys(range(PARTITIONS), 0)


async def test_publish_returns_when_every_record_can_be_read(log: Log) -> None:
    async with Reader(log) as reader:
        await reader.assigned()
        await publish(log, numbered(2_000))
        assert sum((await reader.end_offsets()).values()) == 2_000
        await reader.seek_to_beginning()
        records = await reader.read(2_000)
    assert sorted(int(record.value or b"") for record in records) == list(range(2_000))


async def test_concurrent_publishes_lose_and_reorder_nothing(log: Log) -> None:
    producer = log.producer()
    await producer.start()

    async def publish_each(publisher: int) -> None:
        for n in range(20):
            record = NewRecord(key=b"key-%d" % publisher, value=b"%d:%d" % (publisher, n))
            await producer.publish([record], timeout=DEADLINE)

    await asyncio.gather(*(publish_each(publisher) for publisher in range(16)))
    assert producer.in_flight == 0
    await producer.stop()
    async with Reader(log) as reader:
        await reader.seek_to_beginning()
        records = await reader.read(320)
    for publisher in range(16):
        values = [r.value for r in records if r.key == b"key-%d" % publisher]
        assert values == [b"%d:%d" % (publisher, n) for n in range(20)]


async def test_a_record_the_log_never_takes_is_refused_and_the_producer_goes_on(log: Log) -> None:
    producer = log.producer()
    await producer.start()
    with pytest.raises(RecordTooLarge):
        await producer.publish([NewRecord(key=b"k", value=b"v" * 2_000_000)], timeout=DEADLINE)
    await producer.publish(numbered(1), timeout=DEADLINE)
    await producer.stop()


async def test_a_producer_and_a_consumer_can_be_stopped_twice(log: Log) -> None:
    producer = log.producer()
    await producer.start()
    await producer.stop()
    await producer.stop()
    reader = Reader(log)
    await reader.consumer.start()
    await reader.consumer.stop()
    await reader.consumer.stop()


async def test_a_partition_yields_nothing_before_it_is_sought(log: Log) -> None:
    await publish(log, [*numbered(10, partition=0), *numbered(10, partition=1)])
    async with Reader(log) as reader:
        await reader.assigned()
        reader.consumer.seek(1, 0)
        await reader.read(10)
        assert not await reader.poll(timeout=0.5)
    assert {record.partition for record in reader.records} == {1}


async def test_a_record_is_returned_once_for_a_seek(log: Log) -> None:
    await publish(log, numbered(30))
    async with Reader(log) as reader:
        await reader.seek_to_beginning()
        await reader.read(30)
        assert not await reader.poll(timeout=0.5)


async def test_reading_starts_at_the_sought_offset(log: Log) -> None:
    await publish(log, numbered(100, partition=2))
    async with Reader(log) as reader:
        await reader.assigned()
        reader.consumer.seek(2, 37)
        records = await reader.read(63)
    assert [record.offset for record in records] == list(range(37, 100))
    assert records[0].value == b"37"


async def test_seeking_back_reads_the_same_records_again(log: Log) -> None:
    await publish(log, numbered(100, partition=2))
    async with Reader(log) as reader:
        await reader.assigned()
        reader.consumer.seek(2, 0)
        first = await reader.read(100)
        reader.consumer.seek(2, 60)
        again = await reader.read(40)
    assert again == first[60:]


async def test_seeking_in_the_middle_of_reading_skips_and_repeats_nothing_else(log: Log) -> None:
    await publish(log, numbered(100, partition=2))
    async with Reader(log) as reader:
        await reader.assigned()
        reader.consumer.seek(2, 0)
        await until(lambda: bool(reader.records), reader)
        reader.records.clear()
        reader.consumer.seek(2, 50)
        records = await reader.read(50)
    assert [record.offset for record in records] == list(range(50, 100))


async def test_a_poll_never_returns_more_than_it_was_asked_for(log: Log) -> None:
    await publish(log, numbered(500))
    async with Reader(log) as reader:
        await reader.seek_to_beginning()
        async with asyncio.timeout(DEADLINE):
            while len(reader.records) < 500:
                assert len(await reader.poll(max_records=7)) <= 7
    assert len({record.value for record in reader.records}) == 500


async def test_every_partition_gets_its_turn(log: Log) -> None:
    await publish(log, [r for p in range(PARTITIONS) for r in numbered(200, partition=p)])
    async with Reader(log) as reader:
        await reader.seek_to_beginning()
        async with asyncio.timeout(DEADLINE):
            while len({record.partition for record in reader.records}) < PARTITIONS:
                await reader.poll(max_records=10)
    assert len(reader.records) < PARTITIONS * 200, "a partition was drained before another was begun"


async def test_a_poll_says_where_each_partition_stands_after_it(log: Log) -> None:
    await publish(log, numbered(20, partition=3))
    async with Reader(log) as reader:
        await reader.assigned()
        reader.consumer.seek(3, 5)
        position = 5
        async with asyncio.timeout(DEADLINE):
            while position < 20:
                poll = await reader.consumer.poll(4, 0.1)
                assert set(poll.next_offsets) <= {3}
                position += len(poll.records)
                assert poll.next_offsets.get(3, position) == position


async def test_a_poll_without_records_ends_in_time(log: Log) -> None:
    async with Reader(log) as reader:
        await reader.seek_to_beginning()
        for timeout in (0.0, 0.3):
            started = time.monotonic()
            assert not await reader.poll(timeout=timeout)
            assert timeout * 0.9 <= time.monotonic() - started < timeout + 2


async def test_a_waiting_poll_returns_when_a_record_arrives(log: Log) -> None:
    async with Reader(log) as reader:
        await reader.seek_to_beginning()
        await reader.poll()
        polling = asyncio.create_task(reader.poll(timeout=DEADLINE))
        await publish(log, numbered(1))
        async with asyncio.timeout(DEADLINE / 2):
            assert len(await polling) == 1


async def test_a_position_beyond_the_end_is_out_of_range(log: Log) -> None:
    await publish(log, numbered(10, partition=1))
    async with Reader(log) as reader:
        await reader.assigned()
        reader.consumer.seek(1, 11)
        with pytest.raises(OffsetOutOfRange) as raised:
            await until(lambda: False, reader)
        assert (raised.value.partition, raised.value.offset) == (1, 11)
        reader.consumer.seek(1, 9)
        assert [record.offset for record in await reader.read(1)] == [9]


async def test_the_position_at_the_end_waits_for_the_next_record(log: Log) -> None:
    await publish(log, numbered(10, partition=1))
    async with Reader(log) as reader:
        await reader.assigned()
        reader.consumer.seek(1, 10)
        assert not await reader.poll(timeout=0.3)
        await publish(log, numbered(1, partition=1, first=10))
        assert [record.offset for record in await reader.read(1)] == [10]


async def test_lag_is_what_lies_between_position_and_end(log: Log) -> None:
    await publish(log, numbered(50, partition=0))
    async with Reader(log) as reader:
        await reader.assigned()
        reader.consumer.seek(0, 20)
        assert (await reader.end_offsets())[0] - 20 == 30
        await reader.read(30)
        assert (await reader.end_offsets())[0] == reader.records[-1].next_offset
        await publish(log, numbered(5, partition=0))
        assert (await reader.end_offsets())[0] - reader.records[-1].next_offset == 5


async def test_the_admin_describes_the_topic_and_sees_the_same_offsets(log: Log) -> None:
    await publish(log, [*numbered(3, partition=0), *numbered(4, partition=3)])
    admin = log.admin()
    await admin.start()
    try:
        description = await admin.describe()
        assert (description.topic, description.partitions) == (log.topic, PARTITIONS)
        assert await admin.create(PARTITIONS, 1) is False
        offsets = await admin.offsets()
        assert {p: (held.beginning, held.end) for p, held in offsets.items()} == {
            0: (0, 3),
            1: (0, 0),
            2: (0, 0),
            3: (0, 4),
        }
    finally:
        await admin.stop()


async def test_nothing_is_committed_until_commit(log: Log) -> None:
    await publish(log, numbered(20, partition=1))
    async with Reader(log) as reader:
        await reader.seek_to_beginning()
        await reader.read(20)
        assert await reader.consumer.committed(range(PARTITIONS)) == dict.fromkeys(range(PARTITIONS))
    async with Reader(log) as successor:
        await successor.assigned()
        assert (await successor.consumer.committed([1]))[1] is None


async def test_what_was_read_but_not_committed_is_read_again_by_the_successor(log: Log) -> None:
    await publish(log, numbered(20, partition=1))
    async with Reader(log) as reader:
        await reader.assigned()
        reader.consumer.seek(1, 0)
        await reader.read(20)
        await reader.consumer.commit({1: 12})
    async with Reader(log) as successor:
        await successor.assigned()
        committed = (await successor.consumer.committed([1]))[1]
        assert committed == 12
        successor.consumer.seek(1, committed)
        assert [record.offset for record in await successor.read(8)] == list(range(12, 20))


async def test_a_commit_touches_only_the_partitions_it_names(log: Log) -> None:
    await publish(log, numbered(40))
    async with Reader(log) as reader:
        await reader.assigned()
        await reader.consumer.commit({0: 3, 2: 5})
        await reader.consumer.commit({2: 6})
        assert await reader.consumer.committed(range(PARTITIONS)) == {0: 3, 1: None, 2: 6, 3: None}


async def test_two_then_three_consumers_own_every_partition_once(log: Log) -> None:
    async with Reader(log) as first, Reader(log) as second:
        await until(lambda: _shared(first, second), first, second)
        async with Reader(log) as third:
            await until(lambda: _shared(first, second, third), first, second, third)
            assert [name for name, _ in third.listener.told] == ["assigned"]
        await until(lambda: _shared(first, second), first, second)


async def test_a_consumer_that_leaves_hands_over_its_partitions(log: Log) -> None:
    await publish(log, numbered(40))
    async with Reader(log) as staying:
        async with Reader(log) as leaving:
            await until(lambda: _shared(staying, leaving), staying, leaving)
        assert [name for name, _ in leaving.listener.told].count("revoked") == 0
        await staying.seek_to_beginning()
        await staying.read(40)


async def test_a_partition_goes_to_another_only_after_on_revoked_has_ended(log: Log) -> None:
    await publish(log, numbered(40))
    asked, allowed = asyncio.Event(), asyncio.Event()

    async def commit_then_let_go(partitions: frozenset[int]) -> None:
        asked.set()
        await allowed.wait()
        await first.consumer.commit(dict.fromkeys(partitions, 7))

    async with Reader(log) as first:
        await first.assigned()
        first.listener.when_revoked = commit_then_let_go
        async with Reader(log) as second:
            await until(asked.is_set, second)
            for _ in range(5):
                await second.poll()
            assert not second.consumer.assignment()
            allowed.set()
            await until(lambda: _shared(first, second), first, second)
            mine = second.consumer.assignment()
            assert await second.consumer.committed(mine) == dict.fromkeys(mine, 7)
            first.listener.when_revoked = None


async def test_a_partition_that_changed_hands_yields_nothing_until_its_new_owner_seeks(log: Log) -> None:
    await publish(log, [r for p in range(PARTITIONS) for r in numbered(10, partition=p)])
    async with Reader(log) as first:
        await first.seek_to_beginning()
        await first.read(10 * PARTITIONS)
        async with Reader(log) as second:
            await until(lambda: _shared(first, second), first, second)
            assert not await second.poll(timeout=0.5)
            assert len(first.records) == 10 * PARTITIONS
            for partition in second.consumer.assignment():
                second.consumer.seek(partition, 4)
            records = await second.read(6 * len(second.consumer.assignment()))
            assert {record.offset for record in records} == set(range(4, 10))


async def test_seeking_a_partition_that_is_not_ours_is_ignored(log: Log) -> None:
    await publish(log, numbered(40))
    async with Reader(log) as first, Reader(log) as second:
        await until(lambda: _shared(first, second), first, second)
        for partition in second.consumer.assignment():
            first.consumer.seek(partition, 0)
        assert not await first.poll(timeout=0.3)


async def test_who_lost_a_partition_cannot_commit_it(log: Log) -> None:
    await publish(log, numbered(40))
    async with Reader(log) as first:
        await first.assigned()
        async with Reader(log) as second:
            await until(lambda: _shared(first, second), first, second)
            lost, kept = second.consumer.assignment(), first.consumer.assignment()
            try:
                await first.consumer.commit(dict.fromkeys(lost | kept, 9))
            except CommitFailed:
                kept = frozenset()
            assert await second.consumer.committed(lost) == dict.fromkeys(lost)
            assert await first.consumer.committed(kept) == dict.fromkeys(kept, 9)


async def test_an_error_in_a_listener_does_not_stop_the_rebalance(
    log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(partitions: frozenset[int]) -> None:
        raise RuntimeError("the listener fails")

    async with Reader(log) as first:
        await first.assigned()
        first.listener.when_revoked = fail
        async with Reader(log) as second:
            await until(lambda: _shared(first, second), first, second)
            first.listener.when_revoked = None
    assert "the listener fails" in caplog.text


async def test_records_offsets_and_commits_are_there_after_closing_and_opening(
    log_under_test: LogUnderTest,
) -> None:
    log = await log_under_test.open()
    await publish(log, numbered(30, partition=0))
    async with Reader(log) as reader:
        await reader.assigned()
        await reader.consumer.commit({0: 17})
    log = await log_under_test.open()
    await publish(log, numbered(1, partition=0, first=30))
    async with Reader(log) as reader:
        await reader.assigned()
        assert (await reader.end_offsets())[0] == 31
        assert (await reader.consumer.committed([0])) == {0: 17}
        reader.consumer.seek(0, 0)
        assert [int(r.value or b"") for r in await reader.read(31)] == list(range(31))


async def test_a_publish_told_to_fail_appends_nothing_and_the_next_one_works(failing_log: FailingLog) -> None:
    producer = failing_log.producer()
    await producer.start()
    failing_log.fail("publish", LogUnavailable(), call=2)
    outcomes = []
    for record in numbered(3, partition=0):
        try:
            await producer.publish([record], timeout=DEADLINE)
            outcomes.append("ok")
        except LogUnavailable:
            outcomes.append("failed")
    await producer.stop()
    assert outcomes == ["ok", "failed", "ok"]
    assert await _values(failing_log, 2) == [b"0", b"2"]


async def test_a_publish_can_fail_although_it_landed(failing_log: FailingLog) -> None:
    failing_log.fail("publish", ProduceOutcomeUnknown(), after=True)
    with pytest.raises(ProduceOutcomeUnknown):
        await publish(failing_log, numbered(1, partition=0))
    await publish(failing_log, numbered(1, partition=0))
    assert await _values(failing_log, 2) == [b"0", b"0"]


@pytest.mark.parametrize("after", [False, True])
async def test_after_a_failed_poll_seeking_reads_everything(failing_log: FailingLog, after: bool) -> None:
    await publish(failing_log, numbered(30))
    async with Reader(failing_log) as reader:
        await reader.seek_to_beginning()
        failing_log.fail("poll", LogUnavailable(), after=after)
        with pytest.raises(LogUnavailable):
            await reader.poll()
        await reader.seek_to_beginning()
        records = await reader.read(30)
    assert len({record.value for record in records}) == 30


@pytest.mark.parametrize("after", [False, True])
async def test_a_failed_commit_leaves_the_offsets_or_not_and_the_next_one_works(
    failing_log: FailingLog, after: bool
) -> None:
    await publish(failing_log, numbered(10, partition=0))
    async with Reader(failing_log) as reader:
        await reader.assigned()
        await reader.consumer.commit({0: 1})
        failing_log.fail("commit", CommitFailed(), after=after)
        with pytest.raises(CommitFailed):
            await reader.consumer.commit({0: 2})
        assert await reader.consumer.committed([0]) == {0: 2 if after else 1}
        await reader.consumer.commit({0: 3})
        assert await reader.consumer.committed([0]) == {0: 3}


def _shared(*readers: Reader) -> bool:
    """Each partition is owned by exactly one of them, and each has its share."""
    owned = sorted(partition for reader in readers for partition in reader.consumer.assignment())
    return owned == list(range(PARTITIONS)) and all(reader.consumer.assignment() for reader in readers)


async def _values(log: Log, count: int) -> list[bytes | None]:
    """The values in partition 0, after waiting for this many."""
    async with Reader(log) as reader:
        await reader.assigned()
        reader.consumer.seek(0, 0)
        return [record.value for record in await reader.read(count)]
