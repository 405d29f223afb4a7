"""A consumer of the embedded log."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Final

from broker.errors import BrokerError, CommitFailed, LogUnavailable, OffsetOutOfRange
from broker.local_file import Span
from broker.local_group import ConsumerGroup, Member
from broker.local_journal import Journal
from broker.ports import PartitionOffsets, Poll, RebalanceListener, Record, UndecodableRecord

_POLL_BYTES: Final = 16 * 1024 * 1024
"""A poll ends with the segment that reaches this sum."""


class _Cursor:
    """The position in a partition. `ahead` holds records read with the others of their segment."""

    __slots__ = ("ahead", "next_offset", "partition")

    def __init__(self, partition: int, next_offset: int) -> None:
        self.partition = partition
        self.next_offset = next_offset
        self.ahead: deque[Record | UndecodableRecord] = deque()

    def take(self, count: int) -> list[Record | UndecodableRecord]:
        taken = [self.ahead.popleft() for _ in range(min(count, len(self.ahead)))]
        if taken:
            self.next_offset = taken[-1].next_offset
        return taken


class LocalConsumer:
    """See `broker.ports.Consumer`. It leaves the group only by `stop`."""

    def __init__(self, journal: Journal, group: ConsumerGroup, listener: RebalanceListener) -> None:
        self._journal = journal
        self._group = group
        self._member = Member(listener, self._assignment_changed)
        self._is_started = False
        self._cursors: dict[int, _Cursor] = {}
        self._turn = 0
        self._awake = asyncio.Event()

    async def start(self) -> None:
        self._journal.require_open()
        if not self._is_started:
            self._is_started = True
            self._journal.watch(self._awake.set)
            self._group.join(self._member, self._journal.partitions)

    async def stop(self) -> None:
        if self._is_started:
            self._is_started = False
            self._journal.unwatch(self._awake.set)
            self._group.leave(self._member)

    def assignment(self) -> frozenset[int]:
        return self._member.partitions

    async def poll(self, max_records: int, timeout: float) -> Poll:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while True:
            self._awake.clear()
            try:
                poll = await self._take(max_records)
            except BrokerError:
                self._cursors.clear()
                raise
            remaining = deadline - loop.time()
            if poll.records or remaining <= 0:
                return poll
            try:
                async with asyncio.timeout(remaining):
                    await self._awake.wait()
            except TimeoutError:
                return poll

    def seek(self, partition: int, offset: int) -> None:
        if partition in self._member.partitions and not self._member.is_revoking:
            self._cursors[partition] = _Cursor(partition, offset)
            self._awake.set()

    async def commit(self, committable: Mapping[int, int]) -> None:
        owned = {p: offset for p, offset in committable.items() if p in self._member.partitions}
        if owned:
            await self._journal.commit(owned)
        elif committable:
            raise CommitFailed("Offsets were not committed: the partitions belong to another consumer now.")

    async def committed(self, partitions: Iterable[int]) -> dict[int, int | None]:
        self._journal.require_open()
        return {p: self._journal.partitions[p].committed for p in partitions}

    async def offsets(self, partitions: Iterable[int]) -> dict[int, PartitionOffsets]:
        self._journal.require_open()
        return {p: held_offsets(self._journal, p) for p in partitions}

    async def _take(self, max_records: int) -> Poll:
        if not self._is_started:
            raise LogUnavailable("The consumer is not started.")
        self._journal.require_open()
        shares = self._shares(max_records)
        await self._read_ahead(shares)
        records: list[Record | UndecodableRecord] = []
        next_offsets: dict[int, int] = {}
        for cursor, count in shares:
            if self._is_current(cursor):
                taken = cursor.take(count)
                if taken:
                    records += taken
                    next_offsets[cursor.partition] = cursor.next_offset
        return Poll(records=records, next_offsets=next_offsets)

    def _shares(self, max_records: int) -> list[tuple[_Cursor, int]]:
        """How many records to take from where. Every partition comes first in its turn."""
        due: list[tuple[_Cursor, int]] = []
        for partition, cursor in sorted(self._cursors.items()):
            state = self._journal.partitions[partition]
            if not state.beginning <= cursor.next_offset <= state.end:
                raise OffsetOutOfRange(partition, cursor.next_offset)
            if cursor.next_offset < state.end:
                due.append((cursor, state.end - cursor.next_offset))
        self._turn += 1
        first = self._turn % len(due) if due else 0
        shares: list[tuple[_Cursor, int]] = []
        for index, (cursor, available) in enumerate(due[first:] + due[:first]):
            share = min(available, -(-max_records // (len(due) - index)))
            if share:
                shares.append((cursor, share))
                max_records -= share
        return shares

    async def _read_ahead(self, shares: Iterable[tuple[_Cursor, int]]) -> None:
        """Read what the cursors do not hold yet of their shares."""
        cursors: list[_Cursor] = []
        spans: list[Span] = []
        for cursor, count in shares:
            lacking = count - len(cursor.ahead)
            if lacking > 0:
                position = cursor.ahead[-1].next_offset if cursor.ahead else cursor.next_offset
                end = self._journal.partitions[cursor.partition].end
                cursors.append(cursor)
                spans.append(Span(cursor.partition, position, end, lacking))
        if spans:
            for cursor, found in zip(cursors, await self._journal.read(spans, _POLL_BYTES), strict=True):
                cursor.ahead.extend(found)

    def _is_current(self, cursor: _Cursor) -> bool:
        """False if, while reading, the partition was sought anew or taken away."""
        return self._cursors.get(cursor.partition) is cursor

    def _assignment_changed(self) -> None:
        self._cursors.clear()
        self._awake.set()


def held_offsets(journal: Journal, partition: int) -> PartitionOffsets:
    """Beginning and end of a partition, for the ports."""
    state = journal.partitions[partition]
    return PartitionOffsets(partition=partition, beginning=state.beginning, end=state.end)
