"""The probes every role answers: alive (the process) and ready (to be sent work)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from inspect import isawaitable
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Query
from pydantic import BaseModel, Field
from starlette.responses import Response


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether work should be sent here.

    Attributes:
        ready: started and not draining.
        status: one word for people: `ready`, `starting`, `draining`, ...
        dependencies: name to what is known about it; shown with `?verbose`.
    """

    ready: bool
    status: str
    dependencies: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


class Alive(BaseModel):
    """The process runs and does its work."""

    status: str = Field("ok", description="`ok`, or `stuck`.", examples=["ok"])


class ReadinessDocument(BaseModel):
    """Whether work should be sent here, and what is known about the dependencies."""

    status: str = Field(description="`ready`, `not ready`, `starting` or `draining`.", examples=["ready"])
    dependencies: dict[str, dict[str, Any]] | None = Field(
        None, description="Per dependency, with `?verbose`.", examples=[{"log": {"status": "ok"}}]
    )


def health_router(
    readiness: Callable[[], Readiness | Awaitable[Readiness]], is_alive: Callable[[], bool] = lambda: True
) -> APIRouter:
    """`/livez` and `/healthz` (the process only), `/readyz` (200 or 503; `?verbose` adds dependencies).

    Args:
        readiness: asked at every `/readyz`; answers from what is known, or waits for a bounded time only.
        is_alive: asked at every `/livez`; False makes it 503, which asks the supervisor for a restart.
    """
    router = APIRouter(tags=["health"])

    stuck: dict[int | str, dict[str, Any]] = {503: {"model": Alive, "description": "Stuck: restart it"}}

    @router.get("/livez", summary="Is the process alive?", response_model=Alive, responses=stuck)
    @router.get(
        "/healthz", summary="Is the process alive? (same as /livez)", response_model=Alive, responses=stuck
    )
    async def alive() -> Response:
        if is_alive():
            return Response(b'{"status":"ok"}', media_type="application/json")
        return Response(b'{"status":"stuck"}', status_code=503, media_type="application/json")

    @router.get(
        "/readyz",
        summary="Should work be sent here?",
        response_model=ReadinessDocument,
        response_model_exclude_none=True,
        responses={503: {"model": ReadinessDocument, "description": "Starting or draining"}},
    )
    async def ready(
        verbose: Annotated[str | None, Query(description="Show dependencies; any value.")] = None,
    ) -> Response:
        asked = readiness()
        answer = await asked if isawaitable(asked) else asked
        document: dict[str, Any] = {"status": answer.status}
        if verbose is not None:
            document["dependencies"] = answer.dependencies
        return Response(
            orjson.dumps(document),
            status_code=200 if answer.ready else 503,
            media_type="application/json",
            headers={"cache-control": "no-store"},
        )

    return router
