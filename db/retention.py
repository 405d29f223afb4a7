"""What is removed once it is old enough: events by whole days, and later their identities.

An event goes first, its identity later or at the same time, never the other way round: an identity that is
still known makes a copy of its event a duplicate, with or without the event itself.

Whatever is removed is counted in the transaction that removes it, so that counters, which go on holding all
that was ever stored, can still be compared with the rows.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import (
    Connection,
    Engine,
    bindparam,
    column,
    delete,
    func,
    select,
    table,
    text,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from db.engine import transaction
from db.models import EventKeyRow, EventRow, RemovedEventCountRow, RetentionProgressRow
from db.partitions import day_of, day_partitions, ensure_partitions
from db.settings import RetentionSettings

EVENTS: Final = "events"
IDENTITIES: Final = "identities"
_LOCK: Final = 0x726574656E74696F
"""Key of the advisory lock; the bytes spell "retentio"."""
_EVENTS_PER_STEP: Final = 2_000
_KEYS_PER_STEP: Final = 20_000
_Question = Callable[[], bool]
_DAY: Final = dt.timedelta(days=1)
# Counting a day's events takes as long as it takes; detaching it must not make everybody wait for long.
_PATIENCE: Final = 100
_LOCK_TIMEOUT: Final = "2s"


class Removed(msgspec.Struct, frozen=True):
    """What one run has removed.

    Attributes:
        events_before, identities_before: everything stored before this moment is gone; None if that kind
            is kept for ever.
        complete: False if the run ended early: another process was at it, or this one is being stopped.
    """

    events: int = 0
    identities: int = 0
    partitions: Sequence[str] = ()
    events_before: dt.datetime | None = None
    identities_before: dt.datetime | None = None
    complete: bool = True


def remove_expired(
    engine: Engine,
    settings: RetentionSettings,
    *,
    clock: Callable[[], dt.datetime] | None = None,
    is_stopping: _Question = lambda: False,
    keys_per_step: int = _KEYS_PER_STEP,
) -> Removed:
    """Remove what the settings say is too old. Any number of processes may do so at once; one of them does.

    Days are UTC, and counted after the one on which something was stored. On Postgres a day is a partition,
    which is dropped; on SQLite rows are deleted, a few at a time. Identities are deleted in the order of
    their keys, a few at a time; a run that is interrupted begins that walk anew.

    Args:
        clock: in place of the store's clock.
        is_stopping: asked between two steps; the run then ends, and the next one does the rest.
        keys_per_step: identities looked at in one transaction.

    Raises:
        StoreUnavailable: also if a table is locked for long; what was removed before is removed and counted.
        SchemaMismatch.
    """
    if settings.events_days is None:
        return Removed()
    today = _today(engine) if clock is None else clock().astimezone(dt.UTC).date()
    before = today - settings.events_days * _DAY
    remove_events = _drop_days if engine.dialect.name == "postgresql" else _delete_events
    events, partitions, complete = remove_events(engine, before, is_stopping)
    removed = Removed(events, 0, partitions, _midnight(before), None, complete)
    if settings.identities_days is None or not complete:
        return removed
    until = _midnight(today - settings.identities_days * _DAY)
    identities, complete = _delete_identities(engine, until, keys_per_step, is_stopping)
    return msgspec.structs.replace(removed, identities=identities, identities_before=until, complete=complete)


def _drop_days(engine: Engine, before: dt.date, is_stopping: _Question) -> tuple[int, list[str], bool]:
    # What lies in the default partition belongs to days that have none yet; it is moved first.
    ensure_partitions(engine)
    with transaction(engine) as connection:
        days = {day_of(name): name for name in day_partitions(connection)}
    events = 0
    dropped: list[str] = []
    for day, name in sorted(days.items()):
        if day >= before:
            break
        if is_stopping():
            return events, dropped, False
        with transaction(engine, patience=_PATIENCE) as connection:
            if not _is_alone(connection):
                return events, dropped, False
            if name not in day_partitions(connection):
                continue
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            connection.execute(text(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'"))
            # Nobody writes to a day that is over; should anybody, he waits until it is gone, and is told so.
            connection.execute(text(f"LOCK TABLE {name} IN SHARE MODE"))
            rows = table(name, column("log_partition"), column("topic"))
            counted = select(rows.c.log_partition, rows.c.topic, func.count()).group_by(
                rows.c.log_partition, rows.c.topic
            )
            removed = _note_events(connection, connection.execute(counted).all())
            _note(connection, EVENTS, _midnight(day + _DAY), removed)
            connection.execute(text(f"ALTER TABLE events DETACH PARTITION {name}"))
            connection.execute(text(f"DROP TABLE {name}"))
        events += removed
        dropped.append(name)
    with transaction(engine) as connection:
        _note(connection, EVENTS, _midnight(before), 0)
    return events, dropped, True


def _delete_events(engine: Engine, before: dt.date, is_stopping: _Question) -> tuple[int, list[str], bool]:
    """On SQLite: a few rows in each transaction, so that batches find their turn between them."""
    oldest = select(EventRow.seq).order_by(EventRow.seq).limit(_EVENTS_PER_STEP).scalar_subquery()
    statement = (
        delete(EventRow)
        .where(EventRow.seq.in_(oldest), EventRow.stored_at < _midnight(before))
        .returning(EventRow.log_partition, EventRow.topic)
    )
    events = 0
    while True:
        with transaction(engine) as connection:
            gone = connection.execute(statement).all()
            counts: dict[tuple[int, str], int] = {}
            for row in gone:
                counts[row.log_partition, row.topic] = counts.get((row.log_partition, row.topic), 0) + 1
            _note_events(connection, [(*place, count) for place, count in counts.items()])
            _note(connection, EVENTS, _midnight(before), len(gone))
        events += len(gone)
        if len(gone) < _EVENTS_PER_STEP:
            return events, [], True
        if is_stopping():
            return events, [], False


def _delete_identities(
    engine: Engine, before: dt.datetime, step: int, is_stopping: _Question
) -> tuple[int, bool]:
    with transaction(engine) as connection:
        done = connection.execute(
            select(RetentionProgressRow.before_at, RetentionProgressRow.is_complete).where(
                RetentionProgressRow.kind == IDENTITIES
            )
        ).one_or_none()
    if done is not None and done.is_complete and done.before_at >= before:
        return 0, True
    removed, after = 0, b"\0" * 16
    while True:
        with transaction(engine) as connection:
            if not _is_alone(connection):
                return removed, False
            last = connection.execute(
                select(EventKeyRow.key)
                .where(EventKeyRow.key > after)
                .order_by(EventKeyRow.key)
                .offset(step - 1)
                .limit(1)
            ).scalar_one_or_none()
            chosen = delete(EventKeyRow).where(EventKeyRow.key > after, EventKeyRow.stored_at < before)
            if last is not None:
                chosen = chosen.where(EventKeyRow.key <= last)
            count = connection.execute(chosen).rowcount
            _note(connection, IDENTITIES, before, count, is_complete=last is None)
        removed += count
        if last is None:
            return removed, True
        if is_stopping():
            return removed, False
        after = last


def _note_events(connection: Connection, counts: Sequence[Any]) -> int:
    """Add what is being removed to what was; returns how many events that is."""
    if not counts:
        return 0
    row = RemovedEventCountRow
    insert = (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(row)
    statement = insert.values(
        partition=bindparam("partition"), topic=bindparam("topic"), events=bindparam("events")
    )
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=["partition", "topic"], set_={"events": row.events + statement.excluded.events}
        ),
        [{"partition": number, "topic": topic, "events": count} for number, topic, count in counts],
    )
    return sum(count for *_, count in counts)


def _note(
    connection: Connection, kind: str, before: dt.datetime, removed: int, *, is_complete: bool = True
) -> None:
    row = RetentionProgressRow
    on_postgres = connection.dialect.name == "postgresql"
    now: Any = func.now() if on_postgres else dt.datetime.now(dt.UTC)
    insert = (postgresql if on_postgres else sqlite).insert(row)
    connection.execute(
        insert.values(
            kind=kind, before_at=before, is_complete=is_complete, removed=0, updated_at=now
        ).on_conflict_do_nothing()
    )
    connection.execute(
        update(row)
        .where(row.kind == kind)
        .values(removed=row.removed + removed, is_complete=is_complete, updated_at=now)
    )
    # Longer retention than before does not bring anything back.
    connection.execute(update(row).where(row.kind == kind, row.before_at < before).values(before_at=before))


def _is_alone(connection: Connection) -> bool:
    """Whether this transaction is the only one that removes anything; on SQLite it is by writing at all."""
    if connection.dialect.name != "postgresql":
        return True
    locked: bool = connection.execute(
        text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": _LOCK}
    ).scalar_one()
    return locked


def _today(engine: Engine) -> dt.date:
    if engine.dialect.name != "postgresql":
        return dt.datetime.now(dt.UTC).date()
    with transaction(engine) as connection:
        found: dt.date = connection.execute(text("SELECT (now() AT TIME ZONE 'UTC')::date")).scalar_one()
        return found


def _midnight(day: dt.date) -> dt.datetime:
    return dt.datetime.combine(day, dt.time(), dt.UTC)
