"""What is particular to Kafka: transactions, unreadable bytes, topics, sizes."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from broker.errors import LogFull, LogMisconfigured, LogUnavailable, RecordTooLarge, TopicMissing
from broker.kafka import KafkaLog
from broker.ports import NewRecord, Record, UndecodableRecord
from broker.settings import KafkaSettings
from tests.contract.log_reader import Listener, key_in, publish
from tests.support.kafka import kafka_log, kafka_settings
from tests.support.kafka_process import free_ports
from tests.support.kafka_raw import batch, produce_raw, sealed
from tests.support.skips import unavailable

pytestmark = pytest.mark.kafka

DEADLINE = 40.0


@pytest.fixture
def confluent(kafka_bootstrap: str) -> Any:
    try:
        import confluent_kafka
        import confluent_kafka.admin
    except ImportError:
        unavailable("confluent-kafka", "The package confluent-kafka is not installed.")
    return confluent_kafka


class Drained:
    """Reads partitions of a log from their beginning up to the end they have now."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.unreadable: list[UndecodableRecord] = []
        self.positions: dict[int, int] = {}

    def values(self, partition: int = 0) -> list[bytes | None]:
        return [record.value for record in self.records if record.partition == partition]


async def drain(log: KafkaLog, partitions: int = 1, *, max_records: int = 100) -> Drained:
    consumer = log.consumer(Listener())
    drained = Drained()
    await consumer.start()
    try:
        async with asyncio.timeout(DEADLINE):
            while len(consumer.assignment()) < partitions:
                await consumer.poll(max_records, 0.1)
            for partition in consumer.assignment():
                consumer.seek(partition, 0)
            ends = {p: held.end for p, held in (await consumer.offsets(range(partitions))).items()}
            drained.positions = dict.fromkeys(ends, 0)
            while drained.positions != ends:
                poll = await consumer.poll(max_records, 0.2)
                assert len(poll.records) <= max_records
                for record in poll.records:
                    known = drained.records if isinstance(record, Record) else drained.unreadable
                    known.append(record)  # type: ignore[arg-type]
                drained.positions |= poll.next_offsets
    finally:
        await consumer.stop()
    return drained


def settings_of(log: KafkaLog) -> KafkaSettings:
    return log._settings


async def test_aborted_records_are_never_seen_and_positions_move_past_them(
    kafka_bootstrap: str, confluent: Any
) -> None:
    async with kafka_log(kafka_bootstrap, partitions=1) as log:
        producer = confluent.Producer(
            {"bootstrap.servers": kafka_bootstrap, "transactional.id": log.topic, "linger.ms": 0}
        )

        def transactions() -> None:
            producer.init_transactions(DEADLINE)
            for name, commit in (("a", True), ("b", False), ("c", True), ("d", False)):
                producer.begin_transaction()
                for number in range(3):
                    producer.produce(log.topic, f"{name}{number}", partition=0)
                producer.flush(DEADLINE)
                (producer.commit_transaction if commit else producer.abort_transaction)(DEADLINE)

        await asyncio.to_thread(transactions)
        drained = await drain(log)
    assert drained.values() == [b"a0", b"a1", b"a2", b"c0", b"c1", b"c2"]
    # Twelve records and four markers; the last four offsets hold nothing that is ever returned.
    assert drained.positions == {0: 16}
    assert drained.records[-1].next_offset == 11


async def test_a_header_that_cannot_be_read_costs_one_record_and_no_neighbour(kafka_bootstrap: str) -> None:
    async with kafka_log(kafka_bootstrap, partitions=2) as log:
        settings = settings_of(log)
        for partition in (0, 1):
            assert await produce_raw(settings, partition, batch([b"before"] * 5)) == 0
        good = batch([b"first", b"second", b"third"], headers=[("OKEY", b"1")])
        bad = sealed(good.replace(b"OKEY", b"\xff\xfe\xff\xfe", 1))
        assert await produce_raw(settings, 0, bad) == 0
        for partition in (0, 1):
            assert await produce_raw(settings, partition, batch([b"after"] * 5, compression=1)) == 0
        drained = await drain(log, 2)
    assert drained.values(0) == [b"before"] * 5 + [b"second", b"third"] + [b"after"] * 5
    assert drained.values(1) == [b"before"] * 5 + [b"after"] * 5
    assert [(r.partition, r.offset, r.next_offset) for r in drained.unreadable] == [(0, 5, 6)]
    assert "UnicodeDecodeError" in drained.unreadable[0].error


@pytest.mark.parametrize("max_records", [1, 2, 100])
async def test_many_unreadable_records_are_stepped_over_whatever_the_size_of_a_poll(
    kafka_bootstrap: str, max_records: int
) -> None:
    async with kafka_log(kafka_bootstrap, partitions=1) as log:
        good = batch([b"1", b"2", b"3", b"4"], headers=[("OKEY", b"1")])
        bad = sealed(good.replace(b"OKEY", b"\xff\xfe\xff\xfe", 3))
        for raw in (bad, batch([b"5"]), bad):
            assert await produce_raw(settings_of(log), 0, raw) == 0
        drained = await drain(log, max_records=max_records)
    assert [record.offset for record in drained.unreadable] == [0, 1, 2, 5, 6, 7]
    assert drained.values() == [b"4", b"5", b"4"]


async def test_tombstones_null_keys_repeated_headers_and_odd_timestamps_are_passed_on(
    kafka_bootstrap: str,
) -> None:
    headers = [("again", b"1"), ("again", None), ("again", b"1")]
    async with kafka_log(kafka_bootstrap, partitions=1) as log:
        for raw in (
            batch([None], headers=headers),
            batch([b"no key"], key=None),
            batch([b"past"], timestamp=-1),
            batch([b"future"], timestamp=2**62),
        ):
            assert await produce_raw(settings_of(log), 0, raw) == 0
        drained = await drain(log)
    assert [(r.key, r.value) for r in drained.records] == [
        (b"key", None),
        (None, b"no key"),
        (b"key", b"past"),
        (b"key", b"future"),
    ]
    assert drained.records[0].headers == tuple(headers)
    # The log's own clock, whatever producers claim.
    assert all(abs(record.timestamp_ms / 1000 - time.time()) < 3_600 for record in drained.records)


async def test_a_topic_that_does_not_exist_is_said_by_everyone_and_never_created(
    kafka_bootstrap: str,
) -> None:
    async with kafka_log(kafka_bootstrap, partitions=0) as log:
        admin = log.admin()
        await admin.start()
        try:
            with pytest.raises(TopicMissing, match="aggregator topics create"):
                await log.producer().start()
            with pytest.raises(TopicMissing, match="aggregator topics create"):
                await log.consumer(Listener()).start()
            for question in (admin.describe, admin.offsets):
                with pytest.raises(TopicMissing, match="aggregator topics create"):
                    await question()
        finally:
            await admin.stop()


async def test_an_unreachable_broker_is_said_in_bounded_time() -> None:
    log = KafkaLog(kafka_settings(f"127.0.0.1:{free_ports(1)[0]}", start_timeout_seconds=3))
    started = time.monotonic()
    for member in (log.producer(), log.consumer(Listener()), log.admin()):
        with pytest.raises(LogUnavailable):
            await member.start()
        await member.stop()
    assert time.monotonic() - started < 12


async def test_the_admin_creates_a_topic_with_the_settings_we_depend_on(kafka_bootstrap: str) -> None:
    async with kafka_log(kafka_bootstrap, partitions=3) as log:
        admin = log.admin()
        await admin.start()
        try:
            description = await admin.describe()
            assert await admin.create(5, 1) is False
        finally:
            await admin.stop()
    assert (description.partitions, description.replication_factor) == (3, 1)
    assert description.settings["message.timestamp.type"] == "LogAppendTime"
    assert description.settings["cleanup.policy"] == "delete"
    assert int(description.settings["max.message.bytes"]) >= settings_of(log).max_batch_bytes


async def test_more_replicas_than_brokers_are_refused(kafka_bootstrap: str) -> None:
    admin = KafkaLog(kafka_settings(kafka_bootstrap)).admin()
    await admin.start()
    try:
        with pytest.raises(LogMisconfigured, match="refuses to create"):
            await admin.create(1, 100)
    finally:
        await admin.stop()


async def test_size_limits_that_contradict_the_topic_refuse_to_start(
    kafka_bootstrap: str, confluent: Any
) -> None:
    async with kafka_log(kafka_bootstrap, partitions=1) as log:
        await alter(confluent, kafka_bootstrap, log.topic, {"max.message.bytes": "300000"})
        with pytest.raises(LogMisconfigured, match="max_batch_bytes"):
            await log.producer().start()
        await alter(confluent, kafka_bootstrap, log.topic, {"max.message.bytes": "9000000"})
        with pytest.raises(LogMisconfigured, match="max_partition_fetch_bytes"):
            await log.consumer(Listener()).start()


async def test_a_limit_lowered_while_producing_splits_batches_and_refuses_single_records(
    kafka_bootstrap: str, confluent: Any
) -> None:
    async with kafka_log(kafka_bootstrap, partitions=1, compression=None) as log:
        producer = log.producer()
        await producer.start()
        try:
            await alter(confluent, kafka_bootstrap, log.topic, {"max.message.bytes": "20000"})
            records = [NewRecord(key=b"k", value=b"%04d" % n * 250) for n in range(100)]
            await producer.publish(records, timeout=DEADLINE)
            with pytest.raises(RecordTooLarge):
                await producer.publish([NewRecord(key=b"k", value=b"v" * 50_000)], timeout=DEADLINE)
            assert producer.in_flight == 0
        finally:
            await producer.stop()
        drained = await drain(log)
    assert drained.values() == [record.value for record in records]


async def test_a_record_larger_than_a_fetch_is_read_all_the_same(
    kafka_bootstrap: str, confluent: Any
) -> None:
    limits = {"max_batch_bytes": 300_000, "max_partition_fetch_bytes": 1_100_000}
    async with kafka_log(kafka_bootstrap, partitions=2, **limits) as log:
        await publish(log, [NewRecord(key=key_in(0), value=b"before")])
        consumer = log.consumer(Listener())
        await consumer.start()
        try:
            await alter(confluent, kafka_bootstrap, log.topic, {"max.message.bytes": "9000000"})
            direct = confluent.Producer(
                {"bootstrap.servers": kafka_bootstrap, "message.max.bytes": 9_000_000, "linger.ms": 0}
            )
            for partition in (0, 1):
                for value in (b"v" * 5_000_000, b"after"):
                    direct.produce(log.topic, value, partition=partition)
            assert await asyncio.to_thread(direct.flush, DEADLINE) == 0
            sizes: dict[int, list[int]] = {0: [], 1: []}
            async with asyncio.timeout(DEADLINE):
                while len(consumer.assignment()) < 2:
                    await consumer.poll(10, 0.1)
                for partition in (0, 1):
                    consumer.seek(partition, 0)
                while sum(map(len, sizes.values())) < 5:
                    for record in (await consumer.poll(10, 0.2)).records:
                        assert isinstance(record, Record)
                        sizes[record.partition].append(len(record.value or b""))
        finally:
            await consumer.stop()
    assert {partition: sizes[partition][-2:] for partition in sizes} == {0: [5_000_000, 5], 1: [5_000_000, 5]}


async def test_a_full_buffer_is_said_at_once(kafka_bootstrap: str) -> None:
    limits = {"max_batch_bytes": 300_000, "max_buffer_bytes": 300_000}
    async with kafka_log(kafka_bootstrap, partitions=1, **limits) as log:
        producer = log.producer()
        await producer.start()
        try:
            records = [NewRecord(key=b"k", value=b"v" * 200_000)]
            taken = asyncio.create_task(producer.publish(records, timeout=DEADLINE))
            await asyncio.sleep(0)
            with pytest.raises(LogFull):
                await producer.publish(records, timeout=DEADLINE)
            await taken
            await producer.publish(records, timeout=DEADLINE)
        finally:
            await producer.stop()


async def test_added_partitions_are_noticed_by_producer_and_consumer(
    kafka_bootstrap: str, confluent: Any
) -> None:
    async with kafka_log(kafka_bootstrap, partitions=1, metadata_max_age_seconds=0.5) as log:
        producer, consumer = log.producer(), log.consumer(Listener())
        await producer.start()
        await consumer.start()
        try:
            admin = confluent.admin.AdminClient({"bootstrap.servers": kafka_bootstrap})
            grown = admin.create_partitions([confluent.admin.NewPartitions(log.topic, 4)])
            await asyncio.to_thread(grown[log.topic].result, DEADLINE)
            async with asyncio.timeout(DEADLINE):
                while len(consumer.assignment()) < 4:
                    await consumer.poll(10, 0.1)
                while not (await consumer.offsets([3]))[3].end:
                    await producer.publish([NewRecord(key=key_in(3), value=b"")], timeout=DEADLINE)
        finally:
            await producer.stop()
            await consumer.stop()


async def alter(confluent: Any, bootstrap: str, topic: str, values: dict[str, str]) -> None:
    """Change settings of a topic."""
    admin = confluent.admin.AdminClient({"bootstrap.servers": bootstrap})
    operation = confluent.admin.AlterConfigOpType.SET
    entries = [
        confluent.admin.ConfigEntry(name, value, incremental_operation=operation)
        for name, value in values.items()
    ]
    resource = confluent.admin.ConfigResource(
        confluent.admin.ConfigResource.Type.TOPIC, topic, incremental_configs=entries
    )
    await asyncio.to_thread(admin.incremental_alter_configs([resource])[resource].result, DEADLINE)
