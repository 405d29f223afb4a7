"""Why a request is refused, and the HTTP status each reason has."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec


class Reason(StrEnum):
    """The `code` of a problem document."""

    INVALID_ENCODING = "invalid_encoding"
    INVALID_JSON = "invalid_json"
    SCHEMA = "schema"
    NO_EVENT_ACCEPTABLE = "no_event_acceptable"
    EVENT_TOO_LARGE = "event_too_large"
    BODY_TOO_LARGE = "body_too_large"
    TOO_MANY_EVENTS = "too_many_events"
    UNSUPPORTED_CONTENT_TYPE = "unsupported_content_type"
    UNSUPPORTED_CONTENT_ENCODING = "unsupported_content_encoding"
    READ_TIMEOUT = "read_timeout"
    KEY_MISSING = "key_missing"
    KEY_NOT_VALID = "key_not_valid"
    ROLE_NOT_ALLOWED = "role_not_allowed"
    TOPIC_NOT_ALLOWED = "topic_not_allowed"
    QUOTA_EXCEEDED = "quota_exceeded"
    OVERLOADED = "overloaded"
    DRAINING = "draining"
    LOG_FULL = "log_full"
    LOG_UNAVAILABLE = "log_unavailable"
    OUTCOME_UNKNOWN = "outcome_unknown"


STATUS: Final[dict[Reason, int]] = {
    Reason.INVALID_ENCODING: 400,
    Reason.INVALID_JSON: 400,
    Reason.KEY_MISSING: 401,
    Reason.KEY_NOT_VALID: 401,
    Reason.ROLE_NOT_ALLOWED: 403,
    Reason.TOPIC_NOT_ALLOWED: 403,
    Reason.READ_TIMEOUT: 408,
    Reason.EVENT_TOO_LARGE: 413,
    Reason.BODY_TOO_LARGE: 413,
    Reason.TOO_MANY_EVENTS: 413,
    Reason.UNSUPPORTED_CONTENT_TYPE: 415,
    Reason.UNSUPPORTED_CONTENT_ENCODING: 415,
    Reason.SCHEMA: 422,
    Reason.NO_EVENT_ACCEPTABLE: 422,
    Reason.QUOTA_EXCEEDED: 429,
    Reason.OVERLOADED: 503,
    Reason.DRAINING: 503,
    Reason.LOG_FULL: 503,
    Reason.LOG_UNAVAILABLE: 503,
    Reason.OUTCOME_UNKNOWN: 503,
}
"""Every reason has exactly one status."""

CLOSES_CONNECTION: Final = frozenset({Reason.READ_TIMEOUT, Reason.DRAINING})
"""Reasons after which the connection is of no more use."""

MAX_LISTED_ERRORS: Final = 1_000
"""Most events whose error is spelled out in one answer; the rest are counted."""

TOPIC_NOT_ALLOWED: Final = "topic_not_allowed"
"""The code of an event whose topic is not one of the key's."""


class EventError(msgspec.Struct, frozen=True, gc=False):
    """Why one event of a request was not accepted. `event_id` is None where it could not be read."""

    index: int
    event_id: str | None
    code: str
    message: str


class Rejected(msgspec.Struct):
    """The events of a request that were not accepted: all are counted, the first ones spelled out.

    Attributes:
        codes: how many for each code.
    """

    count: int = 0
    errors: list[EventError] = []
    codes: dict[str, int] = {}

    def add(self, error: EventError) -> None:
        self.count += 1
        self.codes[error.code] = self.codes.get(error.code, 0) + 1
        if len(self.errors) < MAX_LISTED_ERRORS:
            self.errors.append(error)

    @property
    def omitted(self) -> int:
        return self.count - len(self.errors)


class Refused(Exception):
    """The request was refused as a whole.

    Attributes:
        reason: decides the status.
        message: a sentence for the sender.
        rejected: the events' errors where that is what the reason is about.
        retry_after: seconds the sender has to wait, where the reason says how long.
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        rejected: Rejected | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.rejected = rejected
        self.retry_after = retry_after
