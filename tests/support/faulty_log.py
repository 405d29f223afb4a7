"""A log that fails when it is told to, and otherwise is the log it wraps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from broker.errors import BrokerError
from broker.ports import (
    Consumer,
    Log,
    LogAdmin,
    LogReader,
    NewRecord,
    PartitionOffsets,
    Poll,
    Producer,
    RebalanceListener,
)

Operation = Literal["publish", "poll", "commit"]


@dataclass(frozen=True)
class _Failure:
    error: BrokerError
    after: bool


class _Plan:
    """Which call of which operation fails; calls are counted from 1 over everything the log has opened."""

    def __init__(self) -> None:
        self._failures: dict[tuple[Operation, int], _Failure] = {}
        self._calls: dict[Operation, int] = {"publish": 0, "poll": 0, "commit": 0}

    def add(self, operation: Operation, call: int, failure: _Failure) -> None:
        self._failures[operation, self._calls[operation] + call] = failure

    def next(self, operation: Operation) -> _Failure | None:
        self._calls[operation] += 1
        return self._failures.get((operation, self._calls[operation]))


class FailingLog:
    """A `broker.ports.Log` around another one."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._plan = _Plan()

    def fail(self, operation: Operation, error: BrokerError, *, call: int = 1, after: bool = False) -> None:
        """Make a call fail.

        Args:
            call: which one from now on; 1 is the next.
            after: fail when the work is done: a publish that landed, a poll whose records are lost although
                the position moved, a commit that took effect. Otherwise the call does nothing but fail.
        """
        self._plan.add(operation, call, _Failure(error, after))

    @property
    def topic(self) -> str:
        return self._log.topic

    def producer(self) -> Producer:
        return _FailingProducer(self._log.producer(), self._plan)

    def consumer(self, listener: RebalanceListener) -> Consumer:
        return _FailingConsumer(self._log.consumer(listener), self._plan)

    def admin(self) -> LogAdmin:
        return self._log.admin()

    def reader(self) -> LogReader:
        return self._log.reader()


class _FailingProducer:
    def __init__(self, producer: Producer, plan: _Plan) -> None:
        self._producer = producer
        self._plan = plan

    @property
    def in_flight(self) -> int:
        return self._producer.in_flight

    async def start(self) -> None:
        await self._producer.start()

    async def stop(self) -> None:
        await self._producer.stop()

    async def publish(self, records: Sequence[NewRecord], *, timeout: float) -> None:
        failure = self._plan.next("publish")
        if failure is None or failure.after:
            await self._producer.publish(records, timeout=timeout)
        if failure is not None:
            raise failure.error


class _FailingConsumer:
    def __init__(self, consumer: Consumer, plan: _Plan) -> None:
        self._consumer = consumer
        self._plan = plan

    async def start(self) -> None:
        await self._consumer.start()

    async def stop(self) -> None:
        await self._consumer.stop()

    def assignment(self) -> frozenset[int]:
        return self._consumer.assignment()

    async def poll(self, max_records: int, timeout: float) -> Poll:
        failure = self._plan.next("poll")
        if failure is not None and not failure.after:
            raise failure.error
        poll = await self._consumer.poll(max_records, timeout)
        if failure is not None:
            raise failure.error
        return poll

    def seek(self, partition: int, offset: int) -> None:
        self._consumer.seek(partition, offset)

    async def commit(self, committable: Mapping[int, int]) -> None:
        failure = self._plan.next("commit")
        if failure is None or failure.after:
            await self._consumer.commit(committable)
        if failure is not None:
            raise failure.error

    async def committed(self, partitions: Iterable[int]) -> dict[int, int | None]:
        return await self._consumer.committed(partitions)

    async def offsets(self, partitions: Iterable[int]) -> dict[int, PartitionOffsets]:
        return await self._consumer.offsets(partitions)
