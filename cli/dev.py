"""`aggregator dev`: gateway, worker and admin API in one process, on SQLite.

The gateway needs neither store nor worker, so it answers first: everything about the database is imported and
opened while it already listens. A request for the admin API that comes earlier waits for that.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import typer
from starlette.types import ASGIApp, Receive, Scope, Send

from access.keyring import Keyring
from access.middleware import guard
from broker.local import LOCAL_TOPIC, LocalLog
from cli.access import keyring_for
from cli.data_directory import locked
from cli.http_server import bind, serve
from cli.imports import quick_imports
from cli.process import once_available, run_process
from cli.settings import Settings, settings_or_exit
from cli.tracing import tracing
from ingest_api.app import create_gateway_app
from ingest_api.gateway import Gateway
from ingest_api.metrics import GatewayMetrics
from ingest_api.permit import Permits
from telemetry.metrics import Metrics
from telemetry.problem import Problem, problem_response
from telemetry.tracing import Tracing

if TYPE_CHECKING:
    from cli.embedded_store import EmbeddedStore


def run_dev(host: str, port: int, data_dir: Path, *, ephemeral: bool) -> None:
    """Run the embedded aggregator until a signal."""
    settings = settings_or_exit()

    async def main(stop: asyncio.Event) -> None:
        keyring = keyring_for(settings.keys, host)
        with _directory(data_dir, ephemeral) as directory, locked(directory):
            async with tracing("aggregator-dev", LOCAL_TOPIC) as tracer:
                await _Embedded(settings, directory, tracer, keyring, ephemeral).run(host, port, stop)

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

    def __init__(
        self, settings: Settings, directory: Path, tracer: Tracing, keyring: Keyring | None, ephemeral: bool
    ) -> None:
        self._settings = settings
        self._tracer = tracer
        self._directory = directory
        self._keyring = keyring
        self._ephemeral = ephemeral
        self._log = LocalLog(directory / "log.db", settings.local_log, topic=LOCAL_TOPIC)
        self._metrics = Metrics(settings.telemetry)
        self._gateway = Gateway(
            self._log.producer(),
            settings.ingest,
            metrics=GatewayMetrics(self._metrics),
            tracing=tracer,
            permits=Permits(keyring),
        )

    async def run(self, host: str, port: int, stop: asyncio.Event) -> None:
        """Serve and work until `stop`, then drain: requests first, then the worker's batch."""
        listener = bind(host, port)
        address = f"http://{host}:{listener.getsockname()[1]}"
        await self._log.start()
        await self._gateway.start()
        opened: asyncio.Future[ASGIApp] = asyncio.get_running_loop().create_future()
        listening, worker_stop = asyncio.Event(), asyncio.Event()
        working = asyncio.create_task(self._work(listening, opened, worker_stop), name="store and worker")

        gateway_app = create_gateway_app(self._gateway, log_level="debug")
        guard(gateway_app, self._keyring)

        def on_listening() -> None:
            typer.echo(self._greeting(address))
            listening.set()

        # If the worker dies, so does the process: a gateway that fills a log nobody reads is no service.
        working.add_done_callback(lambda _: stop.set())
        try:
            await serve(
                _GatewayFirst(gateway_app, opened),
                listener,
                stop,
                on_listening=on_listening,
                on_stopping=self._say_stopping,
                grace_seconds=self._settings.ingest.shutdown_grace_seconds,
            )
        finally:
            await self._gateway.stop()
            listening.set()
            worker_stop.set()
            await asyncio.wait({working})
            await self._log.stop()
        working.result()
        typer.echo(self._farewell())

    async def _work(
        self, listening: asyncio.Event, opened: asyncio.Future[ASGIApp], stop: asyncio.Event
    ) -> None:
        await listening.wait()
        try:
            # A full disk, say, is waited for, as it would be later: what is published waits in the log.
            store = await once_available(self._started_store, stop)
            if store is None:
                opened.cancel()
                return
            app = store.app(self._gateway)
            guard(app, self._keyring)
            opened.set_result(app)
        except BaseException:
            opened.cancel()
            raise
        try:
            async with store.metrics():
                await store.worker.work_until(stop)
        finally:
            await store.close()

    async def _started_store(self) -> EmbeddedStore:
        store = await asyncio.to_thread(self._open_store)
        try:
            await store.office.start()
        except BaseException:
            await store.close()
            raise
        return store

    def _open_store(self) -> EmbeddedStore:
        with quick_imports():
            from cli.embedded_store import EmbeddedStore
        return EmbeddedStore(
            self._directory / "store.db", self._log, self._settings, self._metrics, self._tracer
        )

    def _greeting(self, address: str) -> str:
        kept = (
            "discarded at the end (--ephemeral)"
            if self._ephemeral
            else "kept when this ends; --ephemeral would discard it"
        )
        key = "" if self._keyring is None else "-H 'authorization: Bearer YOUR-INGEST-KEY' "
        return f"""
Event aggregator, embedded: gateway, worker and admin API in this process.

  publish   POST {address}/publish
  read      {address}/events   {address}/stats
  API       {address}/docs
  data      {self._directory}
            {kept}

Paste this into another terminal:

  curl {address}/publish {key}-H 'content-type: application/json' -d '{{"topic": "orders", "event_id": "1", \
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


class _GatewayFirst:
    """The gateway's routes alone, until the application with all routes is there."""

    def __init__(self, gateway_app: ASGIApp, opened: asyncio.Future[ASGIApp]) -> None:
        self._gateway_app = gateway_app
        self._opened = opened

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_request = scope["type"] == "http"
        if not is_request or (not self._opened.done() and scope["path"] in _ANSWERED_FIRST):
            await self._gateway_app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(_OPENING_S):
                app = await asyncio.shield(self._opened)
        except TimeoutError:
            app = problem_response(_NOT_OPEN, None)
        await app(scope, receive, send)


_OPENING_S: Final = 10.0
"""Seconds a request waits for the store to be opened; without trouble a fraction of one is enough."""
_NOT_OPEN: Final = Problem(
    503,
    "database_unavailable",
    "The store is not open yet; what is in its way is in the log of this process. Events can be published"
    " meanwhile.",
    retry_after=5,
)
_ANSWERED_FIRST = frozenset({"/publish", "/livez", "/healthz", "/readyz", "/metrics"})
