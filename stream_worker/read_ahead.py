"""Reading: polls, decodes, makes ready, and does so for the next batch while the one before is being stored.

The database does most of a batch's work, and Python the rest; one after the other they leave each other idle.
What was read ahead is of use only as long as no position was given up in between (a rebalance, an outage, a
recheck). Otherwise it is dropped, every position is given up, and it is read again from where the store is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import msgspec

from broker.errors import BrokerError
from broker.ports import Consumer, Poll, Record, UndecodableRecord
from db.batch import InvalidRecord, Prepared, ValidRecord
from stream_worker.decode import decode_records
from stream_worker.metrics import WorkerMetrics
from stream_worker.progress import Progress
from telemetry.tracing import Tracing


class Reading(msgspec.Struct, frozen=True):
    """What one poll returned, decoded.

    Attributes:
        records: of the poll, one for one.
        prepared: those records, ready for the store.
        span: of the poll.
        as_of: `Progress.changes` before it began.
    """

    poll: Poll
    records: Sequence[ValidRecord | InvalidRecord]
    prepared: Prepared | None
    span: object
    as_of: int


class Reader:
    """Reads for one worker. Belongs to one task at a time; `drop` before the consumer is stopped."""

    def __init__(
        self,
        progress: Progress,
        prepare: Callable[[Sequence[ValidRecord | InvalidRecord]], Prepared],
        poll_timeout_seconds: float,
        metrics: WorkerMetrics,
        tracing: Tracing,
    ) -> None:
        self._progress = progress
        self._prepare = prepare
        self._poll_timeout_seconds = poll_timeout_seconds
        self._metrics = metrics
        self._tracing = tracing
        self._allowed: tuple[Consumer, int, Reading] | None = None
        # What is being stored, or was last: to free thousands of objects takes a while, for which the
        # database need not wait.
        self._kept: Reading | None = None
        self._ahead: asyncio.Task[Reading] | None = None

    async def next(self, consumer: Consumer, max_records: int) -> Reading:
        """What comes next in the partitions assigned, all of which are positioned before.

        What was read ahead may hold as many records as were allowed then.

        Raises:
            BrokerError, StoreError: positions are to be given up before the next call.
        """
        reading = await self._read_before()
        while True:
            if reading is not None and not self.is_current(reading):
                # What it moved in the consumer has to be sought again.
                self._progress.forget()
                reading = None
            await self._progress.position_assigned(consumer)
            if reading is None or self.is_current(reading):
                break
        self._metrics.lag.positioned(self._progress.next_offsets())
        return reading or await self._read(consumer, max_records)

    def is_current(self, reading: Reading) -> bool:
        """Whether no position was given up since it began."""
        return reading.as_of == self._progress.changes

    @property
    def is_ahead(self) -> bool:
        """Whether the next batch is being read, or at hand."""
        return self._ahead is not None

    def allow_read_ahead(self, consumer: Consumer, reading: Reading, max_records: int) -> None:
        """Say what `begin_read_ahead` is to do while this reading is being stored.

        Nothing, unless the reading was a large part of what a batch may hold: with less, waiting for the
        store lets the next batch grow, which costs the database less. Nor while the first record of a
        partition is still to be compared with what was stored before it.
        """
        is_large = 2 * len(reading.records) >= max_records
        if is_large and not self._progress.has_unverified:
            self._allowed = (consumer, max_records, reading)
        else:
            self._kept = None

    def begin_read_ahead(self) -> None:
        """Read what comes next, if that is allowed. To be called as the database begins with its work.

        Not before: the thread that talks to the database would have to share Python with decoding.
        """
        allowed, self._allowed = self._allowed, None
        if allowed is not None:
            consumer, max_records, self._kept = allowed
            self._ahead = asyncio.create_task(self._read(consumer, max_records), name="read ahead")

    async def drop(self) -> None:
        """Forget what was read ahead, and read no further; positions are to be given up too."""
        self._allowed = self._kept = None
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.cancel()
            await asyncio.wait({ahead})
            if not ahead.cancelled():
                ahead.exception()

    async def _read_before(self) -> Reading | None:
        self._allowed = None
        ahead, self._ahead = self._ahead, None
        return None if ahead is None else await ahead

    async def _read(self, consumer: Consumer, max_records: int) -> Reading:
        as_of = self._progress.changes
        poll, span = await self._poll(consumer, max_records)
        if not poll.records:
            return Reading(poll, [], None, span, as_of)
        with self._metrics.stage("decode"):
            records, prepared = await asyncio.to_thread(self._decode, poll.records)
        return Reading(poll, records, prepared, span, as_of)

    def _decode(
        self, polled: Sequence[Record | UndecodableRecord]
    ) -> tuple[Sequence[ValidRecord | InvalidRecord], Prepared]:
        records = decode_records(polled)
        return records, self._prepare(records)

    async def _poll(self, consumer: Consumer, max_records: int) -> tuple[Poll, object]:
        started_ns = time.time_ns()
        try:
            poll = await consumer.poll(max_records, self._poll_timeout_seconds)
        except BrokerError as error:
            self._tracing.poll(started_ns, 0, (), error)
            raise
        span = None
        if poll.records:
            # A poll that finds nothing says nothing.
            span = self._tracing.poll(started_ns, len(poll.records), poll.next_offsets)
        return poll, span
