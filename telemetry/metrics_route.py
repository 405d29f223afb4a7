"""`/metrics`, of every role."""

from __future__ import annotations

from fastapi import FastAPI, Request
from starlette.responses import Response

from telemetry.metrics import Metrics


def install_metrics_route(app: FastAPI, metrics: Metrics) -> None:
    """Serve `/metrics`."""

    @app.get(
        "/metrics",
        tags=["health"],
        summary="Metrics for Prometheus",
        response_class=Response,
        responses={
            200: {
                "content": {"text/plain": {"schema": {"type": "string"}}},
                "description": "Prometheus' text format, or OpenMetrics where that is accepted",
            }
        },
    )
    async def show_metrics(request: Request) -> Response:
        content, media_type = metrics.exposition(request.headers.get("accept", ""))
        return Response(content, headers={"content-type": media_type, "cache-control": "no-store"})
