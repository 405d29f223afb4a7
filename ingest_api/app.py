"""The gateway as an application of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from fastapi import FastAPI

from access.openapi import document_keys
from ingest_api.gateway import Gateway
from ingest_api.routes import install_publish_route
from telemetry.api_page import install_api_page
from telemetry.application import Application
from telemetry.health import health_router
from telemetry.http import install_problem_responses

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def create_gateway_app(
    gateway: Gateway, lifespan: Lifespan | None = None, *, log_level: str = "info"
) -> FastAPI:
    """`/publish`, the probes, `/metrics`, `/docs` and `/openapi.json`.

    Args:
        log_level: of the line for a request that was answered with a status below 500.
        lifespan: what surrounds the life of the application; by default `gateway_lifespan`.
    """
    app = Application(
        title="Event aggregator: gateway",
        description="Takes events and answers once they are durable.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan or gateway_lifespan(gateway),
    )
    install_publish_route(app, gateway)
    app.include_router(health_router(gateway.readiness))
    install_api_page(app)
    install_problem_responses(app, log_level=log_level, metrics=gateway.metrics.process)
    document_keys(app)
    return app


def gateway_lifespan(gateway: Gateway) -> Lifespan:
    """Starts the gateway before the first request, and stops it after the last."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await gateway.start()
        try:
            yield
        finally:
            await gateway.stop()

    return lifespan
