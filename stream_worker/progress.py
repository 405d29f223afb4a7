"""Where the worker stands in each partition, and how it finds its place after an assignment.

The database's position is authoritative. On assignment the worker reads it, compares it with what the log
holds, and seeks. A log that no longer fits the position (expired, truncated, recreated) is never resumed
silently: the gap is recorded and a new incarnation begins.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping

import structlog

from broker.ports import Consumer, PartitionOffsets, Poll, Record, UndecodableRecord
from db.batch import Advance, Position
from db.event_store import EventStore
from stream_worker.decode import fingerprint

_log = structlog.get_logger("stream_worker.progress")


class Progress:
    """The positions of the partitions this worker may write for.

    A partition is absent from the assignment until it has been positioned, and again from the moment it is
    revoked. Positions change only by `advance`, with what the store says is now stored.

    Attributes:
        changes: grows whenever positions are given up.
    """

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self._positions: dict[int, Position] = {}
        # Partitions sought one record back, whose first record has to match the stored fingerprint.
        self._unverified: dict[int, int] = {}
        self.changes = 0

    def forget(self, partitions: Iterable[int] | None = None) -> None:
        """Drop partitions (all, if None); they are positioned afresh before they are polled again."""
        self.changes += 1
        for partition in list(self._positions) if partitions is None else partitions:
            self._positions.pop(partition, None)
            self._unverified.pop(partition, None)

    @property
    def has_unverified(self) -> bool:
        """Whether the next poll may return records that `verify` takes out."""
        return bool(self._unverified)

    def holds(self, advances: Iterable[Advance]) -> bool:
        """Whether every one of these moves starts from the position held now."""
        return all(self._positions.get(a.previous.partition) == a.previous for a in advances)

    def advance(self, positions: Iterable[Position]) -> None:
        """Take over positions the store has stored."""
        for position in positions:
            if position.partition in self._positions:
                self._positions[position.partition] = position

    def next_offsets(self) -> dict[int, int]:
        """The next offset to read of every partition held now."""
        return {partition: position.next_offset for partition, position in self._positions.items()}

    async def position_assigned(self, consumer: Consumer) -> None:
        """Position and seek every assigned partition that has no position yet.

        Raises:
            LogUnavailable, StoreUnavailable, FenceLost: nothing was positioned; try again.
        """
        new = consumer.assignment() - self._positions.keys()
        if not new:
            return
        changes = self.changes
        held = await consumer.offsets(new)
        stored = await asyncio.to_thread(self._store.positions, {p: held[p].beginning for p in new})
        fingerprints = await asyncio.to_thread(self._store.stored_fingerprints, new)
        for partition in sorted(new):
            position = await self._fitting(stored[partition], held[partition])
            if self.changes != changes:
                return  # A rebalance came in between; what was read may be about somebody else's partition.
            expected = fingerprints.get(partition)
            unchanged = position == stored[partition]
            if unchanged and expected is not None and position.next_offset > held[partition].beginning:
                self._unverified[partition] = expected
                consumer.seek(partition, position.next_offset - 1)
            else:
                consumer.seek(partition, position.next_offset)
            self._positions[partition] = position
            _log.debug("positioned", partition=partition, offset=position.next_offset)

    async def _fitting(self, position: Position, held: PartitionOffsets) -> Position:
        """The position itself if the log still holds it, else the start of a new incarnation."""
        if position.next_offset < held.beginning:
            return await self._begin_incarnation(
                position,
                held.beginning,
                gap_from=position.next_offset,
                gap_to=held.beginning,
                reason="expired",
            )
        if position.next_offset > held.end:
            return await self._begin_incarnation(
                position, held.beginning, gap_from=position.next_offset, gap_to=None, reason="truncated"
            )
        return position

    async def _begin_incarnation(
        self, position: Position, next_offset: int, *, gap_from: int, gap_to: int | None, reason: str
    ) -> Position:
        _log.error(
            "the log no longer fits the stored position; a gap is recorded and reading starts anew",
            partition=position.partition,
            offset=position.next_offset,
            next_offset=next_offset,
            reason=reason,
        )
        return await asyncio.to_thread(
            self._store.begin_incarnation,
            position,
            next_offset,
            gap_from=gap_from,
            gap_to=gap_to,
            reason=reason,
        )

    async def verify(self, poll: Poll, consumer: Consumer) -> Poll:
        """Take out the records that were read only to compare them with a stored fingerprint.

        Where one does not match, the topic was recreated: a new incarnation begins at the log's beginning,
        and nothing of that partition is left in the returned poll.

        Raises:
            LogUnavailable, StoreUnavailable, FenceLost: forget all positions and try again.
        """
        if not self._unverified:
            return poll
        recreated: set[int] = set()
        dropped: set[tuple[int, int]] = set()
        for partition in sorted(self._unverified.keys() & poll.next_offsets.keys()):
            expected = self._unverified.pop(partition, None)
            position = self._positions.get(partition)
            if expected is None or position is None:
                continue  # Revoked while another partition was looked at; the batch will be dropped.
            first = next((r for r in poll.records if r.partition == partition), None)
            if first is None or first.offset != position.next_offset - 1:
                continue  # A transaction marker or a compacted record: there is nothing to compare.
            dropped.add((partition, first.offset))
            if fingerprint(first) == expected:
                continue
            recreated.add(partition)
            beginning = (await consumer.offsets([partition]))[partition].beginning
            self._positions[partition] = await self._begin_incarnation(
                position, beginning, gap_from=position.next_offset, gap_to=None, reason="recreated"
            )
            consumer.seek(partition, beginning)
        return Poll(
            records=[
                r
                for r in poll.records
                if r.partition not in recreated and (r.partition, r.offset) not in dropped
            ],
            next_offsets={p: n for p, n in poll.next_offsets.items() if p not in recreated},
        )

    def advances(self, poll: Poll) -> list[Advance]:
        """The moves this poll makes, from the positions held now."""
        last: Mapping[int, Record | UndecodableRecord] = {r.partition: r for r in poll.records}
        advances = []
        for partition, next_offset in sorted(poll.next_offsets.items()):
            previous = self._positions.get(partition)
            if previous is not None and next_offset > previous.next_offset:
                record = last.get(partition)
                mark = None if record is None else fingerprint(record)
                advances.append(Advance(previous=previous, next_offset=next_offset, fingerprint=mark))
        return advances
