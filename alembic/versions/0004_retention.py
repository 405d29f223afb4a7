"""What retention has removed, and which versions can work with this schema.

Only adds, so that processes of the version before go on beside it.

Revision: 0004
Revises: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

# Types as they were when this was written: history does not follow the models.
MOMENT = sa.BigInteger().with_variant(postgresql.TIMESTAMP(timezone=True), "postgresql")


def upgrade() -> None:
    op.create_table(
        "removed_event_counts",
        sa.Column("partition", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("topic", sa.Text(), nullable=False),
        sa.Column("events", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("partition", "topic", name="removed_event_counts_pkey"),
    )
    op.create_table(
        "retention_progress",
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("before_at", MOMENT, nullable=False),
        sa.Column("is_complete", sa.Boolean(), nullable=False),
        sa.Column("removed", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("kind", name="retention_progress_pkey"),
    )
    compatibility = op.create_table(
        "schema_compatibility",
        sa.Column("oldest", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("oldest", name="schema_compatibility_pkey"),
    )
    # A later migration that takes something away has to raise this.
    op.bulk_insert(compatibility, [{"oldest": revision}])


def downgrade() -> None:
    op.drop_table("schema_compatibility")
    op.drop_table("retention_progress")
    op.drop_table("removed_event_counts")
