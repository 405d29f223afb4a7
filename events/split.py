"""A request body to the bytes of its events."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from itertools import takewhile
from typing import Final

import msgspec

from events.errors import InvalidCode, InvalidEvent
from events.text import not_json, require_utf8

_decode_array: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode
_NOTHING: Final = msgspec.Raw(b"")
# Strings (closed or not) and structure; everything between two matches is a scalar or white space.
_TOKEN: Final = re.compile(rb'"(?:[^"\\]|\\.)*"?|[\[\]{},]', re.DOTALL)


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
    require_utf8(body)
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
            raise InvalidEvent(InvalidCode.INVALID_JSON, not_json(error)) from None
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
