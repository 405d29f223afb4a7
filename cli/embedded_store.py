"""What the embedded mode needs a database for: the store, the worker, and the application with all routes."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path

from fastapi import FastAPI

from access.openapi import document_keys
from admin_api.app import admin_router
from admin_api.dead_letter_office import DeadLetterOffice
from admin_api.log_view import LogView
from broker.local import LocalLog
from cli.settings import Settings
from cli.store_metrics import store_metrics
from cli.worker_process import WorkerProcess
from db import migrations
from db.engine import open_engine
from db.queries import StoreQueries
from db.settings import DatabaseSettings
from ingest_api.gateway import Gateway
from ingest_api.routes import install_publish_route
from telemetry.api_page import install_api_page
from telemetry.application import Application
from telemetry.health import health_router
from telemetry.http import install_problem_responses
from telemetry.metrics import Metrics
from telemetry.tracing import Tracing


class EmbeddedStore:
    """An open SQLite store with its worker. Opening brings the schema up to date.

    Raises:
        StoreError: the file cannot be used, or is of a newer version.
    """

    def __init__(
        self, path: Path, log: LocalLog, settings: Settings, metrics: Metrics, tracer: Tracing
    ) -> None:
        self._log = log
        self._metrics = metrics
        self._settings = settings
        database = DatabaseSettings.sqlite(path)
        self._writer = open_engine(database, application_name="aggregator dev")
        self._reader = open_engine(database, application_name="aggregator dev", read_only=True)
        try:
            if migrations.current(self._writer) != migrations.head():
                migrations.upgrade(self._writer)
        except BaseException:
            self._reader.dispose()
            self._writer.dispose()
            raise
        self.worker = WorkerProcess(
            log,
            self._writer,
            settings.worker,
            settings.retention,
            metrics=metrics,
            tracing=tracer,
            housekeeping=[log.trim],
        )
        admin = settings.admin
        self._view = LogView(log.admin(), log.topic, timeout=admin.log_timeout_seconds)
        self._queries = StoreQueries.of(
            self._reader, log.topic, timeout=admin.query_timeout_seconds, max_page_bytes=admin.max_page_bytes
        )
        # On the worker's engine: of an SQLite file there is one writer.
        self.office = DeadLetterOffice(
            self._writer,
            log.producer(),
            self._queries,
            self._view,
            publish_timeout=admin.publish_timeout_seconds,
            is_alone=True,
        )

    def app(self, gateway: Gateway) -> FastAPI:
        """The routes of gateway and admin API as one application."""
        app = Application(
            title="Event aggregator",
            description="Takes events, answers once they are durable, stores each exactly once, shows them.",
            docs_url=None,
            redoc_url=None,
        )
        install_publish_route(app, gateway)
        app.include_router(admin_router(self._queries, self._view, self._settings.admin, self.office))
        app.include_router(health_router(gateway.readiness, lambda: self.worker.is_alive))
        install_api_page(app)
        # On a developer's screen one line per batch says it all; failures are still told.
        install_problem_responses(app, log_level="debug", metrics=self._metrics)
        document_keys(app)
        return app

    def metrics(self) -> AbstractAsyncContextManager[None]:
        """Measure the store while the block runs."""
        return store_metrics(self._metrics, self._reader, self._writer)

    async def close(self) -> None:
        """Close everything that was opened here; the worker has to have stopped."""
        await self.office.stop()
        await self._view.close()
        self._reader.dispose()
        self._writer.dispose()
