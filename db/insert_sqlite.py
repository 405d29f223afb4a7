"""The statements of a batch on SQLite.

A transaction holds the write lock from its beginning, so nothing can change between a look and an insert.
"""

from __future__ import annotations

import datetime as dt
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Final

from sqlalchemy import Connection

from db.batch import Advance, ValidRecord, WhenBusy
from db.counts import CountKey, Counts
from events.event import microseconds

_KEYS_PER_LOOKUP: Final = 500

_MOVE: Final = """
UPDATE partition_progress SET next_offset = ?, fingerprint = ?, owner = ?, updated_at = ?
WHERE log_topic = ? AND partition = ? AND incarnation = ? AND next_offset = ?
"""

_INSERT_KEY: Final = "INSERT INTO event_keys (key, content_hash, seq, stored_at) VALUES (?, ?, ?, ?)"

_INSERT_EVENT: Final = """
INSERT INTO events (seq, stored_at, occurred_at, received_at, log_offset, log_partition, log_incarnation,
    topic, event_id, source, payload)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""

_COUNT: Final = """
INSERT INTO verdict_counts (log_topic, partition, topic, received, stored, duplicate, conflict, dead_lettered,
    first_stored_at, last_stored_at)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (log_topic, partition, topic) DO UPDATE SET
    received = received + excluded.received,
    stored = stored + excluded.stored,
    duplicate = duplicate + excluded.duplicate,
    conflict = conflict + excluded.conflict,
    dead_lettered = dead_lettered + excluded.dead_lettered,
    first_stored_at = coalesce(first_stored_at, excluded.first_stored_at),
    last_stored_at = coalesce(excluded.last_stored_at, last_stored_at)
"""


def move_positions(
    connection: Connection, log_topic: str, advances: Sequence[Advance], owner: str | None, now: dt.datetime
) -> tuple[frozenset[int], dt.datetime]:
    """Move each position that is still the previous one.

    Returns:
        The partitions that moved, and the transaction's time, which is the one given.
    """
    driver, at = _driver(connection), microseconds(now)
    moved = [
        advance.previous.partition
        for advance in advances
        if driver.execute(
            _MOVE,
            (
                advance.next_offset,
                advance.fingerprint,
                owner,
                at,
                log_topic,
                advance.previous.partition,
                advance.previous.incarnation,
                advance.previous.next_offset,
            ),
        ).rowcount
    ]
    return frozenset(moved), now


def prepare(records: Sequence[ValidRecord]) -> Sequence[ValidRecord]:
    """Nothing has to be prepared."""
    return records


def insert_new(
    connection: Connection,
    records: Sequence[ValidRecord],
    incarnations: Mapping[int, int],
    stored_at: dt.datetime,
    _: WhenBusy | None = None,
) -> dict[int, int]:
    """Insert those events whose identity is not stored yet.

    Args:
        records: with distinct identities.
        incarnations: of each partition they come from.

    Returns:
        For each record that was stored before: its index, and the stored content hash.
    """
    driver, at = _driver(connection), microseconds(stored_at)
    known = _stored_hashes(driver, [record.event.key for record in records])
    (seq,) = driver.execute("SELECT coalesce(max(seq), 0) FROM events").fetchone()
    hashes: dict[int, int] = {}
    keys: list[tuple[object, ...]] = []
    events: list[tuple[object, ...]] = []
    for index, record in enumerate(records):
        origin, event = record.at, record.event
        if event.key in known:
            hashes[index] = known[event.key]
            continue
        seq += 1
        keys.append((event.key, event.content_hash, seq, at))
        events.append(
            (
                seq,
                at,
                event.timestamp_us,
                origin.received_at_us,
                origin.offset,
                origin.partition,
                incarnations[origin.partition],
                event.topic,
                event.event_id,
                event.source,
                event.payload.decode(),
            )
        )
    keys.sort()  # neighbours in the index, one after the other
    driver.executemany(_INSERT_KEY, keys)
    driver.executemany(_INSERT_EVENT, events)
    return hashes


def add_counts(
    connection: Connection, log_topic: str, counts: Mapping[CountKey, Counts], stored_at: dt.datetime
) -> None:
    """Add to the counters."""
    at = microseconds(stored_at)
    _driver(connection).executemany(
        _COUNT,
        [
            (
                log_topic,
                partition,
                topic,
                count.received,
                *count,
                *((at, at) if count.stored else (None, None)),
            )
            for (partition, topic), count in counts.items()
        ],
    )


def _stored_hashes(driver: sqlite3.Connection, keys: Sequence[bytes]) -> dict[bytes, int]:
    found: dict[bytes, int] = {}
    for start in range(0, len(keys), _KEYS_PER_LOOKUP):
        some = keys[start : start + _KEYS_PER_LOOKUP]
        places = ",".join("?" * len(some))
        statement = f"SELECT key, content_hash FROM event_keys WHERE key IN ({places})"  # noqa: S608
        found.update(driver.execute(statement, some).fetchall())
    return found


def _driver(connection: Connection) -> sqlite3.Connection:
    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    return driver
