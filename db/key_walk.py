"""Every event against its key, in short transactions, so that the walk may take as long as it needs."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import BigInteger, Connection, Engine, literal, select, tuple_

from db.engine import transaction
from db.findings import KEPT_PER_CHECK, Check, Findings
from db.models import EventKeyRow, EventRow
from db.store_snapshot import StoreSnapshot, one_moment
from db.types import UtcTime
from events.event import identity

_CHUNK: Final = 2_000
_PATIENCE: Final = 5_000
_KEY_CHECKS: Final = (
    Check.EVENT_WITHOUT_KEY,
    Check.KEY_DISAGREES,
    Check.EVENT_STORED_TWICE,
    Check.KEY_COUNT,
)


def walk_events(
    engine: Engine, snapshot: StoreSnapshot, findings: Findings, progress: Callable[[int], None]
) -> int:
    """Note every event of the snapshot without a key, or whose key says something else; then, if anything is
    odd, every key without an event. An event and its key are stored in one transaction and never changed, so
    what is written meanwhile does no harm.

    Args:
        progress: called with the number of events looked at so far.

    Returns:
        How many events were looked at.

    Raises:
        StoreUnavailable, SchemaMismatch.
    """
    seen = 0
    gone = snapshot.retention
    events, keys = snapshot.events + gone.events.removed, snapshot.keys + gone.identities.removed
    if events != keys:
        findings.add(
            Check.KEY_COUNT,
            f"There are {events:,} events, but {keys:,} keys of events, removed ones included.",
        )
    after: Any = None
    while snapshot.last_seq is not None:
        with transaction(engine) as connection:
            # At one moment: retention may be removing events and their keys.
            one_moment(connection)
            rows = _events(connection, after, snapshot.last_seq)
            _check(connection, rows, findings)
        seen += len(rows)
        progress(seen)
        if len(rows) < _CHUNK:
            break
        after = rows[-1]
    if findings.any_of(_KEY_CHECKS):
        _keys_without_event(engine, snapshot.retention.events.before_at, findings)
    return seen


def _events(connection: Connection, after: Any, last_seq: int) -> Sequence[Any]:
    statement = select(EventRow.seq, EventRow.stored_at, EventRow.topic, EventRow.event_id).where(
        EventRow.seq <= last_seq
    )
    if after is not None:
        statement = statement.where(
            EventRow.seq >= after.seq,
            tuple_(EventRow.seq, EventRow.stored_at)
            > tuple_(literal(after.seq, BigInteger), literal(after.stored_at, UtcTime)),
        )
    return connection.execute(statement.order_by(EventRow.seq, EventRow.stored_at).limit(_CHUNK)).all()


def _check(connection: Connection, rows: Sequence[Any], findings: Findings) -> None:
    keys = [identity(row.topic, row.event_id) for row in rows]
    known = _places(connection, keys)
    for key, row in zip(keys, rows, strict=True):
        place = known.get(key)
        event = f"Event {row.event_id!r} of topic {row.topic!r}, number {row.seq:,},"
        if place is None:
            findings.add(Check.EVENT_WITHOUT_KEY, f"{event} has no key: it would be stored a second time.")
        elif place != (row.seq, row.stored_at):
            _disagreement(connection, event, row, place, findings)


def _disagreement(connection: Connection, event: str, row: Any, place: Any, findings: Findings) -> None:
    other = connection.execute(
        select(EventRow.topic, EventRow.event_id).where(
            EventRow.seq == place[0], EventRow.stored_at == place[1]
        )
    ).one_or_none()
    if other is not None and tuple(other) == (row.topic, row.event_id):
        findings.add(Check.EVENT_STORED_TWICE, f"{event} is stored a second time, as number {place[0]:,}.")
        return
    findings.add(
        Check.KEY_DISAGREES,
        f"{event} was stored at {row.stored_at.isoformat()}, but its key says number {place[0]:,} at"
        f" {place[1].isoformat()}.",
    )


def _places(connection: Connection, keys: Sequence[bytes]) -> Mapping[bytes, tuple[int, Any]]:
    found = connection.execute(
        select(EventKeyRow.key, EventKeyRow.seq, EventKeyRow.stored_at).where(EventKeyRow.key.in_(keys))
    )
    return {key: (seq, stored_at) for key, seq, stored_at in found}


def _keys_without_event(engine: Engine, removed_before: dt.datetime | None, findings: Findings) -> None:
    there = select(EventRow.seq).where(
        EventRow.seq == EventKeyRow.seq, EventRow.stored_at == EventKeyRow.stored_at
    )
    statement = (
        select(EventKeyRow.key, EventKeyRow.seq, EventKeyRow.stored_at)
        .where(~there.exists())
        .limit(10 * KEPT_PER_CHECK)
    )
    if removed_before is not None:
        statement = statement.where(EventKeyRow.stored_at >= removed_before)
    with transaction(engine, patience=_PATIENCE) as connection:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
        for key, seq, stored_at in connection.execute(statement):
            findings.add(
                Check.KEY_WITHOUT_EVENT,
                f"The key {key.hex()} stands for event number {seq:,}, stored at {stored_at.isoformat()},"
                " which is not there.",
            )
