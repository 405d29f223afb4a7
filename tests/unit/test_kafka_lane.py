"""What waits for a partition: batches, withdrawal, batches that turn out too large."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from broker.errors import LogUnavailable
from broker.kafka.lane import Batch, Lane, Publish, Share, record_size
from broker.ports import NewRecord


class Builder:
    """Takes a fixed number of records."""

    def __init__(self, room: int = 1_000) -> None:
        self.values: list[bytes] = []
        self._room = room

    def append(self, offset: int, timestamp: int, key: bytes, value: bytes, headers: Any) -> object | None:
        if len(self.values) == self._room:
            return None
        assert offset == len(self.values)
        self.values.append(value)
        return self

    def build(self) -> bytes:
        return b",".join(self.values)


def waiting(lane: Lane, *values: bytes) -> Publish:
    """A publish of these values to the lane alone."""
    publish = Publish(len(values), asyncio.get_running_loop().create_future())
    share = Share(publish)
    share.records = [NewRecord(key=b"", value=value) for value in values]
    share.size = sum(map(record_size, share.records))
    publish.shares = [(lane, share)]
    lane.pending.append(share)
    return publish


def filled(lane: Lane, room: int = 1_000) -> tuple[Batch, list[bytes]]:
    """What is sent next, and its values; nothing is on its way afterwards."""
    builder = Builder(room)
    batch = lane.load(lambda: builder) or Batch()
    lane.batch = None
    return batch, builder.values


async def test_a_batch_holds_what_several_publishes_wait_for_in_their_order() -> None:
    lane = Lane(0)
    first, second = waiting(lane, b"1", b"2"), waiting(lane, b"3")
    batch, values = filled(lane)
    assert values == [b"1", b"2", b"3"]
    assert not lane.pending
    batch.acknowledge()
    assert first.done.done()
    assert second.done.done()


async def test_a_publish_that_spans_batches_is_done_with_the_last_of_them() -> None:
    lane = Lane(0)
    publish = waiting(lane, b"1", b"2", b"3")
    sizes = 0
    for expected in ([b"1", b"2"], [b"3"]):
        assert not publish.done.done()
        batch, values = filled(lane, room=2)
        assert values == expected
        sizes += batch.size
        batch.acknowledge()
    assert publish.done.done()
    assert sizes == publish.shares[0][1].size


async def test_the_batch_on_its_way_stays_the_next_one_until_it_is_settled() -> None:
    lane = Lane(0)
    waiting(lane, b"1")
    batch = lane.load(Builder)
    waiting(lane, b"2")
    assert lane.load(Builder) is batch
    assert batch is not None
    assert batch.data == b"1"
    lane.batch = None
    assert filled(lane)[1] == [b"2"]
    assert lane.load(Builder) is None


async def test_what_is_withdrawn_before_it_is_taken_is_never_sent() -> None:
    lane = Lane(0)
    waiting(lane, b"1")
    gone = waiting(lane, b"2", b"3")
    waiting(lane, b"4")
    assert lane.withdraw(gone.shares[0][1]) == (2, gone.shares[0][1].size)
    assert filled(lane)[1] == [b"1", b"4"]
    assert lane.withdraw(gone.shares[0][1]) == (0, 0)


async def test_only_the_part_of_a_publish_that_is_not_in_a_batch_can_be_withdrawn() -> None:
    lane = Lane(0)
    publish = waiting(lane, b"1", b"2", b"3")
    batch, _ = filled(lane, room=2)
    records, size = lane.withdraw(publish.shares[0][1])
    assert records == 1
    assert size + batch.size == publish.shares[0][1].size
    assert not filled(lane)[1]


async def test_a_batch_that_was_too_large_comes_back_in_smaller_ones_in_order() -> None:
    lane = Lane(0)
    publishes = [waiting(lane, b"1", b"2", b"3"), waiting(lane, b"4")]
    batch, _ = filled(lane)
    waiting(lane, b"5")
    assert lane.split(batch) == (0, 0)
    sent = []
    while lane.pending:
        batch, values = filled(lane)
        assert len(values) <= 2
        batch.acknowledge()
        sent += values
    assert sent == [b"1", b"2", b"3", b"4", b"5"]
    assert all(publish.done.done() for publish in publishes)


async def test_a_batch_that_comes_back_leaves_out_what_nobody_waits_for() -> None:
    lane = Lane(0)
    gone, kept = waiting(lane, b"1", b"2"), waiting(lane, b"3")
    batch, _ = filled(lane)
    gone.fail(LogUnavailable())
    assert lane.split(batch) == (2, gone.shares[0][1].size)
    assert filled(lane)[1] == [b"3"]
    assert not kept.done.done()
    with pytest.raises(LogUnavailable):
        await gone.done
