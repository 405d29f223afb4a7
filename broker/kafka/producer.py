"""Appending to the Kafka topic."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any, Final

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
from broker.kafka.lane import RECORD_FRAME_BYTES, Batch, Lane, Publish, Share, headers_size
from broker.kafka.session import Session
from broker.partitioner import partition_for
from broker.ports import Headers, NewRecord
from broker.settings import KafkaSettings

_log = logging.getLogger(__name__)

_WATCH_INTERVAL: Final = 1.0
_WEDGED_AFTER: Final = 10.0
"""Seconds beyond the client's own deadline after which it is taken to be stuck for good."""
_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 10.0
_RETRY_PAUSE: Final = 0.1

_TOO_LARGE: Final = (kafka_errors.MessageSizeTooLargeError, kafka_errors.RecordListTooLargeError)
_UNKNOWN_OUTCOME: Final = (
    kafka_errors.RequestTimedOutError,
    kafka_errors.KafkaTimeoutError,
    kafka_errors.KafkaConnectionError,
    kafka_errors.NotEnoughReplicasAfterAppendError,
)


class KafkaProducer:
    """The producer port on Kafka: `acks=all`, batches shared by all publishes that wait for a partition.

    Each broker has one request at a time on its way, with a batch for every partition it leads that records
    wait for. What comes when nothing is on its way is sent at once; what comes meanwhile leaves together with
    the answer.

    A record is in one of three places. Waiting in a lane: if its publish gives up it is withdrawn, and will
    never be in the log. In a batch: it may still be written after its publish gave up. Acknowledged. The
    first two are bounded together by `max_buffer_bytes`.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._session: Session | None = None
        self._lanes: dict[int, Lane] = {}
        self._ready: dict[int, Lane] = {}
        self._busy: set[int | None] = set()
        self._sending: set[asyncio.Task[None]] = set()
        self._dispatch_is_due = False
        self._partitions = 0
        self._buffered_records = 0
        self._buffered_bytes = 0
        self._watch: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._empty = asyncio.Event()

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
        if self._buffered_records:
            self._empty.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.stop_timeout_seconds):
                    await self._empty.wait()
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait({self._watch})
            self._watch = None
        sending = set(self._sending)
        self._give_up_session()
        self._fail(
            self._lanes.values(), LogUnavailable("The producer was stopped before the log took the records.")
        )
        if sending:
            await asyncio.wait(sending)
        if self._closing:
            await asyncio.wait(self._closing)

    async def publish(self, records: Sequence[NewRecord], *, timeout: float) -> None:
        """See `broker.ports.Producer.publish`."""
        if self._stopping or self._watch is None:
            raise LogUnavailable("The producer is not running; nothing was sent.")
        if not records:
            return
        loop = asyncio.get_running_loop()
        publish = Publish(len(records), loop.create_future())
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
            if lane.is_idle:
                self._make_ready(lane)
        deadline = loop.call_later(timeout, _give_up, publish, len(records), timeout)
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
        partitions = self._partitions
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

    def _lane(self, partition: int) -> Lane:
        lane = self._lanes.get(partition)
        if lane is None:
            lane = self._lanes[partition] = Lane(partition)
        return lane

    def _make_ready(self, lane: Lane) -> None:
        """Let a lane leave with the next request to its broker."""
        lane.is_idle = False
        self._ready[lane.partition] = lane
        self._dispatch_soon()

    def _dispatch_soon(self) -> None:
        # Not now: other records may come in this turn of the event loop.
        if not self._dispatch_is_due:
            self._dispatch_is_due = True
            asyncio.get_running_loop().call_soon(self._dispatch)

    def _dispatch(self) -> None:
        """Begin a request to every broker that lanes wait for and that has none on its way."""
        self._dispatch_is_due = False
        session = self._session
        if session is None:
            return
        loads: dict[int | None, list[Lane]] = {}
        for lane in self._ready.values():
            leader = session.leader(lane.partition)
            if leader not in self._busy:
                loads.setdefault(leader, []).append(lane)
        for leader, lanes in loads.items():
            for lane in lanes:
                del self._ready[lane.partition]
            self._busy.add(leader)
            self._run(self._send(session, leader, self._busy, lanes), f"kafka-produce-{leader}")

    def _run(self, sending: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(sending, name=name)
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _send(
        self, session: Session, leader: int | None, busy: set[int | None], lanes: Sequence[Lane]
    ) -> None:
        """One request to a broker, and what follows from its answer."""
        try:
            loaded = [(lane, batch) for lane in lanes if (batch := lane.load(session.create_builder))]
            batches = [(lane.partition, batch.data) for lane, batch in loaded]
            errors = await session.append(leader, batches) if batches else {}
        except Exception:
            self._fail(lanes, LogUnavailable("The producer failed; some records may be in the log."))
            raise
        finally:
            busy.discard(leader)
        taken: list[Batch] = []
        again: list[Lane] = []
        for lane in lanes:
            batch, error = lane.batch, errors.get(lane.partition)
            if batch is None:
                self._end(lane)
            elif error is None:
                taken.append(batch)
                self._end(lane, batch.records, batch.size)
            elif self._is_sent_again(batch, error):
                again.append(lane)
            else:
                self._refused(lane, batch, error)
        if again:
            self._run(self._rest(session, again), "kafka-produce-rest")
        # The next request leaves before those who waited for this one go on: the broker works meanwhile.
        self._dispatch()
        for batch in taken:
            batch.acknowledge()

    def _is_sent_again(self, batch: Batch, error: KafkaError) -> bool:
        age = time.monotonic() - batch.started
        is_retriable: bool = error.retriable
        return is_retriable and age < self._settings.produce_timeout_seconds

    def _refused(self, lane: Lane, batch: Batch, error: KafkaError) -> None:
        """A batch is not in the log, or may not be, and is not sent again as it is."""
        records, size = batch.records, batch.size
        if not isinstance(error, _TOO_LARGE):
            batch.fail(self._failure(error))
        elif records == 1:
            batch.fail(RecordTooLarge(f"The log refuses a record of {size:,} bytes: {error}"))
        else:
            # The topic's limit was lowered after start: smaller batches rather than failed records.
            records, size = lane.split(batch)
        self._end(lane, records, size)

    def _end(self, lane: Lane, records: int = 0, size: int = 0) -> None:
        """A lane has no batch any more; of the one it had, nobody waits for so much."""
        lane.batch = None
        self._release(records, size)
        if lane.pending:
            self._make_ready(lane)
        else:
            lane.is_idle = True

    def _fail(self, lanes: Iterable[Lane], error: BrokerError) -> None:
        """Give up all that lanes hold."""
        for lane in lanes:
            for share in lane.pending:
                share.publish.fail(error)
            if lane.batch is not None:
                lane.batch.fail(error)
                self._end(lane, lane.batch.records, lane.batch.size)
            else:
                self._end(lane)

    async def _rest(self, session: Session, lanes: Sequence[Lane]) -> None:
        """Send the batches of lanes again after a while."""
        await asyncio.sleep(_RETRY_PAUSE)
        await session.refreshed()
        for lane in lanes:
            self._make_ready(lane)

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
        if not self._buffered_records:
            self._empty.set()

    def _give_up_session(self) -> None:
        """Go on without the session, and without whatever it has on its way."""
        session, self._session = self._session, None
        for task in self._sending:
            task.cancel()
        self._busy = set()
        lost = ProduceOutcomeUnknown("The connection to the log was given up; some records may be in it.")
        for lane in self._lanes.values():
            if lane.batch is not None:
                lane.batch.fail(lost)
                self._end(lane, lane.batch.records, lane.batch.size)
            elif not lane.is_idle:
                self._end(lane)
        if session is not None:
            closing = asyncio.create_task(session.close(), name="kafka-producer-close")
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def _open(self, *, check_limit: bool) -> None:
        session = Session(self._settings)
        try:
            await session.open(check_limit=check_limit)
        except BaseException:
            await session.close()
            raise
        self._session = session
        session.follow(self._cluster_changed)
        self._cluster_changed()

    def _cluster_changed(self) -> None:
        # While the cluster does not know the topic, the last known number keeps keys on their partitions.
        known = self._session.partitions() if self._session is not None else None
        if known is not None:
            self._partitions = known
        self._dispatch_soon()

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
        oldest = min((lane.batch.started for lane in self._lanes.values() if lane.batch), default=None)
        return oldest is not None and time.monotonic() - oldest > longest

    async def _replace(self) -> None:
        if self._session is not None:
            _log.warning("the Kafka producer is stuck; connecting anew")
            self._give_up_session()
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
