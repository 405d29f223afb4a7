"""An index that tells, on Postgres, in which blocks of the events table there is nothing of a period.

BRIN: a few bytes for every thousand events, and next to nothing to write, where a B-tree would cost every
event an entry. Each partition gets its own while workers go on writing (`CONCURRENTLY`), which is done
outside of a transaction; an index that a build left unfinished is removed first.

Revision: 0005
Revises: 0004
"""

from __future__ import annotations

import sqlalchemy as sa

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

INDEX = "events_occurred_at_idx"
_HOW = "USING brin (occurred_at) WITH (autosummarize = on)"
_PARTITIONS = "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'events'::regclass"


def upgrade() -> None:
    if op.get_context().dialect.name != "postgresql":
        return
    with op.get_context().autocommit_block():
        op.execute(f"DROP INDEX IF EXISTS {INDEX}")
        # Partitions made from now on get theirs with it.
        op.execute(f"CREATE INDEX {INDEX} ON ONLY events {_HOW}")
        for partition in op.get_bind().execute(sa.text(_PARTITIONS)).scalars().all():
            own = f"{partition}_occurred_at_idx"
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {own}")
            op.execute(f"CREATE INDEX CONCURRENTLY {own} ON {partition} {_HOW}")
            op.execute(f"ALTER INDEX {INDEX} ATTACH PARTITION {own}")


def downgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        op.execute(f"DROP INDEX IF EXISTS {INDEX}")
