"""What the roles tell about themselves, as real processes: metrics, traces, logs.

One system is started, given events of every kind, looked at, and stopped; the tests read what it left.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from confluent_kafka import Producer
from prometheus_client.parser import text_string_to_metric_families as parse

from telemetry.metric_names import METRICS, Metric
from tests.support.deployment import Deployment
from tests.support.kafka import kafka_log
from tests.support.otlp_collector import CollectedSpan, Collector, collecting
from tests.support.postgres import Server, own_database
from tests.support.processes import Process, aggregator, free_port, wait_ready, wait_until
from tests.support.promql import OF_PROMETHEUS, alert_uses, dashboard_uses, page_uses

MARKER = "marker-7c1e9a"
"""In every payload, and nowhere else: where it is found, a payload was told."""
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
SPAN_ID = "b7ad6b7169203331"


@dataclass(frozen=True)
class Observed:
    """What was seen of a system.

    Attributes:
        metrics: by role, what `/metrics` answered at the end.
        logs: by role, its lines.
    """

    topic: str
    group: str
    metrics: Mapping[str, str]
    spans: Collector
    logs: Mapping[str, str]

    def lines(self, role: str, event: str) -> list[dict[str, Any]]:
        """A role's log lines that say `event`."""
        lines = [json.loads(line) for line in self.logs[role].splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == event]


def event(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "topic": f"topic-{number % 4}",
        "event_id": str(number),
        "timestamp": "2026-01-01T00:00:00Z",
        "source": "test",
        "payload": {MARKER: number, "text": MARKER},
        **changes,
    }


@pytest.fixture(scope="module")
def observed(
    tmp_path_factory: pytest.TempPathFactory,
    kafka_bootstrap: str,
    postgres_server: Server,
    postgres_template: str,
) -> Iterator[Observed]:
    async def topic() -> str:
        async with kafka_log(kafka_bootstrap, partitions=2) as log:
            return log.topic

    with own_database(postgres_server, postgres_template) as database, collecting() as collector:
        deployment = Deployment(
            tmp_path_factory.mktemp("observed"), kafka_bootstrap, asyncio.run(topic()), database
        )
        deployment.environment |= {
            "AGGREGATOR_WORKER__PORT": str(free_port()),
            "AGGREGATOR_WORKER__LAG_INTERVAL_SECONDS": "0.2",
            "AGGREGATOR_TELEMETRY__DEAD_LETTERS_INTERVAL_SECONDS": "0.2",
            "AGGREGATOR_TELEMETRY__MAX_TOPICS": "2",
            "AGGREGATOR_TELEMETRY__REVISION": "abc123",
            "AGGREGATOR_LOG__LEVEL": "debug",
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }
        yield _observe(deployment, collector)


def _observe(deployment: Deployment, collector: Collector) -> Observed:
    topic = deployment.environment["AGGREGATOR_KAFKA__TOPIC"]
    urls = {
        "gateway": deployment.gateway_url,
        "admin": deployment.admin_url,
        "worker": f"http://127.0.0.1:{deployment.environment['AGGREGATOR_WORKER__PORT']}",
    }
    with deployment.gateway() as gateway, deployment.worker() as worker, deployment.admin() as admin:
        wait_ready(worker, urls["worker"])
        _use(deployment, topic)
        deployment.settled(34)
        _use_admin(deployment)
        wait_until(lambda: len(collector.named("process")) > 0, 20, "spans of batches")
        wait_until(lambda: _caught_up(urls["worker"]), 20, "lag 0")
        metrics = {role: httpx.get(f"{url}/metrics").raise_for_status().text for role, url in urls.items()}
        processes: dict[str, Process] = {"gateway": gateway, "worker": worker, "admin": admin}
        for process in processes.values():
            assert process.terminate() == 0
        logs = {role: process.output() for role, process in processes.items()}
    return Observed(topic, deployment.environment["AGGREGATOR_KAFKA__GROUP_ID"], metrics, collector, logs)


def _use(deployment: Deployment, topic: str) -> None:
    """Publish 30 events, a conflict and invalid ones; 2 of 34 records are no events."""
    url = f"{deployment.gateway_url}/publish"
    headers = {"content-type": "application/json"}
    trace = {"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-01", "tracestate": "vendor=value"}
    with httpx.Client(headers=headers, timeout=30) as client:
        body = json.dumps([event(number) for number in range(30)])
        assert client.post(url, content=body, headers=trace).status_code == 200
        conflict = json.dumps([event(0), event(1, source=MARKER + "-other"), event(2, event_id=5)])
        assert client.post(url, content=conflict).status_code == 207
        assert client.post(url, content=json.dumps(event(3, timestamp=MARKER))).status_code == 422
        assert client.post(url, content=f'{{"{MARKER}": {MARKER}').status_code == 400
        assert client.get(f"{deployment.gateway_url}/{MARKER}").status_code == 404
    producer = Producer({"bootstrap.servers": deployment.environment["AGGREGATOR_KAFKA__BOOTSTRAP_SERVERS"]})
    producer.produce(topic, MARKER.encode(), headers=[(MARKER, MARKER.encode())])
    producer.produce(topic, json.dumps({MARKER: MARKER}).encode(), key=MARKER.encode())
    assert producer.flush(30) == 0


def _use_admin(deployment: Deployment) -> None:
    with httpx.Client(base_url=deployment.admin_url, timeout=30) as client:
        assert MARKER in client.get("/events").text
        assert client.get("/events", params={"source": MARKER}).status_code == 200
        letters = client.get("/dead-letters").json()["dead_letters"]
        assert len(letters) == 3
        edited = client.post(f"/dead-letters/{letters[0]['id']}/replay", json=event(99))
        assert edited.status_code == 200, edited.text
        assert client.post(f"/dead-letters/{letters[1]['id']}/replay", content=MARKER).status_code >= 400
    deployment.settled(35)


def _caught_up(url: str) -> bool:
    samples = _samples(httpx.get(f"{url}/metrics").text)
    lag = [value for name, _, value in samples if name == "aggregator_consumer_lag_records"]
    pending = [value for name, _, value in samples if name == "aggregator_dead_letters_pending"]
    return len(lag) == 2 and not any(lag) and pending == [2.0]


def _samples(text: str) -> list[tuple[str, dict[str, str], float]]:
    return [(s.name, s.labels, s.value) for family in parse(text) for s in family.samples]


def _value(text: str, name: str, **labels: str) -> float:
    found = [v for n, have, v in _samples(text) if n == name and labels.items() <= have.items()]
    assert found, name
    return sum(found)


def _exposed(text: str) -> dict[str, frozenset[str]]:
    """Every metric there is, with the labels its series have (none are known where it has no series)."""
    exposed: dict[str, frozenset[str]] = {}
    for family in parse(text):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = frozenset(label for sample in family.samples for label in sample.labels)
        exposed[name] = labels - {"le"}
    return exposed


def _assert_as_named(metric: Metric, exposed: Mapping[str, frozenset[str]]) -> None:
    assert metric.name in exposed
    assert exposed[metric.name] in (frozenset(metric.labels), frozenset()), metric.name


@pytest.mark.kafka
@pytest.mark.postgres
def test_every_role_has_its_metrics_under_their_names_and_labels(observed: Observed) -> None:
    for role, text in observed.metrics.items():
        exposed = _exposed(text)
        for metric in METRICS:
            if role in metric.roles:
                _assert_as_named(metric, exposed)
            else:
                assert metric.name not in exposed
        assert {name for name in exposed if not name.startswith("process_")} <= {m.name for m in METRICS}
        assert _value(text, "aggregator_build_info", revision="abc123") == 1


@pytest.mark.kafka
@pytest.mark.postgres
def test_figures_are_those_of_what_happened(observed: Observed) -> None:
    gateway, worker, admin = (observed.metrics[role] for role in ("gateway", "worker", "admin"))
    assert _value(gateway, "aggregator_events_accepted_total") == 32
    assert _value(gateway, "aggregator_events_rejected_total", code="schema") == 2
    assert _value(gateway, "aggregator_requests_refused_total", code="invalid_json") == 1
    requests = "http_server_request_duration_seconds_count"
    assert _value(gateway, requests, http_route="/publish", http_response_status_code="200") == 1
    assert _value(gateway, requests, http_route="other", http_response_status_code="404") == 1
    verdicts = {"stored": 31, "duplicate": 1, "conflict": 1, "dead_lettered": 2}
    for verdict, count in verdicts.items():
        assert _value(worker, "aggregator_events_processed_total", verdict=verdict) == count
        assert _value(worker, "aggregator_topic_events_processed_total", verdict=verdict) == count
    topics = {have["topic"] for name, have, _ in _samples(worker) if name.startswith("aggregator_topic")}
    assert len(topics) == 3
    assert "other" in topics
    # Direct producers' records do not say when they were received; a replay of one does not, either.
    assert _value(worker, "aggregator_event_latency_seconds_count") in {32, 33}
    assert _value(worker, "aggregator_dead_letters_total", reason="conflicting_duplicate") == 1
    assert _value(worker, "aggregator_consumer_assigned_partitions") == 2
    assert _value(worker, "aggregator_consumer_last_commit_timestamp_seconds") > 1.7e9
    assert _value(worker, "aggregator_db_pool_connections", state="idle") >= 0
    assert _value(admin, "aggregator_dead_letters_pending") == 2
    assert _value(admin, requests, http_route="/dead-letters/{dead_letter_id}/replay") == 2


@pytest.mark.kafka
@pytest.mark.postgres
def test_dashboard_alerts_and_pages_name_only_what_is_there(observed: Observed) -> None:
    exposed: dict[str, frozenset[str]] = {}
    for text in observed.metrics.values():
        for name, labels in _exposed(text).items():
            exposed[name] = exposed.get(name, frozenset()) | labels
    for metric in METRICS:
        exposed[metric.name] = exposed[metric.name].union(metric.labels)
    uses = [*dashboard_uses(), *alert_uses(), *page_uses()]
    assert len(uses) > 40
    for use in uses:
        known = set(OF_PROMETHEUS)
        for name in use.metrics - {"up"}:
            family = name if name in exposed else name.rsplit("_", 1)[0]
            assert family in exposed, f"{use.where} names {name}, which no role exposes"
            if family != name:
                assert name.rsplit("_", 1)[1] in {"bucket", "sum", "count"}
            known |= exposed[family]
        assert use.labels <= known, f"{use.where} uses labels that are not there: {use.labels - known}"


@pytest.mark.kafka
@pytest.mark.postgres
def test_a_trace_leads_from_the_request_to_the_batch_that_stored_its_events(observed: Observed) -> None:
    (send,) = (span for span in observed.spans.named("send") if span.trace_id == TRACE_ID)
    assert (send.service, send.kind) == ("aggregator-gateway", "producer")
    assert send.name == f"send {observed.topic}"
    assert (send.parent_id, send.trace_state) == (SPAN_ID, "vendor=value")
    assert send.attributes == {
        "messaging.system": "kafka",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": observed.topic,
        "messaging.batch.message_count": 30,
    }
    linked = [
        span
        for span in observed.spans.named("process")
        if send.span_id in {link.span_id for link in span.links}
    ]
    assert linked
    for batch in linked:
        assert (batch.service, batch.kind) == ("aggregator-worker", "consumer")
        assert {"process", observed.topic} == set(batch.name.split())
        (link,) = (link for link in batch.links if link.span_id == send.span_id)
        assert link.trace_id == TRACE_ID
        assert batch.attributes["messaging.consumer.group.name"] == observed.group
        poll = _parent(batch, observed.spans.named("poll"))
        assert (poll.kind, poll.attributes["messaging.operation.type"]) == ("client", "receive")
        assert (
            poll.attributes["messaging.batch.message_count"]
            == (batch.attributes["messaging.batch.message_count"])
        )
    batches = observed.spans.named("process")
    assert sum(int(span.attributes["messaging.batch.message_count"]) for span in batches) == 35
    single = [span for span in batches if "messaging.destination.partition.id" in span.attributes]
    assert all(span.attributes["messaging.destination.partition.id"] in {"0", "1"} for span in single)


def _parent(span: CollectedSpan, candidates: list[CollectedSpan]) -> CollectedSpan:
    (parent,) = (one for one in candidates if one.span_id == span.parent_id)
    return parent


@pytest.mark.kafka
@pytest.mark.postgres
def test_a_request_that_is_refused_is_a_failed_span_without_its_text(observed: Observed) -> None:
    failed = [span for span in observed.spans.named("send") if span.failed]
    assert len(failed) == 2
    assert {span.attributes["error.type"] for span in failed} <= {"Refused", "InvalidEvent"}
    assert MARKER not in repr(observed.spans.spans)


@pytest.mark.kafka
@pytest.mark.postgres
def test_log_lines_have_the_fields_operators_look_for(observed: Observed) -> None:
    everywhere = {"timestamp", "level", "event", "logger", "service.name", "service.version"}
    request = {"request_id", "http.request.method", "http.response.status_code", "duration_s"}
    (send,) = (span for span in observed.spans.named("send") if span.trace_id == TRACE_ID)
    published = [
        line for line in observed.lines("gateway", "request") if line.get("http.route") == "/publish"
    ]
    assert len(published) == 4
    for line in published:
        assert everywhere | request | {"trace_id", "span_id"} <= line.keys()
    (traced,) = (line for line in published if line["trace_id"] == TRACE_ID)
    assert (traced["span_id"], traced["service.name"]) == (send.span_id, "aggregator-gateway")
    refused = [line for line in published if line["http.response.status_code"] >= 400]
    assert {line["error.type"] for line in refused} == {"no_event_acceptable", "invalid_json"}
    batches = observed.lines("worker", "batch")
    counted = ("batch_size", "stored", "duplicates", "conflicts", "dead_lettered")
    for line in batches:
        assert everywhere | {*counted, "duration_s", "trace_id", "span_id"} <= line.keys()
        assert ({"partition", "offset"} <= line.keys()) != ("partitions" in line)
    assert [sum(line[name] for line in batches) for name in counted] == [35, 31, 1, 1, 2]
    spans = {span.span_id: span for span in observed.spans.named("process")}
    assert all(spans[line["span_id"]].trace_id == line["trace_id"] for line in batches)
    asked = [line for line in observed.lines("admin", "request") if line.get("http.route") == "/events"]
    assert len(asked) == 2
    assert all(everywhere | request | {"http.route"} <= line.keys() for line in asked)


@pytest.mark.kafka
@pytest.mark.postgres
def test_no_log_line_holds_anything_of_a_payload(observed: Observed) -> None:
    for role, text in observed.logs.items():
        assert text.count("\n") > 5, role
        assert MARKER not in text, role


def test_the_embedded_mode_has_all_of_it_on_one_port(tmp_path: Any) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    environment = {
        "AGGREGATOR_LOG__LEVEL": "debug",
        "AGGREGATOR_WORKER__LAG_INTERVAL_SECONDS": "0.2",
        "AGGREGATOR_TELEMETRY__DEAD_LETTERS_INTERVAL_SECONDS": "0.2",
    }
    command = ("dev", "--port", str(port), "--data-dir", str(tmp_path / "data"))
    with (
        aggregator("dev", *command, log=tmp_path / "dev.log", environment=environment) as process,
        httpx.Client(base_url=url, headers={"content-type": "application/json"}, timeout=30) as client,
    ):
        wait_ready(process, url)
        assert client.post("/publish", content=json.dumps([event(n) for n in range(5)])).status_code == 200
        assert client.post("/publish", content=json.dumps(event(1, source="other"))).status_code == 200
        assert client.post("/publish", content=MARKER).status_code == 400

        def told() -> str | None:
            text = client.get("/metrics").text
            pending = [
                value for name, _, value in _samples(text) if name == "aggregator_dead_letters_pending"
            ]
            lag = [value for name, _, value in _samples(text) if name == "aggregator_consumer_lag_records"]
            return text if pending == [1.0] and lag and not any(lag) else None

        text = wait_until(told, 20, "the pending dead letter counted")
        exposed = _exposed(text)
        for metric in METRICS:
            _assert_as_named(metric, exposed)
        assert _value(text, "aggregator_events_processed_total") == 6
        assert process.terminate() == 0
        assert MARKER not in process.output()
