"""A record that the database can never take is found, alone, and nothing else suffers for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, text

from db.batch import Batch, InvalidRecord, ValidRecord
from db.engine import open_engine
from db.errors import RowsRejected, StoreUnavailable
from db.event_store import EventStore
from db.settings import DatabaseSettings
from events.codec import decode_event
from tests.support.batches import PartitionLog, event_bytes


@pytest.fixture
def engine(store_url: str) -> Iterator[Engine]:
    opened = open_engine(DatabaseSettings.model_validate({"url": store_url}), application_name="test")
    yield opened
    opened.dispose()


@pytest.fixture
def store(engine: Engine) -> EventStore:
    opened = EventStore(engine, "events", rejected_share=0.02, rejected_always=10)
    opened.positions({0: 0})
    return opened


@pytest.fixture
def log() -> PartitionLog:
    return PartitionLog()


def sizes(engine: Engine) -> tuple[int, ...]:
    with engine.connect() as connection:
        return tuple(
            connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one()
            for table in ("events", "event_keys", "dead_letters")
        )


def test_a_refused_record_is_found_and_nothing_is_written(
    engine: Engine, store: EventStore, log: PartitionLog
) -> None:
    refuse_events_named(engine, "poison%")
    records: list[ValidRecord | InvalidRecord] = [log.event(f"good-{number}") for number in range(40)]
    records[7] = log.event("poison-7")
    records[20] = log.invalid(b"{")
    records[31] = log.event("poison-31")
    records[33] = log.event("poison-31")
    batch = log.batch(records)

    with pytest.raises(RowsRejected):
        store.write(batch)
    found = store.find_rejected(batch)

    assert [rejected.index for rejected in found] == [7, 31, 33]
    assert all("not wanted" in rejected.error or "constraint" in rejected.error for rejected in found)
    assert sizes(engine) == (0, 0, 0)
    kept = [record for index, record in enumerate(records) if index not in {7, 31, 33}]
    result = store.write(Batch(kept, batch.advances))
    assert (result.stored, result.dead_lettered) == (36, 1)


def test_text_that_no_database_can_encode_is_a_refused_record(
    engine: Engine, store: EventStore, log: PartitionLog
) -> None:
    good = log.event("good")
    event = good.event
    broken = decode_event(event_bytes("broken"))
    fields = {name: getattr(broken, name) for name in broken.__struct_fields__}
    record = ValidRecord(log.at(b"{}"), type(event)(**{**fields, "source": "\ud800"}))
    batch = log.batch([good, record])

    with pytest.raises(RowsRejected):
        store.write(batch)

    assert [rejected.index for rejected in store.find_rejected(batch)] == [1]
    assert sizes(engine) == (0, 0, 0)


def test_refused_records_beyond_the_limit_are_an_outage(
    engine: Engine, log: PartitionLog, store: EventStore
) -> None:
    refuse_events_named(engine, "%")
    few = log.batch([log.event(f"{number}") for number in range(10)])
    many = PartitionLog().batch([log.event(f"{number}") for number in range(11)])

    assert len(store.find_rejected(few)) == 10
    with pytest.raises(StoreUnavailable, match="fault of the database"):
        store.find_rejected(many)


def test_a_batch_without_a_refused_record_is_an_outage(store: EventStore, log: PartitionLog) -> None:
    with pytest.raises(StoreUnavailable, match="none of its records alone"):
        store.find_rejected(log.batch([log.event("a")]))


def test_many_refused_records_of_a_large_batch_are_found_one_by_one(
    engine: Engine, store: EventStore, log: PartitionLog
) -> None:
    refuse_events_named(engine, "%77")
    batch = log.batch([log.event(f"{number}") for number in range(2_000)])

    found = store.find_rejected(batch)

    assert [rejected.index for rejected in found] == list(range(77, 2_000, 100))
    assert sizes(engine) == (0, 0, 0)


def refuse_events_named(engine: Engine, pattern: str) -> None:
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(
                text(f"ALTER TABLE events ADD CONSTRAINT wanted CHECK (event_id NOT LIKE '{pattern}')")
            )
        else:
            connection.exec_driver_sql(
                f"CREATE TRIGGER wanted BEFORE INSERT ON events WHEN NEW.event_id LIKE '{pattern}'"
                " BEGIN SELECT RAISE(ABORT, 'not wanted'); END"
            )
