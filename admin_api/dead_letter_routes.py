"""`/dead-letters`: records that are not stored as events."""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import APIRouter, Path, Query
from starlette.responses import Response

from admin_api import schemas
from admin_api.cursor import decode_number, encode_cursor
from admin_api.parameters import MAX_INTEGER, DeadLettersParameters, Parameters
from admin_api.route import READ_PROBLEMS, AdminRoute, json_answer
from db.dead_letter_queries import DeadLetterQueries
from telemetry.problem import Problem, problem_responses

_LISTING = "dead letters"


def dead_letter_router(queries: DeadLetterQueries) -> APIRouter:
    """The routes under `/dead-letters`."""
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

    @router.get(
        "/dead-letters/{dead_letter_id}",
        response_model=schemas.DeadLetter,
        responses={**READ_PROBLEMS, **problem_responses(404)},
    )
    def show_dead_letter(
        dead_letter_id: Annotated[int, Path(ge=1, le=MAX_INTEGER, description="The dead letter's `id`.")],
        _: Annotated[Parameters, Query()],
    ) -> Response:
        """One dead letter with the original bytes of its record."""
        letter = queries.show(dead_letter_id)
        if letter is None:
            raise Problem(404, "unknown_dead_letter", "There is no dead letter with this id.")
        return json_answer(
            {
                **msgspec.structs.asdict(letter.summary),
                "record_timestamp_ms": letter.record_timestamp_ms,
                "record_timestamp": letter.record_timestamp,
                "key": letter.key,
                "value": letter.value,
                "headers": letter.headers,
                "replayed_value": letter.replayed_value,
                "children": letter.children,
            }
        )

    return router
