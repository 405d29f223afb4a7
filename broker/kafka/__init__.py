"""The log on a Kafka cluster. Nothing outside this package imports aiokafka."""

from __future__ import annotations

from broker.kafka.admin import KafkaAdmin
from broker.kafka.consumer import KafkaConsumer
from broker.kafka.producer import KafkaProducer
from broker.kafka.reader import KafkaReader
from broker.ports import RebalanceListener
from broker.settings import KafkaSettings

__all__ = ["KafkaLog"]


class KafkaLog:
    """The log topic of a Kafka cluster (`broker.ports.Log`)."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings

    @property
    def topic(self) -> str:
        return self._settings.topic

    def producer(self) -> KafkaProducer:
        return KafkaProducer(self._settings)

    def consumer(self, listener: RebalanceListener) -> KafkaConsumer:
        return KafkaConsumer(self._settings, listener)

    def admin(self) -> KafkaAdmin:
        return KafkaAdmin(self._settings)

    def reader(self) -> KafkaReader:
        return KafkaReader(self._settings)
