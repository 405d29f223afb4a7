"""The store at one moment, compared with itself by counting: counters, rows, keys, positions and gaps.

What retention has removed was counted in the transactions that removed it, and joins the rows here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import msgspec
from sqlalchemy import (
    ColumnElement,
    CompoundSelect,
    Connection,
    Engine,
    Select,
    and_,
    case,
    false,
    func,
    literal,
    or_,
    select,
    text,
    union_all,
)

from db.counts import Counts
from db.engine import transaction
from db.findings import KEPT_PER_CHECK, Check, Findings
from db.models import (
    DeadLetterRow,
    EventKeyRow,
    EventRow,
    LogGapRow,
    PartitionProgressRow,
    RemovedEventCountRow,
    VerdictCountRow,
)
from db.retention_queries import Retention, retention
from db.stats_queries import Gap
from events.verdict import CONFLICT_REASON

MAX_GAPS: Final = 1_000
"""The most gaps a snapshot lists, the newest."""
_PATIENCE: Final = 5_000
"""Counting a large table takes as long as it takes: a day, with the usual limit of a transaction."""
_MOST_MISMATCHES: Final = 10 * KEPT_PER_CHECK

_Select = Select[*tuple[Any, ...]] | CompoundSelect[*tuple[Any, ...]]


class StoredPosition(msgspec.Struct, frozen=True):
    """A partition's row: see `db.models.PartitionProgressRow`."""

    partition: int
    incarnation: int
    next_offset: int
    fingerprint: int | None


class HeldRows(msgspec.Struct, frozen=True):
    """Rows of a partition's present incarnation from offsets that the log still holds."""

    events: int = 0
    dead_letters: int = 0


class StoreSnapshot(msgspec.Struct, frozen=True):
    """The store at one moment.

    Attributes:
        positions, counts, held: by partition of the log topic.
        gaps: known ones of the log topic, newest first, at most `MAX_GAPS`.
        events, keys: all rows, of every log topic.
        dead_letters: rows of the log topic.
        last_seq: the highest `seq` of an event; None without events.
        retention: what is no longer there because of its age.
        only_log_topic: whether the database was filled from this log topic alone; an event does not say
            which one it came from.
    """

    positions: Mapping[int, StoredPosition]
    counts: Mapping[int, Counts]
    held: Mapping[int, HeldRows]
    gaps: Sequence[Gap]
    events: int
    keys: int
    dead_letters: int
    last_seq: int | None
    retention: Retention
    only_log_topic: bool


def take_snapshot(
    engine: Engine, log_topic: str, beginnings: Mapping[int, int], findings: Findings
) -> StoreSnapshot:
    """Count everything in one transaction that sees one moment, and note what does not agree.

    Workers may go on writing meanwhile. It reads every row of the large tables once or twice.

    Args:
        beginnings: the first offset the log holds, by partition; `held` begins there.

    Raises:
        StoreUnavailable, SchemaMismatch.
    """
    with _reading(engine) as connection:
        positions = {one.partition: one for one in _positions(connection, log_topic)}
        log_topics = select(func.count(PartitionProgressRow.log_topic.distinct()))
        is_only = connection.execute(log_topics).scalar_one() <= 1
        gaps = _gaps(connection, log_topic)
        _counter_findings(connection, log_topic, findings)
        ends = _ends(positions, gaps)
        _gap_findings(positions, gaps, findings)
        events = _by_incarnation(connection, EventRow, positions, beginnings)
        letters = _by_incarnation(
            connection, DeadLetterRow, positions, beginnings, DeadLetterRow.log_topic == log_topic
        )
        if is_only:
            _position_findings("An event", events, ends, findings)
        _position_findings("A dead letter", letters, ends, findings)
        return StoreSnapshot(
            positions=positions,
            counts=_counts(connection, log_topic),
            held={
                number: HeldRows(
                    _held(events, number, one.incarnation), _held(letters, number, one.incarnation)
                )
                for number, one in positions.items()
            },
            gaps=gaps[:MAX_GAPS],
            events=sum(row.rows for row in events),
            keys=connection.execute(select(func.count()).select_from(EventKeyRow)).scalar_one(),
            dead_letters=sum(row.rows for row in letters),
            last_seq=connection.execute(
                select(EventRow.seq).order_by(EventRow.seq.desc()).limit(1)
            ).scalar_one_or_none(),
            retention=retention(connection),
            only_log_topic=is_only,
        )


def one_moment(connection: Connection) -> None:
    """Have every statement of a transaction that has just begun see the same moment. It can only read."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))


def read_positions(engine: Engine, log_topic: str) -> dict[int, StoredPosition]:
    """The positions as of now. Raises StoreUnavailable."""
    with transaction(engine) as connection:
        return {one.partition: one for one in _positions(connection, log_topic)}


@contextmanager
def _reading(engine: Engine) -> Iterator[Connection]:
    with transaction(engine, patience=_PATIENCE) as connection:
        one_moment(connection)
        if connection.dialect.name == "postgresql":
            for name in ("statement_timeout", "idle_in_transaction_session_timeout"):
                connection.execute(text("SELECT set_config(:name, '0', true)"), {"name": name})
        yield connection


def _positions(connection: Connection, log_topic: str) -> Iterator[StoredPosition]:
    row = PartitionProgressRow
    for found in connection.execute(
        select(row.partition, row.incarnation, row.next_offset, row.fingerprint).where(
            row.log_topic == log_topic
        )
    ):
        yield StoredPosition(*found)


def _gaps(connection: Connection, log_topic: str) -> list[Gap]:
    columns = [getattr(LogGapRow, name) for name in Gap.__struct_fields__]
    statement = select(*columns).where(LogGapRow.log_topic == log_topic).order_by(LogGapRow.id.desc())
    return [Gap(*row) for row in connection.execute(statement)]


def _counts(connection: Connection, log_topic: str) -> dict[int, Counts]:
    row = VerdictCountRow
    columns = (row.stored, row.duplicate, row.conflict, row.dead_lettered)
    found = connection.execute(
        select(row.partition, *(func.sum(column) for column in columns))
        .where(row.log_topic == log_topic)
        .group_by(row.partition)
    )
    return {partition: Counts(*map(int, figures)) for partition, *figures in found}


def _counter_findings(connection: Connection, log_topic: str, findings: Findings) -> None:
    row, letter = VerdictCountRow, DeadLetterRow
    verdicts = (row.stored, row.duplicate, row.conflict, row.dead_lettered)
    added = row.stored + row.duplicate + row.conflict + row.dead_lettered
    for found in connection.execute(
        select(row.partition, row.topic, row.received, added.label("added"))
        .where(or_(row.received != added, *(column < 0 for column in verdicts)))
        .limit(_MOST_MISMATCHES)
    ):
        findings.add(
            Check.COUNTER_SUM,
            f"Partition {found.partition}, topic {found.topic!r}: received is {found.received:,}, but its"
            f" verdicts add up to {found.added:,}, or one is negative.",
            found.partition,
        )
    # An event does not say which log topic it came from; counters and dead letters do.
    _compare(
        connection, Check.STORED_COUNTER, "stored", "events, removed ones included", findings,
        select(row.partition, row.topic, row.stored),
        union_all(
            select(EventRow.log_partition, EventRow.topic, func.count().label("events")).group_by(
                EventRow.log_partition, EventRow.topic
            ),
            select(*RemovedEventCountRow.__table__.columns),
        ),
    )  # fmt: skip
    topic = func.coalesce(letter.topic, "")
    letters = (
        select(letter.log_partition, topic, func.count())
        .where(letter.log_topic == log_topic)
        .group_by(letter.log_partition, topic)
    )
    ours = row.log_topic == log_topic
    _compare(
        connection, Check.CONFLICT_COUNTER, "conflict", "dead letters of conflicts", findings,
        select(row.partition, row.topic, row.conflict).where(ours),
        letters.where(letter.reason == CONFLICT_REASON),
    )  # fmt: skip
    _compare(
        connection, Check.DEAD_LETTER_COUNTER, "dead_lettered", "dead letters other than conflicts", findings,
        select(row.partition, row.topic, row.dead_lettered).where(ours),
        letters.where(letter.reason != CONFLICT_REASON),
    )  # fmt: skip


def _compare(
    connection: Connection,
    check: Check,
    counter: str,
    rows: str,
    findings: Findings,
    counted: _Select,
    found: _Select,
) -> None:
    """Note where counters differ from counted rows. Compared in the database: topics have no bound."""
    left, right = counted.subquery(), found.subquery()
    both = union_all(
        select(*left.c, literal(0)).select_from(left),
        select(right.c[0], right.c[1], literal(0), right.c[2]).select_from(right),
    ).subquery()
    partition, topic, by_counter, by_rows = both.c
    statement = (
        select(partition, topic, func.sum(by_counter), func.sum(by_rows))
        .group_by(partition, topic)
        .having(func.sum(by_counter) != func.sum(by_rows))
        .order_by(partition, topic)
        .limit(_MOST_MISMATCHES)
    )
    for number, name, counts, there in connection.execute(statement):
        findings.add(
            check,
            f"Partition {number}, topic {name!r}: the counter {counter} is {int(counts):,}, but there are"
            f" {int(there):,} {rows}.",
            number,
        )


def _by_incarnation(
    connection: Connection,
    table: Any,
    positions: Mapping[int, StoredPosition],
    beginnings: Mapping[int, int],
    *where: ColumnElement[bool],
) -> Sequence[Any]:
    """Per partition and incarnation: how many rows, how many from offsets the log holds, and the last one."""
    held = or_(
        false(),
        *(
            and_(
                table.log_partition == number,
                table.log_offset >= beginnings.get(number, 0),
                table.log_offset < position.next_offset,
            )
            for number, position in positions.items()
        ),
    )
    statement = (
        select(
            table.log_partition.label("partition"),
            table.log_incarnation.label("incarnation"),
            func.count().label("rows"),
            func.sum(case((held, 1), else_=0)).label("held"),
            func.max(table.log_offset).label("last"),
        )
        .where(*where)
        .group_by(table.log_partition, table.log_incarnation)
        .order_by(table.log_partition, table.log_incarnation)
    )
    return connection.execute(statement).all()


def _held(rows: Sequence[Any], partition: int, incarnation: int) -> int:
    return sum(int(row.held) for row in rows if (row.partition, row.incarnation) == (partition, incarnation))


def _ends(positions: Mapping[int, StoredPosition], gaps: Sequence[Gap]) -> dict[tuple[int, int], int]:
    """Where each incarnation of each partition ends, or has ended."""
    ends = {(gap.partition, gap.incarnation - 1): gap.from_offset for gap in gaps}
    return ends | {(p, one.incarnation): one.next_offset for p, one in positions.items()}


def _position_findings(
    what: str, rows: Sequence[Any], ends: Mapping[tuple[int, int], int], findings: Findings
) -> None:
    for row in rows:
        end = ends.get((row.partition, row.incarnation))
        if end is None or row.last >= end:
            position = "there is no position" if end is None else f"its position is {end:,}"
            findings.add(
                Check.ROW_BEYOND_POSITION,
                f"{what} comes from offset {row.last:,} of partition {row.partition}, incarnation"
                f" {row.incarnation}, but {position} there: it would be read again.",
                row.partition,
            )


def _gap_findings(positions: Mapping[int, StoredPosition], gaps: Sequence[Gap], findings: Findings) -> None:
    known = {(gap.partition, gap.incarnation) for gap in gaps}
    for number, position in positions.items():
        lost = [n for n in range(2, position.incarnation + 1) if (number, n) not in known]
        if lost:
            findings.add(
                Check.GAP_MISSING,
                f"Partition {number} is at incarnation {position.incarnation}, but no gap is recorded before"
                f" incarnation {', '.join(map(str, lost[:KEPT_PER_CHECK]))}.",
                number,
            )
