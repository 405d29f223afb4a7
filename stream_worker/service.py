"""The worker with what runs beside it: its sign of life and the housekeeping."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import secrets
import socket
from collections.abc import Awaitable, Callable, Sequence

import structlog

from broker.errors import BrokerError
from db.errors import StoreError
from db.event_store import EventStore
from stream_worker.backoff import wait_or_stop
from stream_worker.settings import WorkerSettings
from stream_worker.worker import Worker

Job = Callable[[], Awaitable[object]]
"""Something to do now and then; its StoreError or BrokerError is logged, and it is tried again next time."""

_log = structlog.get_logger("stream_worker.service")


def new_worker_id() -> str:
    """A name for this process that no other has, and that tells an operator where to look."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"


async def run_worker(
    worker: Worker,
    store: EventStore,
    worker_id: str,
    settings: WorkerSettings,
    housekeeping: Sequence[Job] = (),
) -> None:
    """Run the worker until it stops; if anything beside it dies, the worker stops too.

    Args:
        housekeeping: run one after the other, at the start and then at the set interval.

    Raises:
        whatever `Worker.run` raises.
    """
    finished = asyncio.Event()
    started_at = dt.datetime.now(dt.UTC)

    async def heartbeat() -> None:
        await asyncio.to_thread(store.heartbeat, worker_id, started_at)

    async def work() -> None:
        try:
            await worker.run()
        finally:
            finished.set()
            sampling.cancel()

    try:
        async with asyncio.TaskGroup() as group:
            sampling = group.create_task(worker.keep_lag_known(), name="lag")
            group.create_task(work(), name="worker")
            group.create_task(
                _every(settings.heartbeat_interval_seconds, [heartbeat], finished), name="heartbeat"
            )
            group.create_task(
                _every(settings.housekeeping_interval_seconds, housekeeping, finished), name="housekeeping"
            )
    except ExceptionGroup as group_error:
        # One failure is the usual case, and its own type says what to do about it. Not `except*`: before
        # Python 3.11.4 that makes a group again of whatever is raised in it.
        if len(group_error.exceptions) == 1:
            raise group_error.exceptions[0] from None
        raise
    finally:
        try:
            await asyncio.to_thread(store.forget_worker, worker_id)
        except StoreError as error:
            _log.info("this worker stays listed until its heartbeat is old", detail=str(error))


async def _every(interval_s: float, jobs: Sequence[Job], finished: asyncio.Event) -> None:
    while not finished.is_set():
        for job in jobs:
            try:
                await job()
            except (StoreError, BrokerError) as error:
                _log.warning("a periodic job failed; it will be tried again", detail=str(error))
        await wait_or_stop(interval_s, finished)
