"""Records to events: what one poll returned, ready for the store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Final

from broker.ports import Headers, Record, UndecodableRecord
from db.batch import Coordinates, InvalidRecord, ValidRecord
from events.codec import decode_events
from events.errors import InvalidCode, InvalidEvent
from events.event import Event
from events.fields import parse_timestamp
from events.verdict import UNDECODABLE_REASON

_TIMES_AT_HAND: Final = 1_024
_SHORT_BYTES: Final = 40
"""More than our gateway writes. A header can be as large as a record, and must not stay in memory."""


def decode_records(records: Sequence[Record | UndecodableRecord]) -> list[ValidRecord | InvalidRecord]:
    """One decoded record for each record, in the same order. Never raises for what a record contains."""
    events = decode_events(
        [record.value for record in records if isinstance(record, Record) and record.value is not None]
    )
    return [_decoded(record, events) for record in records]


def _decoded(
    record: Record | UndecodableRecord, events: Iterator[Event | InvalidEvent]
) -> ValidRecord | InvalidRecord:
    """The record with its event, which comes next if the record has a value."""
    if isinstance(record, UndecodableRecord):
        at = Coordinates(record.partition, record.offset, -1, None, None, ())
        return InvalidRecord(at, UNDECODABLE_REASON, record.error)
    at = Coordinates(
        record.partition,
        record.offset,
        record.timestamp_ms,
        record.key,
        record.value,
        record.headers,
        _received_at(record.headers),
    )
    if record.value is None:
        return InvalidRecord(
            at, InvalidCode.TOMBSTONE, "The record has no value; events are never deleted through the log."
        )
    event = next(events)
    if isinstance(event, InvalidEvent):
        return InvalidRecord(at, event.code, event.message, event.topic, event.event_id)
    return ValidRecord(at, event)


def _received_at(headers: Headers) -> int | None:
    """When the gateway took the event. A header that cannot be read is as good as none."""
    for name, value in headers:
        if name == "received_at" and value is not None:
            return (_timestamp_at_hand if len(value) <= _SHORT_BYTES else _timestamp)(value)
    return None


def _timestamp(value: bytes) -> int | None:
    try:
        return parse_timestamp(value.decode())
    except (InvalidEvent, UnicodeDecodeError):
        return None


# Many times the same: the events of one request have it in common.
_timestamp_at_hand: Final = lru_cache(_TIMES_AT_HAND)(_timestamp)


def fingerprint(record: Record | UndecodableRecord) -> int | None:
    """A signed 64-bit hash that tells this record from any other at the same offset of a recreated topic."""
    if isinstance(record, UndecodableRecord):
        return None
    digest = blake2b(b"%d %d " % (record.offset, record.timestamp_ms), digest_size=8)
    for part in (record.key, record.value):
        digest.update(b"-" if part is None else b"%d:%b" % (len(part), part))
    return int.from_bytes(digest.digest(), signed=True)
