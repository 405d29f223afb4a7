"""Which records travel together, and what becomes of them."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Sequence
from typing import Any

import pytest
from aiokafka import errors as kafka_errors
from aiokafka.errors import KafkaError

from broker.errors import LogUnavailable, ProduceOutcomeUnknown, RecordTooLarge
from broker.kafka import producer as producer_module
from broker.kafka.lane import Batch, Publish, Share
from broker.kafka.producer import KafkaProducer
from broker.kafka.session import Session
from broker.partitioner import partition_for
from broker.ports import NewRecord
from broker.settings import KafkaSettings

PARTITIONS = 2
SETTINGS = KafkaSettings(bootstrap_servers="127.0.0.1:1", topic="events")
FIRST, SECOND = (
    next(key for key in (b"%d" % n for n in range(100)) if partition_for(key, PARTITIONS) == partition)
    for partition in range(PARTITIONS)
)
Errors = dict[int, KafkaError]


class Cluster:
    """Stands for the brokers: remembers the requests, and answers when it is told to."""

    def __init__(self) -> None:
        self.requests: list[tuple[int | None, dict[int, list[bytes]], asyncio.Future[Errors]]] = []
        self.was_asked = asyncio.Event()

    async def append(
        self, session: Session, leader: int | None, batches: Sequence[tuple[int, Any]]
    ) -> Errors:
        answer: asyncio.Future[Errors] = asyncio.get_running_loop().create_future()
        self.requests.append((leader, dict(batches), answer))
        self.was_asked.set()
        return await answer

    @property
    def sent(self) -> list[dict[int, list[bytes]]]:
        """The values of each request, by partition."""
        return [batches for _, batches, _ in self.requests]

    def answer(self, request: int, errors: Errors | None = None) -> None:
        self.requests[request][2].set_result(errors or {})


class Builder:
    """Takes whatever it is given."""

    def __init__(self) -> None:
        self.values: list[bytes] = []

    def append(self, offset: int, timestamp: int, key: bytes, value: bytes, headers: Any) -> object:
        assert offset == len(self.values)
        self.values.append(value)
        return self

    def build(self) -> Any:
        return self.values


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    cluster = Cluster()

    async def nothing(self: Session, **_: object) -> None:
        pass

    async def append(self: Session, leader: int | None, batches: Sequence[tuple[int, Any]]) -> Errors:
        return await cluster.append(self, leader, batches)

    monkeypatch.setattr(Session, "open", nothing)
    monkeypatch.setattr(Session, "append", append)
    monkeypatch.setattr(Session, "refreshed", nothing)
    monkeypatch.setattr(Session, "partitions", lambda self: PARTITIONS)
    monkeypatch.setattr(Session, "leader", lambda self, partition: 1)
    monkeypatch.setattr(Session, "failed", False)
    monkeypatch.setattr(Session, "create_builder", lambda self: Builder())
    monkeypatch.setattr(producer_module, "_RETRY_PAUSE", 0)
    return cluster


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def started(settings: KafkaSettings = SETTINGS) -> KafkaProducer:
    producer = KafkaProducer(settings)
    await producer.start()
    return producer


def publish(producer: KafkaProducer, key: bytes, value: bytes = b"{}") -> asyncio.Task[None]:
    return asyncio.create_task(producer.publish([NewRecord(key, value, ())], timeout=5))


async def test_what_comes_when_nothing_is_on_its_way_is_sent_at_once(cluster: Cluster) -> None:
    producer = await started()
    one = publish(producer, FIRST, b"1")
    await turns()
    assert cluster.sent == [{0: [b"1"]}]
    cluster.answer(0)
    await one
    two = publish(producer, SECOND, b"2")
    await turns()
    assert cluster.sent[1:] == [{1: [b"2"]}]
    cluster.answer(1)
    await two
    await producer.stop()


async def test_what_comes_meanwhile_leaves_in_one_request_with_the_answer(cluster: Cluster) -> None:
    producer = await started()
    publishes = [publish(producer, FIRST, b"1")]
    await turns()
    publishes += [
        publish(producer, SECOND, b"2"),
        publish(producer, FIRST, b"3"),
        publish(producer, SECOND, b"4"),
    ]
    await turns()
    assert len(cluster.sent) == 1
    cluster.answer(0)
    await turns()
    assert cluster.sent[1:] == [{0: [b"3"], 1: [b"2", b"4"]}]
    assert [task.done() for task in publishes] == [True, False, False, False]
    cluster.answer(1)
    await asyncio.gather(*publishes)
    assert producer.in_flight == 0
    await producer.stop()


async def test_records_for_one_broker_do_not_wait_for_another(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Session, "leader", lambda self, partition: partition)
    producer = await started()
    publishes = [publish(producer, FIRST, b"1"), publish(producer, SECOND, b"2")]
    await turns()
    assert cluster.sent == [{0: [b"1"]}, {1: [b"2"]}]
    publishes.append(publish(producer, FIRST, b"3"))
    cluster.answer(1)
    await turns()
    assert len(cluster.sent) == 2
    cluster.answer(0)
    await turns()
    assert cluster.sent[2:] == [{0: [b"3"]}]
    cluster.answer(2)
    await asyncio.gather(*publishes)
    await producer.stop()


async def test_records_follow_a_partition_to_its_new_leader_while_the_old_one_is_silent(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaders = {0: 1, 1: 1}
    monkeypatch.setattr(Session, "leader", lambda self, partition: leaders[partition])
    producer = await started()
    unanswered = publish(producer, FIRST)
    await turns()
    other = publish(producer, SECOND)
    await turns()
    assert len(cluster.requests) == 1
    leaders[1] = 2
    assert producer._session is not None
    for listener in producer._session._client.cluster._listeners:
        listener(producer._session._client.cluster)
    await turns()
    assert [leader for leader, _, _ in cluster.requests] == [1, 2]
    cluster.answer(1)
    await other
    assert not unanswered.done()
    cluster.answer(0)
    await unanswered
    await producer.stop()


async def test_a_batch_that_may_be_tried_again_is_sent_again_before_what_came_later(cluster: Cluster) -> None:
    producer = await started()
    publishes = [publish(producer, FIRST, b"1"), publish(producer, SECOND, b"2")]
    await turns()
    publishes.append(publish(producer, FIRST, b"3"))
    cluster.answer(0, {0: kafka_errors.NotLeaderForPartitionError()})
    await turns()
    assert [task.done() for task in publishes] == [False, True, False]
    assert cluster.sent[1:] == [{0: [b"1"]}]
    cluster.answer(1)
    await turns()
    assert cluster.sent[2:] == [{0: [b"3"]}]
    cluster.answer(2)
    await asyncio.gather(*publishes)
    await producer.stop()


async def test_a_batch_is_not_tried_again_for_ever(cluster: Cluster) -> None:
    producer = await started(SETTINGS.model_copy(update={"produce_timeout_seconds": 0}))
    waiting = publish(producer, FIRST)
    await turns()
    cluster.answer(0, {0: kafka_errors.NotEnoughReplicasError()})
    with pytest.raises(LogUnavailable, match="NotEnoughReplicas"):
        await waiting
    assert producer.in_flight == 0
    await producer.stop()


async def test_only_the_records_of_the_partition_that_refused_are_refused(cluster: Cluster) -> None:
    producer = await started()
    refused, taken = publish(producer, FIRST), publish(producer, SECOND)
    await turns()
    cluster.answer(0, {0: kafka_errors.TopicAuthorizationFailedError()})
    await taken
    with pytest.raises(LogUnavailable, match="permissions"):
        await refused
    await producer.stop()


async def test_a_batch_that_is_too_large_is_sent_in_parts_and_a_record_that_is_too_large_is_refused(
    cluster: Cluster,
) -> None:
    producer = await started()
    one, two = publish(producer, FIRST, b"1"), publish(producer, FIRST, b"2")
    await turns()
    cluster.answer(0, {0: kafka_errors.MessageSizeTooLargeError()})
    await turns()
    assert cluster.sent == [{0: [b"1", b"2"]}, {0: [b"1"]}]
    cluster.answer(1, {0: kafka_errors.MessageSizeTooLargeError()})
    with pytest.raises(RecordTooLarge):
        await one
    await turns()
    assert cluster.sent[2:] == [{0: [b"2"]}]
    cluster.answer(2)
    await two
    assert producer.in_flight == 0
    await producer.stop()


@pytest.mark.parametrize("faulty", [(Session, "create_builder"), (Builder, "append"), (Builder, "build")])
async def test_a_fault_of_ours_fails_who_waits_for_it_and_nobody_after(
    cluster: Cluster,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    faulty: tuple[type, str],
) -> None:
    def broken(*_: object) -> object:
        raise MemoryError("no room")

    producer = await started()
    with monkeypatch.context() as patch:
        patch.setattr(*faulty, broken)
        with pytest.raises(LogUnavailable, match="failed"):
            await publish(producer, FIRST)
        await turns()
    assert producer.in_flight == 0
    assert "no room" in caplog.text
    after = publish(producer, FIRST)
    await turns()
    cluster.answer(0)
    await after
    await producer.stop()


async def test_nothing_of_a_publish_is_left_to_the_garbage_collector(cluster: Cluster) -> None:
    producer = await started()
    gc.collect()
    gc.disable()
    try:
        one = publish(producer, FIRST)
        await turns()
        cluster.answer(0)
        await one
        await turns()
        assert [kept for kept in gc.get_objects() if isinstance(kept, (Publish, Share, Batch))] == []
    finally:
        gc.enable()
    await producer.stop()


async def test_a_session_that_is_given_up_lets_go_of_what_it_has_on_its_way_and_the_next_goes_on(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(producer_module, "_WATCH_INTERVAL", 0.01)
    producer = await started()
    under_way = publish(producer, FIRST, b"1")
    await turns()
    waiting = publish(producer, FIRST, b"2")
    await turns()
    cluster.was_asked.clear()
    with monkeypatch.context() as patch:
        patch.setattr(Session, "failed", True)
        with pytest.raises(ProduceOutcomeUnknown, match="given up"):
            await under_way
    await asyncio.wait_for(cluster.was_asked.wait(), 5)
    assert cluster.sent == [{0: [b"1"]}, {0: [b"2"]}]
    cluster.answer(1)
    await waiting
    assert producer.in_flight == 0
    await producer.stop()


async def test_what_is_not_acknowledged_in_time_at_stop_is_failed(cluster: Cluster) -> None:
    producer = await started(SETTINGS.model_copy(update={"stop_timeout_seconds": 0.01}))
    under_way = publish(producer, FIRST)
    await turns()
    waiting = publish(producer, FIRST)
    await turns()
    await producer.stop()
    with pytest.raises(ProduceOutcomeUnknown, match="given up"):
        await under_way
    with pytest.raises(LogUnavailable, match="stopped"):
        await waiting
    with pytest.raises(LogUnavailable, match="not running"):
        await publish(producer, FIRST)
    assert producer.in_flight == 0
