"""Errors towards HTTP callers: RFC 9457 problem documents.

Every error answer of every role has this one shape. `code` is what programs branch on, `detail` is the
sentence for people, `retryable` says whether the same request can succeed later.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from math import ceil
from typing import Any, Final

import orjson
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

PROBLEM_MEDIA_TYPE: Final = "application/problem+json"

_RETRYABLE: Final = frozenset({408, 429, 502, 503, 504})


class Problem(Exception):
    """An error answer; raise it anywhere below a route, or render it with `problem_response`.

    Args:
        status: the HTTP status code.
        code: stable, lower_snake_case; what programs branch on.
        detail: a sentence that says what happened and what to do. Never echoes raw input.
        retryable: whether the same request can succeed later; by default decided by the status.
        retry_after: seconds; sent as `Retry-After`, rounded up to whole seconds, at least 1.
        headers: further response headers.
        extra: further members of the document, such as `errors`.
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        retryable: bool | None = None,
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.retryable = status in _RETRYABLE if retryable is None else retryable
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["retry-after"] = str(max(1, ceil(retry_after)))
        self.extra = dict(extra or {})


class ProblemDocument(BaseModel):
    """An error, as an RFC 9457 problem document (`application/problem+json`)."""

    model_config = ConfigDict(extra="allow")

    type: str = Field("about:blank", description="Always `about:blank`; `code` tells problems apart.")
    title: str = Field(description="The HTTP status in words.")
    status: int = Field(description="The HTTP status code.")
    detail: str = Field(description="What happened and what to do, for people.")
    code: str = Field(description="What happened, for programs; stable.")
    retryable: bool = Field(description="Whether the same request can succeed later.")
    request_id: str | None = Field(description="The request's id, as in the X-Request-Id header and the log.")


def problem_document(problem: Problem, request_id: str | None) -> dict[str, Any]:
    """The members of the problem document."""
    return {
        "type": "about:blank",
        "title": status_phrase(problem.status),
        "status": problem.status,
        "detail": problem.detail,
        "code": problem.code,
        "retryable": problem.retryable,
        "request_id": request_id,
        **problem.extra,
    }


def problem_response(problem: Problem, request_id: str | None) -> Response:
    """The answer that carries a problem."""
    return Response(
        orjson.dumps(problem_document(problem, request_id)),
        status_code=problem.status,
        headers=problem.headers,
        media_type=PROBLEM_MEDIA_TYPE,
    )


def status_phrase(status: int) -> str:
    """The HTTP status in words."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses=` argument of a route that can answer with these problems.

    `telemetry.http.install_problem_responses` turns the media type into `application/problem+json`.
    """
    return {status: {"model": ProblemDocument, "description": status_phrase(status)} for status in statuses}
