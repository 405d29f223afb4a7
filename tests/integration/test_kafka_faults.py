"""A Kafka broker that is frozen, killed, has bad bytes on its disk, or creates topics unasked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from broker.errors import BrokerError, CommitFailed, LogUnavailable, ProduceOutcomeUnknown, TopicMissing
from broker.kafka import KafkaLog
from broker.kafka.client import connect
from broker.kafka.consumer import KafkaConsumer
from broker.kafka.producer import KafkaProducer
from broker.ports import NewRecord, Record, UndecodableRecord
from tests.contract.log_reader import Listener, key_in, publish
from tests.support.kafka import kafka_log, kafka_settings
from tests.support.kafka_process import KafkaBroker, KafkaCluster
from tests.support.kafka_raw import batch, produce_raw, with_broken_checksum, with_codec

pytestmark = pytest.mark.kafka

DEADLINE = 60.0
IMPATIENT = {"produce_timeout_seconds": 3, "stop_timeout_seconds": 2, "commit_timeout_seconds": 1}


@pytest.fixture
def broker(kafka_process: KafkaCluster) -> Iterator[KafkaBroker]:
    yield kafka_process.brokers[0]
    # Whatever a test did, or did not come to do: the next one finds a broker that answers.
    kafka_process.brokers[0].revive()


@pytest.fixture
async def log(broker: KafkaBroker) -> AsyncIterator[KafkaLog]:
    async with kafka_log(broker.address, partitions=1, **IMPATIENT) as log:
        yield log


def record(value: bytes) -> NewRecord:
    return NewRecord(key=key_in(0), value=value)


async def publish_until_taken(producer: KafkaProducer, value: bytes) -> None:
    """Publish again and again, as a client of the gateway would, until the log takes it."""
    async with asyncio.timeout(DEADLINE):
        while True:
            try:
                await producer.publish([record(value)], timeout=2)
            except LogUnavailable:
                await asyncio.sleep(0.1)
            else:
                return


class Follower:
    """Reads partition 0 from its beginning; seeks again whenever it has to, as the worker does."""

    def __init__(self, log: KafkaLog) -> None:
        self.consumer: KafkaConsumer = log.consumer(Listener())
        self.values: list[bytes | None] = []
        self.unreadable: list[UndecodableRecord] = []
        self._position: int | None = None
        self._sought = False

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE):
            while not condition():
                await self.step()

    async def step(self) -> None:
        if not self.consumer.assignment():
            self._sought = False
        elif not self._sought:
            self.consumer.seek(0, self._position or 0)
            self._sought = True
        try:
            poll = await self.consumer.poll(100, 0.1)
        except BrokerError:
            self._sought = False
            return
        for found in poll.records:
            if isinstance(found, Record):
                self.values.append(found.value)
            else:
                self.unreadable.append(found)
        self._position = poll.next_offsets.get(0, self._position)


async def test_a_frozen_broker_gives_bounded_answers_and_none_of_what_was_withdrawn(
    broker: KafkaBroker, log: KafkaLog
) -> None:
    producer = log.producer()
    await producer.start()
    try:
        await producer.publish([record(b"before")], timeout=DEADLINE)
        broker.pause()
        started = time.monotonic()
        sent = asyncio.create_task(producer.publish([record(b"sent")], timeout=1.0))
        # By the first turn of the loop it waits in its lane, by the third it is in a request.
        for _ in range(5):
            await asyncio.sleep(0)
        assert producer.in_flight == 1
        waiting = [asyncio.create_task(producer.publish([record(b"waiting")], timeout=0.5)) for _ in range(5)]
        for outcome in await asyncio.gather(sent, *waiting, return_exceptions=True):
            assert isinstance(outcome, ProduceOutcomeUnknown)
        assert time.monotonic() - started < 3
        assert producer.in_flight == 1, "only what the client holds still counts"
        broker.resume()
        await publish_until_taken(producer, b"after")
    finally:
        await producer.stop()
    follower = Follower(log)
    await follower.consumer.start()
    try:
        await follower.until(lambda: b"after" in follower.values)
    finally:
        await follower.consumer.stop()
    assert set(follower.values) <= {b"before", b"sent", b"after"}


async def test_everything_can_be_stopped_while_the_broker_is_frozen(
    broker: KafkaBroker, log: KafkaLog
) -> None:
    producer, follower, admin = log.producer(), Follower(log), log.admin()
    await producer.start()
    await admin.start()
    await follower.consumer.start()
    await publish(log, [record(b"1")])
    await follower.until(lambda: bool(follower.values))
    broker.pause()
    publishing = asyncio.create_task(producer.publish([record(b"2")], timeout=DEADLINE))
    await asyncio.sleep(0)
    started = time.monotonic()
    with pytest.raises(CommitFailed):
        await follower.consumer.commit({0: 1})
    await asyncio.gather(producer.stop(), follower.consumer.stop(), admin.stop())
    with pytest.raises(LogUnavailable):
        await publishing
    assert time.monotonic() - started < 12


@pytest.mark.timeout(180)
async def test_producer_and_consumer_survive_a_broker_that_was_killed_and_restarted(
    broker: KafkaBroker, log: KafkaLog
) -> None:
    producer, follower = log.producer(), Follower(log)
    await producer.start()
    await follower.consumer.start()
    try:
        await producer.publish([record(b"before")], timeout=DEADLINE)
        await follower.until(lambda: b"before" in follower.values)
        broker.kill()
        started = time.monotonic()
        with pytest.raises(LogUnavailable):
            await producer.publish([record(b"during")], timeout=1)
        assert time.monotonic() - started < 3
        await follower.step()
        broker.spawn()
        await asyncio.to_thread(broker.wait)
        await publish_until_taken(producer, b"after")
        await follower.until(lambda: b"after" in follower.values)
        await follower.consumer.commit({0: 1})
    finally:
        await producer.stop()
        await follower.consumer.stop()


@pytest.mark.timeout(180)
async def test_a_consumer_whose_broker_stays_silent_connects_anew(broker: KafkaBroker) -> None:
    impatient = IMPATIENT | {"reconnect_after_seconds": 2, "start_timeout_seconds": 2}
    async with kafka_log(broker.address, partitions=1, **impatient) as log:
        await publish(log, [record(b"1")])
        follower = Follower(log)
        await follower.consumer.start()
        try:
            await follower.until(lambda: bool(follower.values))
            broker.pause()
            await follower.until(lambda: not follower.consumer.assignment())
            broker.resume()
            await publish(log, [record(b"2")])
            await follower.until(lambda: b"2" in follower.values)
        finally:
            await follower.consumer.stop()
    assert follower.values == [b"1", b"2"]


async def test_a_producer_whose_client_has_died_connects_anew(log: KafkaLog) -> None:
    producer = log.producer()
    await producer.start()
    try:
        await producer.publish([record(b"before")], timeout=DEADLINE)
        session = producer._session
        assert session is not None
        assert session._client._sync_task is not None
        session._client._sync_task.cancel()
        await publish_until_taken(producer, b"after")
        assert producer.in_flight == 0
    finally:
        await producer.stop()


@pytest.mark.timeout(180)
async def test_batches_with_a_bad_checksum_or_codec_lose_no_neighbour(
    broker: KafkaBroker, log: KafkaLog
) -> None:
    settings = log._settings
    good = [batch([b"%d" % n] * 2, compression=n % 2) for n in range(6)]
    for raw in good:
        assert await produce_raw(settings, 0, raw) == 0
    await asyncio.to_thread(broker.stop)
    # A broker refuses such batches; on its disk they can appear all the same.
    (segment,) = (broker.directory / "data" / f"{settings.topic}-0").glob("*.log")
    stored = segment.read_bytes()
    batches = _split(stored)
    assert len(batches) == 6
    batches[1] = with_broken_checksum(batches[1])
    batches[3] = with_codec(batches[3], 6)
    segment.write_bytes(b"".join(batches))
    broker.spawn()
    await asyncio.to_thread(broker.wait)
    follower = Follower(log)
    await follower.consumer.start()
    try:
        await follower.until(lambda: follower.values[-1:] == [b"5"])
    finally:
        await follower.consumer.stop()
    assert follower.values == [value for n in (0, 2, 4, 5) for value in [b"%d" % n] * 2]
    assert [(bad.offset, bad.next_offset) for bad in follower.unreadable] == [(2, 4), (6, 8)]
    assert "checksum" in follower.unreadable[0].error
    assert "codec" in follower.unreadable[1].error


async def test_a_missing_topic_is_not_created_where_the_broker_would(broker: KafkaBroker) -> None:
    log = KafkaLog(kafka_settings(broker.address, **IMPATIENT))
    for member in (log.producer(), log.consumer(Listener())):
        with pytest.raises(TopicMissing):
            await member.start()
        await member.stop()
    assert log.topic not in await topics(log)


async def test_a_deleted_topic_is_said_not_recreated_and_used_again_when_it_is_back(
    broker: KafkaBroker,
) -> None:
    import confluent_kafka.admin

    async with kafka_log(broker.address, partitions=1, metadata_max_age_seconds=0.5, **IMPATIENT) as log:
        producer, follower = log.producer(), Follower(log)
        await producer.start()
        await follower.consumer.start()
        try:
            await producer.publish([record(b"1")], timeout=DEADLINE)
            await follower.until(lambda: bool(follower.values))
            deletion = confluent_kafka.admin.AdminClient({"bootstrap.servers": broker.address})
            await asyncio.to_thread(deletion.delete_topics([log.topic])[log.topic].result, DEADLINE)
            with pytest.raises(TopicMissing):
                await poll_for_ever(follower.consumer)
            with pytest.raises(LogUnavailable):
                await producer.publish([record(b"nowhere")], timeout=5)
            assert log.topic not in await topics(log)
            admin = log.admin()
            await admin.start()
            try:
                assert await admin.create(1, 1)
            finally:
                await admin.stop()
            await publish_until_taken(producer, b"2")
            follower._position = 0
            await follower.until(lambda: b"2" in follower.values)
        finally:
            await producer.stop()
            await follower.consumer.stop()


async def poll_for_ever(consumer: KafkaConsumer) -> None:
    async with asyncio.timeout(DEADLINE):
        while True:
            await consumer.poll(10, 0.2)


async def topics(log: KafkaLog) -> set[str]:
    client = await connect(log._settings, "test")
    try:
        known: set[str] = (await client.fetch_all_metadata()).topics()
        return known
    finally:
        await client.close()


def _split(stored: bytes) -> list[bytes]:
    batches, start = [], 0
    while start < len(stored):
        stop = start + 12 + int.from_bytes(stored[start + 8 : start + 12])
        if stop == start + 12:
            break
        batches.append(stored[start:stop])
        start = stop
    return batches
