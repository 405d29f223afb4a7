"""The rules of an event's envelope: topic, event_id, timestamp, source."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Sequence
from typing import Final

from events.errors import InvalidCode, InvalidEvent
from events.event import MAX_NAME_BYTES, MAX_YEAR, MIN_YEAR, microseconds
from events.text import TO_ZEROS

_TIMESTAMP: Final = re.compile(
    r"\d\d\d\d-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(?:\.\d+)?(?:[Zz]|[+-]\d\d:\d\d)", re.ASCII
)
# How most timestamps look once every digit is a zero; to look that up takes a third of a match.
_COMMON_TIMESTAMPS: Final = frozenset(
    b"0000-00-00T00:00:00" + fraction + offset
    for fraction in (b"", *(b"." + b"0" * digits for digits in range(1, 10)))
    for offset in (b"Z", b"+00:00", b"-00:00")
)
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_FIRST_MOMENT: Final = microseconds(dt.datetime(MIN_YEAR, 1, 1, tzinfo=dt.UTC))
_END_OF_TIME: Final = microseconds(dt.datetime(MAX_YEAR + 1, 1, 1, tzinfo=dt.UTC))
# Between these dates every offset keeps a moment within the years.
_FIRST_PLAIN_DATE: Final = f"{MIN_YEAR}-01-02"
_LAST_PLAIN_DATE: Final = f"{MAX_YEAR}-12-31"


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


def check_source(value: str) -> None:
    """Check a source against its rule: 1 to 255 bytes of UTF-8, no NUL.

    Raises:
        InvalidEvent: code `schema`, or `unstorable_text` for a NUL.
    """
    _check_length("source", value)
    if "\0" in value:
        raise InvalidEvent(InvalidCode.UNSTORABLE_TEXT, "`source` contains a NUL character (\\u0000).")


def readable_name(value: object) -> str | None:
    """The value if it is itself a valid topic or event_id, so that an error can name it."""
    if not isinstance(value, str):
        return None
    try:
        check_name("name", value)
    except (InvalidEvent, UnicodeEncodeError):
        return None
    return value


def parse_timestamp(text: str) -> int:
    """Read an RFC 3339 timestamp with offset, year 1970 to 2100 in UTC, as microseconds since 1970.

    Digits beyond microseconds are cut.

    Raises:
        InvalidEvent: code `schema`.
    """
    is_common = text.isascii() and text.encode().translate(TO_ZEROS) in _COMMON_TIMESTAMPS
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


def names_are_plain(names: Sequence[str], sources: Sequence[str]) -> bool:
    """Whether all of these, each of 1 to `MAX_NAME_BYTES` characters, plainly obey their rules. Of others it
    is still open."""
    text, source_text = "".join(names), "".join(sources)
    return text.isascii() and text.isprintable() and source_text.isascii() and "\0" not in source_text


def parse_plain_timestamps(texts: Sequence[str]) -> list[dt.datetime] | None:
    """The moments, if all of these plainly obey the rule of `parse_timestamp`; None if it is still open."""
    joined = "\n".join(texts)
    if not joined.isascii():
        return None
    shapes = joined.encode().translate(TO_ZEROS).split(b"\n")
    if len(shapes) != len(texts) or not _COMMON_TIMESTAMPS.issuperset(shapes):
        return None
    if min(texts) < _FIRST_PLAIN_DATE or max(texts) >= _LAST_PLAIN_DATE:
        return None
    try:
        return list(map(dt.datetime.fromisoformat, texts))
    except ValueError:
        return None


def _check_length(field: str, value: str) -> None:
    size = len(value) if value.isascii() else len(value.encode())
    if not 1 <= size <= MAX_NAME_BYTES:
        raise InvalidEvent(
            InvalidCode.SCHEMA, f"`{field}` must be 1 to {MAX_NAME_BYTES} bytes of UTF-8; it is {size:,}."
        )
