"""Appending to the Kafka topic."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Sequence
from typing import Final

from aiokafka import errors as kafka_errors
from aiokafka.errors import KafkaError

from broker.errors import (
    BrokerError,
    LogFull,
    LogUnavailable,
    ProduceOutcomeUnknown,
    RecordTooLarge,
)
from broker.kafka.client import describe, translate
from broker.kafka.departure import Departure
from broker.kafka.lane import RECORD_FRAME_BYTES, Batch, Lane, Publish, Share, headers_size
from broker.kafka.session import Session, SessionLost
from broker.partitioner import partition_for
from broker.ports import Headers, NewRecord
from broker.settings import KafkaSettings

_log = logging.getLogger(__name__)

_WATCH_INTERVAL: Final = 1.0
_WEDGED_AFTER: Final = 10.0
"""Seconds beyond the client's own deadline after which it is taken to be stuck for good."""
_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 10.0

_TOO_LARGE: Final = (kafka_errors.MessageSizeTooLargeError, kafka_errors.RecordListTooLargeError)
_UNKNOWN_OUTCOME: Final = (
    kafka_errors.RequestTimedOutError,
    kafka_errors.KafkaTimeoutError,
    kafka_errors.KafkaConnectionError,
    kafka_errors.NotEnoughReplicasAfterAppendError,
)


class KafkaProducer:
    """The producer port on Kafka: `acks=all`, batches shared by all publishes that wait for a partition.

    A record is in one of three places. Waiting in a lane: if its publish gives up it is withdrawn, and will
    never be in the log. In a batch handed to the client: it may still be written after its publish gave up.
    Acknowledged. The first two are bounded together by `max_buffer_bytes`.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._session: Session | None = None
        self._connected = asyncio.Event()
        self._lanes: dict[int, Lane] = {}
        self._partitions = 0
        self._buffered_records = 0
        self._buffered_bytes = 0
        self._departures: dict[int | None, Departure] = {}
        self._watch: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._stopping = False

    @property
    def in_flight(self) -> int:
        return self._buffered_records

    async def start(self) -> None:
        """Connect. Raises LogUnavailable, TopicMissing, LogMisconfigured, within `start_timeout_seconds`."""
        await self._open(check_limit=True)
        self._watch = asyncio.create_task(self._keep_connected(), name="kafka-producer-watch")

    async def stop(self) -> None:
        """Finish what is in flight for up to `stop_timeout_seconds`, then close. Idempotent."""
        self._stopping = True
        deadline = time.monotonic() + self._settings.stop_timeout_seconds
        tasks = {lane.task for lane in self._lanes.values() if lane.task is not None}
        if tasks:
            await asyncio.wait(tasks, timeout=self._settings.stop_timeout_seconds)
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait({self._watch})
            self._watch = None
        session, self._session = self._session, None
        self._connected.clear()
        if session is not None:
            await session.close(max(0.0, deadline - time.monotonic()))
        for lane in self._lanes.values():
            await self._abandon(lane)
        if self._closing:
            await asyncio.wait(self._closing)

    async def publish(self, records: Sequence[NewRecord], *, timeout: float) -> None:
        """See `broker.ports.Producer.publish`."""
        if self._stopping or self._watch is None:
            raise LogUnavailable("The producer is not running; nothing was sent.")
        if not records:
            return
        publish = Publish(len(records), asyncio.get_running_loop().create_future())
        size = self._divide(publish, records)
        if self._buffered_bytes + size > self._settings.max_buffer_bytes:
            raise LogFull(
                f"{self._buffered_bytes:,} bytes wait for the log's acknowledgement already; {size:,} more"
                f" would exceed max_buffer_bytes ({self._settings.max_buffer_bytes:,})."
            )
        self._buffered_records += len(records)
        self._buffered_bytes += size
        for lane, share in publish.shares:
            lane.pending.append(share)
            self._run(lane)
        deadline = asyncio.get_running_loop().call_later(timeout, _give_up, publish, len(records), timeout)
        try:
            await publish.done
        finally:
            deadline.cancel()
            if publish.unacknowledged:
                self._withdraw(publish)
            # Publish and shares name each other; kept, they would all wait for the garbage collector.
            publish.shares.clear()

    def _divide(self, publish: Publish, records: Sequence[NewRecord]) -> int:
        """Give every record to its partition's share; returns their bytes. Raises RecordTooLarge."""
        partitions = self._partition_count()
        largest = self._settings.max_batch_bytes
        shares: dict[int, Share] = {}
        total = 0
        headers: Headers = ()
        frame = RECORD_FRAME_BYTES
        for record in records:
            key = record.key
            if record.headers is not headers:
                headers = record.headers
                frame = RECORD_FRAME_BYTES + headers_size(headers)
            size = frame + len(key) + len(record.value)
            if size > largest:
                raise RecordTooLarge(
                    f"A record of {size:,} bytes is more than the log takes"
                    f" ({largest:,} bytes, max_batch_bytes)."
                )
            total += size
            partition = partition_for(key, partitions)
            share = shares.get(partition)
            if share is None:
                share = shares[partition] = Share(publish)
            share.records.append(record)
            share.size += size
        publish.shares = [(self._lane(partition), share) for partition, share in shares.items()]
        return total

    def _partition_count(self) -> int:
        # While the cluster does not know the topic, the last known number keeps keys on their partitions.
        known = self._session.partitions() if self._session is not None else None
        if known is not None:
            self._partitions = known
        return self._partitions

    def _lane(self, partition: int) -> Lane:
        lane = self._lanes.get(partition)
        if lane is None:
            lane = self._lanes[partition] = Lane(partition)
        return lane

    def _run(self, lane: Lane) -> None:
        if lane.task is None:
            lane.task = asyncio.create_task(self._drain(lane), name=f"kafka-lane-{lane.partition}")

    async def _drain(self, lane: Lane) -> None:
        """Send batch after batch until nothing waits."""
        try:
            while lane.pending:
                await self._connected.wait()
                session = self._session
                if session is None:
                    continue
                departure = self._departure(session.leader(lane.partition))
                await departure.wait()
                if session is self._session:
                    await self._send(session, lane, departure)
        finally:
            lane.task = None

    def _departure(self, broker: int | None) -> Departure:
        departure = self._departures.get(broker)
        if departure is None:
            departure = self._departures[broker] = Departure(self._settings.linger_seconds)
        return departure

    async def _send(self, session: Session, lane: Lane, departure: Departure) -> None:
        batch = Batch(session.create_batch(), time.monotonic())
        records = size = 0
        lane.sending = batch
        departure.begin()
        try:
            lane.fill(batch)
            records, size = batch.records, batch.size
            if not records:
                return
            await session.send(batch.builder, lane.partition)
            batch.acknowledge()
        except _TOO_LARGE as error:
            if batch.records > 1:
                # The topic's limit was lowered after start: smaller batches rather than failed records.
                records, size = lane.split(batch)
            else:
                batch.fail(RecordTooLarge(f"The log refuses a record of {batch.size:,} bytes: {error}"))
        except SessionLost:
            batch.fail(
                ProduceOutcomeUnknown("The connection to the log was given up; some records may be in it.")
            )
        except KafkaError as error:
            batch.fail(self._failure(error))
        except BaseException:
            records, size = batch.records, batch.size
            failure = LogUnavailable("The producer failed; some records may be in the log.")
            batch.fail(failure)
            for share in lane.pending:
                share.publish.fail(failure)
            raise
        finally:
            lane.sending = None
            departure.end()
            self._release(records, size)

    def _failure(self, error: KafkaError) -> BrokerError:
        if isinstance(error, _UNKNOWN_OUTCOME):
            return ProduceOutcomeUnknown(
                f"The log did not acknowledge ({describe(error)}); some records may be in it."
                " Sending them again is safe."
            )
        translated = translate(error, self._settings)
        if isinstance(translated, LogUnavailable):
            return translated
        return LogUnavailable(str(translated))

    def _withdraw(self, publish: Publish) -> None:
        for lane, share in publish.shares:
            self._release(*lane.withdraw(share))

    def _release(self, records: int, size: int) -> None:
        self._buffered_records -= records
        self._buffered_bytes -= size

    async def _abandon(self, lane: Lane) -> None:
        """Fail what still waits at stop."""
        if lane.task is not None:
            lane.task.cancel()
            await asyncio.wait({lane.task})
        for share in list(lane.pending):
            share.publish.fail(LogUnavailable("The producer was stopped before the log took the records."))

    async def _open(self, *, check_limit: bool) -> None:
        session = Session(self._settings)
        try:
            await session.open(check_limit=check_limit)
        except BaseException:
            await session.close(0)
            raise
        self._session = session
        self._partition_count()
        self._connected.set()

    async def _keep_connected(self) -> None:
        """Replace a session whose client is stuck. Runs until cancelled."""
        while True:
            await asyncio.sleep(_WATCH_INTERVAL)
            if self._session is not None and not self._stuck(self._session):
                continue
            await self._replace()

    def _stuck(self, session: Session) -> bool:
        if session.failed:
            return True
        longest = self._settings.produce_timeout_seconds + _WEDGED_AFTER
        oldest = min((lane.sending.started for lane in self._lanes.values() if lane.sending), default=None)
        return oldest is not None and time.monotonic() - oldest > longest

    async def _replace(self) -> None:
        session, self._session = self._session, None
        self._connected.clear()
        if session is not None:
            _log.warning("the Kafka producer is stuck; connecting anew")
            closing = asyncio.create_task(session.close(0), name="kafka-producer-close")
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
        pause = _FIRST_PAUSE
        while self._session is None:
            try:
                # A limit that was lowered meanwhile is no reason to stop; batches are split where needed.
                await self._open(check_limit=False)
            except Exception as error:  # noqa: BLE001 - whatever it is: nobody else would connect again
                _log.warning("the Kafka producer cannot connect: %s", error)
                await asyncio.sleep(pause * random.uniform(0.5, 1))
                pause = min(2 * pause, _LONGEST_PAUSE)


def _give_up(publish: Publish, records: int, timeout: float) -> None:
    publish.fail(
        ProduceOutcomeUnknown(
            f"The log did not acknowledge {publish.unacknowledged:,} of {records:,} records within"
            f" {timeout:g} s; some of them may be in it. Sending them again is safe."
        )
    )
