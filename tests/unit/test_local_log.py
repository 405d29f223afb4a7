"""What the embedded log promises beyond the contract of every log."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from broker.errors import LogFull, LogMisconfigured, LogUnavailable, OffsetOutOfRange, ProduceOutcomeUnknown
from broker.local import LocalLog
from broker.local_file import LogFile
from broker.ports import NewRecord, PartitionOffsets, UndecodableRecord
from broker.settings import LocalLogSettings
from tests.contract.log_reader import PARTITIONS, Reader, numbered, publish

HOUR = 3600.0
MIB = 1024 * 1024


class Clock:
    def __init__(self) -> None:
        self.now = 1_780_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "log.db"


@pytest.fixture
async def log(path: Path, clock: Clock) -> AsyncIterator[LocalLog]:
    opened = LocalLog(path, LocalLogSettings(partitions=PARTITIONS, retention_hours=1), clock=clock)
    await opened.start()
    yield opened
    await opened.stop()


class HeldWriter:
    """Keeps the writing thread waiting before each append, as a slow disk would."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.released = threading.Event()
        self.transactions = 0
        original = LogFile.append

        def append(file: LogFile, *args: object) -> None:
            self.transactions += 1
            assert self.released.wait(20)
            original(file, *args)  # type: ignore[arg-type]

        monkeypatch.setattr(LogFile, "append", append)


@pytest.fixture
def held_writer(monkeypatch: pytest.MonkeyPatch) -> Iterator[HeldWriter]:
    held = HeldWriter(monkeypatch)
    yield held
    held.released.set()


async def offsets_of(log: LocalLog, partition: int) -> tuple[int, int]:
    held: PartitionOffsets = (await log.admin().offsets())[partition]
    return held.beginning, held.end


async def test_publishes_that_wait_for_the_disk_share_its_next_write(
    log: LocalLog, held_writer: HeldWriter
) -> None:
    producer = log.producer()
    await producer.start()
    publishing = [asyncio.create_task(producer.publish(numbered(1, partition=0), timeout=20))]
    await until(lambda: held_writer.transactions == 1)
    publishing += [
        asyncio.create_task(producer.publish([record], timeout=20)) for record in numbered(99, partition=0)
    ]
    await until(lambda: producer.in_flight == 100)
    held_writer.released.set()
    await asyncio.gather(*publishing)
    assert held_writer.transactions == 2
    assert producer.in_flight == 0
    assert await offsets_of(log, 0) == (0, 100)


async def test_a_publish_past_its_deadline_has_an_unknown_outcome(
    log: LocalLog, held_writer: HeldWriter
) -> None:
    producer = log.producer()
    await producer.start()
    with pytest.raises(ProduceOutcomeUnknown):
        await producer.publish(numbered(1, partition=0), timeout=0.05)
    assert producer.in_flight == 1, "the disk has it and has not answered"
    with pytest.raises(ProduceOutcomeUnknown):
        await producer.publish(numbered(1, partition=0), timeout=0.05)
    # What the disk has not taken yet is withdrawn.
    await until(lambda: producer.in_flight == 1)
    held_writer.released.set()
    await producer.stop()
    assert await offsets_of(log, 0) == (0, 1)


async def test_a_cancelled_publish_that_still_waits_is_withdrawn(
    log: LocalLog, held_writer: HeldWriter
) -> None:
    producer = log.producer()
    await producer.start()
    first = asyncio.create_task(producer.publish(numbered(1, partition=0), timeout=20))
    await until(lambda: held_writer.transactions == 1)
    second = asyncio.create_task(producer.publish(numbered(1, partition=0), timeout=20))
    await until(lambda: producer.in_flight == 2)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    held_writer.released.set()
    await first
    assert await offsets_of(log, 0) == (0, 1)


async def test_a_full_buffer_refuses_more_and_takes_more_once_the_disk_has_caught_up(
    path: Path, held_writer: HeldWriter
) -> None:
    log = LocalLog(path, LocalLogSettings(partitions=1), buffer_bytes=10_000)
    await log.start()
    producer = log.producer()
    await producer.start()
    big = NewRecord(key=b"k", value=b"v" * 6_000)
    first = asyncio.create_task(producer.publish([big], timeout=20))
    await until(lambda: producer.in_flight == 1)
    with pytest.raises(LogFull):
        await producer.publish([big], timeout=20)
    held_writer.released.set()
    await first
    await producer.publish([big], timeout=20)
    await log.stop()


async def test_a_log_at_its_size_limit_acknowledges_nothing_in_part_and_loses_nothing(path: Path) -> None:
    log = LocalLog(path, LocalLogSettings(partitions=PARTITIONS, max_bytes=2 * MIB))
    await log.start()
    acknowledged = await fill(log)
    end = sum(held.end for held in (await log.admin().offsets()).values())
    assert end == acknowledged
    await log.stop()
    log = LocalLog(path, LocalLogSettings(partitions=PARTITIONS, max_bytes=8 * MIB))
    await log.start()
    async with Reader(log) as reader:
        await reader.seek_to_beginning()
        await reader.read(acknowledged)
    await publish(log, numbered(100))
    await log.stop()


async def test_a_full_log_gives_up_committed_records_for_new_ones_but_never_unread_ones(path: Path) -> None:
    log = LocalLog(path, LocalLogSettings(partitions=PARTITIONS, max_bytes=2 * MIB))
    await log.start()
    await fill(log)
    async with Reader(log) as reader:
        await reader.assigned()
        ends = await reader.end_offsets()
        await reader.consumer.commit({0: ends[0] // 2})
        await publish(log, [NewRecord(r.key, b"v" * 1_000) for r in numbered(100, partition=0)])
        beginning, end = await offsets_of(log, 0)
        assert 0 < beginning < ends[0] // 2
        assert end == ends[0] + 100
        assert [await offsets_of(log, p) for p in (1, 2, 3)] == [(0, ends[p]) for p in (1, 2, 3)]
        reader.consumer.seek(0, ends[0] // 2 - 1)
        await reader.read(end - ends[0] // 2 + 1)
    await log.stop()


async def test_trimming_removes_what_is_both_old_and_committed(log: LocalLog, clock: Clock) -> None:
    for partition in (0, 1, 2):
        for first in range(0, 30, 10):
            await publish(log, numbered(10, partition=partition, first=first))
    clock.now += 2 * HOUR
    for partition in (0, 3):
        await publish(log, numbered(10, partition=partition, first=30))
    async with Reader(log) as reader:
        await reader.assigned()
        await reader.consumer.commit({0: 40, 1: 25, 3: 10})
        assert await log.trim() == 30 + 20
        assert await log.trim() == 0
        assert [await offsets_of(log, p) for p in range(4)] == [(30, 40), (20, 30), (0, 30), (0, 10)]
        reader.consumer.seek(1, 19)
        with pytest.raises(OffsetOutOfRange):
            await reader.poll()
        reader.consumer.seek(1, 24)
        assert [record.offset for record in await reader.read(6)] == list(range(24, 30))


async def test_the_last_committed_record_outlives_every_retention(log: LocalLog, clock: Clock) -> None:
    await publish(log, numbered(10, partition=0))
    async with Reader(log) as reader:
        await reader.assigned()
        await reader.consumer.commit({0: 10})
        clock.now += 1_000 * HOUR
        assert await log.trim() == 0
        reader.consumer.seek(0, 9)
        assert len(await reader.read(1)) == 1


async def test_an_offset_is_never_used_twice(path: Path, clock: Clock) -> None:
    settings = LocalLogSettings(partitions=1, retention_hours=1)
    end = 0
    for _ in range(3):
        log = LocalLog(path, settings, clock=clock)
        await log.start()
        async with Reader(log) as reader:
            await reader.assigned(1)
            await publish(log, [NewRecord(key=b"k", value=b"")] * 5)
            await publish(log, [NewRecord(key=b"k", value=b"")] * 5)
            await reader.consumer.commit({0: end + 10})
            clock.now += 2 * HOUR
            await log.trim()
            assert await offsets_of(log, 0) == (end + 5, end + 10)
        end += 10
        await log.stop()


async def test_an_existing_log_keeps_its_number_of_partitions(path: Path) -> None:
    for partitions in (3, 5):
        log = LocalLog(path, LocalLogSettings(partitions=partitions))
        await log.start()
        assert (await log.admin().describe()).partitions == 3
        await log.stop()


async def test_a_log_that_is_not_open_says_so(path: Path) -> None:
    log = LocalLog(path, LocalLogSettings())
    with pytest.raises(LogUnavailable, match="not open"):
        await log.producer().start()
    await log.start()
    producer = log.producer()
    await producer.start()
    async with Reader(log) as reader:
        await log.stop()
        with pytest.raises(LogUnavailable):
            await producer.publish(numbered(1), timeout=1)
        with pytest.raises(LogUnavailable):
            await reader.consumer.poll(1, 0)
    await log.stop()


async def test_stopping_writes_what_was_accepted(path: Path, held_writer: HeldWriter) -> None:
    log = LocalLog(path, LocalLogSettings(partitions=1))
    await log.start()
    producer = log.producer()
    await producer.start()
    publishing = asyncio.create_task(producer.publish(numbered(5), timeout=20))
    await until(lambda: producer.in_flight == 5)
    stopping = asyncio.create_task(log.stop())
    held_writer.released.set()
    await stopping
    await publishing
    await log.start()
    assert await offsets_of(log, 0) == (0, 5)
    await log.stop()


@pytest.mark.parametrize("is_database", [False, True])
async def test_a_foreign_file_is_refused_and_left_alone(path: Path, is_database: bool) -> None:
    content = foreign_file(path, is_database)
    with pytest.raises(LogMisconfigured, match="is not an event log"):
        await LocalLog(path, LocalLogSettings()).start()
    assert path.read_bytes() == content  # noqa: ASYNC240  nothing else runs


async def test_a_log_of_a_newer_version_is_refused(log: LocalLog, path: Path) -> None:
    await log.stop()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(LogMisconfigured, match="newer version"):
        await log.start()


async def test_a_path_that_cannot_be_created_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LogUnavailable, match="cannot be created"):
        await LocalLog(tmp_path / "file" / "log.db", LocalLogSettings()).start()


async def test_damaged_records_are_named_and_reading_goes_on_after_them(log: LocalLog, path: Path) -> None:
    for first in range(0, 40, 10):
        await publish(log, numbered(10, partition=0, first=first))
    db = sqlite3.connect(path)
    db.execute("UPDATE segments SET records = CAST(substr(records, 1, 20) AS BLOB) WHERE id = 10")
    db.execute("DELETE FROM segments WHERE id = 20")
    db.commit()
    db.close()
    async with Reader(log) as reader:
        await reader.assigned()
        reader.consumer.seek(0, 5)
        found = (await reader.consumer.poll(100, 5)).records
    damaged = [(r.offset, r.next_offset) for r in found if isinstance(r, UndecodableRecord)]
    assert damaged == [(10, 20), (20, 30)]
    assert [r.offset for r in found if not isinstance(r, UndecodableRecord)] == [
        *range(5, 10),
        *range(30, 40),
    ]


async def test_the_event_loop_never_touches_the_file(
    log: LocalLog, held_writer: HeldWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    producer = log.producer()
    await producer.start()
    publishing = asyncio.create_task(producer.publish(numbered(1), timeout=20))
    async with asyncio.timeout(5):
        async with Reader(log) as reader:
            await reader.seek_to_beginning()
            assert not await reader.poll()
    held_writer.released.set()
    await publishing


async def test_an_idle_poll_costs_no_processor_time(log: LocalLog) -> None:
    async with Reader(log) as reader:
        await reader.seek_to_beginning()
        await reader.poll()
        used = time.process_time()
        await reader.poll(timeout=1)
        assert time.process_time() - used < 0.1


WRITER = """
import asyncio, sys
from pathlib import Path
from broker.local import LocalLog
from broker.ports import NewRecord
from broker.settings import LocalLogSettings

async def main():
    log = LocalLog(Path(sys.argv[1]), LocalLogSettings(partitions=2))
    await log.start()
    producer = log.producer()
    await producer.start()
    first = int(sys.argv[2])

    async def write(writer):
        for n in range(1_000_000):
            value = b"%d:%d:%d" % (first, writer, n)
            await producer.publish([NewRecord(value, value + b" " * 500)] * 3, timeout=10)
            print(value.decode(), flush=True)

    await asyncio.gather(*(write(writer) for writer in range(8)))

asyncio.run(main())
"""


async def test_what_was_acknowledged_survives_kill_9(path: Path) -> None:
    acknowledged = [
        value for attempt in range(3) for value in write_and_kill(path, attempt, after=200 * (attempt + 1))
    ]
    log = LocalLog(path, LocalLogSettings(partitions=2))
    await log.start()
    ends = {p: held.end for p, held in (await log.admin().offsets()).items()}
    async with Reader(log) as reader:
        for partition in await reader.assigned(2):
            reader.consumer.seek(partition, 0)
        await reader.read(sum(ends.values()))
    await log.stop()
    found = [(r.value or b"").decode().strip() for r in reader.records]
    for partition, end in ends.items():
        assert [r.offset for r in reader.records if r.partition == partition] == list(range(end))
    assert set(acknowledged) <= set(found)
    assert all(found.count(value) == 3 for value in set(acknowledged))


async def fill(log: LocalLog) -> int:
    """Publish until the log is full; returns how many records it acknowledged."""
    producer = log.producer()
    await producer.start()
    acknowledged = 0
    try:
        while True:
            records = [NewRecord(r.key, b"v" * 1_000) for r in numbered(100, first=acknowledged)]
            await producer.publish(records, timeout=20)
            acknowledged += 100
    except LogFull:
        return acknowledged
    finally:
        await producer.stop()


def foreign_file(path: Path, is_database: bool) -> bytes:
    """Write a file that is not ours, and return what is in it."""
    path.parent.mkdir()
    if is_database:
        db = sqlite3.connect(path)
        db.execute("CREATE TABLE theirs (x)")
        db.close()
    else:
        path.write_bytes(b"this is no database" * 100)
    return path.read_bytes()


def write_and_kill(path: Path, attempt: int, *, after: int) -> list[str]:
    """Run the writer, kill it after some acknowledgements, and return all that were seen."""
    command = [sys.executable, "-c", WRITER, str(path), str(attempt)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(after)]
        assert all(lines), "the writer ended by itself"
        os.kill(process.pid, signal.SIGKILL)
        lines += process.stdout.readlines()
    return [line.strip() for line in lines if line.endswith("\n")]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while True:
            if condition():
                return
            await asyncio.sleep(0.005)
