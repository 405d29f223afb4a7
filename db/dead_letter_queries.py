"""Reading dead letters: lists without their bytes, one with all of them, and how many there are why."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import Engine, Row, func, select

from db.dead_letter_status import Status
from db.dead_letters import decode_headers
from db.event_filter import DeadLetterFilter
from db.event_queries import StoredEvent, stored_event
from db.models import DeadLetterRow
from db.read_transaction import read_transaction
from events.verdict import CONFLICT_REASON

MAX_CHILDREN: Final = 100
"""The most children one dead letter is shown with; by repeated replays it can have any number."""
_NARROWER: Final = (
    "Counting these dead letters took too long and was stopped. Ask for a shorter period (since, until)."
)
_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)

_SUMMARY: Final = (
    DeadLetterRow.id,
    DeadLetterRow.reason,
    DeadLetterRow.error,
    DeadLetterRow.status,
    DeadLetterRow.topic,
    DeadLetterRow.event_id,
    DeadLetterRow.log_topic,
    DeadLetterRow.log_partition,
    DeadLetterRow.log_incarnation,
    DeadLetterRow.log_offset,
    DeadLetterRow.received_at,
    DeadLetterRow.created_at,
    DeadLetterRow.parent_id,
    DeadLetterRow.replays,
    DeadLetterRow.status_changed_at,
    DeadLetterRow.status_changed_by,
    DeadLetterRow.operation_id,
    func.length(DeadLetterRow.record_value).label("value_bytes"),
)


class DeadLetterPlace(msgspec.Struct, frozen=True, gc=False):
    """Where in which log the record was read."""

    topic: str
    partition: int
    offset: int
    incarnation: int


class DeadLetterSummary(msgspec.Struct, frozen=True, gc=False):
    """A dead letter without its bytes.

    Attributes:
        value_bytes: None for a record without a value.
        parent_id: the dead letter it says it is the replay of.
        replays: how often it was replayed.
        operation_id: the bulk operation that changed the status last, if it was one.
    """

    id: int
    reason: str
    error: str
    status: str
    topic: str | None
    event_id: str | None
    log: DeadLetterPlace
    received_at: dt.datetime | None
    created_at: dt.datetime
    value_bytes: int | None
    parent_id: int | None
    replays: int
    status_changed_at: dt.datetime | None
    status_changed_by: str | None
    operation_id: int | None


class OriginalBytes(msgspec.Struct, frozen=True, gc=False):
    """Bytes as they were in the log: always as base64, and as text where they are valid UTF-8."""

    size: int
    text: str | None
    base64: bytes

    @classmethod
    def of(cls, raw: bytes | None) -> OriginalBytes | None:
        if raw is None:
            return None
        try:
            text: str | None = raw.decode()
        except UnicodeDecodeError:
            text = None
        return cls(len(raw), text, raw)


class Header(msgspec.Struct, frozen=True, gc=False):
    """A header of a record; keys may repeat, values may be null."""

    key: str
    value: OriginalBytes | None


class DeadLetter(msgspec.Struct, frozen=True):
    """A dead letter with its original bytes.

    Attributes:
        record_timestamp: `record_timestamp_ms` as a moment, where it is one.
        headers: None if they cannot be read.
        replayed_value: what was sent in place of the value by the last replay, if that was edited.
        children: dead letters that name this one as their parent, the newest first, at most `MAX_CHILDREN`.
        winner: for a conflict, the event that stays, unless retention has removed it.
    """

    summary: DeadLetterSummary
    record_timestamp_ms: int
    record_timestamp: dt.datetime | None
    key: OriginalBytes | None
    value: OriginalBytes | None
    headers: Sequence[Header] | None
    replayed_value: OriginalBytes | None
    children: Sequence[int]
    winner: StoredEvent | None


class DeadLetterGroup(msgspec.Struct, frozen=True):
    """The dead letters of one reason.

    Attributes:
        statuses: how many of them there are by status; those without any are left out.
        oldest, newest: when the first and the last of them became one.
        newest_id: an example of them.
    """

    reason: str
    count: int
    statuses: Mapping[str, int]
    oldest: dt.datetime
    newest: dt.datetime
    newest_id: int


class DeadLetterPage(msgspec.Struct, frozen=True):
    """Some dead letters, newest first; `next_before` is where the next page begins, None after the last."""

    dead_letters: Sequence[DeadLetterSummary]
    next_before: int | None


class DeadLetterQueries:
    """Reads dead letters. Safe to use from many threads; every call is a transaction of its own.

    Every method raises StoreUnavailable, SchemaMismatch, and QueryTimedOut for a statement that takes longer
    than `timeout` seconds.
    """

    def __init__(self, engine: Engine, *, timeout: float) -> None:
        self._engine = engine
        self._timeout = timeout

    def page(self, chosen: DeadLetterFilter, *, limit: int, before: int | None = None) -> DeadLetterPage:
        """Up to `limit` dead letters with an id below `before`, newest first."""
        statement = (
            select(*_SUMMARY).where(*chosen.conditions()).order_by(DeadLetterRow.id.desc()).limit(limit + 1)
        )
        if before is not None:
            statement = statement.where(DeadLetterRow.id < before)
        with read_transaction(self._engine, self._timeout) as connection:
            rows = connection.execute(statement).all()
        shown = [_summary(row) for row in rows[:limit]]
        return DeadLetterPage(shown, shown[-1].id if len(rows) > limit else None)

    def show(self, dead_letter_id: int) -> DeadLetter | None:
        """One dead letter with its bytes; None if there is none with this id."""
        statement = select(
            *_SUMMARY,
            DeadLetterRow.record_key,
            DeadLetterRow.record_value,
            DeadLetterRow.record_headers,
            DeadLetterRow.record_timestamp_ms,
            DeadLetterRow.replayed_value,
            DeadLetterRow.event_key,
        ).where(DeadLetterRow.id == dead_letter_id)
        with read_transaction(self._engine, self._timeout) as connection:
            row = connection.execute(statement).one_or_none()
            if row is None:
                return None
            children = connection.execute(
                select(DeadLetterRow.id)
                .where(DeadLetterRow.parent_id == dead_letter_id)
                .order_by(DeadLetterRow.id.desc())
                .limit(MAX_CHILDREN)
            ).scalars()
            is_conflict = row.reason == CONFLICT_REASON and row.event_key is not None
            winner = stored_event(connection, row.event_key) if is_conflict else None
            child_ids = children.all()
        return DeadLetter(
            summary=_summary(row),
            record_timestamp_ms=row.record_timestamp_ms,
            record_timestamp=_moment(row.record_timestamp_ms),
            key=OriginalBytes.of(row.record_key),
            value=OriginalBytes.of(row.record_value),
            headers=_headers(row.record_headers),
            replayed_value=OriginalBytes.of(row.replayed_value),
            children=child_ids,
            winner=winner,
        )

    def summary(self, dead_letter_id: int) -> DeadLetterSummary | None:
        """One dead letter without its bytes; None if there is none with this id."""
        with read_transaction(self._engine, self._timeout) as connection:
            row = connection.execute(
                select(*_SUMMARY).where(DeadLetterRow.id == dead_letter_id)
            ).one_or_none()
        return None if row is None else _summary(row)

    def count(self, chosen: DeadLetterFilter) -> int:
        """How many dead letters match."""
        statement = select(func.count()).select_from(DeadLetterRow).where(*chosen.conditions())
        with read_transaction(self._engine, self._timeout) as connection:
            return connection.execute(statement).scalar_one()

    def count_pending(self, most: int) -> int:
        """How many dead letters nobody has dealt with, counted up to `most`, so that the cost is bounded."""
        found = select(DeadLetterRow.id).where(DeadLetterRow.status == Status.PENDING).limit(most)
        statement = select(func.count()).select_from(found.subquery())
        with read_transaction(self._engine, self._timeout) as connection:
            return connection.execute(statement).scalar_one()

    def groups(self, chosen: DeadLetterFilter) -> Sequence[DeadLetterGroup]:
        """The dead letters that match, by reason; the largest group first."""
        row = DeadLetterRow
        statement = (
            select(
                row.reason,
                row.status,
                func.count().label("count"),
                func.min(row.created_at).label("oldest"),
                func.max(row.created_at).label("newest"),
                func.max(row.id).label("newest_id"),
            )
            .where(*chosen.conditions())
            .group_by(row.reason, row.status)
        )
        with read_transaction(self._engine, self._timeout, advice=_NARROWER) as connection:
            rows = connection.execute(statement).all()
        parts: dict[str, list[Row[*tuple[Any, ...]]]] = {}
        for one in rows:
            parts.setdefault(one.reason, []).append(one)
        return sorted(
            (_group(reason, part) for reason, part in parts.items()), key=lambda one: (-one.count, one.reason)
        )


def _summary(row: Row[*tuple[Any, ...]]) -> DeadLetterSummary:
    return DeadLetterSummary(
        id=row.id,
        reason=row.reason,
        error=row.error,
        status=row.status,
        topic=row.topic,
        event_id=row.event_id,
        log=DeadLetterPlace(row.log_topic, row.log_partition, row.log_offset, row.log_incarnation),
        received_at=row.received_at,
        created_at=row.created_at,
        value_bytes=row.value_bytes,
        parent_id=row.parent_id,
        replays=row.replays,
        status_changed_at=row.status_changed_at,
        status_changed_by=row.status_changed_by,
        operation_id=row.operation_id,
    )


def _group(reason: str, rows: Sequence[Row[*tuple[Any, ...]]]) -> DeadLetterGroup:
    statuses = {row.status: row._mapping["count"] for row in rows}
    return DeadLetterGroup(
        reason=reason,
        count=sum(statuses.values()),
        statuses=statuses,
        oldest=min(row.oldest for row in rows),
        newest=max(row.newest for row in rows),
        newest_id=max(row.newest_id for row in rows),
    )


def _moment(milliseconds: int) -> dt.datetime | None:
    """The log's clock can say anything; what is no moment of our calendar has none."""
    if milliseconds < 0:
        return None
    try:
        return _EPOCH + dt.timedelta(milliseconds=milliseconds)
    except OverflowError:
        return None


def _headers(stored: bytes) -> Sequence[Header] | None:
    pairs = decode_headers(stored)
    return None if pairs is None else [Header(key, OriginalBytes.of(value)) for key, value in pairs]
