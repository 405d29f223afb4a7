"""`aggregator dev`: gateway, worker and admin API in one process, on SQLite."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import typer
from fastapi import FastAPI

from admin_api.app import admin_router
from admin_api.log_view import LogView
from admin_api.settings import AdminSettings
from broker.local import LocalLog
from cli.data_directory import locked
from cli.http_server import bind, serve
from cli.process import run_process
from cli.settings import Settings, settings_or_exit
from cli.worker_process import WorkerProcess
from db import migrations
from db.engine import open_engine
from db.queries import StoreQueries
from db.settings import DatabaseSettings
from ingest_api.gateway import Gateway
from ingest_api.routes import publish_router
from telemetry.api_page import install_api_page
from telemetry.health import health_router
from telemetry.http import install_problem_responses


def run_dev(host: str, port: int, data_dir: Path, *, ephemeral: bool) -> None:
    """Run the embedded aggregator until a signal."""
    settings = settings_or_exit()

    async def main(stop: asyncio.Event) -> None:
        with _directory(data_dir, ephemeral) as directory, locked(directory):
            await _Embedded(settings, directory, ephemeral).run(host, port, stop)

    run_process("aggregator-dev", settings.log, main)


@contextlib.contextmanager
def _directory(data_dir: Path, ephemeral: bool) -> Iterator[Path]:
    if not ephemeral:
        yield data_dir.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="aggregator-") as directory:
        yield Path(directory)


class _Embedded:
    """All roles on one data directory."""

    def __init__(self, settings: Settings, directory: Path, ephemeral: bool) -> None:
        self._settings = settings
        self._directory = directory
        self._ephemeral = ephemeral
        self._log = LocalLog(directory / "log.db", settings.local_log)
        store = DatabaseSettings.model_validate({"url": f"sqlite:///{directory / 'store.db'}"})
        self._writer = open_engine(store, application_name="aggregator dev")
        self._reader = open_engine(store, application_name="aggregator dev", read_only=True)
        self._gateway = Gateway(self._log.producer(), settings.ingest)
        self._worker = WorkerProcess(self._log, self._writer, settings.worker, housekeeping=[self._log.trim])
        self._view = LogView(self._log.admin(), self._log.topic, timeout=settings.admin.log_timeout_seconds)

    async def run(self, host: str, port: int, stop: asyncio.Event) -> None:
        """Serve and work until `stop`, then drain: requests first, then the worker's batch."""
        listener = bind(host, port)
        address = f"http://{host}:{listener.getsockname()[1]}"
        if migrations.current(self._writer) != migrations.head():
            migrations.upgrade(self._writer)
        await self._log.start()
        await self._gateway.start()
        worker_stop = asyncio.Event()
        worker = asyncio.create_task(self._worker.work_until(worker_stop), name="worker")
        # If the worker dies, so does the process: a gateway that fills a log nobody reads is no service.
        worker.add_done_callback(lambda _: stop.set())
        try:
            await serve(
                self._app(),
                listener,
                stop,
                on_listening=lambda: typer.echo(self._greeting(address)),
                on_stopping=self._say_stopping,
                grace_seconds=self._settings.ingest.shutdown_grace_seconds,
            )
        finally:
            await self._gateway.stop()
            worker_stop.set()
            await asyncio.wait({worker})
            await self._view.close()
            await self._log.stop()
            self._reader.dispose()
            self._writer.dispose()
        worker.result()
        typer.echo(self._farewell())

    def _app(self) -> FastAPI:
        queries = StoreQueries.of(
            self._reader,
            self._log.topic,
            timeout=self._settings.admin.query_timeout_seconds,
            max_page_bytes=self._settings.admin.max_page_bytes,
        )
        return embedded_app(
            self._gateway, queries, self._view, self._settings.admin, lambda: self._worker.is_alive
        )

    def _greeting(self, address: str) -> str:
        kept = (
            "discarded at the end (--ephemeral)"
            if self._ephemeral
            else "kept when this ends; --ephemeral would discard it"
        )
        return f"""
Event aggregator, embedded: gateway, worker and admin API in this process.

  publish   POST {address}/publish
  read      {address}/events   {address}/stats
  API       {address}/docs
  data      {self._directory}
            {kept}

Paste this into another terminal:

  curl {address}/publish -H 'content-type: application/json' -d '{{"topic": "orders", "event_id": "1", \
"timestamp": "2026-01-31T12:00:00Z", "source": "shop", "payload": {{"total": 7}}}}'

Ctrl-C stops it.
"""

    def _say_stopping(self) -> None:
        self._gateway.begin_drain()
        in_flight = self._gateway.in_flight.requests
        typer.echo(f"Stopping: {in_flight} request{'' if in_flight == 1 else 's'} in flight.")

    def _farewell(self) -> str:
        if self._ephemeral:
            return "Stopped. The data was discarded."
        return f"Stopped. The data is in {self._directory}; the next start goes on from there."


def embedded_app(
    gateway: Gateway,
    queries: StoreQueries,
    view: LogView,
    settings: AdminSettings,
    is_alive: Callable[[], bool],
) -> FastAPI:
    """The routes of gateway and admin API as one application."""
    app = FastAPI(
        title="Event aggregator",
        description="Takes events, answers once they are durable, stores each exactly once, and shows them.",
        docs_url=None,
        redoc_url=None,
    )
    app.include_router(publish_router(gateway))
    app.include_router(admin_router(queries, view, settings))
    app.include_router(health_router(gateway.readiness, is_alive))
    install_api_page(app)
    # On a developer's screen one line per batch says it all; failures are still told.
    install_problem_responses(app, log_level="debug")
    return app
