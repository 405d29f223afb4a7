"""Bulk operations on dead letters: what is to be done, how far it is, and the steps to get on with it.

An operation deals with the dead letters that match its filter in the order of their ids, up to the newest one
at its creation: what its own replays give rise to is not its business. One process at a time carries it out.
It moves on in small transactions, each conditional on the process still owning it, so its counts are exact
whatever ends it:

- a discard is one transaction for some dead letters: status, counts and `after_id` together;
- a replay is two: `take` makes them `replaying` and moves `after_id`, `settle` notes what became of them and
  counts that.

A process that ends between the two leaves dead letters `replaying`. Whoever takes the operation over counts
them as `unknown` (status `replay_unknown`) and goes on behind them.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, Engine, Row, func, insert, select, update

from db import audit, dead_letter_store
from db.audit import Action
from db.dead_letter_status import OPEN, Outcome, Status
from db.dead_letter_store import ReplayDraft, draft_of
from db.engine import transaction
from db.errors import DeadLetterRefused, OperationLost, UnknownOperation
from db.event_filter import DeadLetterFilter
from db.models import DeadLetterOperationRow, DeadLetterRow
from db.operation_queries import COLUMNS, Kind, Operation, OperationStatus, operation_of

_IDS_PER_LOOK: Final = 100_000
"""Ids one statement looks through, however few of them match."""
_LETTERS_PER_LOOK: Final = 5_000
_Row = Row[*tuple[Any, ...]]
_ENDED: Final = (OperationStatus.COMPLETED, OperationStatus.CANCELLED, OperationStatus.FAILED)


class Taken(msgspec.Struct, frozen=True):
    """Some dead letters to replay, and whether they are the operation's last."""

    drafts: Sequence[ReplayDraft]
    finished: bool


class _Stretch(msgspec.Struct, frozen=True):
    """The next dead letters: rows of (id, size of its value or None), and how far that is."""

    rows: Sequence[_Row]
    after_id: int
    finished: bool

    @property
    def ids(self) -> list[int]:
        return [row.id for row in self.rows]

    @property
    def replayable(self) -> list[int]:
        return [row.id for row in self.rows if row.size is not None]


class OperationStore:
    """Creates operations and moves them on.

    Methods block, and may be called from any thread; each is one transaction, and may raise StoreUnavailable,
    after which the change may or may not have taken place. Repeating any of them is safe.

    Args:
        engine: for writing; the caller closes it.
        owner: this process, by a name no other has.
        clock: the time on SQLite; Postgres' own clock is used there.
    """

    def __init__(
        self,
        engine: Engine,
        owner: str,
        *,
        clock: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
    ) -> None:
        self._engine = engine
        self._owner = owner
        self._clock = clock

    def create(
        self,
        kind: Kind,
        chosen: DeadLetterFilter,
        *,
        actor: str,
        most: int | None = None,
        dry_run: bool = False,
        matching: int | None = None,
    ) -> Operation:
        """Note an operation; whoever calls `claim` first carries it out.

        Args:
            chosen: its status is one of `OPEN`, by default pending.
            most: how many dead letters to deal with; None for all.
            dry_run: count what would be done, and change nothing.
            matching: how many match, if known.
        """
        status = chosen.status or Status.PENDING.value
        assert status in OPEN
        text = msgspec.json.encode(msgspec.structs.replace(chosen, status=status)).decode()
        with transaction(self._engine) as connection:
            now = self._now()
            newest = connection.execute(select(func.max(DeadLetterRow.id))).scalar_one()
            (operation_id,) = connection.execute(
                insert(DeadLetterOperationRow).values(
                    kind=kind.value,
                    filter=text,
                    most=most,
                    dry_run=dry_run,
                    status=OperationStatus.WAITING.value,
                    matching=matching,
                    done=0,
                    skipped=0,
                    failed=0,
                    unknown=0,
                    after_id=0,
                    until_id=newest or 0,
                    requested_by=actor,
                    created_at=now,
                    updated_at=now,
                )
            ).inserted_primary_key or (0,)
            audit.note(
                connection,
                now,
                actor,
                Action.OPERATION_CREATE,
                operation_id=operation_id,
                detail={
                    "kind": kind,
                    "filter": msgspec.Raw(text.encode()),
                    "limit": most,
                    "dry_run": dry_run,
                },
            )
            return _read(connection, operation_id)

    def claim(self, *, stale_after: dt.timedelta) -> Operation | None:
        """The oldest operation to carry out, now ours; None if there is none.

        Args:
            stale_after: an operation without a sign of life for so long is taken from its owner.
        """
        row = DeadLetterOperationRow
        abandoned = (row.status == OperationStatus.RUNNING.value) & (
            row.updated_at <= self._now() - stale_after
        )
        with transaction(self._engine) as connection:
            found = connection.execute(
                select(row.id)
                .where((row.status == OperationStatus.WAITING.value) | abandoned)
                .order_by(row.id)
                .limit(1)
                .with_for_update(skip_locked=True)
            ).scalar_one_or_none()
            if found is None:
                return None
            connection.execute(
                update(row)
                .where(row.id == found)
                .values(status=OperationStatus.RUNNING.value, owner=self._owner, updated_at=self._now())
            )
            self._count_left_behind(connection, found)
            return _read(connection, found)

    def take(self, operation_id: int, *, most_letters: int, most_bytes: int) -> Taken:
        """Make the next dead letters `replaying`. Those without a value are skipped, and counted so.

        Nothing may be under way: what is still `replaying` is taken for left behind, and counted as unknown.

        Args:
            most_letters, most_bytes: how many, and how much of values, to hold at once (but at least one).

        Raises:
            OperationLost.
        """
        with transaction(self._engine) as connection:
            self._ours(connection, operation_id)
            self._count_left_behind(connection, operation_id)
            operation = _read(connection, operation_id)
            stretch = _next(connection, operation, most_letters, most_bytes)
            ids = stretch.replayable
            row = DeadLetterRow
            found = connection.execute(
                select(row.id, row.status, row.record_key, row.record_value, row.record_headers, row.replays)
                .where(row.id.in_(ids))
                .order_by(row.id)
            ).all()
            connection.execute(
                update(row)
                .where(row.id.in_(ids))
                .values(
                    status=Status.REPLAYING.value,
                    replays=row.replays + 1,
                    replayed_value=None,
                    status_changed_at=self._now(),
                    status_changed_by=operation.requested_by,
                    operation_id=operation_id,
                )
            )
            self._advance(connection, operation_id, stretch, skipped=len(stretch.rows) - len(ids))
            return Taken([draft_of(one, one.id, one.record_value) for one in found], stretch.finished)

    def settle(self, operation_id: int, outcomes: Sequence[tuple[ReplayDraft, Outcome]]) -> None:
        """Note what became of dead letters that were taken, also if the operation was cancelled meanwhile."""
        counts = dict.fromkeys(Outcome, 0)
        with transaction(self._engine) as connection:
            now = self._now()
            for draft, outcome in outcomes:
                # Counted only where the row changes: by a repetition it does not.
                counts[outcome] += dead_letter_store.settle(connection, draft, outcome, now)
            row = DeadLetterOperationRow
            connection.execute(
                update(row)
                .where(row.id == operation_id)
                .values(
                    done=row.done + counts[Outcome.ACKNOWLEDGED],
                    unknown=row.unknown + counts[Outcome.UNKNOWN],
                    failed=row.failed + counts[Outcome.NOT_SENT],
                    updated_at=now,
                )
            )

    def discard(self, operation_id: int, *, most_letters: int) -> bool:
        """Discard the next dead letters; True once there are none left. Raises OperationLost."""
        row = DeadLetterRow
        with transaction(self._engine) as connection:
            operation = self._ours(connection, operation_id)
            stretch = _next(connection, operation, most_letters)
            connection.execute(
                update(row)
                .where(row.id.in_(stretch.ids))
                .values(
                    status=Status.DISCARDED.value,
                    status_changed_at=self._now(),
                    status_changed_by=operation.requested_by,
                    operation_id=operation_id,
                )
            )
            self._advance(connection, operation_id, stretch, done=len(stretch.rows))
            return stretch.finished

    def rehearse(self, operation_id: int) -> bool:
        """Count the next dead letters of a dry run; True once there are none left. Raises OperationLost."""
        with transaction(self._engine) as connection:
            operation = self._ours(connection, operation_id)
            stretch = _next(connection, operation, _LETTERS_PER_LOOK)
            done = stretch.replayable if operation.kind is Kind.REPLAY else stretch.ids
            skipped = len(stretch.rows) - len(done)
            self._advance(connection, operation_id, stretch, done=len(done), skipped=skipped)
            return stretch.finished

    def touch(self, operation_id: int) -> None:
        """Give a sign of life. Raises OperationLost."""
        with transaction(self._engine) as connection:
            self._ours(connection, operation_id)

    def release(self, operation_id: int) -> None:
        """Leave it to whoever calls `claim` next. Ignored if it is not ours."""
        self._leave(operation_id, OperationStatus.WAITING)

    def end(self, operation_id: int, *, error: str | None = None) -> None:
        """It is completed, or with an error, failed. Ignored if it is not ours."""
        status = OperationStatus.COMPLETED if error is None else OperationStatus.FAILED
        self._leave(operation_id, status, error)

    def cancel(self, operation_id: int, *, actor: str) -> Operation:
        """Stop it; what it has done stays done.

        Raises:
            UnknownOperation.
            DeadLetterRefused: it has ended.
        """
        row = DeadLetterOperationRow
        with transaction(self._engine) as connection:
            now = self._now()
            stopped = connection.execute(
                update(row)
                .where(row.id == operation_id, row.status.not_in(_ENDED))
                .values(status=OperationStatus.CANCELLED.value, updated_at=now, finished_at=now)
            )
            operation = _read(connection, operation_id)
            if stopped.rowcount != 1:
                raise DeadLetterRefused("The operation has ended already.", operation.status)
            audit.note(connection, now, actor, Action.OPERATION_CANCEL, operation_id=operation_id)
            return operation

    def _leave(self, operation_id: int, status: OperationStatus, error: str | None = None) -> None:
        row = DeadLetterOperationRow
        with transaction(self._engine) as connection:
            now = self._now()
            ended = now if status in _ENDED else None
            left = connection.execute(
                update(row)
                .where(
                    row.id == operation_id,
                    row.owner == self._owner,
                    row.status == OperationStatus.RUNNING.value,
                )
                .values(status=status.value, owner=None, updated_at=now, finished_at=ended, error=error)
            )
            if left.rowcount == 1 and ended is not None:
                operation = _read(connection, operation_id)
                detail = {
                    "status": status,
                    **{name: getattr(operation, name) for name in ("done", "skipped", "failed", "unknown")},
                }
                audit.note(
                    connection,
                    now,
                    operation.requested_by,
                    Action.OPERATION_END,
                    operation_id=operation_id,
                    detail=detail,
                )

    def _ours(self, connection: Connection, operation_id: int) -> Operation:
        """The operation, locked, with a new sign of life."""
        row = DeadLetterOperationRow
        touched = connection.execute(
            update(row)
            .where(
                row.id == operation_id,
                row.owner == self._owner,
                row.status == OperationStatus.RUNNING.value,
            )
            .values(updated_at=self._now())
        )
        if touched.rowcount != 1:
            raise OperationLost
        return _read(connection, operation_id)

    def _count_left_behind(self, connection: Connection, operation_id: int) -> None:
        """What is still `replaying` for this operation has no process any more that could settle it."""
        row, operation = DeadLetterRow, DeadLetterOperationRow
        left = connection.execute(
            update(row)
            .where(row.status == Status.REPLAYING.value, row.operation_id == operation_id)
            .values(status=Status.REPLAY_UNKNOWN.value)
        ).rowcount
        if left:
            connection.execute(
                update(operation).where(operation.id == operation_id).values(unknown=operation.unknown + left)
            )

    def _advance(
        self, connection: Connection, operation_id: int, stretch: _Stretch, *, done: int = 0, skipped: int = 0
    ) -> None:
        row = DeadLetterOperationRow
        connection.execute(
            update(row)
            .where(row.id == operation_id)
            .values(after_id=stretch.after_id, done=row.done + done, skipped=row.skipped + skipped)
        )

    def _now(self) -> Any:
        return func.now() if self._engine.dialect.name == "postgresql" else self._clock()


def _next(
    connection: Connection, operation: Operation, most_letters: int, most_bytes: int | None = None
) -> _Stretch:
    """The next dead letters of an operation, locked. A statement looks at no more than so many ids."""
    after, until = operation.after_id, min(operation.until_id, operation.after_id + _IDS_PER_LOOK)
    limit = most_letters if operation.left is None else min(most_letters, operation.left)
    row = DeadLetterRow
    rows = connection.execute(
        select(row.id, func.length(row.record_value).label("size"))
        .where(row.id > after, row.id <= until, *operation.chosen.conditions())
        .order_by(row.id)
        .limit(limit)
        .with_for_update()
    ).all()
    fitting = _fitting(rows, most_bytes)
    reached = until if len(fitting) == len(rows) < limit else fitting[-1].id if fitting else after
    spent = operation.left is not None and operation.left <= len(fitting)
    return _Stretch(fitting, reached, spent or reached >= operation.until_id)


def _fitting(rows: Sequence[_Row], most_bytes: int | None) -> Sequence[_Row]:
    """The first rows, at least one, whose values together are not larger."""
    if most_bytes is None:
        return rows
    total = 0
    for count, row in enumerate(rows):
        total += row.size or 0
        if count and total > most_bytes:
            return rows[:count]
    return rows


def _read(connection: Connection, operation_id: int) -> Operation:
    found = connection.execute(
        select(*COLUMNS).where(DeadLetterOperationRow.id == operation_id)
    ).one_or_none()
    if found is None:
        raise UnknownOperation
    return operation_of(found)
