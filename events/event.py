"""The event, its identity and its limits."""

from __future__ import annotations

import datetime as dt
from functools import lru_cache
from hashlib import blake2b
from typing import Final

import msgspec

MAX_NAME_BYTES: Final = 255
"""Longest topic, event_id and source, in bytes of UTF-8."""
MAX_DEPTH: Final = 64
"""Deepest payload; the payload object itself is depth 1."""
MAX_EVENT_BYTES: Final = 256 * 1024
"""Largest event, in bytes of its JSON as sent."""
MAX_INTEGER_DIGITS: Final = 1_000
MIN_YEAR: Final = 1970
MAX_YEAR: Final = 2100
_TOPICS_AT_HAND: Final = 1_024
_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_SECONDS_PER_DAY: Final = 86_400
_MICROSECOND: Final = dt.timedelta(microseconds=1)


class Event(msgspec.Struct, frozen=True, gc=False):
    """A valid event. Only `events.codec` makes these, so holding one means every rule was checked.

    Attributes:
        topic: the producer's topic (not the log topic).
        event_id: unique within the topic.
        timestamp_us: when it occurred, in microseconds since 1970 (UTC).
        source: who says so.
        payload: the JSON object's bytes exactly as sent.
        key: 16 bytes; the identity `(topic, event_id)`.
        content_hash: signed 64-bit; equal for equal content, whatever the key order or white space.
    """

    topic: str
    event_id: str
    timestamp_us: int
    source: str
    payload: bytes
    key: bytes
    content_hash: int

    @property
    def timestamp(self) -> dt.datetime:
        """When it occurred, in UTC."""
        return moment(self.timestamp_us)


def moment(microseconds: int) -> dt.datetime:
    """The moment so many microseconds after the beginning of 1970, in UTC."""
    return _EPOCH + microseconds * _MICROSECOND


def microseconds(moment: dt.datetime) -> int:
    """Whole microseconds from the beginning of 1970 to a moment of any offset."""
    since = moment - _EPOCH
    return (since.days * _SECONDS_PER_DAY + since.seconds) * 1_000_000 + since.microseconds


def log_key(topic: str, event_id: str) -> bytes:
    """The key an event's record carries in the log. NUL cannot occur in either part."""
    return f"{topic}\0{event_id}".encode()


def identity(topic: str, event_id: str) -> bytes:
    """The 16-byte identity under which an event is stored at most once."""
    digest = _topic_digest(topic).copy()
    digest.update(event_id.encode())
    return digest.digest()


@lru_cache(_TOPICS_AT_HAND)
def _topic_digest(topic: str) -> blake2b:
    """Of what the keys of a topic begin with: to copy a digest costs half of making one."""
    return blake2b(log_key(topic, ""), digest_size=16)
