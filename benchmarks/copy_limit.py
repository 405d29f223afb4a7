"""The limit of the store: the rows of distinct events by COPY into the tables and indexes of ours."""

from __future__ import annotations

import time
from typing import Any, Final

import psycopg

from benchmarks.resources import used
from benchmarks.rounds import Figures, LeftOut
from benchmarks.servers import one
from benchmarks.sink_stage import SinkStage
from db.engine import open_engine
from db.partitions import ensure_partitions
from db.settings import DatabaseSettings

RECORDS_AT_ONCE: Final = 5_000
_KEYS: Final = "event_keys (key, content_hash, seq, stored_at)"
_EVENTS: Final = """events (seq, stored_at, occurred_at, received_at, log_offset, log_partition,
    log_incarnation, topic, event_id, source, payload)"""
_MAKE_ROWS: Final = """
CREATE TEMP TABLE made AS
SELECT number AS seq, md5((document->>'topic') || chr(1) || (document->>'event_id'))::uuid AS key,
    hashtextextended(document::text, 0) AS content_hash, now() AS stored_at,
    (document->>'timestamp')::timestamptz AS occurred_at, NULL::timestamptz AS received_at,
    number AS log_offset, (number % 6)::integer AS log_partition, 1 AS log_incarnation,
    document->>'topic' AS topic, document->>'event_id' AS event_id, document->>'source' AS source,
    document->'payload' AS payload
FROM raw
"""


class CopyLimit:
    """Rows packed beforehand, written in the batches of the worker: what the database can take at most.

    Only distinct events are written, so a program that found duplicates at no cost at all would be as fast;
    the rate is that of the records they are the distinct events of.
    """

    name = "limit: direct COPY"
    settings: Final = {
        "rows": "distinct events, packed beforehand; keys in their order",
        "transaction": f"the rows of {RECORDS_AT_ONCE:,} records",
    }

    def __init__(self, stage: SinkStage) -> None:
        self._stage = stage
        self._batches: list[tuple[bytes, bytes]] = []

    def prepare(self) -> None:
        """Let the database pack the rows."""
        load = self._stage.load
        first = {(event.topic, event.event_id): event for event in reversed(load.events)}
        at_once = RECORDS_AT_ONCE * load.distinct // len(load.events)
        with self._stage.database.fresh() as url, psycopg.connect(url) as connection:
            connection.execute("CREATE TEMP TABLE raw (number bigint, document json)")
            with connection.cursor().copy("COPY raw FROM STDIN") as copy:
                for number, event in enumerate(reversed(first.values())):
                    copy.write_row((number, event.value.decode()))
            connection.execute(_MAKE_ROWS)
            connection.execute("CREATE INDEX ON made (seq)")
            for begin in range(0, load.distinct, at_once):
                these = f"FROM made WHERE seq >= {begin} AND seq < {begin + at_once}"
                self._batches.append(
                    (
                        _packed(connection, f"SELECT key, content_hash, seq, stored_at {these} ORDER BY key"),
                        _packed(connection, f"SELECT {_names(_EVENTS)} {these} ORDER BY seq"),
                    )
                )

    def measure(self) -> Figures:
        stage = self._stage
        with stage.database.fresh() as url:
            engine = open_engine(DatabaseSettings.model_validate({"url": url}), application_name="benchmark")
            ensure_partitions(engine)
            engine.dispose()
            with psycopg.connect(url) as connection:
                before, wal, began = used(stage.database.pid), stage.database.wal_bytes(), time.monotonic()
                for keys, events in self._batches:
                    _write(connection, _KEYS, keys)
                    _write(connection, _EVENTS, events)
                    connection.commit()
                seconds = time.monotonic() - began
                after, wal = used(stage.database.pid), stage.database.wal_bytes() - wal
                (rows,) = one(connection, "SELECT count(*) FROM events")
        if rows != stage.load.distinct:
            raise LeftOut(f"{rows:,} rows were written in place of {stage.load.distinct:,}.")
        records = len(stage.load.events)
        return {
            "records_per_second": records / seconds,
            "seconds": seconds,
            "postgres_cpu_us_per_record": (after.cpu_seconds - before.cpu_seconds) / records * 1e6,
            "wal_bytes_per_record": wal / records,
        }


def _write(connection: psycopg.Connection[Any], table: str, rows: bytes) -> None:
    with connection.cursor().copy(f"COPY {table} FROM STDIN (FORMAT BINARY)".encode()) as copy:
        copy.write(rows)


def _packed(connection: psycopg.Connection[Any], query: str) -> bytes:
    with connection.cursor().copy(f"COPY ({query}) TO STDOUT (FORMAT BINARY)".encode()) as copy:
        return b"".join(bytes(piece) for piece in copy)


def _names(table: str) -> str:
    return table.partition("(")[2].rstrip(")")
