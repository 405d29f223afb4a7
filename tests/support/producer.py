"""A producer that keeps records in memory, and fails, hangs or waits when told to."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from broker.errors import BrokerError, ProduceOutcomeUnknown
from broker.ports import NewRecord


class MemoryProducer:
    """Implements `broker.ports.Producer`.

    Attributes:
        records: what was appended, in order.
        gate: while cleared, `publish` waits before it appends.
        entered: set once a `publish` waits at the gate.
    """

    def __init__(self) -> None:
        self.records: list[NewRecord] = []
        self.calls = 0
        self.started = 0
        self.stopped = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.entered = asyncio.Event()
        self._in_flight = 0
        self._failures: dict[int, BrokerError] = {}
        self._start_failures: list[BrokerError] = []

    def fail_at(self, call: int, error: BrokerError) -> None:
        """Raise the error at the n-th `publish`, counted from 1."""
        self._failures[call] = error

    def fail_start(self, *errors: BrokerError) -> None:
        """Raise these at the next calls of `start`, one each."""
        self._start_failures += errors

    async def start(self) -> None:
        if self._start_failures:
            raise self._start_failures.pop(0)
        self.started += 1

    async def stop(self) -> None:
        self.stopped += 1

    async def publish(self, records: Sequence[NewRecord], *, timeout: float) -> None:
        self.calls += 1
        failure = self._failures.get(self.calls)
        if failure is not None:
            raise failure
        self._in_flight += len(records)
        try:
            if not self.gate.is_set():
                self.entered.set()
                try:
                    async with asyncio.timeout(timeout):
                        await self.gate.wait()
                except TimeoutError:
                    raise ProduceOutcomeUnknown from None
            self.records += records
        finally:
            self._in_flight -= len(records)

    @property
    def in_flight(self) -> int:
        return self._in_flight
