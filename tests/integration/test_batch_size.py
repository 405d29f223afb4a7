"""A batch that is too large for the time a transaction may take."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from broker.local import LocalLog
from broker.ports import NewRecord
from broker.settings import LocalLogSettings
from db.batch import Batch, WhenBusy, WriteResult
from db.engine import Engine, open_engine
from db.errors import StoreUnavailable
from db.event_store import EventStore
from db.settings import DatabaseSettings
from stream_worker.settings import WorkerSettings
from stream_worker.worker import Worker
from tests.support.processes import eventually

RECORDS = 400


class SlowStore(EventStore):
    """Takes too long for more than a few records, until it is quick again."""

    def __init__(self, engine: Engine, log_topic: str) -> None:
        super().__init__(engine, log_topic)
        self.takes = 30
        self.sizes: list[int] = []

    def write(self, batch: Batch, when_busy: WhenBusy | None = None) -> WriteResult:
        if len(batch.records) > self.takes:
            raise StoreUnavailable("canceling statement due to statement timeout")
        self.sizes.append(len(batch.records))
        return super().write(batch, when_busy)


async def test_it_is_tried_smaller_until_it_fits_and_larger_again_once_it_does(
    sqlite_url: str, tmp_path: Path
) -> None:
    engine = open_engine(DatabaseSettings.model_validate({"url": sqlite_url}), application_name="batch size")
    log = LocalLog(tmp_path / "log.db", LocalLogSettings(partitions=1))
    store = SlowStore(engine, log.topic)
    settings = WorkerSettings(
        max_batch_records=100, poll_timeout_seconds=0.02, backoff_min_seconds=0.001, backoff_max_seconds=0.01
    )
    worker = Worker(log, store, settings)
    await log.start()
    producer = log.producer()
    await producer.start()

    async def publish(first: int) -> None:
        event = {"topic": "t", "timestamp": "2026-01-01T00:00:00Z", "source": "s", "payload": {}}
        values = [json.dumps({**event, "event_id": str(first + n)}).encode() for n in range(RECORDS)]
        await producer.publish([NewRecord(b"key", value) for value in values], timeout=10)

    async def stored(count: int) -> None:
        async def reached() -> bool:
            return sum(store.sizes) >= count

        await eventually(reached, 30, f"{count} records to be stored")

    await publish(0)
    running = asyncio.create_task(worker.run())
    try:
        await stored(RECORDS)
        assert max(store.sizes) <= store.takes
        store.takes = 1_000
        await publish(RECORDS)
        await stored(2 * RECORDS)
        assert max(store.sizes) == settings.max_batch_records
    finally:
        worker.stop()
        await running
        await producer.stop()
        await log.stop()
        engine.dispose()
    assert sum(store.sizes) == 2 * RECORDS
