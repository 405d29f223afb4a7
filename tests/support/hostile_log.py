"""A Kafka topic into which everything was written that nobody should write, by clients that are not ours.

Every odd record lies between two good ones. The topic keeps the producers' timestamps, and what a broker
refuses to take (a wrong checksum, an unknown codec) was changed on its disk.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from confluent_kafka import Consumer as ConfluentConsumer
from confluent_kafka import KafkaError, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from broker.settings import KafkaSettings
from tests.support.hostile import REFUSED, accepted, encode, event
from tests.support.kafka import kafka_settings
from tests.support.kafka_process import KafkaBroker
from tests.support.kafka_raw import batch, produce_raw, sealed, with_broken_checksum, with_codec

PARTITIONS: Final = 2
DEADLINE: Final = 40.0
GOOD_TOPIC: Final = "neighbours"
ODD_TOPIC: Final = "odd"
ABORTED_TOPIC: Final = "aborted"
_SETTINGS: Final = {
    "message.timestamp.type": "CreateTime",
    # Else the broker refuses timestamps that are far from its own clock.
    "message.timestamp.before.max.ms": str(2**63 - 1),
    "message.timestamp.after.max.ms": str(2**63 - 1),
    "retention.ms": "-1",
}
_UNKNOWN_CODEC: Final = 6

Headers = Sequence[tuple[str, bytes | None]]


@dataclass(frozen=True)
class Written:
    """A record, and what has to become of it.

    Attributes:
        reason: of its dead letter; None if it has to be stored.
    """

    partition: int
    offset: int
    value: bytes | None
    key: bytes | None = None
    headers: Headers = ()
    timestamp: int | None = None
    reason: str | None = None


@dataclass
class HostileLog:
    """The topic, and what was written into it.

    Attributes:
        odd: the records that matter, by name.
        good: their neighbours.
        ends: the end of every partition.
    """

    settings: KafkaSettings
    odd: dict[str, Written] = field(default_factory=dict)
    good: list[Written] = field(default_factory=list)
    ends: dict[int, int] = field(default_factory=dict)

    @property
    def everything(self) -> list[Written]:
        """All records that have to get a verdict."""
        return [*self.odd.values(), *self.good]


def odd_records() -> dict[str, dict[str, Any]]:
    """Records any client can write: `key`, `value`, `headers`, `timestamp`, `codec`, and the `reason`."""
    good = _identities(ODD_TOPIC)
    records: dict[str, dict[str, Any]] = {
        name: {"value": refused.raw, "reason": refused.reason} for name, refused in REFUSED.items()
    }
    records |= {
        "tombstone": {"value": None, "key": b"shop.orders\0order-1", "reason": "tombstone"},
        "tombstone with nothing at all": {"value": None, "reason": "tombstone"},
        "largest record a producer sends": {"value": b"{" + b" " * 999_000, "reason": "too_large"},
        "dead letter of the year 2^62": {"value": b"", "timestamp": 2**62, "reason": "invalid_json"},
        "dead letter without a time": {"value": b"", "timestamp": -1, "reason": "invalid_json"},
        "dead letter with odd headers": {
            "value": b"{",
            "key": b"\xff\0",
            "headers": [("a", b"\xff\0"), ("", None), ("a", b""), ("naïve ☃", b"1"), ("replay_of", b"-1")],
            "reason": "invalid_json",
        },
    }
    for name, raw in accepted(ODD_TOPIC).items():
        # Each with an identity of its own: they are all written to one log.
        records[name] = {"value": raw.replace(b'"order-1"', encode(name))}
    records |= {
        "timestamp -1": {"value": good(), "timestamp": -1},
        "timestamp 2^62": {"value": good(), "timestamp": 2**62},
        "timestamp 0": {"value": good(), "timestamp": 1},
        "no key": {"value": good(), "key": None},
        "empty key": {"value": good(), "key": b""},
        "binary key": {"value": good(), "key": bytes(range(256))},
        "key of 100 KB": {"value": good(), "key": b"\xff" * 100_000},
        "repeated headers": {"value": good(), "headers": [("a", b"1"), ("a", None), ("a", b"1")]},
        "100 KB of headers": {"value": good(), "headers": [(f"h{n}", b"x" * 100) for n in range(1_000)]},
        "header values that are no text": {"value": good(), "headers": [("traceparent", b"\xff\xfe")]},
        "unreadable received_at": {"value": good(), "headers": [("received_at", b"\xff")]},
        "received_at of the year 10000": {
            "value": good(),
            "headers": [("received_at", b"10000-01-01T00:00:00Z")],
        },
        "replay_of without end": {"value": good(), "headers": [("replay_of", b"9" * 1_000)]},
        **{codec: {"value": good(), "codec": codec} for codec in ("gzip", "snappy", "lz4", "zstd")},
    }
    return records


NUL_IN_HEADER_KEY: Final = "NUL in a header key"
"""A dead letter; librdkafka would cut the key."""
UNREADABLE: Final = ("bad header key", "unknown codec", "broken checksum")


def write_hostile_log(broker: KafkaBroker) -> HostileLog:
    """Write all of it. The broker is stopped and started once. Call it from the thread that ends last."""
    log = HostileLog(kafka_settings(broker.address, topic=f"hostile-{broker.address.rpartition(':')[2]}"))
    topic = log.settings.topic
    admin = AdminClient({"bootstrap.servers": broker.address})
    admin.create_topics([NewTopic(topic, PARTITIONS, 1, config=_SETTINGS)], operation_timeout=20)[
        topic
    ].result(DEADLINE)
    writer = _Writer(log, broker.address)
    for name, record in odd_records().items():
        writer.between_good_ones(name, record)
    writer.transactions()
    for name in (NUL_IN_HEADER_KEY, *UNREADABLE):
        writer.good_one()
        writer.flush()
        asyncio.run(writer.crafted(name))
        writer.good_one()
    writer.flush()
    log.ends = writer.ends()
    broker.stop()
    for name, spoil in (
        ("broken checksum", with_broken_checksum),
        ("unknown codec", lambda raw: with_codec(raw, _UNKNOWN_CODEC)),
    ):
        _spoil(broker.directory / "data" / f"{topic}-{log.odd[name].partition}", log.odd[name].offset, spoil)
    broker.start()
    return log


class _Writer:
    def __init__(self, log: HostileLog, bootstrap: str) -> None:
        self._log = log
        self._bootstrap = bootstrap
        self._topic = log.settings.topic
        self._turn = 0
        self._next_good = _identities(GOOD_TOPIC)
        # One codec per client: the format allows others from batch to batch.
        self._producers: dict[str, Producer] = {}

    def between_good_ones(self, name: str, record: Mapping[str, Any]) -> None:
        self._turn += 1
        self.good_one()
        self._produce(record, lambda written: self._log.odd.__setitem__(name, written))
        self.good_one()

    def good_one(self) -> None:
        self._produce({"value": self._next_good()}, self._log.good.append)

    def _produce(self, record: Mapping[str, Any], note: Callable[[Written], object]) -> None:
        partition = self._turn % PARTITIONS
        key, value, headers = record.get("key"), record["value"], record.get("headers", ())
        timestamp = record.get("timestamp")

        def delivered(error: KafkaError | None, message: Message) -> None:
            assert error is None, error
            offset = message.offset()
            assert offset is not None
            note(Written(partition, offset, value, key, headers, timestamp, record.get("reason")))

        options = {} if timestamp is None else {"timestamp": timestamp}
        producer = self._producer(record.get("codec", "none"))
        producer.produce(
            self._topic, value, key, partition, on_delivery=delivered, headers=list(headers), **options
        )
        if "codec" in record or timestamp is not None:
            # A batch of its own.
            self.flush()

    def _producer(self, codec: str) -> Producer:
        if codec not in self._producers:
            self.flush()
            self._producers[codec] = Producer(
                {
                    "bootstrap.servers": self._bootstrap,
                    "acks": "all",
                    "enable.idempotence": True,
                    "compression.type": codec,
                    "linger.ms": 2,
                }
            )
        return self._producers[codec]

    def flush(self) -> None:
        for producer in self._producers.values():
            assert producer.flush(DEADLINE) == 0

    def transactions(self) -> None:
        """Aborted ones, of good records and of poison, around one that is committed."""
        self.flush()
        producer = Producer({"bootstrap.servers": self._bootstrap, "transactional.id": self._topic})
        producer.init_transactions(DEADLINE)
        aborted = _identities(ABORTED_TOPIC)
        for committed in (False, True, False):
            producer.begin_transaction()
            for partition in range(PARTITIONS):
                if committed:
                    value = self._next_good()
                    producer.produce(
                        self._topic, value, partition=partition, on_delivery=self._delivered_good(value)
                    )
                else:
                    for useless in (aborted(), b"{", None):
                        producer.produce(self._topic, useless, b"aborted", partition)
            producer.flush(DEADLINE)
            (producer.commit_transaction if committed else producer.abort_transaction)(DEADLINE)

    def _delivered_good(self, value: bytes) -> Callable[[KafkaError | None, Message], None]:
        def delivered(error: KafkaError | None, message: Message) -> None:
            assert error is None, error
            partition, offset = message.partition(), message.offset()
            assert partition is not None
            assert offset is not None
            self._log.good.append(Written(partition, offset, value))

        return delivered

    async def crafted(self, name: str) -> None:
        """A batch with the record in question, as far as a broker takes it."""
        partition = self._turn % PARTITIONS
        offset = self.ends()[partition]
        written = Written(partition, offset, None, reason="undecodable_record")
        if name == "bad header key":
            first, last = self._next_good(), self._next_good()
            raw = batch([self._next_good(), first, last], headers=[("OKEY", b"1")])
            raw = sealed(raw.replace(b"OKEY", b"\xff\xfe\xff\xfe", 1))
            self._log.good += [Written(partition, offset + 1 + n, v) for n, v in enumerate((first, last))]
        elif name == NUL_IN_HEADER_KEY:
            written = Written(partition, offset, b"{", b"key", [("a\0b", b"1")], reason="invalid_json")
            raw = batch([written.value], key=written.key, headers=written.headers)
        else:
            raw = batch([self._next_good()])
        assert await produce_raw(self._log.settings, partition, raw) == 0
        self._log.odd[name] = written

    def ends(self) -> dict[int, int]:
        consumer = ConfluentConsumer({"bootstrap.servers": self._bootstrap, "group.id": "ends"})
        try:
            return {
                number: consumer.get_watermark_offsets(TopicPartition(self._topic, number), DEADLINE)[1]
                for number in range(PARTITIONS)
            }
        finally:
            consumer.close()


def _identities(topic: str) -> Callable[[], bytes]:
    """Makes good events, every one with another id."""
    made = 0

    def make() -> bytes:
        nonlocal made
        made += 1
        return encode(event(topic=topic, event_id=f"{topic}-{made}", payload={"n": made}))

    return make


def event_id_of(value: bytes) -> str:
    """The id in an event's bytes."""
    found: str = json.loads(value)["event_id"]
    return found


def _spoil(directory: Path, offset: int, change: Callable[[bytes], bytes]) -> None:
    """Change the batch that begins with this offset where the broker keeps it."""
    (segment,) = directory.glob("*.log")
    stored = segment.read_bytes()
    start = 0
    while start + 12 <= len(stored):
        base, length = struct.unpack_from(">qi", stored, start)
        stop = start + 12 + length
        if base == offset:
            segment.write_bytes(stored[:start] + change(stored[start:stop]) + stored[stop:])
            return
        start = stop
    raise AssertionError(f"no batch begins with offset {offset} in {segment}")
