"""The statements of a batch on Postgres.

Rows go by binary COPY into a temporary staging table, and from there by one statement into the key table and
the events table: COPY itself knows no ON CONFLICT.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from struct import Struct
from typing import Any, Final
from uuid import UUID

import psycopg
from sqlalchemy import Connection

from db.batch import Advance, ValidRecord, WhenSent
from db.counts import CountKey, Counts
from db.errors import StoreUnavailable

_PREPARED: Final = "staging_prepared"

# The sequence is named as text: a dependency of a session's table would keep it from ever being dropped.
_CREATE_STAGING: Final = """
CREATE TEMP TABLE IF NOT EXISTS staging (
    ord integer NOT NULL,
    key uuid NOT NULL,
    content_hash bigint NOT NULL,
    occurred_at timestamptz NOT NULL,
    received_at timestamptz,
    log_offset bigint NOT NULL,
    log_partition integer NOT NULL,
    log_incarnation integer NOT NULL,
    topic text NOT NULL,
    event_id text NOT NULL,
    source text NOT NULL,
    payload json NOT NULL,
    seq bigint NOT NULL DEFAULT nextval('event_seq'::text)
) ON COMMIT DELETE ROWS
"""

_COPY: Final = """
COPY pg_temp.staging (ord, key, content_hash, occurred_at, received_at, log_offset, log_partition,
    log_incarnation, topic, event_id, source, payload)
FROM STDIN (FORMAT BINARY)
"""

# Keys are inserted in their order, so that two workers with the same keys wait for each other and never
# deadlock. The hash is looked up by a subquery per row, so that no plan ever reads the whole key table.
_INSERT: Final = """
WITH fresh AS (
    INSERT INTO event_keys (key, content_hash, seq, stored_at)
    SELECT key, content_hash, seq, %(stored_at)s::timestamptz FROM pg_temp.staging ORDER BY key
    ON CONFLICT DO NOTHING
    RETURNING seq
), stored AS (
    INSERT INTO events (seq, stored_at, occurred_at, received_at, log_offset, log_partition, log_incarnation,
        topic, event_id, source, payload)
    SELECT seq, %(stored_at)s::timestamptz, occurred_at, received_at, log_offset, log_partition,
        log_incarnation, topic, event_id, source, payload
    FROM pg_temp.staging JOIN fresh USING (seq)
)
SELECT ord, (SELECT k.content_hash FROM event_keys k WHERE k.key = s.key)
FROM pg_temp.staging s
WHERE NOT EXISTS (SELECT FROM fresh WHERE fresh.seq = s.seq)
"""

_HASHES: Final = "SELECT key, content_hash FROM event_keys WHERE key = ANY(%s)"

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

# Binary COPY: a header, then per row the number of fields and, per field, its length and bytes.
_COPY_HEADER: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_COPY_TRAILER: Final = b"\xff\xff"
_FIELDS: Final = 12
_ROW: Final = Struct("!hiii16siqiqiqiqiiii")
_ROW_WITHOUT_RECEIVED: Final = Struct("!hiii16siqiqiiqiiii")
_LENGTH: Final = Struct("!i")
_PIECES_AT_ONCE: Final = 3_500
"""Seven per row: about 500 rows."""
_NULL: Final = -1
_POSTGRES_EPOCH: Final = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
_POSTGRES_EPOCH_US: Final = 946_684_800_000_000


def prepare(connection: Connection) -> None:
    """Make the session ready; has to come first in a transaction. Once per session it commits."""
    if _PREPARED in connection.info:
        return
    driver = _driver(connection)
    driver.execute(_CREATE_STAGING)
    # Were it part of the caller's transaction, a rollback would take the table away again.
    driver.commit()
    connection.info[_PREPARED] = True


def discard_staged(connection: Connection) -> None:
    """Give the session an empty staging table until the savepoint or transaction is rolled back.

    Rows that are rolled back stay in the file until the next commit, and every reading goes through them.
    """
    _driver(connection).execute("TRUNCATE pg_temp.staging")


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


def insert_new(
    connection: Connection,
    records: Sequence[ValidRecord],
    incarnations: Mapping[int, int],
    stored_at: dt.datetime,
    when_sent: WhenSent | None = None,
) -> dict[int, int]:
    """Insert those events whose identity is not stored yet.

    Args:
        records: with distinct identities.
        incarnations: of each partition they come from.

    Returns:
        For each record that was stored before: its index, and the stored content hash.
    """
    if not records:
        return {}
    with _driver(connection).cursor(binary=True) as cursor:
        with cursor.copy(_COPY) as copy:
            # In pieces, so that the server reads one while the next is being packed.
            for piece in pack_rows(records, incarnations):
                copy.write(piece)
        if when_sent is not None:
            when_sent()
        # Never a prepared statement: its plan would be made for the batch size of the time it was prepared.
        known: dict[int, int | None] = dict(
            cursor.execute(_INSERT, {"stored_at": stored_at}, prepare=False).fetchall()
        )
        unseen = {records[index].event.key: index for index, found in known.items() if found is None}
        if unseen:
            # Committed by another worker after our statement began: only a later statement sees these.
            keys = [UUID(bytes=key) for key in sorted(unseen)]
            for key, found in cursor.execute(_HASHES, (keys,)):
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


def pack_rows(records: Sequence[ValidRecord], incarnations: Mapping[int, int]) -> Iterator[bytes]:
    """The staging rows of these records, in the format of binary COPY, in pieces.

    Raises:
        UnicodeEncodeError: a text holds a lone surrogate.
    """
    row, row_without_received, length = _ROW.pack, _ROW_WITHOUT_RECEIVED.pack, _LENGTH.pack
    pieces = [_COPY_HEADER]
    add = pieces.append
    texts: dict[str, bytes] = {}
    for index, record in enumerate(records):
        at, event = record.at, record.event
        fixed = (8, at.offset, 4, at.partition, 4, incarnations[at.partition])
        identity = (
            _FIELDS,
            4,
            index,
            16,
            event.key,
            8,
            event.content_hash,
            8,
            event.timestamp_us - _POSTGRES_EPOCH_US,
        )
        if at.received_at_us is None:
            add(row_without_received(*identity, _NULL, *fixed))
        else:
            add(row(*identity, 8, at.received_at_us - _POSTGRES_EPOCH_US, *fixed))
        # Few topics and sources serve many events.
        topic = texts.get(event.topic)
        if topic is None:
            topic = texts[event.topic] = _text(event.topic)
        source = texts.get(event.source)
        if source is None:
            source = texts[event.source] = _text(event.source)
        event_id = event.event_id.encode()
        payload = event.payload
        pieces += (topic, length(len(event_id)), event_id, source, length(len(payload)), payload)
        if len(pieces) > _PIECES_AT_ONCE:
            yield b"".join(pieces)
            pieces.clear()
    add(_COPY_TRAILER)
    yield b"".join(pieces)


def _text(value: str) -> bytes:
    encoded = value.encode()
    return _LENGTH.pack(len(encoded)) + encoded


def _driver(connection: Connection) -> psycopg.Connection[tuple[Any, ...]]:
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    return driver
