"""A consumer whose fetch task is frozen: nothing fails, nothing comes."""

from __future__ import annotations

import httpx
import pytest

from tests.faults.stage import Stage
from tests.support.processes import Process, free_port, wait_until

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.slow, pytest.mark.timeout(300)]

STALL_SECONDS = 2


def freezing_worker(stage: Stage, count: int) -> tuple[Process, str]:
    """A worker whose first consumers freeze, and where its probes are."""
    port = free_port()
    environment = {
        **stage.deployment.environment,
        "AGGREGATOR_WORKER__PORT": str(port),
        "AGGREGATOR_WORKER__STALL_SECONDS": str(STALL_SECONDS),
        # The log's own check for silent brokers must not be what helps.
        "AGGREGATOR_KAFKA__RECONNECT_AFTER_SECONDS": "120",
    }
    process = stage.spawn("freezing worker", ["tests.support.frozen_fetch", str(count)], environment)
    return process, f"http://127.0.0.1:{port}/livez"


def alive(url: str) -> int:
    """The status of the probe; 0 while nobody answers."""
    try:
        return httpx.get(url, timeout=2).status_code
    except httpx.TransportError:
        return 0


def test_frozen_fetch_task_is_noticed_and_its_consumer_replaced(stage: Stage) -> None:
    stage.start(workers=0)
    stage.inject("aiokafka's fetch task frozen once it has fetched something")
    worker, probe = freezing_worker(stage, 1)
    wait_until(lambda: alive(probe) == 200, 40, "the probe", worker)
    wait_until(lambda: alive(probe) == 503, 60, "the worker to be found stuck", worker)
    wait_until(lambda: "replacing the consumer" in worker.output(), 10, "a new consumer", worker)
    stage.recovered()
    wait_until(lambda: alive(probe) == 200, 20, "the worker to be alive again", worker)
    assert worker.returncode is None
    stage.finish()


def test_worker_that_freezes_again_and_again_ends_with_a_clear_error(stage: Stage) -> None:
    stage.start(workers=0)
    stage.inject("aiokafka's fetch task frozen in every consumer the worker makes")
    worker, probe = freezing_worker(stage, 1_000)
    wait_until(lambda: alive(probe) == 503, 60, "the worker to be found stuck", worker)
    assert worker.wait(120) not in (0, -9)
    told = worker.output().strip().splitlines()[-1]
    assert "replacing the consumer 3 times did not help" in told, told
    assert "supervisor" in told
    stage.worker()
    stage.recovered()
    stage.finish()
