"""Strimzi's HTTP bridge for Kafka, from the Maven repository."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from benchmarks.gateway_stage import Gateway, Running, wait_answering
from benchmarks.peers.cache import cache
from benchmarks.servers import run
from benchmarks.workload import Event
from tests.support.processes import Process, free_port

VERSION: Final = "0.33.1"
_COPY: Final = "org.apache.maven.plugins:maven-dependency-plugin:3.9.0:copy-dependencies"
_JAVA: Final = ("-Xms512m", "-Xmx512m")
_POM: Final = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>benchmarks</groupId><artifactId>bridge</artifactId><version>1</version><packaging>pom</packaging>
  <dependencies><dependency>
    <groupId>io.strimzi</groupId><artifactId>kafka-bridge</artifactId><version>{VERSION}</version>
  </dependency></dependencies>
</project>
"""


def jars() -> Path:
    """The directory with the bridge's jars, fetched with Maven on first use. Raises LeftOut."""
    home = cache(f"strimzi-bridge-{VERSION}")
    if not (home / "lib").exists():
        pom, part = home / "pom.xml", home / f"part-{os.getpid()}"
        pom.write_text(_POM)
        shutil.rmtree(part, ignore_errors=True)
        run(["mvn", "-q", "-B", "-f", str(pom), _COPY, f"-DoutputDirectory={part}"], timeout=600)
        part.rename(home / "lib")
    return home / "lib"


class HttpGateway(Gateway):
    """Its own form of request: records with keys and values, for a topic named in the path."""

    name = "Strimzi bridge"
    dialect = "strimzi"
    content_type = "application/vnd.kafka.json.v2+json"
    settings: Mapping[str, str] = {
        "version": VERSION,
        "java": " ".join(_JAVA),
        "producer": "acks=all, compression snappy, linger 1 ms",
        "validation": "JSON",
    }

    def prepare(self) -> None:
        jars()

    def body(self, events: Sequence[Event]) -> bytes:
        return b'{"records":[%b]}' % b",".join(b'{"value":%b}' % event.value for event in events)

    @contextlib.contextmanager
    def running(self, topic: str | None, size: int) -> Iterator[Running]:
        port = free_port()
        directory = self.stage.directory
        file = directory / f"strimzi-{topic}-{size}.properties"
        properties = {
            "bridge.id": "benchmark",
            "http.host": "127.0.0.1",
            "http.port": str(port),
            "http.management.port": str(free_port()),
            "kafka.bootstrap.servers": self.stage.broker.bootstrap,
            "kafka.producer.acks": "all",
            "kafka.producer.compression.type": "snappy",
            "kafka.producer.linger.ms": "1",
        }
        file.write_text("".join(f"{name}={value}\n" for name, value in properties.items()))
        command = ["java", *_JAVA, "-cp", f"{jars()}/*", "io.strimzi.kafka.bridge.Application"]
        process = Process(
            "Strimzi bridge", [*command, f"--config-file={file}"], directory / "strimzi.log", {}
        )
        try:
            wait_answering(process, port)
            yield Running(process, f"http://127.0.0.1:{port}/topics/{topic}")
        finally:
            process.close()
