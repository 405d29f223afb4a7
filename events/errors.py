"""Why bytes are not an event.

InvalidEvent          the one exception of this package; `code` says which rule was broken
"""

from __future__ import annotations

from enum import StrEnum


class InvalidCode(StrEnum):
    """The rules an event can break: `code` of a gateway error, `reason` of a dead letter."""

    INVALID_ENCODING = "invalid_encoding"
    INVALID_JSON = "invalid_json"
    SCHEMA = "schema"
    UNSTORABLE_TEXT = "unstorable_text"
    NUMBER_RANGE = "number_range"
    TOO_DEEP = "too_deep"
    TOO_LARGE = "too_large"
    TOMBSTONE = "tombstone"


class InvalidEvent(ValueError):
    """These bytes are not an event.

    Attributes:
        code: the rule that was broken.
        message: a sentence for the sender; never echoes input beyond field names.
        topic: the event's topic where it could be read and is itself valid, else None.
        event_id: likewise.
    """

    def __init__(
        self, code: InvalidCode, message: str, *, topic: str | None = None, event_id: str | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.topic = topic
        self.event_id = event_id
