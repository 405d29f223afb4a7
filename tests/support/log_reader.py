"""The whole log, read by a client that is not ours."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

_OFFSET_BITS: Final = 48


@dataclass(frozen=True)
class LogRecord:
    """A record with its place; `incarnation` is what the store calls this life of the log topic."""

    partition: int
    incarnation: int
    offset: int
    key: bytes | None
    value: bytes | None


class KafkaReader:
    """Reads a topic through librdkafka, `read_committed`, without joining the group it asks about."""

    def __init__(self, bootstrap: str, topic: str, group: str) -> None:
        self._topic = topic
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap,
                "group.id": group,
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "enable.partition.eof": False,
                "auto.offset.reset": "error",
                "reconnect.backoff.max.ms": 500,
                "topic.metadata.refresh.interval.ms": 2_000,
                "log_level": 0,
            }
        )

    def close(self) -> None:
        self._consumer.close()

    def partitions(self, timeout: float = 10.0) -> list[int]:
        """Raises KafkaException."""
        metadata = self._consumer.list_topics(self._topic, timeout).topics[self._topic]
        if metadata.error is not None:
            raise KafkaException(metadata.error)
        return sorted(metadata.partitions)

    def ends(self, timeout: float = 10.0) -> dict[int, int]:
        """The end offset of every partition, of committed records. Raises KafkaException."""
        return {partition: self._watermarks(partition, timeout)[1] for partition in self.partitions(timeout)}

    def committed(self, timeout: float = 10.0) -> dict[int, int]:
        """The group's offsets, where there are any. Raises KafkaException."""
        places = [TopicPartition(self._topic, partition) for partition in self.partitions(timeout)]
        return {p.partition: p.offset for p in self._consumer.committed(places, timeout) if p.offset >= 0}

    def records(self, incarnations: Mapping[int, int], timeout: float = 60.0) -> list[LogRecord]:
        """Everything the topic holds now, in order within each partition. Raises KafkaException.

        Args:
            incarnations: of each partition; 1 where it is not named.
        """
        deadline = time.monotonic() + timeout
        found: list[LogRecord] = []
        places = []
        open_ends: dict[int, int] = {}
        for partition in self.partitions():
            beginning, end = self._watermarks(partition, 10.0)
            if end > beginning:
                open_ends[partition] = end
                places.append(TopicPartition(self._topic, partition, beginning))
        self._consumer.assign(places)
        try:
            while open_ends:
                assert time.monotonic() < deadline, f"the log was not read to its end: {open_ends}"
                for message in self._consumer.consume(1_000, 0.2):
                    if message.error() is not None:
                        raise KafkaException(message.error())
                    found.append(_record(message, incarnations))
                # The position passes transaction markers, of which no record tells.
                for place in self._consumer.position([TopicPartition(self._topic, p) for p in open_ends]):
                    if place.offset >= open_ends[place.partition]:
                        del open_ends[place.partition]
        finally:
            self._consumer.unassign()
        found.sort(key=lambda record: (record.partition, record.offset))
        return found

    def _watermarks(self, partition: int, timeout: float) -> tuple[int, int]:
        beginning, end = self._consumer.get_watermark_offsets(TopicPartition(self._topic, partition), timeout)
        return beginning, end


def _record(message: Message, incarnations: Mapping[int, int]) -> LogRecord:
    partition, offset = message.partition(), message.offset()
    assert partition is not None
    assert offset is not None
    return LogRecord(partition, incarnations.get(partition, 1), offset, message.key(), message.value())


class LocalReader:
    """Reads the embedded log's SQLite file by itself. Raises OSError while it is away."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def close(self) -> None:
        """Nothing is kept open."""

    def ends(self) -> dict[int, int]:
        return {p: int(end) for p, end, _ in self._partitions()}

    def committed(self) -> dict[int, int]:
        return {p: int(committed) for p, _, committed in self._partitions() if committed is not None}

    def records(self, incarnations: Mapping[int, int]) -> list[LogRecord]:
        found = []
        with closing(_read_only(self._path)) as file:
            for number, blob in file.execute("SELECT id, records FROM segments ORDER BY id"):
                partition, base = number >> _OFFSET_BITS, number & ((1 << _OFFSET_BITS) - 1)
                for offset, (key, value, _) in enumerate(msgspec.msgpack.decode(blob), base):
                    found.append(LogRecord(partition, incarnations.get(partition, 1), offset, key, value))
        return found

    def _partitions(self) -> Sequence[tuple[int, int, int | None]]:
        try:
            with closing(_read_only(self._path)) as file:
                return file.execute(
                    "SELECT partition, end_offset, committed_offset FROM partitions"
                ).fetchall()
        except sqlite3.Error as error:
            raise OSError(str(error)) from error


def _read_only(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)
