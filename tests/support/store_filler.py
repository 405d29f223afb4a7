"""Puts records into a store the way the worker does, batch by batch, with offsets that count up."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import Engine

from db.batch import Advance, Batch, Coordinates, InvalidRecord, Position, ValidRecord, WriteResult
from db.engine import open_engine
from db.event_store import EventStore
from db.settings import DatabaseSettings
from events.codec import decode_event
from events.event import Event, log_key

START = dt.datetime(2026, 1, 31, 12, 0, 0, 250_000, tzinfo=dt.UTC)


def open_store(url: str, *, read_only: bool = False) -> Engine:
    """An engine for a test's database; the caller disposes of it."""
    settings = DatabaseSettings.model_validate({"url": url})
    return open_engine(settings, application_name="test", read_only=read_only)


def make_event(
    event_id: str,
    *,
    topic: str = "orders",
    source: str = "shop",
    timestamp: dt.datetime = START,
    payload: str | Mapping[str, Any] = "{}",
) -> Event:
    """An event as the codec makes it; a payload given as text is kept as it is."""
    text = payload if isinstance(payload, str) else json.dumps(payload)
    envelope = {"topic": topic, "event_id": event_id, "timestamp": timestamp.isoformat(), "source": source}
    fields = json.dumps(envelope, ensure_ascii=False)[:-1]
    return decode_event(f'{fields},"payload":{text}}}'.encode())


class StoreFiller:
    """One writer of one log topic. `engine` is a writing one; the caller closes it."""

    def __init__(self, engine: Engine, log_topic: str = "events", **options: Any) -> None:
        self.store = EventStore(engine, log_topic, owner="filler", **options)
        self._positions: dict[int, Position] = {}

    def events(self, events: Iterable[Event], *, partition: int = 0) -> WriteResult:
        """Store events as one batch."""
        return self.records([(event, None) for event in events], partition=partition)

    def invalid(
        self, value: bytes | None, *, reason: str = "invalid_json", partition: int = 0, **known: Any
    ) -> WriteResult:
        """Store one dead letter; `known` are further fields of the record and of its coordinates."""
        return self.records([(None, {"value": value, "reason": reason, **known})], partition=partition)

    def records(
        self, records: Iterable[tuple[Event | None, dict[str, Any] | None]], *, partition: int = 0
    ) -> WriteResult:
        """Store a mix of events and dead letters as one batch."""
        previous = self._positions.get(partition)
        if previous is None:
            previous = self.store.positions({partition: 0})[partition]
        made: list[ValidRecord | InvalidRecord] = []
        for offset, (event, known) in enumerate(records, previous.next_offset):
            if event is not None:
                value = json.dumps({"event_id": event.event_id}).encode()
                key = log_key(event.topic, event.event_id)
                made.append(ValidRecord(Coordinates(partition, offset, 0, key, value, ()), event))
            else:
                made.append(_invalid(partition, offset, known or {}))
        advance = Advance(previous, previous.next_offset + len(made))
        result = self.store.write(Batch(made, [advance]))
        self._positions.update({position.partition: position for position in result.positions})
        return result


def _invalid(partition: int, offset: int, known: dict[str, Any]) -> InvalidRecord:
    at = Coordinates(
        partition,
        offset,
        known.get("timestamp_ms", 0),
        known.get("key"),
        known.get("value"),
        known.get("headers", ()),
        known.get("received_at_us"),
    )
    return InvalidRecord(
        at, known["reason"], known.get("error", "It is broken."), known.get("topic"), known.get("event_id")
    )
