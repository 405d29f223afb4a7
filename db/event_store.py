"""The write side of the store: verdicts, dead letters, counters and positions, in one transaction each."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

from sqlalchemy import Connection, Engine, delete, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from db import insert_postgres, insert_sqlite, rejections
from db.batch import (
    Advance,
    Batch,
    InvalidRecord,
    Position,
    Prepared,
    Rejected,
    ValidRecord,
    WhenBusy,
    WriteResult,
)
from db.counts import CountKey, Counts, tally
from db.dead_letters import conflict_row, counted_topic, invalid_row
from db.engine import transaction
from db.errors import FenceLost
from db.models import DeadLetterRow, LogGapRow, PartitionProgressRow, WorkerRow
from events.verdict import Verdict

# Looking for refused records takes some thousand statements, and writes nothing that could be too late.
_PATIENCE: Final = 3


class Statements(Protocol):
    """What differs between Postgres and SQLite: the functions of `insert_postgres` and `insert_sqlite`."""

    def move_positions(
        self,
        connection: Connection,
        log_topic: str,
        advances: Sequence[Advance],
        owner: str | None,
        now: dt.datetime,
        /,
    ) -> tuple[frozenset[int], dt.datetime]: ...

    def prepare(self, records: Sequence[ValidRecord], /) -> Any: ...

    def insert_new(
        self,
        connection: Connection,
        parameters: Any,
        incarnations: Mapping[int, int],
        stored_at: dt.datetime,
        when_busy: WhenBusy | None = None,
        /,
    ) -> dict[int, int]: ...

    def add_counts(
        self,
        connection: Connection,
        log_topic: str,
        counts: Mapping[CountKey, Counts],
        stored_at: dt.datetime,
        /,
    ) -> None: ...


class EventStore:
    """Gives every record of one log topic exactly one verdict, and keeps the authoritative positions.

    Methods block, and may be called from any thread. Each but `prepare` is one transaction: it happens as a
    whole or not at all. Any of these may raise StoreUnavailable, after which even a commit may or may not
    have taken place: read `positions` again before going on. SchemaMismatch means that the schema or a right
    is missing.
    """

    def __init__(
        self,
        engine: Engine,
        log_topic: str,
        *,
        owner: str | None = None,
        clock: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
        rejected_share: float = 0.02,
        rejected_always: int = 10,
    ) -> None:
        """
        Args:
            engine: from `open_engine`, for writing. The caller closes it.
            log_topic: the log topic all positions belong to.
            owner: the worker to name as the owner of partitions.
            clock: the time on SQLite; Postgres' own clock is used there.
            rejected_share, rejected_always: see `find_rejected`.
        """
        self._engine = engine
        self._log_topic = log_topic
        self._owner = owner
        self._clock = clock
        self._rejected_share = rejected_share
        self._rejected_always = rejected_always
        self._on_postgres = engine.dialect.name == "postgresql"
        self._statements: Statements = insert_postgres if self._on_postgres else insert_sqlite
        self._upsert = postgresql.insert if self._on_postgres else sqlite.insert

    def prepare(self, records: Sequence[ValidRecord | InvalidRecord]) -> Prepared:
        """All that `write` can do with a batch's records before its turn. Needs no database."""
        places: dict[bytes, int] = {}
        firsts: list[ValidRecord] = []
        repeated: list[tuple[int, ValidRecord]] = []
        invalid: list[InvalidRecord] = []
        for record in records:
            if isinstance(record, InvalidRecord):
                invalid.append(record)
                continue
            place = places.setdefault(record.event.key, len(firsts))
            if place == len(firsts):
                firsts.append(record)
            else:
                repeated.append((place, record))
        return Prepared(
            firsts=firsts,
            repeated=repeated,
            invalid=invalid,
            first_counts=Counter([(record.at.partition, record.event.topic) for record in firsts]),
            parameters=self._statements.prepare(firsts),
        )

    def write(self, batch: Batch, when_busy: WhenBusy | None = None) -> WriteResult:
        """Store a batch: events, dead letters, counters and positions.

        Of several records with one identity the first wins, in the store before in the batch. Another one is
        a duplicate if its content hash equals the winner's, else a conflict, which is kept as a dead letter.

        Args:
            when_busy: called in this thread; never where the database is in this process.

        Raises:
            FenceLost: a position is not the batch's previous one any more; nothing was written.
            RowsRejected: the database refuses a row's content; nothing was written.
            StoreUnavailable: it is unknown whether the batch was written.
        """
        prepared = batch.prepared or self.prepare(batch.records)
        with transaction(self._engine) as connection:
            stored_at = self._move(connection, batch.advances)
            incarnations = _incarnations(batch)
            verdicts, dead_letters = self._store(connection, prepared, incarnations, stored_at, when_busy)
            if dead_letters:
                rows = [
                    {
                        **row,
                        "log_topic": self._log_topic,
                        "log_incarnation": incarnations[row["log_partition"]],
                        "created_at": stored_at,
                    }
                    for row in dead_letters
                ]
                connection.execute(insert(DeadLetterRow), rows)
            counts = tally(verdicts)
            self._statements.add_counts(connection, self._log_topic, counts, stored_at)
        stored, duplicates, conflicts, dead_lettered = (
            map(sum, zip(*counts.values(), strict=True)) if counts else (0,) * 4
        )
        return WriteResult(
            stored=stored,
            duplicates=duplicates,
            conflicts=conflicts,
            dead_lettered=dead_lettered,
            positions=[_after(advance) for advance in batch.advances],
            by_topic=_by_topic(verdicts),
        )

    def find_rejected(self, batch: Batch) -> list[Rejected]:
        """Find the records whose content the database refuses. Nothing is written.

        Raises:
            StoreUnavailable: no single record is at fault, or so many (more than `rejected_always` and more
                than `rejected_share` of the batch) that the database must be.
        """
        limit = max(self._rejected_always, int(self._rejected_share * len(batch.records)))
        with transaction(self._engine, patience=_PATIENCE) as connection:

            def probe(records: Sequence[ValidRecord]) -> None:
                parameters = self._statements.prepare(records)
                self._statements.insert_new(connection, parameters, _incarnations(batch), self._clock())

            found = rejections.find(connection, probe, batch.records, limit)
            connection.rollback()
        return found

    def positions(self, beginnings: Mapping[int, int]) -> dict[int, Position]:
        """The stored positions, noting that this worker owns these partitions now.

        Args:
            beginnings: per partition, the offset at which one without a position begins (incarnation 1).
        """
        if not beginnings:
            return {}
        partitions = sorted(beginnings)
        row = PartitionProgressRow
        with transaction(self._engine) as connection:
            connection.execute(
                self._upsert(row)
                .values(
                    log_topic=self._log_topic,
                    incarnation=1,
                    fingerprint=None,
                    owner=self._owner,
                    updated_at=self._now(),
                )
                .on_conflict_do_nothing(),
                [{"partition": number, "next_offset": beginnings[number]} for number in partitions],
            )
            for number in partitions:
                connection.execute(
                    update(row)
                    .where(row.log_topic == self._log_topic, row.partition == number)
                    .values(owner=self._owner)
                )
            found = connection.execute(
                select(row.partition, row.incarnation, row.next_offset).where(
                    row.log_topic == self._log_topic, row.partition.in_(partitions)
                )
            )
            return {position.partition: Position(*position) for position in found}

    def next_offsets(self) -> dict[int, int]:
        """The stored next offset of every partition that has a position."""
        row = PartitionProgressRow
        with transaction(self._engine) as connection:
            found = connection.execute(
                select(row.partition, row.next_offset).where(row.log_topic == self._log_topic)
            )
            return dict(found.all())

    def stored_fingerprints(self, partitions: Iterable[int]) -> dict[int, int | None]:
        """The fingerprint of each partition that has a position; None where there is no fingerprint."""
        row = PartitionProgressRow
        with transaction(self._engine) as connection:
            found = connection.execute(
                select(row.partition, row.fingerprint).where(
                    row.log_topic == self._log_topic, row.partition.in_(list(partitions))
                )
            )
            return dict(found.all())

    def begin_incarnation(
        self, previous: Position, next_offset: int, *, gap_from: int, gap_to: int | None, reason: str
    ) -> Position:
        """Begin a new incarnation of a partition whose log was truncated, expired or recreated.

        Args:
            previous: the position that no longer fits the log.
            next_offset: where to go on reading.
            gap_from, gap_to: offsets that never got a verdict, end exclusive; None where it cannot be known.
            reason: truncated, expired or recreated.

        Raises:
            FenceLost: `previous` is not the stored position any more; nothing was written.
        """
        row = PartitionProgressRow
        position = Position(previous.partition, previous.incarnation + 1, next_offset)
        with transaction(self._engine) as connection:
            moved = connection.execute(
                update(row)
                .where(
                    row.log_topic == self._log_topic,
                    row.partition == previous.partition,
                    row.incarnation == previous.incarnation,
                    row.next_offset == previous.next_offset,
                )
                .values(
                    incarnation=position.incarnation,
                    next_offset=next_offset,
                    fingerprint=None,
                    owner=self._owner,
                    updated_at=self._now(),
                )
            )
            if moved.rowcount != 1:
                raise FenceLost(frozenset({previous.partition}))
            connection.execute(
                insert(LogGapRow).values(
                    log_topic=self._log_topic,
                    partition=previous.partition,
                    incarnation=position.incarnation,
                    from_offset=gap_from,
                    to_offset=gap_to,
                    reason=reason,
                    detected_at=self._now(),
                )
            )
        return position

    def heartbeat(self, worker_id: str, started_at: dt.datetime) -> None:
        """Note that a worker is alive."""
        statement = self._upsert(WorkerRow).values(
            worker_id=worker_id, started_at=started_at, heartbeat_at=self._now()
        )
        changed = {
            "started_at": statement.excluded.started_at,
            "heartbeat_at": statement.excluded.heartbeat_at,
        }
        with transaction(self._engine) as connection:
            connection.execute(statement.on_conflict_do_update(index_elements=["worker_id"], set_=changed))

    def forget_worker(self, worker_id: str) -> None:
        """Remove a worker that has stopped. Unknown workers are ignored."""
        with transaction(self._engine) as connection:
            connection.execute(delete(WorkerRow).where(WorkerRow.worker_id == worker_id))

    def _move(self, connection: Connection, advances: Sequence[Advance]) -> dt.datetime:
        """The fence: a worker that has lost its partition stops here. Returns the transaction's time."""
        ordered = sorted(advances, key=lambda advance: advance.previous.partition)
        moved, now = self._statements.move_positions(
            connection, self._log_topic, ordered, self._owner, self._clock()
        )
        lost = {advance.previous.partition for advance in advances} - moved
        if lost:
            raise FenceLost(frozenset(lost))
        return now

    def _store(
        self,
        connection: Connection,
        prepared: Prepared,
        incarnations: Mapping[int, int],
        stored_at: dt.datetime,
        when_busy: WhenBusy | None,
    ) -> tuple[Counter[tuple[int, str, Verdict]], list[dict[str, Any]]]:
        """Insert what is new; the verdict counts and the dead letters of everything."""
        firsts = prepared.firsts
        # What was stored before the batch wins over everything in it.
        stored = self._statements.insert_new(
            connection, prepared.parameters, incarnations, stored_at, when_busy
        )
        known = [(index, firsts[index]) for index in sorted(stored)]
        new = prepared.first_counts - Counter((first.at.partition, first.event.topic) for _, first in known)
        verdicts = Counter({(*place, Verdict.STORED): count for place, count in new.items()})
        dead_letters = [invalid_row(record) for record in prepared.invalid]
        verdicts.update(
            (record.at.partition, counted_topic(record), Verdict.DEAD_LETTERED) for record in prepared.invalid
        )
        for index, record in (*prepared.repeated, *known):
            winner = stored.get(index, firsts[index].event.content_hash)
            verdict = Verdict.DUPLICATE if record.event.content_hash == winner else Verdict.CONFLICT
            verdicts[record.at.partition, record.event.topic, verdict] += 1
            if verdict is Verdict.CONFLICT:
                dead_letters.append(conflict_row(record))
        return verdicts, dead_letters

    def _now(self) -> Any:
        return func.now() if self._on_postgres else self._clock()


def _incarnations(batch: Batch) -> dict[int, int]:
    return {advance.previous.partition: advance.previous.incarnation for advance in batch.advances}


def _by_topic(verdicts: Mapping[tuple[int, str, Verdict], int]) -> dict[tuple[str, Verdict], int]:
    found: Counter[tuple[str, Verdict]] = Counter()
    for (_, topic, verdict), count in verdicts.items():
        found[topic, verdict] += count
    return dict(found)


def _after(advance: Advance) -> Position:
    return Position(advance.previous.partition, advance.previous.incarnation, advance.next_offset)
