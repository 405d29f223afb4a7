"""A log with everything in it, a store filled from it by a worker, and their reconciliation."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

from sqlalchemy import Engine, text

from broker.ports import Log, NewRecord
from cli.reconciliation import Report, reconcile
from db.event_store import EventStore
from events.event import log_key
from stream_worker.settings import WorkerSettings
from stream_worker.worker import Worker
from tests.support.processes import eventually
from tests.support.store_filler import open_store

DEADLINE = 40.0
SETTINGS = WorkerSettings(max_batch_records=7, poll_timeout_seconds=0.02)


def record(event_id: str, *, topic: str = "orders", **payload: Any) -> NewRecord:
    document = {
        "topic": topic,
        "event_id": event_id,
        "timestamp": "2026-01-01T00:00:00Z",
        "source": "shop",
        "payload": payload,
    }
    return NewRecord(log_key(topic, event_id), json.dumps(document).encode())


def everything() -> list[NewRecord]:
    """Records of every verdict: 40 stored, 10 duplicates, 4 conflicts, 6 dead letters."""
    return [
        *(record(f"e{n}", n=n) for n in range(40)),
        *(record(f"e{n}", n=n) for n in range(10)),
        *(record(f"e{n}", n=-1) for n in range(10, 14)),
        *(NewRecord(b"%d" % n, b"{") for n in range(5)),
        NewRecord(b"half", b'{"topic": "orders", "event_id": "half"}'),
    ]


async def publish(log: Log, records: Sequence[NewRecord]) -> None:
    producer = log.producer()
    await producer.start()
    try:
        await producer.publish(records, timeout=DEADLINE)
    finally:
        await producer.stop()


class Reconciled:
    """A log and a store. The caller opens and closes the log.

    Attributes:
        engine: a writing one, closed by `close`.
    """

    def __init__(self, log: Log, store_url: str) -> None:
        self.log = log
        self.engine: Engine = open_store(store_url)
        self._reader = open_store(store_url, read_only=True)
        self.store = EventStore(self.engine, log.topic, owner="worker")

    def close(self) -> None:
        self.engine.dispose()
        self._reader.dispose()

    @contextlib.asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """A worker at work."""
        worker = Worker(self.log, self.store, SETTINGS)
        running = asyncio.create_task(worker.run())
        try:
            yield
        finally:
            worker.stop()
            await running

    async def caught_up(self) -> None:
        """Return when every record that is in the log now has its verdict."""
        reader = self.log.reader()
        await reader.start()
        try:
            ends = {number: held.end for number, held in (await reader.offsets()).items()}
        finally:
            await reader.stop()

        async def done() -> bool:
            positions = await asyncio.to_thread(self.store.next_offsets)
            return all(positions.get(number, 0) >= end for number, end in ends.items())

        await eventually(done, DEADLINE, "the end of the log")

    async def fill(self, records: Sequence[NewRecord]) -> None:
        """Publish, and have a worker give every record its verdict."""
        await publish(self.log, records)
        async with self.working():
            await self.caught_up()

    async def check(self, *, counts_only: bool = False) -> Report:
        reader = self.log.reader()
        await reader.start()
        try:
            return await reconcile(reader, self._reader, self.log.topic, counts_only=counts_only)
        finally:
            await reader.stop()

    async def found(self, *, counts_only: bool = False) -> set[str]:
        """The names of the checks that found something."""
        return set((await self.check(counts_only=counts_only)).findings_by_check)

    def tamper(self, *statements: str) -> int:
        """Change the store behind everybody's back; returns the rows the last statement changed."""
        changed = 0
        with self.engine.begin() as connection:
            for statement in statements:
                changed = connection.execute(text(statement)).rowcount
        return changed

    def value(self, query: str) -> Any:
        """The first value of a query's only row."""
        with self.engine.begin() as connection:
            return connection.execute(text(query)).scalar_one()

    @property
    def on_postgres(self) -> bool:
        return self.engine.dialect.name == "postgresql"
