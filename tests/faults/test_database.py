"""Faults of the store's side: the database does not answer, refuses, or cuts connections."""

from __future__ import annotations

import time

import pytest
from confluent_kafka import ConsumerGroupState

from tests.faults.stage import Stage
from tests.support.processes import wait_until

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.slow, pytest.mark.timeout(300)]


def nothing_rejected(stage: Stage) -> None:
    """No record became a dead letter for what the database did."""
    assert not [letter for letter in stage.store.tables().letters if letter.reason == "database_rejected"]


def last_for(stage: Stage, seconds: float) -> None:
    """Let the fault last, under load."""
    ends = time.monotonic() + seconds

    def over() -> bool:
        stage.load.raise_failure()
        return time.monotonic() > ends

    wait_until(over, seconds + 5, f"{seconds:g} s to pass")


def test_commits_whose_answer_never_comes_are_read_again_and_not_guessed(stage: Stage) -> None:
    workers = stage.start()
    stage.load.wait_for(600)
    stage.database.proxy.silence_after(b"COMMIT")
    wait_until(lambda: stage.database.proxy.silenced >= 5, 60, "commits without an answer")
    stage.inject(f"{stage.database.proxy.silenced} connections to Postgres silent from their COMMIT on")
    stage.database.proxy.heal()
    stage.recovered()
    stage.finish()
    nothing_rejected(stage)
    assert all(worker.returncode is None for worker in workers)


def test_slow_database_holds_the_workers_back_and_not_out_of_the_group(stage: Stage) -> None:
    stage.start()
    stage.load.wait_for(600)
    stage.inject("Postgres delayed by 40 ms each way and throttled to 200 kB/s for 20 s")
    stage.database.proxy.slow(delay=0.04, bytes_per_second=200_000)
    group = stage.deployment.environment["AGGREGATOR_KAFKA__GROUP_ID"]
    ends = time.monotonic() + 20
    looks = 0

    def over() -> bool:
        nonlocal looks
        described = stage.brokers.admin.describe_consumer_groups([group])[group].result(10)
        assert described.state == ConsumerGroupState.STABLE, described.state
        assert len(described.members) == 2
        looks += 1
        return time.monotonic() > ends

    wait_until(over, 30, "20 s to pass")
    stage.database.proxy.heal()
    stage.report.checked.append(f"group stable with both workers at each of {looks} looks")
    stage.recovered()
    stage.finish()
    nothing_rejected(stage)


def test_locked_tables_are_waited_for(stage: Stage) -> None:
    stage.start()
    for table in ("event_keys", "partition_progress", "verdict_counts"):
        stage.load.wait_for(300)
        stage.inject(f"LOCK TABLE {table} for 4 s")
        with stage.session() as session, session.transaction():
            session.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE".encode())
            last_for(stage, 4)
    stage.recovered()
    stage.finish()
    nothing_rejected(stage)


def test_terminated_backends_are_replaced(stage: Stage) -> None:
    stage.start()
    stage.load.wait_for(600)
    ends = time.monotonic() + 10
    ended = 0

    def over() -> bool:
        nonlocal ended
        with stage.session() as session:
            rows = session.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            ).fetchall()
        ended += len(rows)
        return time.monotonic() > ends

    wait_until(over, 20, "10 s to pass")
    stage.inject(f"pg_terminate_backend, {ended} times within 10 s")
    stage.recovered()
    stage.finish()
    nothing_rejected(stage)


def test_read_only_server_is_waited_for(stage: Stage) -> None:
    stage.start()
    stage.load.wait_for(600)
    stage.inject("default_transaction_read_only for 8 s, as after a failover to a standby")
    stage.sql("ALTER SYSTEM SET default_transaction_read_only = on")
    try:
        stage.sql("SELECT pg_reload_conf()")
        last_for(stage, 8)
    finally:
        stage.sql("ALTER SYSTEM RESET default_transaction_read_only")
        stage.sql("SELECT pg_reload_conf()")
    stage.recovered()
    stage.finish()
    nothing_rejected(stage)
