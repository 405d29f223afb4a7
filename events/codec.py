"""Bytes to Event: the one place that decides whether bytes are an event.

The gateway and the worker both decode with this module, so what the gateway accepts the worker stores.

Events that come together are looked at together: `_plain` asks once for all of them what has to be true of
each, and knows no other answer than yes. Where it cannot say that, every event is looked at by itself.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from struct import Struct
from typing import Annotated, Any, Final, NoReturn, TypeVar

import msgspec

from events.errors import InvalidCode, InvalidEvent
from events.event import MAX_DEPTH, MAX_EVENT_BYTES, MAX_NAME_BYTES, Event, identity, microseconds
from events.fields import (
    check_name,
    check_source,
    names_are_plain,
    parse_plain_timestamps,
    parse_timestamp,
    readable_name,
)
from events.payload import (
    canonical,
    check_text,
    exact_float,
    exact_integer,
    has_surrogate,
    nesting_depth,
    parse_payload,
    parse_plain_payloads,
    payloads_are_plain,
    refuse_constant,
)
from events.text import not_json, require_utf8

# In characters, of which none takes less than a byte; the rest of the rule is looked at afterwards.
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NAME_BYTES)]


class _Envelope(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    topic: _Name
    event_id: _Name
    timestamp: str
    source: _Name
    payload: msgspec.Raw


_FIELDS: Final = _Envelope.__struct_fields__
_decode_envelope: Final = msgspec.json.Decoder(_Envelope).decode
_NOT_AN_ENVELOPE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_CONTENT_DIGEST: Final = blake2b(digest_size=8)
_HASH: Final = Struct("!q")
_AT_ONCE: Final = 64
"""Events looked at together: more have left the processor's caches when the next question is asked."""
_FEWEST: Final = 2
"""An event alone is looked at faster by itself."""
_T = TypeVar("_T")


def decode_event(raw: bytes) -> Event:
    """Decode one event.

    Args:
        raw: the event's JSON, UTF-8, at most `MAX_EVENT_BYTES`.

    Raises:
        InvalidEvent: with the rule that was broken and, where they could be read, topic and event_id.
    """
    envelope, payload, timestamp_us, value = _checked(raw)
    return _event(envelope, payload, timestamp_us, value)


def decode_events(raws: Sequence[bytes]) -> Iterator[Event | InvalidEvent]:
    """What `decode_event` gives for each, in the same order: returned or raised."""
    for portion in _portions(raws):
        plain = _plain(portion)
        values = parse_plain_payloads(plain[1]) if plain else None
        if plain is None or values is None:
            yield from (_outcome(decode_event, raw) for raw in portion)
        else:
            envelopes, payloads, moments = plain
            yield from map(_event, envelopes, payloads, map(microseconds, moments), values)


def check_event(raw: bytes) -> tuple[str, str]:
    """Topic and event_id of one event, after the same checks: for who only passes it on.

    Raises:
        InvalidEvent: exactly where `decode_event` does.
    """
    envelope = _checked(raw)[0]
    return envelope.topic, envelope.event_id


def check_events(raws: Sequence[bytes]) -> Iterator[list[tuple[str, str] | InvalidEvent]]:
    """What `check_event` gives for each, in the same order: returned or raised.

    In portions of at most `MAX_EVENT_BYTES`, each of which is looked at when it is asked for.
    """
    for portion in _portions(raws):
        plain = _plain(portion)
        if plain is None or not payloads_are_plain(plain[1]):
            yield [_outcome(check_event, raw) for raw in portion]
        else:
            yield [(envelope.topic, envelope.event_id) for envelope in plain[0]]


def _portions(raws: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    for start in range(0, len(raws), _AT_ONCE):
        portion = raws[start : start + _AT_ONCE]
        if sum(map(len, portion)) <= MAX_EVENT_BYTES:
            yield portion
        else:
            yield from ([raw] for raw in portion)


def _outcome(look: Callable[[bytes], _T], raw: bytes) -> _T | InvalidEvent:
    try:
        return look(raw)
    except InvalidEvent as error:
        return error


def _plain(raws: Sequence[bytes]) -> tuple[list[_Envelope], list[bytes], list[dt.datetime]] | None:
    """Envelopes, payloads as sent and timestamps, if every rule but those of payloads plainly holds for all
    of these events; None if for one of them it is still open."""
    if len(raws) < _FEWEST:
        return None
    try:
        envelopes = list(map(_decode_envelope, raws))
    except _NOT_AN_ENVELOPE:
        return None
    if not names_are_plain(
        [envelope.topic + envelope.event_id for envelope in envelopes],
        [envelope.source for envelope in envelopes],
    ):
        return None
    moments = parse_plain_timestamps([envelope.timestamp for envelope in envelopes])
    if moments is None:
        return None
    return envelopes, [bytes(envelope.payload) for envelope in envelopes], moments


def _checked(raw: bytes) -> tuple[_Envelope, bytes, int, Any]:
    """Envelope, payload as sent, timestamp, and payload as parsed; every rule holds."""
    if len(raw) > MAX_EVENT_BYTES:
        raise InvalidEvent(
            InvalidCode.TOO_LARGE,
            f"The event is {len(raw):,} bytes; the limit is {MAX_EVENT_BYTES:,} bytes.",
        )
    try:
        envelope = _decode_envelope(raw)
    except _NOT_AN_ENVELOPE:
        _refuse(raw)
    payload = bytes(envelope.payload)
    try:
        if not names_are_plain((envelope.topic, envelope.event_id), (envelope.source,)):
            check_name("topic", envelope.topic)
            check_name("event_id", envelope.event_id)
            check_source(envelope.source)
        timestamp_us = parse_timestamp(envelope.timestamp)
        value = parse_payload(payload)
    except InvalidEvent as error:
        # Bytes that are not text break that rule before any other, whichever was looked at first.
        require_utf8(raw)
        error.topic = readable_name(envelope.topic)
        error.event_id = readable_name(envelope.event_id)
        raise
    return envelope, payload, timestamp_us, value


def _event(envelope: _Envelope, payload: bytes, timestamp_us: int, value: Any) -> Event:
    topic, event_id, source = envelope.topic, envelope.event_id, envelope.source
    # To copy a digest costs half of making one.
    content = _CONTENT_DIGEST.copy()
    content.update(b"%d\0%b\0%b" % (timestamp_us, source.encode(), canonical(value)))
    (content_hash,) = _HASH.unpack(content.digest())
    return Event(
        topic=topic,
        event_id=event_id,
        timestamp_us=timestamp_us,
        source=source,
        payload=payload,
        key=identity(topic, event_id),
        content_hash=content_hash,
    )


def _refuse(raw: bytes) -> NoReturn:
    """Find the rule that the bytes of an event break, and say so."""
    text = require_utf8(raw)
    if nesting_depth(raw) > MAX_DEPTH + 1:
        raise InvalidEvent(InvalidCode.TOO_DEEP, f"The event is nested deeper than {MAX_DEPTH} levels.")
    problem: list[InvalidEvent] = []

    def number(parse: Callable[[str], object]) -> Callable[[str], object]:
        # The whole event is parsed first, so that the error can name topic and event_id.
        def checked(digits: str) -> object:
            if problem:
                return 0
            try:
                return parse(digits)
            except InvalidEvent as error:
                problem.append(error)
                return 0

        return checked

    try:
        document = json.loads(
            text,
            parse_int=number(exact_integer),
            parse_float=number(exact_float),
            parse_constant=number(refuse_constant),
        )
    except ValueError as error:
        raise InvalidEvent(InvalidCode.INVALID_JSON, not_json(error)) from None
    if not isinstance(document, dict):
        raise InvalidEvent(InvalidCode.SCHEMA, "An event must be a JSON object.")
    topic, event_id = readable_name(document.get("topic")), readable_name(document.get("event_id"))
    try:
        _check_document(document)
        if problem:
            raise problem[0]
    except InvalidEvent as error:
        error.topic, error.event_id = topic, event_id
        raise
    raise InvalidEvent(
        InvalidCode.INVALID_JSON, "The event is not valid JSON.", topic=topic, event_id=event_id
    )


def _check_document(document: dict[str, Any]) -> None:
    unknown = document.keys() - set(_FIELDS)
    if unknown:
        raise InvalidEvent(
            InvalidCode.SCHEMA,
            f"The event has {len(unknown)} unknown field(s); allowed are {', '.join(_FIELDS)}."
            " Put your own data into `payload`.",
        )
    for field in _FIELDS:
        if field not in document:
            raise InvalidEvent(InvalidCode.SCHEMA, f"`{field}` is missing.")
        expected, words = (dict, "a JSON object") if field == "payload" else (str, "a string")
        if not isinstance(document[field], expected):
            raise InvalidEvent(InvalidCode.SCHEMA, f"`{field}` must be {words}.")
        if expected is str and has_surrogate(document[field]):
            raise InvalidEvent(InvalidCode.UNSTORABLE_TEXT, f"`{field}` contains a lone surrogate.")
    check_name("topic", document["topic"])
    check_name("event_id", document["event_id"])
    check_source(document["source"])
    parse_timestamp(document["timestamp"])
    check_text(document["payload"])
