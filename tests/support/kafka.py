"""A real Kafka for the tests, and logs on topics of their own.

Looked for in this order: the address in AGGREGATOR_TEST_KAFKA; Redpanda in Docker (image in
AGGREGATOR_TEST_REDPANDA_IMAGE), if an engine answers; Apache Kafka from Maven, as a process.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from broker.kafka import KafkaLog
from broker.settings import KafkaSettings
from tests.support.kafka_process import KafkaCluster, KafkaMissing
from tests.support.skips import unavailable

ADDRESS_VARIABLE: Final = "AGGREGATOR_TEST_KAFKA"
REDPANDA_VARIABLE: Final = "AGGREGATOR_TEST_REDPANDA_IMAGE"
REDPANDA_IMAGE: Final = "redpandadata/redpanda:v25.2.1"
_CONTAINER_SECONDS: Final = 60


@pytest.fixture(scope="session")
def kafka_bootstrap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Bootstrap servers of a broker that all tests of the run share, each with its own topics and groups."""
    address = os.environ.get(ADDRESS_VARIABLE)
    if address:
        yield address
    elif docker_answers():
        with _redpanda() as bootstrap:
            yield bootstrap
    else:
        with _process(tmp_path_factory.mktemp("kafka"), "kafka", nodes=1) as cluster:
            yield cluster.bootstrap


@pytest.fixture(scope="module")
def kafka_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    """One node that the tests of a module may kill, freeze and restart; they leave it running.

    It creates topics for whoever asks, which our clients must not do.
    """
    settings = {"auto.create.topics.enable": "true"}
    directory = tmp_path_factory.mktemp("kafka-process")
    with _process(directory, "kafka-process", nodes=1, settings=settings) as cluster:
        yield cluster


@pytest.fixture
async def kafka_topic(kafka_bootstrap: str) -> str:
    """A new topic with 4 partitions."""
    async with kafka_log(kafka_bootstrap, partitions=4) as log:
        return log.topic


@contextlib.asynccontextmanager
async def kafka_log(
    bootstrap: str, *, partitions: int = 4, replication_factor: int = 1, **overrides: Any
) -> AsyncIterator[KafkaLog]:
    """A log on a topic and with a group of its own; `overrides` are settings.

    The topic is created unless `partitions` is 0. It is not removed: the broker does not outlive the tests.
    """
    log = KafkaLog(kafka_settings(bootstrap, **overrides))
    if partitions:
        admin = log.admin()
        await admin.start()
        try:
            await admin.create(partitions, replication_factor)
            # Answered by the leader of every partition: from here on there is one.
            await admin.offsets()
        finally:
            await admin.stop()
    yield log


def kafka_settings(bootstrap: str, **overrides: Any) -> KafkaSettings:
    """Settings for tests: a new topic and group, quick metadata, sessions as short as brokers allow."""
    name = uuid.uuid4().hex[:12]
    values: dict[str, Any] = {
        "bootstrap_servers": bootstrap,
        "topic": f"events-{name}",
        "group_id": f"aggregator-{name}",
        "session_timeout_seconds": 8,
        "rebalance_timeout_seconds": 6,
        "heartbeat_interval_seconds": 0.3,
        "metadata_max_age_seconds": 2,
        "stop_timeout_seconds": 5,
        **overrides,
    }
    return KafkaSettings(**values)


def docker_answers(timeout: float = 3) -> bool:
    """Whether a container engine answers quickly."""
    if shutil.which("docker") is None or importlib.util.find_spec("testcontainers") is None:
        return False
    try:
        subprocess.run(["docker", "version"], check=True, capture_output=True, timeout=timeout)
    except (subprocess.SubprocessError, OSError):
        return False
    return True


@contextlib.contextmanager
def _redpanda() -> Iterator[str]:
    from testcontainers.community.kafka import RedpandaContainer

    container = RedpandaContainer(image=os.environ.get(REDPANDA_VARIABLE, REDPANDA_IMAGE))
    try:
        container.start(timeout=_CONTAINER_SECONDS)
        yield container.get_bootstrap_server()
    finally:
        container.stop()


@contextlib.contextmanager
def _process(
    directory: Path, what: str, *, nodes: int, settings: Mapping[str, str] | None = None
) -> Iterator[KafkaCluster]:
    cluster = KafkaCluster(directory, nodes=nodes, settings=settings)
    try:
        cluster.start()
    except KafkaMissing as error:
        cluster.kill()
        unavailable(what, f"{error} Or name a running broker in {ADDRESS_VARIABLE}.")
    try:
        yield cluster
    finally:
        cluster.kill()
