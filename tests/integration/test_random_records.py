"""Random bytes as values, keys and headers of Kafka records: each gets a verdict, and no good one is lost."""

from __future__ import annotations

import json
import os
from random import Random

import pytest
from confluent_kafka import Producer

from broker.kafka import KafkaLog
from tests.support.kafka import kafka_settings
from tests.support.kafka_process import KafkaCluster
from tests.support.mutations import mutated
from tests.support.reconciled import Reconciled

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(600)]

RECORDS = int(os.environ.get("AGGREGATOR_TEST_FUZZ_RECORDS", "1500"))
SEED = int(os.environ.get("AGGREGATOR_TEST_FUZZ_SEED", "1"))
GOOD_EVERY = 5


def event(number: int) -> bytes:
    document = {
        "topic": "good",
        "event_id": f"good {number}",
        "timestamp": "2026-01-31T12:00:00+01:00",
        "source": "test",
        "payload": {"n": number, "text": "naïve ☃ \\u0000"},
    }
    return json.dumps(document).encode()


def odd(random: Random) -> bytes | None:
    if random.random() < 0.02:
        return None
    if random.random() < 0.3:
        return random.randbytes(random.choice((0, 1, 7, 100, 3_000)))
    return mutated(event(random.randrange(10**6)).replace(b'"good"', b'"odd"'), random)


def headers(random: Random) -> list[tuple[str, str | bytes | None]]:
    names = ("traceparent", "received_at", "ingress", "é", "", "aggregator-parent-id", "tracestate")
    return [
        (random.choice(names), random.choice((None, b"", random.randbytes(random.randrange(40)))))
        for _ in range(random.randrange(4))
    ]


async def test_random_records_stop_nobody_and_cost_no_good_record(
    kafka_process: KafkaCluster, store_url: str
) -> None:
    random = Random(SEED)
    log = KafkaLog(kafka_settings(kafka_process.bootstrap))
    admin = log.admin()
    await admin.start()
    await admin.create(3, 1)
    await admin.offsets()
    await admin.stop()
    producer = Producer({"bootstrap.servers": kafka_process.bootstrap, "acks": "all", "log_level": 0})
    good = 0
    for number in range(RECORDS):
        is_good = number % GOOD_EVERY == 0
        good += is_good
        producer.produce(
            log.topic,
            event(number) if is_good else odd(random),
            random.choice((None, random.randbytes(random.randrange(30)))),
            headers=headers(random),
        )
        producer.poll(0)
    assert producer.flush(40) == 0

    system = Reconciled(log, store_url)
    try:
        async with system.working():
            await system.caught_up()
        report = await system.check()
        assert report.findings == []
        assert report.checked.records == RECORDS
        assert system.value("SELECT count(*) FROM events WHERE topic = 'good'") == good
        assert system.value("SELECT sum(received) FROM verdict_counts") == RECORDS
        refused = system.value("SELECT count(*) FROM dead_letters WHERE reason = 'database_rejected'")
        assert refused == 0, "the rules let something through that the database does not take"
    finally:
        system.close()
