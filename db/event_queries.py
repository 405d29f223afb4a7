"""Reading stored events: pages, walks, one event and its story.

Events are listed newest first, which means last stored first: by `seq`, descending. A walk that continues
each page below the last `seq` seen shows every event that was stored when it began exactly once, because
an event's `seq` never changes and what is stored meanwhile is either above the walk or a further event.
(Ascending, it would run into the events being written, and could pass one whose transaction ends late.)
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Sequence
from time import monotonic
from typing import Any, Final

import msgspec
from sqlalchemy import BigInteger, Connection, Engine, Row, Select, literal, select, tuple_

from db.errors import QueryTimedOut
from db.event_filter import EventFilter
from db.leaps import Leaps
from db.models import DeadLetterRow, EventKeyRow, EventRow, VerdictCountRow
from db.read_transaction import read_transaction
from events.event import identity
from events.verdict import CONFLICT_REASON, Verdict

MAX_STORY_ENTRIES: Final = 1_000
"""The most dead letters one story tells of, the newest; an identity can have any number."""

_FETCH_ROWS: Final = 100
"""Rows held at once while reading: at the largest event size about 25 MB."""
_MAX_SEQ: Final = 2**63 - 1
_SCANNED_ROWS: Final = 500_000
"""Rows one statement of a walk looks at when no index leads to the events it is for."""
_MAX_IDENTITIES: Final = 10_000
"""Topics under which an event_id given alone is looked for: a statement's parameters have a limit."""

_COLUMNS: Final = (
    EventRow.seq,
    EventRow.topic,
    EventRow.event_id,
    EventRow.occurred_at,
    EventRow.source,
    EventRow.payload,
    EventRow.stored_at,
    EventRow.log_partition,
    EventRow.log_offset,
)

_NARROWER: Final = (
    "Finding these events took too long and was stopped. Ask for one topic, or for a shorter period of"
    " storing (stored_since, stored_until)."
)

_Location = tuple[int, dt.datetime]
_Row = Row[*tuple[Any, ...]]
_Select = Select[*tuple[Any, ...]]


class _Range(msgspec.Struct, frozen=True):
    """A stretch of `seq`: below `before`, not below `floor`."""

    before: int | None = None
    floor: int | None = None


class LogPlace(msgspec.Struct, frozen=True, gc=False):
    """Where in the log an event was read."""

    partition: int
    offset: int


class StoredEvent(msgspec.Struct, frozen=True, gc=False):
    """An event as it is shown. `payload` is the JSON text as it was sent, never parsed."""

    topic: str
    event_id: str
    timestamp: dt.datetime
    source: str
    payload: msgspec.Raw
    stored_at: dt.datetime
    log: LogPlace


class EventsPage(msgspec.Struct, frozen=True):
    """Some events, newest first; `next_before` is where the next page begins, None after the last one."""

    events: Sequence[StoredEvent]
    next_before: int | None


class StoryPlace(msgspec.Struct, frozen=True, gc=False):
    """Where in the log a record was read, also across the log topic being recreated."""

    partition: int
    offset: int
    incarnation: int


class StoryEntry(msgspec.Struct, frozen=True, gc=False):
    """One record seen for an identity, and its verdict.

    Attributes:
        at: when the verdict was stored.
        log: None where retention has removed the event.
        dead_letter_id, reason, error, status, status_changed_at, status_changed_by, replays: of the dead
            letter that keeps the record, if it was not stored.
        parent_id: the dead letter whose replay this record was; only a dead letter tells.
    """

    verdict: Verdict
    at: dt.datetime
    received_at: dt.datetime | None
    log: StoryPlace | None
    dead_letter_id: int | None = None
    reason: str | None = None
    error: str | None = None
    status: str | None = None
    status_changed_at: dt.datetime | None = None
    status_changed_by: str | None = None
    replays: int | None = None
    parent_id: int | None = None


class EventStory(msgspec.Struct, frozen=True):
    """An event and what is known of every record seen for it, in order of their verdicts.

    Attributes:
        event: None if it was never stored, or if retention has removed it.
        story_complete: False if there are over `MAX_STORY_ENTRIES` dead letters; the oldest are left out.
    """

    event: StoredEvent | None
    story: Sequence[StoryEntry]
    story_complete: bool


class EventQueries:
    """Reads events. Safe to use from many threads; every call is a transaction of its own.

    Every method raises StoreUnavailable, SchemaMismatch, and QueryTimedOut for a statement that takes longer
    than `timeout` seconds.

    Args:
        max_page_bytes: a page ends early once its payloads are this large, so that a page of the largest
            events cannot exhaust memory.
    """

    def __init__(self, engine: Engine, *, timeout: float, max_page_bytes: int) -> None:
        self._engine = engine
        self._timeout = timeout
        self._max_page_bytes = max_page_bytes

    def page(
        self, chosen: EventFilter, *, limit: int, before: int | None = None, offset: int = 0
    ) -> EventsPage:
        """Up to `limit` events with a `seq` below `before`, newest first, after leaving out `offset`.

        A page with fewer events than `limit` is the last one only if its `next_before` is None: where no
        index leads to the events, what was found within half the timeout is a page, even if that is nothing.
        """
        if chosen.scans and not offset:
            return self._scan(chosen, limit, before)
        return self._page(chosen, _Range(before), limit, offset)

    def pages(self, chosen: EventFilter, *, chunk: int) -> Iterator[EventsPage]:
        """A walk over every event, in pages of up to `chunk`, some of them empty.

        No transaction stays open between pages. However rare the events are that the filter chooses, no
        statement looks at more than a fixed number of rows, so size alone makes no walk time out.
        """
        highest, lowest = self._bounds() if chosen.scans else (None, None)
        before = None if highest is None else highest + 1
        leaps = None if lowest is None else Leaps(self._engine, self._timeout, chosen, lowest)
        while True:
            if leaps is not None and before is not None:
                before = leaps.over(before, monotonic() + self._timeout / 2)
            page = self._stretch(chosen, before, lowest, chunk)
            yield page
            before = page.next_before
            if before is None:
                return

    def _scan(self, chosen: EventFilter, limit: int, before: int | None) -> EventsPage:
        """A page, put together from one stretch of `seq` after the other.

        Of a whole table Postgres would go through every row in the order of the page, since it expects what
        it looks for everywhere.
        """
        highest, lowest = self._bounds()
        if highest is None or lowest is None:
            return EventsPage((), None)
        deadline = monotonic() + self._timeout / 2
        top = highest + 1 if before is None else min(before, highest + 1)
        leaps = Leaps(self._engine, self._timeout, chosen, lowest)
        events: list[StoredEvent] = []
        size = 0
        while True:
            top = leaps.over(top, deadline)
            page = self._stretch(chosen, top, lowest, limit - len(events), size)
            events += page.events
            size += sum(len(event.payload) for event in page.events)
            is_full = len(events) == limit or size >= self._max_page_bytes
            if is_full or page.next_before is None or monotonic() > deadline:
                return EventsPage(events, page.next_before)
            top = page.next_before

    def _stretch(
        self, chosen: EventFilter, before: int | None, lowest: int | None, limit: int, held_bytes: int = 0
    ) -> EventsPage:
        """Events of one stretch of `seq`, or of all that is left where `before` or `lowest` is None."""
        floor = None
        if before is not None and lowest is not None and before - _SCANNED_ROWS > lowest:
            floor = before - _SCANNED_ROWS
        page = self._page(chosen, _Range(before, floor), limit, 0, held_bytes)
        return page if page.next_before is not None else EventsPage(page.events, floor)

    def story(self, topic: str, event_id: str) -> EventStory | None:
        """The event of this identity and its story; None if nothing is known of it.

        Records with the verdict `duplicate` are counted, not kept: they are not in the story.
        """
        key = identity(topic, event_id)
        with read_transaction(self._engine, self._timeout) as connection:
            stored = connection.execute(
                select(EventKeyRow.seq, EventKeyRow.stored_at).where(EventKeyRow.key == key)
            ).one_or_none()
            event, entry = (None, None) if stored is None else _stored_entry(connection, *stored)
            # One more than is shown, to know whether there are more.
            letters = connection.execute(_letters_of(key)).all()
        if entry is None and not letters:
            return None
        shown = letters[:MAX_STORY_ENTRIES]
        # Of one transaction, the stored record is the first: the sort keeps it there.
        story = ([] if entry is None else [entry]) + [_letter_entry(row) for row in reversed(shown)]
        story.sort(key=lambda one: one.at)
        return EventStory(event, story, len(shown) == len(letters))

    def _page(
        self, chosen: EventFilter, among: _Range, limit: int, offset: int = 0, held_bytes: int = 0
    ) -> EventsPage:
        with read_transaction(self._engine, self._timeout, advice=_NARROWER) as connection:
            locations = _locate(connection, chosen)
            if locations is not None and not locations:
                return EventsPage((), None)
            # One more than is shown, to know whether there are more.
            statement = _listing(chosen, locations, among, limit + 1, offset)
            if limit > _FETCH_ROWS:
                # A server-side cursor on Postgres: without one the driver holds the whole result.
                connection.execution_options(yield_per=_FETCH_ROWS)
            with connection.execute(statement) as rows:
                return self._collect(rows, limit, held_bytes)

    def _bounds(self) -> tuple[int | None, int | None]:
        """The highest and the lowest `seq`."""
        with read_transaction(self._engine, self._timeout, advice=_NARROWER) as connection:
            highest, lowest = (
                connection.execute(select(EventRow.seq).order_by(order).limit(1)).scalar_one_or_none()
                for order in (EventRow.seq.desc(), EventRow.seq.asc())
            )
            return highest, lowest

    def _collect(self, rows: Iterable[_Row], limit: int, size: int) -> EventsPage:
        events: list[StoredEvent] = []
        last: int | None = None
        for row in rows:
            if len(events) == limit or size >= self._max_page_bytes:
                return EventsPage(events, last)
            event = _event(row)
            events.append(event)
            size += len(row.payload)
            last = row.seq
        return EventsPage(events, None)


def _listing(
    chosen: EventFilter, locations: Sequence[_Location] | None, among: _Range, limit: int, offset: int
) -> _Select:
    statement = select(*_COLUMNS).where(*chosen.conditions())
    if chosen.topic is not None and locations is None:
        statement = _along_topic(statement, chosen.topic, among)
    else:
        statement = statement.order_by(EventRow.seq.desc())
        if among.before is not None:
            statement = statement.where(EventRow.seq < among.before)
        if among.floor is not None:
            statement = statement.where(EventRow.seq >= among.floor)
    if locations is not None:
        # Postgres leaves out every partition that holds none of these moments.
        statement = statement.where(
            EventRow.seq.in_([seq for seq, _ in locations]),
            EventRow.stored_at.in_(sorted({moment for _, moment in locations})),
        )
    if offset:
        statement = statement.offset(offset)
    # Written out: with a parameter, the plan of a prepared statement has to assume a tenth of the table.
    return statement.limit(literal(limit, literal_execute=True))


def _along_topic(statement: _Select, topic: str, among: _Range) -> _Select:
    """The events of one topic, in an order that only the index on (topic, seq) has.

    Said as `topic = … ORDER BY seq`, Postgres takes the primary key for the order and reads every row of
    every partition, if it expects the topic to be common and it is not.
    """
    place = tuple_(EventRow.topic, EventRow.seq)
    below = _MAX_SEQ if among.before is None else among.before
    floor = 0 if among.floor is None else among.floor
    return statement.where(
        place < tuple_(literal(topic), literal(below, BigInteger)),
        place >= tuple_(literal(topic), literal(floor, BigInteger)),
    ).order_by(EventRow.topic.desc(), EventRow.seq.desc())


def _locate(connection: Connection, chosen: EventFilter) -> Sequence[_Location] | None:
    """Where the events with the filter's event_id are; None if the filter has no event_id.

    Without a topic the identity is looked up under every topic that was ever stored.
    """
    if chosen.event_id is None:
        return None
    topics = _topics(connection) if chosen.topic is None else [chosen.topic]
    rows = connection.execute(
        select(EventKeyRow.seq, EventKeyRow.stored_at).where(
            EventKeyRow.key.in_([identity(topic, chosen.event_id) for topic in topics])
        )
    )
    return [(row.seq, row.stored_at) for row in rows]


def _topics(connection: Connection) -> Sequence[str]:
    statement = select(VerdictCountRow.topic).where(VerdictCountRow.stored > 0).distinct()
    topics = connection.execute(statement.limit(_MAX_IDENTITIES + 1)).scalars().all()
    if len(topics) > _MAX_IDENTITIES:
        raise QueryTimedOut(
            f"There are more than {_MAX_IDENTITIES:,} topics to look for this event_id in; name the topic."
        )
    return topics


def _event(row: _Row) -> StoredEvent:
    return StoredEvent(
        topic=row.topic,
        event_id=row.event_id,
        timestamp=row.occurred_at,
        source=row.source,
        payload=msgspec.Raw(row.payload),
        stored_at=row.stored_at,
        log=LogPlace(row.log_partition, row.log_offset),
    )


def _stored_entry(
    connection: Connection, seq: int, stored_at: dt.datetime
) -> tuple[StoredEvent | None, StoryEntry]:
    row = connection.execute(
        select(*_COLUMNS, EventRow.received_at, EventRow.log_incarnation).where(
            EventRow.seq == seq, EventRow.stored_at == stored_at
        )
    ).one_or_none()
    if row is None:
        return None, StoryEntry(Verdict.STORED, stored_at, None, None)
    place = StoryPlace(row.log_partition, row.log_offset, row.log_incarnation)
    return _event(row), StoryEntry(Verdict.STORED, stored_at, row.received_at, place)


def stored_event(connection: Connection, key: bytes) -> StoredEvent | None:
    """The event stored under an identity; None if there is none, or retention has removed it."""
    stored = connection.execute(
        select(EventKeyRow.seq, EventKeyRow.stored_at).where(EventKeyRow.key == key)
    ).one_or_none()
    return None if stored is None else _stored_entry(connection, *stored)[0]


def _letters_of(key: bytes) -> _Select:
    return (
        select(
            DeadLetterRow.id,
            DeadLetterRow.log_partition,
            DeadLetterRow.log_offset,
            DeadLetterRow.log_incarnation,
            DeadLetterRow.reason,
            DeadLetterRow.error,
            DeadLetterRow.status,
            DeadLetterRow.status_changed_at,
            DeadLetterRow.status_changed_by,
            DeadLetterRow.replays,
            DeadLetterRow.parent_id,
            DeadLetterRow.received_at,
            DeadLetterRow.created_at,
        )
        .where(DeadLetterRow.event_key == key)
        .order_by(DeadLetterRow.id.desc())
        .limit(MAX_STORY_ENTRIES + 1)
    )


def _letter_entry(row: _Row) -> StoryEntry:
    return StoryEntry(
        verdict=Verdict.CONFLICT if row.reason == CONFLICT_REASON else Verdict.DEAD_LETTERED,
        at=row.created_at,
        received_at=row.received_at,
        log=StoryPlace(row.log_partition, row.log_offset, row.log_incarnation),
        dead_letter_id=row.id,
        reason=row.reason,
        error=row.error,
        status=row.status,
        status_changed_at=row.status_changed_at,
        status_changed_by=row.status_changed_by,
        replays=row.replays,
        parent_id=row.parent_id,
    )
