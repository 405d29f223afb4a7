"""The write side of the store keeps its promises, the same on SQLite and on Postgres."""

from __future__ import annotations

import datetime as dt
import gzip
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Engine, select, text

from db.batch import Advance, Batch, InvalidRecord, Position, ValidRecord, WriteResult
from db.dead_letters import encode_headers
from db.engine import open_engine
from db.errors import FenceLost
from db.event_store import EventStore
from db.models import (
    Base,
    DeadLetterRow,
    EventKeyRow,
    EventRow,
    LogGapRow,
    PartitionProgressRow,
    VerdictCountRow,
    WorkerRow,
)
from db.settings import DatabaseSettings
from events.codec import decode_event
from events.event import identity
from events.verdict import CONFLICT_REASON
from tests.support.batches import NOON, PartitionLog, event_bytes
from tests.support.data import real_events

LOG = "events"
COUNTS = ("received", "stored", "duplicate", "conflict", "dead_lettered")


@pytest.fixture
def engine(store_url: str) -> Iterator[Engine]:
    opened = open_engine(DatabaseSettings.model_validate({"url": store_url}), application_name="test")
    yield opened
    opened.dispose()


@pytest.fixture
def store(engine: Engine) -> EventStore:
    opened = EventStore(engine, LOG, owner="worker-1")
    opened.positions({0: 0, 1: 0})
    return opened


@pytest.fixture
def log() -> PartitionLog:
    return PartitionLog()


def rows(engine: Engine, table: type[Base]) -> list[Any]:
    found = table.metadata.tables[table.__tablename__]
    with engine.connect() as connection:
        return list(connection.execute(select(*found.columns).order_by(*found.primary_key.columns)))


def counts(engine: Engine) -> dict[str, tuple[int, ...]]:
    """Counters by topic, over all partitions."""
    sums = ", ".join(f"sum({name})" for name in COUNTS)
    with engine.connect() as connection:
        found = connection.execute(text(f"SELECT topic, {sums} FROM verdict_counts GROUP BY topic"))
        return {topic: tuple(int(value) for value in values) for topic, *values in found}


def verdicts(result: WriteResult) -> tuple[int, int, int, int]:
    return result.stored, result.duplicates, result.conflicts, result.dead_lettered


def test_an_event_is_kept_as_it_was_sent(engine: Engine, store: EventStore, log: PartitionLog) -> None:
    raw = event_bytes("größe-日本語-🎉", topic="naïve ☃", source="Ünïcode").replace(
        b'"payload": {}', '"payload": {  "b": 1.10,\t"a": "\\u00e9 é", "n": 12345678901234567890123}'.encode()
    )
    event = decode_event(raw)
    at = log.at(raw, received_at=NOON)

    result = store.write(log.batch([ValidRecord(at, event)]))

    assert verdicts(result) == (1, 0, 0, 0)
    (row,) = rows(engine, EventRow)
    assert (row.topic, row.event_id, row.source) == ("naïve ☃", "größe-日本語-🎉", "Ünïcode")
    assert (row.occurred_at, row.received_at) == (NOON, NOON)
    assert row.payload.encode() == event.payload
    assert (row.log_partition, row.log_incarnation, row.log_offset) == (0, 1, 0)
    (key,) = rows(engine, EventKeyRow)
    assert (key.key, key.content_hash, key.seq, key.stored_at) == (
        event.key,
        event.content_hash,
        row.seq,
        row.stored_at,
    )


def test_the_first_in_a_batch_wins(engine: Engine, store: EventStore, log: PartitionLog) -> None:
    result = store.write(
        log.batch([log.event("a", n=1), log.event("a", n=1), log.event("a", n=2), log.event("b", n=1)])
    )

    assert verdicts(result) == (2, 1, 1, 0)
    assert [(row.event_id, row.payload) for row in rows(engine, EventRow)] == [
        ("a", '{"n": 1}'),
        ("b", '{"n": 1}'),
    ]
    assert counts(engine) == {"orders": (4, 2, 1, 1, 0)}


def test_the_first_of_two_batches_wins(engine: Engine, store: EventStore, log: PartitionLog) -> None:
    store.write(log.batch([log.event("a", n=1)]))

    result = store.write(log.batch([log.event("a", n=2), log.event("a", n=1), log.event("a", n=3)]))

    assert verdicts(result) == (0, 1, 2, 0)
    assert [row.payload for row in rows(engine, EventRow)] == ['{"n": 1}']
    assert counts(engine) == {"orders": (4, 1, 1, 2, 0)}


def test_a_conflict_keeps_the_losing_record(engine: Engine, store: EventStore, log: PartitionLog) -> None:
    store.write(log.batch([log.event("a", n=1)]))
    loser = log.event("a", n=2, received_at=NOON)

    store.write(log.batch([loser]))

    (letter,) = rows(engine, DeadLetterRow)
    assert letter.reason == CONFLICT_REASON
    assert letter.record_value == loser.at.value
    assert (letter.topic, letter.event_id, letter.event_key) == ("orders", "a", loser.event.key)
    assert (letter.log_topic, letter.log_partition, letter.log_incarnation, letter.log_offset) == (
        LOG,
        0,
        1,
        1,
    )
    assert letter.received_at == NOON
    assert letter.status == "pending"


def test_the_same_id_in_another_topic_is_another_event(
    engine: Engine, store: EventStore, log: PartitionLog
) -> None:
    result = store.write(log.batch([log.event("a"), log.event("a", topic="payments")]))

    assert verdicts(result) == (2, 0, 0, 0)
    assert set(counts(engine)) == {"orders", "payments"}


def test_only_a_database_of_its_own_is_waited_for(
    engine: Engine, store: EventStore, log: PartitionLog
) -> None:
    told: list[list[Any]] = []
    batch = log.batch([log.event("a"), log.event("b"), log.event("a")])

    store.write(batch, lambda: told.append(rows(engine, EventRow)))

    # Called once, before anything is committed; never where the database works in this process.
    assert told == ([[]] if engine.dialect.name == "postgresql" else [])
    assert len(rows(engine, EventRow)) == 2


@pytest.mark.parametrize("value", [b"\x00{\xff\xfe\x00", b"", None, bytes(range(256)) * 100])
def test_a_dead_letter_keeps_its_bytes(
    engine: Engine, store: EventStore, log: PartitionLog, value: bytes | None
) -> None:
    headers = (("h", b"\x00\xff"), ("h", None), ("\ud800é", b""))
    at = log.at(value, key=b"\x00\xff", headers=headers, timestamp_ms=2**62)
    record = InvalidRecord(at, "schema", "a \x00 sentence \ud800", topic="to\x00pic", event_id="id")

    result = store.write(log.batch([record]))

    assert verdicts(result) == (0, 0, 0, 1)
    (letter,) = rows(engine, DeadLetterRow)
    assert (letter.record_key, letter.record_value) == (b"\x00\xff", value)
    assert letter.record_headers == encode_headers(headers)
    assert letter.record_headers == b'[["h","AP8="],["h",null],["\\ud800\\u00e9",""]]'
    assert letter.record_timestamp_ms == 2**62
    assert (letter.topic, letter.event_id, letter.event_key) == (None, "id", None)
    assert counts(engine) == {"": (1, 0, 0, 0, 1)}


def test_a_dead_letter_of_a_known_event_carries_its_identity(
    engine: Engine, store: EventStore, log: PartitionLog
) -> None:
    at = log.at(b"{")
    store.write(log.batch([InvalidRecord(at, "schema", "No.", topic="orders", event_id="a")]))

    (letter,) = rows(engine, DeadLetterRow)
    assert letter.event_key == identity("orders", "a")
    assert counts(engine) == {"orders": (1, 0, 0, 0, 1)}


def test_every_record_is_counted_once_per_topic(engine: Engine, store: EventStore, log: PartitionLog) -> None:
    other = PartitionLog(1)
    records: list[ValidRecord | InvalidRecord] = [
        *(log.event(f"{number % 7}", topic=f"t{number % 3}", n=number % 2) for number in range(50)),
        log.invalid(b"{"),
        log.invalid(b"{", topic="t1"),
        *(other.event(f"{number % 9}", topic=f"t{number % 3}", n=0) for number in range(50)),
    ]

    result = store.write(Batch(records, [log.advance(), other.advance()]))

    assert sum(verdicts(result)) == len(records)
    totals = [sum(column) for column in zip(*counts(engine).values(), strict=True)]
    assert totals == [len(records), *verdicts(result)]
    assert len(rows(engine, EventRow)) == len(rows(engine, EventKeyRow)) == result.stored
    assert len(rows(engine, DeadLetterRow)) == result.conflicts + result.dead_lettered
    for row in rows(engine, VerdictCountRow):
        assert row.received == row.stored + row.duplicate + row.conflict + row.dead_lettered


def test_counters_know_when_a_topic_was_first_and_last_stored(
    engine: Engine, store: EventStore, log: PartitionLog
) -> None:
    store.write(log.batch([log.invalid(b"{", topic="orders")]))
    (before,) = rows(engine, VerdictCountRow)
    store.write(log.batch([log.event("a")]))
    store.write(log.batch([log.event("b")]))
    store.write(log.batch([log.event("b")]))

    (after,) = rows(engine, VerdictCountRow)
    stored = [row.stored_at for row in rows(engine, EventRow)]
    assert (before.first_stored_at, before.last_stored_at) == (None, None)
    assert (after.first_stored_at, after.last_stored_at) == (stored[0], stored[1])


def test_a_lost_fence_writes_nothing_at_all(engine: Engine, store: EventStore, log: PartitionLog) -> None:
    tables = (EventRow, EventKeyRow, DeadLetterRow, VerdictCountRow, PartitionProgressRow)
    store.write(log.batch([log.event("a")]))
    before = [rows(engine, table) for table in tables]
    other = PartitionLog(1)
    zombie = [Advance(Position(0, 1, 0), 9), Advance(Position(1, 2, 0), 9)]
    records: list[ValidRecord | InvalidRecord] = [
        log.event("b"),
        log.event("a", n=2),
        log.invalid(b"{"),
        other.event("c"),
    ]

    with pytest.raises(FenceLost) as lost:
        store.write(Batch(records, zombie))
    assert lost.value.partitions == {0, 1}

    with pytest.raises(FenceLost) as lost:
        store.write(Batch(records, [zombie[0], other.advance()]))
    assert lost.value.partitions == {0}

    assert [rows(engine, table) for table in tables] == before


def test_positions_move_with_the_batch_and_also_without_records(
    engine: Engine, store: EventStore, log: PartitionLog
) -> None:
    log.next_offset = 5
    first = store.write(log.batch([log.event("a")], fingerprint=-(2**63)))
    log.next_offset = 9
    second = store.write(log.batch([]))

    assert list(first.positions) == [Position(0, 1, 6)]
    assert list(second.positions) == [Position(0, 1, 9)]
    assert verdicts(second) == (0, 0, 0, 0)
    assert store.positions({0: 0}) == {0: Position(0, 1, 9)}
    assert store.stored_fingerprints([0, 1, 7]) == {0: None, 1: None}


def test_the_fingerprint_is_stored_with_the_position(store: EventStore, log: PartitionLog) -> None:
    store.write(log.batch([log.event("a")], fingerprint=-(2**63)))

    assert store.stored_fingerprints([0]) == {0: -(2**63)}


def test_a_new_partition_begins_where_its_log_begins_and_an_old_one_where_it_was_left(
    engine: Engine, store: EventStore
) -> None:
    taken = EventStore(engine, LOG, owner="worker-2").positions({1: 99, 2: 17})

    assert taken == {1: Position(1, 1, 0), 2: Position(2, 1, 17)}
    owners = {row.partition: row.owner for row in rows(engine, PartitionProgressRow)}
    assert owners == {0: "worker-1", 1: "worker-2", 2: "worker-2"}
    assert EventStore(engine, "other log").positions({1: 5}) == {1: Position(1, 1, 5)}


def test_a_new_incarnation_records_the_gap_and_fences_the_old_one(
    engine: Engine, store: EventStore, log: PartitionLog
) -> None:
    store.write(log.batch([log.event("a")], fingerprint=1))
    old = Position(0, 1, 1)

    begun = store.begin_incarnation(old, 10, gap_from=1, gap_to=10, reason="expired")

    assert begun == Position(0, 2, 10)
    assert store.positions({0: 0}) == {0: begun}
    assert store.stored_fingerprints([0]) == {0: None}
    (gap,) = rows(engine, LogGapRow)
    assert (gap.log_topic, gap.partition, gap.incarnation) == (LOG, 0, 2)
    assert (gap.from_offset, gap.to_offset, gap.reason) == (1, 10, "expired")
    with pytest.raises(FenceLost):
        store.begin_incarnation(old, 10, gap_from=1, gap_to=None, reason="expired")
    with pytest.raises(FenceLost):
        store.write(Batch([], [Advance(old, 2)]))
    assert len(rows(engine, LogGapRow)) == 1


def test_offsets_of_a_recreated_topic_can_be_dead_letters_again(
    engine: Engine, store: EventStore, log: PartitionLog
) -> None:
    store.write(log.batch([log.invalid(b"one")]))
    again = PartitionLog()
    again.position = store.begin_incarnation(log.position, 0, gap_from=1, gap_to=None, reason="recreated")

    store.write(again.batch([again.invalid(b"two")]))

    assert [(row.log_incarnation, row.log_offset) for row in rows(engine, DeadLetterRow)] == [(1, 0), (2, 0)]


def test_two_workers_with_the_same_events_count_each_once_and_never_deadlock(engine: Engine) -> None:
    batches, size = 12, 60
    ready = threading.Barrier(2)

    def work(partition: int) -> tuple[int, ...]:
        store, log = EventStore(engine, LOG, owner=f"worker-{partition}"), PartitionLog(partition)
        store.positions({partition: 0})
        total: tuple[int, ...] = (0, 0, 0, 0)
        for number in range(batches):
            names = [f"{number}-{index}" for index in range(size)]
            # Opposite orders: inserted as they come, the rows of the two would deadlock.
            names = names[::-1] if partition else names
            batch = log.batch([log.event(name, n=partition if name.endswith("7") else 0) for name in names])
            ready.wait(20)
            total = tuple(map(sum, zip(total, verdicts(store.write(batch)), strict=True)))
        return total

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(work, (0, 1))

    conflicting = batches * size // 10
    assert first[0] + second[0] == batches * size == len(rows(engine, EventRow))
    assert first[1] + second[1] == batches * size - conflicting
    assert first[2] + second[2] == conflicting == len(rows(engine, DeadLetterRow))
    assert counts(engine)["orders"] == (
        2 * batches * size,
        batches * size,
        batches * size - conflicting,
        conflicting,
        0,
    )


def test_workers_come_and_go(engine: Engine, store: EventStore) -> None:
    store.heartbeat("worker-1", NOON)
    store.heartbeat("worker-2", NOON)
    store.heartbeat("worker-1", NOON + dt.timedelta(hours=1))
    store.forget_worker("worker-2")
    store.forget_worker("never seen")

    (worker,) = rows(engine, WorkerRow)
    assert (worker.worker_id, worker.started_at) == ("worker-1", NOON + dt.timedelta(hours=1))
    assert abs(dt.datetime.now(dt.UTC) - worker.heartbeat_at) < dt.timedelta(minutes=1)


def test_real_events_are_stored_once_each(engine: Engine, store: EventStore, log: PartitionLog) -> None:
    with gzip.open(real_events()) as lines:
        events = [decode_event(line.strip()) for line in lines.readlines()[-3_000:]]
    assert any(not event.payload.isascii() for event in events)
    records = [ValidRecord(log.at(None), event) for event in [*events, *events[:500]]]

    first = store.write(log.batch(records[:2_000]))
    second = store.write(log.batch(records[2_000:]))

    assert first.stored + second.stored == len(events)
    assert second.duplicates == 500
    kept = rows(engine, EventRow)
    assert len(kept) == len(events)
    stored = {(row.topic, row.event_id): row for row in kept}
    for event in events:
        row = stored[event.topic, event.event_id]
        assert (row.payload.encode(), row.occurred_at) == (event.payload, event.timestamp)
