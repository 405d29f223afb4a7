"""The loop: poll, decode, store, commit.

Offsets. `Progress` holds the *position* of each partition, which is what the database holds. A poll reads on
from there; the batch made of it carries its moves as *advances*. Storing the batch moves the position in the
same transaction. Only then are offsets committed to the group, as a mirror for lag tools.

Losing a partition. `on_revoked` waits until no store is under way, then takes the partition away from
`Progress`; a batch that was read before is dropped, and what is left is read again from the database's
position. A worker that is told too late, or never, is stopped by the fence in the transaction.

Trouble. Outages of either side keep the batch (or read it again) and wait with jitter. A missing schema stops
the worker. A record the database refuses is found by bisecting and dead-lettered alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from broker.errors import BrokerError, CommitFailed, LogMisconfigured
from broker.ports import Consumer, Log
from db.batch import Batch, InvalidRecord, Rejected, WriteResult
from db.errors import FenceLost, RowsRejected, StoreUnavailable
from db.event_store import EventStore
from events.verdict import DATABASE_REASON
from stream_worker.backoff import Backoff, wait_or_stop
from stream_worker.decode import decode_records
from stream_worker.progress import Progress
from stream_worker.settings import WorkerSettings
from stream_worker.watchdog import Watchdog, WorkerStuck

_log = structlog.get_logger("stream_worker")
_T = TypeVar("_T")


class Worker:
    """A member of the consumer group that gives every record it is assigned exactly one verdict.

    Args:
        log: where records come from.
        store: where verdicts go. Called in threads, so that cancellation never reaches the database.
        settings: see `WorkerSettings`.
        before_commit: awaited between store and commit; a seam for tests that stop the process right there.
    """

    def __init__(
        self,
        log: Log,
        store: EventStore,
        settings: WorkerSettings,
        *,
        before_commit: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._log = log
        self._store = store
        self._settings = settings
        self._before_commit = before_commit
        self._progress = Progress(store)
        self._storing = asyncio.Lock()
        self._stop = asyncio.Event()
        self._backoff = Backoff(settings.backoff_min_seconds, settings.backoff_max_seconds)
        self._assignment: Callable[[], frozenset[int]] = frozenset
        self._watchdog = Watchdog(log, store.next_offsets, lambda: self._assignment(), settings.stall_seconds)
        self._recheck_at = 0.0

    def stop(self) -> None:
        """Ask the worker to drain: finish the batch in flight, leave the group, return from `run`."""
        self._stop.set()

    async def run(self) -> None:
        """Work until `stop`.

        Raises:
            SchemaMismatch, LogMisconfigured: an operator has to act first. A missing topic is waited for:
                whether it exists is checked at boot, and later it can be gone only to be created again.
            WorkerStuck: no progress in spite of lag, even with a new consumer.
        """
        restarts = 0
        while not self._stop.is_set():
            consumer = self._log.consumer(self)
            self._assignment = consumer.assignment
            working = asyncio.create_task(self._work(consumer), name="worker loop")
            watching = asyncio.create_task(self._watchdog.until_stuck(), name="worker watchdog")
            try:
                await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
                if working.done():
                    await working
                    return
                await watching
                if restarts == self._settings.max_consumer_restarts:
                    raise WorkerStuck(
                        "There is lag, but the position has not moved for"
                        f" {self._settings.stall_seconds:g} s, and replacing the consumer {restarts} times"
                        " did not help. The worker ends, so that its supervisor starts it afresh."
                    )
                restarts += 1
                _log.error("no progress in spite of lag; replacing the consumer", restarts=restarts)
            finally:
                watching.cancel()
                # A transaction under way is shielded from this, and the fence keeps it honest.
                working.cancel()
                await asyncio.wait({working, watching})
                self._progress.forget()
                await consumer.stop()

    @property
    def is_alive(self) -> bool:
        """False while the worker is stuck: there is lag, nobody is waited for, and nothing moves."""
        return not self._watchdog.is_stuck

    async def _work(self, consumer: Consumer) -> None:
        await self._retrying(consumer.start)
        while not self._stop.is_set():
            await self._retrying(lambda: self.run_once(consumer))

    async def on_revoked(self, partitions: frozenset[int]) -> None:
        """Wait for the transaction in flight, then let the partitions go."""
        self._progress.forget(partitions)
        async with self._storing:
            self._progress.forget(partitions)

    async def on_assigned(self, partitions: frozenset[int]) -> None:
        """Nothing is read from them before the database has said where."""
        _log.info("assigned", partitions=sorted(partitions))
        self._progress.forget(partitions)

    async def run_once(self, consumer: Consumer) -> WriteResult | None:
        """One turn of the loop; None if there was nothing to store.

        Raises:
            BrokerError, StoreError: positions are to be read again before the next turn.
        """
        if time.monotonic() >= self._recheck_at:
            self._recheck_at = time.monotonic() + self._settings.recheck_interval_seconds
            self._progress.forget()
        await self._progress.position_assigned(consumer)
        poll = await consumer.poll(self._settings.max_batch_records, self._settings.poll_timeout_seconds)
        poll = await self._progress.verify(poll, consumer)
        batch = Batch(
            records=await asyncio.to_thread(decode_records, poll.records),
            advances=self._progress.advances(poll),
        )
        if not batch.advances:
            return None
        started = time.monotonic()
        async with self._storing:
            if not self._progress.holds(batch.advances):
                self._progress.forget()
                return None
            result = await asyncio.shield(self._store_and_commit(batch, consumer))
        if batch.records:
            _log.info(
                "batch",
                batch_size=len(batch.records),
                stored=result.stored,
                duplicates=result.duplicates,
                conflicts=result.conflicts,
                dead_lettered=result.dead_lettered,
                duration_s=round(time.monotonic() - started, 4),
            )
        return result

    async def _store_and_commit(self, batch: Batch, consumer: Consumer) -> WriteResult:
        result = await self._write(batch)
        self._progress.advance(result.positions)
        if self._before_commit is not None:
            await self._before_commit()
        try:
            await consumer.commit({p.partition: p.next_offset for p in result.positions})
        except CommitFailed as error:
            _log.warning("offsets not committed; the database position decides", exc_info=error)
        return result

    async def _write(self, batch: Batch) -> WriteResult:
        try:
            return await asyncio.to_thread(self._store.write, batch)
        except RowsRejected:
            rejected = await asyncio.to_thread(self._store.find_rejected, batch)
            return await asyncio.to_thread(self._store.write, self._set_aside(batch, rejected))

    def _set_aside(self, batch: Batch, rejected: list[Rejected]) -> Batch:
        """The batch with the refused records as dead letters."""
        records = list(batch.records)
        for refusal in rejected:
            record = records[refusal.index]
            if isinstance(record, InvalidRecord):
                raise StoreUnavailable(f"The database refuses a dead letter: {refusal.error}")
            records[refusal.index] = InvalidRecord(
                record.at, DATABASE_REASON, refusal.error, record.event.topic, record.event.event_id
            )
        return Batch(records=records, advances=batch.advances)

    async def _retrying(self, step: Callable[[], Awaitable[_T]]) -> _T | None:
        """Take a step until it succeeds, waiting with jitter after transient trouble; None once stopping.

        After any trouble every position is forgotten, so that nothing goes on from where it seemed to be.
        """
        while not self._stop.is_set():
            try:
                result = await step()
            except LogMisconfigured:
                raise
            except (BrokerError, FenceLost, RowsRejected, StoreUnavailable) as error:
                if isinstance(error, StoreUnavailable):
                    self._watchdog.excuse()
                wait = self._backoff.next_wait()
                _log.warning(
                    "waiting before the next try",
                    **{"error.type": type(error).__name__},
                    detail=str(error),
                    wait_s=round(wait, 3),
                )
                self._progress.forget()
                await wait_or_stop(wait, self._stop)
            else:
                self._backoff.reset()
                return result
        return None
