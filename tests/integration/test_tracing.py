"""Traces within one process: the embedded log, a collector, and what happens when something is missing."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from broker.errors import LogFull
from ingest_api.gateway import Gateway
from ingest_api.refusal import Refused
from ingest_api.settings import IngestSettings
from telemetry.tracing import NoTracing, TraceContext, Tracing, TracingMisconfigured, open_tracing
from tests.support.hostile import encode, event
from tests.support.otlp_collector import Collector, collecting
from tests.support.processes import REPOSITORY, free_port
from tests.support.producer import MemoryProducer

PARENT = TraceContext(b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", b"vendor=value")


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        yield collector


def opened(endpoint: str) -> Tracing:
    return open_tracing(
        {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}, service="test", log_topic="events", group="group"
    )


async def test_records_carry_the_context_of_the_span_that_sent_them(collector: Collector) -> None:
    producer, tracing = MemoryProducer(), opened(collector.url)
    gateway = Gateway(producer, IngestSettings(), tracing=tracing)
    await gateway.start()
    await gateway.publish(encode([event(event_id="1"), event(event_id="2")]), trace=PARENT)
    await gateway.publish(encode(event(event_id="3")))
    await gateway.stop()
    await asyncio.to_thread(tracing.close)
    first, alone = collector.named("send")
    assert first.parent_id == "b7ad6b7169203331"
    assert (alone.parent_id, len(alone.trace_id)) == ("", 32)
    carried = [TraceContext.of_record(record.headers) for record in producer.records]
    for context, span in zip(carried, (first, first, alone), strict=True):
        assert context is not None
        assert context.traceparent.startswith(f"00-{span.trace_id}-{span.span_id}-0".encode())
    assert [context.tracestate for context in carried if context] == [b"vendor=value", b"vendor=value", None]


async def test_a_log_that_fails_is_the_error_of_the_span(collector: Collector) -> None:
    producer, tracing = MemoryProducer(), opened(collector.url)
    producer.fail_at(1, LogFull())
    gateway = Gateway(producer, IngestSettings(), tracing=tracing)
    await gateway.start()
    with pytest.raises(Refused):
        await gateway.publish(encode(event()))
    await gateway.stop()
    await asyncio.to_thread(tracing.close)
    (span,) = collector.named("send")
    assert (span.failed, span.attributes["error.type"]) == (True, "LogFull")


def test_a_batch_has_one_link_for_each_context_up_to_the_limit(collector: Collector) -> None:
    tracing = opened(collector.url)
    contexts = [TraceContext(b"00-%032x-%016x-01" % (n, n), None) for n in range(1, 300)]
    repeated = [contexts[0], contexts[1], contexts[0]]
    for carried in (repeated, contexts):
        headers = [one.record_headers() for one in carried]
        parent = tracing.poll(time.time_ns(), len(headers), [3])
        with tracing.process([*headers, (), (("traceparent", b"nonsense"),)], len(headers), [3], parent):
            pass
    tracing.close()
    few, many = collector.named("process")
    assert [link.span_id for link in few.links] == [f"{1:016x}", f"{2:016x}"]
    assert len(many.links) == 128
    assert many.attributes["messaging.batch.message_count"] == 299
    assert many.attributes["messaging.destination.partition.id"] == "3"
    assert {many.parent_id, few.parent_id} == {span.span_id for span in collector.named("poll")}


def test_a_batch_that_fails_is_a_failed_span(collector: Collector) -> None:
    tracing = opened(collector.url)
    tracing.poll(time.time_ns(), 0, (), LogFull())
    with pytest.raises(ZeroDivisionError), tracing.process([], 1, [0], None):
        raise ZeroDivisionError
    tracing.close()
    (poll,), (process,) = collector.named("poll"), collector.named("process")
    assert (poll.failed, poll.attributes["error.type"]) == (True, "LogFull")
    assert (process.failed, process.attributes["error.type"]) == (True, "ZeroDivisionError")


def test_a_collector_that_is_away_neither_delays_nor_breaks_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", nobody)
    tracing = opened(nobody)
    tracing.poll(time.time_ns(), 1, [0])
    started = time.monotonic()
    tracing.close()
    assert time.monotonic() - started < 8


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_tracing_is_off_unless_an_endpoint_is_named(environ: dict[str, str]) -> None:
    assert isinstance(open_tracing(environ, service="s", log_topic="t", group=None), NoTracing)


def test_a_protocol_that_is_not_to_be_had_is_refused_with_what_to_do() -> None:
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
    with pytest.raises(TracingMisconfigured, match=r"OTEL_EXPORTER_OTLP_PROTOCOL is 'grpc'.*4318"):
        open_tracing(environ, service="s", log_topic="t", group=None)


async def test_without_tracing_the_callers_context_is_handed_on_as_it_came() -> None:
    producer = MemoryProducer()
    gateway = Gateway(producer, IngestSettings())
    await gateway.start()
    await gateway.publish(encode(event()), trace=PARENT)
    await gateway.stop()
    assert TraceContext.of_record(producer.records[0].headers) == PARENT


@pytest.mark.parametrize("tracestate", [b"", b"x" * 513, b"a=\xff", b"a=1\n"])
def test_a_tracestate_that_is_none_is_left_out(tracestate: bytes) -> None:
    assert TraceContext.of(PARENT.traceparent, tracestate) == TraceContext(PARENT.traceparent, None)


def test_the_sdk_is_not_imported_where_nobody_asks_for_traces() -> None:
    program = (
        "import sys, cli.dev, cli.roles, cli.embedded_store, cli.worker_process\n"
        "from telemetry.tracing import open_tracing\n"
        "open_tracing({}, service='s', log_topic='t', group=None)\n"
        "sys.exit(any(name in sys.modules for name in ('opentelemetry.sdk', 'opentelemetry.exporter')))"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, check=False).returncode == 0
