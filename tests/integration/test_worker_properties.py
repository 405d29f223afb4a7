"""Random histories through the worker: events, duplicates, conflicts, invalid records, crashes at every
point, redelivery and zombies. Whatever the order, the promises hold."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from broker.local import LocalLog
from broker.partitioner import partition_for
from broker.ports import NewRecord
from broker.settings import LocalLogSettings
from db.batch import Batch, WhenBusy, WriteResult
from db.engine import Engine, open_engine
from db.errors import FenceLost
from db.event_store import EventStore
from db.settings import DatabaseSettings
from events.event import log_key
from stream_worker.settings import WorkerSettings
from stream_worker.worker import Worker

PARTITIONS = 3


class Crash(BaseException):
    """The process dies here. Not an Exception: nothing may catch it."""


class CrashingStore(EventStore):
    """Dies before or after the transaction of the next write, as told; keeps every batch for zombies."""

    crash: str | None = None

    def __init__(self, engine: Engine, log_topic: str) -> None:
        super().__init__(engine, log_topic)
        self.written: list[Batch] = []

    def write(self, batch: Batch, when_busy: WhenBusy | None = None) -> WriteResult:
        if self.crash == "before store":
            raise Crash
        result = super().write(batch, when_busy)
        self.written.append(batch)
        if self.crash == "after store":
            raise Crash
        return result


TOPICS = ("orders", "naïve ☃")
BROKEN = (
    b"",
    b"{",
    b"\xff\xfe",
    b"[]",
    b'{"topic": "orders"}',
    b'{"topic": "orders", "event_id": "\\u0000"}',
)

valid = st.tuples(
    st.just("valid"), st.sampled_from(TOPICS), st.integers(0, 5), st.sampled_from((0, 0, 0, 1)), st.booleans()
)
broken = st.tuples(st.just("broken"), st.integers(0, len(BROKEN) - 1))
publish = st.tuples(
    st.just("publish"), st.lists(st.one_of(valid, valid, valid, broken), min_size=1, max_size=12)
)
work = st.tuples(st.just("work"), st.integers(1, 3))
crash = st.tuples(st.just("crash"), st.sampled_from(("before store", "after store", "before commit")))
zombie = st.tuples(st.just("zombie"), st.integers(0, 20))
history = st.lists(st.one_of(publish, publish, work, crash, zombie), min_size=1, max_size=14)


def record_of(spec: Any) -> tuple[bytes, bytes]:
    """Key and value; the same content may be written in two ways."""
    if spec[0] == "broken":
        return b"broken %d" % spec[1], BROKEN[spec[1]]
    _, topic, number, content, spaced = spec
    event = {
        "topic": topic,
        "event_id": str(number),
        "timestamp": "2026-01-01T00:00:00+00:00" if spaced else "2026-01-01T02:00:00+02:00",
        "source": "s",
        "payload": {"content": content, "z": "é"} if spaced else {"z": "é", "content": content},
    }
    return log_key(topic, str(number)), json.dumps(event, indent=2 if spaced else None).encode()


class Model:
    """What has to come out, by the rules alone."""

    def __init__(self) -> None:
        self.first: dict[tuple[str, str], int] = {}
        self.counts: dict[str, Counter[str]] = {}
        self.letters: Counter[bytes] = Counter()
        self.appended: Counter[int] = Counter()

    def publish(self, spec: Any) -> None:
        key, value = record_of(spec)
        self.appended[partition_for(key, PARTITIONS)] += 1
        if spec[0] == "broken":
            topic = "orders" if b"orders" in value else ""
            verdict = "dead_lettered"
            self.letters[value] += 1
        else:
            _, topic, number, content, _ = spec
            identity = (topic, str(number))
            if identity not in self.first:
                self.first[identity] = content
                verdict = "stored"
            elif self.first[identity] == content:
                verdict = "duplicate"
            else:
                verdict = "conflict"
                self.letters[value] += 1
        self.counts.setdefault(topic, Counter())[verdict] += 1
        self.counts[topic]["received"] += 1


class Run:
    """A log, a store, and one worker at a time."""

    def __init__(self, directory: Path, engine: Engine) -> None:
        self.engine = engine
        self.log = LocalLog(directory / "log.db", LocalLogSettings(partitions=PARTITIONS))
        self.model = Model()
        self.batches: list[Batch] = []
        self.positions: dict[int, int] = {}

    async def play(self, steps: Any) -> None:
        await self.log.start()
        try:
            producer = self.log.producer()
            await producer.start()
            for step in [*steps, ("finish",)]:
                if step[0] == "publish":
                    for spec in step[1]:
                        key, value = record_of(spec)
                        await producer.publish([NewRecord(key=key, value=value)], timeout=10)
                        self.model.publish(spec)
                elif step[0] == "zombie":
                    self.zombie_writes_nothing(step[1])
                else:
                    await self.work(step)
                self.positions_never_move_back()
            await producer.stop()
        finally:
            await self.log.stop()

    async def work(self, step: Any) -> None:
        store = CrashingStore(self.engine, self.log.topic)

        async def before_commit() -> None:
            if store.crash == "before commit":
                raise Crash

        worker = Worker(
            self.log,
            store,
            WorkerSettings(max_batch_records=5, poll_timeout_seconds=0.02),
            before_commit=before_commit,
        )
        consumer = self.log.consumer(worker)
        await consumer.start()
        turns = step[1] if step[0] == "work" else 1_000
        store.crash = step[1] if step[0] == "crash" else None
        try:
            for _ in range(turns):
                if await worker.run_once(consumer) is None and step[0] != "work" and self.caught_up():
                    break
        except Crash:
            pass
        finally:
            self.batches += store.written
            await consumer.stop()

    def caught_up(self) -> bool:
        return all(self.stored_positions().get(p, 0) == end for p, end in self.model.appended.items())

    def zombie_writes_nothing(self, which: int) -> None:
        if self.batches:
            with pytest.raises(FenceLost):
                EventStore(self.engine, self.log.topic).write(self.batches[which % len(self.batches)])

    def positions_never_move_back(self) -> None:
        stored = self.stored_positions()
        for partition, before in self.positions.items():
            assert stored[partition] >= before
        self.positions = stored

    def stored_positions(self) -> dict[int, int]:
        with self.engine.connect() as connection:
            rows = connection.execute(text("SELECT partition, next_offset FROM partition_progress"))
            return {row.partition: row.next_offset for row in rows}

    def check(self) -> None:
        with self.engine.connect() as connection:
            events = connection.execute(
                text("SELECT topic, event_id, CAST(payload AS text) AS payload FROM events")
            ).all()
            letters = connection.execute(text("SELECT record_value FROM dead_letters")).scalars().all()
            counts = connection.execute(
                text(
                    "SELECT topic, sum(received) AS received, sum(stored) AS stored,"
                    " sum(duplicate) AS duplicate, sum(conflict) AS conflict,"
                    " sum(dead_lettered) AS dead_lettered"
                    " FROM verdict_counts GROUP BY topic"
                )
            ).all()
            keys = connection.execute(text("SELECT count(*) FROM event_keys")).scalar_one()
        stored_positions = {p: offset for p, offset in self.stored_positions().items() if offset}
        assert stored_positions == self.model.appended
        stored = {(e.topic, e.event_id): json.loads(e.payload)["content"] for e in events}
        assert stored == self.model.first
        assert len(events) == len(self.model.first) == keys
        assert Counter(bytes(value) for value in letters) == self.model.letters
        assert {
            row.topic: {name: int(getattr(row, name)) for name in row._fields if name != "topic"}
            for row in counts
        } == {
            topic: {
                name: verdicts[name]
                for name in ("received", "stored", "duplicate", "conflict", "dead_lettered")
            }
            for topic, verdicts in self.model.counts.items()
        }


@pytest.fixture
def engine(store_url: str) -> Iterator[Engine]:
    engine = open_engine(DatabaseSettings(url=store_url), application_name="properties")
    yield engine
    engine.dispose()


@settings(
    max_examples=45,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=history)
def test_every_history_ends_with_exact_verdicts(engine: Engine, steps: Any) -> None:
    with engine.begin() as connection:
        for table in ("events", "event_keys", "dead_letters", "verdict_counts", "partition_progress"):
            connection.execute(text(f"DELETE FROM {table}"))
    with tempfile.TemporaryDirectory() as directory:
        run = Run(Path(directory), engine)
        asyncio.run(run.play(steps))
        run.check()
