"""Who did what, when."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

import msgspec
from sqlalchemy import Connection, Engine, insert, select

from db.event_filter import AuditFilter
from db.models import AuditRow
from db.read_transaction import read_transaction


class Action(StrEnum):
    """What is noted."""

    REPLAY = "dead_letter.replay"
    DISCARD = "dead_letter.discard"
    OPERATION_CREATE = "dead_letter_operation.create"
    OPERATION_CANCEL = "dead_letter_operation.cancel"
    OPERATION_END = "dead_letter_operation.end"


class AuditEntry(msgspec.Struct, frozen=True, gc=False):
    """One thing that was done. `detail` is JSON."""

    id: int
    at: dt.datetime
    actor: str
    action: str
    dead_letter_id: int | None
    operation_id: int | None
    detail: msgspec.Raw | None


def note(
    connection: Connection,
    at: Any,
    actor: str,
    action: Action,
    *,
    dead_letter_id: int | None = None,
    operation_id: int | None = None,
    detail: Mapping[str, object] | None = None,
) -> None:
    """Add an entry, in the transaction that does what it tells of.

    Args:
        at: the transaction's time.
    """
    connection.execute(
        insert(AuditRow).values(
            at=at,
            actor=actor,
            action=action.value,
            dead_letter_id=dead_letter_id,
            operation_id=operation_id,
            detail=None if detail is None else msgspec.json.encode(detail).decode(),
        )
    )


class AuditQueries:
    """Reads the audit log. Safe to use from many threads; every call is a transaction of its own.

    Raises StoreUnavailable, SchemaMismatch, and QueryTimedOut for a statement that takes longer than
    `timeout` seconds.
    """

    def __init__(self, engine: Engine, *, timeout: float) -> None:
        self._engine = engine
        self._timeout = timeout

    def page(self, chosen: AuditFilter, *, limit: int, before: int | None = None) -> Sequence[AuditEntry]:
        """Up to `limit` entries with an id below `before`, newest first."""
        row = AuditRow
        statement = (
            select(row.id, row.at, row.actor, row.action, row.dead_letter_id, row.operation_id, row.detail)
            .where(*chosen.conditions())
            .order_by(row.id.desc())
            .limit(limit)
        )
        if before is not None:
            statement = statement.where(row.id < before)
        with read_transaction(self._engine, self._timeout) as connection:
            return [
                AuditEntry(*one[:-1], None if one.detail is None else msgspec.Raw(one.detail.encode()))
                for one in connection.execute(statement)
            ]
