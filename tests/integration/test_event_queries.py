"""What the read side promises about events, on both stores."""

from __future__ import annotations

import datetime as dt
import itertools
import json
import random
import threading
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
from sqlalchemy import Engine, delete

from db.engine import transaction
from db.errors import QueryTimedOut, SchemaMismatch
from db.event_filter import EventFilter
from db.event_queries import EventQueries, EventsPage, StoredEvent
from db.leaps import _holds
from db.models import EventRow
from events.verdict import Verdict
from tests.support.store_filler import START, StoreFiller, make_event, open_store

MANY = 1_000
UNBOUNDED = 10**9
MINUTE = dt.timedelta(minutes=1)


@pytest.fixture
def queries(reader: Engine) -> EventQueries:
    return EventQueries(reader, timeout=10, max_page_bytes=UNBOUNDED)


def ids(events: list[StoredEvent] | tuple[StoredEvent, ...]) -> list[str]:
    return [event.event_id for event in events]


def everything(queries: EventQueries, chosen: EventFilter | None = None) -> list[StoredEvent]:
    return list(queries.page(chosen or EventFilter(), limit=MANY).events)


def walk(queries: EventQueries, chosen: EventFilter, limit: int) -> Iterator[StoredEvent]:
    before: int | None = None
    while True:
        page = queries.page(chosen, limit=limit, before=before)
        yield from page.events
        before = page.next_before
        if before is None:
            return


def test_an_event_is_shown_as_it_was_stored(fill: StoreFiller, queries: EventQueries) -> None:
    payload = '{ "z": 1.50, "a": ' + "9" * 1_000 + ', "emoji": "\\ud83d\\ude00 🦄", "z": 2 }'
    began = dt.datetime.now(dt.UTC)
    fill.events([make_event("first")], partition=3)
    fill.events([make_event("second/ü", payload=payload)], partition=3)

    newest, oldest = everything(queries)

    assert (newest.event_id, oldest.event_id) == ("second/ü", "first")
    assert bytes(newest.payload).decode() == payload
    assert newest.timestamp == START
    assert (newest.topic, newest.source) == ("orders", "shop")
    assert (newest.log.partition, newest.log.offset) == (3, 1)
    assert abs(newest.stored_at - began) < MINUTE


def test_every_combination_of_filters_shows_exactly_the_events_that_match(
    fill: StoreFiller, queries: EventQueries
) -> None:
    for batch in range(4):
        fill.events(
            make_event(
                f"id-{number % 10}",
                topic=f"topic-{number % 3}",
                source=f"source-{number % 2}",
                timestamp=START + number * MINUTE,
            )
            for number in range(batch * 15, batch * 15 + 15)
        )
    events = everything(queries)
    moments = sorted({event.stored_at for event in events})
    choices: dict[str, list[Any]] = {
        "topic": [None, "topic-1", "nowhere"],
        "source": [None, "source-1"],
        "event_id": [None, "id-4"],
        "since": [None, START + 20 * MINUTE],
        "until": [None, START + 21 * MINUTE],
        "stored_since": [None, moments[1]],
        "stored_until": [None, moments[-1]],
    }
    for values in product(*choices.values()):
        chosen = EventFilter(**dict(zip(choices, values, strict=True)))
        expected = [event for event in events if matches(event, chosen)]
        assert everything(queries, chosen) == expected, chosen
        assert [event for page in queries.pages(chosen, chunk=7) for event in page.events] == expected, chosen


def matches(event: StoredEvent, chosen: EventFilter) -> bool:
    return (
        (chosen.topic is None or event.topic == chosen.topic)
        and (chosen.source is None or event.source == chosen.source)
        and (chosen.event_id is None or event.event_id == chosen.event_id)
        and (chosen.since is None or event.timestamp >= chosen.since)
        and (chosen.until is None or event.timestamp < chosen.until)
        and (chosen.stored_since is None or event.stored_at >= chosen.stored_since)
        and (chosen.stored_until is None or event.stored_at < chosen.stored_until)
    )


def test_pages_end_exactly_where_the_events_end(fill: StoreFiller, queries: EventQueries) -> None:
    assert queries.page(EventFilter(), limit=1).next_before is None
    fill.events(make_event(str(number)) for number in range(6))
    expected = [str(number) for number in reversed(range(6))]

    for limit in (1, 2, 3, 5, 6, 7):
        assert ids(list(walk(queries, EventFilter(), limit))) == expected
    assert queries.page(EventFilter(), limit=6).next_before is None
    assert ids(list(queries.page(EventFilter(), limit=2, offset=3).events)) == ["2", "1"]
    assert queries.page(EventFilter(), limit=2, offset=6).events == []


def test_a_walk_shows_every_event_stored_when_it_began_once_whatever_is_written_meanwhile(
    writer: Engine, fill: StoreFiller, queries: EventQueries
) -> None:
    at_the_start = [make_event(f"old-{number}") for number in range(300)]
    fill.events(at_the_start)
    walked = threading.Event()
    written = threading.Semaphore(0)
    failures: list[BaseException] = []

    def keep_writing() -> None:
        try:
            other = StoreFiller(writer)
            number = 0
            while not walked.is_set():
                other.events([make_event(f"new-{number + n}") for n in range(20)], partition=1)
                number += 20
                written.release()
        except BaseException as error:  # noqa: BLE001 - the test fails with it below
            failures.append(error)
            written.release()

    thread = threading.Thread(target=keep_writing)
    thread.start()
    try:
        seen = []
        for number, one in enumerate(walk(queries, EventFilter(), 10)):
            seen.append(one.event_id)
            if number % 30 == 0:
                # Something is written between one page and a later one, every time.
                assert written.acquire(timeout=30)
    finally:
        walked.set()
        thread.join()

    assert not failures
    assert len(seen) == len(set(seen))
    assert {event.event_id for event in at_the_start} <= set(seen)


def test_a_page_ends_early_before_its_payloads_exhaust_memory(fill: StoreFiller, reader: Engine) -> None:
    queries = EventQueries(reader, timeout=10, max_page_bytes=1_000)
    fill.events(make_event(str(number), payload={"text": "x" * 400}) for number in range(10))

    assert len(queries.page(EventFilter(), limit=MANY).events) == 3
    assert ids(list(walk(queries, EventFilter(), MANY))) == [str(number) for number in reversed(range(10))]


@pytest.fixture
def rare(fill: StoreFiller, monkeypatch: pytest.MonkeyPatch) -> EventFilter:
    """The source of every fortieth event, in a table that is read in stretches of thirty."""
    fill.events(
        make_event(str(number), source="rare" if number % 40 == 0 else "usual", payload={"text": "x" * 400})
        for number in range(200)
    )
    monkeypatch.setattr("db.event_queries._SCANNED_ROWS", 30)
    return EventFilter(source="rare")


def test_a_walk_for_rare_events_reads_the_table_in_bounded_stretches(
    rare: EventFilter, queries: EventQueries
) -> None:
    pages = list(queries.pages(rare, chunk=2))

    assert [event.event_id for page in pages for event in page.events] == ["160", "120", "80", "40", "0"]
    assert len(pages) >= 200 // 30


def test_a_page_put_together_from_stretches_ends_early_before_it_exhausts_memory(
    rare: EventFilter, reader: Engine
) -> None:
    queries = EventQueries(reader, timeout=10, max_page_bytes=1_000)

    assert len(queries.page(rare, limit=MANY).events) == 3
    assert ids(list(walk(queries, rare, MANY))) == ["160", "120", "80", "40", "0"]


def test_a_page_of_rare_events_is_put_together_from_stretches(
    rare: EventFilter, queries: EventQueries
) -> None:
    first = queries.page(rare, limit=2)
    assert ids(list(first.events)) == ["160", "120"]
    second = queries.page(rare, limit=2, before=first.next_before)
    assert ids(list(second.events)) == ["80", "40"]
    third = queries.page(rare, limit=2, before=second.next_before)
    assert ids(list(third.events)) == ["0"]
    assert third.next_before is None
    assert queries.page(EventFilter(source="unheard of"), limit=2) == EventsPage([], None)


@pytest.mark.parametrize("order", ["as they occurred", "at random"])
@pytest.mark.parametrize("too_long", [None, 1, 3], ids="every look too long: {}".format)
@pytest.mark.parametrize("settled_after_days", [0, -2], ids=["just stored", "settled"])
def test_events_of_any_period_are_found_whatever_is_passed_over(
    fill: StoreFiller,
    queries: EventQueries,
    monkeypatch: pytest.MonkeyPatch,
    order: str,
    too_long: int | None,
    settled_after_days: int,
) -> None:
    minutes = list(range(100))
    if order == "at random":
        random.Random(1).shuffle(minutes)
    fill.events(make_event(str(minute), timestamp=START + minute * MINUTE) for minute in minutes)
    monkeypatch.setattr("db.event_queries._SCANNED_ROWS", 20)
    monkeypatch.setattr("db.leaps._FIRST_LOOK_ROWS", 3)
    monkeypatch.setattr("db.leaps._SETTLED_AFTER", dt.timedelta(days=settled_after_days))
    looks = itertools.count(1)

    def holds(*place: Any) -> bool:
        if too_long is not None and next(looks) % too_long == 0:
            raise QueryTimedOut
        return _holds(*place)

    monkeypatch.setattr("db.leaps._holds", holds)

    for since, until in [(0, 1), (7, 9), (40, 70), (99, 100), (None, 5), (90, None), (50, 50), (200, 300)]:
        chosen = EventFilter(
            since=None if since is None else START + since * MINUTE,
            until=None if until is None else START + until * MINUTE,
        )
        within = range(100)[since or 0 : until]
        expected = [str(minute) for minute in reversed(minutes) if minute in within]
        assert ids(list(walk(queries, chosen, 9))) == expected, (since, until)
        exported = [event for page in queries.pages(chosen, chunk=9) for event in page.events]
        assert ids(exported) == expected, (since, until)


def test_what_was_found_in_time_is_a_page_to_go_on_from(
    fill: StoreFiller, queries: EventQueries, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill.events(make_event(str(number), source="old" if number < 5 else "new") for number in range(200))
    monkeypatch.setattr("db.event_queries._SCANNED_ROWS", 30)
    hours = itertools.count(step=3_600)
    monkeypatch.setattr("db.event_queries.monotonic", lambda: next(hours))

    pages: list[EventsPage] = []
    before: int | None = None
    while not pages or before is not None:
        pages.append(queries.page(EventFilter(source="old"), limit=10, before=before))
        before = pages[-1].next_before

    assert [len(page.events) for page in pages] == [0, 0, 0, 0, 0, 0, 5]


def test_a_story_tells_every_verdict_that_is_known(fill: StoreFiller, queries: EventQueries) -> None:
    fill.events([make_event("e", payload={"n": 1})])
    fill.events([make_event("e", payload={"n": 1}), make_event("e", payload={"n": 2})])
    fill.invalid(b"{", reason="too_large", topic="orders", event_id="e")
    fill.events([make_event("other")])

    told = queries.story("orders", "e")

    assert told is not None
    assert told.event is not None
    assert bytes(told.event.payload) == b'{"n": 1}'
    assert [(one.verdict, one.reason, one.log and one.log.offset) for one in told.story] == [
        (Verdict.STORED, None, 0),
        (Verdict.CONFLICT, "conflicting_duplicate", 2),
        (Verdict.DEAD_LETTERED, "too_large", 3),
    ]
    assert told.story_complete
    assert queries.story("orders", "unheard of") is None


def test_a_story_survives_the_event_itself(fill: StoreFiller, writer: Engine, queries: EventQueries) -> None:
    fill.events([make_event("e")])
    with transaction(writer) as connection:
        connection.execute(delete(EventRow))

    told = queries.story("orders", "e")

    assert told is not None
    assert told.event is None
    assert [(one.verdict, one.log) for one in told.story] == [(Verdict.STORED, None)]


def test_a_story_of_too_many_dead_letters_keeps_the_newest(
    fill: StoreFiller, queries: EventQueries, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("db.event_queries.MAX_STORY_ENTRIES", 3)
    for number in range(5):
        fill.events([make_event("e", payload={"n": number})])

    told = queries.story("orders", "e")

    assert told is not None
    assert [one.log and one.log.offset for one in told.story] == [0, 2, 3, 4]
    assert not told.story_complete


def test_a_query_that_takes_too_long_is_stopped_and_says_so(
    fill: StoreFiller, writer: Engine, reader: Engine
) -> None:
    fill.events(make_event(str(number)) for number in range(5_000))
    impatient = EventQueries(reader, timeout=0.05 if on_postgres(reader) else 1e-9, max_page_bytes=UNBOUNDED)
    with writer.begin() as connection:
        if on_postgres(writer):
            connection.exec_driver_sql("LOCK TABLE events IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(QueryTimedOut):
            impatient.page(EventFilter(source="nobody"), limit=1)

    patient = EventQueries(reader, timeout=10, max_page_bytes=UNBOUNDED)
    assert patient.page(EventFilter(source="nobody"), limit=1).events == []


def test_a_database_without_our_tables_is_a_wrong_schema(empty_store: str) -> None:
    engine = open_store(empty_store)
    try:
        with pytest.raises(SchemaMismatch):
            EventQueries(engine, timeout=10, max_page_bytes=UNBOUNDED).page(EventFilter(), limit=1)
    finally:
        engine.dispose()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def empty_store(request: pytest.FixtureRequest) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{request.getfixturevalue('tmp_path')}/empty.db"
    url: str = request.getfixturevalue("empty_postgres_url")
    return url


def test_reading_cannot_write(reader: Engine, fill: StoreFiller) -> None:
    fill.events([make_event("e")])
    with pytest.raises(Exception, match=r"read-?only"), transaction(reader) as connection:
        connection.execute(delete(EventRow))


def on_postgres(engine: Engine) -> bool:
    return engine.dialect.name == "postgresql"


def test_payloads_are_valid_json_wherever_they_come_from(fill: StoreFiller, queries: EventQueries) -> None:
    texts = ['{"deep": ' + "[" * 60 + "]" * 60 + "}", '{"literal": "\\\\u0000"}', '{\r\n\t"a" :\n1e-400 }']
    fill.events(make_event(str(number), payload=text) for number, text in enumerate(texts))

    shown = [bytes(event.payload).decode() for event in reversed(everything(queries))]

    assert shown == texts
    assert all(isinstance(json.loads(text), dict) for text in shown)
