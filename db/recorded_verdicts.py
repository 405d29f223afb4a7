"""Which verdict the store has recorded for records of the log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, Engine, and_, select

from db.batch import InvalidRecord, ValidRecord
from db.engine import transaction
from db.models import DeadLetterRow, EventKeyRow, EventRow
from events.verdict import CONFLICT_REASON, Verdict

_KEYS_PER_LOOKUP: Final = 1_000


class RecordedVerdict(msgspec.Struct, frozen=True, gc=False):
    """What the store knows of a record.

    Attributes:
        verdict: None if there is none; then `why` says what is missing.
        certain: False where the event itself is gone: then the record was stored or is a duplicate of it.
        is_unknown_identity: whether there is none because the store does not know the event's identity.
        twice: whether the record is stored and a dead letter besides.
    """

    verdict: Verdict | None
    why: str = ""
    certain: bool = True
    is_unknown_identity: bool = False
    twice: bool = False


class _Stored(msgspec.Struct, frozen=True, gc=False):
    content_hash: int
    place: tuple[int | None, int | None, int | None]


def recorded_verdicts(
    engine: Engine, log_topic: str, incarnation: int, records: Sequence[ValidRecord | InvalidRecord]
) -> list[RecordedVerdict]:
    """The verdict of each record, in the same order.

    Duplicates leave no row; a record is one if its identity is stored from elsewhere with the same content.

    Args:
        records: of one partition in one incarnation, in offset order, all below its stored position.

    Raises:
        StoreUnavailable, SchemaMismatch.
    """
    if not records:
        return []
    keys = sorted({record.event.key for record in records if isinstance(record, ValidRecord)})
    with transaction(engine) as connection:
        letters = _letters(connection, log_topic, incarnation, records)
        stored = _stored(connection, keys)
    return [_verdict(record, incarnation, letters, stored) for record in records]


def _verdict(
    record: ValidRecord | InvalidRecord,
    incarnation: int,
    letters: Mapping[int, str],
    stored: Mapping[bytes, _Stored],
) -> RecordedVerdict:
    at = record.at
    event = stored.get(record.event.key) if isinstance(record, ValidRecord) else None
    is_row = event is not None and event.place == (at.partition, incarnation, at.offset)
    reason = letters.get(at.offset)
    if reason is not None:
        verdict = Verdict.CONFLICT if reason == CONFLICT_REASON else Verdict.DEAD_LETTERED
        return RecordedVerdict(verdict, twice=is_row)
    if isinstance(record, InvalidRecord):
        return RecordedVerdict(None, f"is no valid event ({record.reason}) and has no dead letter")
    if is_row:
        return RecordedVerdict(Verdict.STORED)
    name = f"holds event {record.event.event_id!r} of topic {record.event.topic!r}, which"
    if event is None:
        return RecordedVerdict(None, f"{name} is neither stored nor a dead letter", is_unknown_identity=True)
    if event.content_hash != record.event.content_hash:
        return RecordedVerdict(None, f"{name} is stored with other content, and this one is no dead letter")
    return RecordedVerdict(Verdict.DUPLICATE, certain=event.place[2] is not None)


def _letters(
    connection: Connection, log_topic: str, incarnation: int, records: Sequence[ValidRecord | InvalidRecord]
) -> dict[int, str]:
    first, last, row = records[0].at, records[-1].at, DeadLetterRow
    found = connection.execute(
        select(row.log_offset, row.reason).where(
            row.log_topic == log_topic,
            row.log_partition == first.partition,
            row.log_incarnation == incarnation,
            row.log_offset.between(first.offset, last.offset),
        )
    )
    return {offset: reason for offset, reason in found}  # noqa: C416 - rows are not pairs to mypy


def _stored(connection: Connection, keys: Sequence[bytes]) -> dict[bytes, _Stored]:
    place: tuple[Any, ...] = (EventRow.log_partition, EventRow.log_incarnation, EventRow.log_offset)
    stored: dict[bytes, _Stored] = {}
    for start in range(0, len(keys), _KEYS_PER_LOOKUP):
        found = connection.execute(
            select(EventKeyRow.key, EventKeyRow.content_hash, *place)
            .outerjoin(
                EventRow, and_(EventRow.seq == EventKeyRow.seq, EventRow.stored_at == EventKeyRow.stored_at)
            )
            .where(EventKeyRow.key.in_(keys[start : start + _KEYS_PER_LOOKUP]))
        )
        for key, content_hash, *where in found:
            stored[key] = _Stored(content_hash, (where[0], where[1], where[2]))
    return stored
