"""Which rows a listing shows. A filter is a value: equal filters show the same rows in the same order."""

from __future__ import annotations

import datetime as dt

import msgspec
from sqlalchemy import ColumnElement

from db.models import AuditRow, DeadLetterRow, EventRow


class EventFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Events to list; every given field must match.

    Attributes:
        since, until: bounds on when the event occurred (its own `timestamp`).
        stored_since, stored_until: bounds on when it was stored. The cheap way to ask for a period: whole
            partitions of the table are left out.

    The first bound of each pair is inclusive, the second exclusive.
    """

    topic: str | None = None
    source: str | None = None
    event_id: str | None = None
    since: dt.datetime | None = None
    until: dt.datetime | None = None
    stored_since: dt.datetime | None = None
    stored_until: dt.datetime | None = None

    @property
    def scans(self) -> bool:
        """Whether rows have to be read that are not shown, because no index leads to the ones that are."""
        filtered = (self.source, self.since, self.until)
        return self.event_id is None and any(value is not None for value in filtered)

    @property
    def has_period(self) -> bool:
        """Whether only events that occurred in a period are chosen."""
        return self.since is not None or self.until is not None

    def conditions(self) -> list[ColumnElement[bool]]:
        """What a row of `events` must fulfil, apart from topic and event_id, which have indexes."""
        found = self.times()
        if self.source is not None:
            found.append(EventRow.source == self.source)
        return found

    def times(self) -> list[ColumnElement[bool]]:
        """What a row of `events` must fulfil of when it occurred and was stored."""
        found: list[ColumnElement[bool]] = []
        if self.since is not None:
            found.append(EventRow.occurred_at >= self.since)
        if self.until is not None:
            found.append(EventRow.occurred_at < self.until)
        if self.stored_since is not None:
            found.append(EventRow.stored_at >= self.stored_since)
        if self.stored_until is not None:
            found.append(EventRow.stored_at < self.stored_until)
        return found


class AuditFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Audit entries to list.

    Attributes:
        dead_letter_id: what was done to this one by itself; what a bulk operation did to it is told of by the
            operation.
    """

    dead_letter_id: int | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        """What a row of `audit_log` must fulfil."""
        return [] if self.dead_letter_id is None else [AuditRow.dead_letter_id == self.dead_letter_id]


class DeadLetterFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Dead letters to list; every given field must match.

    Attributes:
        since, until: bounds on when the dead letter was stored; inclusive, exclusive.
    """

    reason: str | None = None
    topic: str | None = None
    status: str | None = None
    since: dt.datetime | None = None
    until: dt.datetime | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        """What a row of `dead_letters` must fulfil."""
        found: list[ColumnElement[bool]] = []
        if self.reason is not None:
            found.append(DeadLetterRow.reason == self.reason)
        if self.topic is not None:
            found.append(DeadLetterRow.topic == self.topic)
        if self.status is not None:
            found.append(DeadLetterRow.status == self.status)
        if self.since is not None:
            found.append(DeadLetterRow.created_at >= self.since)
        if self.until is not None:
            found.append(DeadLetterRow.created_at < self.until)
        return found
