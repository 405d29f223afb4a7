"""The checker itself: builds that are wrong on purpose are found out, each in the promise it breaks.

Without this, a suite that passes could as well be one that looks nowhere.
"""

from __future__ import annotations

import signal

import pytest

from tests.faults.stage import Stage
from tests.faults.test_fast import frozen
from tests.support.invariants import Invariant, Violation
from tests.support.processes import wait_until

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.slow, pytest.mark.timeout(300)]


BATCH = '"event":"batch"'
"""In the log of a worker, for every batch that was stored."""


def found(violations: list[Violation]) -> set[Invariant]:
    return {violation.invariant for violation in violations}


def test_sound_build_passes(stage: Stage) -> None:
    stage.start(workers=0)
    stage.variant("sound")
    stage.variant("sound")
    stage.load.wait_for(600)
    stage.recovered()
    assert stage.violations() == []


def test_commit_before_store_breaks_i6(stage: Stage) -> None:
    stage.start(workers=0)
    stage.inject("a build that commits offsets first, frozen between the commit and the store")
    worker = stage.variant("commit_before_store", "before_store", 3, "SIGSTOP")
    wait_until(lambda: frozen(worker.pid), 40, "the worker to freeze", worker)
    stage.sampler.look_at_commits()
    worker.signal(signal.SIGCONT)
    stage.recovered()
    assert Invariant.I6 in found(stage.violations())


def test_missing_fence_breaks_i4_and_i5(stage: Stage) -> None:
    stage.start(workers=0)
    # A second line of defence: a batch that comes again is refused if a dead letter is in it.
    stage.sql("ALTER TABLE dead_letters DROP CONSTRAINT dead_letters_coordinates_key")
    stage.inject("an unfenced zombie goes on after its partitions have moved")
    zombie = stage.variant("no_fence", "before_store", 4, "SIGSTOP")
    wait_until(lambda: frozen(zombie.pid), 40, "the worker to freeze with a batch in hand", zombie)
    stage.variant("no_fence")
    stage.recovered()
    stage.load.wait_for(300)
    stage.load.stop()
    wait_until(stage.caught_up, 40, "the end of the log")
    batches = zombie.output().count(BATCH)
    zombie.signal(signal.SIGCONT)
    wait_until(lambda: zombie.output().count(BATCH) > batches, 40, "the zombie to write", zombie)
    # Its batch is counted a second time, and takes the position back with it.
    assert {Invariant.I4, Invariant.I5} <= found(stage.violations(timeout=15))


def test_counters_outside_the_transaction_break_i4(stage: Stage) -> None:
    stage.start(workers=0)
    stage.inject("a build that counts after the transaction, killed in between")
    assert stage.variant("counters_apart", "before_counts", 3).wait(40) == -signal.SIGKILL
    stage.variant("counters_apart")
    stage.recovered()
    assert found(stage.violations()) >= {Invariant.I4, Invariant.VERIFY}


def test_deduplication_by_offset_alone_breaks_i3(stage: Stage) -> None:
    stage.start(workers=0)
    stage.inject("a build that takes the offset for the identity")
    stage.variant("offset_identity")
    stage.load.wait_for(600)
    stage.recovered()
    assert Invariant.I3 in found(stage.violations())


def test_changed_content_breaks_i1_and_i2(stage: Stage) -> None:
    stage.start(workers=0)
    stage.inject("a build that stores the source in capitals")
    stage.variant("changed_content")
    stage.load.wait_for(600)
    stage.recovered()
    assert found(stage.violations()) >= {Invariant.I1, Invariant.I2}


def test_retry_that_skips_breaks_i1(stage: Stage) -> None:
    stage.start(workers=0)
    stage.variant("retry_that_skips")
    stage.storing()
    stage.inject("a build that leaves out what could not be stored, while Postgres is restarted")
    stage.database.server.stop(immediate=True)
    stage.load.wait_for(300)
    stage.database.server.start()
    stage.recovered()
    assert found(stage.violations()) >= {Invariant.I1, Invariant.VERIFY}


def test_worker_that_gives_up_breaks_i7(stage: Stage) -> None:
    stage.start(workers=0)
    stage.variant("gives_up")
    stage.storing()
    stage.inject("a build that does not try again, while Postgres is restarted")
    stage.database.server.stop(immediate=True)
    stage.load.wait_for(300)
    stage.database.server.start()
    assert Invariant.I7 in found(stage.violations(timeout=15))
