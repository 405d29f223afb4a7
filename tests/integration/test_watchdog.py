"""A worker that makes no progress in spite of lag is noticed, helped, and at last ended."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from sqlalchemy import text

from broker.local import LocalLog
from broker.ports import Consumer, Log, LogAdmin, LogReader, NewRecord, Poll, Producer, RebalanceListener
from broker.settings import LocalLogSettings
from db.engine import Engine, open_engine
from db.errors import StoreUnavailable
from db.event_store import EventStore
from db.settings import DatabaseSettings
from events.event import log_key
from stream_worker.settings import WorkerSettings
from stream_worker.watchdog import WorkerStuck
from stream_worker.worker import Worker
from tests.support.processes import eventually

SETTINGS = WorkerSettings(
    stall_seconds=0.3, max_consumer_restarts=2, poll_timeout_seconds=0.05, backoff_max_seconds=0.2
)


class FreezingLog:
    """A log whose first consumers answer polls with nothing, for ever: what a dead fetch task looks like."""

    def __init__(self, log: Log, frozen: int) -> None:
        self._log = log
        self._frozen = frozen
        self.consumers = 0

    @property
    def topic(self) -> str:
        return self._log.topic

    def producer(self) -> Producer:
        return self._log.producer()

    def admin(self) -> LogAdmin:
        return self._log.admin()

    def reader(self) -> LogReader:
        return self._log.reader()

    def consumer(self, listener: RebalanceListener) -> Consumer:
        self.consumers += 1
        consumer = self._log.consumer(listener)
        if self.consumers <= self._frozen:

            async def frozen_poll(max_records: int, timeout: float) -> Poll:
                await asyncio.sleep(timeout if self.consumers % 2 else 3600)
                return Poll(records=(), next_offsets={})

            consumer.poll = frozen_poll  # type: ignore[method-assign]
        return consumer


@pytest.fixture
def engine(sqlite_url: str) -> Iterator[Engine]:
    engine = open_engine(DatabaseSettings.model_validate({"url": sqlite_url}), application_name="watchdog")
    yield engine
    engine.dispose()


@asynccontextmanager
async def log_with(directory: Path, events: Sequence[int]) -> AsyncIterator[LocalLog]:
    log = LocalLog(directory / "log.db", LocalLogSettings(partitions=2))
    await log.start()
    try:
        producer = log.producer()
        await producer.start()
        for number in events:
            event = {
                "topic": "t",
                "event_id": str(number),
                "timestamp": "2026-01-01T00:00:00Z",
                "source": "s",
                "payload": {},
            }
            await producer.publish(
                [NewRecord(log_key("t", str(number)), json.dumps(event).encode())], timeout=10
            )
        await producer.stop()
        yield log
    finally:
        await log.stop()


def stored(engine: Engine) -> int:
    with engine.connect() as connection:
        count: int = connection.execute(text("SELECT count(*) FROM events")).scalar_one()
        return count


async def test_a_frozen_consumer_is_replaced_and_nothing_is_lost(tmp_path: Path, engine: Engine) -> None:
    async with log_with(tmp_path, range(10)) as log:
        freezing = FreezingLog(log, frozen=2)
        worker = Worker(freezing, EventStore(engine, log.topic), SETTINGS)
        running = asyncio.create_task(worker.run())

        async def not_alive() -> bool:
            return not worker.is_alive

        await eventually(not_alive, 20, "the worker to be found stuck")

        async def alive_again() -> bool:
            return worker.is_alive and stored(engine) == 10

        await eventually(alive_again, 20, "a new consumer to store everything")
        assert freezing.consumers == 3
        worker.stop()
        await asyncio.wait_for(running, 20)


async def test_a_worker_that_stays_stuck_ends_with_an_error_that_says_so(
    tmp_path: Path, engine: Engine
) -> None:
    async with log_with(tmp_path, range(3)) as log:
        worker = Worker(FreezingLog(log, frozen=99), EventStore(engine, log.topic), SETTINGS)
        with pytest.raises(WorkerStuck, match="supervisor"):
            await asyncio.wait_for(worker.run(), 30)
        assert not worker.is_alive


async def test_waiting_for_new_records_is_not_being_stuck(tmp_path: Path, engine: Engine) -> None:
    async with log_with(tmp_path, range(3)) as log:
        freezing = FreezingLog(log, frozen=0)
        worker = Worker(freezing, EventStore(engine, log.topic), SETTINGS)
        running = asyncio.create_task(worker.run())
        await asyncio.wait({running}, timeout=SETTINGS.stall_seconds * 5)
        assert not running.done()
        assert worker.is_alive
        assert freezing.consumers == 1
        worker.stop()
        await asyncio.wait_for(running, 20)


class UnwritableStore(EventStore):
    """Readable, but takes no batch: a table locked by somebody else, a server in failover."""

    def write(self, batch: object, when_busy: object = None) -> object:  # type: ignore[override]
        raise StoreUnavailable


async def test_waiting_for_the_database_is_not_being_stuck(tmp_path: Path, engine: Engine) -> None:
    async with log_with(tmp_path, range(3)) as log:
        freezing = FreezingLog(log, frozen=0)
        worker = Worker(freezing, UnwritableStore(engine, log.topic), SETTINGS)
        running = asyncio.create_task(worker.run())
        await asyncio.wait({running}, timeout=SETTINGS.stall_seconds * 6)
        assert not running.done()
        assert worker.is_alive
        assert freezing.consumers == 1
        worker.stop()
        await asyncio.wait_for(running, 20)
