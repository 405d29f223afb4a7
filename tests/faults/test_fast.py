"""The faults that every run of the suite tries, but for the slow ones, of which it has others like them."""

from __future__ import annotations

import signal
import time
from functools import partial

import pytest

from tests.faults.stage import Stage
from tests.support.processes import wait_until

pytestmark = [pytest.mark.kafka, pytest.mark.postgres]

STOP_SECONDS = 25.0


def test_worker_killed_before_database_commit_is_replayed(stage: Stage) -> None:
    stage.start(workers=1)
    stage.load.wait_for(300)
    stage.inject("kill -9 of a worker before its second database commit")
    assert stage.variant("sound", "before_store", 2).wait(40) == -signal.SIGKILL
    stage.worker()
    stage.recovered()
    stage.finish()


@pytest.mark.slow
def test_worker_killed_between_database_and_kafka_commit_counts_nothing_twice(stage: Stage) -> None:
    stage.start(workers=1)
    stage.load.wait_for(300)
    stage.inject("kill -9 of a worker between the database and the Kafka commit of its second batch")
    assert stage.variant("sound", "before_commit", 2).wait(40) == -signal.SIGKILL
    stage.worker()
    stage.recovered()
    stage.finish()


def test_zombie_worker_is_fenced(stage: Stage) -> None:
    stage.start(workers=1)
    zombie = stage.variant("sound", "before_store", 4, "SIGSTOP")
    wait_until(lambda: frozen(zombie.pid), 40, "the worker to freeze with a batch in hand", zombie)
    stage.inject("SIGSTOP of a worker with a batch in hand, past its session; then SIGCONT")
    # Its partitions have moved on once another worker has taken everything there is now.
    stage.recovered()
    zombie.signal(signal.SIGCONT)
    wait_until(lambda: "FenceLost" in zombie.output(), 20, "the fence to stop the zombie", zombie)
    stage.recovered()
    stage.finish()


def test_sigterm_under_load_loses_nothing_acknowledged(stage: Stage) -> None:
    first, second = stage.start()
    stage.load.wait_for(600)
    for process in (first, stage.gateway, second):
        stage.inject(f"SIGTERM of a {process.name}")
        started = time.monotonic()
        assert process.terminate(STOP_SECONDS) == 0
        stage.report.checked.append(f"{process.name} stopped within {time.monotonic() - started:.1f} s")
    stage.gateway = stage.role("gateway")
    stage.worker()
    stage.worker()
    stage.recovered()
    stage.finish()


def test_postgres_immediate_stop_dead_letters_nothing_good(stage: Stage) -> None:
    stage.start()
    stage.load.wait_for(600)
    stage.inject("immediate stop of Postgres, restart once the workers are waiting")
    stage.database.server.stop(immediate=True)
    stage.load.wait_for(600)
    stage.database.server.start()
    stage.recovered()
    stage.finish()
    assert not [letter for letter in stage.store.tables().letters if letter.reason == "database_rejected"]


@pytest.mark.slow
def test_workers_started_and_killed_every_three_seconds_count_exactly(stage: Stage) -> None:
    steady, victim = stage.start()
    stage.load.wait_for(300)
    stage.inject("a worker started and another killed (-9) every 3 s, four times")
    started = time.monotonic()
    for due in (3, 6, 9, 12):
        replacement = stage.worker()
        wait_until(partial(passed, started + due), 5, "three seconds to pass")
        victim.kill()
        steady, victim = replacement, steady
    stage.worker()
    stage.recovered()
    stage.finish()


def passed(moment: float) -> bool:
    return time.monotonic() > moment


def frozen(pid: int) -> bool:
    """Whether a process is stopped by a signal."""
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0] == "T"
