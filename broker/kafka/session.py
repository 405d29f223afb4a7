"""One connection of the producer to the cluster, which can be given up as a whole."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any, Final

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, ProducerClosed, UnknownTopicOrPartitionError
from aiokafka.structs import TopicPartition

from broker.errors import LogMisconfigured
from broker.kafka.client import adopt, connection_options, fetch_topic, retried, topic_batch_limit, translated
from broker.kafka.lane import BatchBuilder
from broker.settings import KafkaSettings

_log = logging.getLogger(__name__)

_LAST_CHANCE: Final = 2.0
"""Seconds for the tasks of a client that was cut off to notice."""


class SessionLost(Exception):
    """The session was given up while the batch was being sent."""


class Session:
    """A started aiokafka producer.

    Idempotence stays off: in this client a failed batch leaves a gap in the sequence that nothing closes, and
    a retry that lands twice is a duplicate that the store folds.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        options = connection_options(settings, "producer", request_timeout=settings.produce_timeout_seconds)
        self._producer = AIOKafkaProducer(
            **options,
            acks="all",
            enable_idempotence=False,
            linger_ms=0,
            compression_type=settings.compression,
            max_batch_size=settings.max_batch_bytes,
        )
        self._client = self._producer.client
        adopt(self._client, settings.topic)
        self._sending: set[asyncio.Task[Any]] = set()
        self._lost = asyncio.Event()

    async def open(self, *, check_limit: bool) -> None:
        """Connect, find the topic and compare its limit with ours; bounded in time.

        Raises LogUnavailable, TopicMissing, LogMisconfigured.
        """
        settings = self._settings
        async with translated(settings, settings.start_timeout_seconds):
            await self._producer.start()
            await retried(lambda: fetch_topic(self._client, settings))
            limit = await retried(lambda: topic_batch_limit(self._client, settings))
            while self.partitions() is None:
                await self._client.force_metadata_update()
        if check_limit and limit is not None and limit < settings.max_batch_bytes:
            raise LogMisconfigured(
                f"Topic {settings.topic!r} takes batches of {limit:,} bytes (max.message.bytes), but"
                f" max_batch_bytes is {settings.max_batch_bytes:,}; raise the first or lower the second."
            )

    def partitions(self) -> int | None:
        """Number of partitions, as last seen; None if the topic was not there."""
        known = self._client.cluster.partitions_for_topic(self._settings.topic)
        return len(known) if known else None

    def leader(self, partition: int) -> int | None:
        """The broker that leads the partition, as last seen; None if there is none."""
        leader: int | None = self._client.cluster.leader_for_partition(
            TopicPartition(self._settings.topic, partition)
        )
        return leader

    @property
    def failed(self) -> bool:
        """Whether the client's own task has died, after which it sends nothing any more."""
        task = self._producer._sender.sender_task
        return task is None or task.done()

    def create_batch(self) -> BatchBuilder:
        builder: BatchBuilder = self._producer.create_batch()
        return builder

    async def send(self, builder: BatchBuilder, partition: int) -> None:
        """Send a batch; returns when every in-sync replica has it.

        Raises:
            KafkaError: as aiokafka does, after its own retries.
            SessionLost: `close` was called meanwhile.
        """
        if self._lost.is_set():
            raise SessionLost
        task = asyncio.current_task()
        assert task is not None
        self._sending.add(task)
        try:
            await self._send(builder, partition)
        except asyncio.CancelledError:
            if self._lost.is_set() and not task.uncancel():
                raise SessionLost from None
            raise
        finally:
            self._sending.discard(task)

    async def _send(self, builder: BatchBuilder, partition: int) -> None:
        known = self._client.cluster.partitions_for_topic(self._settings.topic)
        if known is not None and partition not in known:
            raise UnknownTopicOrPartitionError(f"partition {partition}")
        future = await self._producer.send_batch(builder, self._settings.topic, partition=partition)
        # Nobody waits for a batch whose session was given up; its failure is no news then.
        future.add_done_callback(_look)
        await future

    async def close(self, timeout: float) -> None:
        """Finish what is in flight for up to `timeout` seconds, then cut it off. Bounded in time."""
        stopping = asyncio.create_task(self._producer.stop(), name="kafka-producer-stop")
        if timeout > 0:
            await asyncio.wait({stopping}, timeout=timeout)
        self._lost.set()
        for task in self._sending:
            # As `asyncio.timeout` does it; a task made for each batch would cost more than the batch.
            task.cancel()
        self._sending.clear()
        if not stopping.done():
            await self._cut_off(stopping)
        if stopping.done() and not stopping.cancelled() and stopping.exception() is not None:
            _log.info("closing the producer: %r", stopping.exception())

    async def _cut_off(self, stopping: asyncio.Task[None]) -> None:
        """Release every task of the client, of which `stop` would wait for the answers of brokers."""
        self._producer._message_accumulator.fail_all(ProducerClosed())
        task = self._producer._sender.sender_task
        if task is not None:
            task.cancel()
        with contextlib.suppress(TimeoutError, KafkaError):
            async with asyncio.timeout(_LAST_CHANCE):
                await self._client.close()
        # Requests that failed just now wait for metadata, which nobody fetches any more.
        waiting = self._client._md_update_fut
        if waiting is not None and not waiting.done():
            waiting.set_result(False)
        await asyncio.wait({stopping}, timeout=_LAST_CHANCE)
        stopping.cancel()
        await asyncio.wait({stopping})


def _look(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()
