"""The worker put together: used by the `worker` role, by `dev`, and by tests that stop it half-way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from broker.ports import Log
from db.engine import Engine
from db.event_store import EventStore
from db.partitions import ensure_partitions
from stream_worker.service import Job, new_worker_id, run_worker
from stream_worker.settings import WorkerSettings
from stream_worker.worker import Worker


async def work_until(
    stop: asyncio.Event,
    log: Log,
    engine: Engine,
    settings: WorkerSettings,
    *,
    housekeeping: Sequence[Job] = (),
    before_commit: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Run one worker until `stop` is set and its batch is stored.

    Raises:
        BrokerError, StoreError: an operator has to act first.
    """
    worker_id = new_worker_id()
    store = EventStore(
        engine,
        log.topic,
        owner=worker_id,
        rejected_share=settings.rejected_share,
        rejected_always=settings.rejected_always,
    )
    worker = Worker(log, store, settings, before_commit=before_commit)

    async def stop_worker() -> None:
        await stop.wait()
        worker.stop()

    async def create_partitions() -> None:
        await asyncio.to_thread(ensure_partitions, engine)

    stopper = asyncio.create_task(stop_worker(), name="stop worker")
    try:
        await run_worker(worker, store, worker_id, settings, housekeeping=[create_partitions, *housekeeping])
    finally:
        stopper.cancel()
