"""One membership in the consumer group: an aiokafka consumer that can be given up as a whole."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka import errors as kafka_errors
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError

from broker.errors import LogMisconfigured
from broker.kafka.client import (
    adopt,
    connection_options,
    fetch_topic,
    milliseconds,
    retried,
    topic_batch_limit,
    translated,
)
from broker.kafka.fetch import fetch
from broker.kafka.salvage import salvage
from broker.ports import Record, UndecodableRecord
from broker.settings import KafkaSettings

_log = logging.getLogger(__name__)

_LAST_CHANCE: Final = 2.0
_OVERSIZED_FACTOR: Final = 16
_WORTH_FETCHING_BYTES: Final = 16 * 1024
_FETCH_WAIT_MS: Final = 50
"""A broker answers a fetch once there is so much, or after so long with whatever there is: records that
trickle in would else be fetched, and stored, one by one."""

OnChange = Callable[[frozenset[int]], Awaitable[None]]


class Membership:
    """A started aiokafka consumer, which reads what it is told to and commits what it is told to.

    Reading goes through one partition at a time: a fetch over several would drop what it has taken from the
    others, their positions moved on, when one of them cannot be decoded.
    """

    def __init__(self, settings: KafkaSettings, on_revoked: OnChange, on_assigned: OnChange) -> None:
        self._settings = settings
        self._topic = settings.topic
        options = connection_options(settings, "consumer", request_timeout=settings.request_timeout_seconds)
        self._consumer = AIOKafkaConsumer(
            **options,
            group_id=settings.group_id,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            session_timeout_ms=milliseconds(settings.session_timeout_seconds),
            rebalance_timeout_ms=milliseconds(settings.rebalance_timeout_seconds),
            heartbeat_interval_ms=milliseconds(settings.heartbeat_interval_seconds),
            max_poll_interval_ms=milliseconds(settings.max_poll_interval_seconds),
            fetch_min_bytes=_WORTH_FETCHING_BYTES,
            fetch_max_wait_ms=_FETCH_WAIT_MS,
            fetch_max_bytes=settings.max_fetch_bytes,
            max_partition_fetch_bytes=settings.max_partition_fetch_bytes,
        )
        self._client: AIOKafkaClient = self._consumer._client
        adopt(self._client, settings.topic)
        self._listener = _Listener(self._consumer, on_revoked, on_assigned)

    async def open(self) -> None:
        """Connect, find the topic, and start joining the group; bounded in time.

        Raises LogUnavailable, TopicMissing, LogMisconfigured.
        """
        settings = self._settings
        async with translated(settings, settings.start_timeout_seconds):
            await self._consumer.start()
            await retried(lambda: fetch_topic(self._client, settings))
            limit = await retried(lambda: topic_batch_limit(self._client, settings))
        if limit is not None and limit > settings.max_partition_fetch_bytes:
            raise LogMisconfigured(
                f"Topic {settings.topic!r} takes batches of {limit:,} bytes (max.message.bytes), more than"
                f" max_partition_fetch_bytes ({settings.max_partition_fetch_bytes:,}); raise the second."
            )
        self._consumer.subscribe([self._topic], listener=self._listener)

    @property
    def client(self) -> Any:
        return self._client

    @property
    def joining(self) -> bool:
        """Whether the group is being rebalanced: reading would wait for its end, however long that takes."""
        return bool(self._consumer._subscription.reassignment_in_progress)

    @property
    def failed(self) -> bool:
        """Whether a task that fetches or keeps the membership has died; nothing says so otherwise."""
        coordination = self._consumer._coordinator._coordination_task
        return bool(self._consumer._fetcher._fetch_task.done() or coordination.done())

    @property
    def topic_known(self) -> bool:
        return self._client.cluster.partitions_for_topic(self._topic) is not None

    def last_answer(self, partitions: Iterable[int]) -> int:
        """When a broker last answered a fetch for one of them; milliseconds, 0 for never."""
        states = [self._state(partition) for partition in partitions]
        return max((state.timestamp or 0 for state in states if state is not None), default=0)

    def touch(self) -> None:
        """Tell the client that its user is alive, also where there is nothing to read."""
        subscription = self._consumer._subscription
        # An exception in a fetch leaves the client believing that the fetch goes on for ever.
        subscription._fetch_count = 0
        with subscription.fetch_context():
            pass

    def seek(self, partition: int, offset: int) -> bool:
        """Read on from `offset`; False if the partition is not ours any more."""
        place = TopicPartition(self._topic, partition)
        if self._state(partition) is None:
            return False
        self._consumer.seek(place, offset)
        self._consumer.resume(place)
        return True

    def position(self, partition: int) -> int | None:
        state = self._state(partition)
        return state.position if state is not None and state.has_valid_position else None

    async def take(self, partition: int, max_records: int) -> list[Record]:
        """Records that have been fetched already. Does not wait unless `joining`. Raises anything."""
        place = TopicPartition(self._topic, partition)
        fetched = self._consumer._fetcher._records.get(place)
        decoder = getattr(fetched, "_partition_records", None)
        if decoder is not None:
            # The client's own record type costs more than all the rest of reading.
            decoder._consumer_record = _record
        found = await self._consumer.getmany(place, timeout_ms=0, max_records=max_records)
        records: list[Record] = found.get(place, [])
        return records

    async def wait(self, partitions: Iterable[int], timeout: float) -> None:
        """Return when something was fetched, or after `timeout` seconds. Raises KafkaError."""
        fetcher = self._consumer._fetcher
        if any(TopicPartition(self._topic, partition) in fetcher._records for partition in partitions):
            # Arrived since it was last looked for; the loop must turn for the client's sake.
            await asyncio.sleep(0)
            return
        waiter = fetcher._create_fetch_waiter()
        await asyncio.wait({waiter}, timeout=timeout)
        if waiter.done():
            waiter.result()
        else:
            waiter.cancel()

    async def salvage(
        self, partition: int, position: int, max_records: int
    ) -> tuple[list[Record | UndecodableRecord], int]:
        """Fetch and decode without the client's decoder; see `broker.kafka.salvage`. Raises KafkaError."""
        place = TopicPartition(self._topic, partition)
        leader = self._client.cluster.leader_for_partition(place)
        if leader is None or leader < 0:
            raise kafka_errors.LeaderNotAvailableError(f"partition {partition}")
        limit = self._settings.max_partition_fetch_bytes * _OVERSIZED_FACTOR
        fetched = await fetch(self._client, leader, place, position, limit)
        found, after = salvage(
            fetched.raw,
            partition=partition,
            position=position,
            end=fetched.end,
            aborted=fetched.aborted,
            max_records=max_records,
        )
        if fetched.raw and after == position:
            error = f"the record is larger than {limit:,} bytes"
            return [UndecodableRecord(partition, position, position + 1, error)], position + 1
        return found, after

    async def commit(self, offsets: dict[int, int]) -> None:
        """Raises KafkaError."""
        await self._consumer.commit({TopicPartition(self._topic, p): offset for p, offset in offsets.items()})

    async def committed(self, partitions: Iterable[int]) -> dict[int, int | None]:
        """Raises KafkaError."""
        return {
            partition: await self._consumer.committed(TopicPartition(self._topic, partition))
            for partition in partitions
        }

    async def close(self, timeout: float) -> None:
        """Leave the group; cut off after `timeout` seconds. The callbacks are not called any more."""
        self._listener.closed = True
        stopping = asyncio.create_task(self._consumer.stop(), name="kafka-consumer-stop")
        if timeout > 0:
            await asyncio.wait({stopping}, timeout=timeout)
        if not stopping.done():
            await self._cut_off(stopping)
        if not stopping.cancelled() and stopping.exception() is not None:
            _log.info("closing the consumer: %r", stopping.exception())

    async def _cut_off(self, stopping: asyncio.Task[None]) -> None:
        """End every task of the client, of which `stop` would wait for the answers of brokers."""
        coordinator, fetcher = self._consumer._coordinator, self._consumer._fetcher
        tasks: set[asyncio.Task[Any] | None] = set()
        if coordinator is not None:
            tasks |= {
                coordinator._coordination_task,
                coordinator._heartbeat_task,
                coordinator._commit_refresh_task,
            }
        if fetcher is not None:
            tasks |= {fetcher._fetch_task, *fetcher._pending_tasks}
        running = {task for task in tasks if task is not None and not task.done()}
        for task in running:
            task.cancel()
        with contextlib.suppress(TimeoutError, KafkaError):
            async with asyncio.timeout(_LAST_CHANCE):
                await self._client.close()
        waiting = self._client._md_update_fut
        if waiting is not None and not waiting.done():
            waiting.set_result(False)
        await asyncio.wait({stopping, *running}, timeout=_LAST_CHANCE)
        stopping.cancel()
        await asyncio.wait({stopping})
        with contextlib.suppress(TimeoutError, KafkaError):
            async with asyncio.timeout(_LAST_CHANCE):
                await self._client.close()

    def _state(self, partition: int) -> Any:
        """The client's state of a partition, None if it is not assigned."""
        subscription = self._consumer._subscription.subscription
        if subscription is None or subscription.assignment is None:
            return None
        return subscription.assignment.state_value(TopicPartition(self._topic, partition))


def _record(place: TopicPartition, record: Any) -> Record:
    timestamp = record.timestamp
    return Record(
        partition=place.partition,
        offset=record.offset,
        timestamp_ms=-1 if timestamp is None else timestamp,
        key=record.key,
        value=record.value,
        headers=tuple(record.headers),
    )


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    def __init__(self, consumer: AIOKafkaConsumer, on_revoked: OnChange, on_assigned: OnChange) -> None:
        self._consumer = consumer
        self._on_revoked = on_revoked
        self._on_assigned = on_assigned
        self.closed = False

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        if not self.closed:
            await self._on_revoked(frozenset(place.partition for place in revoked))

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        if not self.closed:
            # Not before somebody has said from where: the client would start at the group's offset.
            self._consumer.pause(*assigned)
            await self._on_assigned(frozenset(place.partition for place in assigned))
