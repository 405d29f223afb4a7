"""The log changes under the workers: recreated, grown, cut at its beginning."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.cimpl import NewPartitions

from tests.faults.rig import PARTITIONS
from tests.faults.stage import Stage
from tests.support.processes import wait_until
from tests.support.tables import Place

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.slow, pytest.mark.timeout(300)]


def shown(stage: Stage, path: str, name: str) -> list[dict[str, Any]]:
    """What an operator sees."""
    answer = httpx.get(f"{stage.deployment.admin_url}{path}", timeout=20).raise_for_status().json()
    found: list[dict[str, Any]] = answer[name]
    return found


def begun_anew(stage: Stage) -> set[int]:
    """The partitions in their second incarnation."""
    return {p for p, (incarnation, _) in stage.store.positions().items() if incarnation == 2}


def forget(stage: Stage) -> None:
    """Note everything the log holds, before it loses it."""
    incarnations = {p: incarnation for p, (incarnation, _) in stage.store.positions().items()}
    stage.earlier += stage.reader.records(incarnations)


def test_recreated_topic_begins_new_incarnations_and_everything_new_is_stored(stage: Stage) -> None:
    stage.start()
    stage.load.wait_for(600)
    stage.recovered()
    stage.load.stop()
    wait_until(lambda: stage.caught_up(), 30, "the end of the log")
    forget(stage)
    before = stage.store.positions()

    stage.inject("topic deleted and recreated while gateway and workers run")
    stage.brokers.admin.delete_topics([stage.topic], operation_timeout=20)[stage.topic].result(30)
    wait_until(lambda: not stage.brokers.has_topic(stage.topic), 20, "the topic to be gone")
    stage.brokers.create_topic(stage.topic)
    stage.make_load(name="second-").start()
    had_records = {p for p, (_, offset) in before.items() if offset > 0}
    # Until then a position beyond the end looks like one that has been reached.
    wait_until(lambda: begun_anew(stage) == had_records, 60, "new incarnations")
    stage.load.wait_for(600, timeout=60)
    stage.recovered()
    stage.finish()

    gaps = shown(stage, "/gaps", "gaps")
    assert {gap["partition"] for gap in gaps} == had_records
    assert {gap["reason"] for gap in gaps} <= {"recreated", "truncated"}
    assert all(gap["incarnation"] == 2 for gap in gaps)
    partitions = shown(stage, "/partitions", "partitions")
    assert {one["partition"] for one in partitions if one["gaps"]} == had_records
    stage.report.checked.append(f"{len(gaps)} gaps shown to the operator")


def test_added_partitions_are_read_from_their_beginning(stage: Stage) -> None:
    stage.start()
    stage.load.wait_for(600)
    stage.inject(f"partitions added under load, {PARTITIONS} to {PARTITIONS + 3}")
    grown = NewPartitions(stage.topic, PARTITIONS + 3)
    stage.brokers.admin.create_partitions([grown], operation_timeout=20)[stage.topic].result(30)
    wait_until(
        lambda: all(stage.store.positions().get(p, (0, 0))[1] for p in range(PARTITIONS + 3)),
        60,
        "verdicts in every new partition",
    )
    stage.load.wait_for(600)
    stage.recovered()
    stage.finish()
    assert shown(stage, "/gaps", "gaps") == []
    assert len(shown(stage, "/partitions", "partitions")) == PARTITIONS + 3


def test_records_deleted_before_they_were_read_are_a_gap_that_is_shown(stage: Stage) -> None:
    workers = stage.start()
    stage.load.wait_for(600)
    stage.recovered()
    for worker in workers:
        worker.terminate()
    stopped_at = stage.store.positions()
    stage.load.wait_for(900)
    stage.load.stop()
    ends = stage.reader.ends()
    cut = {p: (stopped_at.get(p, (1, 0))[1] + end) // 2 for p, end in ends.items()}
    records = stage.reader.records({})
    stage.earlier = [record for record in records if record.offset < cut[record.partition]]
    stage.lost = frozenset(
        Place(record.partition, 1, record.offset)
        for record in stage.earlier
        if record.offset >= stopped_at.get(record.partition, (1, 0))[1]
    )
    stage.inject(f"{len(stage.lost)} records deleted from the log that no worker had read")
    wanted = [TopicPartition(stage.topic, p, offset) for p, offset in cut.items()]
    for future in stage.brokers.admin.delete_records(wanted, request_timeout=20).values():
        future.result(30)

    stage.worker()
    stage.make_load(name="second-").start()
    stage.load.wait_for(600)
    stage.recovered()
    stage.finish()

    shown_gaps = {
        (gap["partition"], gap["from_offset"], gap["to_offset"], gap["reason"])
        for gap in shown(stage, "/gaps", "gaps")
    }
    expected = {
        (p, stopped_at.get(p, (1, 0))[1], offset, "expired")
        for p, offset in cut.items()
        if offset > stopped_at.get(p, (1, 0))[1]
    }
    assert shown_gaps == expected
    stage.report.checked.append(f"{len(expected)} gaps with their ranges, and nothing else lost")


def test_log_that_lost_its_end_is_a_gap_and_read_from_its_beginning(stage: Stage) -> None:
    """What an unclean election leaves: fewer records than had their verdict."""
    workers = stage.start()
    stage.load.wait_for(900)
    stage.recovered()
    for worker in workers:
        worker.terminate()
    stage.load.stop()
    forget(stage)
    handled = {p: offset for p, (_, offset) in stage.store.positions().items() if offset}
    # Records that came after the last verdict are lost with the rest, by definition of the fault.
    stage.lost = frozenset(
        Place(one.partition, 1, one.offset)
        for one in stage.earlier
        if one.offset >= handled.get(one.partition, 0)
    )
    stage.inject("the log comes back shorter than the positions, with other records")
    stage.brokers.admin.delete_topics([stage.topic], operation_timeout=20)[stage.topic].result(30)
    wait_until(lambda: not stage.brokers.has_topic(stage.topic), 20, "the topic to be gone")
    stage.brokers.create_topic(stage.topic)
    stage.make_load(name="second-", rate=60).start()
    stage.load.wait_for(60)
    stage.worker()
    wait_until(lambda: begun_anew(stage) == set(handled), 60, "new incarnations")
    stage.load.wait_for(200)
    stage.recovered()
    stage.finish()

    gaps = {gap["partition"]: gap for gap in shown(stage, "/gaps", "gaps")}
    assert set(gaps) == set(handled)
    assert all(gap["from_offset"] == handled[p] for p, gap in gaps.items())


def test_topic_that_is_gone_for_a_while_gives_503_and_is_used_again(stage: Stage) -> None:
    workers = stage.start()
    stage.load.wait_for(600)
    stage.recovered()
    stage.load.stop()
    wait_until(lambda: stage.caught_up(), 30, "the end of the log")
    forget(stage)
    stage.inject("topic deleted; recreated when the gateway has refused requests")
    stage.brokers.admin.delete_topics([stage.topic], operation_timeout=20)[stage.topic].result(30)
    stage.make_load(name="second-", poison_share=0.0).start()
    wait_until(lambda: stage.load.statuses().get(503, 0) >= 3, 40, "requests refused with 503")
    assert not stage.brokers.has_topic(stage.topic), "somebody created the topic by asking for it"
    had_records = {p for p, (_, offset) in stage.store.positions().items() if offset > 0}
    stage.brokers.create_topic(stage.topic)
    wait_until(lambda: begun_anew(stage) == had_records, 60, "new incarnations")
    stage.recovered()
    stage.load.wait_for(300)
    stage.recovered()
    stage.finish()
    assert all(process.returncode is None for process in (stage.gateway, *workers))
