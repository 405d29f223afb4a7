"""The broker and the database that a benchmark runs against: durable, and the same for every contestant."""

from __future__ import annotations

import contextlib
import itertools
import re
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import psycopg
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from sqlalchemy.engine import make_url

from benchmarks.rounds import LeftOut
from tests.support.kafka_process import KAFKA_VERSION, KafkaCluster, KafkaMissing, kafka_jars
from tests.support.postgres import ProcessServer, create_database, drop_database, migrate, own_server
from tests.support.processes import Process

JAVA: Final = ("-Xms1g", "-Xmx1g")
POSTGRES: Final = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "shared_buffers": "1GB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "15min",
}
PARTITIONS: Final = 6

_numbers: Final = itertools.count(1)
_COLOUR: Final = re.compile("\x1b\\[[0-9;]*m")
_SHOWN: Final = 300
_ADDRESS: Final = re.compile(r"https?://\S+|/\w[\w.-]*(?:/[\w.-]+){2,}")


class Broker:
    """One Apache Kafka node of the benchmark's own."""

    settings: Final = {
        "what": f"Apache Kafka {KAFKA_VERSION}, one node, KRaft",
        "java": " ".join(JAVA),
        "partitions": str(PARTITIONS),
        "flush": "left to the operating system, as Kafka is run",
    }

    def __init__(self, cluster: KafkaCluster) -> None:
        self._cluster = cluster
        self.bootstrap = cluster.bootstrap
        self._admin = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0})

    @property
    def pid(self) -> int:
        return self._cluster.brokers[0].pid

    def create_topic(self, name: str, partitions: int = PARTITIONS) -> None:
        """A new topic whose partitions have leaders."""
        self._admin.create_topics([NewTopic(name, partitions, 1)])[name].result(30)
        deadline = time.monotonic() + 30
        while True:
            found = self._admin.list_topics(name, timeout=10).topics[name].partitions.values()
            if len(found) == partitions and all(partition.leader >= 0 for partition in found):
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"The topic {name} has no leaders within 30 s.")
            time.sleep(0.05)

    def delete_topic(self, name: str) -> None:
        self._admin.delete_topics([name])[name].result(30)

    def fill(self, topic: str, records: Iterable[tuple[bytes, bytes]]) -> None:
        """Append keys and values, placed as the gateway places them, and wait until all are acknowledged."""
        failed: list[object] = []
        producer = Producer(
            {
                "bootstrap.servers": self.bootstrap,
                "acks": "all",
                "partitioner": "consistent",
                "compression.type": "snappy",
                "linger.ms": 20,
                "queue.buffering.max.messages": 1_000_000,
            }
        )

        def delivered(error: object, _: object) -> None:
            if error is not None:
                failed.append(error)

        for key, value in records:
            while True:
                try:
                    producer.produce(topic, value, key, on_delivery=delivered)
                    break
                except BufferError:
                    producer.poll(0.1)
            producer.poll(0)
        if producer.flush(120) or failed:
            raise RuntimeError(f"The topic {topic} could not be filled: {failed[:1]}")

    def end_offset(self, topic: str) -> int:
        """The sum over all partitions: how many records were ever appended."""
        return sum(end for _, end in self._watermarks(topic))

    def values(self, topic: str) -> Iterator[bytes]:
        """Of every record that the topic holds."""
        from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

        consumer = Consumer({"bootstrap.servers": self.bootstrap, "group.id": "values", "log_level": 0})
        left = self.end_offset(topic)
        try:
            partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
            consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in partitions])
            while left:
                record = consumer.poll(10)
                if record is None or record.error():
                    raise LeftOut(f"The log does not give what it holds: {record and record.error()}")
                yield record.value() or b""
                left -= 1
        finally:
            consumer.close()

    def _watermarks(self, topic: str) -> Iterator[tuple[int, int]]:
        from confluent_kafka import Consumer, TopicPartition

        consumer = Consumer({"bootstrap.servers": self.bootstrap, "group.id": "watermarks", "log_level": 0})
        try:
            for partition in consumer.list_topics(topic, timeout=10).topics[topic].partitions:
                yield consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=10)
        finally:
            consumer.close()


class Database:
    """One Postgres server of the benchmark's own."""

    def __init__(self, server: ProcessServer) -> None:
        self._server = server
        self.settings = {"what": f"Postgres {server.version}", **POSTGRES}
        self._template = f"template_{next(_numbers)}"
        migrate(create_database(server.url, self._template))

    @property
    def pid(self) -> int:
        return self._server.pid

    @contextlib.contextmanager
    def fresh(self, *, schema: str | None = None) -> Iterator[str]:
        """The URL of a new database: with our schema, or with what the statements make.

        The server has written everything to disk and has nothing left to do when it is handed out.
        """
        name = f"round_{next(_numbers)}"
        template = self._template if schema is None else "template0"
        url = create_database(self._server.url, name, template)
        try:
            with psycopg.connect(url, autocommit=True) as connection:
                if schema is not None:
                    connection.execute(schema.encode())
                connection.execute("VACUUM ANALYZE")
                connection.execute("CHECKPOINT")
            yield url
        finally:
            drop_database(self._server.url, name)

    def wal_bytes(self) -> int:
        """Written since the server was made."""
        with psycopg.connect(self._server.url) as connection:
            (written,) = one(connection, "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint")
        return int(written)


def one(
    connection: psycopg.Connection[Any], statement: str, parameters: Sequence[Any] = ()
) -> tuple[Any, ...]:
    """The one row that a statement returns."""
    row = connection.execute(statement.encode(), parameters).fetchone()
    assert row is not None
    return tuple(row)


def parts(url: str) -> tuple[str, int, str, str]:
    """Host, port, user and database of a URL."""
    parsed = make_url(url)
    return parsed.host or "", parsed.port or 5432, parsed.username or "", parsed.database or ""


@contextlib.contextmanager
def broker(directory: Path) -> Iterator[Broker]:
    """Raises LeftOut where Apache Kafka cannot be started."""
    cluster = KafkaCluster(directory / "kafka", java=JAVA)
    try:
        kafka_jars()
        with cluster.running():
            yield Broker(cluster)
    except KafkaMissing as error:
        raise LeftOut(str(error)) from error


@contextlib.contextmanager
def database() -> Iterator[Database]:
    """A server with fsync on, and memory as a small production server has it."""
    server = own_server(settings=POSTGRES)
    try:
        yield Database(server)
    finally:
        server.close()


def require_running(*processes: Process) -> None:
    """Raise LeftOut if one of them has ended by itself."""
    for process in processes:
        if process.returncode is not None:
            raise LeftOut(f"{process.name} ended with {process.returncode}: {process.output()[-600:]}")


@contextlib.contextmanager
def work_directory() -> Iterator[Path]:
    """A directory that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="aggregator-benchmark-") as directory:
        yield Path(directory)


def run(command: Sequence[str], *, timeout: float, **options: Any) -> str:
    """Run a command to its end and return what it printed.

    Raises LeftOut with the beginning of its output, less addresses: they are this machine's business.
    """
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=timeout, **options
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LeftOut(f"`{command[0]}` did not run: {error}") from error
    if done.returncode != 0:
        said = _ADDRESS.sub("…", _COLOUR.sub("", done.stdout + done.stderr).strip())
        raise LeftOut(f"`{' '.join(command[:2])} …` failed: {said.replace('[ERROR] ', '')[:_SHOWN]}")
    return str(done.stdout)
