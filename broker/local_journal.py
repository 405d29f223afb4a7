"""The embedded log between the event loop and its file.

Two threads touch the file, one to write and one to read; the event loop never does. Publishes that arrive
while a transaction is being written are gathered into the next one (group commit), so many small publishes
share one fsync.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

from broker.errors import (
    BrokerError,
    CommitFailed,
    LogFull,
    LogUnavailable,
    ProduceOutcomeUnknown,
    RecordTooLarge,
)
from broker.local_file import LogFile, LogFileReader, PartitionState, Span
from broker.local_segments import encode_record
from broker.partitioner import partition_for
from broker.ports import NewRecord, Record, UndecodableRecord
from broker.settings import LocalLogSettings

MAX_RECORD_BYTES: Final = 1024 * 1024
"""Largest record: key, value and headers as the file holds them."""
_GROUP_BYTES: Final = 8 * 1024 * 1024
"""One transaction gathers publishes up to this sum."""
_COMMIT_SECONDS: Final = 10.0
_CLOSE_SECONDS: Final = 10.0
_TRIM_SEGMENTS: Final = 500
"""Segments removed in one transaction, per partition; publishes get their turn in between."""

_T = TypeVar("_T")
_P = ParamSpec("_P")


class Append:
    """One publish on its way into the file. `outcome` holds None for success, or the error."""

    __slots__ = ("outcome", "records", "size")

    def __init__(self, records: dict[int, list[bytes]], size: int) -> None:
        self.records = records
        self.size = size
        self.outcome: asyncio.Future[BrokerError | None] = asyncio.get_running_loop().create_future()


class Journal:
    """Appends, reads, commits and trims, from one event loop.

    Args:
        clock: seconds since 1970; becomes the records' timestamps.
        buffer_bytes: bytes of records accepted and not yet written; above that the log counts as full.
    """

    def __init__(
        self, path: Path, settings: LocalLogSettings, *, clock: Callable[[], float], buffer_bytes: int
    ) -> None:
        self.path = path
        self._settings = settings
        self._clock = clock
        self._buffer_bytes = buffer_bytes
        self._file = LogFile(path, partitions=settings.partitions, max_bytes=settings.max_bytes)
        self._reader = LogFileReader(path)
        self._is_open = False
        self._threads = _Threads()
        self._waiting: dict[Append, None] = {}
        self._buffered = 0
        self._writing: asyncio.Task[None] | None = None
        self._watchers: set[Callable[[], None]] = set()

    @property
    def partitions(self) -> Mapping[int, PartitionState]:
        """The durable state of every partition. Empty before the first `open`."""
        return self._file.partitions

    def require_open(self) -> None:
        """Raises LogUnavailable unless open."""
        if not self._is_open:
            raise LogUnavailable(f"The local log {self.path} is not open.")

    def watch(self, changed: Callable[[], None]) -> None:
        """Have a function called after every append."""
        self._watchers.add(changed)

    def unwatch(self, changed: Callable[[], None]) -> None:
        self._watchers.discard(changed)

    async def open(self) -> None:
        """Raises LogMisconfigured, LogUnavailable, LogFull. No effect when open."""
        if self._is_open:
            return
        self._threads = _Threads()
        try:
            await self._threads.write(self._file.open)
            await self._threads.read(self._reader.open)
        except BrokerError:
            await self._close_file()
            raise
        self._is_open = True

    async def close(self) -> None:
        """Write what was accepted, bounded in time, then close the file. Idempotent."""
        if not self._is_open:
            return
        self._is_open = False
        if self._writing is not None:
            await asyncio.wait({self._writing}, timeout=_CLOSE_SECONDS)
        await self._close_file()

    async def _close_file(self) -> None:
        # The writer's connection goes last: closing the last connection is a checkpoint.
        await asyncio.wait({self._threads.read(self._reader.close)}, timeout=_CLOSE_SECONDS)
        await asyncio.wait({self._threads.write(self._file.close)}, timeout=_CLOSE_SECONDS)
        self._threads.shutdown()

    def accept(self, records: Sequence[NewRecord]) -> Append:
        """Take records for the next transaction. Raises LogFull, LogUnavailable, RecordTooLarge."""
        self.require_open()
        append = self._encode(records)
        if self._buffered + append.size > self._buffer_bytes:
            raise LogFull(
                f"The local log's buffer is full: {self._buffered:,} bytes wait for the disk; try later."
            )
        self._waiting[append] = None
        self._buffered += append.size
        if self._writing is None:
            self._writing = asyncio.create_task(self._write_waiting(), name="local-log-append")
        return append

    async def settle(self, append: Append, timeout: float) -> None:
        """Wait until accepted records are durable. Given up, they are withdrawn if they still wait.

        Raises LogFull, LogUnavailable, ProduceOutcomeUnknown.
        """
        try:
            await asyncio.wait({append.outcome}, timeout=timeout)
        finally:
            if append in self._waiting:
                del self._waiting[append]
                self._buffered -= append.size
                append.outcome.cancel()
        if not append.outcome.done() or append.outcome.cancelled():
            raise ProduceOutcomeUnknown
        error = append.outcome.result()
        if error is not None:
            raise type(error)(str(error)) from error

    async def read(self, spans: Sequence[Span], max_bytes: int) -> list[list[Record | UndecodableRecord]]:
        """See `LogFileReader.read`."""
        self.require_open()
        return await self._threads.read(self._reader.read, spans, max_bytes)

    async def commit(self, committable: Mapping[int, int]) -> None:
        """Set the group's committed offsets, durably. Commits take effect in the order of the calls.

        Raises CommitFailed: the offsets may take effect later.
        """
        if not self._is_open:
            raise CommitFailed(f"The local log {self.path} is not open.")
        written = self._threads.write(self._file.commit, committable)
        written.add_done_callback(_seen)
        await asyncio.wait({written}, timeout=_COMMIT_SECONDS)
        if not written.done():
            raise CommitFailed("Offsets could not be committed: the disk did not answer in time.")
        error = written.exception()
        if error is not None:
            raise CommitFailed(f"Offsets could not be committed: {error}") from error

    async def trim(self) -> int:
        """Remove records past their retention that the group has committed; returns how many.

        Raises LogFull, LogUnavailable.
        """
        before_ms = int((self._clock() - self._settings.retention_hours * 3600) * 1000)
        total = 0
        while self._is_open:
            removed = await self._threads.write(self._file.trim, before_ms, _TRIM_SEGMENTS)
            if not removed:
                break
            total += removed
        return total

    def _encode(self, records: Sequence[NewRecord]) -> Append:
        partitions = len(self.partitions)
        encoded: dict[int, list[bytes]] = {}
        size = 0
        for record in records:
            item = encode_record(record.key, record.value, record.headers)
            if len(item) > MAX_RECORD_BYTES:
                raise RecordTooLarge(
                    f"The record has {len(item):,} bytes; the local log takes {MAX_RECORD_BYTES:,}."
                )
            size += len(item)
            encoded.setdefault(partition_for(record.key, partitions), []).append(item)
        return Append(encoded, size)

    async def _write_waiting(self) -> None:
        """Write until nothing waits. Every append taken gets an outcome, whatever happens."""
        try:
            while self._waiting:
                group = self._next_group()
                error: BrokerError | None = LogUnavailable("The local log stopped while writing.")
                try:
                    await self._write(group)
                    error = None
                except BrokerError as failure:
                    error = failure
                finally:
                    self._finish(group, error)
        finally:
            self._writing = None

    def _next_group(self) -> list[Append]:
        group: list[Append] = []
        size = 0
        for append in self._waiting:
            if group and size + append.size > _GROUP_BYTES:
                break
            group.append(append)
            size += append.size
        for append in group:
            del self._waiting[append]
        return group

    async def _write(self, group: Sequence[Append]) -> None:
        merged: dict[int, list[bytes]] = {}
        for append in group:
            for partition, records in append.records.items():
                merged.setdefault(partition, []).extend(records)
        await self._threads.write(self._file.append, merged, int(self._clock() * 1000))

    def _finish(self, group: Sequence[Append], error: BrokerError | None) -> None:
        for append in group:
            self._buffered -= append.size
            if not append.outcome.done():
                append.outcome.set_result(error)
        if error is None:
            for changed in tuple(self._watchers):
                changed()


class _Threads:
    """One thread that writes and one that reads; calls of each run in the order they were made."""

    def __init__(self) -> None:
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="log-writer")
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="log-reader")

    def write(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> asyncio.Future[_T]:
        return asyncio.get_running_loop().run_in_executor(self._writer, partial(function, *args, **kwargs))

    def read(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> asyncio.Future[_T]:
        return asyncio.get_running_loop().run_in_executor(self._reader, partial(function, *args, **kwargs))

    def shutdown(self) -> None:
        """Let the threads end after their last call, without waiting for it."""
        self._reader.shutdown(wait=False)
        self._writer.shutdown(wait=False)


def _seen(written: asyncio.Future[None]) -> None:
    """Its error has been told, or nobody waits for it any more."""
    if not written.cancelled():
        written.exception()
