"""What the gateway measures: per request, never per event."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter

from broker.errors import BrokerError
from broker.ports import NewRecord
from events.errors import InvalidCode
from ingest_api.refusal import Reason, Rejected
from telemetry import metric_names as names
from telemetry.metrics import Metrics


class GatewayMetrics:
    """The gateway's instruments, in the registry of its process."""

    def __init__(self, process: Metrics) -> None:
        self.process = process
        self._accepted = process.counter(names.EVENTS_ACCEPTED)
        self._rejected = process.counter(names.EVENTS_REJECTED)
        self._rejected.declare(InvalidCode)
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
        self._sizes.observe_all([len(record.value) for record in records])

    def rejected(self, rejected: Rejected) -> None:
        """Events of a request were found invalid."""
        for code, count in rejected.codes.items():
            self._rejected.add(count, code)

    def refused(self, reason: Reason) -> None:
        """A request was refused as a whole."""
        self._refused.add(1, reason)

    @contextmanager
    def producing(self) -> Iterator[None]:
        """Measure the wait for the log's acknowledgement."""
        started = perf_counter()
        try:
            yield
        except (BrokerError, TimeoutError) as error:
            self._produce_errors.add(1, type(error).__name__)
            raise
        finally:
            self._produce.observe(perf_counter() - started)
