"""Reconciliation finds whatever was tampered with, by name, and nothing where nothing is wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from confluent_kafka import Producer

import cli.reconciliation
from broker.local import LocalLog
from broker.settings import LocalLogSettings
from db.findings import KEPT_PER_CHECK
from tests.support.kafka import kafka_log
from tests.support.reconciled import DEADLINE, Reconciled, everything, publish, record

ONE_EVENT = "topic = 'orders' AND event_id = 'e3'"


@pytest.fixture(autouse=True)
def no_waiting_for_leaders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli.reconciliation, "SETTLE_SECONDS", 0.0)


@pytest.fixture
async def system(store_url: str, tmp_path: Path) -> AsyncIterator[Reconciled]:
    """Log and store after a few records of every kind."""
    log = LocalLog(tmp_path / "log.db", LocalLogSettings(partitions=3))
    await log.start()
    system = Reconciled(log, store_url)
    await system.fill(everything())
    yield system
    system.close()
    await log.stop()


async def test_a_sound_system_passes_and_everything_was_compared(system: Reconciled) -> None:
    report = await system.check()
    assert (report.ok, report.findings, report.gaps, report.notes) == (True, [], [], [])
    assert (report.checked.records, report.checked.events, report.checked.dead_letters) == (60, 40, 10)
    assert (report.checked.events_by_key, report.checked.partitions, report.checked.lag) == (40, 3, 0)


async def test_an_empty_system_passes(sqlite_url: str, tmp_path: Path) -> None:
    log = LocalLog(tmp_path / "log.db", LocalLogSettings(partitions=3))
    await log.start()
    system = Reconciled(log, sqlite_url)
    assert (await system.check()).ok
    system.close()
    await log.stop()


async def test_records_that_wait_for_their_verdict_are_lag_and_no_finding(system: Reconciled) -> None:
    await publish(system.log, [record(f"later {n}") for n in range(5)])
    report = await system.check()
    assert (report.ok, report.checked.lag) == (True, 5)


@pytest.mark.parametrize(
    ("statement", "expected", "by_counting"),
    [
        pytest.param(
            f"DELETE FROM events WHERE {ONE_EVENT}",
            {"stored_counter", "key_count", "key_without_event"},
            {"stored_counter"},
            id="an event is gone",
        ),
        pytest.param(
            "DELETE FROM event_keys WHERE seq = (SELECT seq FROM events WHERE event_id = 'e3')",
            {"key_count", "event_without_key", "record_without_verdict", "log_counter", "row_without_record"},
            set(),
            id="a key is gone",
        ),
        pytest.param(
            "DELETE FROM dead_letters WHERE id = (SELECT min(id) FROM dead_letters WHERE reason ="
            " 'invalid_json')",
            {"dead_letter_counter", "record_without_verdict", "log_counter"},
            {"dead_letter_counter"},
            id="a dead letter is gone",
        ),
        pytest.param(
            "DELETE FROM dead_letters WHERE id = (SELECT min(id) FROM dead_letters WHERE reason ="
            " 'conflicting_duplicate')",
            {"conflict_counter", "record_without_verdict", "log_counter"},
            {"conflict_counter"},
            id="a conflict is gone",
        ),
        pytest.param(
            "UPDATE verdict_counts SET stored = stored + 1, received = received + 1"
            " WHERE partition = 0 AND topic = 'orders'",
            {"stored_counter", "log_counter"},
            {"stored_counter"},
            id="one too many is counted as stored",
        ),
        pytest.param(
            "UPDATE verdict_counts SET duplicate = duplicate + 1, received = received + 1"
            " WHERE partition = 0 AND topic = 'orders'",
            {"log_counter"},
            set(),
            id="one too many is counted as duplicate",
        ),
        pytest.param(
            "UPDATE partition_progress SET next_offset = next_offset - 1 WHERE partition = 0",
            {"row_beyond_position", "commit_beyond_position", "log_counter", "log_replaced"},
            {"row_beyond_position", "commit_beyond_position"},
            id="a position was moved back",
        ),
        pytest.param(
            "UPDATE partition_progress SET next_offset = next_offset + 1000 WHERE partition = 0",
            {"position_outside_log"},
            {"position_outside_log"},
            id="a position is beyond the log",
        ),
        pytest.param(
            "UPDATE partition_progress SET fingerprint = fingerprint + 1 WHERE partition = 0",
            {"log_replaced"},
            set(),
            id="the last record is another one",
        ),
        pytest.param(
            "INSERT INTO events SELECT seq + 1000, stored_at, occurred_at, received_at, log_offset,"
            " log_partition, log_incarnation, topic, event_id, source, payload FROM events"
            f" WHERE {ONE_EVENT}",
            {"stored_counter", "key_count", "event_stored_twice", "row_without_record"},
            {"stored_counter"},
            id="an event is stored twice",
        ),
        pytest.param(
            f"UPDATE event_keys SET seq = seq + 1000 WHERE seq = (SELECT seq FROM events WHERE {ONE_EVENT})",
            {"key_disagrees", "key_without_event"},
            set(),
            id="a key names another place",
        ),
        pytest.param(
            "INSERT INTO dead_letters (log_topic, log_partition, log_incarnation, log_offset, reason, error,"
            " record_headers, record_timestamp_ms, created_at, status) SELECT 'local', log_partition,"
            " log_incarnation, log_offset, 'schema', 'It is wrong.', payload_bytes, 0, stored_at, 'pending'"
            " FROM (SELECT *, CAST('[]' AS {bytes}) AS payload_bytes FROM events) AS e"
            f" WHERE {ONE_EVENT}",
            {"dead_letter_counter", "record_with_two_verdicts", "log_counter", "row_without_record"},
            {"dead_letter_counter"},
            id="a record is stored and a dead letter",
        ),
        pytest.param(
            "UPDATE dead_letters SET log_offset = log_offset + 1000 WHERE id ="
            " (SELECT min(id) FROM dead_letters WHERE reason = 'invalid_json')",
            {"row_beyond_position", "record_without_verdict", "log_counter"},
            {"row_beyond_position"},
            id="a dead letter comes from an offset without a verdict",
        ),
    ],
)
async def test_tampering_is_reported_by_name(
    system: Reconciled, statement: str, expected: set[str], by_counting: set[str]
) -> None:
    assert system.tamper(statement.replace("{bytes}", "bytea" if system.on_postgres else "BLOB")) == 1
    report = await system.check()
    assert set(report.findings_by_check) == expected
    assert not report.ok
    assert report.findings_total >= len(report.findings) > 0
    for finding in report.findings:
        assert finding.sentence.endswith(".")
    assert await system.found(counts_only=True) == by_counting


async def test_a_counter_that_breaks_the_sum_rule_is_reported(system: Reconciled) -> None:
    if system.on_postgres:
        name = system.value(
            "SELECT conname FROM pg_constraint WHERE conrelid = 'verdict_counts'::regclass AND contype = 'c'"
        )
        off = f"ALTER TABLE verdict_counts DROP CONSTRAINT {name}"
    else:
        off = "PRAGMA ignore_check_constraints = ON"
    system.tamper(off, "UPDATE verdict_counts SET received = received + 1 WHERE partition = 0")
    assert "counter_sum" in await system.found(counts_only=True)


async def test_a_position_moved_over_records_without_a_verdict_is_reported_record_by_record(
    system: Reconciled,
) -> None:
    await publish(system.log, [record(f"skipped {n}") for n in range(60)])
    reader = system.log.reader()
    for number, held in (await reader.offsets()).items():
        system.tamper(f"UPDATE partition_progress SET next_offset = {held.end} WHERE partition = {number}")
    report = await system.check()
    assert report.findings_by_check["record_without_verdict"] == 60
    sentences = [one.sentence for one in report.findings if one.check == "record_without_verdict"]
    assert len(sentences) == KEPT_PER_CHECK
    assert all("'skipped " in one and "neither stored nor a dead letter" in one for one in sentences)


async def test_an_incarnation_without_its_gap_is_reported_and_one_with_it_is_a_known_gap(
    system: Reconciled,
) -> None:
    for position in system.store.positions({0: 0}).values():
        system.store.begin_incarnation(
            position, 0, gap_from=position.next_offset, gap_to=None, reason="truncated"
        )
    # Everything of partition 0 is read again, in the new incarnation.
    async with system.working():
        await system.caught_up()
    report = await system.check()
    assert (report.ok, report.findings) == (True, [])
    assert [(gap.partition, gap.incarnation, gap.reason) for gap in report.gaps] == [(0, 2, "truncated")]
    system.tamper("DELETE FROM log_gaps")
    assert "gap_missing" in await system.found()


async def test_a_log_that_has_forgotten_its_beginning_still_proves_what_it_holds(
    sqlite_url: str, tmp_path: Path
) -> None:
    now = 1_000_000.0
    log = LocalLog(tmp_path / "log.db", LocalLogSettings(partitions=1, retention_hours=1), clock=lambda: now)
    await log.start()
    system = Reconciled(log, sqlite_url)
    try:
        await system.fill(everything())
        now += 4_000
        await system.fill([record(f"e{n}", n=n) for n in range(20)])
        assert await log.trim() > 0
        report = await system.check()
        assert report.ok
        assert 0 < report.checked.records < 80
        system.tamper("DELETE FROM event_keys WHERE seq = (SELECT seq FROM events WHERE event_id = 'e3')")
        assert await system.found() == {"key_count", "event_without_key", "record_without_verdict"}
        system.tamper("UPDATE verdict_counts SET duplicate = 1, received = received - duplicate + 1")
        assert "log_counter" in await system.found()
    finally:
        system.close()
        await log.stop()


async def test_records_that_expired_unread_are_reported(sqlite_url: str, tmp_path: Path) -> None:
    now = 1_000_000.0
    log = LocalLog(tmp_path / "log.db", LocalLogSettings(partitions=1, retention_hours=1), clock=lambda: now)
    await log.start()
    system = Reconciled(log, sqlite_url)
    try:
        await system.fill([record("first")])
        await system.fill(everything())
        now += 4_000
        await system.fill([record("last")])
        assert await log.trim() > 0
        system.tamper("UPDATE partition_progress SET next_offset = 1")
        assert "position_outside_log" in await system.found(counts_only=True)
    finally:
        system.close()
        await log.stop()


async def test_a_database_filled_from_two_logs_passes(system: Reconciled, tmp_path: Path) -> None:
    log = LocalLog(tmp_path / "other.db", LocalLogSettings(partitions=3), topic="other")
    await log.start()
    other = Reconciled(log, str(system.engine.url.render_as_string(hide_password=False)))
    try:
        system.engine.dispose()
        await other.fill([*everything(), record("only here")])
        for one in (system, other):
            report = await one.check()
            assert (report.findings, len(report.notes)) == ([], 1)
    finally:
        other.close()
        await log.stop()


async def test_a_run_beside_a_busy_worker_raises_no_false_alarm(system: Reconciled) -> None:
    stop = asyncio.Event()

    async def produce() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            first = number * 20
            await publish(
                system.log,
                [
                    *(record(f"live {n}", n=n) for n in range(first, first + 20)),
                    *(record(f"live {n}", n=n) for n in range(first - 5, first)),
                    record(f"live {first}", n=-1),
                    *everything()[-2:],
                ],
            )

    producing = asyncio.create_task(produce())
    try:
        async with system.working():
            records = [60]
            async with asyncio.timeout(DEADLINE):
                while len(records) < 12:
                    report = await system.check()
                    assert (report.findings, report.notes) == ([], [])
                    records.append(report.checked.records)
            assert records == sorted(records)
            assert records[-1] > 60
    finally:
        stop.set()
        await producing


@pytest.mark.kafka
@pytest.mark.postgres
async def test_aborted_transactions_and_their_markers_raise_no_false_alarm(
    kafka_bootstrap: str, postgres_url: str
) -> None:
    async with kafka_log(kafka_bootstrap, partitions=2) as log:
        producer = Producer(
            {"bootstrap.servers": kafka_bootstrap, "transactional.id": log.topic, "linger.ms": 0}
        )

        def transactions() -> None:
            producer.init_transactions(DEADLINE)
            for part, commit in enumerate((True, False, True, True, False)):
                producer.begin_transaction()
                for n, one in enumerate(everything()[part * 12 : (part + 1) * 12]):
                    producer.produce(log.topic, one.value, key=one.key, partition=n % 2)
                producer.flush(DEADLINE)
                (producer.commit_transaction if commit else producer.abort_transaction)(DEADLINE)

        await asyncio.to_thread(transactions)
        system = Reconciled(log, postgres_url)
        try:
            async with system.working():
                await system.caught_up()
            report = await system.check()
            assert (report.findings, report.checked.records) == ([], 36)
            assert system.value("SELECT sum(next_offset) FROM partition_progress") > 60
            system.tamper("UPDATE partition_progress SET next_offset = next_offset - 4 WHERE partition = 0")
            assert "row_beyond_position" not in await system.found()  # Only markers and aborted records.
            assert (
                system.tamper(
                    f"DELETE FROM event_keys WHERE seq IN (SELECT seq FROM events WHERE {ONE_EVENT})"
                )
                == 1
            )
            assert "record_without_verdict" in await system.found()
        finally:
            system.close()
