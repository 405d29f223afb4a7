"""The gateway's HTTP routes."""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import APIRouter, FastAPI, Request
from starlette.datastructures import Headers
from starlette.responses import Response

from ingest_api.body import read_body
from ingest_api.gateway import Accepted, Gateway
from ingest_api.publish_openapi import publish_operation
from ingest_api.refusal import CLOSES_CONNECTION, STATUS, Reason, Refused, Rejected
from telemetry.application import DirectRoute
from telemetry.http import answer_problem, header_text
from telemetry.problem import Problem
from telemetry.tracing import TraceContext


def install_publish_route(app: FastAPI, gateway: Gateway) -> None:
    """`POST /publish`, before all others: a request would be looked up twice in a router that is included."""
    router = APIRouter(tags=["publish"], route_class=DirectRoute)

    @router.post("/publish", summary="Publish events", **publish_operation(gateway.settings))
    async def publish(request: Request) -> Response:
        headers = dict(request.scope["headers"])
        try:
            gateway.require_ready()
            permit = gateway.permits.of(header_text(headers.get(b"authorization")))
            with gateway.in_flight.request() as reservation:
                body = await read_body(request.receive, headers, reservation, gateway.settings)
                trace = _trace_context(request.headers) if b"traceparent" in headers else None
                answer = await gateway.publish(body, permit=permit, trace=trace)
        except Refused as refused:
            gateway.metrics.refused(refused.reason)
            return answer_problem(_problem(refused, gateway.settings.retry_after_seconds), request.scope)
        response = _answer(answer)
        if gateway.is_leaving:
            response.headers["connection"] = "close"
        return response

    app.router.routes[:0] = router.routes


def _trace_context(headers: Headers) -> TraceContext | None:
    # Unlike the first, the second may be split over several lines.
    tracestate = ",".join(headers.getlist("tracestate"))
    return TraceContext.of(headers["traceparent"].encode("latin-1"), tracestate.encode("latin-1") or None)


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
