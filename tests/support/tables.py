"""The product's tables as a test finds them, read with the bare drivers."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import psycopg

from tests.support.ledger import Sent, canonical


class Place(NamedTuple):
    """Coordinates in the log."""

    partition: int
    incarnation: int
    offset: int


class Counts(NamedTuple):
    received: int
    stored: int
    duplicate: int
    conflict: int
    dead_lettered: int


@dataclass(frozen=True)
class Letter:
    place: Place
    reason: str
    key: bytes | None
    value: bytes | None


@dataclass(frozen=True)
class Tables:
    """One consistent look at the tables, of one log topic.

    Attributes:
        events: what is stored, each with where it came from; a list, so that repetitions show.
        positions: partition to (incarnation, next offset).
        gaps: (partition, incarnation that begins after it, from, to, reason).
    """

    events: Sequence[tuple[Sent, Place]]
    keys: Sequence[bytes]
    letters: Sequence[Letter]
    counts: dict[tuple[int, str], Counts]
    positions: dict[int, tuple[int, int]]
    gaps: Sequence[tuple[int, int, int, int | None, str]]


class Store(Protocol):
    """Where the tables are."""

    def tables(self) -> Tables: ...

    def positions(self) -> dict[int, tuple[int, int]]:
        """Raises OSError while the database is away."""


_POSITIONS = "SELECT partition, incarnation, next_offset FROM partition_progress"
_QUERIES = (
    "SELECT topic, event_id, {seconds}, source, CAST(payload AS text), log_partition, log_incarnation,"
    " log_offset FROM events",
    "SELECT {key} FROM event_keys",
    "SELECT log_partition, log_incarnation, log_offset, reason, record_key, record_value FROM dead_letters",
    "SELECT partition, topic, received, stored, duplicate, conflict, dead_lettered FROM verdict_counts",
    _POSITIONS,
    "SELECT partition, incarnation, from_offset, to_offset, reason FROM log_gaps ORDER BY id",
)


class PostgresStore:
    def __init__(self, url: str) -> None:
        self._url = url.replace("+psycopg", "")

    def tables(self) -> Tables:
        with psycopg.connect(self._url, connect_timeout=5) as connection:
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            words = {"seconds": "extract(epoch FROM occurred_at)::bigint", "key": "uuid_send(key)"}
            return _tables([connection.execute(q.format(**words).encode()).fetchall() for q in _QUERIES])

    def positions(self) -> dict[int, tuple[int, int]]:
        try:
            with psycopg.connect(self._url, connect_timeout=2) as connection:
                rows = connection.execute(_POSITIONS.encode()).fetchall()
        except psycopg.Error as error:
            raise OSError(str(error)) from error
        return {partition: (incarnation, offset) for partition, incarnation, offset in rows}


class SqliteStore:
    def __init__(self, path: Path) -> None:
        self._path = path

    def tables(self) -> Tables:
        with closing(self._open()) as connection:
            connection.execute("BEGIN")
            words = {"seconds": "occurred_at / 1000000", "key": "key"}
            return _tables([connection.execute(q.format(**words)).fetchall() for q in _QUERIES])

    def positions(self) -> dict[int, tuple[int, int]]:
        try:
            with closing(self._open()) as connection:
                rows = connection.execute(_POSITIONS).fetchall()
        except sqlite3.Error as error:
            raise OSError(str(error)) from error
        return {partition: (incarnation, offset) for partition, incarnation, offset in rows}

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(f"file:{self._path}?mode=ro", uri=True, timeout=10)


def _tables(rows: Sequence[Sequence[tuple[Any, ...]]]) -> Tables:
    events, keys, letters, counts, positions, gaps = rows
    return Tables(
        events=[
            (Sent(topic, event_id, canonical(seconds, source, json.loads(payload))), Place(*place))
            for topic, event_id, seconds, source, payload, *place in events
        ],
        keys=[bytes(key) for (key,) in keys],
        letters=[
            Letter(Place(partition, incarnation, offset), reason, _bytes(key), _bytes(value))
            for partition, incarnation, offset, reason, key, value in letters
        ],
        counts={(partition, topic): Counts(*figures) for partition, topic, *figures in counts},
        positions={partition: (incarnation, offset) for partition, incarnation, offset in positions},
        gaps=[(p, incarnation, first, end, reason) for p, incarnation, first, end, reason in gaps],
    )


def _bytes(value: Any) -> bytes | None:
    return None if value is None else bytes(value)
