"""What was done about dead letters: lineage and state of replays, bulk operations, and who did what.

Only adds, so that processes of the version before go on beside it: every new column has a default or is null.

Revision: 0002
Revises: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# Types as they were when this was written: history does not follow the models.
MOMENT = sa.BigInteger().with_variant(postgresql.TIMESTAMP(timezone=True), "postgresql")
SERIAL = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

ADDED = ("parent_id", "replays", "replayed_value", "status_changed_at", "status_changed_by", "operation_id")


def upgrade() -> None:
    # Not in a batch, which on SQLite would copy the table: columns like these are added in place.
    op.add_column("dead_letters", sa.Column("parent_id", sa.BigInteger()))
    op.add_column("dead_letters", sa.Column("replays", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("dead_letters", sa.Column("replayed_value", sa.LargeBinary()))
    op.add_column("dead_letters", sa.Column("status_changed_at", MOMENT))
    op.add_column("dead_letters", sa.Column("status_changed_by", sa.Text()))
    op.add_column("dead_letters", sa.Column("operation_id", sa.BigInteger()))
    op.create_table(
        "dead_letter_operations",
        sa.Column("id", SERIAL, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("filter", sa.Text(), nullable=False),
        sa.Column("most", sa.BigInteger()),
        sa.Column("dry_run", sa.Boolean(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("matching", sa.BigInteger()),
        sa.Column("done", sa.BigInteger(), nullable=False),
        sa.Column("skipped", sa.BigInteger(), nullable=False),
        sa.Column("failed", sa.BigInteger(), nullable=False),
        sa.Column("unknown", sa.BigInteger(), nullable=False),
        sa.Column("after_id", sa.BigInteger(), nullable=False),
        sa.Column("until_id", sa.BigInteger(), nullable=False),
        sa.Column("owner", sa.Text()),
        sa.Column("requested_by", sa.Text(), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("updated_at", MOMENT, nullable=False),
        sa.Column("finished_at", MOMENT),
        sa.Column("error", sa.Text()),
        sa.PrimaryKeyConstraint("id", name="dead_letter_operations_pkey"),
    )
    op.create_table(
        "audit_log",
        sa.Column("id", SERIAL, nullable=False),
        sa.Column("at", MOMENT, nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("dead_letter_id", sa.BigInteger()),
        sa.Column("operation_id", sa.BigInteger()),
        sa.Column("detail", sa.Text()),
        sa.PrimaryKeyConstraint("id", name="audit_log_pkey"),
    )


def downgrade() -> None:
    op.drop_table("audit_log")
    op.drop_table("dead_letter_operations")
    for column in reversed(ADDED):
        op.drop_column("dead_letters", column)
