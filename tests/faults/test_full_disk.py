"""No room is left where the log, or the store, is kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.report import Report
from tests.faults.rig import Brokers, Database
from tests.faults.stage import Stage
from tests.support.kafka_process import KafkaMissing
from tests.support.postgres import own_server
from tests.support.processes import wait_until
from tests.support.skips import unavailable
from tests.support.small_disk import small_disk

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.slow, pytest.mark.timeout(300)]


def test_full_disk_of_the_log_is_said_and_nothing_is_acknowledged_in_part(
    tmp_path: Path, report: Report, database: Database
) -> None:
    with small_disk(400) as disk:
        try:
            brokers = Brokers(disk.path / "kafka")
        except KafkaMissing as error:
            unavailable("kafka", str(error))
        try:
            with Stage(tmp_path, report, brokers, database) as stage:
                workers = stage.start()
                stage.load.wait_for(600)
                stage.inject("no room left on the broker's disk; freed when requests have been refused")
                disk.fill()
                wait_until(lambda: stage.load.statuses().get(503, 0) >= 6, 90, "requests refused with 503")
                disk.free()
                report.checked.append(f"the broker {'went on' if brokers.node.running else 'had stopped'}")
                brokers.node.revive()
                stage.recovered()
                stage.finish()
                assert all(process.returncode is None for process in (stage.gateway, *workers))
        finally:
            brokers.close()


def test_full_disk_of_the_store_is_waited_for_and_makes_no_dead_letters(
    tmp_path: Path, report: Report, brokers: Brokers
) -> None:
    with small_disk(300) as disk:
        database = Database(own_server(disk.path))
        try:
            with Stage(tmp_path, report, brokers, database) as stage:
                workers = stage.start()
                stage.load.wait_for(600)
                stage.inject("no room left on the database's disk until 600 more events are in the log")
                disk.fill()
                stage.load.wait_for(600)
                wait_until(lambda: waiting(stage), 60, "workers that wait")
                disk.free()
                report.checked.append(f"Postgres {'went on' if database.server.running else 'had stopped'}")
                database.heal()
                stage.recovered()
                stage.finish()
                assert all(worker.returncode is None for worker in workers)
                letters = stage.store.tables().letters
                assert not [letter for letter in letters if letter.reason == "database_rejected"]
                assert stage.load.statuses().get(503, 0) == 0, "the gateway does not need the store"
        finally:
            database.close()


def waiting(stage: Stage) -> bool:
    """Whether a worker has said what it waits for."""
    return any("No space left on device" in log.read_text() for log in stage.directory.glob("*-worker.log"))
