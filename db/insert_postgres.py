"""The statements of a batch on Postgres.

The keys decide which events are new: one statement inserts those that are not there yet, and tells of the
others. COPY knows no ON CONFLICT, but takes rows at twice the rate of any INSERT: new events go by it, and
straight into their table.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any, Final
from uuid import UUID

import msgspec
import psycopg
from sqlalchemy import Connection

from db.batch import Advance, ValidRecord, WhenBusy
from db.counts import CountKey, Counts
from db.errors import StoreUnavailable
from db.postgres_binary import EVENT_COLUMNS, Bigints, EventRows, Uuids

# Keys are inserted in their order, so that two workers with the same keys wait for each other and never
# deadlock. The hash is looked up by a subquery per row, so that no plan ever reads the whole key table.
_INSERT_KEYS: Final = """
WITH given AS MATERIALIZED (
    SELECT key, content_hash, ord, nextval('event_seq') AS seq
    FROM unnest(%(keys)s, %(hashes)s) WITH ORDINALITY AS given (key, content_hash, ord)
), fresh AS (
    INSERT INTO event_keys (key, content_hash, seq, stored_at)
    SELECT key, content_hash, seq, %(stored_at)s::timestamptz FROM given ORDER BY key
    ON CONFLICT DO NOTHING
    RETURNING seq
), known AS (
    SELECT ord - 1 AS place, (SELECT k.content_hash FROM event_keys k WHERE k.key = given.key) AS content_hash
    FROM given
    WHERE NOT EXISTS (SELECT FROM fresh WHERE fresh.seq = given.seq)
)
SELECT (SELECT array_agg(seq ORDER BY ord) FROM given),
    coalesce(array_agg(place), '{}'), coalesce(array_agg(content_hash), '{}')
FROM known
"""

_HASHES: Final = "SELECT key, content_hash FROM event_keys WHERE key = ANY(%s)"

_COPY: Final = f"COPY events ({EVENT_COLUMNS}) FROM STDIN (FORMAT BINARY)"

_MOVE: Final = """
UPDATE partition_progress
SET next_offset = %s::bigint, fingerprint = %s::bigint, owner = %s::text, updated_at = now()
WHERE log_topic = %s::text AND partition = %s::integer AND incarnation = %s::integer
    AND next_offset = %s::bigint
RETURNING partition, now()
"""

_COUNT: Final = """
INSERT INTO verdict_counts AS c (log_topic, partition, topic, received, stored, duplicate, conflict,
    dead_lettered, first_stored_at, last_stored_at)
SELECT %(log_topic)s::text, partition, topic, stored + duplicate + conflict + dead_lettered,
    stored, duplicate, conflict, dead_lettered, at, at
FROM (
    SELECT *, CASE WHEN stored > 0 THEN %(stored_at)s::timestamptz END AS at
    FROM unnest(%(partition)s::integer[], %(topic)s::text[], %(stored)s::bigint[], %(duplicate)s::bigint[],
        %(conflict)s::bigint[], %(dead_lettered)s::bigint[])
        AS added (partition, topic, stored, duplicate, conflict, dead_lettered)
    ORDER BY partition, topic COLLATE "C"
) AS added
ON CONFLICT (log_topic, partition, topic) DO UPDATE SET
    received = c.received + excluded.received,
    stored = c.stored + excluded.stored,
    duplicate = c.duplicate + excluded.duplicate,
    conflict = c.conflict + excluded.conflict,
    dead_lettered = c.dead_lettered + excluded.dead_lettered,
    first_stored_at = coalesce(c.first_stored_at, excluded.first_stored_at),
    last_stored_at = coalesce(excluded.last_stored_at, c.last_stored_at)
"""

_POSTGRES_EPOCH: Final = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)


def move_positions(
    connection: Connection, log_topic: str, advances: Sequence[Advance], owner: str | None, _: dt.datetime
) -> tuple[frozenset[int], dt.datetime]:
    """Move each position that is still the previous one; in the order given.

    Returns:
        The partitions that moved, and the transaction's time by the database's clock.
    """
    if not advances:
        with _driver(connection).cursor() as cursor:
            row = cursor.execute("SELECT now()").fetchone()
        assert row is not None
        return frozenset(), row[0]
    with _driver(connection).cursor() as cursor:
        # One round trip: psycopg pipelines executemany.
        cursor.executemany(
            _MOVE,
            [
                (
                    advance.next_offset,
                    advance.fingerprint,
                    owner,
                    log_topic,
                    advance.previous.partition,
                    advance.previous.incarnation,
                    advance.previous.next_offset,
                )
                for advance in advances
            ],
            returning=True,
        )
        rows = [row for result in cursor.results() for row in result]
    return frozenset(partition for partition, _ in rows), rows[0][1] if rows else _POSTGRES_EPOCH


class Parameters(msgspec.Struct, frozen=True):
    """What the statements take of records with distinct identities."""

    keys: Sequence[bytes]
    packed_keys: Uuids
    packed_hashes: Bigints
    rows: EventRows


def prepare(records: Sequence[ValidRecord]) -> Parameters:
    """All of `insert_new` that needs no connection."""
    keys = [record.event.key for record in records]
    hashes = [record.event.content_hash for record in records]
    return Parameters(keys, Uuids(keys), Bigints(hashes), EventRows(records))


def insert_new(
    connection: Connection,
    parameters: Parameters,
    incarnations: Mapping[int, int],
    stored_at: dt.datetime,
    when_busy: WhenBusy | None = None,
) -> dict[int, int]:
    """Insert those events whose identity is not stored yet.

    Args:
        incarnations: of each partition they come from.

    Returns:
        For each record that was stored before: its index, and the stored content hash.
    """
    keys = parameters.keys
    if not keys:
        return {}
    with _driver(connection).cursor(binary=True) as cursor:
        if when_busy is not None:
            when_busy()
        row = cursor.execute(
            _INSERT_KEYS,
            {
                "keys": parameters.packed_keys,
                "hashes": parameters.packed_hashes,
                "stored_at": stored_at,
            },
            # Its plan would be made for the batch size of the time it was prepared.
            prepare=False,
        ).fetchone()
        assert row is not None
        seqs, places, found_hashes = row
        known: dict[int, int | None] = dict(zip(places, found_hashes, strict=True))
        if len(known) < len(keys):
            with cursor.copy(_COPY) as copy:
                # In pieces, so that the server reads one while the next is being put together.
                for piece in parameters.rows.pack(seqs, known, incarnations, stored_at):
                    copy.write(piece)
        unseen = {keys[index]: index for index, found in known.items() if found is None}
        if unseen:
            # Committed by another worker after our statement began: only a later statement sees these.
            wanted = [UUID(bytes=key) for key in sorted(unseen)]
            for key, found in cursor.execute(_HASHES, (wanted,)):
                known[unseen[key.bytes]] = found
    hashes = {index: found for index, found in known.items() if found is not None}
    if len(hashes) != len(known):
        raise StoreUnavailable("An identity was removed while its batch was being stored; try again.")
    return hashes


def add_counts(
    connection: Connection, log_topic: str, counts: Mapping[CountKey, Counts], stored_at: dt.datetime
) -> None:
    """Add to the counters. Rows are taken in the order of (partition, topic)."""
    if not counts:
        return
    _driver(connection).execute(
        _COUNT,
        {
            "log_topic": log_topic,
            "stored_at": stored_at,
            "partition": [partition for partition, _ in counts],
            "topic": [topic for _, topic in counts],
            "stored": [count.stored for count in counts.values()],
            "duplicate": [count.duplicate for count in counts.values()],
            "conflict": [count.conflict for count in counts.values()],
            "dead_lettered": [count.dead_lettered for count in counts.values()],
        },
    )


def _driver(connection: Connection) -> psycopg.Connection[tuple[Any, ...]]:
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    return driver
