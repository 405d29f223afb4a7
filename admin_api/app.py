"""The admin API: its routes, to be part of any application, and an application of its own."""

from __future__ import annotations

import datetime as dt

from fastapi import APIRouter, FastAPI

from access.openapi import document_keys
from admin_api.actor import ActorOf, actor_of
from admin_api.audit_routes import audit_router
from admin_api.dead_letter_office import DeadLetterOffice
from admin_api.dead_letter_routes import dead_letter_router, replay_router
from admin_api.event_routes import event_router
from admin_api.health import AdminHealth, admin_health_router
from admin_api.log_view import LogView
from admin_api.operation_routes import operation_router
from admin_api.settings import AdminSettings
from admin_api.stats_routes import stats_router
from db.queries import StoreQueries
from telemetry.api_page import install_api_page
from telemetry.application import Application
from telemetry.http import install_problem_responses
from telemetry.metrics import Metrics


def admin_router(
    queries: StoreQueries,
    log: LogView,
    settings: AdminSettings,
    office: DeadLetterOffice,
    actor_of: ActorOf = actor_of,
) -> APIRouter:
    """Every route of the admin API but the health probes. The application it becomes part of needs
    `telemetry.http.install_problem_responses`.

    Args:
        actor_of: names who asks, for the audit log.
    """
    router = APIRouter()
    router.include_router(
        event_router(queries.events, queries.stats, log, export_chunk=settings.export_chunk_events)
    )
    router.include_router(
        stats_router(
            queries.stats, log, worker_liveness=dt.timedelta(seconds=settings.worker_liveness_seconds)
        )
    )
    router.include_router(operation_router(queries.operations, office, actor_of))
    router.include_router(replay_router(office, actor_of))
    router.include_router(dead_letter_router(queries.dead_letters))
    router.include_router(audit_router(queries.audit))
    return router


def create_admin_app(
    queries: StoreQueries,
    log: LogView,
    settings: AdminSettings,
    health: AdminHealth,
    office: DeadLetterOffice,
    metrics: Metrics | None = None,
) -> FastAPI:
    """The application of an admin process. Engine, log view and office stay the caller's to close.

    Args:
        metrics: of the process.
    """
    app = Application(
        title="Event aggregator: admin API",
        description="Stored events, statistics, and dead letters with what to do about them.",
        docs_url=None,
        redoc_url=None,
    )
    app.include_router(admin_router(queries, log, settings, office))
    app.include_router(admin_health_router(health))
    install_api_page(app)
    install_problem_responses(app, metrics=metrics or Metrics())
    document_keys(app)
    return app
