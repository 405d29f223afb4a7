"""`/dead-letters/operations`: replaying and discarding all dead letters that match a filter."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Path, Query, Request
from pydantic import ValidationError
from starlette.responses import Response

from admin_api import schemas
from admin_api.actor import ActorOf
from admin_api.cursor import decode_number, encode_cursor
from admin_api.dead_letter_office import DeadLetterOffice
from admin_api.operation_request import OperationRequest
from admin_api.parameters import MAX_INTEGER, PageParameters, Parameters
from admin_api.request_body import json_body
from admin_api.route import READ_PROBLEMS, AdminRoute, json_answer, parameter_problem
from db.errors import UnknownOperation
from db.operation_queries import Operation, OperationQueries, OperationStatus
from telemetry.problem import problem_responses

_LISTING = "dead letter operations"
_MAX_BODY_BYTES: Final = 16 * 1024
_REQUEST: Final = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": OperationRequest.model_json_schema()}},
    }
}
_Id = Annotated[int, Path(ge=1, le=MAX_INTEGER, description="The operation's `id`.")]
_NoParameters = Annotated[Parameters, Query()]


def operation_router(queries: OperationQueries, office: DeadLetterOffice, actor_of: ActorOf) -> APIRouter:
    """The routes of bulk operations. To be included before those with an id in place of `operations`."""
    router = APIRouter(tags=["dead letters"], route_class=AdminRoute)

    @router.post(
        "/dead-letters/operations",
        status_code=202,
        response_model=schemas.DeadLetterOperation,
        responses={**READ_PROBLEMS, **problem_responses(408, 413, 415)},
        openapi_extra=_REQUEST,
    )
    async def create_operation(request: Request, _: _NoParameters) -> Response:
        """Replay or discard all dead letters that match a filter, or with `dry_run` only count them.

        It is carried out in the background, in the order of the ids, on what matched when it was created; ask
        for it by its id to follow its progress. It goes on after a restart.
        """
        asked = _parse(await json_body(request, most_bytes=_MAX_BODY_BYTES))
        operation = await office.create_operation(
            asked.kind,
            asked.filter.chosen(),
            actor=actor_of(request),
            most=asked.limit,
            dry_run=asked.dry_run,
        )
        answer = json_answer(shown(operation))
        answer.status_code = 202
        return answer

    @router.get(
        "/dead-letters/operations",
        response_model=schemas.DeadLetterOperationsPage,
        responses=READ_PROBLEMS,
    )
    def list_operations(given: Annotated[PageParameters, Query()]) -> Response:
        """Bulk operations, newest first."""
        before = None if given.cursor is None else decode_number(given.cursor, _LISTING, None)
        found = queries.page(limit=given.limit + 1, before=before)
        page = found[: given.limit]
        following = encode_cursor(_LISTING, None, page[-1].id) if len(found) > len(page) else None
        return json_answer(
            {"operations": [shown(one) for one in page], "count": len(page), "next_cursor": following}
        )

    @router.get(
        "/dead-letters/operations/{operation_id}",
        response_model=schemas.DeadLetterOperation,
        responses={**READ_PROBLEMS, **problem_responses(404)},
    )
    def show_operation(operation_id: _Id, _: _NoParameters) -> Response:
        """One bulk operation and how far it is."""
        operation = queries.show(operation_id)
        if operation is None:
            raise UnknownOperation
        return json_answer(shown(operation))

    @router.post(
        "/dead-letters/operations/{operation_id}/cancel",
        response_model=schemas.DeadLetterOperation,
        responses={**READ_PROBLEMS, **problem_responses(404, 409)},
    )
    async def cancel_operation(request: Request, operation_id: _Id, _: _NoParameters) -> Response:
        """Stop a bulk operation. What it has done stays done."""
        return json_answer(shown(await office.cancel_operation(operation_id, actor=actor_of(request))))

    return router


def shown(operation: Operation) -> dict[str, Any]:
    """An operation as callers see it."""
    return {
        "id": operation.id,
        "kind": operation.kind,
        "filter": operation.chosen,
        "limit": operation.most,
        "dry_run": operation.dry_run,
        "status": operation.status,
        "matching": operation.matching,
        "done": operation.done,
        "skipped": operation.skipped,
        "failed": operation.failed,
        "unknown": operation.unknown,
        "progress": _progress(operation),
        "requested_by": operation.requested_by,
        "created_at": operation.created_at,
        "updated_at": operation.updated_at,
        "finished_at": operation.finished_at,
        "error": operation.error,
    }


def _progress(operation: Operation) -> float:
    if operation.status is OperationStatus.COMPLETED:
        return 1.0
    total = operation.matching
    if operation.most is not None:
        total = operation.most if total is None else min(total, operation.most)
    if total:
        return round(min(1.0, operation.dealt_with / total), 4)
    return round(operation.after_id / operation.until_id, 4) if operation.until_id else 0.0


def _parse(body: bytes) -> OperationRequest:
    try:
        return OperationRequest.model_validate_json(body)
    except ValidationError as error:
        raise parameter_problem(_sentence(error)) from None


def _sentence(error: ValidationError) -> str:
    """The first broken rule, in words that hold nothing of what was sent but the names of fields we know."""
    first = error.errors(include_url=False, include_input=False)[0]
    if first["type"] == "rule":
        return str(first["msg"])
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        return f"`{place}` is required."
    if first["type"] == "extra_forbidden":
        return (
            "A field is unknown; allowed are kind, filter (with reason, topic, status, since, until), limit"
            " and dry_run."
        )
    if first["type"] in ("json_invalid", "model_type", "dict_type") and not first["loc"]:
        return 'The body must be a JSON object, such as {"kind": "replay", "filter": {"reason": "schema"}}.'
    return f"`{place}` is not what it must be; the API's description at /docs says what that is."
