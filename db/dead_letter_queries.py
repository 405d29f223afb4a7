"""Reading dead letters: lists without their bytes, and one with all of them."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import Engine, Row, func, select

from db.dead_letters import decode_headers
from db.event_filter import DeadLetterFilter
from db.models import DeadLetterRow
from db.read_transaction import read_transaction

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
    func.length(DeadLetterRow.record_value).label("value_bytes"),
)


class DeadLetterPlace(msgspec.Struct, frozen=True, gc=False):
    """Where in which log the record was read."""

    topic: str
    partition: int
    offset: int
    incarnation: int


class DeadLetterSummary(msgspec.Struct, frozen=True, gc=False):
    """A dead letter without its bytes. `value_bytes` is None for a record without a value."""

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
    """

    summary: DeadLetterSummary
    record_timestamp_ms: int
    record_timestamp: dt.datetime | None
    key: OriginalBytes | None
    value: OriginalBytes | None
    headers: Sequence[Header] | None


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
        ).where(DeadLetterRow.id == dead_letter_id)
        with read_transaction(self._engine, self._timeout) as connection:
            row = connection.execute(statement).one_or_none()
        if row is None:
            return None
        return DeadLetter(
            summary=_summary(row),
            record_timestamp_ms=row.record_timestamp_ms,
            record_timestamp=_moment(row.record_timestamp_ms),
            key=OriginalBytes.of(row.record_key),
            value=OriginalBytes.of(row.record_value),
            headers=_headers(row.record_headers),
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
