"""Bytes to Event: the one place that decides whether bytes are an event.

The gateway and the worker both decode with this module, so what the gateway accepts the worker stores.

Two ways lead to the same answer. The fast one (msgspec for the envelope, orjson for the payload) accepts
nearly everything that is valid. Whatever it cannot take goes to the exact one (the standard library's
parser with number hooks), which either finds the rule that was broken or accepts what orjson cannot hold,
such as integers beyond 64 bits. Both build the same canonical form, so a content hash does not depend on
the way taken.
"""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Callable, Iterator
from functools import cache
from hashlib import blake2b
from itertools import takewhile
from math import isinf
from struct import Struct
from typing import Annotated, Any, Final, NoReturn

import msgspec
import orjson

from events.errors import InvalidCode, InvalidEvent
from events.event import (
    MAX_DEPTH,
    MAX_EVENT_BYTES,
    MAX_INTEGER_DIGITS,
    MAX_NAME_BYTES,
    MAX_YEAR,
    MIN_YEAR,
    Event,
    identity,
    microseconds,
)

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
_decode_array: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode
_NOTHING: Final = msgspec.Raw(b"")

_TIMESTAMP: Final = re.compile(
    r"\d\d\d\d-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(?:\.\d+)?(?:[Zz]|[+-]\d\d:\d\d)", re.ASCII
)
# How most timestamps look once every digit is a zero; to look that up takes a third of a match.
_COMMON_TIMESTAMPS: Final = frozenset(
    b"0000-00-00T00:00:00" + fraction + offset
    for fraction in (b"", *(b"." + b"0" * digits for digits in range(1, 10)))
    for offset in (b"Z", b"+00:00", b"-00:00")
)
_TO_ZEROS: Final = bytes.maketrans(b"123456789", b"000000000")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_SURROGATE: Final = re.compile(r"[\ud800-\udfff]")
# A number that binary64 or 64-bit integers may not hold exactly: 16 digits or more, or an exponent of three.
_INEXACT_NUMBER: Final = re.compile(rb"[:\[,]\s*-?(?:[0-9.]{16}|[0-9.]+[eE][+-]?[0-9]{3})")
# Strings (closed or not) and structure; everything between two matches is a scalar or white space.
_TOKEN: Final = re.compile(rb'"(?:[^"\\]|\\.)*"?|[\[\]{},]', re.DOTALL)
# The same strings, and what turns the rest into nothing but square brackets.
_STRING: Final = re.compile(rb'"(?:[^"\\]|\\.)*"?', re.DOTALL)
_TO_BRACKETS: Final = bytes.maketrans(b"{}", b"[]")
_NOT_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
_BACKSLASH: Final = ord("\\")
_MAX_EXPONENT_CHARACTERS: Final = 18
_FIRST_MOMENT: Final = microseconds(dt.datetime(MIN_YEAR, 1, 1, tzinfo=dt.UTC))
_END_OF_TIME: Final = microseconds(dt.datetime(MAX_YEAR + 1, 1, 1, tzinfo=dt.UTC))
_CONTENT_DIGEST: Final = blake2b(digest_size=8)
_HASH: Final = Struct("!q")


def decode_event(raw: bytes) -> Event:
    """Decode one event.

    Args:
        raw: the event's JSON, UTF-8, at most `MAX_EVENT_BYTES`.

    Raises:
        InvalidEvent: with the rule that was broken and, where they could be read, topic and event_id.
    """
    envelope, timestamp_us, payload, value = _checked(raw)
    topic, event_id, source = envelope.topic, envelope.event_id, envelope.source
    # To copy a digest costs half of making one.
    content = _CONTENT_DIGEST.copy()
    canonical = orjson.dumps(value, default=_encode_number, option=orjson.OPT_SORT_KEYS)
    content.update(b"%d\0%b\0%b" % (timestamp_us, source.encode(), canonical))
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


def check_event(raw: bytes) -> tuple[str, str]:
    """Topic and event_id of one event, after the same checks: for who only passes it on.

    Raises:
        InvalidEvent: exactly where `decode_event` does.
    """
    envelope = _checked(raw)[0]
    return envelope.topic, envelope.event_id


def _checked(raw: bytes) -> tuple[_Envelope, int, bytes, Any]:
    """Envelope, timestamp, payload as sent, and payload as parsed; every rule holds."""
    if len(raw) > MAX_EVENT_BYTES:
        raise InvalidEvent(
            InvalidCode.TOO_LARGE,
            f"The event is {len(raw):,} bytes; the limit is {MAX_EVENT_BYTES:,} bytes.",
        )
    try:
        envelope = _decode_envelope(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        _refuse(raw)
    payload = bytes(envelope.payload)
    try:
        _check_names(envelope)
        timestamp_us = parse_timestamp(envelope.timestamp)
        value = _parse_payload(payload)
    except InvalidEvent as error:
        # Bytes that are not text break that rule before any other, whichever was looked at first.
        _require_utf8(raw)
        error.topic = _readable_name(envelope.topic)
        error.event_id = _readable_name(envelope.event_id)
        raise
    return envelope, timestamp_us, payload, value


def split_events(body: bytes, limit: int | None = None) -> list[bytes]:
    """Split a request body, one event or an array of events, into the bytes of each event.

    The elements are not decoded: one that breaks a rule does not keep the others from being read.

    Args:
        body: at most what the caller is willing to hold several times.
        limit: the most events the caller takes. More are not worth their memory: the result then ends with
            the first one too many, and what follows it may not have been looked at.

    Raises:
        InvalidEvent: the body as a whole cannot be split; code `invalid_encoding`, `invalid_json`, or
            `schema` where the root is neither an object nor an array.
    """
    _require_utf8(body)
    stripped = body.strip(b" \t\r\n")
    if not stripped:
        raise InvalidEvent(
            InvalidCode.INVALID_JSON, "The body is empty; send one event or an array of events."
        )
    if stripped[:1] == b"{":
        return [stripped]
    if stripped[:1] != b"[":
        try:
            json.loads(stripped.decode())
        except ValueError as error:
            raise InvalidEvent(InvalidCode.INVALID_JSON, _not_json(error)) from None
        raise InvalidEvent(
            InvalidCode.SCHEMA, "The body must be one event (an object) or an array of events."
        )
    try:
        if limit is None or stripped.count(b",") < limit:
            return [bytes(element) for element in _decode_array(stripped)]
        elements = msgspec.structs.astuple(_bounded_array(limit + 1)(stripped))
        return [bytes(element) for element in takewhile(_NOTHING.__ne__, elements)]
    except (msgspec.DecodeError, RecursionError):
        # One element may hold what msgspec refuses to skip (a lone surrogate, NaN, deep nesting).
        return _split_array(stripped, limit)


def _require_utf8(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise InvalidEvent(InvalidCode.INVALID_ENCODING, _not_utf8(error)) from None


def _check_names(envelope: _Envelope) -> None:
    """What the length in characters leaves open, of all three at once where there is nothing to see."""
    names = envelope.topic + envelope.event_id
    if not (names.isascii() and names.isprintable()):
        check_name("topic", envelope.topic)
        check_name("event_id", envelope.event_id)
    if not envelope.source.isascii() or "\0" in envelope.source:
        _check_source(envelope.source)


def check_name(field: str, value: str) -> None:
    """Check a topic or an event_id against its rule: 1 to 255 bytes of UTF-8, no control characters.

    Raises:
        InvalidEvent: code `schema`, or `unstorable_text` for a NUL.
    """
    _check_length(field, value)
    if "\0" in value:
        raise InvalidEvent(InvalidCode.UNSTORABLE_TEXT, f"`{field}` contains a NUL character (\\u0000).")
    if _CONTROL.search(value):
        raise InvalidEvent(InvalidCode.SCHEMA, f"`{field}` contains a control character.")


def parse_timestamp(text: str) -> int:
    """Read an RFC 3339 timestamp with offset, year 1970 to 2100 in UTC, as microseconds since 1970.

    Digits beyond microseconds are cut.

    Raises:
        InvalidEvent: code `schema`.
    """
    is_common = text.isascii() and text.encode().translate(_TO_ZEROS) in _COMMON_TIMESTAMPS
    if not is_common and not _TIMESTAMP.fullmatch(text):
        raise InvalidEvent(
            InvalidCode.SCHEMA,
            "`timestamp` must be RFC 3339 with an offset, for example 2026-01-31T12:00:00Z.",
        )
    try:
        local = dt.datetime.fromisoformat(text if text[-1] != "z" else text.upper())
    except ValueError:
        raise InvalidEvent(
            InvalidCode.SCHEMA, "`timestamp` names a date or time that does not exist."
        ) from None
    since_1970 = microseconds(local)
    if not _FIRST_MOMENT <= since_1970 < _END_OF_TIME:
        raise InvalidEvent(InvalidCode.SCHEMA, f"`timestamp` must lie in the years {MIN_YEAR} to {MAX_YEAR}.")
    return since_1970


def _check_length(field: str, value: str) -> None:
    size = len(value) if value.isascii() else len(value.encode())
    if not 1 <= size <= MAX_NAME_BYTES:
        raise InvalidEvent(
            InvalidCode.SCHEMA, f"`{field}` must be 1 to {MAX_NAME_BYTES} bytes of UTF-8; it is {size:,}."
        )


def _check_source(value: str) -> None:
    _check_length("source", value)
    if "\0" in value:
        raise InvalidEvent(InvalidCode.UNSTORABLE_TEXT, "`source` contains a NUL character (\\u0000).")


def _readable_name(value: object) -> str | None:
    """The value if it is itself a valid topic or event_id, so that an error can name it."""
    if not isinstance(value, str):
        return None
    try:
        check_name("name", value)
    except (InvalidEvent, UnicodeEncodeError):
        return None
    return value


def _parse_payload(payload: bytes) -> Any:
    """The payload's value, after checking every rule it has to obey; `_encode_number` for what JSON lacks."""
    if payload[:1] != b"{":
        raise InvalidEvent(InvalidCode.SCHEMA, "`payload` must be a JSON object.")
    if payload.count(b"{") + payload.count(b"[") > MAX_DEPTH and _depth(payload) > MAX_DEPTH:
        raise InvalidEvent(InvalidCode.TOO_DEEP, f"`payload` is nested deeper than {MAX_DEPTH} levels.")
    try:
        value = orjson.loads(payload)
    except orjson.JSONDecodeError:
        value = _parse_exactly(payload)
    else:
        # What comes out as it went in lost nothing. That is cheaper to find out than where numbers are.
        if orjson.dumps(value) != payload and _INEXACT_NUMBER.search(payload):
            value = _parse_exactly(payload)
    if _BACKSLASH in payload and b"\\u0000" in payload:
        _check_text(value)
    return value


def _parse_exactly(payload: bytes) -> Any:
    """Parse with the standard library, keeping apart numbers that binary64 would merge.

    Raises:
        InvalidEvent: code `invalid_encoding`, `invalid_json`, `number_range` or `unstorable_text`.
    """
    text = _require_utf8(payload)
    try:
        value = json.loads(
            text, parse_int=_exact_integer, parse_float=_exact_float, parse_constant=_refuse_constant
        )
    except InvalidEvent:
        raise
    except ValueError as error:
        raise InvalidEvent(InvalidCode.INVALID_JSON, _not_json(error)) from None
    _check_text(value)
    return value


class _ExactNumber:
    """A number that neither 64-bit integers nor binary64 hold; kept as its digits."""

    def __init__(self, text: str) -> None:
        self.text = text


def _encode_number(value: Any) -> dict[str, str]:
    # The key is one that no payload can have, so this stands for nothing else.
    assert isinstance(value, _ExactNumber)
    return {"\0": value.text}


def _exact_integer(digits: str) -> int | _ExactNumber:
    if len(digits) - digits.startswith("-") > MAX_INTEGER_DIGITS:
        raise InvalidEvent(
            InvalidCode.NUMBER_RANGE, f"`payload` has an integer of more than {MAX_INTEGER_DIGITS:,} digits."
        )
    value = int(digits)
    if -(2**63) <= value < 2**64:
        return value
    return _ExactNumber(str(value))


def _exact_float(digits: str) -> float | _ExactNumber:
    value = float(digits)
    if isinf(value):
        raise InvalidEvent(InvalidCode.NUMBER_RANGE, "`payload` has a number beyond the range of a double.")
    exact = _scientific(digits)
    if exact == _scientific(repr(value)):
        return value
    return _ExactNumber(exact)


def _scientific(number: str) -> str:
    """A decimal number in the one form `<sign><digits without zeros around them>e<exponent>`."""
    mantissa, _, exponent = number.lower().partition("e")
    if len(exponent) > _MAX_EXPONENT_CHARACTERS:
        raise InvalidEvent(InvalidCode.NUMBER_RANGE, "`payload` has a number whose exponent is out of range.")
    sign = "-" if mantissa[0] == "-" else ""
    whole, _, fraction = mantissa[len(sign) :].partition(".")
    digits = (whole + fraction).lstrip("0")
    stripped = digits.rstrip("0")
    if not stripped:
        return f"{sign}0"
    return f"{sign}{stripped}e{int(exponent or 0) - len(fraction) + len(digits) - len(stripped)}"


def _refuse_constant(name: str) -> NoReturn:
    raise InvalidEvent(InvalidCode.NUMBER_RANGE, f"`payload` has the non-finite number {name}.")


def _check_text(value: Any) -> None:
    """Raise for a NUL or a lone surrogate in any key or value."""
    for text in _texts(value):
        if "\0" in text:
            raise InvalidEvent(
                InvalidCode.UNSTORABLE_TEXT, "`payload` contains a NUL character (\\u0000) in a key or value."
            )
        if _SURROGATE.search(text):
            raise InvalidEvent(
                InvalidCode.UNSTORABLE_TEXT, "`payload` contains a lone surrogate (\\ud800 to \\udfff)."
            )


def _texts(value: Any) -> Iterator[str]:
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, list):
            pending.extend(item)
        elif isinstance(item, dict):
            yield from item
            pending.extend(item.values())


def _depth(raw: bytes) -> int:
    """Deepest nesting of brackets outside strings, without recursion; exact up to a little over `MAX_DEPTH`.

    Brackets that do not match count as nested. Every round takes away the innermost pairs.
    """
    brackets = _STRING.sub(b"", raw).translate(_TO_BRACKETS, _NOT_BRACKETS)
    depth = 0
    while brackets and depth <= MAX_DEPTH + 2:
        inner = brackets.replace(b"[]", b"")
        if len(inner) == len(brackets):
            return depth + inner.count(b"[")
        brackets = inner
        depth += 1
    return depth


@cache
def _bounded_array(length: int) -> Callable[[bytes], msgspec.Struct]:
    """A decoder of the first elements of an array. The others are checked, but take no memory: an array of
    ten million bytes can have five million elements."""
    fields = [(f"_{index}", msgspec.Raw, _NOTHING) for index in range(length)]
    array = msgspec.defstruct("Array", fields, array_like=True, gc=False)
    return msgspec.json.Decoder(array).decode


def _split_array(body: bytes, limit: int | None) -> list[bytes]:
    """Split an array at its top-level commas, without recursion and without judging its elements.

    Ends after one element more than the limit.

    Raises:
        InvalidEvent: code `invalid_json`, if the brackets do not match or an element is missing.
    """
    pieces: list[bytes] = []
    depth = 0
    start = 1
    for token in _TOKEN.finditer(body):
        first = body[token.start()]
        if first in b"[{":
            depth += 1
        elif first in b"]}":
            depth -= 1
            if depth == 0:
                if body[token.end() :].strip():
                    break
                pieces.append(body[start : token.start()].strip(b" \t\r\n"))
                if not all(pieces):
                    break
                return pieces
        elif first == ord(",") and depth == 1:
            pieces.append(body[start : token.start()].strip(b" \t\r\n"))
            start = token.end()
            if limit is not None and len(pieces) > limit and all(pieces):
                return pieces
    raise InvalidEvent(
        InvalidCode.INVALID_JSON, "The body is not valid JSON: its brackets or commas do not match."
    )


def _refuse(raw: bytes) -> NoReturn:
    """Find the rule that the bytes of an event break, and say so."""
    text = _require_utf8(raw)
    if _depth(raw) > MAX_DEPTH + 1:
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
            parse_int=number(_exact_integer),
            parse_float=number(_exact_float),
            parse_constant=number(_refuse_constant),
        )
    except ValueError as error:
        raise InvalidEvent(InvalidCode.INVALID_JSON, _not_json(error)) from None
    if not isinstance(document, dict):
        raise InvalidEvent(InvalidCode.SCHEMA, "An event must be a JSON object.")
    topic, event_id = _readable_name(document.get("topic")), _readable_name(document.get("event_id"))
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
        if expected is str and _SURROGATE.search(document[field]):
            raise InvalidEvent(InvalidCode.UNSTORABLE_TEXT, f"`{field}` contains a lone surrogate.")
    check_name("topic", document["topic"])
    check_name("event_id", document["event_id"])
    _check_source(document["source"])
    parse_timestamp(document["timestamp"])
    _check_text(document["payload"])


def _not_utf8(error: UnicodeDecodeError) -> str:
    return f"The bytes are not valid UTF-8 (at byte {error.start:,})."


def _not_json(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"The text is not valid JSON (line {error.lineno:,}, column {error.colno:,}): {error.msg}."
    return "The text is not valid JSON."
