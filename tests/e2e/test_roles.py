"""The production roles as separate processes, on a real broker and a real database."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiokafka import AIOKafkaProducer
from confluent_kafka import Consumer as ConfluentConsumer
from confluent_kafka import Producer as ConfluentProducer
from confluent_kafka import TopicPartition

from tests.support.deployment import Deployment
from tests.support.kafka_process import KafkaCluster
from tests.support.processes import wait_until
from tests.support.skips import unavailable

pytestmark = [pytest.mark.kafka, pytest.mark.postgres]


@pytest.fixture
def deployment(tmp_path: Path, kafka_bootstrap: str, kafka_topic: str, postgres_url: str) -> Deployment:
    return Deployment(tmp_path, kafka_bootstrap, kafka_topic, postgres_url)


def event(topic: str, number: int, **payload: Any) -> bytes:
    document = {
        "topic": topic,
        "event_id": str(number),
        "timestamp": "2026-01-01T00:00:00Z",
        "source": "test",
        "payload": payload or {"n": number},
    }
    return json.dumps(document).encode()


def committed_offsets(deployment: Deployment) -> dict[int, int]:
    """The group's committed offsets, as another client sees them; 0 where there is none."""
    environment = deployment.environment
    consumer = ConfluentConsumer(
        {
            "bootstrap.servers": environment["AGGREGATOR_KAFKA__BOOTSTRAP_SERVERS"],
            "group.id": environment["AGGREGATOR_KAFKA__GROUP_ID"],
        }
    )
    try:
        topic = environment["AGGREGATOR_KAFKA__TOPIC"]
        partitions = consumer.list_topics(topic, timeout=20).topics[topic].partitions
        found = consumer.committed([TopicPartition(topic, p) for p in partitions], timeout=20)
        return {tp.partition: max(tp.offset, 0) for tp in found}
    finally:
        consumer.close()


def exact(stats: dict[str, Any]) -> dict[str, int]:
    names = ("received", "unique_processed", "duplicate_dropped", "conflicting", "dead_lettered")
    return {name: stats[name] for name in names}


def test_events_over_http_are_stored_once_by_two_workers(deployment: Deployment) -> None:
    with (
        deployment.gateway() as gateway,
        deployment.worker() as first,
        deployment.worker() as second,
        deployment.admin() as admin,
    ):
        sent = deployment.send("--generate", "3000", "--seed", "3", "--duplicates", "0.2")
        stats = deployment.settled(3600)
        assert exact(stats) == {
            "received": 3600,
            "unique_processed": 3000,
            "duplicate_dropped": 600,
            "conflicting": 0,
            "dead_lettered": 0,
        }
        assert sent["duplicates"] == 600
        assert stats["workers"] == 2
        partitions = httpx.get(f"{deployment.admin_url}/partitions").json()["partitions"]
        assert sum(p["next_offset"] for p in partitions) == 3600
        assert {p["lag"] for p in partitions} == {0}
        for process in (gateway, first, second, admin):
            assert process.terminate() == 0
    assert deployment.query("SELECT count(*), count(DISTINCT (topic, event_id)) FROM events") == [
        (3000, 3000)
    ]


def test_a_kill_between_database_and_offset_commit_counts_nothing_twice(deployment: Deployment) -> None:
    deployment.environment["AGGREGATOR_WORKER__MAX_BATCH_RECORDS"] = "200"
    with deployment.gateway(), deployment.admin():
        deployment.send("--generate", "2000", "--seed", "4", "--duplicates", "0.1")
        for batch in (1, 2, 3):
            with deployment.dying_worker(batch) as dying:
                assert dying.wait(60) == -signal.SIGKILL
        # What makes this the case in question: the database is ahead of the offsets committed to the group.
        stored = dict(deployment.query("SELECT partition, next_offset FROM partition_progress"))
        committed = committed_offsets(deployment)
        assert any(committed[p] < stored[p] for p in stored)
        assert all(committed[p] <= stored[p] for p in stored)
        with deployment.worker():
            stats = deployment.settled(2200)
    assert exact(stats) == {
        "received": 2200,
        "unique_processed": 2000,
        "duplicate_dropped": 200,
        "conflicting": 0,
        "dead_lettered": 0,
    }
    assert deployment.query("SELECT count(*) FROM events") == [(2000,)]


def test_direct_producers_of_any_kind_meet_the_same_rules(deployment: Deployment) -> None:
    kcat = shutil.which("kcat")
    if kcat is None:
        unavailable("kcat", "the program kcat is not on the path; on Debian: apt-get install kcat")
    bootstrap = deployment.environment["AGGREGATOR_KAFKA__BOOTSTRAP_SERVERS"]
    topic = deployment.environment["AGGREGATOR_KAFKA__TOPIC"]
    producer = ConfluentProducer({"bootstrap.servers": bootstrap, "acks": "all"})
    for number in range(50):
        producer.produce(topic, event("confluent", number), key=b"any" if number % 2 else None)
    producer.produce(topic, b"not json", headers=[("h", b"1"), ("h", None)])
    producer.produce(topic, None, key=b"tombstone")
    producer.produce(topic, event("confluent", 7, other="content"))
    assert producer.flush(30) == 0
    lines = b"\n".join([event("kcat", n) for n in range(30)] + [b'{"topic": "kcat"}', event("kcat", 3)])
    subprocess.run([kcat, "-P", "-b", bootstrap, "-t", topic], input=lines, check=True, timeout=60)
    asyncio.run(_produce_with_aiokafka(bootstrap, topic))
    with deployment.worker(), deployment.admin():
        stats = deployment.settled(107)
        assert exact(stats) == {
            "received": 107,
            "unique_processed": 100,
            "duplicate_dropped": 2,
            "conflicting": 1,
            "dead_lettered": 4,
        }
        letters = httpx.get(f"{deployment.admin_url}/dead-letters").json()["dead_letters"]
        assert sorted(letter["reason"] for letter in letters) == [
            "conflicting_duplicate",
            "invalid_encoding",
            "invalid_json",
            "schema",
            "tombstone",
        ]


async def _produce_with_aiokafka(bootstrap: str, topic: str) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all")
    await producer.start()
    try:
        for number in [*range(20), 5]:
            await producer.send(topic, event("aiokafka", number), key=b"%d" % number)
        await producer.send_and_wait(topic, b'{"topic": "aio\xff"}', headers=[("h", b"\xff")])
        await producer.flush()
    finally:
        await producer.stop()


def test_a_gateway_without_a_broker_says_503_and_recovers_on_its_own(
    tmp_path: Path, kafka_process: KafkaCluster
) -> None:
    # The database is named and never used: the gateway does not know it.
    deployment = Deployment(
        tmp_path, kafka_process.bootstrap, f"events-{tmp_path.name}", "postgresql://nowhere/x"
    )
    deployment.environment["AGGREGATOR_KAFKA__START_TIMEOUT_SECONDS"] = "2"
    deployment.run("topics", "create")
    kafka_process.kill()
    try:
        with deployment.gateway():

            def publish() -> httpx.Response:
                return httpx.post(
                    f"{deployment.gateway_url}/publish",
                    content=event("t", 1),
                    headers={"content-type": "application/json"},
                    timeout=30,
                )

            refused = publish()
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) >= 1
            assert refused.json()["retryable"] is True
            kafka_process.start()
            wait_until(lambda: publish().status_code == 200, 60, "the gateway to find the broker")
    finally:
        for broker in kafka_process.brokers:
            broker.revive()


@pytest.mark.parametrize(
    ("role", "missing", "told"),
    [
        ("gateway", "AGGREGATOR_KAFKA__BOOTSTRAP_SERVERS", "AGGREGATOR_KAFKA__BOOTSTRAP_SERVERS is not set"),
        ("worker", "AGGREGATOR_DATABASE__URL", "AGGREGATOR_DATABASE__URL is not set"),
        ("admin", "AGGREGATOR_DATABASE__URL", "AGGREGATOR_DATABASE__URL is not set"),
    ],
)
def test_a_role_without_its_setting_refuses_to_start(
    deployment: Deployment, role: str, missing: str, told: str
) -> None:
    for name in [name for name in deployment.environment if name.startswith(missing.partition("__")[0])]:
        del deployment.environment[name]
    assert told in deployment.run(role, status=1)


@pytest.mark.parametrize("role", ["gateway", "worker"])
def test_a_missing_topic_is_refused_with_the_command_that_creates_it(
    deployment: Deployment, role: str
) -> None:
    deployment.environment["AGGREGATOR_KAFKA__TOPIC"] += "-absent"
    assert "aggregator topics create" in deployment.run(role, status=1)


@pytest.mark.parametrize("role", ["worker", "admin"])
def test_a_missing_schema_is_refused_with_the_command_that_creates_it(
    deployment: Deployment, empty_postgres_url: str, role: str
) -> None:
    deployment.environment["AGGREGATOR_DATABASE__URL"] = empty_postgres_url
    assert "aggregator db upgrade" in deployment.run(role, status=1)


def test_schema_commands_upgrade_an_empty_database(deployment: Deployment, empty_postgres_url: str) -> None:
    deployment.environment["AGGREGATOR_DATABASE__URL"] = empty_postgres_url
    assert deployment.run("db", "current").strip() == "none"
    assert "aggregator db upgrade" in deployment.run("db", "check", status=1)
    assert "upgraded" in deployment.run("db", "upgrade")
    assert "already" in deployment.run("db", "upgrade")
    assert "as this release needs it" in deployment.run("db", "check")


def test_topic_commands_create_and_describe(deployment: Deployment) -> None:
    deployment.environment["AGGREGATOR_KAFKA__TOPIC"] += "-new"
    assert "Created" in deployment.run("topics", "create", "--partitions", "3")
    assert "exists already" in deployment.run("topics", "create", "--partitions", "5")
    described = json.loads(deployment.run("topics", "describe", "--json"))
    assert len(described["partitions"]) == 3


def test_the_configuration_is_shown_without_its_secrets(deployment: Deployment) -> None:
    deployment.environment["AGGREGATOR_DATABASE__URL"] = "postgresql://someone:hidden@127.0.0.1/name"
    shown = deployment.run("config", "show")
    assert "AGGREGATOR_KAFKA__TOPIC=" in shown
    assert "hidden" not in shown
    assert json.loads(deployment.run("config", "show", "--json"))["ingest"]["port"] == deployment.gateway_port


def test_health_asks_a_running_process(deployment: Deployment) -> None:
    with deployment.gateway():
        assert "ok" in deployment.run("health", "--url", deployment.gateway_url)
    assert "does not answer" in deployment.run("health", "--url", deployment.gateway_url, status=1)
