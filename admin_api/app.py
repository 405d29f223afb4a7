"""The admin API: its routes, to be part of any application, and an application of its own."""

from __future__ import annotations

import datetime as dt

from fastapi import APIRouter, FastAPI

from admin_api.dead_letter_routes import dead_letter_router
from admin_api.event_routes import event_router
from admin_api.health import AdminHealth, admin_health_router
from admin_api.log_view import LogView
from admin_api.settings import AdminSettings
from admin_api.stats_routes import stats_router
from db.queries import StoreQueries
from telemetry.api_page import install_api_page
from telemetry.http import install_problem_responses


def admin_router(queries: StoreQueries, log: LogView, settings: AdminSettings) -> APIRouter:
    """Every route of the admin API but the health probes. The application it becomes part of needs
    `telemetry.http.install_problem_responses`."""
    router = APIRouter()
    router.include_router(event_router(queries.events, export_chunk=settings.export_chunk_events))
    router.include_router(
        stats_router(
            queries.stats, log, worker_liveness=dt.timedelta(seconds=settings.worker_liveness_seconds)
        )
    )
    router.include_router(dead_letter_router(queries.dead_letters))
    return router


def create_admin_app(
    queries: StoreQueries, log: LogView, settings: AdminSettings, health: AdminHealth
) -> FastAPI:
    """The application of an admin process. Engine and log view stay the caller's to close."""
    app = FastAPI(
        title="Event aggregator: admin API",
        description="Stored events, statistics and dead letters.",
        docs_url=None,
        redoc_url=None,
    )
    app.include_router(admin_router(queries, log, settings))
    app.include_router(admin_health_router(health))
    install_api_page(app)
    install_problem_responses(app)
    return app
