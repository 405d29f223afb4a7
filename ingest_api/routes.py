"""The gateway's HTTP routes."""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import APIRouter, FastAPI, Request
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ingest_api.body import read_body
from ingest_api.gateway import Accepted, Gateway
from ingest_api.publish_openapi import publish_operation
from ingest_api.refusal import CLOSES_CONNECTION, STATUS, Reason, Refused, Rejected
from telemetry.http import Problem
from telemetry.tracing import TraceContext


class _DirectRoute(APIRoute):
    """A route whose endpoint takes the request and returns the response, with nothing in between.

    FastAPI's dependencies and validation have nothing to do here, and would take most of a request's time.
    The route is documented like any other.
    """

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.methods is None or scope["method"] not in self.methods:
            await super().handle(scope, receive, send)
            return
        response = await self.endpoint(Request(scope, receive, send))
        await response(scope, receive, send)


def install_publish_route(app: FastAPI, gateway: Gateway) -> None:
    """`POST /publish`, before all others: a request would be looked up twice in a router that is included."""
    router = APIRouter(tags=["publish"], route_class=_DirectRoute)

    @router.post("/publish", summary="Publish events", **publish_operation(gateway.settings))
    async def publish(request: Request) -> Response:
        try:
            gateway.require_ready()
            headers = request.headers
            permit = gateway.permits.of(headers.get("authorization"))
            with gateway.in_flight.request() as reservation:
                body = await read_body(request.receive, headers, reservation, gateway.settings)
                answer = await gateway.publish(body, permit=permit, trace=_trace_context(headers))
        except Refused as refused:
            gateway.metrics.refused(refused.reason)
            raise _problem(refused, gateway.settings.retry_after_seconds) from refused.__cause__
        response = _answer(answer)
        if gateway.is_leaving:
            response.headers["connection"] = "close"
        return response

    app.router.routes[:0] = router.routes


def _trace_context(headers: Headers) -> TraceContext | None:
    traceparent = headers.get("traceparent")
    if traceparent is None:
        return None
    # Unlike the first, the second may be split over several lines.
    tracestate = ",".join(headers.getlist("tracestate"))
    return TraceContext.of(traceparent.encode("latin-1"), tracestate.encode("latin-1") or None)


def _answer(answer: Accepted) -> Response:
    count, rejected = answer.accepted, answer.rejected
    if not rejected.count:
        content = b'{"accepted":%d,"queued":%d,"rejected":0,"errors":null}' % (count, count)
        return Response(content, media_type="application/json")
    document = {"accepted": count, "queued": count, **_rejected(rejected)}
    return Response(orjson.dumps(document), status_code=207, media_type="application/json")


def _rejected(rejected: Rejected) -> dict[str, Any]:
    members: dict[str, Any] = {
        "rejected": rejected.count,
        "errors": [
            {"index": e.index, "event_id": e.event_id, "code": e.code, "message": e.message}
            for e in rejected.errors
        ],
    }
    if rejected.omitted:
        members["errors_omitted"] = rejected.omitted
    return members


def _problem(refused: Refused, retry_after: float) -> Problem:
    status = STATUS[refused.reason]
    wait = retry_after if status == 503 else refused.retry_after
    return Problem(
        status,
        refused.reason.value,
        refused.message,
        retry_after=wait,
        headers=_headers(refused.reason, status),
        extra=_rejected(refused.rejected) if refused.rejected is not None else None,
    )


def _headers(reason: Reason, status: int) -> dict[str, str] | None:
    if status == 401:
        return {"www-authenticate": "Bearer"}
    return {"connection": "close"} if reason in CLOSES_CONNECTION else None
