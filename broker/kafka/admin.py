"""Describing and creating the Kafka topic."""

from __future__ import annotations

from typing import Final

from aiokafka import errors as kafka_errors
from aiokafka.protocol.admin import CreateTopicsRequest

from broker.errors import LogMisconfigured, LogUnavailable
from broker.kafka.client import (
    LogClient,
    connect,
    fetch_offsets,
    fetch_topic,
    fetch_topic_settings,
    milliseconds,
    retried,
    send_any,
    translated,
)
from broker.ports import LogDescription, PartitionOffsets
from broker.settings import KafkaSettings

_MAX_MESSAGE_BYTES: Final = 1_048_588
"""Kafka's own default; the producer's limit leaves room below it."""
_DURABLE_REPLICAS: Final = 3
"""From this many replicas on, an acknowledgement means two of them have the record."""
_DESCRIBED: Final = (
    "cleanup.policy",
    "max.message.bytes",
    "message.timestamp.type",
    "min.insync.replicas",
    "retention.bytes",
    "retention.ms",
)


class KafkaAdmin:
    """The admin port on Kafka. Never creates a topic except by `create`."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._client: LogClient | None = None

    async def start(self) -> None:
        """Connect. Raises LogUnavailable, LogMisconfigured."""
        self._client = await connect(self._settings, "admin")

    async def stop(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def describe(self) -> LogDescription:
        """Raises TopicMissing, LogUnavailable, LogMisconfigured."""
        client, topic = self._connection(), self._settings.topic
        async with translated(self._settings, self._settings.request_timeout_seconds):
            partitions = await retried(lambda: fetch_topic(client, self._settings))
            settings = await retried(lambda: fetch_topic_settings(client, topic, _DESCRIBED))
        return LogDescription(
            topic=topic,
            partitions=len(partitions),
            replication_factor=min(len(replicas) for _, replicas in partitions.values()),
            settings=settings,
        )

    async def create(self, partitions: int, replication_factor: int) -> bool:
        """Create the topic with the settings we depend on; False if it exists already, whatever its settings.

        Raises LogUnavailable, LogMisconfigured.
        """
        client, topic = self._connection(), self._settings.topic
        configuration = topic_configuration(self._settings, replication_factor)
        timeout = self._settings.request_timeout_seconds
        request = CreateTopicsRequest(
            [(topic, partitions, replication_factor, [], list(configuration.items()))],
            milliseconds(timeout),
            False,
        )
        async with translated(self._settings, timeout):
            answer = await retried(lambda: send_any(client, request, controller=True))
            _, error_code, *rest = answer.topic_errors[0]
            error = kafka_errors.for_code(error_code)
            if error is kafka_errors.TopicAlreadyExistsError:
                return False
            if error_code:
                said = f"{error.__name__}: {rest[0] if rest and rest[0] else 'no reason given'}"
                if error.retriable:
                    raise LogUnavailable(f"Kafka could not create topic {topic!r} ({said}).")
                raise LogMisconfigured(f"Kafka refuses to create topic {topic!r} ({said}).")
            await _wait_for_leaders(client, self._settings, partitions)
        return True

    async def offsets(self) -> dict[int, PartitionOffsets]:
        """Raises TopicMissing, LogUnavailable, LogMisconfigured."""
        client = self._connection()
        async with translated(self._settings, self._settings.request_timeout_seconds):
            return await retried(lambda: fetch_offsets(client, self._settings))

    def _connection(self) -> LogClient:
        if self._client is None:
            raise LogUnavailable("The admin is not connected; start it first.")
        return self._client


def topic_configuration(settings: KafkaSettings, replication_factor: int) -> dict[str, str]:
    """Settings of a topic made by us; what is not here is the cluster's to decide (retention above all)."""
    configuration = {
        "cleanup.policy": "delete",
        "max.message.bytes": str(max(_MAX_MESSAGE_BYTES, settings.max_batch_bytes)),
        # Producers may set any timestamp, and with `CreateTime` the brokers would refuse those far from their
        # own clock, and expire records by it: one wrong clock would delete what nobody has read.
        "message.timestamp.type": "LogAppendTime",
        # A replica that lacks acknowledged records must never lead.
        "unclean.leader.election.enable": "false",
    }
    if replication_factor >= _DURABLE_REPLICAS:
        configuration["min.insync.replicas"] = "2"
    return configuration


async def _wait_for_leaders(client: LogClient, settings: KafkaSettings, partitions: int) -> None:
    """A topic is created before the brokers know it; return when it can be used."""

    async def ready() -> None:
        try:
            found = await fetch_topic(client, settings)
        except kafka_errors.UnknownTopicOrPartitionError:
            raise kafka_errors.LeaderNotAvailableError(settings.topic) from None
        if len(found) < partitions or any(leader < 0 for leader, _ in found.values()):
            raise kafka_errors.LeaderNotAvailableError(settings.topic)

    await retried(ready)
