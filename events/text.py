"""What bytes have to be before they are anything else: UTF-8, and JSON."""

from __future__ import annotations

import json
from typing import Final

from events.errors import InvalidCode, InvalidEvent

TO_ZEROS: Final = bytes.maketrans(b"123456789", b"000000000")
"""Makes every digit a zero: what is left is the shape of numbers and timestamps."""


def require_utf8(raw: bytes) -> str:
    """The text of these bytes. Raises InvalidEvent (`invalid_encoding`)."""
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise InvalidEvent(InvalidCode.INVALID_ENCODING, _not_utf8(error)) from None


def _not_utf8(error: UnicodeDecodeError) -> str:
    return f"The bytes are not valid UTF-8 (at byte {error.start:,})."


def not_json(error: ValueError) -> str:
    """What the standard library's parser found, as a sentence that echoes no input."""
    if isinstance(error, json.JSONDecodeError):
        return f"The text is not valid JSON (line {error.lineno:,}, column {error.colno:,}): {error.msg}."
    return "The text is not valid JSON."
