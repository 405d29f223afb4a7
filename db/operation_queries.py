"""Reading bulk operations."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Final

import msgspec
from sqlalchemy import Engine, Row, select

from db.event_filter import DeadLetterFilter
from db.models import DeadLetterOperationRow
from db.read_transaction import read_transaction

_ROW: Final = DeadLetterOperationRow
COLUMNS: Final = (
    _ROW.id,
    _ROW.kind,
    _ROW.filter,
    _ROW.most,
    _ROW.dry_run,
    _ROW.status,
    _ROW.matching,
    _ROW.done,
    _ROW.skipped,
    _ROW.failed,
    _ROW.unknown,
    _ROW.after_id,
    _ROW.until_id,
    _ROW.requested_by,
    _ROW.created_at,
    _ROW.updated_at,
    _ROW.finished_at,
    _ROW.error,
)


class Kind(StrEnum):
    """What is done to each dead letter."""

    REPLAY = "replay"
    DISCARD = "discard"


class OperationStatus(StrEnum):
    """Waiting for a process, being carried out by one, or ended."""

    WAITING = "waiting"
    RUNNING = "running"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    FAILED = "failed"


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """A replay or discard of all dead letters that match a filter, and how far it is.

    Attributes:
        chosen: which dead letters; its status is always set.
        most: how many of them at most; None for all.
        matching: how many matched at its creation; None if counting took too long.
        done: replayed or discarded; in a dry run, what would be.
        skipped: without a value, so there is nothing to replay.
        failed: refused by the log; they are what they were.
        unknown: perhaps replayed; their status is `replay_unknown`.
        after_id: it has come to every dead letter up to this one; the last one of all is `until_id`.
    """

    id: int
    kind: Kind
    chosen: DeadLetterFilter
    most: int | None
    dry_run: bool
    status: OperationStatus
    matching: int | None
    done: int
    skipped: int
    failed: int
    unknown: int
    after_id: int
    until_id: int
    requested_by: str
    created_at: dt.datetime
    updated_at: dt.datetime
    finished_at: dt.datetime | None
    error: str | None

    @property
    def dealt_with(self) -> int:
        """Dead letters it has come to."""
        return self.done + self.skipped + self.failed + self.unknown

    @property
    def left(self) -> int | None:
        """How many it may still deal with; None for any number."""
        return None if self.most is None else max(0, self.most - self.dealt_with)


class OperationQueries:
    """Reads operations. Safe to use from many threads; every call is a transaction of its own.

    Raises StoreUnavailable, SchemaMismatch, and QueryTimedOut for a statement that takes longer than
    `timeout` seconds.
    """

    def __init__(self, engine: Engine, *, timeout: float) -> None:
        self._engine = engine
        self._timeout = timeout

    def page(self, *, limit: int, before: int | None = None) -> Sequence[Operation]:
        """Up to `limit` operations with an id below `before`, newest first."""
        statement = select(*COLUMNS).order_by(_ROW.id.desc()).limit(limit)
        if before is not None:
            statement = statement.where(_ROW.id < before)
        with read_transaction(self._engine, self._timeout) as connection:
            return [operation_of(row) for row in connection.execute(statement)]

    def show(self, operation_id: int) -> Operation | None:
        """One operation; None if there is none with this id."""
        with read_transaction(self._engine, self._timeout) as connection:
            row = connection.execute(select(*COLUMNS).where(_ROW.id == operation_id)).one_or_none()
        return None if row is None else operation_of(row)


def operation_of(row: Row[*tuple[Any, ...]]) -> Operation:
    """An operation from a row of `COLUMNS`."""
    fields = row._asdict()
    chosen = msgspec.json.decode(fields.pop("filter"), type=DeadLetterFilter)
    kind, status = Kind(fields.pop("kind")), OperationStatus(fields.pop("status"))
    return Operation(chosen=chosen, kind=kind, status=status, **fields)
