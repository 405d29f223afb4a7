"""How the two contents of a conflict differ: timestamp, source and payload, path by path."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator
from decimal import Decimal, DecimalException
from itertools import islice
from typing import Any, Final, Literal

import msgspec

MAX_CHANGES: Final = 200
"""The most changes shown; two payloads can have a hundred thousand."""
MAX_SHOWN_BYTES: Final = 1_024
"""The largest value shown as it is, in bytes of its JSON; of a larger one the beginning is shown as text."""

_MISSING: Final = object()


class Content(msgspec.Struct, frozen=True):
    """What is compared of an event. `payload` is JSON."""

    timestamp: dt.datetime
    source: str
    payload: msgspec.Raw


class Change(msgspec.Struct, frozen=True):
    """One place at which the contents differ.

    Attributes:
        path: a JSON pointer (RFC 6901) into the event.
        stored, rejected: the values there; None also where there is none, as `change` says.
        shortened: whether a value was too large, and is the beginning of its JSON as text.
    """

    path: str
    change: Literal["changed", "added", "removed"]
    stored: Any
    rejected: Any
    shortened: bool


class Difference(msgspec.Struct, frozen=True):
    """The changes from the stored event to the rejected one; `complete` is False if there are more."""

    changes: list[Change]
    complete: bool


class _Number:
    """A number with its digits: equal to another exactly if an event's content hash takes them for equal."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._value = _normal(text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Number) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)


def difference(stored: Content, rejected: Content) -> Difference:
    """What changes from one content to the other, in the order of the stored payload."""
    found = list(islice(_changes("", _tree(stored), _tree(rejected)), MAX_CHANGES + 1))
    return Difference(found[:MAX_CHANGES], len(found) <= MAX_CHANGES)


def _tree(content: Content) -> dict[str, Any]:
    payload = json.loads(bytes(content.payload), parse_int=_Number, parse_float=_Number)
    moment = msgspec.json.decode(msgspec.json.encode(content.timestamp))
    return {"timestamp": moment, "source": content.source, "payload": payload}


def _changes(path: str, stored: Any, rejected: Any) -> Iterator[Change]:
    # The depth is bounded: events are nested no deeper than `events.event.MAX_DEPTH`.
    if isinstance(stored, dict) and isinstance(rejected, dict):
        pairs = [(key, value, rejected.get(key, _MISSING)) for key, value in stored.items()]
        pairs += [(key, _MISSING, value) for key, value in rejected.items() if key not in stored]
        for key, before, after in pairs:
            yield from _changes(f"{path}/{_escaped(key)}", before, after)
    elif isinstance(stored, list) and isinstance(rejected, list):
        for index in range(max(len(stored), len(rejected))):
            before = stored[index] if index < len(stored) else _MISSING
            after = rejected[index] if index < len(rejected) else _MISSING
            yield from _changes(f"{path}/{index}", before, after)
    elif type(stored) is not type(rejected) or stored != rejected:
        shown, shown_rejected = _shown(stored), _shown(rejected)
        change: Literal["changed", "added", "removed"] = (
            "added" if stored is _MISSING else "removed" if rejected is _MISSING else "changed"
        )
        yield Change(path, change, shown[0], shown_rejected[0], shown[1] or shown_rejected[1])


def _escaped(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")


def _shown(value: Any) -> tuple[Any, bool]:
    """A value as it can be encoded, and whether only its beginning is there."""
    if value is _MISSING:
        return None, False
    encoded = msgspec.json.encode(_encodable(value))
    if len(encoded) <= MAX_SHOWN_BYTES:
        return msgspec.Raw(encoded), False
    return encoded[:MAX_SHOWN_BYTES].decode(errors="ignore"), True


def _encodable(value: Any) -> Any:
    """The value with its numbers as they were written."""
    if isinstance(value, _Number):
        return msgspec.Raw(value.text.encode())
    if isinstance(value, dict):
        return {key: _encodable(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_encodable(inner) for inner in value]
    return value


def _normal(text: str) -> object:
    """A form in which numbers are equal that are equal to `events.codec`: 1.0 and 1.00, but not 1 and 1.0."""
    if text.lstrip("-").isdecimal():
        return int(text)
    try:
        sign, digits, exponent = Decimal(text).as_tuple()
    except DecimalException:
        return text
    stripped = list(digits)
    trailing = 0
    while stripped and stripped[-1] == 0:
        stripped.pop()
        trailing += 1
    if not stripped:
        return ("float", sign)
    return ("float", sign, tuple(stripped), exponent + trailing if isinstance(exponent, int) else exponent)
