"""Whether the admin API can do its work."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool

from admin_api.log_view import LogView
from db.errors import StoreError
from db.stats_queries import StatsQueries
from telemetry.health import Readiness, health_router


class AdminHealth:
    """Ready while the database can be read and no stop has begun. The log's trouble is told, but does not
    count: nearly every route works without it."""

    def __init__(self, queries: StatsQueries, log: LogView) -> None:
        self._queries = queries
        self._log = log
        self._draining = False

    def begin_drain(self) -> None:
        """From now on: not ready."""
        self._draining = True

    async def readiness(self) -> Readiness:
        """Ask both dependencies; bounded in time by their own timeouts."""
        database: dict[str, Any] = {"status": "ok"}
        try:
            await run_in_threadpool(self._queries.ping)
        except StoreError as error:
            database = {"status": "unavailable", "detail": str(error)}
        state = await self._log.state()
        log = (
            {"status": state.status}
            if state.detail is None
            else {"status": state.status, "detail": state.detail}
        )
        usable = database["status"] == "ok"
        word = "draining" if self._draining else "ready" if usable else "not ready"
        return Readiness(usable and not self._draining, word, {"database": database, "log": log})


def admin_health_router(health: AdminHealth) -> APIRouter:
    """`/livez`, `/healthz` and `/readyz` of an admin process; not for an application that has its own."""
    return health_router(health.readiness)
