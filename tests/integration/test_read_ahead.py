"""The next batch is read while one is being stored, and is of no use if a position was given up meanwhile."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from sqlalchemy import text

from broker.local import LocalLog
from broker.local_consumer import LocalConsumer
from broker.ports import NewRecord, Record, UndecodableRecord
from broker.settings import LocalLogSettings
from db.batch import Batch, InvalidRecord, ValidRecord, WhenBusy, WriteResult
from db.engine import Engine, open_engine
from db.errors import StoreUnavailable
from db.event_store import EventStore
from db.settings import DatabaseSettings
from events.event import log_key
from stream_worker.decode import decode_records
from stream_worker.settings import WorkerSettings
from stream_worker.worker import Worker
from tests.support.processes import eventually

RECORDS = 300
REPEATED = RECORDS // 5
SETTINGS = WorkerSettings(max_batch_records=20, poll_timeout_seconds=0.02, backoff_min_seconds=0.01)


class GatedStore(EventStore):
    """The second write waits for the test, and then fails if it is told to."""

    def __init__(self, engine: Engine, log_topic: str) -> None:
        super().__init__(engine, log_topic)
        self.writes = 0
        self.gate = threading.Event()
        self.fails = False

    def write(self, batch: Batch, when_busy: WhenBusy | None = None) -> WriteResult:
        self.writes += 1
        if self.writes == 2:
            assert when_busy is not None
            when_busy()
            assert self.gate.wait(20)
            if self.fails:
                raise StoreUnavailable("away for a moment")
        return super().write(batch, when_busy)


class WatchedWorker(Worker):
    """Tells when it is asked to let partitions go."""

    def __init__(self, log: LocalLog, store: EventStore) -> None:
        super().__init__(log, store, SETTINGS)
        self.was_asked = asyncio.Event()

    async def on_revoked(self, partitions: frozenset[int]) -> None:
        self.was_asked.set()
        await super().on_revoked(partitions)


@pytest.fixture
def engine(sqlite_url: str) -> Iterator[Engine]:
    engine = open_engine(DatabaseSettings.model_validate({"url": sqlite_url}), application_name="read ahead")
    yield engine
    engine.dispose()


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[LocalLog]:
    """A log with records, of which every fifth repeats the one before."""
    log = LocalLog(tmp_path / "log.db", LocalLogSettings(partitions=3))
    await log.start()
    producer = log.producer()
    await producer.start()
    event = {"topic": "t", "timestamp": "2026-01-01T00:00:00Z", "source": "s", "payload": {}}
    for number in range(RECORDS):
        event_id = str(number - 1 if number % 5 == 4 else number)
        value = json.dumps({**event, "event_id": event_id}).encode()
        await producer.publish([NewRecord(log_key("t", event_id), value)], timeout=10)
    await producer.stop()
    yield log
    await log.stop()


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many records each batch had that was decoded."""
    sizes: list[int] = []

    def counting(records: Sequence[Record | UndecodableRecord]) -> list[ValidRecord | InvalidRecord]:
        made = decode_records(records)
        sizes.append(len(made))
        return made

    monkeypatch.setattr("stream_worker.read_ahead.decode_records", counting)
    return sizes


def counts(engine: Engine) -> tuple[int, int, int, int]:
    """Received, stored and duplicate records as counted, and the rows that are there."""
    with engine.connect() as connection:
        counted = connection.execute(
            text("SELECT sum(received), sum(stored), sum(duplicate) FROM verdict_counts")
        ).one()
        rows = connection.execute(text("SELECT count(*) FROM events")).scalar_one()
    received, stored, duplicate = (int(value or 0) for value in counted)
    return received, stored, duplicate, int(rows)


@pytest.mark.parametrize("meanwhile", ["nothing", "outage", "rebalance"])
async def test_a_batch_that_was_read_ahead_is_stored_once_whatever_happened_meanwhile(
    log: LocalLog, engine: Engine, decoded: list[int], meanwhile: str
) -> None:
    store = GatedStore(engine, log.topic)
    workers = [WatchedWorker(log, store)]
    running = [asyncio.create_task(workers[0].run())]

    async def third_decoded() -> bool:
        return len(decoded) >= 3 and store.writes == 2

    await eventually(third_decoded, 20, "a third batch to be decoded while the second is being stored")
    assert sum(decoded[:2]) > counts(engine)[0]
    if meanwhile == "outage":
        store.fails = True
    elif meanwhile == "rebalance":
        workers.append(WatchedWorker(log, EventStore(engine, log.topic)))
        running.append(asyncio.create_task(workers[1].run()))
        await asyncio.wait_for(workers[0].was_asked.wait(), 20)
    store.gate.set()

    async def all_stored() -> bool:
        return counts(engine)[0] >= RECORDS

    await eventually(all_stored, 30, "every record to have its verdict")
    for worker in workers:
        worker.stop()
    await asyncio.gather(*running)
    assert counts(engine) == (RECORDS, RECORDS - REPEATED, REPEATED, RECORDS - REPEATED)


class BusyStore(EventStore):
    """Has time for reading ahead at every write, as a database server has."""

    writes = 0

    def write(self, batch: Batch, when_busy: WhenBusy | None = None) -> WriteResult:
        assert when_busy is not None
        when_busy()
        result = super().write(batch)
        self.writes += 1
        return result


class SlowCommits:
    """Commits, each of which waits for the test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gate = asyncio.Semaphore(0)
        self.begun = self.done = 0
        commit = LocalConsumer.commit

        async def slow(consumer: LocalConsumer, committable: Mapping[int, int]) -> None:
            self.begun += 1
            await self.gate.acquire()
            await commit(consumer, committable)
            self.done += 1

        monkeypatch.setattr(LocalConsumer, "commit", slow)


async def test_a_batch_does_not_wait_for_the_commit_of_the_one_before_but_letting_go_does(
    log: LocalLog, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = BusyStore(engine, log.topic)
    commits = SlowCommits(monkeypatch)
    worker = WatchedWorker(log, store)
    running = asyncio.create_task(worker.run())

    async def second_stored() -> bool:
        return store.writes == 2

    await eventually(second_stored, 20, "a second batch to be stored")
    assert (commits.begun, commits.done) == (1, 0)
    worker.stop()
    commits.gate.release()

    async def second_commit() -> bool:
        return commits.begun == 2

    await eventually(second_commit, 20, "a second commit")
    letting_go = asyncio.create_task(worker.on_revoked(frozenset({0, 1, 2})))
    await asyncio.wait({running, letting_go}, timeout=0.1)
    assert not running.done()
    assert not letting_go.done()

    commits.gate.release()
    await asyncio.gather(running, letting_go)
    reader = log.reader()
    await reader.start()
    committed = await reader.committed()
    await reader.stop()
    assert {partition: offset for partition, offset in committed.items() if offset} == {
        partition: offset for partition, offset in store.next_offsets().items() if offset
    }
    assert commits.done == commits.begun == store.writes == 2
