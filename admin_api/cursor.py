"""Cursors: where the next page of a listing begins, in a form that says nothing to its holder.

A cursor is bound to the listing and filter it came from. It holds no secret and grants nothing: the binding
is there so that a cursor used by mistake gives an error, not a plausible wrong page.
"""

from __future__ import annotations

import base64
import binascii
from hashlib import blake2b
from typing import Final

import msgspec

from telemetry.problem import Problem

_VERSION: Final = 1
_MAX_LENGTH: Final = 1_024
_Position = int | str


class _Content(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    version: int
    filter_hash: bytes
    position: _Position


def encode_cursor(listing: str, chosen: msgspec.Struct | None, position: _Position) -> str:
    """The cursor that continues a listing after `position`.

    Args:
        listing: the name of the listing.
        chosen: its filter; None for a listing without one.
    """
    content = msgspec.msgpack.encode(_Content(_VERSION, _hash(listing, chosen), position))
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def decode_number(cursor: str, listing: str, chosen: msgspec.Struct | None) -> int:
    """The numeric position in a cursor. Raises Problem 422 if the cursor is not one of this listing."""
    position = _decode(cursor, listing, chosen)
    if not isinstance(position, int) or not 0 <= position < 2**63:
        raise _unreadable()
    return position


def decode_name(cursor: str, listing: str, chosen: msgspec.Struct | None) -> str:
    """The textual position in a cursor. Raises Problem 422 if the cursor is not one of this listing."""
    position = _decode(cursor, listing, chosen)
    if not isinstance(position, str) or "\0" in position:
        raise _unreadable()
    return position


def _decode(cursor: str, listing: str, chosen: msgspec.Struct | None) -> _Position:
    if len(cursor) > _MAX_LENGTH:
        raise _unreadable()
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        content = msgspec.msgpack.decode(
            base64.b64decode(padded, altchars=b"-_", validate=True), type=_Content
        )
    except (UnicodeError, binascii.Error, msgspec.DecodeError):
        raise _unreadable() from None
    if content.version != _VERSION:
        raise _unreadable()
    if content.filter_hash != _hash(listing, chosen):
        raise Problem(
            422,
            "cursor_mismatch",
            "`cursor` comes from a listing with another filter. Repeat the filter the walk began with,"
            " or leave `cursor` out to begin again.",
        )
    return content.position


def _hash(listing: str, chosen: msgspec.Struct | None) -> bytes:
    return blake2b(msgspec.msgpack.encode((listing, chosen)), digest_size=8).digest()


def _unreadable() -> Problem:
    return Problem(
        422,
        "invalid_cursor",
        "`cursor` is not a cursor of this service. Use the `next_cursor` of the page before, unchanged, or"
        " leave it out to begin with the newest.",
    )
