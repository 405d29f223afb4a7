"""The gateway over a real socket: trouble with the log, overload, draining, and the shape of every error."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
from structlog.testing import capture_logs

from broker.errors import (
    BrokerError,
    LogFull,
    LogUnavailable,
    ProduceOutcomeUnknown,
    RecordTooLarge,
    TopicMissing,
)
from ingest_api.gateway import Gateway
from ingest_api.settings import IngestSettings
from tests.support.gateway import assert_problem, encode, event, head, running, until
from tests.support.http_server import raw_connection
from tests.support.producer import MemoryProducer


class TestLog:
    """What the log does, as the client sees it."""

    @pytest.mark.parametrize(
        ("error", "code"),
        [
            (LogUnavailable(), "log_unavailable"),
            (ProduceOutcomeUnknown(), "outcome_unknown"),
            (LogFull(), "log_full"),
            (TopicMissing(), "log_unavailable"),
            (BrokerError(), "log_unavailable"),
        ],
    )
    async def test_failure_at_call_n_is_503_and_says_that_retrying_is_safe(
        self, error: BrokerError, code: str
    ) -> None:
        async with running() as gateway:
            gateway.producer.fail_at(2, error)
            responses = [await gateway.publish(encode(event())) for _ in range(3)]
            assert [r.status_code for r in responses] == [200, 503, 200]
            assert responses[1].json()["code"] == code
            assert "same event ids" in responses[1].json()["detail"]
            assert responses[1].headers["retry-after"] == "1"
            assert_problem(responses[1])

    async def test_record_the_log_never_takes_is_413(self) -> None:
        async with running() as gateway:
            gateway.producer.fail_at(1, RecordTooLarge())
            response = await gateway.publish(encode(event()))
            assert (response.status_code, response.json()["code"]) == (413, "event_too_large")

    async def test_producer_that_hangs_is_answered_within_the_deadline(self) -> None:
        async with running(settings=IngestSettings(publish_timeout_seconds=0.1)) as gateway:
            gateway.producer.gate.clear()
            response = await gateway.publish(encode(event()))
            assert (response.status_code, response.json()["code"]) == (503, "outcome_unknown")
            assert gateway.gateway.in_flight.requests == 0

    async def test_gateway_stays_ready_while_the_log_is_down_and_shows_it_in_detail(self) -> None:
        async with running() as gateway:
            gateway.producer.fail_at(1, LogUnavailable("The broker is gone."))
            await gateway.publish(encode(event()))
            ready = await gateway.client.get("/readyz?verbose")
            assert (ready.status_code, ready.json()["status"]) == (200, "ready")
            assert ready.json()["dependencies"]["log"]["error"] == "The broker is gone."
            assert "dependencies" not in (await gateway.client.get("/readyz")).json()
            await gateway.publish(encode(event()))
            ready = await gateway.client.get("/readyz?verbose")
            assert ready.json()["dependencies"]["log"]["status"] == "ok"

    async def test_log_that_is_down_at_start_is_503_until_it_comes(self) -> None:
        producer = MemoryProducer()
        producer.fail_start(LogUnavailable(), LogUnavailable())
        async with running(producer) as gateway:
            assert (await gateway.publish(encode(event()))).status_code == 503
            await until(lambda: producer.started == 1)
            assert (await gateway.publish(encode(event()))).status_code == 200

    async def test_starting_twice_starts_the_producer_once(self) -> None:
        async with running() as gateway:
            await gateway.gateway.start()
            assert gateway.producer.started == 1

    async def test_missing_topic_keeps_the_gateway_from_starting(self) -> None:
        producer = MemoryProducer()
        producer.fail_start(TopicMissing())
        with pytest.raises(TopicMissing):
            await Gateway(producer, IngestSettings()).start()


class TestBackpressure:
    """Bodies in flight are bounded over all requests."""

    async def test_requests_beyond_the_bytes_in_flight_are_refused_at_once_and_others_go_on(self) -> None:
        settings = IngestSettings(max_body_bytes=2_000, max_in_flight_bytes=3_000, retry_after_seconds=2.5)
        async with running(settings=settings) as gateway:
            gateway.producer.gate.clear()
            body = encode(event(payload={"a": "x" * 1_500}))
            first = asyncio.create_task(gateway.publish(body))
            await gateway.producer.entered.wait()
            refused = await gateway.publish(body)
            assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
            assert refused.headers["retry-after"] == "3"
            gateway.producer.gate.set()
            assert (await first).status_code == 200
            assert (await gateway.publish(body)).status_code == 200
            assert gateway.gateway.in_flight.bytes == 0

    async def test_chunked_body_counts_as_it_arrives(self) -> None:
        settings = IngestSettings(max_body_bytes=2_000, max_in_flight_bytes=2_000)
        async with running(settings=settings) as gateway, raw_connection(gateway.server) as first:
            await first.send(head("transfer-encoding: chunked") + b"5dc\r\n" + b" " * 1_500)
            await until(lambda: gateway.gateway.in_flight.bytes == 1_500)
            async with raw_connection(gateway.server) as second:
                await second.send(head("transfer-encoding: chunked") + b"5dc\r\n" + b" " * 1_500)
                response = await second.response()
                assert (response.status, response.json()["code"]) == (503, "overloaded")


class TestDrain:
    """Stopping: said first, then nothing new, then what is in flight ends."""

    async def test_not_ready_before_the_start(self) -> None:
        gateway = Gateway(MemoryProducer(), IngestSettings())
        assert (gateway.readiness().ready, gateway.readiness().status) == (False, "starting")

    async def test_drain_refuses_new_requests_and_finishes_those_in_flight(self) -> None:
        async with running() as gateway:
            gateway.producer.gate.clear()
            in_flight = asyncio.create_task(gateway.publish(encode(event())))
            await gateway.producer.entered.wait()
            gateway.gateway.begin_drain()
            ready = await gateway.client.get("/readyz")
            assert (ready.status_code, ready.json()["status"]) == (503, "draining")
            assert (await gateway.client.get("/livez")).json() == {"status": "ok"}
            refused = await gateway.publish(encode(event()))
            assert (refused.status_code, refused.json()["code"]) == (503, "draining")
            assert refused.headers["connection"] == "close"
            assert_problem(refused)
            gateway.producer.gate.set()
            assert (await in_flight).status_code == 200
            assert gateway.producer.stopped == 0
        assert gateway.producer.stopped == 1
        assert len(gateway.producer.records) == 1

    async def test_server_stops_only_after_the_answer_to_the_last_request(self) -> None:
        async with running() as gateway:
            gateway.producer.gate.clear()
            in_flight = asyncio.create_task(gateway.publish(encode(event())))
            await gateway.producer.entered.wait()
            gateway.gateway.begin_drain()
            gateway.server.server.should_exit = True
            asyncio.get_running_loop().call_later(0.3, gateway.producer.gate.set)
            assert (await in_flight).status_code == 200
        assert gateway.producer.stopped == 1

    async def test_drain_that_begins_while_starting_is_not_forgotten(self) -> None:
        gateway = Gateway(MemoryProducer(), IngestSettings())
        gateway.begin_drain()
        await gateway.start()
        assert gateway.readiness().status == "draining"
        await gateway.stop()


class TestProblems:
    """Every error has the same shape."""

    async def test_unknown_path(self) -> None:
        async with running() as gateway:
            response = await gateway.client.get("/nothing")
            assert (response.status_code, response.json()["code"]) == (404, "not_found")
            assert_problem(response)

    @pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
    async def test_wrong_method(self, method: str) -> None:
        async with running() as gateway:
            response = await gateway.client.request(method, "/publish")
            assert (response.status_code, response.json()["code"]) == (405, "method_not_allowed")
            assert response.headers["allow"] == "POST"
            assert_problem(response)

    async def test_unexpected_exception(self) -> None:
        class Broken(MemoryProducer):
            async def publish(self, records: Any, *, timeout: float) -> None:
                raise ZeroDivisionError("the secret")

        async with running(Broken()) as gateway:
            with capture_logs() as lines:
                response = await gateway.publish(encode(event()))
            assert (response.status_code, response.json()["code"]) == (500, "internal_error")
            assert "secret" not in response.text
            assert [line["log_level"] for line in lines if line.get("exc_info")] == ["error"]
            assert_problem(response)
            assert gateway.gateway.in_flight.bytes == 0

    async def test_sane_request_id_is_kept_and_any_other_replaced(self) -> None:
        async with running() as gateway:
            for sent, kept in (("order-17/a", True), ("x" * 129, False), ("a b", False)):
                response = await gateway.publish(b"", **{"x-request-id": sent})
                assert (response.headers["x-request-id"] == sent) is kept
                assert response.json()["request_id"] == response.headers["x-request-id"]


async def test_health_says_ok() -> None:
    async with running() as gateway:
        for path in ("/healthz", "/livez"):
            response = await gateway.client.get(path)
            assert (response.status_code, response.json()) == (200, {"status": "ok"})


async def test_docs_are_complete_and_load_nothing_from_elsewhere() -> None:
    async with running() as gateway:
        page = await gateway.client.get("/docs")
        assert page.status_code == 200
        assert not re.search(r"<script|src=|https?://|@import", page.text)
        for text in ("/publish", "event_id", "order-1001", "log_unavailable", "/readyz"):
            assert text in page.text
