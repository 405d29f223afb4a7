"""The rows that keep records which are not stored as events."""

from __future__ import annotations

import binascii
import json
import re
from base64 import b64decode, b64encode
from typing import Any, Final

import msgspec

from db.batch import Coordinates, InvalidRecord, ValidRecord
from db.dead_letter_status import Status
from events.event import identity, moment
from events.verdict import CONFLICT_REASON

REPLAY_OF: Final = "replay_of"
"""The header by which a replayed record names the dead letter it comes from: its id in decimal digits."""

_CONFLICT_ERROR: Final = (
    "An event with the same topic and event_id but other content was stored before; the first one stays."
)
_MAX_ERROR_CHARACTERS: Final = 2_000
_DIGITS: Final = re.compile(rb"[1-9][0-9]{0,18}")
_MAX_ID: Final = 2**63 - 1
_HeaderPairs = tuple[tuple[str, bytes | None], ...]
_StoredHeaders = list[tuple[str, str | None]]


def conflict_row(record: ValidRecord) -> dict[str, Any]:
    """The row for the losing record of a conflict."""
    event = record.event
    return {
        **_record(record.at),
        "reason": CONFLICT_REASON,
        "error": _CONFLICT_ERROR,
        "topic": event.topic,
        "event_id": event.event_id,
        "event_key": event.key,
    }


def invalid_row(record: InvalidRecord) -> dict[str, Any]:
    """The row for an invalid record. Whatever the record holds, the database can take this row."""
    topic, event_id = _storable(record.topic), _storable(record.event_id)
    return {
        **_record(record.at),
        "reason": record.reason,
        "error": _without_unstorable(record.error)[:_MAX_ERROR_CHARACTERS],
        "topic": topic,
        "event_id": event_id,
        "event_key": None if topic is None or event_id is None else identity(topic, event_id),
    }


def counted_topic(record: InvalidRecord) -> str:
    """The topic under which an invalid record is counted; empty if it has none that can be stored."""
    return _storable(record.topic) or ""


def encode_headers(headers: _HeaderPairs) -> bytes:
    """Headers as ASCII JSON, a list of [key, base64 of the value or null]: order and repetition are kept."""
    pairs = [[key, None if value is None else b64encode(value).decode()] for key, value in headers]
    return json.dumps(pairs, separators=(",", ":")).encode()


def decode_headers(stored: bytes) -> _HeaderPairs | None:
    """What `encode_headers` was given; None if the bytes are something else."""
    try:
        pairs = msgspec.json.decode(stored, type=_StoredHeaders)
        return tuple(
            (key, None if value is None else b64decode(value, validate=True)) for key, value in pairs
        )
    except (msgspec.DecodeError, UnicodeDecodeError, binascii.Error, ValueError):
        return None


def parent_of(headers: _HeaderPairs) -> int | None:
    """The dead letter a record says it is the replay of; None if it says nothing that could be an id.

    Producers can write what they like into this header: it is a label, and nothing depends on it.
    """
    for name, value in reversed(headers):
        if name == REPLAY_OF and value is not None and _DIGITS.fullmatch(value):
            found = int(value)
            return found if found <= _MAX_ID else None
    return None


def _record(at: Coordinates) -> dict[str, Any]:
    return {
        "log_partition": at.partition,
        "log_offset": at.offset,
        "record_key": at.key,
        "record_value": at.value,
        "record_headers": encode_headers(at.headers),
        "record_timestamp_ms": at.timestamp_ms,
        "received_at": None if at.received_at_us is None else moment(at.received_at_us),
        "status": Status.PENDING.value,
        "parent_id": parent_of(at.headers),
    }


def _storable(text: str | None) -> str | None:
    return text if text is not None and text == _without_unstorable(text) else None


def _without_unstorable(text: str) -> str:
    """The text without what Postgres cannot keep: NUL and lone surrogates."""
    return text.replace("\0", "\ufffd").encode(errors="replace").decode()
