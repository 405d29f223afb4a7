"""A local log, a worker, a store and the admin API, joined as in a deployment, in the loop of the test."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import Engine

from admin_api.app import create_admin_app
from admin_api.dead_letter_office import DeadLetterOffice
from admin_api.health import AdminHealth
from admin_api.log_view import LogView
from admin_api.settings import AdminSettings
from broker.local import LocalLog
from broker.ports import Headers, NewRecord
from broker.settings import LocalLogSettings
from cli.worker_process import WorkerProcess
from db.queries import StoreQueries
from db.settings import RetentionSettings
from stream_worker.settings import WorkerSettings
from tests.support.admin_client import admin_queries
from tests.support.faulty_log import FailingLog
from tests.support.http_server import running_server
from tests.support.processes import eventually

Counts = tuple[int, int, int, int, int]


def event(event_id: str, **changes: Any) -> bytes:
    document = {
        "topic": "orders",
        "event_id": event_id,
        "timestamp": "2026-01-31T12:00:00Z",
        "source": "shop",
        "payload": {"n": 1},
        **changes,
    }
    return json.dumps(document).encode()


class ReplayStage:
    """What is running, and how to use it.

    Attributes:
        client: for the admin API, over HTTP.
        log: publishes of the admin API fail when it is told so.
    """

    def __init__(self, log: LocalLog, writer: Engine, queries: StoreQueries) -> None:
        self.log = FailingLog(log)
        self.queries = queries
        self.client: httpx.AsyncClient
        self._writer = writer
        self._appender = log.producer()
        self._view = LogView(log.admin(), log.topic, timeout=2)

    @contextlib.asynccontextmanager
    async def admin(self, **settings: Any) -> AsyncIterator[None]:
        """An admin process; `client` speaks to it while the block runs."""
        admin_settings = AdminSettings(**settings)
        office = DeadLetterOffice(
            self._writer,
            self.log.producer(),
            self.queries,
            self._view,
            publish_timeout=admin_settings.publish_timeout_seconds,
            is_alone=True,
        )
        health = AdminHealth(self.queries.stats, self._view)
        app = create_admin_app(self.queries, self._view, admin_settings, health, office)
        await office.start()
        async with running_server(app) as server, httpx.AsyncClient(base_url=server.url) as client:
            self.client = client
            yield
        await office.stop()

    async def start(self) -> None:
        await self._appender.start()

    async def append(self, *values: bytes, key: bytes = b"k", headers: Headers = ()) -> None:
        """Write records into the log, as a direct producer does."""
        await self._appender.publish([NewRecord(key, value, headers) for value in values], timeout=10)

    async def settled(self, received: int) -> Counts:
        """The counters, once so many records have their verdict."""

        async def done() -> Counts | None:
            counts = (await self.stats()).counts
            assert counts.received <= received
            figures = (
                counts.received,
                counts.stored,
                counts.duplicate,
                counts.conflict,
                counts.dead_lettered,
            )
            return figures if counts.received == received else None

        return await eventually(done, 20, f"{received} verdicts")

    async def stats(self) -> Any:
        return await asyncio.to_thread(self.queries.stats.summary, worker_liveness=dt.timedelta(minutes=1))

    async def get(self, path: str) -> Any:
        return (await self.client.get(path)).raise_for_status().json()

    async def post(self, path: str, body: Any = None, **headers: str) -> httpx.Response:
        return await self.client.post(path, json=body, headers=headers, timeout=30)

    async def letters(self, query: str = "") -> list[dict[str, Any]]:
        """Dead letters, the oldest first."""
        found: list[dict[str, Any]] = (await self.get(f"/dead-letters?limit=1000{query}"))["dead_letters"]
        return found[::-1]

    async def finished(self, operation_id: int) -> dict[str, Any]:
        """A bulk operation once it has ended."""

        async def ended() -> dict[str, Any] | None:
            found: dict[str, Any] = await self.get(f"/dead-letters/operations/{operation_id}")
            return found if found["finished_at"] is not None else None

        return await eventually(ended, 30, f"operation {operation_id} to end")


@contextlib.asynccontextmanager
async def replay_stage(directory: Path, writer: Engine, reader: Engine) -> AsyncIterator[ReplayStage]:
    """Log and worker; admin processes are started by the test."""
    log = LocalLog(directory / "log.db", LocalLogSettings(partitions=2), topic="events")
    await log.start()
    stop = asyncio.Event()
    worker = WorkerProcess(log, writer, WorkerSettings(poll_timeout_seconds=0.05), RetentionSettings())
    working = asyncio.create_task(worker.work_until(stop))
    try:
        stage = ReplayStage(log, writer, admin_queries(reader))
        await stage.start()
        yield stage
    finally:
        stop.set()
        await working
        await log.stop()
