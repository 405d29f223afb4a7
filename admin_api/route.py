"""What every route of the admin API does alike: errors become problems, answers bytes."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Final

import msgspec
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.responses import Response

from db.errors import (
    DeadLetterRefused,
    QueryTimedOut,
    SchemaMismatch,
    StoreError,
    StoreUnavailable,
    UnknownDeadLetter,
    UnknownOperation,
)
from telemetry.problem import Problem, problem_responses

RETRY_AFTER_S: Final = 5
"""What a client is asked to wait while the database cannot be used: about the time a failover takes."""

READ_PROBLEMS: Final = problem_responses(422, 503, 504)
"""The problems any route that reads the database can answer with."""


class AdminRoute(APIRoute):
    """Translates what the routes raise, so that they work the same in every application they are part of."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()

        async def answer_or_problem(request: Request) -> Response:
            _refuse_repeated(request)
            try:
                return await answer(request)
            except RequestValidationError as error:
                sentences = [str(one["msg"]) for one in error.errors() if one["type"] == "rule"]
                if not sentences:
                    raise
                raise parameter_problem(" ".join(sentences)) from None
            except StoreError as error:
                raise store_problem(error) from error

        return answer_or_problem


def json_answer(content: object) -> Response:
    """An answer from msgspec structs and plain values: moments as RFC 3339 in UTC, bytes as base64."""
    return Response(msgspec.json.encode(content), media_type="application/json")


def store_problem(error: StoreError) -> Problem:
    """The problem a failed read or write is to its caller."""
    if isinstance(error, UnknownDeadLetter):
        return Problem(404, "unknown_dead_letter", str(error))
    if isinstance(error, UnknownOperation):
        return Problem(404, "unknown_operation", str(error))
    if isinstance(error, DeadLetterRefused):
        return Problem(409, "wrong_status", str(error), extra={"dead_letter_status": error.status})
    if isinstance(error, QueryTimedOut):
        return Problem(504, "query_timeout", str(error), retryable=False)
    if isinstance(error, SchemaMismatch):
        return Problem(503, "schema_mismatch", str(error), retryable=False)
    if isinstance(error, StoreUnavailable):
        return Problem(503, "database_unavailable", str(error), retry_after=RETRY_AFTER_S)
    raise error


def parameter_problem(sentence: str) -> Problem:
    """A request that breaks a rule for its parameters."""
    return Problem(422, "invalid_parameter", sentence)


def _refuse_repeated(request: Request) -> None:
    names = [name for name, _ in request.query_params.multi_items()]
    for name in request.query_params:
        if names.count(name) > 1:
            raise parameter_problem("A query parameter is given more than once; give each at most once.")
