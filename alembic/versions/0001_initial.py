"""Identities, events, positions, counters, dead letters, gaps and workers.

On Postgres `events` is partitioned by `stored_at`. It begins with a default partition alone, so that an event
can be stored whether or not anybody has made the day's partition.

Revision: 0001
Revises: nothing
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# Types as they were when this was written: history does not follow the models.
IDENTITY = sa.LargeBinary(16).with_variant(postgresql.UUID(), "postgresql")
MOMENT = sa.BigInteger().with_variant(postgresql.TIMESTAMP(timezone=True), "postgresql")
SERIAL = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

# Few rows that change with every batch.
HOT = {
    "fillfactor": 50,
    "autovacuum_vacuum_scale_factor": 0,
    "autovacuum_vacuum_threshold": 1000,
    "autovacuum_analyze_scale_factor": 0,
    "autovacuum_analyze_threshold": 10000,
}


def upgrade() -> None:
    create_events()
    create_progress()
    create_dead_letters()
    op.create_table(
        "log_gaps",
        sa.Column("id", SERIAL, nullable=False),
        sa.Column("log_topic", sa.Text(), nullable=False),
        sa.Column("partition", sa.Integer(), nullable=False),
        sa.Column("incarnation", sa.Integer(), nullable=False),
        sa.Column("from_offset", sa.BigInteger(), nullable=False),
        sa.Column("to_offset", sa.BigInteger()),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("detected_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="log_gaps_pkey"),
    )
    op.create_table(
        "workers",
        sa.Column("worker_id", sa.Text(), nullable=False),
        sa.Column("started_at", MOMENT, nullable=False),
        sa.Column("heartbeat_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("worker_id", name="workers_pkey"),
        postgresql_with=HOT,
    )


def create_events() -> None:
    op.create_table(
        "event_keys",
        sa.Column("key", IDENTITY, nullable=False),
        sa.Column("content_hash", sa.BigInteger(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("stored_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("key", name="event_keys_pkey"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "events",
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("stored_at", MOMENT, nullable=False),
        sa.Column("occurred_at", MOMENT, nullable=False),
        sa.Column("received_at", MOMENT),
        sa.Column("log_offset", sa.BigInteger(), nullable=False),
        sa.Column("log_partition", sa.Integer(), nullable=False),
        sa.Column("log_incarnation", sa.Integer(), nullable=False),
        sa.Column("topic", sa.Text(), nullable=False),
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("payload", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("seq", "stored_at", name="events_pkey"),
        postgresql_partition_by="RANGE (stored_at)",
    )
    op.create_index("events_topic_seq_idx", "events", ["topic", "seq"])
    if op.get_context().dialect.name == "postgresql":
        op.execute("CREATE TABLE events_default PARTITION OF events DEFAULT")
        op.execute("CREATE SEQUENCE event_seq AS bigint")


def create_progress() -> None:
    op.create_table(
        "partition_progress",
        sa.Column("log_topic", sa.Text(), nullable=False),
        sa.Column("partition", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("incarnation", sa.Integer(), nullable=False),
        sa.Column("next_offset", sa.BigInteger(), nullable=False),
        sa.Column("fingerprint", sa.BigInteger()),
        sa.Column("owner", sa.Text()),
        sa.Column("updated_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("log_topic", "partition", name="partition_progress_pkey"),
        postgresql_with=HOT,
    )
    op.create_table(
        "verdict_counts",
        sa.Column("log_topic", sa.Text(), nullable=False),
        sa.Column("partition", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("topic", sa.Text(), nullable=False),
        sa.Column("received", sa.BigInteger(), nullable=False),
        sa.Column("stored", sa.BigInteger(), nullable=False),
        sa.Column("duplicate", sa.BigInteger(), nullable=False),
        sa.Column("conflict", sa.BigInteger(), nullable=False),
        sa.Column("dead_lettered", sa.BigInteger(), nullable=False),
        sa.Column("first_stored_at", MOMENT),
        sa.Column("last_stored_at", MOMENT),
        sa.CheckConstraint(
            "received = stored + duplicate + conflict + dead_lettered", name="verdict_counts_sum_check"
        ),
        sa.PrimaryKeyConstraint("log_topic", "partition", "topic", name="verdict_counts_pkey"),
        postgresql_with=HOT,
    )


def create_dead_letters() -> None:
    op.create_table(
        "dead_letters",
        sa.Column("id", SERIAL, nullable=False),
        sa.Column("log_topic", sa.Text(), nullable=False),
        sa.Column("log_partition", sa.Integer(), nullable=False),
        sa.Column("log_incarnation", sa.Integer(), nullable=False),
        sa.Column("log_offset", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("error", sa.Text(), nullable=False),
        sa.Column("topic", sa.Text()),
        sa.Column("event_id", sa.Text()),
        sa.Column("event_key", IDENTITY),
        sa.Column("record_key", sa.LargeBinary()),
        sa.Column("record_value", sa.LargeBinary()),
        sa.Column("record_headers", sa.LargeBinary(), nullable=False),
        sa.Column("record_timestamp_ms", sa.BigInteger(), nullable=False),
        sa.Column("received_at", MOMENT),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="dead_letters_pkey"),
        sa.UniqueConstraint(
            "log_topic",
            "log_partition",
            "log_incarnation",
            "log_offset",
            name="dead_letters_coordinates_key",
        ),
    )
    op.create_index("dead_letters_event_key_idx", "dead_letters", ["event_key"])


def downgrade() -> None:
    for table in ("workers", "log_gaps", "dead_letters", "verdict_counts", "partition_progress"):
        op.drop_table(table)
    # Takes its partitions, whatever days they are for, with it.
    op.drop_table("events")
    op.drop_table("event_keys")
    if op.get_context().dialect.name == "postgresql":
        op.execute("DROP SEQUENCE event_seq")
