"""How far this worker is behind the log, in records and in seconds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping

import structlog

from broker.errors import BrokerError
from broker.ports import Log, LogAdmin, PartitionOffsets

_log = structlog.get_logger("stream_worker.lag")


class _Partition:
    """What is known of one assigned partition.

    Attributes:
        position: the stored next offset.
        end: the end offset when it was asked for last; None before.
        since: nothing at or after the position was appended before this time; None where that is not known.
    """

    __slots__ = ("assigned_at", "end", "position", "since")

    def __init__(self, position: int, assigned_at: float) -> None:
        self.position = position
        self.assigned_at = assigned_at
        self.end: int | None = None
        self.since: float | None = None


class Lag:
    """The lag of the assigned partitions; a partition that is revoked is forgotten with all its figures.

    Records: end offset minus stored position. The end offsets are some seconds old, so a position may have
    passed them; the lag is 0 then, never negative.

    Seconds: the age of the oldest record without a verdict, at most. It cannot be older than the record
    stored last (by the log's own clock), nor than the last time the position was seen at the end of the log.
    Where neither is known yet, it counts from the assignment.

    Args:
        clock: seconds since 1970, as the log's clock.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._partitions: dict[int, _Partition] = {}

    def positioned(self, positions: Mapping[int, int]) -> None:
        """These partitions are assigned, and read from these offsets."""
        for partition, offset in positions.items():
            known = self._partitions.get(partition)
            if known is None:
                self._partitions[partition] = _Partition(offset, self._clock())
            else:
                known.position = offset

    def stored(self, positions: Mapping[int, int], timestamps_ms: Mapping[int, int]) -> None:
        """Everything before these positions has its verdict.

        Args:
            timestamps_ms: of the last record of each partition, by the log's clock.
        """
        now = self._clock()
        for partition, offset in positions.items():
            known = self._partitions.get(partition)
            if known is None:
                continue
            known.position = offset
            appended = timestamps_ms.get(partition, -1) / 1000
            # A clock that is ahead, or no clock at all, says nothing.
            if 0 < appended <= now and (known.since is None or known.since < appended):
                known.since = appended

    def revoked(self, partitions: Iterable[int] | None = None) -> None:
        """These partitions (all, if None) are not ours any more."""
        for partition in list(self._partitions) if partitions is None else partitions:
            self._partitions.pop(partition, None)

    def sampled(self, offsets: Mapping[int, PartitionOffsets]) -> None:
        """The log's offsets as of now."""
        now = self._clock()
        for partition, known in self._partitions.items():
            held = offsets.get(partition)
            if held is not None:
                known.end = held.end
                if known.position >= held.end:
                    known.since = now

    def records(self) -> dict[int, int]:
        """By partition; partitions whose end is not known yet are absent."""
        return {
            partition: max(0, known.end - known.position)
            for partition, known in self._partitions.items()
            if known.end is not None
        }

    def seconds(self) -> dict[int, float]:
        """By partition, like `records`."""
        now = self._clock()
        return {
            partition: 0.0
            if known.position >= known.end
            else max(0.0, now - (known.assigned_at if known.since is None else known.since))
            for partition, known in self._partitions.items()
            if known.end is not None
        }


async def keep_sampled(lag: Lag, log: Log, interval_s: float) -> None:
    """Give the lag the log's offsets every so many seconds, until cancelled.

    Through a connection of its own: the worker's may be what is stuck, and waits while a batch is stored.
    While the log cannot be asked, the last offsets stand.
    """
    admin: LogAdmin | None = None
    try:
        while True:
            try:
                if admin is None:
                    admin = log.admin()
                    await admin.start()
                lag.sampled(await admin.offsets())
            except BrokerError as error:
                _log.debug("the log's end offsets are not known", detail=str(error))
                if admin is not None:
                    await admin.stop()
                    admin = None
            await asyncio.sleep(interval_s)
    finally:
        if admin is not None:
            await admin.stop()
