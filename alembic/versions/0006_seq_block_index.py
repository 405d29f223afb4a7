"""An index that tells, on Postgres, which blocks of the events table hold nothing of a stretch of `seq`.

Together with the one of 0005 it tells where in a stretch there is nothing of a period. BRIN, and made in the
same way.

Revision: 0006
Revises: 0005
"""

from __future__ import annotations

import sqlalchemy as sa

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

INDEX = "events_seq_idx"
_HOW = "USING brin (seq) WITH (autosummarize = on)"
_PARTITIONS = "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'events'::regclass"


def upgrade() -> None:
    if op.get_context().dialect.name != "postgresql":
        return
    with op.get_context().autocommit_block():
        op.execute(f"DROP INDEX IF EXISTS {INDEX}")
        # Partitions made from now on get theirs with it.
        op.execute(f"CREATE INDEX {INDEX} ON ONLY events {_HOW}")
        for partition in op.get_bind().execute(sa.text(_PARTITIONS)).scalars().all():
            own = f"{partition}_seq_idx"
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {own}")
            op.execute(f"CREATE INDEX CONCURRENTLY {own} ON {partition} {_HOW}")
            op.execute(f"ALTER INDEX {INDEX} ATTACH PARTITION {own}")


def downgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        op.execute(f"DROP INDEX IF EXISTS {INDEX}")
