"""The tables.

Identity and content are kept apart: `event_keys` is narrow and never partitioned, so one small index decides
whether an event is new, while `events` is partitioned by `stored_at` on Postgres, so retention drops whole
partitions. A partition column inside the unique key would defeat deduplication.
"""

from __future__ import annotations

import datetime as dt

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from db.types import BigSerial, Identity16, RawJson, UtcTime

# Small tables whose every row changes with every batch: room in the page for the next version of a row, and
# vacuum by number of changes, not by share of the table.
_HOT = {
    "fillfactor": 50,
    "autovacuum_vacuum_scale_factor": 0,
    "autovacuum_vacuum_threshold": 1000,
    "autovacuum_analyze_scale_factor": 0,
    "autovacuum_analyze_threshold": 10000,
}


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "%(table_name)s_%(column_0_N_name)s_idx",
            "uq": "%(table_name)s_%(column_0_N_name)s_key",
            "ck": "%(table_name)s_%(constraint_name)s_check",
            "pk": "%(table_name)s_pkey",
        }
    )


def _block_index(name: str, column: str) -> Index:
    """On Postgres, an index of which values each hundred blocks or so hold."""
    brin = Index(name, column, postgresql_using="brin", postgresql_with={"autosummarize": "on"})
    return brin.ddl_if(dialect="postgresql")


class EventKeyRow(Base):
    """Which identities are stored, with what content, and where: the row that makes an event count once."""

    __tablename__ = "event_keys"
    __table_args__ = ({"sqlite_with_rowid": False},)

    key: Mapped[bytes] = mapped_column(Identity16, primary_key=True)
    content_hash: Mapped[int] = mapped_column(BigInteger)
    seq: Mapped[int] = mapped_column(BigInteger)
    stored_at: Mapped[dt.datetime] = mapped_column(UtcTime)


class EventRow(Base):
    """A stored event. `seq` orders events by storing; a later one can be visible before an earlier one."""

    __tablename__ = "events"
    __table_args__ = (
        PrimaryKeyConstraint("seq", "stored_at"),
        Index(None, "topic", "seq"),
        _block_index("events_occurred_at_idx", "occurred_at"),
        _block_index("events_seq_idx", "seq"),
        {"postgresql_partition_by": "RANGE (stored_at)"},
    )

    seq: Mapped[int] = mapped_column(BigInteger, autoincrement=False)
    stored_at: Mapped[dt.datetime] = mapped_column(UtcTime)
    occurred_at: Mapped[dt.datetime] = mapped_column(UtcTime)
    received_at: Mapped[dt.datetime | None] = mapped_column(UtcTime)
    log_offset: Mapped[int] = mapped_column(BigInteger)
    log_partition: Mapped[int] = mapped_column(Integer)
    log_incarnation: Mapped[int] = mapped_column(Integer)
    topic: Mapped[str] = mapped_column(Text)
    event_id: Mapped[str] = mapped_column(Text)
    source: Mapped[str] = mapped_column(Text)
    payload: Mapped[str] = mapped_column(RawJson)


class PartitionProgressRow(Base):
    """How far each partition of the log has been given verdicts: the authoritative position, the fence."""

    __tablename__ = "partition_progress"
    __table_args__ = (PrimaryKeyConstraint("log_topic", "partition"), {"postgresql_with": _HOT})

    log_topic: Mapped[str] = mapped_column(Text)
    partition: Mapped[int] = mapped_column(Integer, autoincrement=False)
    incarnation: Mapped[int] = mapped_column(Integer)
    next_offset: Mapped[int] = mapped_column(BigInteger)
    fingerprint: Mapped[int | None] = mapped_column(BigInteger)
    owner: Mapped[str | None] = mapped_column(Text)
    updated_at: Mapped[dt.datetime] = mapped_column(UtcTime)


class VerdictCountRow(Base):
    """Exact counters. Kept per partition, so that workers never wait for each other's row; summed when read.

    `topic` is the event's topic, or the empty string for records whose topic could not be read.
    """

    __tablename__ = "verdict_counts"
    __table_args__ = (
        PrimaryKeyConstraint("log_topic", "partition", "topic"),
        CheckConstraint("received = stored + duplicate + conflict + dead_lettered", name="sum"),
        {"postgresql_with": _HOT},
    )

    log_topic: Mapped[str] = mapped_column(Text)
    partition: Mapped[int] = mapped_column(Integer, autoincrement=False)
    topic: Mapped[str] = mapped_column(Text)
    received: Mapped[int] = mapped_column(BigInteger)
    stored: Mapped[int] = mapped_column(BigInteger)
    duplicate: Mapped[int] = mapped_column(BigInteger)
    conflict: Mapped[int] = mapped_column(BigInteger)
    dead_lettered: Mapped[int] = mapped_column(BigInteger)
    first_stored_at: Mapped[dt.datetime | None] = mapped_column(UtcTime)
    last_stored_at: Mapped[dt.datetime | None] = mapped_column(UtcTime)


class DeadLetterRow(Base):
    """A record that is not stored as an event, with its original bytes: invalid, refused, or in conflict.

    Everything that came from outside and was not validated is bytes: text could not hold all of it.

    Attributes:
        event_key: the identity, where topic and event_id are known.
        record_headers: JSON, a list of [key, base64 value or null].
        record_timestamp_ms: the log's own clock.
        status: a `db.dead_letter_states.Status`; changed by `db.dead_letter_store` alone.
        parent_id: the dead letter whose replay this record was. Not a foreign key: a producer can claim
            anything in a header.
        replays: how often it was replayed; tells one try from another.
        replayed_value: what was sent in place of the record's value, if that was edited.
        operation_id: the bulk operation that changed the status last, if it was one.
    """

    __tablename__ = "dead_letters"
    __table_args__ = (
        UniqueConstraint(
            "log_topic",
            "log_partition",
            "log_incarnation",
            "log_offset",
            name="dead_letters_coordinates_key",
        ),
        Index(None, "event_key"),
        Index("dead_letters_status_id_idx", "status", "id"),
        Index(
            "dead_letters_parent_id_idx",
            "parent_id",
            postgresql_where=text("parent_id IS NOT NULL"),
            sqlite_where=text("parent_id IS NOT NULL"),
        ),
    )

    id: Mapped[int] = mapped_column(BigSerial, primary_key=True)
    log_topic: Mapped[str] = mapped_column(Text)
    log_partition: Mapped[int] = mapped_column(Integer)
    log_incarnation: Mapped[int] = mapped_column(Integer)
    log_offset: Mapped[int] = mapped_column(BigInteger)
    reason: Mapped[str] = mapped_column(Text)
    error: Mapped[str] = mapped_column(Text)
    topic: Mapped[str | None] = mapped_column(Text)
    event_id: Mapped[str | None] = mapped_column(Text)
    event_key: Mapped[bytes | None] = mapped_column(Identity16)
    record_key: Mapped[bytes | None] = mapped_column(LargeBinary)
    record_value: Mapped[bytes | None] = mapped_column(LargeBinary)
    record_headers: Mapped[bytes] = mapped_column(LargeBinary)
    record_timestamp_ms: Mapped[int] = mapped_column(BigInteger)
    received_at: Mapped[dt.datetime | None] = mapped_column(UtcTime)
    created_at: Mapped[dt.datetime] = mapped_column(UtcTime)
    status: Mapped[str] = mapped_column(Text)
    parent_id: Mapped[int | None] = mapped_column(BigInteger)
    replays: Mapped[int] = mapped_column(Integer, server_default="0")
    replayed_value: Mapped[bytes | None] = mapped_column(LargeBinary)
    status_changed_at: Mapped[dt.datetime | None] = mapped_column(UtcTime)
    status_changed_by: Mapped[str | None] = mapped_column(Text)
    operation_id: Mapped[int | None] = mapped_column(BigInteger)


class DeadLetterOperationRow(Base):
    """A replay or discard of all dead letters that match a filter.

    Attributes:
        kind: replay or discard.
        filter: JSON of a `db.event_filter.DeadLetterFilter`.
        most: how many dead letters to deal with; null for all.
        status: waiting, running, completed, cancelled or failed.
        matching: how many matched at its creation; null if counting took too long.
        done, skipped, failed, unknown: what became of the dead letters it has come to.
        after_id: it has dealt with every dead letter up to this one.
        until_id: the newest dead letter at its creation; later ones, its own children above all, are not its.
        owner: the process that carries it out.
        updated_at: the owner's sign of life.
    """

    __tablename__ = "dead_letter_operations"

    id: Mapped[int] = mapped_column(BigSerial, primary_key=True)
    kind: Mapped[str] = mapped_column(Text)
    filter: Mapped[str] = mapped_column(Text)
    most: Mapped[int | None] = mapped_column(BigInteger)
    dry_run: Mapped[bool] = mapped_column(Boolean)
    status: Mapped[str] = mapped_column(Text)
    matching: Mapped[int | None] = mapped_column(BigInteger)
    done: Mapped[int] = mapped_column(BigInteger)
    skipped: Mapped[int] = mapped_column(BigInteger)
    failed: Mapped[int] = mapped_column(BigInteger)
    unknown: Mapped[int] = mapped_column(BigInteger)
    after_id: Mapped[int] = mapped_column(BigInteger)
    until_id: Mapped[int] = mapped_column(BigInteger)
    owner: Mapped[str | None] = mapped_column(Text)
    requested_by: Mapped[str] = mapped_column(Text)
    created_at: Mapped[dt.datetime] = mapped_column(UtcTime)
    updated_at: Mapped[dt.datetime] = mapped_column(UtcTime)
    finished_at: Mapped[dt.datetime | None] = mapped_column(UtcTime)
    error: Mapped[str | None] = mapped_column(Text)


class AuditRow(Base):
    """Who did what, when. Written in the transaction that does it; never changed.

    Attributes:
        detail: JSON, what else there is to know.
    """

    __tablename__ = "audit_log"

    id: Mapped[int] = mapped_column(BigSerial, primary_key=True)
    at: Mapped[dt.datetime] = mapped_column(UtcTime)
    actor: Mapped[str] = mapped_column(Text)
    action: Mapped[str] = mapped_column(Text)
    dead_letter_id: Mapped[int | None] = mapped_column(BigInteger)
    operation_id: Mapped[int | None] = mapped_column(BigInteger)
    detail: Mapped[str | None] = mapped_column(Text)


class LogGapRow(Base):
    """Offsets that were never given a verdict because the log no longer held them. For an operator to see.

    Attributes:
        incarnation: the incarnation that began after the gap.
        from_offset, to_offset: the missing range, end exclusive; to_offset is null where it cannot be known.
        reason: truncated, expired or recreated.
    """

    __tablename__ = "log_gaps"

    id: Mapped[int] = mapped_column(BigSerial, primary_key=True)
    log_topic: Mapped[str] = mapped_column(Text)
    partition: Mapped[int] = mapped_column(Integer)
    incarnation: Mapped[int] = mapped_column(Integer)
    from_offset: Mapped[int] = mapped_column(BigInteger)
    to_offset: Mapped[int | None] = mapped_column(BigInteger)
    reason: Mapped[str] = mapped_column(Text)
    detected_at: Mapped[dt.datetime] = mapped_column(UtcTime)


class RemovedEventCountRow(Base):
    """How many events retention has removed, so that counters can still be compared with rows."""

    __tablename__ = "removed_event_counts"
    __table_args__ = (PrimaryKeyConstraint("partition", "topic"),)

    partition: Mapped[int] = mapped_column(Integer, autoincrement=False)
    topic: Mapped[str] = mapped_column(Text)
    events: Mapped[int] = mapped_column(BigInteger)


class RetentionProgressRow(Base):
    """How far retention is with one kind of rows.

    Attributes:
        kind: events or identities.
        before_at: what was stored before this moment is being removed, or gone.
        is_complete: whether all of it is gone.
        removed: how many rows were ever removed.
    """

    __tablename__ = "retention_progress"

    kind: Mapped[str] = mapped_column(Text, primary_key=True)
    before_at: Mapped[dt.datetime] = mapped_column(UtcTime)
    is_complete: Mapped[bool] = mapped_column(Boolean)
    removed: Mapped[int] = mapped_column(BigInteger)
    updated_at: Mapped[dt.datetime] = mapped_column(UtcTime)


class SchemaCompatibilityRow(Base):
    """The oldest revision whose code works with the schema as it is; one row."""

    __tablename__ = "schema_compatibility"

    oldest: Mapped[str] = mapped_column(Text, primary_key=True)


class WorkerRow(Base):
    """A worker that is, or was, alive. Workers refresh `heartbeat_at`; the row is removed by a clean stop."""

    __tablename__ = "workers"
    __table_args__ = ({"postgresql_with": _HOT},)

    worker_id: Mapped[str] = mapped_column(Text, primary_key=True)
    started_at: Mapped[dt.datetime] = mapped_column(UtcTime)
    heartbeat_at: Mapped[dt.datetime] = mapped_column(UtcTime)
