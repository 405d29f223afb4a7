"""`/dead-letters`: records that are not stored as events, and what is done about each."""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from admin_api import schemas
from admin_api.actor import ActorOf
from admin_api.cursor import decode_number, encode_cursor
from admin_api.dead_letter_office import DeadLetterOffice, ReplayFailed
from admin_api.difference import Content, difference
from admin_api.parameters import (
    MAX_INTEGER,
    DeadLetterFilterParameters,
    DeadLettersParameters,
    Parameters,
)
from admin_api.payload_scope import sees_payloads
from admin_api.request_body import json_body
from admin_api.route import READ_PROBLEMS, RETRY_AFTER_S, AdminRoute, json_answer
from broker.errors import LogUnavailable, RecordTooLarge
from db.dead_letter_queries import DeadLetter, DeadLetterQueries
from db.dead_letter_status import Outcome
from db.errors import UnknownDeadLetter
from db.event_queries import StoredEvent
from events.codec import decode_event
from events.errors import InvalidCode, InvalidEvent
from events.event import MAX_EVENT_BYTES
from telemetry.problem import Problem, problem_responses

_LISTING = "dead letters"
_EDITED: Final = {
    "requestBody": {
        "description": "An edited event to send in place of the record's value; left out, the record is sent"
        " as it was. Its bytes are kept as they are.",
        "required": False,
        "content": {"application/json": {"schema": {"type": "object"}}},
    }
}
_Id = Annotated[int, Path(ge=1, le=MAX_INTEGER, description="The dead letter's `id`.")]
_NoParameters = Annotated[Parameters, Query()]


def dead_letter_router(queries: DeadLetterQueries) -> APIRouter:
    """The routes that read dead letters. To be included after those with a fixed word in place of the id."""
    router = APIRouter(tags=["dead letters"], route_class=AdminRoute)

    @router.get("/dead-letters", response_model=schemas.DeadLettersPage, responses=READ_PROBLEMS)
    def list_dead_letters(given: Annotated[DeadLettersParameters, Query()]) -> Response:
        """Dead letters without their bytes, newest first."""
        chosen = given.chosen()
        before = None if given.cursor is None else decode_number(given.cursor, _LISTING, chosen)
        page = queries.page(chosen, limit=given.limit, before=before)
        following = None if page.next_before is None else encode_cursor(_LISTING, chosen, page.next_before)
        return json_answer(
            {"dead_letters": page.dead_letters, "count": len(page.dead_letters), "next_cursor": following}
        )

    @router.get("/dead-letters/groups", response_model=schemas.DeadLetterGroups, responses=READ_PROBLEMS)
    def group_dead_letters(given: Annotated[DeadLetterFilterParameters, Query()]) -> Response:
        """How many dead letters there are by reason, and what was done about them; the largest first."""
        return json_answer({"groups": queries.groups(given.chosen())})

    @router.get(
        "/dead-letters/{dead_letter_id}",
        response_model=schemas.DeadLetter,
        responses={**READ_PROBLEMS, **problem_responses(404)},
    )
    def show_dead_letter(request: Request, dead_letter_id: _Id, _: _NoParameters) -> Response:
        """One dead letter with the original bytes of its record.

        A conflict is shown with both contents, the stored and the rejected one, and their difference.
        """
        letter = queries.show(dead_letter_id)
        if letter is None:
            raise UnknownDeadLetter
        shown = sees_payloads(request)
        return json_answer(
            {
                **msgspec.structs.asdict(letter.summary),
                "record_timestamp_ms": letter.record_timestamp_ms,
                "record_timestamp": letter.record_timestamp,
                "key": letter.key if shown else None,
                "value": letter.value if shown else None,
                "headers": letter.headers if shown else None,
                "replayed_value": letter.replayed_value if shown else None,
                "redacted": not shown,
                "children": letter.children,
                "conflict": _conflict(letter) if shown else None,
            }
        )

    return router


def replay_router(office: DeadLetterOffice, actor_of: ActorOf) -> APIRouter:
    """The routes that do something about one dead letter."""
    router = APIRouter(tags=["dead letters"], route_class=AdminRoute)

    @router.post(
        "/dead-letters/{dead_letter_id}/replay",
        response_model=schemas.DeadLetterSummary,
        responses={**READ_PROBLEMS, **problem_responses(404, 408, 409, 413, 415)},
        openapi_extra=_EDITED,
    )
    async def replay_dead_letter(request: Request, dead_letter_id: _Id, _: _NoParameters) -> Response:
        """Send the record through the log again, as it was or edited.

        The answer comes once the log has acknowledged it. It then gets a verdict like any record; if it fails
        again, that is a new dead letter with this one as its `parent_id`. After a 503 `outcome_unknown` the
        status is `replay_unknown`; to replay it again is always safe.
        """
        edited = await json_body(request, most_bytes=MAX_EVENT_BYTES) or None
        if edited is not None:
            _check(edited)
        try:
            done = await office.replay(dead_letter_id, actor=actor_of(request), edited=edited)
        except LogUnavailable as error:
            raise Problem(
                503,
                "log_unavailable",
                f"Nothing was sent, and nothing was changed: {error}",
                retry_after=RETRY_AFTER_S,
            ) from error
        except ReplayFailed as error:
            raise _not_acknowledged(error) from error
        return json_answer(done)

    @router.post(
        "/dead-letters/{dead_letter_id}/discard",
        response_model=schemas.DeadLetterSummary,
        responses={**READ_PROBLEMS, **problem_responses(404, 409)},
    )
    async def discard_dead_letter(request: Request, dead_letter_id: _Id, _: _NoParameters) -> Response:
        """Note that nothing more will be done about it. The record and its bytes are kept."""
        return json_answer(await office.discard(dead_letter_id, actor=actor_of(request)))

    return router


def _check(edited: bytes) -> None:
    """Refuse an edited event that would only become a dead letter again."""
    try:
        decode_event(edited)
    except InvalidEvent as error:
        status = 413 if error.code is InvalidCode.TOO_LARGE else 422
        raise Problem(
            status,
            "invalid_event",
            f"The edited event is not valid, so nothing was sent: {error.message}",
            extra={"reason": error.code},
        ) from None


def _not_acknowledged(error: ReplayFailed) -> Problem:
    if isinstance(error.cause, RecordTooLarge):
        return Problem(413, "event_too_large", f"Nothing was sent: {error.cause}")
    if error.outcome is Outcome.NOT_SENT:
        return Problem(503, "log_full", f"Nothing was sent: {error.cause}", retry_after=RETRY_AFTER_S)
    return Problem(
        503,
        "outcome_unknown",
        "The log did not acknowledge the record; it may be in it. The dead letter is `replay_unknown` now;"
        " to replay it again is always safe.",
        retry_after=RETRY_AFTER_S,
    )


def _conflict(letter: DeadLetter) -> dict[str, Any] | None:
    """Both contents of a conflict and how they differ; None for any other dead letter."""
    raw = letter.value
    if letter.winner is None or raw is None:
        return None
    try:
        event = decode_event(raw.base64)
    except InvalidEvent:
        return None  # no event by the rules of today
    rejected = Content(event.timestamp, event.source, msgspec.Raw(event.payload))
    found = difference(_content(letter.winner), rejected)
    return {
        "stored": letter.winner,
        "rejected": rejected,
        "difference": found.changes,
        "difference_complete": found.complete,
    }


def _content(event: StoredEvent) -> Content:
    return Content(event.timestamp, event.source, event.payload)
