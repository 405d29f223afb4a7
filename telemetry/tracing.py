"""Traces: from an HTTP request through the log's headers to the batch that stores its events.

`open_tracing` gives what the environment asks for. Unless it names an OTLP endpoint, nothing of the
OpenTelemetry SDK is imported, no spans are made, and a caller's trace context is handed on as it came.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Final, NamedTuple, Protocol

from telemetry.trace_names import TRACEPARENT, TRACESTATE

RecordHeaders = tuple[tuple[str, bytes | None], ...]

_TRACEPARENT: Final = re.compile(
    rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
)
_TRACESTATE: Final = re.compile(rb"[\x20-\x7e]{1,512}")
_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_SUPPORTED: Final = "http/protobuf"


class TracingMisconfigured(Exception):
    """The OTEL_* variables ask for what this process cannot do; the text says what to change."""


class TraceContext(NamedTuple):
    """A valid W3C trace context, in bytes as it travels."""

    traceparent: bytes
    tracestate: bytes | None

    @classmethod
    def of(cls, traceparent: bytes | None, tracestate: bytes | None = None) -> TraceContext | None:
        """None if there is no valid `traceparent`; an invalid `tracestate` alone is dropped."""
        if traceparent is None or not _TRACEPARENT.fullmatch(traceparent):
            return None
        if tracestate is not None and not _TRACESTATE.fullmatch(tracestate):
            tracestate = None
        return cls(traceparent, tracestate)

    @classmethod
    def of_record(cls, headers: RecordHeaders) -> TraceContext | None:
        """The context a record's headers carry."""
        traceparent = tracestate = None
        for name, value in headers:
            if name == TRACEPARENT:
                traceparent = value
            elif name == TRACESTATE:
                tracestate = value
        return cls.of(traceparent, tracestate)

    def record_headers(self) -> RecordHeaders:
        """The headers that hand it on with a record."""
        if self.tracestate is None:
            return ((TRACEPARENT, self.traceparent),)
        return ((TRACEPARENT, self.traceparent), (TRACESTATE, self.tracestate))


class Sending:
    """A request's events on their way into the log.

    Attributes:
        context: what their records are to carry; None for nothing.
    """

    __slots__ = ("context",)

    def __init__(self, context: TraceContext | None) -> None:
        self.context = context

    def count(self, records: int) -> None:
        """So many records are being sent."""


class Tracing(Protocol):
    """What gateway and worker say to a tracer."""

    def send(self, parent: TraceContext | None) -> AbstractContextManager[Sending]:
        """The span of a request's events being sent; ends with the block, with its error if it raises."""

    def poll(
        self, started_ns: int, records: int, partitions: Iterable[int], error: Exception | None = None
    ) -> object:
        """The span of a poll that is over. Returns what to give to `process` as the parent.

        Args:
            started_ns: when it began, in nanoseconds since 1970.
        """

    def process(
        self, headers: Iterable[RecordHeaders], records: int, partitions: Iterable[int], parent: object
    ) -> AbstractContextManager[None]:
        """The span of a batch being decoded, stored and committed; linked to what its records carry."""

    def close(self) -> None:
        """Send what is left, for at most some seconds. Blocks."""


class NoTracing:
    """Makes no spans; hands on the context of the caller."""

    def send(self, parent: TraceContext | None) -> AbstractContextManager[Sending]:
        return nullcontext(Sending(parent))

    def poll(
        self, started_ns: int, records: int, partitions: Iterable[int], error: Exception | None = None
    ) -> None:
        return None

    def process(
        self, headers: Iterable[RecordHeaders], records: int, partitions: Iterable[int], parent: object
    ) -> AbstractContextManager[None]:
        return nullcontext()

    def close(self) -> None:
        """Nothing is left."""


def open_tracing(environ: Mapping[str, str], *, service: str, log_topic: str, group: str | None) -> Tracing:
    """What the standard variables of OpenTelemetry ask for.

    Args:
        environ: the process's environment; the SDK reads further `OTEL_*` variables from it.
        service: `service.name`, unless the environment names one.
        log_topic: becomes `messaging.destination.name`.
        group: the consumer group.

    Raises:
        TracingMisconfigured: another protocol than OTLP over HTTP is asked for.
    """
    is_off = environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    exporter = environ.get("OTEL_TRACES_EXPORTER", "otlp").strip()
    if is_off or exporter != "otlp" or not any(environ.get(name) for name in _ENDPOINTS):
        return NoTracing()
    for name in _PROTOCOLS:
        protocol = environ.get(name, _SUPPORTED)
        if protocol != _SUPPORTED:
            raise TracingMisconfigured(
                f"{name} is {protocol!r}, but spans are sent as {_SUPPORTED}; remove the variable, and let"
                f" {_ENDPOINTS[1]} name the collector's HTTP port (usually 4318)."
            )
    from telemetry.otlp import OtlpTracing

    return OtlpTracing(service=service, log_topic=log_topic, group=group)
