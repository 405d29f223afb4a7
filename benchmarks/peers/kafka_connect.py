"""Kafka Connect with the Debezium JDBC sink, standalone."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from benchmarks.peers.cache import cache
from benchmarks.servers import parts, run
from benchmarks.sink_stage import LOG_WITH_TEXT, PEER_SCHEMA, PeerSink
from tests.support.archives import unpack
from tests.support.kafka_process import KAFKA_VERSION, kafka_jars
from tests.support.processes import Process, free_port

VERSION: Final = "3.6.0.Final"
_GET: Final = "org.apache.maven.plugins:maven-dependency-plugin:3.9.0"
_JAVA: Final = ("-Xms1g", "-Xmx1g")
_FIELDS: Final = ("topic", "event_id", "timestamp", "source", "payload")
_SCHEMA: Final = {
    "type": "struct",
    "optional": False,
    "fields": [{"field": name, "type": "string", "optional": False} for name in _FIELDS],
}
_CONNECTOR: Final = {
    "connector.class": "io.debezium.connector.jdbc.JdbcSinkConnector",
    "tasks.max": "2",
    "insert.mode": "upsert",
    "primary.key.mode": "record_value",
    "primary.key.fields": "topic,event_id",
    "schema.evolution": "none",
    "collection.name.format": "events",
    "batch.size": "5000",
    "use.reduction.buffer": "true",
    "dialect.postgres.unnest.insert.enabled": "true",
    "consumer.override.max.poll.records": "5000",
    "consumer.override.fetch.min.bytes": "1000000",
    "consumer.override.auto.offset.reset": "earliest",
}
_URL_OPTIONS: Final = "reWriteBatchedInserts=true&stringtype=unspecified"


def plugin() -> Path:
    """The directory with the connector's jars, fetched with Maven on first use. Raises LeftOut."""
    home = cache(f"debezium-jdbc-{VERSION}")
    if not (home / "ready").exists():
        part = home / f"part-{os.getpid()}"
        artifact = f"io.debezium:debezium-connector-jdbc:{VERSION}:tar.gz:plugin"
        run(["mvn", "-q", "-B", f"{_GET}:get", f"-Dartifact={artifact}", "-Dtransitive=false"], timeout=600)
        copy = ["mvn", "-q", "-B", f"{_GET}:copy", f"-Dartifact={artifact}", f"-DoutputDirectory={part}"]
        run(copy, timeout=120)
        with tarfile.open(next(part.glob("*.tar.gz"))) as archive:
            unpack(archive, home)
        shutil.rmtree(part)
        (home / "ready").touch()
    return home


class DebeziumSink(PeerSink):
    """Two tasks, one for each core, with the buffer and the form of statement it has for speed.

    Kafka Connect reads JSON with a fixed schema, in which an object has no place: the payload has to arrive
    as a string. Its form of statement takes no other type for a string either, so both columns are text.
    """

    name = "Kafka Connect, Debezium JDBC"
    schema = PEER_SCHEMA.replace('timestamp" timestamptz', 'timestamp" text').replace(
        "payload json", "payload text"
    )
    settings: Mapping[str, str] = {
        "version": f"Kafka Connect {KAFKA_VERSION}, Debezium JDBC sink {VERSION}",
        "java": " ".join(_JAVA),
        "url": _URL_OPTIONS,
        "payload": "a string in the log; payload and timestamp in columns of text",
        **_CONNECTOR,
    }

    def prepare(self) -> None:
        plugin()

    @contextlib.contextmanager
    def running(self, url: str, group: str) -> Iterator[Process]:
        directory = self.stage.directory / f"connect-{group}"
        directory.mkdir(exist_ok=True)
        host, port, user, database = parts(url)
        worker = {
            "bootstrap.servers": self.stage.broker.bootstrap,
            "listeners": f"http://127.0.0.1:{free_port()}",
            "key.converter": "org.apache.kafka.connect.converters.ByteArrayConverter",
            "value.converter": "org.apache.kafka.connect.json.JsonConverter",
            "value.converter.schemas.enable": "true",
            "value.converter.schema.content": json.dumps(_SCHEMA),
            "offset.storage.file.filename": str(directory / "offsets"),
            "plugin.path": str(plugin()),
        }
        connector = {
            "name": group,
            "topics": LOG_WITH_TEXT,
            "connection.url": f"jdbc:postgresql://{host}:{port}/{database}?{_URL_OPTIONS}",
            "connection.username": user,
            "connection.password": "none",
            **_CONNECTOR,
        }
        log4j = directory / "log4j2.properties"
        log4j.write_text(
            "rootLogger.level = warn\nrootLogger.appenderRef.out.ref = out\nappender.out.type = Console\n"
            "appender.out.name = out\nappender.out.layout.type = PatternLayout\n"
        )
        command = ["java", *_JAVA, f"-Dlog4j2.configurationFile={log4j}", "-cp", f"{kafka_jars()}/*"]
        command += ["org.apache.kafka.connect.cli.ConnectStandalone"]
        command += [_properties(directory / "worker.properties", worker)]
        command += [_properties(directory / "connector.properties", connector)]
        process = Process("Kafka Connect", command, directory / "output.log", {})
        try:
            yield process
            process.terminate()
        finally:
            process.close()


def _properties(file: Path, values: Mapping[str, str]) -> str:
    file.write_text("".join(f"{name}={value}\n" for name, value in values.items()))
    return str(file)
