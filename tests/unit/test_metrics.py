"""The instruments, the lag, and what `/metrics` says of a request."""

from __future__ import annotations

import random

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from broker.errors import LogFull
from broker.ports import PartitionOffsets
from ingest_api.gateway import Gateway
from ingest_api.metrics import GatewayMetrics
from ingest_api.settings import IngestSettings
from stream_worker.lag import Lag
from stream_worker.metrics import WorkerMetrics
from telemetry import metric_names as names
from telemetry.instruments import CappedLabel
from telemetry.metric_names import Metric
from telemetry.metrics import Metrics
from telemetry.settings import TelemetrySettings
from tests.support.gateway import running
from tests.support.hostile import encode, event
from tests.support.producer import MemoryProducer


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample by name and labels."""
    content, _ = metrics.exposition()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse(content.decode())
        for sample in family.samples
    }


def total(metrics: Metrics, name: str, **labels: str) -> float:
    """The sum of a metric's samples that have these labels."""
    return sum(
        value
        for (found, pairs), value in samples(metrics).items()
        if found == name and labels.items() <= dict(pairs).items()
    )


def test_observations_in_bulk_are_those_made_one_by_one() -> None:
    random.seed(5)
    sizes = Metric("x_bytes", "histogram", "x", buckets=(1, 10, 100))
    values = [float(random.choice((0, 1, 1.5, 10, 50, 100, 101, 1e9))) for _ in range(500)]
    single, bulk = Metrics(), Metrics()
    one_by_one, at_once = single.histogram(sizes), bulk.histogram(sizes)
    for value in values:
        one_by_one.observe(value)
    at_once.observe_all(values[:1])
    at_once.observe_all(values[1:])
    at_once.observe_all([])
    histogram = {key: value for key, value in samples(single).items() if key[0].startswith("x_bytes")}
    assert histogram == {key: value for key, value in samples(bulk).items() if key[0].startswith("x_bytes")}
    assert total(bulk, "x_bytes_count") == 500
    assert total(bulk, "x_bytes_bucket", le="10.0") == sum(value <= 10 for value in values)


def test_every_process_has_figures_of_its_own() -> None:
    first, second = Metrics(TelemetrySettings(revision="abc")), Metrics()
    GatewayMetrics(first)
    GatewayMetrics(second)
    first.request_answered("GET", "/x", 200, 0.1)
    assert total(first, "http_server_request_duration_seconds_count") == 1
    assert total(second, "http_server_request_duration_seconds_count") == 0
    assert total(first, "aggregator_build_info", revision="abc") == 1


def test_a_name_is_registered_once() -> None:
    metrics = Metrics()
    WorkerMetrics(metrics)
    with pytest.raises(ValueError, match="aggregator_events_processed"):
        WorkerMetrics(metrics)


def test_the_number_of_series_is_bounded_whatever_is_asked_for() -> None:
    metrics = Metrics()
    for number in range(100):
        metrics.request_answered(f"METHOD{number}", None, 404, 0.1)
    assert total(metrics, "http_server_request_duration_seconds_count") == 100
    assert total(metrics, "http_server_request_duration_seconds_count", http_route="other") == 100
    counts = [key for key in samples(metrics) if key[0] == "http_server_request_duration_seconds_count"]
    assert len(counts) == 1


def test_topics_beyond_the_set_number_are_counted_together() -> None:
    label = CappedLabel(2)
    assert [label(topic) for topic in ("a", "b", "c", "", "a", "d")] == [
        "a",
        "b",
        "other",
        "other",
        "a",
        "other",
    ]


def test_both_formats_are_offered() -> None:
    metrics = Metrics()
    content, media_type = metrics.exposition("application/openmetrics-text; version=1.0.0")
    assert media_type.startswith("application/openmetrics-text")
    assert content.endswith(b"# EOF\n")
    assert metrics.exposition()[1].startswith("text/plain; version=0.0.4")


def test_names_follow_the_rules_of_prometheus() -> None:
    for metric in names.METRICS:
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        assert (metric.kind == "histogram") == bool(metric.buckets), metric.name
        assert list(metric.buckets) == sorted(metric.buckets)
        assert metric.meaning.endswith("."), metric.name
        assert len(metric.name) == len(metric.name.encode())
    assert len({metric.name for metric in names.METRICS}) == len(names.METRICS)


async def test_a_request_is_counted_with_its_events_and_its_refusals() -> None:
    producer = MemoryProducer()
    async with running(producer) as gateway:
        answer = await gateway.publish(encode([event(event_id="1"), event(event_id="2"), {"topic": 1}]))
        assert answer.status_code == 207
        assert (await gateway.publish(b"{")).status_code == 400
        text = (await gateway.client.get("/metrics")).text
        metrics = gateway.gateway.metrics.process
        assert "aggregator_events_accepted_total 2.0" in text
        assert total(metrics, "aggregator_events_rejected_total", code="schema") == 1
        assert total(metrics, "aggregator_requests_refused_total", code="invalid_json") == 1
        assert total(metrics, "aggregator_requests_refused_total") == 1
        assert total(metrics, "aggregator_event_size_bytes_count") == 2
        assert total(metrics, "aggregator_event_size_bytes_sum") == sum(
            len(r.value) for r in producer.records
        )
        assert total(metrics, "aggregator_produce_duration_seconds_count") == 1
        published = {"http_route": "/publish", "http_request_method": "POST"}
        requests = "http_server_request_duration_seconds_count"
        assert total(metrics, requests, **published, http_response_status_code="207") == 1
        assert total(metrics, requests, **published, http_response_status_code="400") == 1


async def test_a_log_that_fails_is_an_error_by_its_type() -> None:
    producer = MemoryProducer()
    producer.fail_at(1, LogFull())
    async with running(producer) as gateway:
        assert (await gateway.publish(encode(event(event_id="1")))).status_code == 503
        metrics = gateway.gateway.metrics.process
        assert total(metrics, "aggregator_produce_errors_total", error_type="LogFull") == 1
        assert total(metrics, "aggregator_events_accepted_total") == 0
        assert total(metrics, "aggregator_requests_refused_total", code="log_full") == 1


async def test_events_in_flight_are_those_the_log_has_not_acknowledged() -> None:
    producer = MemoryProducer()
    gateway = Gateway(producer, IngestSettings())
    await gateway.start()
    producer._in_flight = 7
    assert total(gateway.metrics.process, "aggregator_producer_in_flight_events") == 7
    producer._in_flight = 0
    await gateway.stop()


class TestLag:
    """Against a clock the test moves."""

    now = 1_000.0

    @pytest.fixture
    def lag(self) -> Lag:
        self.now = 1_000.0
        return Lag(lambda: self.now)

    def held(self, **ends: int) -> dict[int, PartitionOffsets]:
        return {int(p[1:]): PartitionOffsets(int(p[1:]), 0, end) for p, end in ends.items()}

    def test_nothing_is_said_before_the_end_of_the_log_is_known(self, lag: Lag) -> None:
        lag.positioned({0: 5})
        assert (lag.records(), lag.seconds()) == ({}, {})

    def test_a_worker_at_the_end_has_no_lag(self, lag: Lag) -> None:
        lag.positioned({0: 5})
        lag.sampled(self.held(p0=5))
        self.now += 100
        assert (lag.records(), lag.seconds()) == ({0: 0}, {0: 0.0})

    def test_lag_in_seconds_counts_from_when_the_end_was_seen_last(self, lag: Lag) -> None:
        lag.positioned({0: 5})
        lag.sampled(self.held(p0=5))
        self.now += 10
        lag.sampled(self.held(p0=8))
        self.now += 5
        assert (lag.records(), lag.seconds()) == ({0: 3}, {0: 15.0})

    def test_a_backlog_is_as_old_as_the_record_stored_last(self, lag: Lag) -> None:
        lag.positioned({0: 0})
        lag.sampled(self.held(p0=1_000))
        lag.stored({0: 100}, {0: 400_000})
        assert (lag.records(), lag.seconds()) == ({0: 900}, {0: 600.0})
        lag.stored({0: 200}, {0: 700_000})
        assert lag.seconds() == {0: 300.0}
        lag.stored({0: 1_000}, {0: 999_000})
        assert (lag.records(), lag.seconds()) == ({0: 0}, {0: 0.0})

    @pytest.mark.parametrize("timestamp_ms", [-1, 0, 2**62, -(2**62)])
    def test_a_record_with_an_impossible_time_says_nothing(self, lag: Lag, timestamp_ms: int) -> None:
        lag.positioned({0: 0})
        lag.sampled(self.held(p0=10))
        self.now += 7
        lag.stored({0: 1}, {0: timestamp_ms})
        assert lag.seconds() == {0: 7.0}

    def test_lag_is_never_negative(self, lag: Lag) -> None:
        lag.positioned({0: 0})
        lag.sampled(self.held(p0=10))
        lag.stored({0: 25}, {0: 1_000_000})
        assert (lag.records(), lag.seconds()) == ({0: 0}, {0: 0.0})

    def test_a_revoked_partition_has_no_series(self, lag: Lag) -> None:
        metrics = Metrics()
        worker = WorkerMetrics(metrics, clock=lambda: self.now)
        worker.lag.positioned({0: 0, 1: 0})
        worker.lag.sampled(self.held(p0=3, p1=4))
        assert total(metrics, "aggregator_consumer_lag_records", partition="1") == 4
        worker.lag.revoked({1})
        worker.lag.stored({1: 9}, {})
        worker.lag.sampled(self.held(p0=3, p1=4))
        series = {key for key in samples(metrics) if key[0].startswith("aggregator_consumer_lag")}
        assert {dict(labels)["partition"] for _, labels in series} == {"0"}
        worker.lag.revoked()
        assert total(metrics, "aggregator_consumer_lag_records") == 0
