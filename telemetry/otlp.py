"""Spans by the OpenTelemetry SDK, sent by OTLP over HTTP. Imported only where an endpoint is configured."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
    format_span_id,
    format_trace_id,
    set_span_in_context,
)
from structlog.contextvars import bind_contextvars, bound_contextvars

from telemetry import trace_names as names
from telemetry.tracing import RecordHeaders, Sending, TraceContext
from telemetry.version import product_version

_CLOSE_SECONDS: Final = 5.0


class OtlpTracing:
    """See `telemetry.tracing.Tracing`. Endpoint, sampler, limits and batching are set by `OTEL_*` variables.

    Nothing is global: a process may have several. Spans are sent by a thread, in batches; while the collector
    is away they are dropped, and nothing waits.
    """

    def __init__(self, *, service: str, log_topic: str, group: str | None) -> None:
        attributes = {"service.version": product_version()}
        if not os.environ.get("OTEL_SERVICE_NAME"):
            attributes["service.name"] = service
        limits = SpanLimits()
        self._most_links = limits.max_links if limits.max_links is not None else 128
        self._provider = TracerProvider(
            resource=Resource.create(attributes), span_limits=limits, shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("aggregator", product_version())
        self._log_topic = log_topic
        self._group = group

    @contextmanager
    def send(self, parent: TraceContext | None) -> Iterator[Sending]:
        span = self._span(names.SEND, SpanKind.PRODUCER, parent=_remote(parent))
        context = span.get_span_context()
        # For the lines of this request; its log context ends with it.
        bind_contextvars(**_log_fields(context))
        try:
            yield _SpanSending(span, context)
        except Exception as error:
            _failed(span, error)
            raise
        finally:
            span.end()

    def poll(
        self, started_ns: int, records: int, partitions: Iterable[int], error: Exception | None = None
    ) -> Context:
        span = self._span(names.POLL, SpanKind.CLIENT, started_ns=started_ns)
        _describe(span, records, partitions)
        if error is not None:
            _failed(span, error)
        span.end()
        return set_span_in_context(span)

    @contextmanager
    def process(
        self, headers: Iterable[RecordHeaders], records: int, partitions: Iterable[int], parent: object
    ) -> Iterator[None]:
        span = self._span(
            names.PROCESS,
            SpanKind.CONSUMER,
            parent=parent if isinstance(parent, Context) else Context(),
            links=self._links(headers),
        )
        _describe(span, records, partitions)
        with bound_contextvars(**_log_fields(span.get_span_context())):
            try:
                yield
            except Exception as error:
                _failed(span, error)
                raise
            finally:
                span.end()

    def close(self) -> None:
        # The SDK waits half a minute for a collector that is away.
        closing = threading.Thread(target=self._provider.shutdown, name="tracing-close", daemon=True)
        closing.start()
        closing.join(_CLOSE_SECONDS)

    def _span(
        self,
        operation: str,
        kind: SpanKind,
        *,
        parent: Context | None = None,
        links: list[Link] | None = None,
        started_ns: int | None = None,
    ) -> Span:
        attributes = {
            names.SYSTEM: "kafka",
            names.OPERATION_NAME: operation,
            names.OPERATION_TYPE: names.OPERATION_TYPES[operation],
            names.DESTINATION_NAME: self._log_topic,
        }
        if self._group is not None and operation != names.SEND:
            attributes[names.CONSUMER_GROUP_NAME] = self._group
        return self._tracer.start_span(
            f"{operation} {self._log_topic}",
            context=parent if parent is not None else Context(),
            kind=kind,
            attributes=attributes,
            links=links,
            start_time=started_ns,
        )

    def _links(self, headers: Iterable[RecordHeaders]) -> list[Link]:
        """One link for each context; records that were sent together share theirs.

        No more than the SDK would keep: of more links it keeps the last, at the cost of making all.
        """
        found: dict[bytes, Link] = {}
        for one in headers:
            if len(found) >= self._most_links:
                break
            carried = TraceContext.of_record(one)
            if carried is not None and carried.traceparent not in found:
                found[carried.traceparent] = Link(_span_context(carried))
        return list(found.values())


class _SpanSending(Sending):
    def __init__(self, span: Span, context: SpanContext) -> None:
        super().__init__(_carried(context))
        self._span = span

    def count(self, records: int) -> None:
        self._span.set_attribute(names.BATCH_MESSAGE_COUNT, records)


def _describe(span: Span, records: int, partitions: Iterable[int]) -> None:
    span.set_attribute(names.BATCH_MESSAGE_COUNT, records)
    numbers = set(partitions)
    if len(numbers) == 1:
        span.set_attribute(names.DESTINATION_PARTITION_ID, str(numbers.pop()))


def _failed(span: Span, error: Exception) -> None:
    # The cause says what was wrong; never the text, which may speak of what was sent.
    cause = type(error.__cause__ or error).__name__
    span.set_attribute(names.ERROR_TYPE, cause)
    span.set_status(Status(StatusCode.ERROR))


def _remote(parent: TraceContext | None) -> Context:
    if parent is None:
        return Context()
    return set_span_in_context(NonRecordingSpan(_span_context(parent)), Context())


def _span_context(carried: TraceContext) -> SpanContext:
    _, trace_id, span_id, flags = carried.traceparent.decode("ascii").split("-")
    state = TraceState.from_header([carried.tracestate.decode("ascii")]) if carried.tracestate else None
    return SpanContext(int(trace_id, 16), int(span_id, 16), True, TraceFlags(int(flags, 16)), state)


def _carried(context: SpanContext) -> TraceContext:
    trace_id, span_id = format_trace_id(context.trace_id), format_span_id(context.span_id)
    traceparent = f"00-{trace_id}-{span_id}-{int(context.trace_flags):02x}"
    return TraceContext(traceparent.encode(), context.trace_state.to_header().encode() or None)


def _log_fields(context: SpanContext) -> dict[str, str]:
    return {"trace_id": format_trace_id(context.trace_id), "span_id": format_span_id(context.span_id)}
