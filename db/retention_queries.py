"""How far retention has come."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from typing import Any

import msgspec
from sqlalchemy import Connection, select

from db.models import RetentionProgressRow
from db.retention import EVENTS, IDENTITIES


class RetentionProgress(msgspec.Struct, frozen=True, gc=False):
    """How far retention is with one kind of rows.

    Attributes:
        removed: how many were ever removed.
        before_at: what was stored before this moment is being removed, or gone; None if nothing ever was.
        is_complete: whether all of it is gone.
        updated_at: when retention was last at it.
    """

    removed: int = 0
    before_at: dt.datetime | None = None
    is_complete: bool = True
    updated_at: dt.datetime | None = None


class Retention(msgspec.Struct, frozen=True, gc=False):
    """What is no longer in the store because of its age."""

    events: RetentionProgress = RetentionProgress()
    identities: RetentionProgress = RetentionProgress()


def retention(connection: Connection) -> Retention:
    """What has been removed up to now."""
    row = RetentionProgressRow
    rows: Iterable[Any] = connection.execute(
        select(row.kind, row.removed, row.before_at, row.is_complete, row.updated_at)
    )
    found = {kind: RetentionProgress(*progress) for kind, *progress in rows}
    nothing = RetentionProgress()
    return Retention(found.get(EVENTS, nothing), found.get(IDENTITIES, nothing))
