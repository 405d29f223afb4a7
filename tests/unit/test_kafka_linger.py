"""Which records travel together, and that a session that is given up lets go of its senders."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from broker.errors import ProduceOutcomeUnknown
from broker.kafka.lane import Batch, Publish, Share
from broker.kafka.producer import KafkaProducer
from broker.kafka.session import Session
from broker.partitioner import partition_for
from broker.ports import NewRecord
from broker.settings import KafkaSettings

PARTITIONS = 2
SETTINGS = KafkaSettings(bootstrap_servers="127.0.0.1:1", topic="events", linger_seconds=1)
FIRST, SECOND = (
    next(key for key in (b"%d" % n for n in range(100)) if partition_for(key, PARTITIONS) == partition)
    for partition in range(PARTITIONS)
)


class Client:
    """What a session uses of aiokafka's producer: remembers what is sent, and answers when it is told to."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, asyncio.Future[None]]] = []
        self.was_called = asyncio.Event()

    async def send_batch(self, builder: Any, topic: str, *, partition: int) -> asyncio.Future[None]:
        future = asyncio.get_running_loop().create_future()
        self.sent.append((partition, future))
        self.was_called.set()
        return future


class Builder:
    """Takes whatever it is given."""

    def append(self, **_: object) -> object:
        return self


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Client:
    client = Client()

    async def opened(self: Session, *, check_limit: bool) -> None:
        monkeypatch.setattr(self._producer, "send_batch", client.send_batch)

    monkeypatch.setattr(Session, "open", opened)
    monkeypatch.setattr(Session, "partitions", lambda self: PARTITIONS)
    monkeypatch.setattr(Session, "failed", False)
    monkeypatch.setattr(Session, "create_batch", lambda self: Builder())
    return client


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def publish(producer: KafkaProducer, key: bytes) -> asyncio.Task[None]:
    return asyncio.create_task(producer.publish([NewRecord(key, b"{}", ())], timeout=5))


async def test_what_comes_when_nothing_is_on_its_way_is_sent_at_once(client: Client) -> None:
    producer = KafkaProducer(SETTINGS)
    await producer.start()
    one = publish(producer, FIRST)
    await turns()
    assert [partition for partition, _ in client.sent] == [0]
    client.sent[0][1].set_result(None)
    await one
    two = publish(producer, SECOND)
    await turns()
    assert [partition for partition, _ in client.sent] == [0, 1]
    client.sent[1][1].set_result(None)
    await two
    await producer.stop()


async def test_what_comes_meanwhile_leaves_together_with_the_answer_whatever_its_partition(
    client: Client,
) -> None:
    producer = KafkaProducer(SETTINGS)
    await producer.start()
    publishes = [publish(producer, FIRST)]
    await turns()
    publishes += [publish(producer, SECOND), publish(producer, FIRST), publish(producer, SECOND)]
    await turns()
    assert len(client.sent) == 1
    client.sent[0][1].set_result(None)
    await turns()
    assert sorted(partition for partition, _ in client.sent[1:]) == [0, 1]
    for _, future in client.sent[1:]:
        future.set_result(None)
    await asyncio.gather(*publishes)
    await producer.stop()


async def test_a_broker_that_does_not_answer_is_waited_for_as_long_as_the_linger_only(client: Client) -> None:
    producer = KafkaProducer(SETTINGS.model_copy(update={"linger_seconds": 0.01}))
    await producer.start()
    unanswered = publish(producer, FIRST)
    await turns()
    other = publish(producer, SECOND)
    client.was_called.clear()
    await client.was_called.wait()
    assert [partition for partition, _ in client.sent] == [0, 1]
    client.sent[1][1].set_result(None)
    await other
    assert not unanswered.done()
    client.sent[0][1].set_result(None)
    await unanswered
    await producer.stop()


async def test_batches_for_one_broker_do_not_wait_for_another(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Session, "leader", lambda self, partition: partition)
    producer = KafkaProducer(SETTINGS)
    await producer.start()
    publishes = [publish(producer, FIRST), publish(producer, SECOND)]
    await turns()
    assert [partition for partition, _ in client.sent] == [0, 1]
    for _, future in client.sent:
        future.set_result(None)
    await asyncio.gather(*publishes)
    await producer.stop()


async def test_nothing_of_a_publish_is_left_to_the_garbage_collector(client: Client) -> None:
    producer = KafkaProducer(SETTINGS)
    await producer.start()
    gc.collect()
    gc.disable()
    try:
        one = publish(producer, FIRST)
        await turns()
        client.sent[0][1].set_result(None)
        await one
        await turns()
        assert [kept for kept in gc.get_objects() if isinstance(kept, (Publish, Share, Batch))] == []
    finally:
        gc.enable()
    await producer.stop()


async def test_a_session_that_is_given_up_lets_go_of_who_waits_for_it(client: Client) -> None:
    producer = KafkaProducer(SETTINGS)
    await producer.start()
    waiting = publish(producer, FIRST)
    await turns()
    session = producer._session
    assert session is not None
    await session.close(0)
    with pytest.raises(ProduceOutcomeUnknown, match="given up"):
        await waiting
    with pytest.raises(ProduceOutcomeUnknown, match="given up"):
        await publish(producer, FIRST)
    assert len(client.sent) == 1
    await producer.stop()
