"""Query parameters, each with its rule and a sentence for whoever breaks it."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable
from typing import Annotated, Any, Final, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError
from pydantic_core.core_schema import ValidationInfo

from db.dead_letter_status import Status
from db.event_filter import DeadLetterFilter, EventFilter
from events.errors import InvalidCode, InvalidEvent
from events.event import MAX_NAME_BYTES, moment
from events.fields import check_name, parse_timestamp
from events.verdict import CONFLICT_REASON, DATABASE_REASON, UNDECODABLE_REASON

MAX_LIMIT: Final = 1_000
MAX_INTEGER: Final = 2**63 - 1
"""The largest number the databases hold."""

_REASONS: Final = (*sorted(InvalidCode), CONFLICT_REASON, UNDECODABLE_REASON, DATABASE_REASON)
_STATUSES: Final = tuple(Status)
_DIGITS: Final = re.compile(r"[0-9]{1,19}")


def broken_rule(sentence: str) -> PydanticCustomError:
    """The error of a parameter that breaks its rule; the sentence reaches the caller as it is."""
    return PydanticCustomError("rule", "{sentence}", {"sentence": sentence})


def _whole_number(low: int, high: int) -> Callable[[Any, ValidationInfo], int]:
    def parse(value: Any, info: ValidationInfo) -> int:
        if _DIGITS.fullmatch(str(value)) and low <= int(value) <= high:
            return int(value)
        raise broken_rule(f"`{info.field_name}` must be a whole number from {low:,} to {high:,}.")

    return parse


def _moment(value: Any, info: ValidationInfo) -> dt.datetime:
    try:
        return moment(parse_timestamp(str(value)))
    except InvalidEvent:
        hint = " In a URL, write the + of an offset as %2B." if " " in str(value) else ""
        raise broken_rule(
            f"`{info.field_name}` must be RFC 3339 with an offset, in the years 1970 to 2100, for example"
            f" 2026-01-31T12:00:00Z.{hint}"
        ) from None


def _name(value: Any, info: ValidationInfo) -> str:
    try:
        check_name(str(info.field_name), str(value))
    except InvalidEvent as error:
        raise broken_rule(error.message) from None
    return str(value)


def _source(value: Any) -> str:
    text = str(value)
    if not 1 <= len(text.encode()) <= MAX_NAME_BYTES or "\0" in text:
        raise broken_rule(f"`source` must be 1 to {MAX_NAME_BYTES} bytes of UTF-8 without NUL characters.")
    return text


def _one_of(allowed: tuple[str, ...]) -> Callable[[Any, ValidationInfo], str]:
    def parse(value: Any, info: ValidationInfo) -> str:
        if value in allowed:
            return str(value)
        raise broken_rule(f"`{info.field_name}` must be one of {', '.join(allowed)}.")

    return parse


# The rules stand outside the unions with None, so that a broken one gives one error, not one per member.
_NameSchema: Final = WithJsonSchema({"type": "string", "minLength": 1, "maxLength": MAX_NAME_BYTES})
_Name = Annotated[str | None, BeforeValidator(_name), _NameSchema]
_Source = Annotated[str | None, BeforeValidator(_source), _NameSchema]
_Moment = Annotated[
    dt.datetime | None, BeforeValidator(_moment), WithJsonSchema({"type": "string", "format": "date-time"})
]
_Reason = Annotated[
    str | None, BeforeValidator(_one_of(_REASONS)), WithJsonSchema({"type": "string", "enum": list(_REASONS)})
]
_Status = Annotated[
    str | None,
    BeforeValidator(_one_of(_STATUSES)),
    WithJsonSchema({"type": "string", "enum": list(_STATUSES)}),
]
_Limit = Annotated[
    int,
    BeforeValidator(_whole_number(1, MAX_LIMIT)),
    WithJsonSchema({"type": "integer", "minimum": 1, "maximum": MAX_LIMIT}),
]
_Offset = Annotated[
    int | None,
    BeforeValidator(_whole_number(0, MAX_INTEGER)),
    WithJsonSchema({"type": "integer", "minimum": 0}),
]
_LetterId = Annotated[
    int | None,
    BeforeValidator(_whole_number(1, MAX_INTEGER)),
    WithJsonSchema({"type": "integer", "minimum": 1}),
]
_Cursor = Annotated[str | None, WithJsonSchema({"type": "string"})]


class Parameters(BaseModel):
    """The query parameters of a route; any other is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _known(cls, given: Any) -> Any:
        if isinstance(given, dict) and not given.keys() <= cls.model_fields.keys():
            allowed = (
                f"allowed are {', '.join(cls.model_fields)}" if cls.model_fields else "none is allowed here"
            )
            raise broken_rule(f"A query parameter is unknown; {allowed}.")
        return given


class PageParameters(Parameters):
    """Where a page begins and how long it is."""

    limit: _Limit = Field(100, description="Most entries in the page.")
    cursor: _Cursor = Field(None, description="`next_cursor` of the page before, with the same filter.")


class EventFilterParameters(Parameters):
    """Which events; every given parameter must match."""

    topic: _Name = Field(None, description="The event's topic.")
    source: _Source = Field(None, description="The event's source.")
    event_id: _Name = Field(None, description="The event's id; with `topic`, at most one event.")
    since: _Moment = Field(
        None,
        description="Occurred (`timestamp`) at this moment or later.",
        examples=["2026-01-31T12:00:00Z"],
    )
    until: _Moment = Field(None, description="Occurred (`timestamp`) before this moment.")
    stored_since: _Moment = Field(
        None, description="Stored at this moment or later. The cheap way to ask a large store for a period."
    )
    stored_until: _Moment = Field(None, description="Stored before this moment.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _check_order("since", self.since, "until", self.until)
        _check_order("stored_since", self.stored_since, "stored_until", self.stored_until)
        return self

    def chosen(self) -> EventFilter:
        """The filter these parameters mean."""
        return EventFilter(
            topic=self.topic,
            source=self.source,
            event_id=self.event_id,
            since=self.since,
            until=self.until,
            stored_since=self.stored_since,
            stored_until=self.stored_until,
        )


class EventsParameters(EventFilterParameters, PageParameters):
    """A page of events."""

    offset: _Offset = Field(
        None,
        description="Events to leave out at the beginning, for simple clients. What is stored between two"
        " requests shifts the pages; `cursor` does not have that problem, and is faster.",
    )

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.cursor is not None and self.offset is not None:
            raise broken_rule("Give `cursor` or `offset`, not both.")
        return self


class DeadLetterFilterParameters(Parameters):
    """Which dead letters; every given parameter must match."""

    reason: _Reason = Field(None, description="Why it is a dead letter.")
    topic: _Name = Field(None, description="The event's topic, for records whose topic could be read.")
    status: _Status = Field(None, description="What has been done about it.")
    since: _Moment = Field(None, description="Became a dead letter at this moment or later.")
    until: _Moment = Field(None, description="Became a dead letter before this moment.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _check_order("since", self.since, "until", self.until)
        return self

    def chosen(self) -> DeadLetterFilter:
        """The filter these parameters mean."""
        return DeadLetterFilter(
            reason=self.reason, topic=self.topic, status=self.status, since=self.since, until=self.until
        )


class DeadLettersParameters(DeadLetterFilterParameters, PageParameters):
    """A page of dead letters."""


class AuditParameters(PageParameters):
    """A page of audit entries."""

    dead_letter_id: _LetterId = Field(None, description="Only what was done to this dead letter by itself.")


def _check_order(first: str, since: dt.datetime | None, second: str, until: dt.datetime | None) -> None:
    if since is not None and until is not None and since >= until:
        raise broken_rule(f"`{first}` must be before `{second}`.")
