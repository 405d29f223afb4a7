"""Reading the embedded log without being a member of its group, from the same process or from another."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

from broker.errors import LogUnavailable
from broker.local_file import LogFileReader, PartitionState, Span
from broker.ports import PartitionOffsets, Poll

_READ_BYTES: Final = 4 * 1024 * 1024
_RECORDS: Final = 5_000

_T = TypeVar("_T")


class LocalReader:
    """See `broker.ports.LogReader`. It needs nothing but the file, which another process may be writing."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def start(self) -> None:
        """Raises LogUnavailable if there is no log."""
        if not self._path.is_file():
            raise LogUnavailable(f"There is no log {self._path}.")

    async def stop(self) -> None:
        """Nothing is kept open."""

    async def offsets(self) -> dict[int, PartitionOffsets]:
        states = await self._states()
        return {p: PartitionOffsets(p, state.beginning, state.end) for p, state in states.items()}

    async def committed(self) -> dict[int, int | None]:
        return {p: state.committed for p, state in (await self._states()).items()}

    async def read(self, partition: int, offset: int, end: int) -> Poll:
        span = Span(partition, offset, end, min(end - offset, _RECORDS))
        (found,) = await self._ask(lambda file: file.read([span], _READ_BYTES))
        records = [record for record in found if record.offset < end]
        return Poll(records, {partition: min(records[-1].next_offset, end) if records else end})

    async def _states(self) -> dict[int, PartitionState]:
        return await self._ask(LogFileReader.partitions)

    async def _ask(self, question: Callable[[LogFileReader], _T]) -> _T:
        def ask() -> _T:
            with _opened(self._path) as file:
                return question(file)

        return await asyncio.to_thread(ask)


@contextmanager
def _opened(path: Path) -> Iterator[LogFileReader]:
    file = LogFileReader(path)
    file.open()
    try:
        yield file
    finally:
        file.close()
