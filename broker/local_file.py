"""The embedded log's SQLite file: what is in it, how it is written, how it is read.

One connection writes, and only that one checkpoints, so the WAL-reset defect of SQLite before 3.51.3 (a
checkpoint on one connection racing with a write on another) cannot occur. Both classes belong to the thread
that opened them; `LogFile.partitions` alone may be read from anywhere.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec
from msgspec.structs import replace

from broker.errors import BrokerError, LogFull, LogMisconfigured, LogUnavailable, OffsetOutOfRange
from broker.local_segments import (
    MAX_OFFSET,
    Segment,
    base_offset,
    make_segments,
    missing,
    read_segment,
    segment_id,
)
from broker.ports import Record, UndecodableRecord

FORMAT: Final = 1
_APPLICATION_ID: Final = 0x65766C67
_BUSY_TIMEOUT_MS: Final = 5_000
_ROOM_SEGMENTS: Final = 256
"""Segments removed at once, per partition, to make room in a full log."""

_SCHEMA: Final = (
    """CREATE TABLE partitions (
        partition INTEGER PRIMARY KEY,
        beginning_offset INTEGER NOT NULL,
        end_offset INTEGER NOT NULL,
        committed_offset INTEGER
    )""",
    """CREATE TABLE segments (
        id INTEGER PRIMARY KEY,
        next_offset INTEGER NOT NULL,
        timestamp_ms INTEGER NOT NULL,
        checksum INTEGER NOT NULL,
        records BLOB NOT NULL
    )""",
)


class PartitionState(msgspec.Struct, frozen=True):
    """Offsets `beginning` up to but not including `end` are held; `committed` is the group's, if any."""

    beginning: int
    end: int
    committed: int | None


class Span(msgspec.Struct, frozen=True):
    """A wish for at least `records` records from `position` on, where there are as many before `end`."""

    partition: int
    position: int
    end: int
    records: int


class LogFile:
    """The writing side: appends, commits offsets, trims. Each change is one transaction and one fsync.

    Attributes:
        partitions: the committed state, replaced as a whole after each transaction: any thread may read it.
    """

    def __init__(self, path: Path, *, partitions: int, max_bytes: int | None) -> None:
        self._path = path
        self._new_partitions = partitions
        self._max_bytes = max_bytes
        self._db: sqlite3.Connection | None = None
        self.partitions: Mapping[int, PartitionState] = {}

    def open(self) -> None:
        """Open the file, or create it with its partitions.

        Raises:
            LogMisconfigured: the file is something else, or of a newer version.
            LogUnavailable, LogFull: the file cannot be opened or created.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LogUnavailable(f"The log {self._path} cannot be created: {error}.") from error
        db = self._db = _connect(self._path)
        try:
            with _translated(self._path):
                # First of all: on a foreign file this fails or reads only, and changes nothing.
                is_new = self._is_new(db)
                (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
                if mode != "wal":
                    raise LogMisconfigured(
                        f"The file system of {self._path} cannot hold a log (no write-ahead logging);"
                        " choose a data directory on a local disk."
                    )
                db.execute("PRAGMA synchronous = FULL")
                if is_new:
                    self._create()
                self._limit_size(db)
                self._load(db)
        except BrokerError:
            self.close()
            raise

    def close(self) -> None:
        """Close; the last connection to close folds the write-ahead log into the file. Idempotent."""
        if self._db is not None:
            self._db.close()
            self._db = None

    def append(self, records: Mapping[int, Sequence[bytes]], timestamp_ms: int) -> None:
        """Append encoded records to partitions: all of them are durable on return, none after an error.

        A full log first gives up the oldest records that the group has committed, whatever their age.

        Raises LogFull, LogUnavailable.
        """
        try:
            self._append(records, timestamp_ms)
        except LogFull:
            if not self._make_room():
                raise
            self._append(records, timestamp_ms)

    def commit(self, committable: Mapping[int, int]) -> None:
        """Set the group's committed offsets. Raises LogFull, LogUnavailable."""
        with self._transaction() as db:
            db.executemany(
                "UPDATE partitions SET committed_offset = ? WHERE partition = ?",
                [(offset, partition) for partition, offset in committable.items()],
            )
        self._apply({p: replace(self.partitions[p], committed=offset) for p, offset in committable.items()})

    def trim(self, before_ms: int | None, segments: int) -> int:
        """Remove the oldest segments that were appended before a time and lie below the committed offset.

        The record just below the committed offset always stays, so that a reader can recognise the log.

        Args:
            before_ms: the time; None for any age.
            segments: at most this many per partition, to keep the transaction short.

        Returns:
            Records removed; 0 when there is nothing left to remove.

        Raises LogFull, LogUnavailable.
        """
        beginnings: dict[int, int] = {}
        with self._transaction() as db:
            for partition, state in self.partitions.items():
                beginning = _trim_partition(db, partition, state, before_ms, segments)
                if beginning > state.beginning:
                    beginnings[partition] = beginning
        removed = sum(beginning - self.partitions[p].beginning for p, beginning in beginnings.items())
        self._apply({p: replace(self.partitions[p], beginning=b) for p, b in beginnings.items()})
        return removed

    def _is_new(self, db: sqlite3.Connection) -> bool:
        (application_id,) = db.execute("PRAGMA application_id").fetchone()
        (version,) = db.execute("PRAGMA user_version").fetchone()
        (tables,) = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if application_id == version == tables == 0:
            return True
        if application_id != _APPLICATION_ID:
            raise LogMisconfigured(f"{self._path} is not an event log; choose another data directory.")
        if version > FORMAT:
            raise LogMisconfigured(
                f"The log {self._path} was written by a newer version of this program (format {version},"
                f" known up to {FORMAT}); run that version, or choose another data directory."
            )
        return False

    def _create(self) -> None:
        with self._transaction() as db:
            for statement in _SCHEMA:
                db.execute(statement)
            db.executemany(
                "INSERT INTO partitions VALUES (?, 0, 0, NULL)", [(p,) for p in range(self._new_partitions)]
            )
            db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {FORMAT}")

    def _limit_size(self, db: sqlite3.Connection) -> None:
        if self._max_bytes is not None:
            (page_bytes,) = db.execute("PRAGMA page_size").fetchone()
            db.execute(f"PRAGMA max_page_count = {max(1, self._max_bytes // page_bytes)}")

    def _load(self, db: sqlite3.Connection) -> None:
        self.partitions = _partition_states(db)

    def _append(self, records: Mapping[int, Sequence[bytes]], timestamp_ms: int) -> None:
        ends = {p: self.partitions[p].end + len(encoded) for p, encoded in records.items()}
        with self._transaction() as db:
            db.executemany(
                "INSERT INTO segments (id, next_offset, timestamp_ms, checksum, records)"
                " VALUES (?, ?, ?, ?, ?)",
                (
                    (segment.id, segment.next_offset, timestamp_ms, segment.checksum, segment.records)
                    for p, encoded in records.items()
                    for segment in make_segments(p, self.partitions[p].end, encoded, timestamp_ms)
                ),
            )
            db.executemany(
                "UPDATE partitions SET end_offset = ? WHERE partition = ?",
                [(end, p) for p, end in ends.items()],
            )
        self._apply({p: replace(self.partitions[p], end=end) for p, end in ends.items()})

    def _make_room(self) -> bool:
        if self._db is not None:
            with _translated(self._path):
                # The write-ahead log starts over in the space it has, so that removing needs no disk space.
                self._db.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
        return self.trim(None, _ROOM_SEGMENTS) > 0

    def _apply(self, changes: Mapping[int, PartitionState]) -> None:
        self.partitions = {**self.partitions, **changes}

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing; on disk when the block ends without an error."""
        db = self._db
        if db is None:
            raise LogUnavailable("The local log is closed.")
        with _translated(self._path):
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")


class LogFileReader:
    """The reading side; never writes and never checkpoints. Any number may read while a `LogFile` writes,
    in whatever process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db: sqlite3.Connection | None = None

    def open(self) -> None:
        """Open the file, which has to exist. Raises LogUnavailable."""
        self._db = _connect(self._path, read_only=True)

    def close(self) -> None:
        """Idempotent."""
        if self._db is not None:
            self._db.close()
            self._db = None

    def partitions(self) -> dict[int, PartitionState]:
        """The committed state. Raises LogUnavailable, LogMisconfigured."""
        if self._db is None:
            raise LogUnavailable("The local log is closed.")
        with _translated(self._path):
            return _partition_states(self._db)

    def read(self, spans: Sequence[Span], max_bytes: int) -> list[list[Record | UndecodableRecord]]:
        """Read each span, in whole segments, so a span can get more records than it asks for.

        Args:
            max_bytes: reading ends with the segment that reaches this sum; later spans then get nothing.

        Raises:
            OffsetOutOfRange: records at the position of a span have been trimmed.
            LogUnavailable: the file cannot be read.
        """
        if self._db is None:
            raise LogUnavailable("The local log is closed.")
        with _translated(self._path):
            self._db.execute("BEGIN")
            try:
                answers: list[list[Record | UndecodableRecord]] = []
                for span in spans:
                    found: list[Record | UndecodableRecord] = []
                    if max_bytes > 0:
                        found, read_bytes = _read_span(self._db, span, max_bytes)
                        max_bytes -= read_bytes
                    answers.append(found)
                return answers
            finally:
                self._db.execute("ROLLBACK")


def _read_span(
    db: sqlite3.Connection, span: Span, max_bytes: int
) -> tuple[list[Record | UndecodableRecord], int]:
    """What lies missing between segments, which only damage can cause, is returned as undecodable."""
    (beginning,) = db.execute(
        "SELECT beginning_offset FROM partitions WHERE partition = ?", (span.partition,)
    ).fetchone()
    if span.position < beginning:
        raise OffsetOutOfRange(span.partition, span.position)
    found: list[Record | UndecodableRecord] = []
    position, read_bytes = span.position, 0
    for segment in _segments_of(db, span):
        if segment.next_offset <= position:
            continue
        if segment.base > position:
            found.append(missing(span.partition, position, segment.base))
        found.extend(read_segment(segment, position))
        position = segment.next_offset
        read_bytes += len(segment.records)
        if len(found) >= span.records or read_bytes >= max_bytes:
            return found, read_bytes
    if position < span.end:
        found.append(missing(span.partition, position, span.end))
    return found, read_bytes


def _segments_of(db: sqlite3.Connection, span: Span) -> Iterator[Segment]:
    first, at, end = (segment_id(span.partition, offset) for offset in (0, span.position, span.end))
    for row_id, *row in db.execute(
        "SELECT id, next_offset, timestamp_ms, checksum, records FROM segments"
        " WHERE id >= coalesce((SELECT max(id) FROM segments WHERE id BETWEEN ? AND ?), ?) AND id < ?"
        " ORDER BY id",
        (first, at, at, end),
    ):
        yield Segment(span.partition, base_offset(row_id), *row)


def _trim_partition(
    db: sqlite3.Connection, partition: int, state: PartitionState, before_ms: int | None, segments: int
) -> int:
    """Remove what may go and return the new beginning."""
    removable_below = min(state.committed or 0, state.end) - 1
    first, beginning, last = segment_id(partition, 0), state.beginning, None
    for row_id, next_offset, timestamp_ms in db.execute(
        "SELECT id, next_offset, timestamp_ms FROM segments WHERE id BETWEEN ? AND ? ORDER BY id LIMIT ?",
        (first, segment_id(partition, MAX_OFFSET), segments),
    ):
        if next_offset > removable_below or (before_ms is not None and timestamp_ms >= before_ms):
            break
        beginning, last = next_offset, row_id
    if last is not None:
        db.execute("DELETE FROM segments WHERE id BETWEEN ? AND ?", (first, last))
        db.execute("UPDATE partitions SET beginning_offset = ? WHERE partition = ?", (beginning, partition))
    return beginning


def _partition_states(db: sqlite3.Connection) -> dict[int, PartitionState]:
    rows = db.execute(
        "SELECT partition, beginning_offset, end_offset, committed_offset FROM partitions ORDER BY partition"
    )
    return {partition: PartitionState(*offsets) for partition, *offsets in rows}


def _connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    # Opened to read only, SQLite does not checkpoint either, also not when it is the last to close.
    address = f"{path.resolve().as_uri()}?mode={'ro' if read_only else 'rwc'}"
    with _translated(path):
        db = sqlite3.connect(address, isolation_level=None, uri=True)
        db.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")
        return db


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """SQLite's errors as ours, told apart by code."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            raise LogFull(
                f"The log {path} is full: it reached its size limit, or its disk is full."
            ) from error
        if code == sqlite3.SQLITE_NOTADB:
            raise LogMisconfigured(f"{path} is not an event log; choose another data directory.") from error
        raise LogUnavailable(f"The log {path} cannot be used at the moment: {error}.") from error
