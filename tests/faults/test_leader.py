"""Three brokers, two of which have to acknowledge: one of them may die."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.report import Report
from tests.faults.rig import Brokers, Database
from tests.faults.stage import Stage
from tests.support.kafka_process import KafkaMissing
from tests.support.processes import wait_until
from tests.support.skips import unavailable

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Brokers]:
    try:
        brokers = Brokers(tmp_path / "brokers", nodes=3)
    except KafkaMissing as error:
        unavailable("kafka", str(error))
    yield brokers
    brokers.close()


def test_leader_killed_under_load_costs_nothing_that_was_acknowledged(
    tmp_path: Path, report: Report, three: Brokers, database: Database
) -> None:
    settings = {"min.insync.replicas": "2"}
    with Stage(tmp_path, report, three, database, replicas=3, topic_settings=settings) as stage:
        workers = stage.start()
        stage.load.wait_for(600)
        leaders = stage.brokers.leaders(stage.topic)
        victim = max(three.cluster.brokers, key=lambda node: list(leaders.values()).count(node.node_id))
        led = list(leaders.values()).count(victim.node_id)
        stage.inject(f"kill -9 of the leader of {led} of {len(leaders)} partitions")
        victim.kill()
        wait_until(
            lambda: victim.node_id not in stage.brokers.leaders(stage.topic).values(), 60, "new leaders"
        )
        stage.load.wait_for(300, timeout=60)
        stage.recovered()

        stage.inject("the node comes back")
        victim.start()
        stage.load.wait_for(300)
        stage.recovered()
        stage.finish()
        assert all(process.returncode is None for process in (stage.gateway, *workers))
