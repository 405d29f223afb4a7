"""The request for a bulk operation."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    WithJsonSchema,
    model_validator,
)

from admin_api.parameters import MAX_INTEGER, DeadLetterFilterParameters, broken_rule
from db.dead_letter_status import OPEN, Status
from db.event_filter import DeadLetterFilter
from db.operation_queries import Kind


def _limit(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_INTEGER:
        return value
    raise broken_rule(f"`limit` must be a whole number from 1 to {MAX_INTEGER:,}, or left out.")


def _kind(value: Any) -> Kind:
    if value in ("replay", "discard"):
        return Kind(value)
    raise broken_rule("`kind` must be one of replay, discard.")


_Limit = Annotated[
    int, BeforeValidator(_limit), WithJsonSchema({"type": "integer", "minimum": 1, "maximum": MAX_INTEGER})
]


class OperationFilter(DeadLetterFilterParameters):
    """Which dead letters; every given field must match. An empty filter means every open one."""

    @model_validator(mode="before")
    @classmethod
    def _texts(cls, given: Any) -> Any:
        if isinstance(given, dict) and not all(isinstance(value, str) for value in given.values()):
            raise broken_rule("Every field of `filter` must be a string; leave out what does not matter.")
        return given

    @model_validator(mode="after")
    def _open(self) -> OperationFilter:
        if self.status is not None and self.status not in OPEN:
            raise broken_rule(
                f"`status` must be one of {', '.join(OPEN)}: about other dead letters nothing can be done."
            )
        return self

    def chosen(self) -> DeadLetterFilter:
        """The filter these fields mean; without a status, pending ones."""
        return DeadLetterFilter(
            reason=self.reason,
            topic=self.topic,
            status=self.status or Status.PENDING.value,
            since=self.since,
            until=self.until,
        )


class OperationRequest(BaseModel):
    """What is to be done, and about which dead letters."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Annotated[Kind, BeforeValidator(_kind)] = Field(description="What to do with each.")
    filter: OperationFilter = Field(
        description="Which dead letters; every given field must match. Without `status`, pending ones. `{}`"
        " stands for all of them."
    )
    limit: _Limit | None = Field(None, description="Deal with at most so many; the oldest come first.")
    dry_run: StrictBool = Field(False, description="Only count what would be done.")
