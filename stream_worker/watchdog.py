"""Notices a worker that makes no progress although there is something to read.

aiokafka can end up in states that no exception ever reports: a fetch task that died unobserved, a rejoin that
never ends. From outside they all look the same: the log grows, the position does not move. Waiting for the
database looks like that too, and is not a fault of the worker.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import structlog

from broker.errors import BrokerError
from broker.ports import Log
from db.errors import StoreError

_log = structlog.get_logger("stream_worker.watchdog")


class WorkerStuck(Exception):
    """The worker made no progress in spite of lag, and replacing its consumer did not help."""


class Watchdog:
    """Decides whether the worker is stuck, by what the database and the log say, not by what it says itself.

    Args:
        log: asked for its end offsets through a connection of its own; the worker's may be what is stuck.
        stored: the stored next offset of every partition.
        assignment: the worker's partitions. Without any, all of them count: a worker that never gets its
            share is stuck, too, unless others make progress.
        stall_seconds: how long progress may be missing; being stuck is noticed within twice that time.
    """

    def __init__(
        self,
        log: Log,
        stored: Callable[[], Mapping[int, int]],
        assignment: Callable[[], frozenset[int]],
        stall_seconds: float,
    ) -> None:
        self._log = log
        self._stored = stored
        self._assignment = assignment
        self._stall_seconds = stall_seconds
        self._is_excused = False
        self._is_stuck = False

    @property
    def is_stuck(self) -> bool:
        """True from the moment the worker is found stuck until its position moves again."""
        return self._is_stuck

    def excuse(self) -> None:
        """The worker is waiting for the database: missing progress means nothing until the next look."""
        self._is_excused = True

    async def until_stuck(self) -> None:
        """Return once the worker is stuck."""
        before: dict[int, int] | None = None
        while True:
            after = await self._lagging()
            if before is not None and after is not None:
                moved = any(after.get(partition) != offset for partition, offset in before.items())
                if moved or not before:
                    self._is_stuck = False
                elif not self._is_excused:
                    self._is_stuck = True
                    return
            self._is_excused = False
            before = after
            await asyncio.sleep(self._stall_seconds)

    async def _lagging(self) -> dict[int, int] | None:
        """Stored positions of our partitions that are behind the log; None if either side cannot be asked."""
        admin = self._log.admin()
        try:
            stored = await asyncio.to_thread(self._stored)
            await admin.start()
            held = await admin.offsets()
        except (BrokerError, StoreError) as error:
            _log.info("progress cannot be judged during an outage", detail=str(error))
            return None
        finally:
            await admin.stop()
        ours = self._assignment() or held.keys()
        return {
            partition: stored.get(partition, held[partition].beginning)
            for partition in ours
            if partition in held and held[partition].end > stored.get(partition, held[partition].beginning)
        }
