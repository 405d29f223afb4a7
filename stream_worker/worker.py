"""The loop: poll, decode, store, commit.

Overlap. While the database works on a large batch, the next one is read and decoded (`Reader`), and offsets
of the one before are committed. Batches are stored one after the other, in order.

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
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

import structlog

from broker.errors import BrokerError, CommitFailed, LogMisconfigured
from broker.ports import Consumer, Log, Poll
from db.batch import Advance, Batch, InvalidRecord, Position, Rejected, WriteResult
from db.errors import FenceLost, RowsRejected, StoreUnavailable
from db.event_store import EventStore
from events.verdict import DATABASE_REASON
from stream_worker.backoff import Backoff, wait_or_stop
from stream_worker.lag import keep_sampled
from stream_worker.metrics import WorkerMetrics
from stream_worker.progress import Progress
from stream_worker.read_ahead import Reader, Reading
from stream_worker.settings import WorkerSettings
from stream_worker.watchdog import Watchdog, WorkerStuck
from telemetry.metrics import Metrics
from telemetry.tracing import NoTracing, Tracing

_log = structlog.get_logger("stream_worker")
_T = TypeVar("_T")

_SMALLEST_BATCH: Final = 10
"""Records; a database that cannot store these within a transaction's time is away."""


class Worker:
    """A member of the consumer group that gives every record it is assigned exactly one verdict.

    Args:
        log: where records come from.
        store: where verdicts go. Called in threads, so that cancellation never reaches the database.
        settings: see `WorkerSettings`.
        metrics: what is measured; by default nobody reads it.
        tracing: where polls and batches become spans.
        before_commit: awaited between store and commit; a seam for tests that stop the process right there.
    """

    def __init__(
        self,
        log: Log,
        store: EventStore,
        settings: WorkerSettings,
        *,
        metrics: WorkerMetrics | None = None,
        tracing: Tracing | None = None,
        before_commit: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._metrics = metrics or WorkerMetrics(Metrics())
        self._metrics.follow_assignment(lambda: self._assignment())
        self._tracing = tracing or NoTracing()
        self._log = log
        self._store = store
        self._settings = settings
        self._before_commit = before_commit
        self._progress = Progress(store)
        self._reader = Reader(
            self._progress, store.prepare, settings.poll_timeout_seconds, self._metrics, self._tracing
        )
        self._storing = asyncio.Lock()
        self._committing: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()
        self._backoff = Backoff(settings.backoff_min_seconds, settings.backoff_max_seconds)
        self._assignment: Callable[[], frozenset[int]] = frozenset
        self._watchdog = Watchdog(log, store.next_offsets, lambda: self._assignment(), settings.stall_seconds)
        self._recheck_at = 0.0
        self._batch_limit = settings.max_batch_records

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
                await self._reader.drop()
                self._progress.forget()
                self._metrics.lag.revoked()
                self._assignment = frozenset
                await consumer.stop()

    async def keep_lag_known(self) -> None:
        """Ask the log for its end offsets now and then, until cancelled."""
        await keep_sampled(self._metrics.lag, self._log, self._settings.lag_interval_seconds)

    @property
    def is_alive(self) -> bool:
        """False while the worker is stuck: there is lag, nobody is waited for, and nothing moves."""
        return not self._watchdog.is_stuck

    async def _work(self, consumer: Consumer) -> None:
        await self._retrying(consumer.start)
        while not self._stop.is_set():
            await self._retrying(lambda: self.run_once(consumer))
        await self._wait_committed()

    async def on_revoked(self, partitions: frozenset[int]) -> None:
        """Wait for the transaction and the commit in flight, then let the partitions go."""
        self._progress.forget(partitions)
        async with self._storing:
            await self._wait_committed()
            self._progress.forget(partitions)
            self._metrics.lag.revoked(partitions)

    async def on_assigned(self, partitions: frozenset[int]) -> None:
        """Nothing is read from them before the database has said where."""
        _log.info("assigned", partitions=sorted(partitions))
        self._metrics.assigned()
        self._progress.forget(partitions)

    async def run_once(self, consumer: Consumer) -> WriteResult | None:
        """One turn of the loop; None if there was nothing to store.

        Raises:
            BrokerError, StoreError: positions are to be read again before the next turn.
        """
        if time.monotonic() >= self._recheck_at:
            self._recheck_at = time.monotonic() + self._settings.recheck_interval_seconds
            self._progress.forget()
        reading = await self._reader.next(consumer, self._batch_limit)
        poll = await self._progress.verify(reading.poll, consumer)
        if not self._reader.is_current(reading):
            self._progress.forget()
            return None
        batch = _batch(reading, poll, self._progress.advances(poll))
        if not batch.records:
            # Transaction markers alone still move positions.
            return await self._store_in_turn(batch, consumer)
        self._reader.allow_read_ahead(consumer, reading, self._batch_limit)
        with self._tracing.process(
            (getattr(record, "headers", ()) for record in poll.records),
            len(poll.records),
            poll.next_offsets,
            reading.span,
        ):
            return await self._store_in_turn(batch, consumer)

    async def _store_in_turn(self, batch: Batch, consumer: Consumer) -> WriteResult | None:
        """Store and commit, unless nothing moves or a partition was lost meanwhile."""
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
                **_place(batch),
                batch_size=len(batch.records),
                stored=result.stored,
                duplicates=result.duplicates,
                conflicts=result.conflicts,
                dead_lettered=result.dead_lettered,
                duration_s=round(time.monotonic() - started, 4),
            )
        return result

    async def _store_and_commit(self, batch: Batch, consumer: Consumer) -> WriteResult:
        with self._metrics.stage("store"):
            result = await self._write(batch)
        self._progress.advance(result.positions)
        self._metrics.stored(batch, result)
        if self._before_commit is not None:
            await self._before_commit()
        await self._wait_committed()
        self._committing = asyncio.create_task(self._commit(result.positions, consumer), name="commit")
        if not self._reader.is_ahead:
            await self._wait_committed()
        return result

    async def _commit(self, positions: Sequence[Position], consumer: Consumer) -> None:
        try:
            with self._metrics.stage("commit"):
                await consumer.commit({p.partition: p.next_offset for p in positions})
            self._metrics.committed()
        except CommitFailed as error:
            _log.warning("offsets not committed; the database position decides", exc_info=error)

    async def _wait_committed(self) -> None:
        """Return once no commit is under way."""
        committing = self._committing
        if committing is not None:
            await asyncio.wait({committing})
            if self._committing is committing:
                self._committing = None
                committing.result()

    async def _write(self, batch: Batch) -> WriteResult:
        # A batch too large for the time a transaction may take would fail for ever: after a failure the next
        # is half as large, after a success twice.
        limit, most = self._batch_limit, self._settings.max_batch_records
        self._batch_limit = min(most, max(limit // 2, _SMALLEST_BATCH))
        result = await self._write_or_set_aside(batch)
        self._batch_limit = min(most, limit * 2)
        return result

    async def _write_or_set_aside(self, batch: Batch) -> WriteResult:
        in_loop = asyncio.get_running_loop().call_soon_threadsafe
        try:
            return await asyncio.to_thread(
                self._store.write, batch, lambda: in_loop(self._reader.begin_read_ahead)
            )
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
                self._metrics.retrying(error)
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


def _batch(reading: Reading, poll: Poll, advances: Sequence[Advance]) -> Batch:
    """The records of a reading that are left in a poll after it was verified."""
    if poll is reading.poll:
        return Batch(reading.records, advances, reading.prepared)
    left = {(record.partition, record.offset) for record in poll.records}
    return Batch(
        [record for record in reading.records if (record.at.partition, record.at.offset) in left], advances
    )


def _place(batch: Batch) -> dict[str, int]:
    """Where the batch ends, for the log line, if it is of one partition."""
    if len(batch.advances) != 1:
        return {"partitions": len(batch.advances)}
    (advance,) = batch.advances
    return {"partition": advance.previous.partition, "offset": advance.next_offset - 1}
