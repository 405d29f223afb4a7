"""Partitions are made ahead, and where one is missing, ingestion goes on."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine, text

from db.batch import Batch
from db.engine import open_engine, transaction
from db.errors import StoreUnavailable
from db.event_store import EventStore
from db.partitions import DEFAULT, ensure_partitions, name_of
from db.settings import DatabaseSettings
from tests.support.batches import PartitionLog
from tests.support.processes import wait_until

pytestmark = pytest.mark.postgres
DAY = dt.timedelta(days=1)


@pytest.fixture
def engine(postgres_url: str) -> Iterator[Engine]:
    opened = open_engine(DatabaseSettings.model_validate({"url": postgres_url}), application_name="test")
    yield opened
    opened.dispose()


@pytest.fixture
def store(engine: Engine) -> EventStore:
    opened = EventStore(engine, "events")
    opened.positions({0: 0})
    return opened


def today(engine: Engine) -> dt.date:
    with engine.connect() as connection:
        found: dt.date = connection.execute(text("SELECT (now() AT TIME ZONE 'UTC')::date")).scalar_one()
        return found


def spread(engine: Engine) -> dict[str, int]:
    """How many events each partition holds, empty ones left out."""
    with engine.connect() as connection:
        found = connection.execute(text("SELECT tableoid::regclass::text, count(*) FROM events GROUP BY 1"))
        return {name: count for name, count in found}  # noqa: C416


def test_partitions_are_made_once_from_today_on(engine: Engine) -> None:
    begin = today(engine)

    made = ensure_partitions(engine, days_ahead=3)

    assert made == [name_of(begin + number * DAY) for number in range(4)]
    assert ensure_partitions(engine, days_ahead=3) == []
    assert ensure_partitions(engine, days_ahead=4) == [name_of(begin + 4 * DAY)]


def test_events_go_to_the_partition_of_their_day(engine: Engine, store: EventStore) -> None:
    log = PartitionLog()
    made = ensure_partitions(engine, days_ahead=1)

    store.write(log.batch([log.event("a")]))

    assert spread(engine) in ({made[0]: 1}, {made[1]: 1})


def written(store: EventStore, batch: Batch) -> bool:
    try:
        return store.write(batch).stored == 1
    except StoreUnavailable:
        return False


def test_a_missing_partition_stops_nothing_and_its_events_move_when_it_is_made(
    engine: Engine, store: EventStore
) -> None:
    log = PartitionLog()
    store.write(log.batch([log.event(f"{number}") for number in range(20)]))
    with transaction(engine) as connection:
        connection.execute(
            text("UPDATE events SET stored_at = stored_at - interval '3 days' WHERE event_id < '15'")
        )
        before = connection.execute(text("SELECT * FROM events ORDER BY seq")).all()
    assert spread(engine) == {DEFAULT: 20}

    made = ensure_partitions(engine, days_ahead=1)

    assert len(made) == 3
    moved = spread(engine)
    assert DEFAULT not in moved
    assert sum(moved.values()) == 20
    assert set(moved) <= set(made)
    with transaction(engine) as connection:
        assert connection.execute(text("SELECT * FROM events ORDER BY seq")).all() == before
    assert store.write(log.batch([log.event("1"), log.event("new")])).stored == 1


def test_any_number_of_processes_may_make_partitions_at_once(engine: Engine) -> None:
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: ensure_partitions(engine, days_ahead=5), range(4)))

    names = [name for some in made for name in some]
    assert len(names) == len(set(names)) == 6


def test_partitions_are_made_while_events_are_written(engine: Engine, store: EventStore) -> None:
    log = PartitionLog()
    store.write(log.batch([log.event("before")]))

    with ThreadPoolExecutor(1) as pool:
        making = pool.submit(ensure_partitions, engine, days_ahead=7)
        for number in range(50):
            batch = log.batch([log.event(f"{number}")])
            # A worker waits and tries again, too.
            wait_until(lambda batch=batch: written(store, batch), 20, "a batch to be written")  # type: ignore[misc]
        making.result(60)

    assert sum(spread(engine).values()) == 51
    assert DEFAULT not in spread(engine)


def test_a_partition_made_under_a_batch_makes_the_batch_wait_and_not_its_rows_wrong(
    engine: Engine, store: EventStore
) -> None:
    log = PartitionLog()
    batch = log.batch([log.event("a")])
    begin, end = today(engine), today(engine) + 2 * DAY
    with ThreadPoolExecutor(1) as pool, engine.connect() as making:
        making.execute(text("CREATE TABLE events_p_now (LIKE events INCLUDING ALL)"))
        making.execute(
            text(f"ALTER TABLE events ATTACH PARTITION events_p_now FOR VALUES FROM ('{begin}') TO ('{end}')")
        )
        writing = pool.submit(store.write, batch)
        wait_until(lambda: waiting_for_a_lock(engine), 10, "the batch to wait for the default partition")
        making.commit()
        with pytest.raises(StoreUnavailable, match="23514"):
            writing.result(20)

    assert store.write(batch).stored == 1
    assert spread(engine) == {"events_p_now": 1}


def waiting_for_a_lock(engine: Engine) -> bool:
    waiting = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    with engine.connect() as connection:
        return bool(connection.execute(text(waiting)).scalar_one())


def test_a_locked_table_makes_it_give_up_soon_and_change_nothing(engine: Engine) -> None:
    with engine.connect() as locking:
        locking.execute(text(f"LOCK TABLE {DEFAULT} IN SHARE MODE"))
        with pytest.raises(StoreUnavailable, match="55P03"):
            ensure_partitions(engine, days_ahead=1)

    assert len(ensure_partitions(engine, days_ahead=1)) == 2


def test_an_index_of_the_parent_serves_every_partition(engine: Engine) -> None:
    (made,) = ensure_partitions(engine, days_ahead=0)

    with engine.connect() as connection:
        parents = connection.execute(
            text(
                "SELECT p.relname FROM pg_inherits i JOIN pg_class p ON p.oid = i.inhparent"
                " JOIN pg_index x ON x.indexrelid = i.inhrelid WHERE x.indrelid = cast(:name AS regclass)"
            ),
            {"name": made},
        ).scalars()
        assert sorted(parents) == [
            "events_occurred_at_idx",
            "events_pkey",
            "events_seq_idx",
            "events_topic_seq_idx",
        ]
