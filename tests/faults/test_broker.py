"""Faults of the log's side: the broker dies, freezes, or cannot be reached."""

from __future__ import annotations

import json
import time
from pathlib import Path

import httpx
import pytest

from tests.faults.stage import Stage
from tests.support.processes import Process, wait_ready, wait_until
from tests.support.tcp_proxy import Direction

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.slow, pytest.mark.timeout(300)]

PUBLISH_SECONDS = 3.0
"""The gateway's deadline in these tests, AGGREGATOR_INGEST__PUBLISH_TIMEOUT_SECONDS."""
STOP_SECONDS = 25.0
MOST_GROWTH = 40.0
"""MiB that a process may grow by while the log does not answer."""


def test_broker_killed_and_restarted_is_found_again(stage: Stage) -> None:
    workers = stage.start()
    stage.load.wait_for(600)
    stage.inject("kill -9 of the broker for 5 s")
    stage.brokers.node.kill()
    wait_until(lambda: stage.load.statuses().get(503, 0) >= 4, 30, "requests refused with 503")
    stage.brokers.node.start()
    stage.recovered()
    stage.finish()
    assert all(process.returncode is None for process in (stage.gateway, *workers))


def test_broker_frozen_for_a_minute_gives_bounded_503s_and_flat_memory(stage: Stage) -> None:
    workers = stage.start()
    stage.load.wait_for(600)
    processes = [stage.gateway, *workers]
    before = {process.pid: resident_mebibytes(process) for process in processes}
    stage.inject("SIGSTOP of the broker for 60 s")
    stage.brokers.node.pause()
    most = dict(before)
    ends = time.monotonic() + 60

    def over() -> bool:
        for process in processes:
            most[process.pid] = max(most[process.pid], resident_mebibytes(process))
        return time.monotonic() > ends

    wait_until(over, 65, "a minute to pass")
    stage.brokers.node.resume()
    stage.recovered()
    refused = stage.load.statuses().get(503, 0)
    assert refused >= 10
    assert stage.load.slowest_answer < PUBLISH_SECONDS + 2
    grown = [(process.name, most[process.pid] - before[process.pid]) for process in processes]
    assert all(growth < MOST_GROWTH for _, growth in grown), grown
    figures = ", ".join(f"{growth:.1f} MiB ({name})" for name, growth in grown)
    stage.report.checked.append(f"resident memory grew by at most {figures}")
    stage.finish()


def test_reset_storm_on_the_kafka_port(stage: Stage) -> None:
    stage.start()
    stage.load.wait_for(600)
    ends = time.monotonic() + 15
    resets = 0

    def over() -> bool:
        nonlocal resets
        resets += stage.brokers.proxy.reset_all()
        return time.monotonic() > ends

    stage.brokers.proxy.cut_after(20_000, Direction.RESPONSES)
    wait_until(over, 20, "the storm to pass")
    stage.brokers.proxy.heal()
    stage.inject(f"{resets} connections to Kafka reset within 15 s")
    stage.recovered()
    stage.finish()


def test_blackholed_kafka_port_ends_in_deadlines_and_a_bounded_stop(stage: Stage) -> None:
    first, _ = stage.start()
    stage.load.wait_for(600)
    stage.inject("no packet to or from Kafka for 25 s, during which gateway and worker are stopped")
    stage.brokers.proxy.blackhole()
    started = time.monotonic()
    wait_until(lambda: stage.load.statuses().get(503, 0) >= 6, 40, "requests refused with 503")
    assert stage.load.slowest_answer < PUBLISH_SECONDS + 2
    for process in (first, stage.gateway):
        began = time.monotonic()
        assert process.terminate(STOP_SECONDS) == 0
        stage.report.checked.append(f"{process.name} stopped within {time.monotonic() - began:.1f} s")
    stage.gateway = stage.role("gateway")
    stage.worker()
    wait_until(lambda: time.monotonic() > started + 25, 30, "25 s to pass")
    stage.brokers.proxy.heal()
    stage.recovered()
    stage.finish()


def test_lost_produce_responses_leave_duplicates_in_the_log_only(stage: Stage) -> None:
    stage.start()
    stage.load.wait_for(600)
    stage.inject("responses of Kafka dropped, requests delivered, for 8 s")
    stage.brokers.proxy.drop(Direction.RESPONSES)
    wait_until(lambda: stage.load.statuses().get(503, 0) >= 2, 40, "requests whose outcome is unknown")
    stage.brokers.proxy.heal()
    stage.recovered()
    stage.finish()
    # Every attempt without an answer has arrived all the same, on top of the acknowledged ones.
    received = sum(count.received for count in stage.store.tables().counts.values())
    assert received > stage.ledger.acknowledged
    stage.report.checked.append(
        f"{received - stage.ledger.acknowledged} records beyond the acknowledged ones"
    )


def test_gateway_killed_mid_request_is_retried_safely(stage: Stage) -> None:
    stage.start()
    stage.load.wait_for(300)
    for _ in range(3):
        stage.inject("kill -9 of the gateway with requests in flight")
        # Held responses keep requests in flight until the moment of the kill.
        stage.brokers.proxy.blackhole(Direction.RESPONSES)
        wait_until(lambda: requests_in_flight(stage.deployment.gateway_url) >= 2, 10, "requests in flight")
        stage.gateway.kill()
        stage.brokers.proxy.heal()
        stage.gateway = stage.role("gateway")
        # Direct producers are acknowledged meanwhile, too.
        wait_ready(stage.gateway, stage.deployment.gateway_url)
        stage.load.wait_for(300)
    stage.recovered()
    stage.finish()


def requests_in_flight(url: str) -> int:
    detail = httpx.get(f"{url}/readyz?verbose", timeout=5).json()
    found = json.dumps(detail)
    return int(found.partition('"in_flight": ')[2].partition(",")[0] or 0)


def resident_mebibytes(process: Process) -> float:
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0
