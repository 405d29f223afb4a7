"""What the gateway measures: per request, never per event."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from time import perf_counter

from broker.errors import BrokerError
from broker.ports import NewRecord
from events.errors import InvalidCode
from ingest_api.refusal import TOPIC_NOT_ALLOWED, Reason, Rejected
from telemetry import metric_names as names
from telemetry.instruments import Counter, Histogram
from telemetry.metrics import Metrics


class GatewayMetrics:
    """The gateway's instruments, in the registry of its process."""

    def __init__(self, process: Metrics) -> None:
        self.process = process
        self._accepted = process.counter(names.EVENTS_ACCEPTED)
        self._rejected = process.counter(names.EVENTS_REJECTED)
        self._rejected.declare([*InvalidCode, TOPIC_NOT_ALLOWED])
        self._refused = process.counter(names.REQUESTS_REFUSED)
        self._refused.declare(Reason)
        self._sizes = process.histogram(names.EVENT_SIZE)
        self._produce = process.histogram(names.PRODUCE_DURATION)
        self._produce_errors = process.counter(names.PRODUCE_ERRORS)
        self._in_flight = process.gauge(names.PRODUCER_IN_FLIGHT)

    def follow_in_flight(self, in_flight: Callable[[], int]) -> None:
        """Where to read how many events wait for the log's acknowledgement."""
        self._in_flight.follow(lambda: {(): in_flight()})

    def accepted(self, records: Sequence[NewRecord]) -> None:
        """The log has acknowledged these."""
        self._accepted.add(len(records))
        if len(records) == 1:
            self._sizes.observe(len(records[0].value))
        else:
            self._sizes.observe_all([len(record.value) for record in records])

    def rejected(self, rejected: Rejected) -> None:
        """Events of a request were found invalid."""
        for code, count in rejected.codes.items():
            self._rejected.add(count, code)

    def refused(self, reason: Reason) -> None:
        """A request was refused as a whole."""
        self._refused.add(1, reason)

    def producing(self) -> AbstractContextManager[None]:
        """Measures the wait for the log's acknowledgement, and counts what it ends with."""
        return _Producing(self._produce, self._produce_errors)


class _Producing:
    # A class: a generator would cost every request twice as much.
    __slots__ = ("_duration", "_errors", "_started")

    def __init__(self, duration: Histogram, errors: Counter) -> None:
        self._duration = duration
        self._errors = errors
        self._started = perf_counter()

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self._duration.observe(perf_counter() - self._started)
        if isinstance(error, BrokerError):
            self._errors.add(1, type(error).__name__)
