"""How Postgres reads a large store: by index, and only the partitions that matter."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
from sqlalchemy import Engine, event

from db.engine import transaction
from db.event_filter import EventFilter
from db.event_queries import EventQueries
from events.event import identity
from tests.support.store_filler import open_store


@pytest.mark.postgres
@pytest.mark.parametrize("analyzed", [True, False])
def test_on_postgres_listings_and_single_events_are_read_by_index(postgres_url: str, analyzed: bool) -> None:
    engine = open_store(postgres_url)
    try:
        load_days(engine, days=5, events_per_day=4_000, analyzed=analyzed)
        queries = EventQueries(engine, timeout=10, max_page_bytes=10**9)
        newest = queries.page(EventFilter(), limit=1).events[0]
        last_day = EventFilter(stored_since=newest.stored_at - dt.timedelta(minutes=30))
        plans = {
            "all": plan_of(engine, lambda: queries.page(EventFilter(), limit=100)),
            "deep": plan_of(engine, lambda: queries.page(EventFilter(), limit=100, before=9_000)),
            "topic": plan_of(engine, lambda: queries.page(EventFilter(topic="topic-3"), limit=100)),
            "no such topic": plan_of(engine, lambda: queries.page(EventFilter(topic="nowhere"), limit=100)),
            "one day": plan_of(engine, lambda: queries.page(last_day, limit=100)),
            "story": plan_of(engine, lambda: queries.story(newest.topic, newest.event_id)),
        }
    finally:
        engine.dispose()

    for name, plan in plans.items():
        # The default partition is empty, and read in whatever way.
        assert "Seq Scan on events_day" not in plan, f"{name}:\n{plan}"
        assert "Bitmap" not in plan, f"{name}:\n{plan}"
    assert all("Merge Append" in plans[name] for name in ("all", "deep", "topic"))
    # The primary key would do as well, but has to read every event of the table for a topic that has none.
    for name in ("topic", "no such topic"):
        assert plans[name].count("_topic_seq_idx on events_day") == 5, plans[name]
    assert plans["one day"].count("on events_day") == 1, plans["one day"]
    assert plans["story"].count("on events_day") == 1, plans["story"]


@pytest.mark.postgres
def test_on_postgres_blocks_without_events_of_a_period_are_passed_over(postgres_url: str) -> None:
    engine = open_store(postgres_url)
    try:
        load_days(engine, days=2, events_per_day=80_000)
        with transaction(engine) as connection:
            for day, index in product(range(2), ("occurred_at", "seq")):
                # As autovacuum does it after a while.
                connection.exec_driver_sql(
                    f"SELECT brin_summarize_new_values('events_day_{day}_{index}_idx')"
                )
        queries = EventQueries(engine, timeout=10, max_page_bytes=10**9)
        moment = dt.datetime(2026, 1, 1, 3, tzinfo=dt.UTC)
        period = EventFilter(since=moment, until=moment + dt.timedelta(seconds=30))
        found = queries.page(period, limit=100)
        *looks, listing, _ = plans_of(engine, lambda: queries.page(period, limit=100))
    finally:
        engine.dispose()

    assert [event.timestamp for event in found.events] == [
        moment + dt.timedelta(seconds=29 - n) for n in range(30)
    ]
    for look in looks[3:]:  # The first three find the ends of the table, and of what is settled.
        assert "Seq Scan" not in look, look
        assert "Index Scan using" not in look, look
    assert any(
        "BitmapAnd" in look
        and "Bitmap Index Scan on events_day_0_occurred_at_idx" in look
        and "Bitmap Index Scan on events_day_0_seq_idx" in look
        for look in looks
    ), "\n\n".join(looks)
    assert "Seq Scan on events_day" not in listing, listing


def load_days(engine: Engine, *, days: int, events_per_day: int, analyzed: bool = True) -> None:
    """Fill one partition per day with events of 20 topics, stored as they occur; only the newest event has
    its real key."""
    begin = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    with transaction(engine) as connection:
        for day in range(days):
            since, until = (begin + dt.timedelta(days=day + n) for n in (0, 1))
            connection.exec_driver_sql(
                f"CREATE TABLE events_day_{day} PARTITION OF events"
                f" FOR VALUES FROM ('{since}') TO ('{until}')"
            )
            connection.exec_driver_sql(
                "INSERT INTO events SELECT nextval('event_seq'), %(since)s + n * interval '1 s',"
                " %(since)s + n * interval '1 s',"
                " NULL, n, 0, 1, 'topic-' || n %% 20, 'id-' || n, 'source', '{}'"
                " FROM generate_series(1, %(count)s) n",
                {"since": since, "count": events_per_day},
            )
        connection.exec_driver_sql(
            "INSERT INTO event_keys SELECT md5(seq::text)::uuid, 0, seq, stored_at FROM events"
        )
        key = identity(f"topic-{events_per_day % 20}", f"id-{events_per_day}")
        connection.exec_driver_sql(
            "UPDATE event_keys SET key = %(key)s WHERE seq = (SELECT max(seq) FROM events)",
            {"key": uuid.UUID(bytes=key)},
        )
        if analyzed:
            connection.exec_driver_sql("ANALYZE")


def plan_of(engine: Engine, read: Callable[[], object]) -> str:
    """The plans of every statement that reads events or keys."""
    return "\n".join(plans_of(engine, read))


def plans_of(engine: Engine, read: Callable[[], object]) -> list[str]:
    """The plan of each, made with the settings that hold for it."""
    plans: list[str] = []
    explaining = False

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, _x: object, _m: bool) -> None:
        nonlocal explaining
        if explaining or "FROM event" not in statement:
            return
        explaining = True
        lines = connection.exec_driver_sql(f"EXPLAIN {statement}", parameters)
        plans.append("\n".join(line for (line,) in lines))
        explaining = False

    event.listen(engine, "before_cursor_execute", note)
    try:
        read()
    finally:
        event.remove(engine, "before_cursor_execute", note)
    return plans
