"""One connection of the producer to the cluster, which can be given up as a whole."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from aiokafka import errors as kafka_errors
from aiokafka.errors import KafkaError
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from aiokafka.structs import TopicPartition

from broker.errors import LogMisconfigured
from broker.kafka.client import (
    LogClient,
    connection_options,
    describe,
    fetch_topic,
    milliseconds,
    retried,
    topic_batch_limit,
    translated,
)
from broker.kafka.lane import BatchBuilder
from broker.settings import KafkaSettings

_log = logging.getLogger(__name__)

_ALL_IN_SYNC: Final = -1
_CODECS: Final = {
    None: DefaultRecordBatch.CODEC_NONE,
    "gzip": DefaultRecordBatch.CODEC_GZIP,
    "snappy": DefaultRecordBatch.CODEC_SNAPPY,
    "lz4": DefaultRecordBatch.CODEC_LZ4,
    "zstd": DefaultRecordBatch.CODEC_ZSTD,
}
_NO_ERROR: Final = 0
_UNKNOWN_ERROR: Final = -1
_LAST_CHANCE: Final = 2.0
"""Seconds for the tasks of a client that was cut off to notice."""


class Session:
    """A connected client that appends batches with `acks=all`.

    The producer of aiokafka makes several futures and wakes two tasks for every batch; here a request is one
    call. Batches carry no sequence numbers: a retry that lands twice is a duplicate that the store folds.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._timeout_ms = milliseconds(settings.produce_timeout_seconds)
        options = connection_options(settings, "producer", request_timeout=settings.produce_timeout_seconds)
        self._client = LogClient(**options)
        self._in_trouble = False

    def follow(self, changed: Callable[[], None]) -> None:
        """Call a function whenever partitions or their leaders may be others than before."""
        self._client.cluster.add_listener(lambda _: changed())

    async def open(self, *, check_limit: bool) -> None:
        """Connect, find the topic and compare its limit with ours; bounded in time.

        Raises LogUnavailable, TopicMissing, LogMisconfigured.
        """
        settings = self._settings
        async with translated(settings, settings.start_timeout_seconds):
            await self._client.bootstrap()
            self._client.set_topics([settings.topic])
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
        return leader if leader != -1 else None

    @property
    def failed(self) -> bool:
        """Whether the client's own task has died, after which it never learns of another leader."""
        task = self._client._sync_task
        return task is None or task.done()

    def create_builder(self) -> BatchBuilder:
        builder: BatchBuilder = DefaultRecordBatchBuilder(
            magic=2,
            compression_type=_CODECS[self._settings.compression],
            is_transactional=0,
            producer_id=-1,
            producer_epoch=-1,
            base_sequence=-1,
            batch_size=self._settings.max_batch_bytes,
        )
        return builder

    async def append(self, leader: int | None, batches: Sequence[tuple[int, Any]]) -> dict[int, KafkaError]:
        """Send batches to the broker that leads their partitions; at most one for each partition.

        Returns once it has answered for all of them, or there is none to come: those that are not in the
        result are with every in-sync replica. A new leader is looked for where an error says so; see
        `refreshed`.

        Returns:
            Why partitions did not take their batch, or may not have taken it.
        """
        try:
            if leader is None:
                raise kafka_errors.LeaderNotAvailableError("no leader is known")
            request = ProduceRequest(
                None, _ALL_IN_SYNC, self._timeout_ms, [(self._settings.topic, list(batches))]
            )
            response = await self._client.send(leader, request)
        except KafkaError as error:
            errors = {partition: error for partition, _ in batches}
        else:
            codes = {partition: code for _, answers in response.topics for partition, code, *_ in answers}
            errors = {
                partition: kafka_errors.for_code(code)(f"partition {partition}")
                for partition, _ in batches
                if (code := codes.get(partition, _UNKNOWN_ERROR)) != _NO_ERROR
            }
        self._tell(leader, errors)
        if any(error.invalid_metadata for error in errors.values()):
            self._client.force_metadata_update()
        return errors

    def _tell(self, leader: int | None, errors: Mapping[int, KafkaError]) -> None:
        """Log the first trouble, and its end."""
        if errors and not self._in_trouble:
            some = describe(next(iter(errors.values())))
            _log.warning("broker %s did not take every batch (%s)", leader, some)
        elif self._in_trouble and not errors:
            _log.info("broker %s took every batch", leader)
        self._in_trouble = bool(errors)

    async def refreshed(self) -> None:
        """Return once no new leader is being looked for."""
        await self._client._maybe_wait_metadata()

    async def close(self) -> None:
        """Disconnect. Bounded in time."""
        with contextlib.suppress(TimeoutError, KafkaError):
            async with asyncio.timeout(_LAST_CHANCE):
                await self._client.close()
        # Whoever waits for metadata waits for somebody who does not fetch it any more.
        waiting = self._client._md_update_fut
        if waiting is not None and not waiting.done():
            waiting.set_result(False)
