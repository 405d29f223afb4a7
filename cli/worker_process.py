"""The worker put together: used by the `worker` role, by `dev`, and by tests that stop it half-way."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence

import structlog

from broker.ports import Log
from db.engine import Engine
from db.event_store import EventStore
from db.partitions import ensure_partitions
from db.retention import remove_expired
from db.settings import RetentionSettings
from stream_worker.metrics import WorkerMetrics
from stream_worker.service import Job, new_worker_id, run_worker
from stream_worker.settings import WorkerSettings
from stream_worker.worker import Worker
from telemetry.metrics import Metrics
from telemetry.tracing import Tracing

_log = structlog.get_logger("worker")


class WorkerProcess:
    """One worker on a log and a store.

    Args:
        metrics: where the worker's are registered; by default nobody reads them.
        tracing: see `Worker`.
        housekeeping: further jobs to do now and then.
        before_commit: see `Worker`.
    """

    def __init__(
        self,
        log: Log,
        engine: Engine,
        settings: WorkerSettings,
        retention: RetentionSettings,
        *,
        metrics: Metrics | None = None,
        tracing: Tracing | None = None,
        housekeeping: Sequence[Job] = (),
        before_commit: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._retention = retention
        self._stopping = threading.Event()
        self._housekeeping = [self._create_partitions, self._remove_expired, *housekeeping]
        self._worker_id = new_worker_id()
        self._store = EventStore(
            engine,
            log.topic,
            owner=self._worker_id,
            rejected_share=settings.rejected_share,
            rejected_always=settings.rejected_always,
        )
        self.metrics = metrics or Metrics()
        self._worker = Worker(
            log,
            self._store,
            settings,
            metrics=WorkerMetrics(self.metrics),
            tracing=tracing,
            before_commit=before_commit,
        )

    @property
    def is_alive(self) -> bool:
        """See `Worker.is_alive`."""
        return self._worker.is_alive

    async def work_until(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set and the batch in flight is stored.

        Raises:
            BrokerError, StoreError: an operator has to act first.
            WorkerStuck: a supervisor has to start it afresh.
        """

        async def stop_worker() -> None:
            await stop.wait()
            self._stopping.set()
            self._worker.stop()

        stopper = asyncio.create_task(stop_worker(), name="stop worker")
        try:
            await run_worker(self._worker, self._store, self._worker_id, self._settings, self._housekeeping)
        finally:
            stopper.cancel()

    async def _create_partitions(self) -> None:
        await asyncio.to_thread(ensure_partitions, self._engine)

    async def _remove_expired(self) -> None:
        removed = await asyncio.to_thread(
            remove_expired, self._engine, self._retention, is_stopping=self._stopping.is_set
        )
        if removed.events or removed.identities:
            _log.info("removed what is too old", events=removed.events, identities=removed.identities)
