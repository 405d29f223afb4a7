"""Reading the Kafka topic without being a member of any group."""

from __future__ import annotations

from typing import Final

from aiokafka import TopicPartition
from aiokafka import errors as kafka_errors
from aiokafka.client import CoordinationType
from aiokafka.errors import KafkaError
from aiokafka.protocol.commit import OffsetFetchRequest

from broker.errors import LogUnavailable, OffsetOutOfRange
from broker.kafka.client import LogClient, connect, fetch_offsets, fetch_topic, retried, translated
from broker.kafka.fetch import Fetched, fetch
from broker.kafka.salvage import salvage
from broker.ports import PartitionOffsets, Poll, Record, UndecodableRecord
from broker.settings import KafkaSettings

_ANY_NUMBER: Final = 2**31
_OVERSIZED_FACTOR: Final = 16


class KafkaReader:
    """The reader port on Kafka. What a transaction has aborted is never seen, as for every reader of ours."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._client: LogClient | None = None
        self._leaders: dict[int, int] = {}

    async def start(self) -> None:
        """Connect. Raises LogUnavailable, LogMisconfigured."""
        self._client = await connect(self._settings, "reader")

    async def stop(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def offsets(self) -> dict[int, PartitionOffsets]:
        """Raises TopicMissing, LogUnavailable, LogMisconfigured."""
        client = self._connection()
        async with translated(self._settings, self._settings.request_timeout_seconds):
            return await retried(lambda: fetch_offsets(client, self._settings))

    async def committed(self) -> dict[int, int | None]:
        """Raises TopicMissing, LogUnavailable, LogMisconfigured."""
        async with translated(self._settings, self._settings.request_timeout_seconds):
            return await retried(self._committed)

    async def read(self, partition: int, offset: int, end: int) -> Poll:
        """See `broker.ports.LogReader.read`. Raises LogMisconfigured too."""
        async with translated(self._settings, self._settings.request_timeout_seconds):
            return await retried(lambda: self._read(partition, offset, end))

    async def _committed(self) -> dict[int, int | None]:
        client, group, topic = self._connection(), self._settings.group_id, self._settings.topic
        partitions = sorted(await fetch_topic(client, self._settings))
        coordinator = await client.coordinator_lookup(CoordinationType.GROUP, group)
        answer = await client.send(coordinator, OffsetFetchRequest(group, [(topic, partitions)]))
        found: dict[int, int | None] = dict.fromkeys(partitions)
        for _, parts in answer.topics:
            for partition, offset, _, error_code in parts:
                if error_code:
                    raise kafka_errors.for_code(error_code)(f"partition {partition}")
                found[partition] = offset if offset >= 0 else None
        return found

    async def _read(self, partition: int, offset: int, end: int) -> Poll:
        client, place = self._connection(), TopicPartition(self._settings.topic, partition)
        limit = self._settings.max_partition_fetch_bytes
        try:
            leader = await self._leader(client, partition)
            fetched = await fetch(client, leader, place, offset, limit)
            found, after = _read_all(fetched, partition, offset)
            if fetched.raw and after == offset:
                limit *= _OVERSIZED_FACTOR
                fetched = await fetch(client, leader, place, offset, limit)
                found, after = _read_all(fetched, partition, offset)
        except kafka_errors.OffsetOutOfRangeError as error:
            raise OffsetOutOfRange(partition, offset) from error
        except KafkaError:
            self._leaders.clear()
            raise
        if after == offset:
            if not fetched.raw:
                # There is something below the end; a broker that says nothing has not caught up itself.
                raise kafka_errors.RequestTimedOutError(f"partition {partition} at offset {offset}")
            sentence = f"the record is larger than {limit:,} bytes"
            found, after = [UndecodableRecord(partition, offset, offset + 1, sentence)], offset + 1
        return Poll([one for one in found if one.offset < end], {partition: min(after, end)})

    async def _leader(self, client: LogClient, partition: int) -> int:
        if not self._leaders:
            topic = await fetch_topic(client, self._settings)
            self._leaders = {number: leader for number, (leader, _) in topic.items()}
        leader = self._leaders.get(partition)
        if leader is None:
            raise kafka_errors.UnknownTopicOrPartitionError(f"partition {partition}")
        if leader < 0:
            raise kafka_errors.LeaderNotAvailableError(f"partition {partition}")
        return leader

    def _connection(self) -> LogClient:
        if self._client is None:
            raise LogUnavailable("The reader is not connected; start it first.")
        return self._client


def _read_all(fetched: Fetched, partition: int, offset: int) -> tuple[list[Record | UndecodableRecord], int]:
    return salvage(
        fetched.raw,
        partition=partition,
        position=offset,
        end=fetched.end,
        aborted=fetched.aborted,
        max_records=_ANY_NUMBER,
    )
