"""The path of the test fixtures that starts servers in containers, taken once."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from tests.containers.engine import Engine
from tests.support.kafka import ADDRESS_VARIABLE, REDPANDA_VARIABLE
from tests.support.postgres import IMAGE_VARIABLE, URL_VARIABLE
from tests.support.processes import REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

TESTS = ("tests/contract/test_log.py", "tests/integration/test_event_store.py")


def test_the_suite_runs_on_servers_in_containers(
    engine: Engine, broker_image: str | None, postgres_image: str | None
) -> None:
    environment = {k: v for k, v in engine.environment.items() if k not in {ADDRESS_VARIABLE, URL_VARIABLE}}
    environment |= {"AGGREGATOR_TEST_REQUIRE": "kafka,postgres"}
    if broker_image is not None and postgres_image is not None:
        environment |= {REDPANDA_VARIABLE: broker_image, IMAGE_VARIABLE: postgres_image}
        # The image of the container that would clear up is not to be had, and the engine is ours alone.
        environment |= {"TESTCONTAINERS_RYUK_DISABLED": "true"}
    began = int(time.time())
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " skipped" not in done.stdout.rpartition("=")[2], done.stdout[-2000:]
    span = [f"--since={began}", f"--until={int(time.time()) + 1}"]
    started = engine.run(
        "events", *span, "--filter=type=container", "--filter=event=start", "--format={{.From}}"
    )
    expected = {broker_image, postgres_image} if broker_image else {"redpanda", "postgres"}
    assert all(any(str(name) in line for line in started.split()) for name in expected), started
