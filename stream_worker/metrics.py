"""What the worker measures: per batch, never per event."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter
from typing import Literal

from db.batch import Batch, InvalidRecord, ValidRecord, WriteResult
from events.errors import InvalidCode
from events.verdict import CONFLICT_REASON, DATABASE_REASON, UNDECODABLE_REASON, Verdict
from stream_worker.lag import Lag
from telemetry import metric_names as names
from telemetry.instruments import CappedLabel, Labels
from telemetry.metrics import Metrics

Stage = Literal["decode", "store", "commit"]
_REASONS = (*InvalidCode, UNDECODABLE_REASON, DATABASE_REASON, CONFLICT_REASON)


class WorkerMetrics:
    """The worker's instruments, in the registry of its process."""

    def __init__(self, process: Metrics, *, clock: Callable[[], float] = time.time) -> None:
        """
        Args:
            clock: seconds since 1970.
        """
        self.process = process
        self.lag = Lag(clock)
        self._clock = clock
        self._processed = process.counter(names.EVENTS_PROCESSED)
        self._processed.declare(Verdict)
        self._by_topic = process.counter(names.TOPIC_EVENTS_PROCESSED)
        self._topic = CappedLabel(process.settings.max_topics)
        self._batch_size = process.histogram(names.BATCH_SIZE)
        self._stages = process.histogram(names.BATCH_DURATION)
        self._latency = process.histogram(names.EVENT_LATENCY)
        process.gauge(names.LAG_RECORDS).follow(lambda: _by_label(self.lag.records()))
        process.gauge(names.LAG_SECONDS).follow(lambda: _by_label(self.lag.seconds()))
        self._last_commit = process.gauge(names.LAST_COMMIT)
        self._assigned = process.gauge(names.ASSIGNED_PARTITIONS)
        self._assigned.set(0)
        self._rebalances = process.counter(names.REBALANCES)
        self._retries = process.counter(names.RETRIES)
        self._dead_letters = process.counter(names.DEAD_LETTERS)
        self._dead_letters.declare(_REASONS)

    def follow_assignment(self, assignment: Callable[[], frozenset[int]]) -> None:
        """Where to read which partitions are ours."""
        self._assigned.follow(lambda: {(): len(assignment())})

    def assigned(self) -> None:
        """The group gave us partitions."""
        self._rebalances.add(1)

    def retrying(self, error: Exception) -> None:
        """A step failed, and will be tried again."""
        self._retries.add(1, type(error).__name__)

    @contextmanager
    def stage(self, stage: Stage) -> Iterator[None]:
        """Measure one stage of a batch, if it succeeds."""
        started = perf_counter()
        yield
        self._stages.observe(perf_counter() - started, stage)

    def stored(self, batch: Batch, result: WriteResult) -> None:
        """A batch has its verdicts."""
        self._processed.add(result.stored, Verdict.STORED)
        self._processed.add(result.duplicates, Verdict.DUPLICATE)
        self._processed.add(result.conflicts, Verdict.CONFLICT)
        self._processed.add(result.dead_lettered, Verdict.DEAD_LETTERED)
        for (topic, verdict), count in result.by_topic.items():
            self._by_topic.add(count, self._topic(topic), verdict)
        if result.conflicts:
            self._dead_letters.add(result.conflicts, CONFLICT_REASON)
        if result.dead_lettered:
            reasons = Counter(record.reason for record in batch.records if isinstance(record, InvalidRecord))
            # The others were valid events until the database refused them.
            reasons[DATABASE_REASON] += result.dead_lettered - reasons.total()
            for reason, count in reasons.items():
                self._dead_letters.add(count, reason)
        if batch.records:
            self._batch_size.observe(len(batch.records))
            self._measure_latency(batch)
        self.lag.stored(
            {position.partition: position.next_offset for position in result.positions},
            {record.at.partition: record.at.timestamp_ms for record in batch.records},
        )

    def committed(self) -> None:
        """Offsets were committed."""
        self._last_commit.set(self._clock())

    def _measure_latency(self, batch: Batch) -> None:
        now = self._clock()
        latencies = [
            now - record.at.received_at_us / 1_000_000
            for record in batch.records
            if record.at.received_at_us is not None and isinstance(record, ValidRecord)
        ]
        if latencies and min(latencies) < 0:
            # A gateway's clock is ahead of ours.
            latencies = [max(0.0, latency) for latency in latencies]
        self._latency.observe_all(latencies)


def _by_label(values: Mapping[int, float]) -> dict[Labels, float]:
    return {(partition,): value for partition, value in values.items()}
