"""The probes and the metrics of the worker role, on a small port of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from cli.http_server import bind, serve
from cli.worker_process import WorkerProcess
from stream_worker.settings import WorkerSettings
from telemetry.application import Application
from telemetry.health import Readiness, health_router
from telemetry.http import install_problem_responses

_log = structlog.get_logger("process")


class WorkerHealth:
    """Ready from the time the worker has its dependencies until it is told to stop."""

    def __init__(self) -> None:
        self._status = "starting"

    def begin_work(self) -> None:
        self._status = "ready"

    def begin_drain(self) -> None:
        self._status = "draining"

    def readiness(self) -> Readiness:
        return Readiness(self._status == "ready", self._status)


@asynccontextmanager
async def serve_health(settings: WorkerSettings, worker: WorkerProcess) -> AsyncIterator[WorkerHealth]:
    """Answer `/livez`, `/readyz` and `/metrics` while the block runs.

    Raises:
        StartFailure: the port is taken.
    """
    health = WorkerHealth()
    app = Application(title="Event aggregator: worker", docs_url=None, redoc_url=None)
    app.include_router(health_router(health.readiness, lambda: worker.is_alive))
    install_problem_responses(app, metrics=worker.metrics)
    listener = bind(settings.host, settings.port)
    stop = asyncio.Event()
    server = asyncio.create_task(
        serve(
            app,
            listener,
            stop,
            on_listening=lambda: _log.info("listening", host=settings.host, port=listener.getsockname()[1]),
            on_stopping=health.begin_drain,
            grace_seconds=1.0,
        ),
        name="worker health",
    )
    try:
        yield health
    finally:
        stop.set()
        await server
