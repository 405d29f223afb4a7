"""The admin API over a test's store, and a log that is what the test says."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import httpx
from fastapi import FastAPI
from sqlalchemy import Engine

from admin_api.app import create_admin_app
from admin_api.dead_letter_office import DeadLetterOffice
from admin_api.health import AdminHealth
from admin_api.log_view import LogView
from admin_api.settings import AdminSettings
from broker.errors import BrokerError
from broker.ports import LogDescription, PartitionOffsets, Producer
from db.queries import StoreQueries
from tests.support.producer import MemoryProducer
from tests.support.store_filler import open_store


class ScriptedLog:
    """A LogAdmin that answers with `offsets`, fails with `error`, or, while `stuck`, does not answer."""

    def __init__(self, offsets: dict[int, tuple[int, int]] | None = None) -> None:
        self.held = offsets or {}
        self.error: BrokerError | None = None
        self.answering = asyncio.Event()
        self.answering.set()
        self.starts = 0
        self.asked = asyncio.Event()

    async def start(self) -> None:
        await self._answer()
        self.starts += 1

    async def stop(self) -> None:
        """Nothing to close."""

    async def describe(self) -> LogDescription:
        raise NotImplementedError

    async def create(self, partitions: int, replication_factor: int) -> bool:
        raise NotImplementedError

    async def offsets(self) -> dict[int, PartitionOffsets]:
        await self._answer()
        return {number: PartitionOffsets(number, *bounds) for number, bounds in self.held.items()}

    async def _answer(self) -> None:
        self.asked.set()
        await self.answering.wait()
        if self.error is not None:
            raise self.error


class Admin:
    """An admin application, a client for it, and its log."""

    def __init__(
        self,
        app: FastAPI,
        client: httpx.AsyncClient,
        log: ScriptedLog,
        health: AdminHealth,
        office: DeadLetterOffice,
    ) -> None:
        self.app = app
        self.client = client
        self.log = log
        self.health = health
        self.office = office

    async def get(self, url: str) -> httpx.Response:
        return await self.client.get(url)


def admin_queries(engine: Engine, *, timeout: float = 10, max_page_bytes: int = 10**9) -> StoreQueries:
    """Queries over the log topic `events`."""
    return StoreQueries.of(engine, "events", timeout=timeout, max_page_bytes=max_page_bytes)


@contextlib.asynccontextmanager
async def admin_over(
    queries: StoreQueries,
    settings: AdminSettings | None = None,
    *,
    writer: Engine | None = None,
    producer: Producer | None = None,
) -> AsyncIterator[Admin]:
    """The application over these queries, for as long as the block runs.

    Args:
        writer: what the operators' actions are written with; without one, there are none.
        producer: where dead letters are replayed to; by default into memory.
    """
    settings = settings or AdminSettings()
    log = ScriptedLog()
    view = LogView(log, "events", timeout=settings.log_timeout_seconds)
    health = AdminHealth(queries.stats, view)
    nowhere = open_store("sqlite:///never-opened.db")
    office = DeadLetterOffice(
        writer or nowhere,
        producer or MemoryProducer(),
        queries,
        view,
        publish_timeout=settings.publish_timeout_seconds,
    )
    app = create_admin_app(queries, view, settings, health, office)
    if writer is not None:
        await office.start()
        await asyncio.sleep(0)  # the producer's turn to connect
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://admin") as client:
        yield Admin(app, client, log, health, office)
    if writer is not None:
        await office.stop()
    nowhere.dispose()
    await view.close()
