"""Replaying and discarding single dead letters. `dead_letter_status` has the states and the steps."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any

import msgspec
from sqlalchemy import Connection, Engine, Row, func, select, update

from db import audit
from db.audit import Action
from db.dead_letter_status import OPEN, Outcome, Status
from db.dead_letters import decode_headers
from db.engine import transaction
from db.errors import DeadLetterRefused, UnknownDeadLetter
from db.models import DeadLetterOperationRow, DeadLetterRow

_WORDS = {
    Status.REPLAYING: "is being replayed at this moment",
    Status.REPLAYED: "was replayed before",
    Status.DISCARDED: "was discarded before",
}


class ReplayDraft(msgspec.Struct, frozen=True):
    """A record on its way back into the log.

    Attributes:
        attempt: the number of this try; with the id, what the last step is conditional on.
        before: the status to go back to if it is not sent.
        key, headers: of the original record.
        value: the original one, or the edited one.
        edited: whether it is edited.
    """

    dead_letter_id: int
    attempt: int
    before: Status
    key: bytes | None
    value: bytes
    headers: tuple[tuple[str, bytes | None], ...]
    edited: bool = False


class DeadLetterStore:
    """Changes the status of dead letters, one at a time.

    Methods block, and may be called from any thread. Each is one transaction, which also writes the audit
    entry. Any of them may raise StoreUnavailable, after which the change may or may not have taken place.

    Args:
        engine: for writing; the caller closes it.
        clock: the time on SQLite; Postgres' own clock is used there.
    """

    def __init__(
        self, engine: Engine, *, clock: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC)
    ) -> None:
        self._engine = engine
        self._clock = clock

    def begin_replay(self, dead_letter_id: int, *, actor: str, edited: bytes | None = None) -> ReplayDraft:
        """The first step: nobody else can replay or discard it from now on.

        Args:
            edited: what to send in place of the record's value.

        Raises:
            UnknownDeadLetter.
            DeadLetterRefused: replayed or discarded before, or on its way; or there is no value to send.
        """
        row = DeadLetterRow
        with transaction(self._engine) as connection:
            found = self._open(
                connection,
                dead_letter_id,
                (row.record_key, row.record_value, row.record_headers, row.replays, row.operation_id),
            )
            value = found.record_value if edited is None else edited
            if value is None:
                raise DeadLetterRefused(
                    "The record has no value, so there is nothing to replay; give an edited event instead.",
                    found.status,
                )
            now = self._now()
            connection.execute(
                update(row)
                .where(row.id == dead_letter_id)
                .values(
                    status=Status.REPLAYING.value,
                    replays=row.replays + 1,
                    replayed_value=edited,
                    status_changed_at=now,
                    status_changed_by=actor,
                    operation_id=None,
                )
            )
            audit.note(
                connection,
                now,
                actor,
                Action.REPLAY,
                dead_letter_id=dead_letter_id,
                detail={"attempt": found.replays + 1, "edited": edited is not None},
            )
        return draft_of(found, dead_letter_id, value, edited=edited is not None)

    def end_replay(self, draft: ReplayDraft, outcome: Outcome) -> bool:
        """The last step; False if another one was faster, which had to take the outcome for unknown."""
        with transaction(self._engine) as connection:
            return settle(connection, draft, outcome, self._now())

    def discard(self, dead_letter_id: int, *, actor: str) -> None:
        """Nothing more will be done about it. Its row and its bytes stay.

        Raises:
            UnknownDeadLetter.
            DeadLetterRefused: replayed or discarded before, or on its way.
        """
        row = DeadLetterRow
        with transaction(self._engine) as connection:
            self._open(connection, dead_letter_id, ())
            now = self._now()
            connection.execute(
                update(row)
                .where(row.id == dead_letter_id)
                .values(
                    status=Status.DISCARDED.value,
                    status_changed_at=now,
                    status_changed_by=actor,
                    operation_id=None,
                )
            )
            audit.note(connection, now, actor, Action.DISCARD, dead_letter_id=dead_letter_id)

    def give_up_stale(self, age: dt.timedelta) -> int:
        """Replays that began so long ago that whoever began them is gone become `replay_unknown`; how many.

        Those of bulk operations that still run are left to the operation, which counts them.
        """
        row, operation = DeadLetterRow, DeadLetterOperationRow
        running = select(operation.id).where(operation.status == "running")
        with transaction(self._engine) as connection:
            done = connection.execute(
                update(row)
                .where(
                    row.status == Status.REPLAYING.value,
                    row.status_changed_at <= self._now() - age,
                    row.operation_id.is_(None) | row.operation_id.not_in(running),
                )
                .values(status=Status.REPLAY_UNKNOWN.value)
            )
            return done.rowcount

    def _open(
        self, connection: Connection, dead_letter_id: int, columns: tuple[Any, ...]
    ) -> Row[*tuple[Any, ...]]:
        """The row, locked, if something can still be done about it."""
        found = connection.execute(
            select(DeadLetterRow.status, *columns).where(DeadLetterRow.id == dead_letter_id).with_for_update()
        ).one_or_none()
        if found is None:
            raise UnknownDeadLetter
        if found.status not in OPEN:
            raise DeadLetterRefused(
                f"The dead letter {_WORDS[Status(found.status)]}; nothing was changed.", found.status
            )
        return found

    def _now(self) -> Any:
        return func.now() if self._engine.dialect.name == "postgresql" else self._clock()


def draft_of(
    found: Row[*tuple[Any, ...]], dead_letter_id: int, value: bytes, *, edited: bool = False
) -> ReplayDraft:
    """The draft of a row as it was before its replay began."""
    return ReplayDraft(
        dead_letter_id=dead_letter_id,
        attempt=found.replays + 1,
        before=Status(found.status),
        key=found.record_key,
        value=value,
        headers=decode_headers(found.record_headers) or (),
        edited=edited,
    )


def settle(connection: Connection, draft: ReplayDraft, outcome: Outcome, now: Any) -> bool:
    """Write what became of a draft; False if the row has gone on without it. A repetition changes nothing."""
    row = DeadLetterRow
    status = {
        Outcome.ACKNOWLEDGED: Status.REPLAYED,
        Outcome.UNKNOWN: Status.REPLAY_UNKNOWN,
        Outcome.NOT_SENT: draft.before,
    }[outcome]
    done = connection.execute(
        update(row)
        .where(
            row.id == draft.dead_letter_id,
            row.status == Status.REPLAYING.value,
            row.replays == draft.attempt,
        )
        .values(status=status.value, status_changed_at=now)
    )
    return done.rowcount == 1
