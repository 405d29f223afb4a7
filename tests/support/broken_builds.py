"""Workers that are wrong on purpose, to show that the checker of invariants finds each of them out.

Each does one thing that looks harmless and breaks a promise. None of it is in the product.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from msgspec.structs import replace
from sqlalchemy import Connection, func, select, update

from broker.ports import Consumer
from db.batch import Advance, Batch, InvalidRecord, ValidRecord, WhenBusy, WriteResult
from db.counts import CountKey, Counts
from db.engine import transaction
from db.errors import StoreUnavailable
from db.event_store import EventStore
from db.models import PartitionProgressRow
from stream_worker.worker import Worker

Halt = Callable[[str], None]
"""Called with the name of a place in the code: the process may end or freeze there."""


class HaltingStore(EventStore):
    """The product's store, which can be stopped just before its transaction."""

    halt: Halt = staticmethod(lambda place: None)

    def write(self, batch: Batch, when_busy: WhenBusy | None = None) -> WriteResult:
        self.halt("before_store")
        return super().write(batch, when_busy)


class UnfencedStore(HaltingStore):
    """Moves positions whoever has moved them before."""

    def _move(self, connection: Connection, advances: Sequence[Advance]) -> dt.datetime:
        row = PartitionProgressRow
        for advance in sorted(advances, key=lambda advance: advance.previous.partition):
            connection.execute(
                update(row)
                .where(row.log_topic == self._log_topic, row.partition == advance.previous.partition)
                .values(next_offset=advance.next_offset, owner=self._owner)
            )
        now: dt.datetime = connection.execute(select(func.now())).scalar_one()
        return now


class SeparateCounters(HaltingStore):
    """Counts in a transaction of its own, after the one that stores."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._postponed = _PostponedCounts(self._statements)
        self._statements = self._postponed

    def write(self, batch: Batch, when_busy: WhenBusy | None = None) -> WriteResult:
        result = super().write(batch, when_busy)
        self.halt("before_counts")
        if self._postponed.counts:
            with transaction(self._engine) as connection:
                now = connection.execute(select(func.now())).scalar_one()
                self._postponed.really_add(connection, self._log_topic, now)
        return result


class _PostponedCounts:
    def __init__(self, statements: Any) -> None:
        self._really = statements
        self.counts: Mapping[CountKey, Counts] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._really, name)

    def add_counts(
        self,
        connection: Connection,
        log_topic: str,
        counts: Mapping[CountKey, Counts],
        stored_at: dt.datetime,
    ) -> None:
        self.counts = counts

    def really_add(self, connection: Connection, log_topic: str, stored_at: dt.datetime) -> None:
        self._really.add_counts(connection, log_topic, self.counts, stored_at)


class OffsetIdentity(HaltingStore):
    """Drops what it has seen at the same offset, and nothing else."""

    def write(self, batch: Batch, when_busy: WhenBusy | None = None) -> WriteResult:
        return super().write(_changed(batch, _by_offset), when_busy)


class ChangedContent(HaltingStore):
    """Stores something other than what was sent."""

    def write(self, batch: Batch, when_busy: WhenBusy | None = None) -> WriteResult:
        return super().write(_changed(batch, _in_capitals), when_busy)


class SkippingStore(HaltingStore):
    """Once a batch could not be stored, moves on without it."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._failed = False

    def write(self, batch: Batch, when_busy: WhenBusy | None = None) -> WriteResult:
        if self._failed:
            self._failed = False
            return super().write(Batch(records=[], advances=batch.advances))
        try:
            return super().write(batch, when_busy)
        except StoreUnavailable:
            self._failed = True
            raise


class CommitFirst(Worker):
    """Commits offsets, then stores."""

    async def _store_and_commit(self, batch: Batch, consumer: Consumer) -> WriteResult:
        await consumer.commit({a.previous.partition: a.next_offset for a in batch.advances})
        result = await self._write(batch)
        self._progress.advance(result.positions)
        return result


class GivesUp(Worker):
    """Does not try again after an outage of the database."""

    async def _write(self, batch: Batch) -> WriteResult:
        try:
            return await super()._write(batch)
        except StoreUnavailable:
            await self._stop.wait()
            raise


@dataclass(frozen=True)
class Build:
    """What a worker process is made of."""

    worker: type[Worker] = Worker
    store: type[HaltingStore] = HaltingStore


BUILDS = {
    "sound": Build(),
    "commit_before_store": Build(worker=CommitFirst),
    "no_fence": Build(store=UnfencedStore),
    "counters_apart": Build(store=SeparateCounters),
    "offset_identity": Build(store=OffsetIdentity),
    "changed_content": Build(store=ChangedContent),
    "retry_that_skips": Build(store=SkippingStore),
    "gives_up": Build(worker=GivesUp),
}


def _changed(batch: Batch, change: Callable[[ValidRecord], ValidRecord]) -> Batch:
    records = [r if isinstance(r, InvalidRecord) else change(r) for r in batch.records]
    return Batch(records=records, advances=batch.advances)


def _by_offset(record: ValidRecord) -> ValidRecord:
    place = b"%d %d" % (record.at.partition, record.at.offset)
    return replace(record, event=replace(record.event, key=blake2b(place, digest_size=16).digest()))


def _in_capitals(record: ValidRecord) -> ValidRecord:
    return replace(record, event=replace(record.event, source=record.event.source.upper()))
