"""What every HTTP application shares: request ids, one log line per request, problem documents.

`install_problem_responses` is the one call an application needs.
"""

from __future__ import annotations

import re
from random import getrandbits
from time import perf_counter
from typing import Any, Final

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from telemetry.metrics import Metrics
from telemetry.metrics_route import install_metrics_route
from telemetry.problem import (
    PROBLEM_MEDIA_TYPE,
    Problem,
    ProblemDocument,
    problem_response,
    problem_responses,
    status_phrase,
)
from telemetry.request_log import RequestLog

__all__ = [
    "Problem",
    "ProblemDocument",
    "RequestMiddleware",
    "answer_problem",
    "header_text",
    "install_problem_responses",
    "problem_response",
    "problem_responses",
    "request_id_of",
]

PROBE_PATHS: Final = frozenset({"/livez", "/healthz", "/readyz", "/metrics"})
"""Asked every few seconds by machines; their log lines are at debug level."""

_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")
_LOGGER: Final = structlog.get_logger("http")


def request_id_of(request: Request) -> str | None:
    """The id that `RequestMiddleware` gave the request; None outside of it."""
    request_id: str | None = request.scope.get("state", {}).get("request_id")
    return request_id


def install_problem_responses(
    app: FastAPI, *, log_level: str = "info", metrics: Metrics | None = None
) -> None:
    """Make every error of the application a problem document, with request ids and a log line per request.

    Covers unknown paths and methods, parameters that fail validation, `Problem`, and any other exception,
    which is logged with its traceback and answered with 500. Also documents this in the OpenAPI schema.
    Call it once per application.

    Args:
        log_level: of the line for a request that was answered with a status below 500.
        metrics: what measures the requests, and is served at `/metrics`; by default nothing does.
    """
    if metrics is not None:
        install_metrics_route(app, metrics)
    app.add_exception_handler(Problem, _answer_problem)
    app.add_exception_handler(HTTPException, _answer_http_exception)
    app.add_exception_handler(RequestValidationError, _answer_validation_error)
    app.add_exception_handler(Exception, _answer_unexpected)
    app.add_middleware(RequestMiddleware, log_level=log_level, metrics=metrics)
    _document_problems(app)


class RequestMiddleware:
    """Gives a request its id, logs and measures it once it is answered, and answers what nothing caught.

    A caller's `X-Request-Id` is kept if it is at most 128 letters, digits or `._:/+=@-`; else one is made.
    It is returned in the response, is in `scope["state"]["request_id"]`, and on every log line below.
    """

    def __init__(self, app: ASGIApp, log_level: str = "info", metrics: Metrics | None = None) -> None:
        self.app = app
        self._log_level = log_level
        self._log = RequestLog()
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = perf_counter()
        request_id = _incoming_request_id(scope) or f"{getrandbits(128):032x}"
        scope.setdefault("state", {})["request_id"] = request_id
        structlog.contextvars.bind_contextvars(request_id=request_id)
        header = (b"x-request-id", request_id.encode("ascii"))
        status: int | None = None
        error_type: str | None = None

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), header]}
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except ClientDisconnect:
            error_type = "client_disconnected"
        except Exception as error:
            # The last resort: whatever happened, the request gets an answer and the log a traceback.
            error_type = type(error).__qualname__
            _LOGGER.exception("request failed")
            if status is None:
                await problem_response(_unexpected(), request_id)(scope, receive, send_with_id)
        finally:
            error_type = error_type or scope["state"].get("error_type")
            duration = perf_counter() - started
            # The route's template, never the path: paths hold identities, and are without bound.
            route = getattr(scope.get("route"), "path", None)
            if self._metrics is not None:
                self._metrics.request_answered(scope["method"], route, status, duration)
            level = self._level_of(scope["path"], status)
            self._log.answered(level, _describe(scope, route, status, duration, error_type))

    def _level_of(self, path: str, status: int | None) -> str:
        if path in PROBE_PATHS:
            return "debug"
        return "warning" if status is not None and status >= 500 else self._log_level


def _incoming_request_id(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            return value.decode("ascii") if _REQUEST_ID.fullmatch(value) else None
    return None


def _describe(
    scope: Scope, route: str | None, status: int | None, duration: float, error_type: str | None
) -> dict[str, Any]:
    fields: dict[str, Any] = {"http.request.method": scope["method"], "duration_s": round(duration, 6)}
    if route is not None:
        fields["http.route"] = route
    if status is not None:
        fields["http.response.status_code"] = status
    if error_type is not None:
        fields["error.type"] = error_type
    return fields


def _unexpected() -> Problem:
    return Problem(
        500,
        "internal_error",
        "Something went wrong on our side. Report the request_id to the operator of this service.",
    )


def header_text(value: bytes | None) -> str | None:
    """A header as it is in the scope, or None for one that is not."""
    return None if value is None else value.decode("latin-1")


def answer_problem(problem: Problem, scope: Scope) -> Response:
    """The answer to a request that meets a problem; its log line will name it."""
    state = scope.setdefault("state", {})
    state["error_type"] = problem.code
    return problem_response(problem, state.get("request_id"))


async def _answer_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return answer_problem(error, request.scope)


async def _answer_unexpected(request: Request, error: Exception) -> Response:
    return problem_response(_unexpected(), request_id_of(request))


async def _answer_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = error.status_code
    if status < 200 or status in {204, 304}:
        return Response(status_code=status, headers=error.headers)
    phrase = status_phrase(status)
    detail = error.detail
    if status == 404 and detail == phrase:
        detail = "There is nothing at this path. /docs lists the routes."
    elif status == 405 and detail == phrase:
        allowed = (error.headers or {}).get("Allow", "another one")
        detail = f"This path does not take this method; it takes {allowed}."
    code = phrase.lower().replace(" ", "_").replace("-", "_")
    return problem_response(Problem(status, code, str(detail), headers=error.headers), request_id_of(request))


async def _answer_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    errors = [
        {"field": _field(one.get("loc", ())), "message": _rule(one)} for one in list(error.errors())[:100]
    ]
    sentence = "; ".join(f"`{one['field']}` {one['message']}" for one in errors[:3])
    return problem_response(
        Problem(422, "invalid_request", f"The request is not valid: {sentence}.", extra={"errors": errors}),
        request_id_of(request),
    )


def _field(location: tuple[Any, ...]) -> str:
    """The name of a parameter or body field. Body keys are input: cut, and made encodable."""
    parts = [str(part) for part in location if part not in ("query", "path", "body", "header")]
    name = ".".join(parts) or "body"
    return name[:100].encode("utf-8", "replace").decode()


_RULES: Final = {
    "missing": "is required",
    "int_parsing": "must be an integer",
    "int_type": "must be an integer",
    "int_from_float": "must be an integer",
    "bool_parsing": "must be true or false",
    "string_type": "must be a string",
    "dict_type": "must be a JSON object",
    "list_type": "must be a JSON array",
    "json_invalid": "is not valid JSON",
    "extra_forbidden": "is not known",
    "datetime_parsing": "must be an RFC 3339 timestamp with an offset, for example 2026-01-31T12:00:00Z",
    "datetime_from_date_parsing": "must be an RFC 3339 timestamp with an offset: 2026-01-31T12:00:00Z",
    "timezone_aware": "must have an offset, for example 2026-01-31T12:00:00Z",
    "uuid_parsing": "must be a UUID",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be greater than {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
    "string_too_short": "must have at least {min_length} character(s)",
    "string_too_long": "must have at most {max_length} characters",
    "literal_error": "must be {expected}",
    "enum": "must be {expected}",
    "value_error": "is refused: {error}",
}


def _rule(error: Any) -> str:
    """The rule a parameter broke, in our words: the libraries' texts can echo input."""
    rule = _RULES.get(str(error.get("type")), "is not valid")
    try:
        return rule.format_map(error.get("ctx") or {})
    except KeyError:
        return "is not valid"


def _document_problems(app: FastAPI) -> None:
    """Describe problem answers under their own media type, and the 422 of every route as ours."""
    generate = app.openapi
    described: dict[str, Any] | None = None

    def openapi() -> dict[str, Any]:
        nonlocal described
        schema = generate()
        if schema is described:
            return schema
        described = schema
        schemas = schema.setdefault("components", {}).setdefault("schemas", {})
        schemas.setdefault(
            "ProblemDocument",
            ProblemDocument.model_json_schema(ref_template="#/components/schemas/{model}"),
        )
        reference = {"$ref": "#/components/schemas/ProblemDocument"}
        for operation in _operations(schema):
            for response in operation.get("responses", {}).values():
                content = response.get("content", {})
                name = (
                    content.get("application/json", {}).get("schema", {}).get("$ref", "").rpartition("/")[2]
                )
                if name in {"ProblemDocument", "HTTPValidationError"}:
                    body = content.pop("application/json")
                    content[PROBLEM_MEDIA_TYPE] = {**body, "schema": reference}
            operation["responses"].setdefault(
                "500",
                {
                    "description": "Internal Server Error",
                    "content": {PROBLEM_MEDIA_TYPE: {"schema": reference}},
                },
            )
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        return schema

    app.openapi = openapi  # type: ignore[method-assign]


def _operations(schema: dict[str, Any]) -> list[dict[str, Any]]:
    return [operation for path in schema.get("paths", {}).values() for operation in path.values()]
