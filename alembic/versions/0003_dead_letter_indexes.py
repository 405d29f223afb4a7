"""Indexes that lead to dead letters by what has been done about them, and to those that came of a replay.

On Postgres they are built while workers go on writing (`CONCURRENTLY`), which happens outside of a
transaction: a build that was interrupted leaves an invalid index, which the next try removes first. That is
also why this is a migration of its own.

Revision: 0003
Revises: 0002
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import sqlalchemy as sa

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

INDEXES = {
    "dead_letters_status_id_idx": (["status", "id"], None),
    "dead_letters_parent_id_idx": (["parent_id"], "parent_id IS NOT NULL"),
}


def upgrade() -> None:
    with _outside_of_a_transaction():
        for name, (columns, where) in INDEXES.items():
            condition = None if where is None else sa.text(where)
            op.drop_index(name, "dead_letters", if_exists=True, postgresql_concurrently=True)
            op.create_index(
                name,
                "dead_letters",
                columns,
                postgresql_concurrently=True,
                postgresql_where=condition,
                sqlite_where=condition,
            )


def downgrade() -> None:
    with _outside_of_a_transaction():
        for name in INDEXES:
            op.drop_index(name, "dead_letters", if_exists=True, postgresql_concurrently=True)


def _outside_of_a_transaction() -> AbstractContextManager[object]:
    # On SQLite the transaction stays: it is what keeps the migrations of other processes out.
    context = op.get_context()
    return context.autocommit_block() if context.dialect.name == "postgresql" else nullcontext()
