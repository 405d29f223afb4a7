"""Batches for the store: a partition of the log that tests append to and read from."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterable

from db.batch import Advance, Batch, Coordinates, InvalidRecord, Position, ValidRecord
from events.codec import decode_event
from events.event import microseconds

NOON = dt.datetime(2026, 1, 31, 12, 0, 0, 123456, tzinfo=dt.UTC)
"""A time that is lost unless microseconds are kept."""


def event_bytes(event_id: str, *, topic: str = "orders", source: str = "shop", **payload: object) -> bytes:
    document = {
        "topic": topic,
        "event_id": event_id,
        "timestamp": NOON.isoformat(),
        "source": source,
        "payload": payload,
    }
    return json.dumps(document, ensure_ascii=False).encode()


class PartitionLog:
    """Hands out records with ascending offsets, and batches that fit each other."""

    def __init__(self, partition: int = 0, *, next_offset: int = 0) -> None:
        self.partition = partition
        self.next_offset = next_offset
        self.position = Position(partition, 1, next_offset)

    def at(
        self,
        value: bytes | None,
        *,
        key: bytes | None = None,
        headers: tuple[tuple[str, bytes | None], ...] = (),
        timestamp_ms: int = -1,
        received_at: dt.datetime | None = None,
    ) -> Coordinates:
        offset, self.next_offset = self.next_offset, self.next_offset + 1
        received_at_us = None if received_at is None else microseconds(received_at)
        return Coordinates(self.partition, offset, timestamp_ms, key, value, headers, received_at_us)

    def event(
        self,
        event_id: str,
        *,
        topic: str = "orders",
        source: str = "shop",
        received_at: dt.datetime | None = None,
        **payload: object,
    ) -> ValidRecord:
        raw = event_bytes(event_id, topic=topic, source=source, **payload)
        return ValidRecord(self.at(raw, received_at=received_at), decode_event(raw))

    def invalid(
        self, value: bytes | None, *, reason: str = "invalid_json", topic: str | None = None
    ) -> InvalidRecord:
        return InvalidRecord(self.at(value), reason, "The text is not valid JSON.", topic=topic)

    def advance(self, fingerprint: int | None = None) -> Advance:
        """From the last batch's end to everything handed out since."""
        advance = Advance(self.position, self.next_offset, fingerprint)
        self.position = Position(self.partition, self.position.incarnation, self.next_offset)
        return advance

    def batch(self, records: Iterable[ValidRecord | InvalidRecord], fingerprint: int | None = None) -> Batch:
        return Batch(list(records), [self.advance(fingerprint)])
