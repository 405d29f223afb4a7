"""Reading counters, positions, gaps and workers."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import ColumnElement, Engine, Row, collate, func, select

from db.models import LogGapRow, PartitionProgressRow, VerdictCountRow, WorkerRow
from db.read_transaction import read_transaction
from db.retention_queries import Retention, retention

MAX_NAMED_TOPICS: Final = 1_000
"""The most topics a summary names; producers choose topics, so their number has no bound."""

_COUNTS: Final = tuple(
    func.coalesce(func.sum(column), 0).label(column.key)
    for column in (
        VerdictCountRow.received,
        VerdictCountRow.stored,
        VerdictCountRow.duplicate,
        VerdictCountRow.conflict,
        VerdictCountRow.dead_lettered,
    )
)


class Counts(msgspec.Struct, frozen=True, gc=False):
    """Records by verdict: `received = stored + duplicate + conflict + dead_lettered`."""

    received: int
    stored: int
    duplicate: int
    conflict: int
    dead_lettered: int


class Database(msgspec.Struct, frozen=True):
    """The database product, such as `postgresql`, and its version."""

    kind: str
    version: str


class Summary(msgspec.Struct, frozen=True):
    """The store in figures.

    The counts are at least as recent as the positions: once the positions have reached an end offset, the
    counts hold every record below it.

    Attributes:
        counts: over all records ever given a verdict.
        topics: names of topics with stored events, the first `MAX_NAMED_TOPICS` of them in order.
        topics_active: how many topics have stored events.
        workers: workers with a recent heartbeat.
        next_offsets: for each partition of the log topic with a position, that position.
    """

    counts: Counts
    topics: Sequence[str]
    topics_active: int
    workers: int
    next_offsets: Mapping[int, int]
    database: Database
    retention: Retention


class TopicCounts(msgspec.Struct, frozen=True, gc=False):
    """One topic's counts; `topic` is None for records whose topic could not be read."""

    topic: str | None
    counts: Counts
    first_stored_at: dt.datetime | None
    last_stored_at: dt.datetime | None


class Gap(msgspec.Struct, frozen=True, gc=False):
    """Offsets that never got a verdict because the log no longer held them."""

    id: int
    log_topic: str
    partition: int
    incarnation: int
    from_offset: int
    to_offset: int | None
    reason: str
    detected_at: dt.datetime


class PartitionProgress(msgspec.Struct, frozen=True, gc=False):
    """How far a partition has been given verdicts, by whom and when; how many gaps it has, and the last."""

    partition: int
    incarnation: int
    next_offset: int
    owner: str | None
    updated_at: dt.datetime
    gaps: int = 0
    last_gap: Gap | None = None


_GAP_REASONS: Final = {
    "expired": "the log's retention removed them before a worker had read them",
    "truncated": "the log ended before the position: records were lost in it, or the topic was recreated",
    "recreated": "the log topic was deleted and created anew, so its records were others than before",
}


def gap_sentence(gap: Gap) -> str:
    """What is missing and why, for an operator."""
    missing = (
        f"offsets {gap.from_offset:,} up to {gap.to_offset:,} ({gap.to_offset - gap.from_offset:,} in all)"
        if gap.to_offset is not None
        else f"what was in the log from offset {gap.from_offset:,} on, if there was anything,"
    )
    why = _GAP_REASONS.get(gap.reason, gap.reason)
    return (
        f"Partition {gap.partition}: {missing} never got a verdict, because {why}."
        f" Found at {gap.detected_at:%Y-%m-%d %H:%M:%S} UTC; incarnation {gap.incarnation} began."
    )


_GAP_COLUMNS: Final = tuple(getattr(LogGapRow, name) for name in Gap.__struct_fields__)


class StatsQueries:
    """Reads what the store counts. Safe to use from many threads; every call is a transaction of its own.

    Counts are over every log topic this database was ever filled from, as its events are; positions are
    those of `log_topic`. Every method raises StoreUnavailable, SchemaMismatch, and QueryTimedOut for a
    statement that takes longer than `timeout` seconds.
    """

    def __init__(
        self,
        engine: Engine,
        log_topic: str,
        *,
        timeout: float,
        clock: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
    ) -> None:
        """
        Args:
            clock: the time on SQLite; Postgres' own clock, which stamps the heartbeats, is used there.
        """
        self._engine = engine
        self._log_topic = log_topic
        self._timeout = timeout
        self._clock = clock

    def summary(self, *, worker_liveness: dt.timedelta) -> Summary:
        """The store in figures; a worker is alive if its heartbeat is not older than `worker_liveness`."""
        now = func.now() if self._engine.dialect.name == "postgresql" else self._clock()
        active = (
            select(VerdictCountRow.topic)
            .where(VerdictCountRow.topic != "")
            .group_by(VerdictCountRow.topic)
            .having(func.sum(VerdictCountRow.stored) > 0)
        )
        with read_transaction(self._engine, self._timeout) as connection:
            # Positions first: what the class promises of counts and positions depends on it.
            positions = connection.execute(
                select(PartitionProgressRow.partition, PartitionProgressRow.next_offset).where(
                    PartitionProgressRow.log_topic == self._log_topic
                )
            ).all()
            counts = connection.execute(select(*_COUNTS)).one()
            topics_active = connection.execute(
                select(func.count()).select_from(active.subquery())
            ).scalar_one()
            topics = connection.execute(
                active.order_by(self._in_order(VerdictCountRow.topic)).limit(MAX_NAMED_TOPICS)
            ).scalars()
            workers = connection.execute(
                select(func.count())
                .select_from(WorkerRow)
                .where(WorkerRow.heartbeat_at >= now - worker_liveness)
            ).scalar_one()
            return Summary(
                counts=_counts(counts),
                topics=topics.all(),
                topics_active=topics_active,
                workers=workers,
                next_offsets={row.partition: row.next_offset for row in positions},
                database=self._database(connection.dialect.server_version_info or ()),
                retention=retention(connection),
            )

    def topics(self, *, limit: int, after: str | None = None) -> Sequence[TopicCounts]:
        """Up to `limit` topics in the order of their code points, from the first one after `after`.

        The empty string stands for records whose topic could not be read, and comes first.
        """
        name = self._in_order(VerdictCountRow.topic)
        statement = (
            select(
                VerdictCountRow.topic,
                *_COUNTS,
                func.min(VerdictCountRow.first_stored_at).label("first_stored_at"),
                func.max(VerdictCountRow.last_stored_at).label("last_stored_at"),
            )
            .group_by(VerdictCountRow.topic)
            .order_by(name)
            .limit(limit)
        )
        if after is not None:
            statement = statement.where(name > after)
        with read_transaction(self._engine, self._timeout) as connection:
            return [
                TopicCounts(row.topic or None, _counts(row), row.first_stored_at, row.last_stored_at)
                for row in connection.execute(statement)
            ]

    def partitions(self) -> Sequence[PartitionProgress]:
        """The stored progress of every partition of the log topic that has any."""
        statement = (
            select(
                PartitionProgressRow.partition,
                PartitionProgressRow.incarnation,
                PartitionProgressRow.next_offset,
                PartitionProgressRow.owner,
                PartitionProgressRow.updated_at,
            )
            .where(PartitionProgressRow.log_topic == self._log_topic)
            .order_by(PartitionProgressRow.partition)
        )
        of_partition = (
            select(LogGapRow.partition, func.count().label("gaps"), func.max(LogGapRow.id).label("last"))
            .where(LogGapRow.log_topic == self._log_topic)
            .group_by(LogGapRow.partition)
            .subquery()
        )
        with_gaps = select(of_partition.c.gaps, *_GAP_COLUMNS).join(
            of_partition, of_partition.c.last == LogGapRow.id
        )
        with read_transaction(self._engine, self._timeout) as connection:
            gaps = {
                gap.partition: (count, gap) for count, gap in _counted_gaps(connection.execute(with_gaps))
            }
            return [
                PartitionProgress(*row, *gaps.get(row.partition, (0, None)))
                for row in connection.execute(statement)
            ]

    def gaps(self, *, limit: int, before: int | None = None) -> Sequence[Gap]:
        """Up to `limit` gaps with an id below `before`, newest first."""
        statement = select(*_GAP_COLUMNS).order_by(LogGapRow.id.desc()).limit(limit)
        if before is not None:
            statement = statement.where(LogGapRow.id < before)
        with read_transaction(self._engine, self._timeout) as connection:
            return [Gap(*row) for row in connection.execute(statement)]

    def ping(self) -> None:
        """Return if the store can be read, schema included."""
        with read_transaction(self._engine, self._timeout) as connection:
            connection.execute(select(PartitionProgressRow.partition).limit(1)).all()

    def _in_order(self, column: Any) -> ColumnElement[str]:
        """The column sorted by code point on both stores; Postgres would follow the database's language."""
        return collate(column, "C" if self._engine.dialect.name == "postgresql" else "BINARY")

    def _database(self, version: Sequence[object]) -> Database:
        return Database(self._engine.dialect.name, ".".join(map(str, version)))


def _counted_gaps(rows: Iterable[Row[*tuple[Any, ...]]]) -> Iterator[tuple[int, Gap]]:
    for count, *gap in rows:
        yield count, Gap(*gap)


def _counts(row: Row[*tuple[Any, ...]]) -> Counts:
    # Postgres sums 64-bit integers into a decimal number.
    return Counts(
        received=int(row.received),
        stored=int(row.stored),
        duplicate=int(row.duplicate),
        conflict=int(row.conflict),
        dead_lettered=int(row.dead_lettered),
    )
